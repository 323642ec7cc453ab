//! Checks that a difference of one bit is found: flips bits in the policy of one of the engines.

use crate::rig::in_namespace;
use exitmark_datapath::contract::{
    self, exitmark_group, exitmark_plain, exitmark_range_map, exitmark_ranges, exitmark_table,
};
use exitmark_lab::LabError;
use exitmark_lab::differential::{Plant, Scenario, Session};
use exitmark_policy::packet::{Dscp, Version};
use exitmark_policy::{AtUplink, Endpoint, Listener, Steer, image};
use ipnet::IpNet;
use std::io::Write;
use std::mem::offset_of;
use std::time::Instant;

/// The most frames per plant; more than any has needed.
const FRAMES: u64 = 5_000_000;

// Offsets in an image, in bytes; of a group's fields, in the first group.
const GROUP: usize = offset_of!(contract::exitmark_policy, groups);
const MARK: usize = GROUP + offset_of!(exitmark_group, mark);
const EXIT_PROTOCOLS: usize = GROUP + offset_of!(exitmark_group, exit_protocols);
const BOTH_KINDS: usize = GROUP + offset_of!(exitmark_group, both_kinds);
const ROUTED: usize = GROUP + offset_of!(exitmark_group, routed);
const NEXT_HOPS: usize = GROUP + offset_of!(exitmark_group, next_hops);
const PRIORITY: usize = GROUP + offset_of!(exitmark_group, priority);
const GROWS: usize = GROUP + offset_of!(exitmark_group, grows);
const INBOUND_GROWS: usize = GROUP + offset_of!(exitmark_group, inbound_grows);
const HOST_TAGS: usize = GROUP + offset_of!(exitmark_group, host_tags);
const STEER_TAGS: usize = GROUP + offset_of!(exitmark_group, steer_tags);
const MAC: usize = GROUP + offset_of!(exitmark_group, mac);
const ACTIONS: usize = GROUP + offset_of!(exitmark_group, actions);
const RESOLVERS: usize = GROUP + offset_of!(exitmark_group, resolvers);
const EXEMPT: usize = GROUP + offset_of!(exitmark_group, exempt);
const NO_GROUP: usize = GROUP
    + contract::NO_GROUP as usize * size_of::<exitmark_group>()
    + offset_of!(exitmark_group, actions);
const CLEARS: usize = offset_of!(contract::exitmark_policy, clears);
const HOST_MARK: usize = offset_of!(contract::exitmark_policy, host_mark);
const TAP: usize = offset_of!(contract::exitmark_policy, tap);
const SEVERAL: usize = offset_of!(contract::exitmark_policy, several);
const OWNERS: usize = offset_of!(contract::exitmark_policy, owners);
const OWNERS_V6: usize = OWNERS + size_of::<exitmark_range_map>();
const RELAYS: usize = offset_of!(contract::exitmark_policy, relays);
const LISTENERS: usize = offset_of!(contract::exitmark_policy, listeners);
const PLAIN: usize = offset_of!(contract::exitmark_policy, plain);
const LISTENS: usize = offset_of!(contract::exitmark_policy, listens);
const LISTENS_EVERYWHERE: usize = offset_of!(contract::exitmark_policy, listens_everywhere);
const RANGES_BYTES: usize = size_of::<exitmark_ranges>();
const TABLE_BYTES: usize = size_of::<exitmark_table>();
// In the description of ranges, ...
const AT: usize = offset_of!(exitmark_ranges, at);
const COUNT: usize = offset_of!(exitmark_ranges, count);
// ... in that of owners, ...
const OWNED_RANGES: usize = offset_of!(exitmark_range_map, ranges);
const OWNED_COUNT: usize = offset_of!(exitmark_range_map, count);
const OWNED_BY: usize = offset_of!(exitmark_range_map, values);
// ... and in that of a table.
const MULTIPLIERS: usize = offset_of!(exitmark_table, multipliers);
const PILOTS: usize = offset_of!(exitmark_table, pilots);
const PILOT_COUNT: usize = offset_of!(exitmark_table, pilot_count);
const SLOTS: usize = offset_of!(exitmark_table, slots);
const SLOT_COUNT: usize = offset_of!(exitmark_table, slot_count);

