//! Serialises a snapshot for the XDP program, as one flat array of 64-bit words.
//!
//! The layout is that of `struct exitmark_image` in bpf/exitmark.h. The tables are copied bit for
//! bit from the snapshot: both sides use the same hash, filter and probing.

use super::endpoint::{BITS_PER_SLOT, Key, MAX_PROBES, Table, halves};
use super::rules::Marking;
use super::{ClassifyBy, Egress, EndpointSet, ExitProtocols, PrefixSet, Rule, Snapshot};
use crate::packet::{Dscp, Ecn, Version};

/// The size of every image in bytes.
pub const IMAGE_BYTES: usize = 1 << 22;
/// The size of its fixed part in bytes, `struct exitmark_policy`.
pub const POLICY_BYTES: usize = WORDS_BEFORE_TABLES * 8;

// As in bpf/exitmark.h; tests/engines checks it.
const ACTION_STEER: u8 = 1;
const ACTION_SET: u8 = 2;
const ACTION_CLEAR: u8 = 4;
const ACTIONS: usize = 24;
// Of both families.
const RANGE_SETS: usize = 8;
const TABLES: usize = 4;
const WORDS_BEFORE_TABLES: usize = 1 + 1 + ACTIONS / 8 + RANGE_SETS + TABLES * 5 + 2 * 1024;

const _: () = assert!(BITS_PER_SLOT == 16 && MAX_PROBES == 128 && Rule::ALL.len() <= ACTIONS);

/// The snapshot has more prefixes or endpoints than fit into an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the relay set and the configured prefixes and listeners take {words} words in the kernel, \
     which has {} for them; put single addresses into prefixes", IMAGE_BYTES / 8
)]
pub struct ImageTooLarge {
    words: usize,
}

