//! Serialises a snapshot for the XDP program, as one flat array of 64-bit words.
//!
//! The layout is that of `struct exitmark_image` in bpf/exitmark.h. The tables are copied bit for
//! bit from the snapshot: both sides use the same hash, filter and probing.

use super::endpoint::{EndpointTable, TableKey, halves};
use super::rules::Marking;
use super::{ClassifyBy, Egress, PrefixSet, Rule, Snapshot};
use crate::packet::{Dscp, Ecn, Version};
use std::mem::offset_of;

pub use super::endpoint::{BITS_PER_SLOT, MAX_PROBES};

/// The size of every image in bytes.
pub const IMAGE_BYTES: usize = 1 << 22;
/// The size of its fixed part in bytes.
pub const POLICY_BYTES: usize = size_of::<Fixed>();
/// The frame leaves by `incoming`.
pub const ACTION_STEER: u8 = 1;
/// The frame carries the mark.
pub const ACTION_SET: u8 = 2;
/// The frame carries neither the mark nor the host's mark.
pub const ACTION_CLEAR: u8 = 4;
const ACTIONS: usize = 24;

const _: () = assert!(Rule::ALL.len() <= ACTIONS);

/// The layout of an image's fixed part, `struct exitmark_policy`. The data path asserts that this
/// and the two others are the layouts of the header file.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct Fixed {
    pub generation: u64,
    pub mark: u8,
    pub exit_protocols: u8,
    pub both_kinds: u8,
    pub host_mark: u8,
    pub routed: u8,
    pub unused: [u8; 3],
    pub actions: [u8; ACTIONS],
    pub addresses: [Ranges; 2],
    pub relay_addresses: [Ranges; 2],
    pub resolvers: [Ranges; 2],
    pub exempt: [Ranges; 2],
    pub relays: [HashTable; 2],
    pub listeners: [HashTable; 2],
    pub sockets: Sockets,
    pub listens: [u64; 1024],
    pub listens_everywhere: [u64; 1024],
}

/// The layout of `struct exitmark_ranges`.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct Ranges {
    pub at: u32,
    pub count: u32,
}

/// The layout of `struct exitmark_table`.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct HashTable {
    pub multipliers: [u64; 3],
    pub shift: u32,
    pub mask: u32,
    pub filter: u32,
    pub slots: u32,
}

/// The layout of `struct exitmark_sockets`.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct Sockets {
    pub source_v6: [u64; 2],
    pub source_v4: u32,
    pub fwmark: u32,
    pub interface: u32,
    pub overwrites: u32,
}

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
    // A host mark of 0 means that the relay set is used.
    let (host_mark, by_relay_set) = match rules.classify_by {
        ClassifyBy::RelaySet => (Dscp::DEFAULT, true),
        ClassifyBy::HostMark(mark) => (mark, false),
    };
    let both_kinds =
        by_relay_set && !rules.addresses.is_empty() && !rules.relay_addresses.is_empty();
    let steer = rules.actions.intent().steer;
    let routed = |version| u8::from(steer.routes(version)) << version as u8;
    let no_ecn = Ecn::of(0);

    let mut bytes = Vec::with_capacity(IMAGE_BYTES);
    bytes.resize(POLICY_BYTES, 0_u8);
    bytes[offset_of!(Fixed, mark)] = rules.actions.mark().with_ecn(no_ecn);
    bytes[offset_of!(Fixed, exit_protocols)] = rules.exit_protocols as u8;
    bytes[offset_of!(Fixed, both_kinds)] = u8::from(both_kinds);
    bytes[offset_of!(Fixed, host_mark)] = host_mark.with_ecn(no_ecn);
    bytes[offset_of!(Fixed, routed)] = routed(Version::V4) | routed(Version::V6);
    for rule in Rule::ALL {
        bytes[offset_of!(Fixed, actions) + rule as usize] = action(snapshot, rule);
    }
    let mut draft = Draft(bytes);
    draft.put(offset_of!(Fixed, generation), &[snapshot.generation]);
    for (at, prefixes) in [
        (offset_of!(Fixed, addresses), &rules.addresses),
        (offset_of!(Fixed, relay_addresses), &rules.relay_addresses),
        (offset_of!(Fixed, resolvers), &rules.resolvers),
        (offset_of!(Fixed, exempt), &rules.exempt),
    ] {
        draft.push_prefixes(at, prefixes);
    }
    let at = offset_of!(Fixed, sockets);
    let sockets = &rules.sockets;
    let source_v6 = halves(sockets.source_v6.map_or(0, u128::from));
    draft.put(at + offset_of!(Sockets, source_v6), &source_v6);
    for (field, number) in [
        (
            offset_of!(Sockets, source_v4),
            sockets.source_v4.map_or(0, u32::from),
        ),
        (offset_of!(Sockets, fwmark), sockets.fwmark),
        (offset_of!(Sockets, interface), sockets.interface),
        (
            offset_of!(Sockets, overwrites),
            u32::from(sockets.overwrites),
        ),
    ] {
        draft.0[at + field..][..4].copy_from_slice(&number.to_ne_bytes());
    }
    let listeners = &snapshot.listeners;
    for (at, endpoints) in [
        (offset_of!(Fixed, relays), &snapshot.relays),
        (offset_of!(Fixed, listeners), &listeners.endpoints),
    ] {
        draft.push_table(at, endpoints.v4());
        draft.push_table(at + size_of::<HashTable>(), endpoints.v6());
    }
    for (at, ports) in [
        (offset_of!(Fixed, listens), &listeners.any),
        (offset_of!(Fixed, listens_everywhere), &listeners.everywhere),
    ] {
        draft.put(at, &ports[..]);
    }

    let words = draft.words();
    if words > IMAGE_BYTES / 8 {
        return Err(ImageTooLarge { words });
    }
    let Draft(mut image) = draft;
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

