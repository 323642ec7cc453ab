//! Remembers the rules of first fragments for later ones, which do not carry the ports.
//!
//! Bounded in space and time, and without addresses: a packet is identified by a keyed hash of the
//! fields that identify it, with a random key that never leaves this table.

use super::Rule;
use crate::packet::{Address, Fragment, Packet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// How long a first fragment is remembered (RFC 791 suggests 15 s for reassembly, RFC 8200
/// section 4.5 allows 60 s).
pub const FRAGMENT_LIFETIME: Duration = Duration::from_secs(30);

const WAYS: usize = 4;
const SETS: usize = 1024;

#[derive(Clone, Copy)]
struct FragmentEntry {
    key: u64,
    expires: Duration,
    rule: Rule,
}

/// The rule that the first fragment of each packet matched: a 4-way set-associative table of 4,096
/// packets. A full set evicts its oldest entry.
pub struct FragmentTable {
    key: RandomState,
    sets: Box<[[Option<FragmentEntry>; WAYS]]>,
}

impl Default for FragmentTable {
    fn default() -> Self {
        Self {
            key: RandomState::new(),
            sets: vec![[None; WAYS]; SETS].into_boxed_slice(),
        }
    }
}

impl FragmentTable {
    /// Stores the rule that a first fragment matched. `now` counts from any fixed moment.
    pub fn remember<A: Address>(
        &mut self,
        packet: &Packet<A>,
        fragment: Fragment,
        rule: Rule,
        now: Duration,
    ) {
        let key = self.hash(packet, fragment);
        let entry = Some(FragmentEntry {
            key,
            expires: now + FRAGMENT_LIFETIME,
            rule,
        });
        let set = &mut self.sets[set_of(key)];
        let slot = set
            .iter()
            .position(|slot| slot.is_some_and(|old| old.key == key))
            .or_else(|| (0..WAYS).min_by_key(|&way| set[way].map(|old| old.expires)));
        if let Some(slot) = slot {
            set[slot] = entry;
        }
    }

    /// The rule that the packet's first fragment matched, if it was stored in the last
    /// [`FRAGMENT_LIFETIME`].
    pub fn recall<A: Address>(
        &self,
        packet: &Packet<A>,
        fragment: Fragment,
        now: Duration,
    ) -> Option<Rule> {
        let key = self.hash(packet, fragment);
        self.sets[set_of(key)]
            .iter()
            .flatten()
            .find(|entry| entry.key == key && now < entry.expires)
            .map(|entry| entry.rule)
    }

    fn hash<A: Address>(&self, packet: &Packet<A>, fragment: Fragment) -> u64 {
        self.key.hash_one((
            packet.source,
            packet.destination,
            fragment.protocol,
            fragment.id,
        ))
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "only the low bits choose a set"
)]
const fn set_of(key: u64) -> usize {
    key as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::VlanTags;
    use crate::packet::{Ports, Tcp, protocol};

    fn packet(id: u32) -> (Packet<u32>, Fragment) {
        let fragment = Fragment {
            id,
            protocol: protocol::TCP,
            first: true,
        };
        let packet = Packet {
            l3: 14,
            vlan: VlanTags::UNTAGGED,
            tos: 0,
            source: 0xc000_0201,
            destination: 0xc633_6407,
            protocol: protocol::TCP,
            ports: Ports::default(),
            tcp: Tcp::default(),
            fragment: Some(fragment),
        };
        (packet, fragment)
    }

    #[test]
    fn remembers_for_thirty_seconds() {
        let mut table = FragmentTable::default();
        let (packet, fragment) = packet(7);
        let start = Duration::from_secs(1000);
        table.remember(&packet, fragment, Rule::ToListedRelay, start);
        let just_before = start + FRAGMENT_LIFETIME - Duration::from_nanos(1);
        let recalled = |now| table.recall(&packet, fragment, now);
        assert_eq!(recalled(just_before), Some(Rule::ToListedRelay));
        assert_eq!(recalled(start + FRAGMENT_LIFETIME), None);
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let mut table = FragmentTable::default();
        let (one, fragment) = packet(7);
        let now = Duration::ZERO;
        table.remember(&one, fragment, Rule::ExitProtocol, now);
        let other_source = Packet {
            source: 0xc000_0202,
            ..one
        };
        let other_destination = Packet {
            destination: 0xc633_6408,
            ..one
        };
        let other_id = Fragment { id: 8, ..fragment };
        let other_protocol = Fragment {
            protocol: protocol::UDP,
            ..fragment
        };
        let later = Fragment {
            first: false,
            ..fragment
        };
        assert_eq!(table.recall(&other_source, fragment, now), None);
        assert_eq!(table.recall(&other_destination, fragment, now), None);
        assert_eq!(table.recall(&one, other_id, now), None);
        assert_eq!(table.recall(&one, other_protocol, now), None);
        assert_eq!(table.recall(&one, later, now), Some(Rule::ExitProtocol));
    }

    #[test]
    fn a_flood_evicts_the_oldest_entries() {
        let mut table = FragmentTable::default();
        for id in 0..100_000 {
            let (packet, fragment) = packet(id);
            let now = Duration::from_micros(id.into());
            table.remember(&packet, fragment, Rule::ExitProtocol, now);
            assert!(table.recall(&packet, fragment, now).is_some(), "{id}");
        }
        let now = Duration::from_millis(100);
        let kept = (0..100_000)
            .filter(|&id| {
                let (packet, fragment) = packet(id);
                table.recall(&packet, fragment, now).is_some()
            })
            .count();
        assert_eq!(kept, WAYS * SETS);
    }

    #[test]
    fn a_reused_id_takes_the_newer_rule() {
        let mut table = FragmentTable::default();
        let (packet, fragment) = packet(7);
        let later = Duration::from_secs(1);
        table.remember(&packet, fragment, Rule::ExitProtocol, Duration::ZERO);
        table.remember(&packet, fragment, Rule::ToResolver, later);
        let recalled = table.recall(&packet, fragment, later);
        assert_eq!(recalled, Some(Rule::ToResolver));
    }
}