/// The bit that is flipped in the kernel's image.
#[derive(Clone, Copy, Debug)]
enum Flip {
    /// The bits of this mask in the byte at this offset.
    Bit(usize, u8),
    /// The lowest bit of the last address in the first range of the set at this offset; a range
    /// has this many words.
    LastAddress(usize, usize),
    /// The lowest bit of the last address in the first range of the owners at this offset; a range
    /// has this many words.
    OwnedRange(usize, usize),
    /// This bit of the owner of the first range of the owners at this offset.
    Owner(usize, u64),
    /// The lowest bit of a port in the table at this offset; a slot has this many words.
    SlotPort(usize, usize),
    /// The lowest bit of the pilots of the table at this offset that are not zero.
    Pilot(usize),
    /// The bit of the first listener's port in the bitmap at this offset.
    Listens(usize),
}

fn number(image: &[u8], at: usize) -> usize {
    let bytes: [u8; 4] = image[at..at + 4].try_into().unwrap();
    u32::from_ne_bytes(bytes) as usize
}

fn word(image: &[u8], index: usize) -> u64 {
    u64::from_ne_bytes(image[index * 8..index * 8 + 8].try_into().unwrap())
}

fn flip_word(image: &mut [u8], index: usize, bits: u64) {
    let flipped = word(image, index) ^ bits;
    image[index * 8..index * 8 + 8].copy_from_slice(&flipped.to_ne_bytes());
}

impl Flip {
    /// Flips the bit; does nothing if the scenario has no such set, table or listener.
    fn apply(self, scenario: &Scenario, image: &mut [u8]) {
        match self {
            Self::Bit(at, bits) => image[at] ^= bits,
            Self::LastAddress(set, words) => {
                let (at, count) = (number(image, set + AT), number(image, set + COUNT));
                if count > 0 {
                    flip_word(image, at + words - 1, 1);
                }
            }
            Self::OwnedRange(owners, words) => {
                let count = number(image, owners + OWNED_COUNT);
                if count > 0 {
                    let at = number(image, owners + OWNED_RANGES);
                    flip_word(image, at + words - 1, 1);
                }
            }
            Self::Owner(owners, bit) => {
                if number(image, owners + OWNED_COUNT) > 0 {
                    let at = number(image, owners + OWNED_BY);
                    flip_word(image, at, bit);
                }
            }
            Self::SlotPort(table, words) => {
                let (slots, count) = (
                    number(image, table + SLOTS),
                    number(image, table + SLOT_COUNT),
                );
                let mut ports = (0..count).map(|slot| slots + slot * words + words - 1);
                if let Some(taken) = ports.find(|&at| word(image, at) != u64::MAX) {
                    flip_word(image, taken, 1);
                }
            }
            Self::Pilot(table) => {
                let pilots = number(image, table + PILOTS) / 4;
                let words = number(image, table + PILOT_COUNT) / 4;
                if let Some(at) = (pilots..pilots + words).find(|&at| word(image, at) != 0) {
                    let lowest = word(image, at) & word(image, at).wrapping_neg();
                    flip_word(image, at, lowest);
                }
            }
            Self::Listens(bits) => {
                if let Some(listener) = scenario.groups[0].listeners.first() {
                    let port = match listener {
                        Listener::Port(port) => *port,
                        Listener::Endpoint(endpoint) => endpoint.port,
                    };
                    flip_word(image, bits / 8 + usize::from(port / 64), 1 << (port % 64));
                }
            }
        }
    }
}

/// Runs until the plant is found, and reports how long that took.
fn find(name: &str, plant: Plant<'_>) {
    let start = Instant::now();
    let session = Session::new(7).unwrap();
    let outcome = session.run(FRAMES, Some(plant)).unwrap();
    let took = start.elapsed();
    assert_eq!(outcome.differences.len(), 1, "{name} was not found");
    let _ = writeln!(
        std::io::stderr(),
        "{name}: found after {} frames, {took:.1?}: {}",
        outcome.frames,
        outcome.differences[0].difference
    );
}