/// The bytes of an image that is being written: the fixed part, and the tables so far.
struct Draft(Vec<u8>);

impl Draft {
    fn put(&mut self, at: usize, words: &[u64]) {
        for (place, word) in self.0[at..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "an image has 2^19 words, and no number in it is larger"
    )]
    fn put_number(&mut self, at: usize, number: usize) {
        self.0[at..at + 4].copy_from_slice(&(number as u32).to_ne_bytes());
    }

    fn push(&mut self, words: impl IntoIterator<Item = u64>) {
        for word in words {
            self.0.extend_from_slice(&word.to_ne_bytes());
        }
    }

    fn words(&self) -> usize {
        self.0.len() / 8
    }

    fn push_prefixes(&mut self, at: usize, prefixes: &PrefixSet) {
        let both = |&(first, last): &(u32, u32)| u64::from(first) << 32 | u64::from(last);
        let v4 = prefixes.v4().iter().map(both);
        self.push_ranges(at, prefixes.v4().len(), v4);
        let four = |&(first, last): &(u128, u128)| [halves(first), halves(last)];
        let v6 = prefixes.v6().iter().flat_map(four).flatten();
        self.push_ranges(at + size_of::<Ranges>(), prefixes.v6().len(), v6);
    }

    fn push_ranges(&mut self, at: usize, count: usize, words: impl Iterator<Item = u64>) {
        self.put_number(at + offset_of!(Ranges, at), self.words());
        self.put_number(at + offset_of!(Ranges, count), count);
        self.push(words);
    }

