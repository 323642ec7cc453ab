//! Serialises a snapshot for the XDP program, as one flat array of 64-bit words.
//!
//! The layout is that of `struct exitmark_image` in bpf/exitmark.h. The tables are copied bit for
//! bit from the snapshot: both sides use the same hash and pilots.

use super::endpoint::{EndpointTable, TableKey, halves};
use super::plain::PlainHop;
use super::range_map::{Number, Range, RangeMap};
use super::rules::Marking;
use super::translation::{ByDirection, Translated};
use super::{
    Actions, ClassifyBy, Egress, Group, MAX_GROUPS, PrefixSet, Rule, Rules, Snapshot, SocketRules,
};
use crate::packet::{Dscp, Ecn, MacAddr, Version, VlanTags};
use std::mem::offset_of;

pub use super::endpoint::{PILOT_MULTIPLIER, SLOT_MULTIPLIER};

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
/// Exit frames of the hosts are copied to the tap.
pub const TAP_OUT: u8 = 1;
/// Answers to exit frames are copied to the tap.
pub const TAP_IN: u8 = 2;
/// In place of a priority: that of the frame is kept.
pub const KEEP_PRIORITY: u8 = 0xff;
/// The words of the value of a translated IPv6 address.
pub const TRANSLATED_V6_WORDS: usize = 3;
/// In place of the number of a next hop: relay traffic leaves by `uplink`.
pub const HOP_UPLINK: u16 = 0x100;
/// In place of the number of a next hop: none routes relay traffic.
pub const HOP_NONE: u16 = 0x101;
const ACTIONS: usize = 24;
/// The groups, frames of no group, and room up to a power of two.
const GROUPS_ROOM: usize = 2 * MAX_GROUPS;

const _: () = assert!(Rule::ALL.len() <= ACTIONS);

/// The layout of an image's fixed part, `struct exitmark_policy`. The data path asserts that this
/// and the others are the layouts of the header file.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct Fixed {
    pub generation: u64,
    pub clears: u64,
    pub host_mark: u8,
    pub several: u8,
    pub translates: u8,
    pub tap: u8,
    pub unused: [u8; 4],
    pub plain: [Plain; 2],
    pub owners: [RangeIndex; 2],
    pub departures: [RangeIndex; 2],
    pub arrivals: [RangeIndex; 2],
    pub relays: [HashTable; 2],
    pub listeners: [HashTable; 2],
    pub sockets: Sockets,
    pub groups: [GroupPolicy; GROUPS_ROOM],
    pub listens: [u64; 1024],
    pub listens_everywhere: [u64; 1024],
}

/// The layout of `struct exitmark_group`.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct GroupPolicy {
    pub mark: u8,
    pub exit_protocols: u8,
    pub both_kinds: u8,
    pub routed: u8,
    pub next_hops: [u8; 2],
    pub priority: u8,
    pub grows: u8,
    pub inbound_grows: u8,
    pub translates: u8,
    pub unused: [u8; 6],
    pub host_tags: u32,
    pub steer_tags: u32,
    pub mac: u64,
    pub actions: [u8; ACTIONS],
    pub resolvers: [Ranges; 2],
    pub exempt: [Ranges; 2],
    pub padding: [u64; 5],
}

/// The layout of `struct exitmark_plain`.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct Plain {
    pub first: u64,
    pub count: u64,
    pub hop: u16,
    pub last_listener: u16,
    pub mark: u16,
    pub learns: u16,
    pub relays: HashTable,
    pub high: u64,
}

