//! Packets that found no free cell: counted in every single dimension.

use super::super::cell::{Cell, Country, Counts, Place};
use super::super::ledger::Spilled;
use super::cells::PackedKey;
use super::{by_version, index, without_zeroes};
use std::collections::BTreeMap;

const PORTS: usize = 1 << 16;
/// Autonomous systems of a restored ledger at most; there are about 120,000.
const MAX_CARRIED: usize = 1 << 18;

/// Nothing is allocated before the first spill; then arrays of fixed size.
#[derive(Default)]
pub(super) struct Spill {
    ports: Vec<Counts>,
    /// By place number; converted to systems and countries for the ledger.
    places: Vec<Counts>,
    versions: [Counts; 2],
    /// From a restored ledger, which no longer tells which system and country belong together.
    systems: BTreeMap<u32, Counts>,
    countries: BTreeMap<Country, Counts>,
}

impl Spill {
    /// Counts a packet; `places` is the number of places.
    #[cold]
    pub(super) fn add(&mut self, key: PackedKey, counts: Counts, places: usize) {
        if self.places.is_empty() {
            self.places.resize(places, Counts::default());
        }
        self.port(key.port(), counts);
        if let Some(place) = self.places.get_mut(key.place() as usize) {
            *place += counts;
        }
        self.versions[index(key.version())] += counts;
    }

    /// Whether connections without a cell began to the port, place and IP version of a packet: the
    /// best available answer to whether its own connection did.
    pub(super) fn has(&self, key: PackedKey, place: impl FnOnce() -> Place) -> bool {
        let began = |counts: Option<&Counts>| counts.is_some_and(|counts| counts.flows > 0);
        let began_there = |place: Place| {
            began(self.systems.get(&place.asn)) && began(self.countries.get(&place.country))
        };
        began(self.ports.get(usize::from(key.port())))
            && self.versions[index(key.version())].flows > 0
            && (began(self.places.get(key.place() as usize)) || began_there(place()))
    }

    /// Adds the packet counts of another one; `places` is the number of places.
    pub(super) fn absorb(&mut self, counted: &Self, places: usize) {
        if counted.places.is_empty() {
            return;
        }
        self.places.resize(places, Counts::default());
        self.ports.resize(PORTS, Counts::default());
        let sum = |sums: &mut [Counts], counts: &[Counts]| {
            for (sum, counts) in sums.iter_mut().zip(counts) {
                *sum += *counts;
            }
        };
        sum(&mut self.places, &counted.places);
        sum(&mut self.ports, &counted.ports);
        sum(&mut self.versions, &counted.versions);
    }

    /// Adds a restored cell that does not fit into the table.
    pub(super) fn carry_cell(&mut self, cell: Cell, counts: Counts) {
        self.port(cell.port, counts);
        self.system(cell.place.asn, counts);
        *self.countries.entry(cell.place.country).or_default() += counts;
        self.versions[index(cell.version)] += counts;
    }

    /// Adds the spilled counts of a restored ledger.
    pub(super) fn carry(&mut self, spilled: &Spilled) {
        for (port, counts) in &spilled.ports {
            self.port(*port, *counts);
        }
        for (asn, counts) in &spilled.systems {
            self.system(*asn, *counts);
        }
        for (country, counts) in &spilled.countries {
            *self.countries.entry(*country).or_default() += *counts;
        }
        for (version, counts) in &spilled.versions {
            self.versions[index(*version)] += *counts;
        }
    }

    fn port(&mut self, port: u16, counts: Counts) {
        if self.ports.is_empty() {
            self.ports.resize(PORTS, Counts::default());
        }
        self.ports[usize::from(port)] += counts;
    }

    /// Beyond [`MAX_CARRIED`], new systems count as unknown.
    fn system(&mut self, asn: u32, counts: Counts) {
        let is_full = self.systems.len() >= MAX_CARRIED;
        let asn = if is_full && !self.systems.contains_key(&asn) {
            0
        } else {
            asn
        };
        *self.systems.entry(asn).or_default() += counts;
    }

    pub(super) fn packets(&self) -> u64 {
        self.versions[0]
            .all_packets()
            .saturating_add(self.versions[1].all_packets())
    }