    fn push_table<K: TableKey>(&mut self, at: usize, table: &EndpointTable<K>) {
        self.put(at + offset_of!(HashTable, multipliers), &table.multipliers);
        self.put_number(at + offset_of!(HashTable, shift), table.shift as usize);
        self.put_number(at + offset_of!(HashTable, mask), table.slots.len() - 1);
        self.put_number(at + offset_of!(HashTable, filter), self.words());
        self.push(table.filter.iter().copied());
        self.put_number(at + offset_of!(HashTable, slots), self.words());
        self.push(table.slots.iter().flat_map(|key| key.words()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Actions, AtUplink, Endpoint, EndpointSet, ExitProtocols, Intent, Listener, MAX_ENDPOINTS,
        MAX_LISTENERS, MAX_PREFIXES, MAX_RESOLVERS, Mode, Rules, SocketRules, Steer,
    };
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

    fn actions(steer: Steer) -> Actions {
        Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer,
        })
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
            actions: actions(Steer::Both),
            sockets: SocketRules::default(),
        };
        let relays = (0..MAX_ENDPOINTS).map(|number| {
            let address = if number < of_v6 { v6 } else { v4 };
            Endpoint::new(address(number), 9001)
        });
        Snapshot::new(7, Arc::new(rules), EndpointSet::new(relays).unwrap())
    }

    #[test]
    fn the_largest_snapshots_fit() {
        let (half, all) = (MAX_ENDPOINTS / 2, MAX_ENDPOINTS);
        for of_v6 in [0, 1, half - 1, half, half + 1, all - 1, all] {
            let image = image(&largest(of_v6)).unwrap();
            assert_eq!(image.len(), IMAGE_BYTES, "{of_v6} of IPv6");
            assert_eq!(Read(image).word(offset_of!(Fixed, generation) / 8), 7);
        }
    }

    /// Reads an image independently of the writer. Descriptions are at offsets in bytes.
    struct Read(Vec<u8>);

    impl Read {
        fn word(&self, word: usize) -> u64 {
            u64::from_ne_bytes(self.0[8 * word..8 * word + 8].try_into().unwrap())
        }

        fn number(&self, at: usize) -> usize {
            u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap()) as usize
        }

        /// The described ranges, of `WORDS` words each.
        fn ranges<const WORDS: usize>(&self, at: usize) -> Vec<[u64; WORDS]> {
            let first = self.number(at + offset_of!(Ranges, at));
            let count = self.number(at + offset_of!(Ranges, count));
            let range = |index| std::array::from_fn(|part| self.word(first + index * WORDS + part));
            (0..count).map(range).collect()
        }

        /// Whether the described table has this key.
        fn holds(&self, at: usize, key: &[u64]) -> bool {
            let multipliers = (at + offset_of!(HashTable, multipliers)) / 8;
            let products = key.iter().zip(multipliers..);
            let hash = products.fold(0_u64, |sum, (part, at)| {
                sum.wrapping_add(part.wrapping_mul(self.word(at)))
            });
            let shift = self.number(at + offset_of!(HashTable, shift));
            let mask = self.number(at + offset_of!(HashTable, mask));
            let filter = self.number(at + offset_of!(HashTable, filter));
            let slots = self.number(at + offset_of!(HashTable, slots));
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

        fn ports(&self, at: usize) -> Vec<usize> {
            let is_set = |port: &usize| self.word(at / 8 + port / 64) >> (port % 64) & 1 == 1;
            (0..1 << 16).filter(is_set).collect()
        }
    }

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
            actions: actions(steer),
            sockets: SocketRules {
                source_v4: Some(Ipv4Addr::new(203, 0, 113, 10)),
                source_v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 7)),
                fwmark: 0x1234_5678,
                interface: 9,
                overwrites: true,
            },
        };
        let relays = ["198.51.100.7:443", "[2001:db8:2::7]:9001"];
        let relays = relays.map(|text| text.parse::<Endpoint>().unwrap());
        let relays = EndpointSet::new(relays).unwrap();
        Read(image(&Snapshot::new(3, Arc::new(rules), relays)).unwrap())
    }

    #[test]
    fn the_layout_is_that_of_the_header_file() {
        let image = small(ClassifyBy::RelaySet, ExitProtocols::Tcp, Steer::Both);
        assert_eq!(image.word(offset_of!(Fixed, generation) / 8), 3);

        let addresses = offset_of!(Fixed, addresses);
        let relay_addresses = offset_of!(Fixed, relay_addresses);
        let resolvers = offset_of!(Fixed, resolvers);
        let exempt = offset_of!(Fixed, exempt);
        let second = size_of::<Ranges>();
        let v4 = |first: u64, last: u64| [first << 32 | last];
        let host = v4(0xc000_0200, 0xc000_0203);
        assert_eq!(
            image.ranges(addresses),
            [host, v4(0xc000_0209, 0xc000_0209)]
        );
        let high = 0x2001_0db8_0000_0000_u64;
        assert_eq!(image.ranges(addresses + second), [[high, 0, high, 1]]);
        assert!(image.ranges::<1>(relay_addresses).is_empty());
        assert_eq!(
            image.ranges(relay_addresses + second),
            [[high + 0x1_0000, 5, high + 0x1_0000, 5]]
        );
        assert_eq!(image.ranges(resolvers), [v4(0xc633_6435, 0xc633_6435)]);
        assert!(image.ranges::<4>(resolvers + second).is_empty());
        assert_eq!(image.ranges(exempt), [v4(0xcb00_7100, 0xcb00_71ff)]);
        assert!(image.ranges::<4>(exempt + second).is_empty());

        // Relays of IPv4 and IPv6, then listeners: each key is in only one table.
        let keys: [&[u64]; 4] = [
            &[0xc633_6407 << 16 | 443],
            &[0x2001_0db8_0002_0000, 7, 9001],
            &[0xc000_0201 << 16 | 9001],
            &[high, 1, 65535],
        ];
        let tables = [offset_of!(Fixed, relays), offset_of!(Fixed, listeners)];
        let tables = tables.map(|at| [at, at + size_of::<HashTable>()]);
        for (table, &at) in tables.as_flattened().iter().enumerate() {
            for (number, key) in keys.iter().enumerate() {
                if key.len() == keys[table].len() {
                    let holds = image.holds(at, key);
                    assert_eq!(holds, number == table, "{key:?} in table {table}");
                }
            }
        }
        let sockets = offset_of!(Fixed, sockets);
        let source_v6 = (sockets + offset_of!(Sockets, source_v6)) / 8;
        assert_eq!(image.word(source_v6), high + 0x3_0000);
        assert_eq!(image.word(source_v6 + 1), 7);
        for (field, expected) in [
            (offset_of!(Sockets, source_v4), 0xcb00_710a),
            (offset_of!(Sockets, fwmark), 0x1234_5678),
            (offset_of!(Sockets, interface), 9),
            (offset_of!(Sockets, overwrites), 1),
        ] {
            assert_eq!(image.number(sockets + field), expected);
        }
        assert_eq!(image.ports(offset_of!(Fixed, listens)), [22, 9001, 65535]);
        let everywhere = offset_of!(Fixed, listens_everywhere);
        assert_eq!(image.ports(everywhere), [22]);
    }

    #[test]
    fn the_choices_are_bytes() {
        use crate::packet::Version::{V4, V6};
        use ExitProtocols::{All, Tcp, TcpUdp};
        let relay_set = ClassifyBy::RelaySet;
        let host_mark = ClassifyBy::HostMark(Dscp::of(0x20));
        for (classify_by, protocols, steer, expected) in [
            (relay_set, Tcp, Steer::Both, [0x28, 0, 1, 0, 3]),
            (relay_set, TcpUdp, Steer::Only(V4), [0x28, 1, 1, 0, 1]),
            (host_mark, All, Steer::Only(V6), [0x28, 2, 0, 0x20, 2]),
            (host_mark, Tcp, Steer::Off, [0x28, 0, 0, 0x20, 0]),
        ] {
            let image = small(classify_by, protocols, steer);
            let choices = [
                offset_of!(Fixed, mark),
                offset_of!(Fixed, exit_protocols),
                offset_of!(Fixed, both_kinds),
                offset_of!(Fixed, host_mark),
                offset_of!(Fixed, routed),
            ];
            let choices = choices.map(|at| image.0[at]);
            assert_eq!(
                choices, expected,
                "{classify_by:?}, {protocols:?}, {steer:?}"
            );
            assert_eq!(image.0[offset_of!(Fixed, unused)..][..3], [0; 3]);
        }
    }

    #[test]
    fn both_kinds_of_address_are_needed_for_the_cross_check() {
        let mut snapshot = largest(0);
        assert_eq!(image(&snapshot).unwrap()[offset_of!(Fixed, both_kinds)], 0);
        let rules = Arc::get_mut(&mut snapshot.rules).unwrap();
        std::mem::swap(&mut rules.addresses, &mut rules.relay_addresses);
        assert_eq!(image(&snapshot).unwrap()[offset_of!(Fixed, both_kinds)], 0);
    }

    #[test]
    fn each_rule_has_its_action() {
        use crate::Class;
        for steer in [Steer::Off, Steer::Both] {
            let image = small(ClassifyBy::RelaySet, ExitProtocols::Tcp, steer);
            let actions = &image.0[offset_of!(Fixed, actions)..][..ACTIONS];
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