/// The layout of `struct exitmark_range_map`.
#[repr(C)]
#[allow(missing_docs, reason = "bpf/exitmark.h describes the fields")]
pub struct RangeIndex {
    pub masks: [u64; 2],
    pub multipliers: [u64; 2],
    pub shift: u32,
    pub count: u32,
    pub ranges: u32,
    pub values: u32,
    pub candidates: u32,
    pub mask: u32,
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
    pub pilots: u32,
    pub pilot_count: u32,
    pub slots: u32,
    pub slot_count: u32,
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
    let host_mark = match rules.classify_by {
        ClassifyBy::RelaySet => Dscp::DEFAULT,
        ClassifyBy::HostMark(mark) => mark,
    };
    let mut bytes = Vec::with_capacity(IMAGE_BYTES);
    bytes.resize(POLICY_BYTES, 0_u8);
    bytes[offset_of!(Fixed, host_mark)] = tos(host_mark);
    bytes[offset_of!(Fixed, several)] = u8::from(rules.groups().len() > 1);
    let tap = rules.tap();
    bytes[offset_of!(Fixed, tap)] =
        u8::from(tap.copies_out()) * TAP_OUT + u8::from(tap.copies_answers()) * TAP_IN;
    let mut draft = Draft(bytes);
    draft.put(offset_of!(Fixed, generation), &[snapshot.generation]);
    draft.put(offset_of!(Fixed, clears), &[rules.clears().to_u64()]);
    draft.push_maps(rules);
    for (number, group) in rules.groups().iter().enumerate() {
        draft.put_group(number, group, snapshot);
    }
    let no_group = Actions::of_no_group(rules.mode());
    draft.put_actions(group_at(MAX_GROUPS), &no_group);
    draft.put_sockets(&rules.sockets);
    let listeners = &snapshot.listeners;
    for (at, endpoints) in [
        (offset_of!(Fixed, relays), &snapshot.relays),
        (offset_of!(Fixed, listeners), &listeners.endpoints),
    ] {
        draft.push_table(at, endpoints.v4());
        draft.push_table(at + size_of::<HashTable>(), endpoints.v6());
    }
    draft.put_plain(snapshot);
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

/// A code point in a ToS byte without ECN bits.
const fn tos(dscp: Dscp) -> u8 {
    dscp.with_ecn(Ecn::of(0))
}

/// The offset of a group's policy.
const fn group_at(number: usize) -> usize {
    offset_of!(Fixed, groups) + number * size_of::<GroupPolicy>()
}

const fn action(actions: &Actions, rule: Rule) -> u8 {
    let action = actions.of(rule);
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

/// The words of a range of IPv6 addresses.
fn four_words(&(first, last): &(u128, u128)) -> [u64; 4] {
    let ([a, b], [c, d]) = (halves(first), halves(last));
    [a, b, c, d]
}

/// The word of a range of IPv4 addresses.
fn one_word(&(first, last): &(u32, u32)) -> [u64; 1] {
    [u64::from(first) << 32 | u64::from(last)]
}

/// A number of 16 bits with the number of a group below it.
fn beside_group<A>(translated: &Translated<A>, delta: u16) -> u64 {
    u64::from(delta) << 16 | u64::from(translated.group.to_u8())
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

    fn put_group(&mut self, number: usize, group: &Group, snapshot: &Snapshot) {
        let at = group_at(number);
        let by_relay_set = snapshot.rules.classify_by == ClassifyBy::RelaySet;
        let steer = group.actions.intent().steer;
        let routed = |version| u8::from(steer.routes(version)) << version as u8;
        let path = group.path;
        let grows = |from: VlanTags, to: VlanTags| to.bytes().saturating_sub(from.bytes());
        for (field, byte) in [
            (offset_of!(GroupPolicy, mark), tos(group.actions.mark())),
            (
                offset_of!(GroupPolicy, exit_protocols),
                group.exit_protocols as u8,
            ),
            (
                offset_of!(GroupPolicy, both_kinds),
                u8::from(by_relay_set && group.has_both_kinds()),
            ),
            (
                offset_of!(GroupPolicy, routed),
                routed(Version::V4) | routed(Version::V6),
            ),
            (
                offset_of!(GroupPolicy, translates),
                u8::from(group.translates()),
            ),
            (offset_of!(GroupPolicy, next_hops), path.next_hops[0]),
            (offset_of!(GroupPolicy, next_hops) + 1, path.next_hops[1]),
            (
                offset_of!(GroupPolicy, priority),
                path.priority.unwrap_or(KEEP_PRIORITY),
            ),
            // At most eight.
            (
                offset_of!(GroupPolicy, grows),
                u8::try_from(grows(group.vlan, path.vlan)).unwrap_or(0),
            ),
            (
                offset_of!(GroupPolicy, inbound_grows),
                u8::try_from(grows(path.vlan, group.vlan)).unwrap_or(0),
            ),
        ] {
            self.0[at + field] = byte;
        }
        for (field, tags) in [
            (offset_of!(GroupPolicy, host_tags), group.vlan),
            (offset_of!(GroupPolicy, steer_tags), path.vlan),
        ] {
            self.0[at + field..][..4].copy_from_slice(&tags.to_u32().to_ne_bytes());
        }
        let mac = group.mac.map_or(0, MacAddr::to_u64);
        self.put(at + offset_of!(GroupPolicy, mac), &[mac]);
        self.put_actions(at, &group.actions);
        self.push_prefixes(at + offset_of!(GroupPolicy, resolvers), &group.resolvers);
        self.push_prefixes(at + offset_of!(GroupPolicy, exempt), &group.exempt);
    }

    /// The plain hosts. The relay tables are in the image already.
    fn put_plain(&mut self, snapshot: &Snapshot) {
        let plain = snapshot.plain();
        for version in [Version::V4, Version::V6] {
            let hosts = plain.hosts(version);
            let at = offset_of!(Fixed, plain) + version as usize * size_of::<Plain>();
            self.put(at + offset_of!(Plain, first), &[hosts.first, hosts.count]);
            let hop = match hosts.hop {
                PlainHop::Uplink => HOP_UPLINK,
                PlainHop::Unrouted => HOP_NONE,
                PlainHop::Number(number) => number.into(),
            };
            for (field, number) in [
                (offset_of!(Plain, hop), hop),
                (offset_of!(Plain, last_listener), hosts.last_listener),
                (offset_of!(Plain, mark), tos(plain.mark).into()),
                (offset_of!(Plain, learns), plain.learns.into()),
            ] {
                self.0[at + field..][..2].copy_from_slice(&number.to_ne_bytes());
            }
            let relays = offset_of!(Fixed, relays) + version as usize * size_of::<HashTable>();
            let relays = relays..relays + size_of::<HashTable>();
            self.0.copy_within(relays, at + offset_of!(Plain, relays));
            self.put(at + offset_of!(Plain, high), &[hosts.high]);
        }
    }

    fn put_actions(&mut self, group: usize, actions: &Actions) {
        for rule in Rule::ALL {
            let at = group + offset_of!(GroupPolicy, actions) + rule as usize;
            self.0[at] = action(actions, rule);
        }
    }

    fn put_sockets(&mut self, sockets: &SocketRules) {
        let at = offset_of!(Fixed, sockets);
        let source_v6 = halves(sockets.source_v6.map_or(0, u128::from));
        self.put(at + offset_of!(Sockets, source_v6), &source_v6);
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
            self.0[at + field..][..4].copy_from_slice(&number.to_ne_bytes());
        }
    }

    /// Writes what is known of addresses: their owners and translations.
    fn push_maps(&mut self, rules: &Rules) {
        let (owners, size) = (rules.owners(), size_of::<RangeIndex>());
        let at = offset_of!(Fixed, owners);
        self.push_map(at, &owners.v4, one_word, |owner| [u64::from(owner.to_u8())]);
        self.push_map(at + size, &owners.v6, four_words, |owner| {
            [u64::from(owner.to_u8())]
        });
        let translations = rules.translations();
        let has_some = |of: &ByDirection| !(of.v4.ranges.is_empty() && of.v6.ranges.is_empty());
        self.0[offset_of!(Fixed, translates)] = u8::from(has_some(&translations.departures));
        for (at, of_direction) in [
            (offset_of!(Fixed, departures), &translations.departures),
            (offset_of!(Fixed, arrivals), &translations.arrivals),
        ] {
            self.push_map(at, &of_direction.v4, one_word, |translated| {
                let (flipped, delta) = translated.change.parts();
                [u64::from(flipped) << 32 | beside_group(translated, delta)]
            });
            self.push_map(at + size, &of_direction.v6, four_words, |translated| {
                let (flipped, delta) = translated.change.parts();
                let [high, low] = halves(flipped);
                let words: [u64; TRANSLATED_V6_WORDS] =
                    [beside_group(translated, delta), high, low];
                words
            });
        }
    }

    /// Writes the ranges, what is known of each, and the candidates.
    fn push_map<N: Number, T: Copy, const WORDS: usize, const VALUE: usize>(
        &mut self,
        at: usize,
        map: &RangeMap<N, T>,
        words: impl Fn(&(N, N)) -> [u64; WORDS],
        value: impl Fn(&T) -> [u64; VALUE],
    ) {
        let range = |range: &Range<N, T>| words(&(range.first, range.last));
        self.put(at + offset_of!(RangeIndex, masks), &map.hash.masks);
        let multipliers = &map.hash.multipliers;
        self.put(at + offset_of!(RangeIndex, multipliers), multipliers);
        let shift = map.hash.shift as usize;
        self.put_number(at + offset_of!(RangeIndex, shift), shift);
        self.put_number(at + offset_of!(RangeIndex, count), map.ranges.len());
        self.put_number(at + offset_of!(RangeIndex, ranges), self.words());
        // The program always looks at a candidate: here at one that covers no address.
        let none = map.ranges.is_empty().then(|| words(&(N::MAX, N::ZERO)));
        self.push(none.into_iter().flatten());
        self.push(map.ranges.iter().flat_map(range));
        self.put_number(at + offset_of!(RangeIndex, values), self.words());
        self.push(map.ranges.iter().flat_map(|range| value(&range.value)));
        let mask = map.candidates.len() - 1;
        self.put_number(at + offset_of!(RangeIndex, mask), mask);
        self.put_number(at + offset_of!(RangeIndex, candidates), self.words());
        self.push_halves(&map.candidates);
    }

    /// Writes a multiple of four numbers, four a word.
    fn push_halves(&mut self, numbers: &[u16]) {
        for number in numbers {
            self.0.extend_from_slice(&number.to_ne_bytes());
        }
    }

    fn push_prefixes(&mut self, at: usize, prefixes: &PrefixSet) {
        let v4 = prefixes.v4().iter().flat_map(one_word);
        self.push_ranges(at, prefixes.v4().len(), v4);
        let v6 = prefixes.v6().iter().flat_map(four_words);
        self.push_ranges(at + size_of::<Ranges>(), prefixes.v6().len(), v6);
    }

    fn push_ranges(&mut self, at: usize, count: usize, words: impl Iterator<Item = u64>) {
        self.put_number(at + offset_of!(Ranges, at), self.words());
        self.put_number(at + offset_of!(Ranges, count), count);
        self.push(words);
    }

    fn push_table<K: TableKey>(&mut self, at: usize, table: &EndpointTable<K>) {
        self.put(at + offset_of!(HashTable, multipliers), &table.multipliers);
        let pilots = table.pilots.len();
        self.put_number(at + offset_of!(HashTable, pilot_count), pilots);
        self.put_number(at + offset_of!(HashTable, slot_count), table.slots.len());
        self.put_number(at + offset_of!(HashTable, pilots), self.words() * 4);
        self.push_halves(&table.pilots);
        self.put_number(at + offset_of!(HashTable, slots), self.words());
        self.push(table.slots.iter().flat_map(|key| key.words()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        AtUplink, Endpoint, EndpointSet, ExitProtocols, Intent, Listener, MAX_ENDPOINTS,
        MAX_LISTENERS, MAX_PREFIXES, MAX_RESOLVERS, Mode, Steer, SteeredPath, Translation,
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

    fn actions(steer: Steer) -> Actions {
        Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer,
        })
    }

    /// The largest snapshot that settings can make: every set at its maximum.
    fn largest(of_v6: usize, exempt: PrefixSet) -> Snapshot {
        let endpoint = |number| Endpoint::new(v6(number), 443);
        let group = |number: usize| {
            let of_this = |most| (0..most).filter(move |at| at % MAX_GROUPS == number);
            let nets = of_this(MAX_PREFIXES).map(|at| IpNet::from(v6(at)));
            let listeners = of_this(MAX_LISTENERS).map(|at| Listener::Endpoint(endpoint(at)));
            let resolvers = of_this(MAX_RESOLVERS).map(|at| IpNet::from(v6(at)));
            Group {
                addresses: PrefixSet::new(nets),
                listeners: listeners.collect(),
                resolvers: PrefixSet::new(resolvers),
                exempt: match number {
                    0 => exempt.clone(),
                    _ => PrefixSet::default(),
                },
                ..Group::new("host", actions(Steer::Both))
            }
        };
        let groups = (0..MAX_GROUPS).map(group).collect();
        let rules = Rules::new(ClassifyBy::RelaySet, groups, SocketRules::default());
        let relays = (0..MAX_ENDPOINTS).map(|number| {
            let address = if number < of_v6 { v6 } else { v4 };
            Endpoint::new(address(number), 9001)
        });
        Snapshot::new(7, Arc::new(rules), EndpointSet::new(relays).unwrap())
    }

    #[test]
    fn the_largest_snapshots_fit() {
        let (half, all) = (MAX_ENDPOINTS / 2, MAX_ENDPOINTS);
        let exempt = PrefixSet::new((0..MAX_PREFIXES).map(|at| IpNet::from(v6(at))));
        for of_v6 in [0, 1, half - 1, half, half + 1, all - 1, all] {
            let image = image(&largest(of_v6, exempt.clone())).unwrap();
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

        /// The ranges of the owners of an IP version, each with its owner. Checks that the
        /// candidates are among them.
        fn owned<const WORDS: usize>(&self, family: usize) -> Vec<([u64; WORDS], u64)> {
            let at = offset_of!(Fixed, owners) + family * size_of::<RangeIndex>();
            let number = |field| self.number(at + field);
            let first = number(offset_of!(RangeIndex, ranges));
            let owners = number(offset_of!(RangeIndex, values));
            let count = number(offset_of!(RangeIndex, count));
            let at_word = |word: usize| std::array::from_fn(|part| self.word(word + part));
            let range = |index| (at_word(first + index * WORDS), self.word(owners + index));
            let ranges: Vec<([u64; WORDS], u64)> = (0..count).map(range).collect();
            let candidates = number(offset_of!(RangeIndex, candidates));
            for index in 0..=number(offset_of!(RangeIndex, mask)) {
                let candidate = self.word(candidates + index / 4) >> (index % 4 * 16) & 0xffff;
                assert!((candidate as usize) < count, "{candidate}");
            }
            ranges
        }

        /// Whether the described table has this key.
        fn holds(&self, at: usize, key: &[u64]) -> bool {
            let multipliers = (at + offset_of!(HashTable, multipliers)) / 8;
            let products = key.iter().zip(multipliers..);
            let hash = products.fold(0_u64, |sum, (part, at)| {
                sum.wrapping_add(part.wrapping_mul(self.word(at)))
            });
            let number = |field| self.number(at + field);
            let scaled = |hash: u64, count: usize| {
                usize::try_from(((hash >> 32) * count as u64) >> 32).unwrap()
            };
            let pilot = number(offset_of!(HashTable, pilots))
                + scaled(hash, number(offset_of!(HashTable, pilot_count)));
            let pilot = self.word(pilot / 4) >> (pilot % 4 * 16) & 0xffff;
            let hash = (hash ^ pilot.wrapping_mul(PILOT_MULTIPLIER)).wrapping_mul(SLOT_MULTIPLIER);
            let slot = scaled(hash, number(offset_of!(HashTable, slot_count)));
            let slot = number(offset_of!(HashTable, slots)) + slot * key.len();
            (slot..).zip(key).all(|(at, part)| self.word(at) == *part)
        }

        fn ports(&self, at: usize) -> Vec<usize> {
            let is_set = |port: &usize| self.word(at / 8 + port / 64) >> (port % 64) & 1 == 1;
            (0..1 << 16).filter(is_set).collect()
        }
    }

    fn small(classify_by: ClassifyBy, exit_protocols: ExitProtocols, steer: Steer) -> Read {
        let net = |texts: &[&str]| PrefixSet::new(texts.iter().map(|text| text.parse().unwrap()));
        let first = Group {
            addresses: net(&["192.0.2.0/30", "192.0.2.9/32", "2001:db8::/127"]),
            relay_addresses: net(&["2001:db8:1::5/128"]),
            listeners: [
                Listener::Port(22),
                Listener::Port(80),
                Listener::Endpoint("192.0.2.1:9001".parse().unwrap()),
                Listener::Endpoint("[2001:db8::1]:65535".parse().unwrap()),
            ]
            .into(),
            resolvers: net(&["198.51.100.53/32"]),
            exempt: net(&["203.0.113.0/24"]),
            exit_protocols,
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, 9])),
            vlan: VlanTags::one(10),
            path: SteeredPath {
                next_hops: [3, 127],
                vlan: VlanTags::pair(200, 30),
                priority: Some(5),
            },
            translations: [
                ("192.0.2.0/30", "203.0.113.4/30"),
                ("2001:db8::/127", "2001:db8:3::10/127"),
            ]
            .map(|(host, incoming)| {
                let [host, incoming] = [host, incoming].map(|net| net.parse().unwrap());
                Translation::new(host, incoming).unwrap()
            })
            .into(),
            ..Group::new("first", actions(steer))
        };
        let second = Group {
            relay_addresses: net(&["192.0.2.5/32"]),
            listeners: [Listener::Port(22)].into(),
            resolvers: net(&["2001:db8::53/128"]),
            ..Group::new("second", actions(Steer::Off))
        };
        let sockets = SocketRules {
            source_v4: Some(Ipv4Addr::new(203, 0, 113, 10)),
            source_v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 7)),
            fwmark: 0x1234_5678,
            interface: 9,
            overwrites: true,
        };
        let rules = Rules::new(classify_by, vec![first, second], sockets);
        let relays = ["198.51.100.7:443", "[2001:db8:2::7]:9001"];
        let relays = relays.map(|text| text.parse::<Endpoint>().unwrap());
        let relays = EndpointSet::new(relays).unwrap();
        Read(image(&Snapshot::new(3, Arc::new(rules), relays)).unwrap())
    }

    /// The plain hosts of IPv4 and IPv6: high, first, count, hop and last listener.
    fn plain(groups: Vec<Group>, classify_by: ClassifyBy) -> [(u64, u64, u64, usize, usize); 2] {
        let rules = Rules::new(classify_by, groups, SocketRules::default());
        let snapshot = Snapshot::new(1, Arc::new(rules), EndpointSet::empty());
        let image = Read(image(&snapshot).unwrap());
        [0, 1].map(|family| {
            let at = offset_of!(Fixed, plain) + family * size_of::<Plain>();
            let word = |field| image.word((at + field) / 8);
            let number = |field| image.number(at + field);
            let hop = number(offset_of!(Plain, hop));
            (
                word(offset_of!(Plain, high)),
                word(offset_of!(Plain, first)),
                word(offset_of!(Plain, count)),
                hop & 0xffff,
                hop >> 16,
            )
        })
    }

    fn ordinary() -> Group {
        let net = |texts: &[&str]| PrefixSet::new(texts.iter().map(|text| text.parse().unwrap()));
        Group {
            addresses: net(&["192.0.2.4/30", "2001:db8::8/125"]),
            listeners: [Listener::Port(22), Listener::Port(8443)].into(),
            path: SteeredPath {
                next_hops: [3, 4],
                ..SteeredPath::default()
            },
            ..Group::new("host", actions(Steer::Only(Version::V4)))
        }
    }

    #[test]
    fn the_hosts_of_an_ordinary_group_are_plain() {
        let high = 0x2001_0db8_0000_0000;
        let unrouted = HOP_NONE as usize;
        assert_eq!(
            plain(vec![ordinary()], ClassifyBy::RelaySet),
            [(0, 0xc000_0204, 4, 3, 8443), (high, 8, 8, unrouted, 8443)]
        );
        let unsteered = Group {
            listeners: [].into(),
            ..Group::new("host", actions(Steer::Off))
        };
        let unsteered = Group {
            addresses: ordinary().addresses,
            ..unsteered
        };
        let by_uplink = HOP_UPLINK as usize;
        assert_eq!(
            plain(vec![unsteered], ClassifyBy::RelaySet),
            [
                (0, 0xc000_0204, 4, by_uplink, 0),
                (high, 8, 8, by_uplink, 0)
            ]
        );
    }

    #[test]
    fn hosts_with_anything_special_are_not_plain() {
        let net = |texts: &[&str]| PrefixSet::new(texts.iter().map(|text| text.parse().unwrap()));
        let counts =
            |groups, classify_by| plain(groups, classify_by).map(|(_, _, count, ..)| count);
        let of = |group| counts(vec![group], ClassifyBy::RelaySet);
        assert_eq!(of(ordinary()), [4, 8]);
        let changed: [fn(&mut Group); 5] = [
            |group| group.vlan = VlanTags::one(10),
            |group| group.path.vlan = VlanTags::one(10),
            |group| group.exempt = PrefixSet::new(["203.0.113.0/24".parse().unwrap()]),
            |group| group.exempt = PrefixSet::new(["2001:db8:9::/48".parse().unwrap()]),
            |group| {
                let [host, incoming] =
                    ["192.0.2.4/30", "203.0.113.4/30"].map(|net| net.parse().unwrap());
                group.translations = [Translation::new(host, incoming).unwrap()].into();
            },
        ];
        for (number, change) in changed.into_iter().enumerate() {
            let mut group = ordinary();
            change(&mut group);
            assert_eq!(of(group), [0, 0], "change {number}");
        }
        let audited = Actions::new(Intent {
            mode: Mode::Audit,
            ..ordinary().actions.intent()
        });
        let audited = Group {
            actions: audited,
            ..ordinary()
        };
        assert_eq!(of(audited), [0, 0]);
        assert_eq!(
            counts(vec![ordinary()], ClassifyBy::HostMark(Dscp::AF11)),
            [0, 0]
        );
        let other = Group {
            addresses: net(&["192.0.2.77/32"]),
            ..ordinary()
        };
        assert_eq!(
            counts(vec![ordinary(), other], ClassifyBy::RelaySet),
            [0, 0]
        );
        // Relay addresses, or several ranges, of one family.
        let both_kinds = Group {
            relay_addresses: net(&["192.0.2.99/32"]),
            ..ordinary()
        };
        assert_eq!(of(both_kinds), [0, 0]);
        let scattered = Group {
            addresses: net(&["192.0.2.4/32", "192.0.2.8/32", "2001:db8::/64"]),
            ..ordinary()
        };
        assert_eq!(
            of(scattered),
            [0, 0],
            "2^64 addresses are one too many to count"
        );
    }

    #[test]
    fn the_layout_is_that_of_the_header_file() {
        let image = small(ClassifyBy::RelaySet, ExitProtocols::Tcp, Steer::Both);
        assert_eq!(image.word(offset_of!(Fixed, generation) / 8), 3);

        // 192.0.2.0 and 203.0.113.4 differ in these bits, and by this modulo 65,535.
        let (flipped, delta) = (0x0b00_7304_u64, (0xcb00_7104 - 0xc000_0200) % 0xffff_u64);
        let translated = |at: usize, family: usize| {
            let at = at + family * size_of::<RangeIndex>();
            let number = |field| image.number(at + field);
            let values = number(offset_of!(RangeIndex, values));
            let words = [1, 3][family];
            (values..values + words)
                .map(|word| image.word(word))
                .collect::<Vec<_>>()
        };
        let (departures, arrivals) = (offset_of!(Fixed, departures), offset_of!(Fixed, arrivals));
        assert_eq!(translated(departures, 0), [flipped << 32 | delta << 16]);
        assert_eq!(
            translated(arrivals, 0),
            [flipped << 32 | (0xffff - delta) << 16]
        );
        let delta = 3 + 0x10;
        assert_eq!(translated(departures, 1), [delta << 16, 0x3_0000, 0x10]);
        assert_eq!(
            translated(arrivals, 1),
            [(0xffff - delta) << 16, 0x3_0000, 0x10]
        );
        assert_eq!(image.0[offset_of!(Fixed, translates)], 1);
        let translates = [0, 1].map(|group| group_at(group) + offset_of!(GroupPolicy, translates));
        assert_eq!(translates.map(|at| image.0[at]), [1, 0]);

        let resolvers = group_at(0) + offset_of!(GroupPolicy, resolvers);
        let exempt = group_at(0) + offset_of!(GroupPolicy, exempt);
        let second = size_of::<Ranges>();
        let v4 = |first: u64, last: u64| [first << 32 | last];
        let high = 0x2001_0db8_0000_0000_u64;
        assert_eq!(
            image.owned::<1>(0),
            [
                (v4(0xc000_0200, 0xc000_0203), 0),
                (v4(0xc000_0205, 0xc000_0205), 1 | 0x80),
                (v4(0xc000_0209, 0xc000_0209), 0),
            ]
        );
        assert_eq!(
            image.owned::<4>(1),
            [
                ([high, 0, high, 1], 0),
                ([high + 0x1_0000, 5, high + 0x1_0000, 5], 0x80),
            ]
        );
        assert_eq!(image.ranges(resolvers), [v4(0xc633_6435, 0xc633_6435)]);
        assert!(image.ranges::<4>(resolvers + second).is_empty());
        assert_eq!(image.ranges(exempt), [v4(0xcb00_7100, 0xcb00_71ff)]);
        assert!(image.ranges::<4>(exempt + second).is_empty());
        let of_second = group_at(1) + offset_of!(GroupPolicy, resolvers) + second;
        assert_eq!(image.ranges(of_second), [[high, 0x53, high, 0x53]]);
        let first = group_at(0);
        for (field, expected) in [
            (offset_of!(GroupPolicy, host_tags), 0x100a),
            (offset_of!(GroupPolicy, steer_tags), 0x10c8_101e),
        ] {
            assert_eq!(image.number(first + field), expected);
        }
        let mac = (first + offset_of!(GroupPolicy, mac)) / 8;
        assert_eq!(image.word(mac), 0x0200_0000_0009);
        assert_eq!(image.word(offset_of!(Fixed, clears) / 8), 1 << 10);

        // Relays of IPv4 and IPv6, then listeners: each key is in only one table.
        let keys: [&[u64]; 5] = [
            &[0xc633_6407 << 16 | 443],
            &[0x2001_0db8_0002_0000, 7, 9001],
            &[0xc000_0201 << 16 | 9001],
            &[high, 1, 65535],
            // Port 80 of every address of the first group.
            &[80],
        ];
        let tables = [offset_of!(Fixed, relays), offset_of!(Fixed, listeners)];
        let tables = tables.map(|at| [at, at + size_of::<HashTable>()]);
        for (table, &at) in tables.as_flattened().iter().enumerate() {
            for (number, key) in keys.iter().enumerate() {
                if key.len() == keys[table].len() {
                    let holds = image.holds(at, key);
                    let is_there = number == table || (number, table) == (4, 2);
                    assert_eq!(holds, is_there, "{key:?} in table {table}");
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
        assert_eq!(
            image.ports(offset_of!(Fixed, listens)),
            [22, 80, 9001, 65535]
        );
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
            (relay_set, Tcp, Steer::Both, [0x28, 0, 1, 3, 0]),
            (relay_set, TcpUdp, Steer::Only(V4), [0x28, 1, 1, 1, 0]),
            (host_mark, All, Steer::Only(V6), [0x28, 2, 0, 2, 0x20]),
            (host_mark, Tcp, Steer::Off, [0x28, 0, 0, 0, 0x20]),
        ] {
            let image = small(classify_by, protocols, steer);
            let first = group_at(0);
            let choices = [
                first + offset_of!(GroupPolicy, mark),
                first + offset_of!(GroupPolicy, exit_protocols),
                first + offset_of!(GroupPolicy, both_kinds),
                first + offset_of!(GroupPolicy, routed),
                offset_of!(Fixed, host_mark),
            ];
            let choices = choices.map(|at| image.0[at]);
            assert_eq!(
                choices, expected,
                "{classify_by:?}, {protocols:?}, {steer:?}"
            );
            let path = &image.0[first + offset_of!(GroupPolicy, next_hops)..][..5];
            assert_eq!(path, [3, 127, 5, 4, 0]);
            let second = group_at(1);
            assert_eq!(image.0[second + offset_of!(GroupPolicy, both_kinds)], 0);
            assert_eq!(image.0[second + offset_of!(GroupPolicy, priority)], 0xff);
            assert_eq!(
                image.0[offset_of!(Fixed, several)..][..7],
                [1, 1, 0, 0, 0, 0, 0]
            );
        }
    }

    #[test]
    fn each_rule_has_its_action() {
        use crate::Class;
        for steer in [Steer::Off, Steer::Both] {
            let image = small(ClassifyBy::RelaySet, ExitProtocols::Tcp, steer);
            let actions = |group| &image.0[group_at(group) + offset_of!(GroupPolicy, actions)..];
            let actions = [0, MAX_GROUPS].map(|group| &actions(group)[..ACTIONS]);
            for rule in Rule::ALL {
                let expected = match rule.class() {
                    Class::NonIp | Class::Malformed => 0,
                    Class::Exit => 2,
                    Class::Relay if steer == Steer::Both => 4 | 1,
                    _ => 4,
                };
                assert_eq!(actions[0][rule as usize], expected, "{rule:?}, {steer:?}");
                let of_no_group = if expected == 0 { 0 } else { 4 };
                assert_eq!(actions[1][rule as usize], of_no_group, "{rule:?}");
            }
            let unused = actions
                .iter()
                .flat_map(|actions| &actions[Rule::ALL.len()..]);
            assert!(unused.clone().all(|unused| *unused == 0));
        }
    }

    #[test]
    fn a_snapshot_may_fill_the_image_exactly() {
        const WORDS: usize = IMAGE_BYTES / 8;
        // A word for each of these, and four for each of the others.
        let refused = |few, count| {
            let nets = (0..few).map(v4).chain((0..count).map(v6)).map(IpNet::from);
            let snapshot = largest(MAX_ENDPOINTS, PrefixSet::new(nets));
            image(&snapshot).err().map(|error| error.words)
        };
        let too_many = WORDS / 4;
        let beyond = refused(0, too_many).unwrap() - WORDS;
        let (most, few) = (too_many - beyond.div_ceil(4), (4 - beyond % 4) % 4);
        assert_eq!(refused(few, most), None);
        assert_eq!(refused(few + 1, most), Some(WORDS + 1));
    }
}
