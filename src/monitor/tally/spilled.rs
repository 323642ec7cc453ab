//! What found no cell any more: counted in every dimension alone.

use super::super::cell::{Cell, Country, Counts, Place};
use super::super::ledger::Spilled;
use super::cells::Key;
use super::index;
use crate::packet::Version;
use std::collections::BTreeMap;

const PORTS: usize = 1 << 16;
/// How many autonomous systems a ledger may bring along; there are about 120,000.
const MAX_CARRIED: usize = 1 << 18;

/// Nothing is allocated before something spills; then it is arrays, of which no packet makes
/// more.
#[derive(Default)]
pub(super) struct Spill {
    ports: Vec<Counts>,
    /// By the number of the place, of which system and country are made when they are asked for.
    places: Vec<Counts>,
    versions: [Counts; 2],
    /// Out of a ledger, where system and country do not belong together any more.
    systems: BTreeMap<u32, Counts>,
    countries: BTreeMap<Country, Counts>,
}

impl Spill {
    /// Counts a packet; there are so many places.
    #[cold]
    pub(super) fn add(&mut self, key: Key, counts: Counts, places: usize) {
        if self.places.is_empty() {
            self.places.resize(places, Counts::default());
        }
        self.port(key.port(), counts);
        if let Some(place) = self.places.get_mut(key.place() as usize) {
            *place += counts;
        }
        self.versions[index(key.version())] += counts;
    }

    /// Whether connections that found no cell began to the port, the place and the IP version of a
    /// packet: all that can be known of whether its connection did.
    pub(super) fn has(&self, key: Key, place: Place) -> bool {
        let began = |counts: Option<&Counts>| counts.is_some_and(|counts| counts.flows > 0);
        began(self.ports.get(usize::from(key.port())))
            && self.versions[index(key.version())].flows > 0
            && (began(self.places.get(key.place() as usize))
                || began(self.systems.get(&place.asn)) && began(self.countries.get(&place.country)))
    }

    /// Adds what another one has counted of packets; there are so many places.
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

    /// Counts what a cell had that was kept from before.
    pub(super) fn carry_cell(&mut self, cell: Cell, counts: Counts) {
        self.port(cell.port, counts);
        self.system(cell.place.asn, counts);
        *self.countries.entry(cell.place.country).or_default() += counts;
        self.versions[index(cell.version)] += counts;
    }

    /// Counts what had been spilled before.
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

    /// Past the bound a system is an unknown one.
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
            .packets
            .saturating_add(self.versions[1].packets)
    }

    /// In every dimension what there is, in order.
    pub(super) fn told(&self, place: impl Fn(u32) -> Place) -> Spilled {
        let some = |counts: &Counts| *counts != Counts::default();
        let mut systems = self.systems.clone();
        let mut countries = self.countries.clone();
        for (number, counts) in (0..).zip(&self.places).filter(|(_, counts)| some(counts)) {
            let place = place(number);
            *systems.entry(place.asn).or_default() += *counts;
            *countries.entry(place.country).or_default() += *counts;
        }
        let ports = (0..=u16::MAX).zip(&self.ports);
        let versions = [Version::V4, Version::V6].into_iter().zip(&self.versions);
        Spilled {
            ports: ports
                .filter(|(_, counts)| some(counts))
                .map(|(port, counts)| (port, *counts))
                .collect(),
            systems: systems.into_iter().collect(),
            countries: countries.into_iter().collect(),
            versions: versions
                .filter(|(_, counts)| some(counts))
                .map(|(version, counts)| (version, *counts))
                .collect(),
        }
    }
}
