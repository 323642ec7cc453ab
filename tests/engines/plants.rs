//! Checks that a difference of one bit is found: flips bits in the policy of one of the engines.

use crate::rig::in_namespace;
use exitmark_datapath::contract::{self, exitmark_ranges, exitmark_table};
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

// Offsets in an image, in bytes.
const MARK: usize = offset_of!(contract::exitmark_policy, mark);
const EXIT_PROTOCOLS: usize = offset_of!(contract::exitmark_policy, exit_protocols);
const BOTH_KINDS: usize = offset_of!(contract::exitmark_policy, both_kinds);
const HOST_MARK: usize = offset_of!(contract::exitmark_policy, host_mark);
const ROUTED: usize = offset_of!(contract::exitmark_policy, routed);
const ACTIONS: usize = offset_of!(contract::exitmark_policy, actions);
const ADDRESSES: usize = offset_of!(contract::exitmark_policy, addresses);
const RELAY_ADDRESSES: usize = offset_of!(contract::exitmark_policy, relay_addresses);
const RESOLVERS: usize = offset_of!(contract::exitmark_policy, resolvers);
const EXEMPT: usize = offset_of!(contract::exitmark_policy, exempt);
const RELAYS: usize = offset_of!(contract::exitmark_policy, relays);
const LISTENERS: usize = offset_of!(contract::exitmark_policy, listeners);
const LISTENS: usize = offset_of!(contract::exitmark_policy, listens);
const LISTENS_EVERYWHERE: usize = offset_of!(contract::exitmark_policy, listens_everywhere);
const RANGES_BYTES: usize = size_of::<exitmark_ranges>();
const TABLE_BYTES: usize = size_of::<exitmark_table>();
// In the description of ranges, ...
const AT: usize = offset_of!(exitmark_ranges, at);
const COUNT: usize = offset_of!(exitmark_ranges, count);
// ... and in that of a table.
const MULTIPLIERS: usize = offset_of!(exitmark_table, multipliers);
const SHIFT: usize = offset_of!(exitmark_table, shift);
const MASK: usize = offset_of!(exitmark_table, mask);
const FILTER: usize = offset_of!(exitmark_table, filter);
const SLOTS: usize = offset_of!(exitmark_table, slots);

/// The bit that is flipped in the kernel's image.
#[derive(Clone, Copy, Debug)]
enum Flip {
    /// The bits of this mask in the byte at this offset.
    Bit(usize, u8),
    /// The lowest bit of the last address in the first range of the set at this offset; a range
    /// has this many words.
    LastAddress(usize, usize),
    /// The lowest bit of a port in the table at this offset; a slot has this many words.
    SlotPort(usize, usize),
    /// A bit in the filter of the table at this offset.
    Filter(usize),
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
            Self::SlotPort(table, words) => {
                let (mask, slots) = (number(image, table + MASK), number(image, table + SLOTS));
                let mut ports = (0..=mask).map(|slot| slots + slot * words + words - 1);
                if let Some(taken) = ports.find(|&at| word(image, at) != 0) {
                    flip_word(image, taken, 1);
                }
            }
            Self::Filter(table) => {
                let (filter, slots) = (number(image, table + FILTER), number(image, table + SLOTS));
                if let Some(at) = (filter..slots).find(|&at| word(image, at) != 0) {
                    let lowest = word(image, at) & word(image, at).wrapping_neg();
                    flip_word(image, at, lowest);
                }
            }
            Self::Listens(bits) => {
                if let Some(listener) = scenario.listeners.first() {
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
        ("the next hop routes another version", Flip::Bit(ROUTED, 2)),
        ("relays are not steered", action(Rule::ToListedRelay, 1)),
        ("exit frames are not marked", action(Rule::ExitProtocol, 2)),
        ("frames with the host's mark are not marked", action(Rule::HostMarked, 2)),
        ("frames without it are not steered", action(Rule::NotHostMarked, 1)),
        ("replies keep the mark", action(Rule::FromListener, 4)),
        ("malformed frames are steered", action(Rule::BadLength, 1)),
        ("slow-path frames keep the mark", action(Rule::NoUserSpace, 4)),
        ("an IPv4 address range", Flip::LastAddress(ADDRESSES, 1)),
        ("an IPv6 address range", Flip::LastAddress(ADDRESSES + v6, 4)),
        ("a relay address range", Flip::LastAddress(RELAY_ADDRESSES, 1)),
        ("a resolver range", Flip::LastAddress(RESOLVERS + v6, 4)),
        ("an exempt range", Flip::LastAddress(EXEMPT, 1)),
        ("the number of exempt ranges", Flip::Bit(EXEMPT + COUNT, 1)),
        ("a relay's port, IPv4", Flip::SlotPort(RELAYS, 1)),
        ("a relay's port, IPv6", Flip::SlotPort(RELAYS + TABLE_BYTES, 3)),
        ("a bit of the relays' filter", Flip::Filter(RELAYS)),
        ("a multiplier", Flip::Bit(RELAYS + MULTIPLIERS + 3, 8)),
        ("a multiplier of IPv6", Flip::Bit(RELAYS + TABLE_BYTES + MULTIPLIERS + 8, 4)),
        ("the shift", Flip::Bit(RELAYS + SHIFT, 1)),
        ("the mask", Flip::Bit(RELAYS + MASK, 1)),
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
    let plants: [(&str, Change); 12] = [
        ("the mark", |it| {
            let other = u64::from(it.mark.bits() ^ 1);
            it.mark = Dscp::new(other.max(1)).unwrap();
        }),
        ("the host's mark", |it| {
            let other = |mark: Dscp| u64::from(mark.bits() ^ 1).max(2);
            it.host_mark = it.host_mark.map(|mark| Dscp::new(other(mark)).unwrap());
        }),
        ("whether the host marks", |it| {
            it.host_mark = match it.host_mark {
                Some(_) => None,
                None => Some(it.mark),
            };
        }),
        ("an address prefix", |it| one_bit_longer(&mut it.addresses)),
        ("a relay address prefix", |it| one_bit_longer(&mut it.relay_addresses)),
        ("a resolver's prefix", |it| one_bit_longer(&mut it.resolvers)),
        ("an exempt prefix", |it| one_bit_longer(&mut it.exempt)),
        ("a relay's port", |it| it.relays.iter_mut().take(1).for_each(another_port)),
        ("a listener's port", |it| match it.listeners.first_mut() {
            Some(Listener::Port(port)) => *port ^= 1,
            Some(Listener::Endpoint(endpoint)) => another_port(endpoint),
            None => {}
        }),
        ("the uplink shows the mark", |it| {
            it.at_uplink = match it.at_uplink {
                AtUplink::Keep => AtUplink::Strip,
                AtUplink::Strip => AtUplink::Keep,
            };
        }),
        ("the version that the next hop routes", |it| {
            if let Steer::Only(version) = it.steer {
                it.steer = Steer::Only(match version {
                    Version::V4 => Version::V6,
                    Version::V6 => Version::V4,
                });
            }
        }),
        ("relay frames are steered", |it| {
            it.steer = match it.steer {
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