    /// The spilled counts by dimension, sorted.
    pub(super) fn resolved(&self, place: impl Fn(u32) -> Place) -> Spilled {
        let mut systems = self.systems.clone();
        let mut countries = self.countries.clone();
        for (number, counts) in without_zeroes((0..).zip(self.places.iter().copied())) {
            let place = place(number);
            *systems.entry(place.asn).or_default() += counts;
            *countries.entry(place.country).or_default() += counts;
        }
        Spilled {
            ports: without_zeroes((0..=u16::MAX).zip(self.ports.iter().copied())).collect(),
            systems: systems.into_iter().collect(),
            countries: countries.into_iter().collect(),
            versions: without_zeroes(by_version(self.versions)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::packet::Version;

    const PLACES: usize = 3;

    /// Place `number` is system 10 + `number`; two of the three are in one country.
    fn place(number: u32) -> Place {
        let country = if number == 2 { "FR" } else { "DE" };
        Place {
            country: country.parse().unwrap(),
            asn: 10 + number,
        }
    }

    fn counts(flows: u64) -> Counts {
        [flows, 1000 * flows, 10 + flows].into()
    }

    fn sum<const N: usize>(parts: [u64; N]) -> Counts {
        parts.into_iter().map(counts).sum()
    }

    fn cell(number: u32) -> Cell {
        Cell {
            port: 443,
            place: place(number),
            version: Version::V4,
        }
    }

    fn country(text: &str) -> Country {
        text.parse().unwrap()
    }

    fn spilled() -> Spill {
        let mut spill = Spill::default();
        spill.add(PackedKey::new(443, Version::V4, 0), counts(1), PLACES);
        spill.add(PackedKey::new(443, Version::V6, 1), counts(2), PLACES);
        spill.add(PackedKey::new(u16::MAX, Version::V6, 2), counts(4), PLACES);
        spill
    }

    #[test]
    fn a_packet_is_counted_once_in_every_dimension() {
        let mut spill = spilled();
        // A place with an unknown number has no sum of its own.
        spill.add(PackedKey::new(0, Version::V4, 3), counts(8), PLACES);
        let expected = Spilled {
            ports: vec![(0, sum([8])), (443, sum([1, 2])), (u16::MAX, sum([4]))],
            systems: vec![(10, sum([1])), (11, sum([2])), (12, sum([4]))],
            countries: vec![(country("DE"), sum([1, 2])), (country("FR"), sum([4]))],
            versions: vec![(Version::V4, sum([1, 8])), (Version::V6, sum([2, 4]))],
        };
        assert_eq!(spill.resolved(place), expected);
        assert_eq!(spill.packets(), sum([1, 2, 4, 8]).packets);
        assert_eq!(Spill::default().resolved(place), Spilled::default());
    }

    #[test]
    fn absorbs_the_counts_of_another_spill() {
        let mut spill = Spill::default();
        spill.absorb(&Spill::default(), PLACES);
        assert!(spill.places.is_empty() && spill.ports.is_empty());
        spill.absorb(&spilled(), PLACES);
        assert_eq!(spill.resolved(place), spilled().resolved(place));
        spill.absorb(&spilled(), PLACES);
        let twice = spill.resolved(place);
        let ports = [(443, sum([1, 2, 1, 2])), (u16::MAX, sum([4, 4]))];
        assert_eq!(twice.ports, ports);
        assert_eq!(twice.systems[2], (12, sum([4, 4])));
        assert_eq!(twice.versions[0], (Version::V4, sum([1, 1])));
    }

    #[test]
    fn carried_counts_are_reported_again() {
        let resolved = spilled().resolved(place);
        let mut spill = Spill::default();
        spill.carry(&resolved);
        assert_eq!(spill.resolved(place), resolved);
        spill.carry(&resolved);
        spill.carry_cell(cell(2), counts(16));
        let expected = Spilled {
            ports: vec![(443, sum([1, 2, 1, 2, 16])), (u16::MAX, sum([4, 4]))],
            systems: vec![(10, sum([1, 1])), (11, sum([2, 2])), (12, sum([4, 4, 16]))],
            countries: vec![
                (country("DE"), sum([1, 2, 1, 2])),
                (country("FR"), sum([4, 4, 16])),
            ],
            versions: vec![
                (Version::V4, sum([1, 1, 16])),
                (Version::V6, sum([2, 4, 2, 4])),
            ],
        };
        assert_eq!(spill.resolved(place), expected);
    }

    #[test]
    fn has_compares_port_place_and_version() {
        let has = |spill: &Spill, port, version, number| {
            spill.has(PackedKey::new(port, version, number), || place(number))
        };
        let mut spill = Spill::default();
        spill.add(PackedKey::new(443, Version::V4, 0), counts(1), PLACES);
        // Packets of a connection, none of which begins it.
        spill.add(PackedKey::new(80, Version::V6, 1), counts(0), PLACES);
        assert!(has(&spill, 443, Version::V4, 0));
        assert!(!has(&spill, 80, Version::V4, 0), "another port");
        assert!(!has(&spill, 443, Version::V6, 0), "another version");
        assert!(!has(&spill, 443, Version::V4, 1), "another place");
        assert!(!has(&Spill::default(), 443, Version::V4, 0));

        // A ledger has systems and countries, but not which belong together.
        let mut carried = Spill::default();
        for (number, flows) in [(0, 1), (1, 0), (2, 0)] {
            carried.carry_cell(cell(number), counts(flows));
        }
        assert!(has(&carried, 443, Version::V4, 0));
        // Another system of the country, and of another country.
        assert!(!has(&carried, 443, Version::V4, 1));
        assert!(!has(&carried, 443, Version::V4, 2));
        let elsewhere = Place {
            asn: place(0).asn,
            ..place(2)
        };
        let key = PackedKey::new(443, Version::V4, 0);
        assert!(
            !carried.has(key, || elsewhere),
            "another country of the system"
        );
    }

    #[test]
    fn systems_beyond_the_bound_are_one() {
        let mut spill = Spill::default();
        let most = u32::try_from(MAX_CARRIED).unwrap();
        (1..most).for_each(|asn| spill.system(asn, counts(1)));
        spill.system(most, counts(1));
        spill.system(most + 1, counts(2));
        spill.system(most, counts(4));
        let of = |asn| spill.systems.get(&asn).copied();
        assert_eq!(of(most), Some(sum([1, 4])));
        assert_eq!((of(most + 1), of(0)), (None, Some(sum([2]))));
        assert_eq!(MAX_CARRIED, 262_144);
    }
}