/// Flips one bit in the kernel engine's image.
#[test]
fn a_bit_in_the_kernel_is_found() {
    use exitmark_policy::Rule;
    let action = |rule: Rule, bits| Flip::Bit(ACTIONS + rule as usize, bits);
    let v6 = RANGES_BYTES;
    #[rustfmt::skip]
    let plants = [
        ("a bit of the mark", Flip::Bit(MARK, 4)),
        ("exit protocols", Flip::Bit(EXIT_PROTOCOLS, 1)),
        ("both kinds of address", Flip::Bit(BOTH_KINDS, 1)),
        ("a bit of the host's mark", Flip::Bit(HOST_MARK, 4)),
        ("an IP version has a next hop", Flip::Bit(ROUTED, 2)),
        ("relays are not steered", action(Rule::ToListedRelay, 1)),
        ("exit frames are not marked", action(Rule::ExitProtocol, 2)),
        ("frames with the host's mark are not marked", action(Rule::HostMarked, 2)),
        ("frames without it are not steered", action(Rule::NotHostMarked, 1)),
        ("replies keep the mark", action(Rule::FromListener, 4)),
        ("malformed frames are steered", Flip::Bit(NO_GROUP + Rule::BadLength as usize, 1)),
        ("slow-path frames keep the mark", Flip::Bit(NO_GROUP + Rule::NoUserSpace as usize, 4)),
        ("frames of no group keep a mark", Flip::Bit(NO_GROUP + Rule::ForeignSource as usize, 4)),
        ("a group's number of the next hop", Flip::Bit(NEXT_HOPS, 1)),
        ("a group's number of the next hop, IPv6", Flip::Bit(NEXT_HOPS + 1, 1)),
        ("the priority of tags", Flip::Bit(PRIORITY, 1)),
        ("how long a steered frame gets", Flip::Bit(GROWS, 12)),
        ("how long a delivered frame gets", Flip::Bit(INBOUND_GROWS, 12)),
        ("an ID of the host's tags", Flip::Bit(HOST_TAGS, 1)),
        ("an ID of the steered frames' tags", Flip::Bit(STEER_TAGS, 1)),
        ("a configured MAC address", Flip::Bit(MAC, 1)),
        ("a mark is not cleared", Flip::Bit(CLEARS + 1, 4)),
        ("frames are counted by group", Flip::Bit(SEVERAL, 1)),
        ("exit frames are copied", Flip::Bit(TAP, 1)),
        ("answers are copied", Flip::Bit(TAP, 2)),
        ("the next hop of plain hosts", Flip::Bit(PLAIN + offset_of!(exitmark_plain, hop), 1)),
        ("the last listener", Flip::Bit(PLAIN + offset_of!(exitmark_plain, last_listener) + 1, 1)),
        ("an IPv4 address range", Flip::OwnedRange(OWNERS, 1)),
        ("an IPv6 address range", Flip::OwnedRange(OWNERS_V6, 4)),
        ("the kind of an address", Flip::Owner(OWNERS, 0x80)),
        ("the group of an address", Flip::Owner(OWNERS_V6, 1)),
        ("a resolver range", Flip::LastAddress(RESOLVERS + v6, 4)),
        ("an exempt range", Flip::LastAddress(EXEMPT, 1)),
        ("the number of exempt ranges", Flip::Bit(EXEMPT + COUNT, 1)),
        ("a relay's port, IPv4", Flip::SlotPort(RELAYS, 1)),
        ("a relay's port, IPv6", Flip::SlotPort(RELAYS + TABLE_BYTES, 3)),
        ("a bit of the relays' pilots", Flip::Pilot(RELAYS)),
        ("a multiplier", Flip::Bit(RELAYS + MULTIPLIERS + 3, 8)),
        ("a multiplier of IPv6", Flip::Bit(RELAYS + TABLE_BYTES + MULTIPLIERS + 8, 4)),
        ("the number of pilots", Flip::Bit(RELAYS + PILOT_COUNT, 4)),
        ("the number of slots", Flip::Bit(RELAYS + SLOT_COUNT, 4)),
        ("a listener's port", Flip::SlotPort(LISTENERS, 1)),
        ("the bit of a listening port", Flip::Listens(LISTENS)),
        ("whether all listen", Flip::Listens(LISTENS_EVERYWHERE)),
    ];
    in_namespace(move || {
        for (name, flip) in plants {
            find(name, &|scenario| {
                let snapshot = scenario.snapshot()?;
                let mut image = image(&snapshot).map_err(|error| LabError(error.to_string()))?;
                flip.apply(scenario, &mut image);
                Ok((snapshot, image))
            });
        }
    });
}

