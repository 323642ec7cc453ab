//! Follows the addresses of hosts from wire to wire, and forgets those that have left.
//!
//! Each wire has a table of the MAC addresses of its own hosts, and a frame that arrives by a shared
//! NIC `incoming` goes to the first wire whose table has the address. Both members of a link
//! aggregate may have it. An address that has moved must be forgotten where it was: it stays where
//! the link is up and frames come from.

use super::topology::{Conflicts, HOST_CONFLICT};
use super::wire::Wire;
use crate::observe::Warning;
use exitmark_datapath::{ActiveHost, HostAges, KnownHost, clock};
use exitmark_policy::packet::MacAddr;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The interval of looking at the table of a single wire, which is only kept from filling up.
const INTERVAL_OF_ONE: Duration = Duration::from_secs(60);

/// After how many looks without a frame an address of an aggregate is forgotten on a member.
const SILENT_LOOKS: u32 = 3;

/// What is known of the hosts of all wires.
#[derive(Default)]
pub(super) struct Roaming {
    ages: Vec<HostAges>,
    looked: Option<Instant>,
    conflicts: Conflicts,
    /// How often each address was sent from two machines behind different wires at the same time.
    clashes: BTreeMap<IpAddr, u16>,
    /// For how many looks an address that several wires have was silent on one of them.
    silent: BTreeMap<(IpAddr, usize), u32>,
}

/// An address in the table of one wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    wire: usize,
    mac: MacAddr,
    has_link: bool,
    is_active: bool,
}

impl Place {
    /// How well frames for the address arrive there, in comparison with other wires.
    const fn rank(&self) -> (bool, bool) {
        (self.has_link, self.is_active)
    }
}

impl Roaming {
    /// Looks at the frames since the last look; call this once a second. `is_complete` is whether
    /// every wire of the configuration is set up.
    pub(super) fn look(&mut self, wires: &mut [Wire], is_complete: bool) {
        if let ([one], true) = (&mut *wires, is_complete) {
            one.other_macs = Some(Vec::new());
        }
        let now = Instant::now();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < INTERVAL_OF_ONE;
        if wires.len() == 1 && self.looked.is_some_and(is_recent) {
            return;
        }
        self.looked = Some(now);
        self.ages.resize_with(wires.len(), HostAges::default);
        let mut hosts = Vec::with_capacity(wires.len());
        for (wire, ages) in wires.iter().zip(&mut self.ages) {
            let activity = wire.links.take_activity(clock());
            let forgotten = wire.links.age_hosts(ages, &activity, clock());
            if forgotten > 0 {
                tracing::info!("{forgotten} host addresses that have sent nothing are forgotten");
            }
            hosts.push(activity);
        }
        if wires.len() == 1 {
            return;
        }
        self.look_for_clashes(now, &hosts);
        self.note_silence(&mut hosts);
        forget(wires, &hosts);
        for (number, wire) in wires.iter_mut().enumerate() {
            let others = hosts.iter().enumerate();
            let others = others.filter(|(other, _)| *other != number);
            wire.other_macs = None;
            if is_complete && others.clone().all(|(_, hosts)| !hosts.is_empty()) {
                let macs = others.flat_map(|(_, hosts)| hosts.iter().map(|one| one.host.mac));
                let mut macs: Vec<_> = macs.collect();
                macs.sort_unstable_by_key(|mac| mac.to_u64());
                macs.dedup();
                wire.other_macs = Some(macs);
            }
        }
    }

    /// Forgets addresses behind a link that is lost, if they are known behind another one.
    pub(super) fn follow_links(wires: &[Wire]) {
        if wires.len() > 1 && wires.iter().any(|wire| !wire.has_host_link()) {
            let known = wires.iter().map(|wire| {
                let hosts = wire.links.hosts().into_iter();
                let unknown = |host| ActiveHost {
                    host,
                    is_active: false,
                };
                hosts.map(unknown).collect()
            });
            forget(wires, &known.collect::<Vec<_>>());
        }
    }

    /// An address in several tables counts as active for some looks after its last frame, if all have
    /// one MAC address for it: the members of an aggregate take turns.
    fn note_silence(&mut self, hosts: &mut [Vec<ActiveHost>]) {
        let before = std::mem::take(&mut self.silent);
        for (address, places) in places(hosts, |_| true) {
            let is_aggregate = places.iter().all(|place| place.mac == places[0].mac);
            for place in places.iter().filter(|place| !place.is_active) {
                let looks = before
                    .get(&(address, place.wire))
                    .map_or(1, |looks| looks + 1);
                self.silent.insert((address, place.wire), looks);
                let own = hosts[place.wire].iter_mut();
                for host in own.filter(|own| own.host.address == address) {
                    host.is_active = is_aggregate && looks < SILENT_LOOKS;
                }
            }
        }
    }

