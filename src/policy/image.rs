//! A snapshot as the kernel's program reads it: one flat piece of 64-bit words.
//!
//! The layout is that of `struct exitmark_image` in bpf/exitmark.h. The tables are those of the
//! snapshot itself, bit for bit: there is one hash, one filter, one way to probe.

use super::endpoint::{BITS_PER_SLOT, Key, MAX_PROBES, Table, halves};
use super::rules::Marking;
use super::{ClassifyBy, Egress, EndpointSet, ExitProtocols, PrefixSet, Rule, Snapshot};
use crate::packet::{Dscp, Ecn, Version};

/// The size of every image.
pub const IMAGE_BYTES: usize = 1 << 22;
/// The size of its fixed part, `struct exitmark_policy`.
pub const POLICY_BYTES: usize = WORDS_BEFORE_TABLES * 8;

// As in bpf/exitmark.h; tests/engines finds out whether this is so.
const ACTION_STEER: u8 = 1;
const ACTION_SET: u8 = 2;
const ACTION_CLEAR: u8 = 4;
const ACTIONS: usize = 24;
const RANGE_SETS: usize = 4;
const TABLES: usize = 2;
const WORDS_BEFORE_TABLES: usize = 1 + 1 + ACTIONS / 8 + RANGE_SETS * 2 + TABLES * 2 * 5 + 2 * 1024;

const _: () = assert!(BITS_PER_SLOT == 16 && MAX_PROBES == 128 && Rule::ALL.len() <= ACTIONS);

/// The snapshot has more prefixes or endpoints than an image has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the relay set and the configured prefixes and listeners take {words} words in the kernel, \
     which has {} for them; put single addresses into prefixes", IMAGE_BYTES / 8
)]
pub struct ImageTooLarge {
    words: usize,
}

/// The snapshot's image, [`IMAGE_BYTES`] long, in the machine's byte order.
///
/// # Errors
/// It does not fit. No snapshot of checked settings is that large.
pub fn image(snapshot: &Snapshot) -> Result<Vec<u8>, ImageTooLarge> {
    let rules = &snapshot.rules;
    let mut fixed = Vec::with_capacity(WORDS_BEFORE_TABLES);
    let mut tables = Vec::new();
    fixed.push(snapshot.generation);
    // 0 is no mark at all: then the relay set is asked.
    let (host_mark, by_relay_set) = match rules.classify_by {
        ClassifyBy::RelaySet => (Dscp::DEFAULT, true),
        ClassifyBy::HostMark(mark) => (mark, false),
    };
    let both_kinds =
        by_relay_set && !rules.addresses.is_empty() && !rules.relay_addresses.is_empty();
    let steer = rules.actions.intent().steer;
    let routed = |version, family: u8| u8::from(steer.routes(version)) << family;
    let no_ecn = Ecn::of(0);
    fixed.push(u64::from_ne_bytes([
        rules.actions.mark().with_ecn(no_ecn),
        match rules.exit_protocols {
            ExitProtocols::Tcp => 0,
            ExitProtocols::TcpUdp => 1,
            ExitProtocols::All => 2,
        },
        u8::from(both_kinds),
        host_mark.with_ecn(no_ecn),
        routed(Version::V4, 0) | routed(Version::V6, 1),
        0,
        0,
        0,
    ]));
    let mut actions = [0; ACTIONS];
    for rule in Rule::ALL {
        actions[rule as usize] = action(snapshot, rule);
    }
    fixed.extend(actions.chunks_exact(8).map(word_of));
    for prefixes in [
        &rules.addresses,
        &rules.relay_addresses,
        &rules.resolvers,
        &rules.exempt,
    ] {
        push_ranges(&mut fixed, &mut tables, prefixes);
    }
    for endpoints in [&snapshot.relays, &snapshot.listeners.endpoints] {
        push_endpoints(&mut fixed, &mut tables, endpoints);
    }
    fixed.extend(&snapshot.listeners.any[..]);
    fixed.extend(&snapshot.listeners.everywhere[..]);
    debug_assert_eq!(fixed.len(), WORDS_BEFORE_TABLES);

    let words = fixed.len() + tables.len();
    if words > IMAGE_BYTES / 8 {
        return Err(ImageTooLarge { words });
    }
    let mut image = Vec::with_capacity(IMAGE_BYTES);
    for word in fixed.into_iter().chain(tables) {
        image.extend_from_slice(&word.to_ne_bytes());
    }
    image.resize(IMAGE_BYTES, 0);
    Ok(image)
}