/// Flips one bit in the Rust engine's snapshot.
#[test]
fn a_bit_in_rust_is_found() {
    fn one_bit_longer(nets: &mut [IpNet]) {
        if let Some(net) = nets.first_mut() {
            let length = match net.prefix_len() {
                whole if whole == net.max_prefix_len() => whole.saturating_sub(1),
                length => length + 1,
            };
            *net = IpNet::new(net.addr(), length).unwrap().trunc();
        }
    }
    fn another_port(endpoint: &mut Endpoint) {
        // Never 0, which is not a valid port.
        endpoint.port = match endpoint.port {
            1 => 3,
            port => port ^ 1,
        };
    }
    type Change = fn(&mut Scenario);
    #[rustfmt::skip]
    let plants: [(&str, Change); 15] = [
        ("the mark", |it| {
            let other = u64::from(it.groups[0].mark.bits() ^ 1);
            it.groups[0].mark = Dscp::new(other.max(1)).unwrap();
        }),
        ("the host's mark", |it| {
            let other = |mark: Dscp| u64::from(mark.bits() ^ 1).max(2);
            it.host_mark = it.host_mark.map(|mark| Dscp::new(other(mark)).unwrap());
        }),
        ("whether the host marks", |it| {
            it.host_mark = match it.host_mark {
                Some(_) => None,
                None => Some(it.groups[0].mark),
            };
        }),
        ("an address prefix", |it| one_bit_longer(&mut it.groups[0].addresses)),
        ("a relay address prefix", |it| one_bit_longer(&mut it.groups[0].relay_addresses)),
        ("a resolver's prefix", |it| one_bit_longer(&mut it.groups[0].resolvers)),
        ("an exempt prefix", |it| one_bit_longer(&mut it.groups[0].exempt)),
        ("a relay's port", |it| it.relays.iter_mut().take(1).for_each(another_port)),
        ("a listener's port", |it| match it.groups[0].listeners.first_mut() {
            Some(Listener::Port(port)) => *port ^= 1,
            Some(Listener::Endpoint(endpoint)) => another_port(endpoint),
            None => {}
        }),
        ("the uplink shows the mark", |it| {
            it.groups[0].at_uplink = match it.groups[0].at_uplink {
                AtUplink::Keep => AtUplink::Strip,
                AtUplink::Strip => AtUplink::Keep,
            };
        }),
        ("the version that the next hop routes", |it| {
            if let Steer::Only(version) = it.groups[0].steer {
                it.groups[0].steer = Steer::Only(match version {
                    Version::V4 => Version::V6,
                    Version::V6 => Version::V4,
                });
            }
        }),
        ("the tags of the host's frames", |it| it.groups[0].vlan.reverse()),
        ("the priority of tags", |it| {
            it.groups[0].priority = it.groups[0].priority.map(|priority| priority ^ 1);
        }),
        ("the order of the groups", |it| it.groups.reverse()),
        ("relay frames are steered", |it| {
            it.groups[0].steer = match it.groups[0].steer {
                Steer::Off => Steer::Both,
                _ => Steer::Off,
            };
        }),
    ];
    in_namespace(move || {
        for (name, change) in plants {
            find(name, &|scenario| {
                let right = scenario.snapshot()?;
                let image = image(&right).map_err(|error| LabError(error.to_string()))?;
                let mut changed = scenario.clone();
                change(&mut changed);
                Ok((changed.snapshot()?, image))
            });
        }
    });
}