    /// Two machines behind different wires must not have one address. The members of an aggregate
    /// have one MAC address.
    fn look_for_clashes(&mut self, now: Instant, hosts: &[Vec<ActiveHost>]) {
        let mut one = Vec::new();
        let mut other = Vec::new();
        for (address, places) in places(hosts, |_| true) {
            let mut active = places.iter().filter(|place| place.is_active);
            let macs = active
                .next()
                .zip(active.next())
                .map(|(a, b)| (a.mac, b.mac));
            let clashes = self.clashes.get(&address).copied();
            let (first, second) = match macs.filter(|(a, b)| a != b) {
                Some(macs) => macs,
                None if clashes.is_some() => (places[0].mac, places[0].mac),
                None => continue,
            };
            let mut changes = clashes.unwrap_or_default();
            for (mac, list) in [(first, &mut one), (second, &mut other)] {
                changes = changes.wrapping_add(u16::from(first != second));
                list.push(KnownHost {
                    address,
                    mac,
                    changes,
                });
            }
            self.clashes.insert(address, changes);
        }
        let had_conflict = self.conflicts.exist();
        let is_new = [one, other].map(|hosts| self.conflicts.look(now, &hosts));
        match self.conflicts.text() {
            Some(text) if is_new.contains(&true) => tracing::error!("ALARM: {text}"),
            None if had_conflict => tracing::info!("alarm cleared: {HOST_CONFLICT}"),
            _ => {}
        }
    }

    /// The alarm that machines behind different wires use one address.
    pub(super) fn warning(&self) -> Option<Warning> {
        let text = self.conflicts.text()?;
        Some(Warning::new(HOST_CONFLICT, true, text))
    }
}

/// The places of each address that is in the tables of several wires.
fn places(
    hosts: &[Vec<ActiveHost>],
    has_link: impl Fn(usize) -> bool,
) -> BTreeMap<IpAddr, Vec<Place>> {
    let mut places = BTreeMap::<IpAddr, Vec<Place>>::new();
    for (wire, hosts) in hosts.iter().enumerate() {
        for ActiveHost { host, is_active } in hosts {
            places.entry(host.address).or_default().push(Place {
                wire,
                mac: host.mac,
                has_link: has_link(wire),
                is_active: *is_active,
            });
        }
    }
    places.retain(|_, places| places.len() > 1);
    places
}

/// The places where an address is to be forgotten.
fn left(places: &[Place]) -> impl Iterator<Item = usize> {
    let best = places.iter().map(Place::rank).max();
    let left = places.iter().filter(move |place| Some(place.rank()) < best);
    left.map(|place| place.wire)
}

fn forget(wires: &[Wire], hosts: &[Vec<ActiveHost>]) {
    let has_link: Vec<_> = wires.iter().map(Wire::has_host_link).collect();
    for (address, places) in places(hosts, |wire| has_link[wire]) {
        for wire in left(&places) {
            wires[wire].links.forget_host(address, clock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last])
    }

    fn host(address: &str, last: u8, is_active: bool) -> ActiveHost {
        ActiveHost {
            host: KnownHost {
                address: address.parse().unwrap(),
                mac: mac(last),
                changes: 0,
            },
            is_active,
        }
    }

    #[test]
    fn an_address_stays_where_frames_come_from_over_a_link() {
        let table = [
            // Both members of an aggregate, whose links are up.
            ([(true, true), (true, true)], vec![]),
            ([(true, false), (true, false)], vec![]),
            ([(true, true), (true, false)], vec![1]),
            ([(true, false), (true, true)], vec![0]),
            // A lost link counts more than its last frames.
            ([(false, true), (true, false)], vec![0]),
            ([(false, false), (false, false)], vec![]),
        ];
        for (ranks, expected) in table {
            let places = ranks.iter().enumerate();
            let places = places.map(|(wire, &(has_link, is_active))| Place {
                wire,
                mac: mac(1),
                has_link,
                is_active,
            });
            let places: Vec<_> = places.collect();
            assert_eq!(left(&places).collect::<Vec<_>>(), expected, "{ranks:?}");
        }
        let hosts = [
            vec![host("192.0.2.1", 1, true), host("192.0.2.2", 1, true)],
            vec![host("192.0.2.2", 2, true)],
        ];
        let several = places(&hosts, |_| true);
        assert_eq!(several.len(), 1, "{several:?}");
    }

    #[test]
    fn a_member_of_an_aggregate_may_be_silent_for_a_while() {
        let mut roaming = Roaming::default();
        let mut is_active = |other: u8| {
            let mut hosts = [
                vec![host("192.0.2.1", 1, true)],
                vec![host("192.0.2.1", other, false)],
            ];
            roaming.note_silence(&mut hosts);
            assert!(hosts[0][0].is_active);
            hosts[1][0].is_active
        };
        let same: Vec<_> = (0..4).map(|_| is_active(1)).collect();
        assert_eq!(same, [true, true, false, false]);
        // Another machine has the address now.
        assert!(!is_active(2));
    }

    #[test]
    fn machines_with_one_address_behind_two_wires_are_an_alarm() {
        let mut roaming = Roaming::default();
        let start = Instant::now();
        let mut look = |second: u64, hosts: [&ActiveHost; 2]| {
            let hosts = hosts.map(|host| vec![*host]);
            roaming.look_for_clashes(start + Duration::from_secs(second), &hosts);
            roaming.warning().map(|warning| warning.text)
        };
        let (a, b) = (host("192.0.2.1", 1, true), host("192.0.2.1", 2, true));
        let quiet = host("192.0.2.1", 2, false);
        for second in 0..20 {
            // An aggregate, and an address that has moved.
            assert_eq!(look(second, [&a, &a]), None);
            assert_eq!(look(second, [&a, &quiet]), None);
        }
        let mut found = None;
        for second in 20..26 {
            found = look(second, [&a, &b]);
        }
        let text = found.take().unwrap();
        assert!(text.contains("02:00:00:00:00:01"), "{text}");
        assert!(text.contains("02:00:00:00:00:02"), "{text}");
        for second in 26..100 {
            found = look(second, [&a, &quiet]);
        }
        assert_eq!(found, None);
    }
}