fn action(snapshot: &Snapshot, rule: Rule) -> u8 {
    let action = snapshot.rules.actions.of(rule);
    let steer = match action.egress {
        Egress::Incoming => ACTION_STEER,
        Egress::Uplink | Egress::Unrouted => 0,
    };
    let marking = match action.marking {
        Marking::Leave => 0,
        Marking::Set => ACTION_SET,
        Marking::Clear => ACTION_CLEAR,
    };
    steer | marking
}

fn word_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes)
}

/// Two 32-bit numbers that follow each other.
#[allow(
    clippy::cast_possible_truncation,
    reason = "an image has 2^19 words, and nothing in it is more than that"
)]
fn pair(first: usize, second: usize) -> u64 {
    let [a, b, c, d] = (first as u32).to_ne_bytes();
    let [e, f, g, h] = (second as u32).to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn push_ranges(fixed: &mut Vec<u64>, tables: &mut Vec<u64>, prefixes: &PrefixSet) {
    fixed.push(pair(
        WORDS_BEFORE_TABLES + tables.len(),
        prefixes.v4().len(),
    ));
    let both = |&(first, last): &(u32, u32)| u64::from(first) << 32 | u64::from(last);
    tables.extend(prefixes.v4().iter().map(both));
    fixed.push(pair(
        WORDS_BEFORE_TABLES + tables.len(),
        prefixes.v6().len(),
    ));
    for &(first, last) in prefixes.v6().iter() {
        tables.extend(halves(first).into_iter().chain(halves(last)));
    }
}

fn push_endpoints(fixed: &mut Vec<u64>, tables: &mut Vec<u64>, endpoints: &EndpointSet) {
    push_table(fixed, tables, endpoints.v4());
    push_table(fixed, tables, endpoints.v6());
}

fn push_table<K: Key>(fixed: &mut Vec<u64>, tables: &mut Vec<u64>, table: &Table<K>) {
    fixed.extend(table.multipliers);
    fixed.push(pair(table.shift as usize, table.slots.len() - 1));
    let filter = WORDS_BEFORE_TABLES + tables.len();
    tables.extend(&table.filter[..]);
    let slots = WORDS_BEFORE_TABLES + tables.len();
    tables.extend(table.slots.iter().flat_map(|key| key.words()));
    fixed.push(pair(filter, slots));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        Actions, Endpoint, Intent, Listener, MAX_ENDPOINTS, MAX_LISTENERS, MAX_PREFIXES,
        MAX_RESOLVERS, Rules,
    };
    use crate::policy::{AtUplink, Mode, Steer};
    use ipnet::IpNet;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::sync::Arc;

    fn v4(number: usize) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + 2 * u32::try_from(number).unwrap()).into()
    }

    fn v6(number: usize) -> IpAddr {
        Ipv6Addr::from((0x2001_0db8_u128 << 96) + 2 * number as u128).into()
    }

    fn prefixes(count: usize) -> PrefixSet {
        let nets = (0..count).flat_map(|number| [v4(number), v6(number)].map(IpNet::from));
        PrefixSet::new(nets)
    }

    /// The most that settings can ask for: every kind of endpoint set, at its worst.
    fn largest(of_v6: usize) -> Snapshot {
        let endpoint = |number| Endpoint::new(v6(number), 443);
        let rules = Rules {
            classify_by: ClassifyBy::RelaySet,
            addresses: prefixes(MAX_PREFIXES),
            relay_addresses: PrefixSet::default(),
            listeners: (0..MAX_LISTENERS)
                .map(|number| Listener::Endpoint(endpoint(number)))
                .collect(),
            resolvers: prefixes(MAX_RESOLVERS),
            exempt: prefixes(MAX_PREFIXES),
            exit_protocols: ExitProtocols::Tcp,
            actions: Actions::new(Intent {
                mode: Mode::Enforce,
                mark: Dscp::AF11,
                at_uplink: AtUplink::Keep,
                steer: Steer::Both,
            }),
        };
        let relays = (0..MAX_ENDPOINTS).map(|number| {
            let address = if number < of_v6 {
                v6(number)
            } else {
                v4(number)
            };
            Endpoint::new(address, 9001)
        });
        Snapshot::new(7, Arc::new(rules), EndpointSet::new(relays).unwrap())
    }

    #[test]
    fn the_largest_snapshots_fit() {
        let half = MAX_ENDPOINTS / 2;
        for of_v6 in [
            0,
            1,
            half - 1,
            half,
            half + 1,
            MAX_ENDPOINTS - 1,
            MAX_ENDPOINTS,
        ] {
            let image = image(&largest(of_v6)).unwrap();
            assert_eq!(image.len(), IMAGE_BYTES, "{of_v6} of IPv6");
            assert_eq!(word_of(&image), 7);
        }
    }
}