/// The snapshot's image, [`IMAGE_BYTES`] long, in native byte order.
///
/// # Errors
/// The snapshot does not fit. Checked settings never make a snapshot that large.
pub fn image(snapshot: &Snapshot) -> Result<Vec<u8>, ImageTooLarge> {
    let rules = &snapshot.rules;
    let mut fixed = Vec::with_capacity(WORDS_BEFORE_TABLES);
    let mut tables = Vec::new();
    fixed.push(snapshot.generation);
    // A host mark of 0 means that the relay set is used.
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

/// Two consecutive 32-bit numbers in one word.
#[allow(
    clippy::cast_possible_truncation,
    reason = "an image has 2^19 words, and no number in it is larger"
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
    use crate::{
        Actions, Endpoint, Intent, Listener, MAX_ENDPOINTS, MAX_LISTENERS, MAX_PREFIXES,
        MAX_RESOLVERS, Rules,
    };
    use crate::{AtUplink, Mode, Steer};
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

    /// The largest snapshot that settings can make: every set at its maximum.
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

    /// Reads an image independently of the writer, by its layout in bpf/exitmark.h.
    struct Read(Vec<u8>);

    impl Read {
        fn bytes(&self, word: usize) -> [u8; 8] {
            self.0[8 * word..8 * word + 8].try_into().unwrap()
        }

        fn word(&self, word: usize) -> u64 {
            u64::from_ne_bytes(self.bytes(word))
        }

        /// The two 32-bit numbers in one word.
        fn numbers(&self, word: usize) -> [usize; 2] {
            let [a, b, c, d, e, f, g, h] = self.bytes(word);
            [[a, b, c, d], [e, f, g, h]].map(|half| u32::from_ne_bytes(half) as usize)
        }

        /// The ranges that a word describes, of `WORDS` words each.
        fn ranges<const WORDS: usize>(&self, word: usize) -> Vec<[u64; WORDS]> {
            let [at, count] = self.numbers(word);
            let range = |index| std::array::from_fn(|part| self.word(at + index * WORDS + part));
            (0..count).map(range).collect()
        }

        /// Whether the table whose description begins at a word has this key.
        fn holds(&self, word: usize, key: &[u64]) -> bool {
            let hash = key.iter().zip(word..).fold(0_u64, |sum, (part, at)| {
                sum.wrapping_add(part.wrapping_mul(self.word(at)))
            });
            let [shift, mask] = self.numbers(word + 3);
            let [filter, slots] = self.numbers(word + 4);
            let bit = usize::try_from(hash >> shift).unwrap();
            let is_filled = self.word(filter + bit / 64) >> (bit % 64) & 1 == 1;
            let slot = |number: usize| -> Vec<u64> {
                let at = slots + (number & mask) * key.len();
                (at..at + key.len()).map(|at| self.word(at)).collect()
            };
            is_filled
                && (bit / 16..)
                    .map(slot)
                    .take_while(|slot| slot.iter().any(|part| *part != 0))
                    .any(|slot| slot == key)
        }

        /// The ports of a bit map.
        fn ports(&self, word: usize) -> Vec<usize> {
            let is_set = |port: &usize| self.word(word + port / 64) >> (port % 64) & 1 == 1;
            (0..1 << 16).filter(is_set).collect()
        }
    }

    // In words.
    const ACTIONS_AT: usize = 2;
    const RANGES_AT: usize = 5;
    const TABLES_AT: usize = RANGES_AT + 8;
    const PORTS_AT: usize = TABLES_AT + 4 * 5;

    fn small(classify_by: ClassifyBy, exit_protocols: ExitProtocols, steer: Steer) -> Read {
        let net = |texts: &[&str]| PrefixSet::new(texts.iter().map(|text| text.parse().unwrap()));
        let rules = Rules {
            classify_by,
            addresses: net(&["192.0.2.0/30", "192.0.2.9/32", "2001:db8::/127"]),
            relay_addresses: net(&["2001:db8:1::5/128"]),
            listeners: [
                Listener::Port(22),
                Listener::Endpoint("192.0.2.1:9001".parse().unwrap()),
                Listener::Endpoint("[2001:db8::1]:65535".parse().unwrap()),
            ]
            .into(),
            resolvers: net(&["198.51.100.53/32"]),
            exempt: net(&["203.0.113.0/24"]),
            exit_protocols,
            actions: Actions::new(Intent {
                mode: Mode::Enforce,
                mark: Dscp::AF11,
                at_uplink: AtUplink::Keep,
                steer,
            }),
        };
        let relays = ["198.51.100.7:443", "[2001:db8:2::7]:9001"];
        let relays = relays.map(|text| text.parse::<Endpoint>().unwrap());
        let relays = EndpointSet::new(relays).unwrap();
        Read(image(&Snapshot::new(3, Arc::new(rules), relays)).unwrap())
    }

    #[test]
    fn the_layout_is_that_of_the_header_file() {
        let image = small(ClassifyBy::RelaySet, ExitProtocols::Tcp, Steer::Both);
        assert_eq!(POLICY_BYTES, 8 * (PORTS_AT + 2048));
        assert_eq!(image.word(0), 3);

        let v4 = |first: u64, last: u64| [first << 32 | last];
        let host = v4(0xc000_0200, 0xc000_0203);
        assert_eq!(
            image.ranges(RANGES_AT),
            [host, v4(0xc000_0209, 0xc000_0209)]
        );
        let high = 0x2001_0db8_0000_0000_u64;
        assert_eq!(image.ranges(RANGES_AT + 1), [[high, 0, high, 1]]);
        assert!(image.ranges::<1>(RANGES_AT + 2).is_empty());
        assert_eq!(
            image.ranges(RANGES_AT + 3),
            [[high + 0x1_0000, 5, high + 0x1_0000, 5]]
        );
        assert_eq!(image.ranges(RANGES_AT + 4), [v4(0xc633_6435, 0xc633_6435)]);
        assert!(image.ranges::<4>(RANGES_AT + 5).is_empty());
        assert_eq!(image.ranges(RANGES_AT + 6), [v4(0xcb00_7100, 0xcb00_71ff)]);
        assert!(image.ranges::<4>(RANGES_AT + 7).is_empty());

        // Relays of IPv4 and IPv6, then listeners: each key is in only one table.
        let keys: [&[u64]; 4] = [
            &[0xc633_6407 << 16 | 443],
            &[0x2001_0db8_0002_0000, 7, 9001],
            &[0xc000_0201 << 16 | 9001],
            &[high, 1, 65535],
        ];
        for (table, _) in keys.iter().enumerate() {
            for (number, key) in keys.iter().enumerate() {
                if key.len() == keys[table].len() {
                    let holds = image.holds(TABLES_AT + 5 * table, key);
                    assert_eq!(holds, number == table, "{key:?} in table {table}");
                }
            }
        }
        assert_eq!(image.ports(PORTS_AT), [22, 9001, 65535]);
        assert_eq!(image.ports(PORTS_AT + 1024), [22]);
    }

    #[test]
    fn the_choices_are_one_word() {
        use crate::packet::Version::{V4, V6};
        let relay_set = ClassifyBy::RelaySet;
        let host_mark = ClassifyBy::HostMark(Dscp::of(0x20));
        for (classify_by, protocols, steer, expected) in [
            (
                relay_set,
                ExitProtocols::Tcp,
                Steer::Both,
                [0x28, 0, 1, 0, 3],
            ),
            (
                relay_set,
                ExitProtocols::TcpUdp,
                Steer::Only(V4),
                [0x28, 1, 1, 0, 1],
            ),
            (
                host_mark,
                ExitProtocols::All,
                Steer::Only(V6),
                [0x28, 2, 0, 0x20, 2],
            ),
            (
                host_mark,
                ExitProtocols::Tcp,
                Steer::Off,
                [0x28, 0, 0, 0x20, 0],
            ),
        ] {
            let image = small(classify_by, protocols, steer);
            let [
                mark,
                exit_protocols,
                both_kinds,
                host_mark,
                routed,
                unused @ ..,
            ] = image.bytes(1);
            let choices = [mark, exit_protocols, both_kinds, host_mark, routed];
            assert_eq!(
                choices, expected,
                "{classify_by:?}, {protocols:?}, {steer:?}"
            );
            assert_eq!(unused, [0; 3]);
        }
    }

    #[test]
    fn both_kinds_of_address_are_needed_for_the_cross_check() {
        let mut snapshot = largest(0);
        assert_eq!(Read(image(&snapshot).unwrap()).bytes(1)[2], 0);
        let rules = Arc::get_mut(&mut snapshot.rules).unwrap();
        std::mem::swap(&mut rules.addresses, &mut rules.relay_addresses);
        assert_eq!(Read(image(&snapshot).unwrap()).bytes(1)[2], 0);
    }

    #[test]
    fn each_rule_has_its_action() {
        use crate::Class;
        for steer in [Steer::Off, Steer::Both] {
            let image = small(ClassifyBy::RelaySet, ExitProtocols::Tcp, steer);
            let actions: Vec<_> = (ACTIONS_AT..RANGES_AT)
                .flat_map(|word| image.bytes(word))
                .collect();
            for rule in Rule::ALL {
                let expected = match rule.class() {
                    Class::NonIp | Class::Malformed => 0,
                    Class::Exit => 2,
                    Class::Relay if steer == Steer::Both => 4 | 1,
                    _ => 4,
                };
                assert_eq!(actions[rule as usize], expected, "{rule:?}, {steer:?}");
            }
            assert!(actions[Rule::ALL.len()..].iter().all(|unused| *unused == 0));
        }
    }

    #[test]
    fn a_snapshot_may_fill_the_image_exactly() {
        let mut snapshot = largest(MAX_ENDPOINTS);
        let mut refused = |count| {
            let rules = Arc::get_mut(&mut snapshot.rules).unwrap();
            // Three words for these, and four for each of the others.
            let few = (0..3).map(v4);
            let nets = few.chain((0..count).map(v6)).map(IpNet::from);
            rules.exempt = PrefixSet::new(nets);
            image(&snapshot).err().map(|error| error.words)
        };
        const WORDS: usize = IMAGE_BYTES / 8;
        let too_many = WORDS / 4;
        let most = too_many - (refused(too_many).unwrap() - WORDS) / 4;
        assert_eq!(refused(most), None);
        assert_eq!(refused(most + 1), Some(WORDS + 4));
    }
}
