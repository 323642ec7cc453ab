//! `Endpoint`, an address with a port, and `EndpointSet`, an exact-match set of endpoints that is
//! searched once for every TCP frame.
//!
//! The set is built off the packet path and never changed: a new consensus makes a new set.
//! Each family has one table, which the endpoints fill without collisions: a search reads a small
//! number and one slot, and takes the same time for each endpoint. The hash has a random key,
//! because relay operators choose their addresses: they cannot aim for collisions.

use super::Family;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The most endpoints of one set. The Tor network had about 13,000 in 2021; a document with more
/// than this is not a real consensus.
pub const MAX_ENDPOINTS: usize = 65_536;

/// A transport endpoint on which a relay or the host listens. Serialised as a [`SocketAddr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "SocketAddr", into = "SocketAddr")]
pub struct Endpoint {
    /// The IPv4 or IPv6 address. An IPv4-mapped IPv6 address is an IPv6 address here, and matches
    /// no IPv4 packet.
    pub address: IpAddr,
    /// The TCP port, never 0 in a set.
    pub port: u16,
}

impl Endpoint {
    /// Makes an endpoint from its two parts.
    pub const fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(socket: SocketAddr) -> Self {
        Self::new(socket.ip(), socket.port())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.address, endpoint.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl FromStr for Endpoint {
    type Err = std::net::AddrParseError;

    /// Parses `192.0.2.1:9001` or `[2001:db8::1]:9001`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<SocketAddr>().map(Self::from)
    }
}

/// Why a set could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointSetError {
    /// An endpoint has port 0, the wildcard of `bind(2)`.
    #[error("an endpoint has port 0, which no relay can listen on")]
    PortZero,
    /// More than [`MAX_ENDPOINTS`] different endpoints.
    #[error("{0} endpoints, more than the {MAX_ENDPOINTS} that a relay set may hold")]
    TooMany(usize),
    /// The endpoints fill no table without collisions under any random key that was tried.
    #[error(
        "the endpoints fill no table without collisions, with {ATTEMPTS} random keys; is this a \
         relay set?"
    )]
    Clustered,
}

/// How many random keys are tried until the endpoints fill a table without collisions.
const ATTEMPTS: usize = 64;

/// An immutable set of endpoints with a constant-time exact look-up.
#[derive(Clone)]
pub struct EndpointSet {
    v4: EndpointTable<u64>,
    v6: EndpointTable<[u64; 3]>,
}

impl EndpointSet {
    /// A set without endpoints, as before the first document is verified.
    pub fn empty() -> Self {
        Self {
            v4: EndpointTable::empty(),
            v6: EndpointTable::empty(),
        }
    }

    /// Builds a set; duplicates count once.
    ///
    /// # Errors
    /// A port is 0, there are more than [`MAX_ENDPOINTS`] different endpoints, or they collide
    /// under every random key.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Self, EndpointSetError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for endpoint in endpoints {
            if endpoint.port == 0 {
                return Err(EndpointSetError::PortZero);
            }
            match endpoint.address {
                IpAddr::V4(address) => v4.push(u32::from(address).key(endpoint.port)),
                IpAddr::V6(address) => v6.push(u128::from(address).key(endpoint.port)),
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        let count = v4.len() + v6.len();
        if count > MAX_ENDPOINTS {
            return Err(EndpointSetError::TooMany(count));
        }
        Ok(Self {
            v4: EndpointTable::new(&v4)?,
            v6: EndpointTable::new(&v6)?,
        })
    }

    /// Whether exactly this address and port are in the set.
    #[inline]
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        match address {
            IpAddr::V4(address) => self.lists(u32::from(address), port),
            IpAddr::V6(address) => self.lists(u128::from(address), port),
        }
    }

    /// As [`EndpointSet::contains`], for an address whose family is known at compile time.
    #[inline(always)]
    pub(super) fn lists<F: Family>(&self, address: F, port: u16) -> bool {
        F::table(self).contains(address.key(port))
    }

    pub(super) const fn v4(&self) -> &EndpointTable<u64> {
        &self.v4
    }

    pub(super) const fn v6(&self) -> &EndpointTable<[u64; 3]> {
        &self.v6
    }

    /// How many endpoints the set holds, both families together.
    pub fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Whether the set has no endpoint of either family.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every endpoint once, in no particular order.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the last word of a key is a port"
    )]
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> + '_ {
        let v4 = self.v4.iter().map(|key| {
            let [_, _, a, b, c, d, high, low] = key.to_be_bytes();
            Endpoint::new(
                Ipv4Addr::new(a, b, c, d).into(),
                u16::from_be_bytes([high, low]),
            )
        });
        let v6 = self.v6.iter().map(|[high, low, port]| {
            let address = u128::from(high) << 64 | u128::from(low);
            Endpoint::new(Ipv6Addr::from(address).into(), port as u16)
        });
        v4.chain(v6)
    }
}

impl fmt::Debug for EndpointSet {
    /// Shows the sizes only: addresses must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSet")
            .field("v4", &self.v4.len)
            .field("v6", &self.v6.len)
            .finish()
    }
}

/// A key of an [`EndpointTable`], as it is in a slot. A port has 16 bits, so that the key with all
/// bits set is of no endpoint.
pub(super) trait TableKey: Copy + Ord {
    /// What an empty slot holds.
    const VACANT: Self;

    /// The key in 64-bit words.
    fn words(self) -> impl Iterator<Item = u64>;

    /// Multiply-shift hashing (Dietzfelbinger et al. 1997): the top bits of the result are
    /// universal over random odd multipliers.
    fn hash(self, multipliers: &[u64; 3]) -> u64;
}

impl TableKey for u64 {
    const VACANT: Self = Self::MAX;

    fn words(self) -> impl Iterator<Item = u64> {
        [self].into_iter()
    }

    #[inline]
    fn hash(self, multipliers: &[u64; 3]) -> u64 {
        self.wrapping_mul(multipliers[0])
    }
}

impl TableKey for [u64; 3] {
    const VACANT: Self = [u64::MAX; 3];

    fn words(self) -> impl Iterator<Item = u64> {
        self.into_iter()
    }

    #[inline]
    fn hash(self, multipliers: &[u64; 3]) -> u64 {
        let [high, low, port] = self;
        high.wrapping_mul(multipliers[0])
            .wrapping_add(low.wrapping_mul(multipliers[1]))
            .wrapping_add(port.wrapping_mul(multipliers[2]))
    }
}

/// An IPv6 address' upper and lower 64 bits.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "each half is taken on its own"
)]
pub(super) const fn halves(address: u128) -> [u64; 2] {
    [(address >> 64) as u64, address as u64]
}

/// A perfect hash table, after "hash and displace" (Pagh 1999) and PTHash (Pibiri and Trani 2021).
///
/// A key's hash selects one of the pilots, and hash and pilot together its slot. The pilots are
/// chosen so that each key has a slot of its own: a search reads one pilot, of which even a full set
/// has few enough for the fastest cache, and one slot. It has no loop whose end the processor would
/// have to predict.
#[derive(Clone)]
pub(super) struct EndpointTable<K> {
    /// A multiple of four.
    pub(super) pilots: Box<[u16]>,
    pub(super) slots: Box<[K]>,
    pub(super) multipliers: [u64; 3],
    len: usize,
}

/// How many keys have the same pilot on average. More would need less memory, but a longer search
/// for pilots.
const KEYS_PER_PILOT: usize = 8;
/// A pilot is multiplied by this before it changes a hash. Odd; its bits are random.
pub const PILOT_MULTIPLIER: u64 = 0xd1b5_4a32_d192_ed03;
/// A hash that a pilot has changed is multiplied by this. Odd; the golden ratio of 64 bits.
pub const SLOT_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl<K: TableKey> EndpointTable<K> {
    fn empty() -> Self {
        Self::with_room_for(0)
    }

    /// Builds a table of these keys, which are all different.
    fn new(keys: &[K]) -> Result<Self, EndpointSetError> {
        (0..ATTEMPTS)
            .find_map(|_| Self::with_room_for(keys.len()).filled(keys))
            .ok_or(EndpointSetError::Clustered)
    }

    /// An empty table with a new random key, of which `len` keys fill at most three quarters.
    fn with_room_for(len: usize) -> Self {
        let pilots = (len / KEYS_PER_PILOT + 1).next_multiple_of(4);
        let random = RandomState::new();
        Self {
            pilots: vec![0; pilots].into_boxed_slice(),
            slots: vec![K::VACANT; len + len / 3 + 4].into_boxed_slice(),
            multipliers: [1, 2, 3].map(|number| random.hash_one(number) | 1),
            len,
        }
    }

    /// Chooses the pilots, and inserts these keys. `None` if no pilot fits.
    fn filled(mut self, keys: &[K]) -> Option<Self> {
        let mut sorted: Vec<_> = keys
            .iter()
            .map(|&key| (self.pilot_at(self.hash(key)), key))
            .collect();
        sorted.sort_unstable();
        let mut groups: Vec<_> = sorted.chunk_by(|one, other| one.0 == other.0).collect();
        // The largest groups first, as long as most slots are empty.
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        for group in groups {
            let pilot = (0..=u16::MAX).find(|&pilot| self.insert(group, pilot))?;
            self.pilots[group[0].0] = pilot;
        }
        Some(self)
    }

    /// Inserts a group with this pilot. Returns false, and leaves the table as it was, if one of the
    /// slots is taken.
    fn insert(&mut self, group: &[(usize, K)], pilot: u16) -> bool {
        for (inserted, &(_, key)) in group.iter().enumerate() {
            let slot = self.slot_at(self.hash(key), pilot);
            if self.slots[slot] != K::VACANT {
                for &(_, key) in &group[..inserted] {
                    let slot = self.slot_at(self.hash(key), pilot);
                    self.slots[slot] = K::VACANT;
                }
                return false;
            }
            self.slots[slot] = key;
        }
        true
    }

    #[inline(always)]
    fn hash(&self, key: K) -> u64 {
        key.hash(&self.multipliers)
    }

    /// The index of the pilot of the keys with this hash.
    #[inline(always)]
    fn pilot_at(&self, hash: u64) -> usize {
        scaled(hash, self.pilots.len())
    }

    /// The index of the slot of the key with this hash.
    #[inline(always)]
    fn slot_at(&self, hash: u64, pilot: u16) -> usize {
        let changed = hash ^ u64::from(pilot).wrapping_mul(PILOT_MULTIPLIER);
        scaled(changed.wrapping_mul(SLOT_MULTIPLIER), self.slots.len())
    }

    #[inline(always)]
    fn contains(&self, key: K) -> bool {
        let hash = self.hash(key);
        let pilot = self.pilots.get(self.pilot_at(hash));
        let slot = pilot.and_then(|&pilot| self.slots.get(self.slot_at(hash, pilot)));
        slot.is_some_and(|&found| found == key)
    }

    fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.slots.iter().copied().filter(|&key| key != K::VACANT)
    }
}

/// The upper half of a hash, scaled to an index below `count`, which is below 2³².
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the result is below the count"
)]
const fn scaled(hash: u64, count: usize) -> usize {
    (((hash >> 32) * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn endpoints(count: u32) -> Vec<Endpoint> {
        (0..count)
            .map(|i| {
                let port = u16::try_from(1 + i % 60_000).unwrap();
                if i % 3 == 0 {
                    let address = Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(i));
                    Endpoint::new(address.into(), port)
                } else {
                    Endpoint::new(Ipv4Addr::from(0x0a00_0000 + i).into(), port)
                }
            })
            .collect()
    }

    #[test]
    fn holds_exactly_what_it_was_given() {
        let given = endpoints(65_536);
        let set = EndpointSet::new(given.iter().copied()).unwrap();
        assert_eq!(set.len(), 65_536);
        for endpoint in &given {
            assert!(set.contains(endpoint.address, endpoint.port), "{endpoint}");
            assert!(!set.contains(endpoint.address, endpoint.port ^ 0x8000));
            assert!(!set.contains(endpoint.address, 0));
        }
        let back: BTreeSet<_> = set.iter().collect();
        assert_eq!(back, given.into_iter().collect());
    }

    #[test]
    fn an_empty_set_does_not_contain_the_zero_endpoint() {
        let set = EndpointSet::empty();
        assert!(set.is_empty());
        assert!(!set.contains(Ipv4Addr::UNSPECIFIED.into(), 0));
        assert!(!set.contains(Ipv6Addr::UNSPECIFIED.into(), 0));
        assert_eq!(set.iter().count(), 0);
    }

    #[test]
    fn duplicates_count_once() {
        let one: Endpoint = "192.0.2.1:9001".parse().unwrap();
        assert_eq!(EndpointSet::new([one, one]).unwrap().len(), 1);
    }

    #[test]
    fn refuses_port_zero_and_too_many() {
        let refused = |endpoints| EndpointSet::new(endpoints).unwrap_err();
        let zero = Endpoint::new(Ipv4Addr::LOCALHOST.into(), 0);
        assert_eq!(refused(vec![zero]), EndpointSetError::PortZero);
        let too_many = EndpointSetError::TooMany(70_000);
        assert_eq!(refused(endpoints(70_000)), too_many);
    }

    #[test]
    fn debug_shows_no_address() {
        let set = EndpointSet::new(["192.0.2.1:9001".parse().unwrap()]).unwrap();
        assert!(!format!("{set:?}").contains("192"));
    }

    #[test]
    fn debug_shows_the_size_of_each_family() {
        let endpoints = ["192.0.2.1:1", "192.0.2.1:2", "[2001:db8::1]:1"];
        let set = EndpointSet::new(endpoints.map(|text| text.parse().unwrap())).unwrap();
        assert_eq!(format!("{set:?}"), "EndpointSet { v4: 2, v6: 1 }");
        assert!(!set.is_empty());
    }

    #[test]
    fn an_endpoint_reads_back_as_printed() {
        for text in ["192.0.2.1:9001", "[2001:db8::1]:9001"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn keys_with_one_pilot_are_found_and_keys_with_one_hash_are_refused() {
        // With this multiplier the hash is the key, and the upper bits select the pilot.
        let table = |len, multiplier| EndpointTable::<u64> {
            multipliers: [multiplier; 3],
            ..EndpointTable::with_room_for(len)
        };
        let keys: Vec<u64> = (1..=100).collect();
        let filled = table(100, 1).filled(&keys).unwrap();
        assert_eq!(filled.pilots.iter().filter(|pilot| **pilot > 0).count(), 1);
        assert!(keys.iter().all(|key| filled.contains(*key)));
        assert!(!filled.contains(0) && !filled.contains(101));
        assert!(table(100, 0).filled(&keys).is_none());
    }

    #[test]
    fn a_pilot_that_does_not_fit_leaves_the_table_as_it_was() {
        let mut table = EndpointTable::<u64>::with_room_for(2);
        let slot = table.slot_at(table.hash(2), 7);
        table.slots[slot] = 9;
        assert!(!table.insert(&[(0, 1), (0, 2)], 7));
        let left: Vec<_> = table.iter().collect();
        assert_eq!(left, [9]);
    }

    #[test]
    fn a_table_is_at_most_three_quarters_full() {
        for (keys, pilots, slots) in [
            (0, 4, 4),
            (1, 4, 5),
            (9, 4, 16),
            (32, 8, 46),
            (65_536, 8_196, 87_385),
        ] {
            let table = EndpointTable::<u64>::with_room_for(keys);
            assert_eq!(table.slots.len(), slots, "{keys} keys");
            assert_eq!(table.pilots.len(), pilots, "{keys} keys");
        }
        let [a, b, c] = EndpointTable::<u64>::with_room_for(1).multipliers;
        assert!(
            a & b & c & 1 == 1 && a != b && b != c,
            "odd, and each its own"
        );
    }

    #[test]
    fn the_highest_endpoint_is_not_an_empty_slot() {
        let highest = [
            "255.255.255.255:65535",
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        ];
        for endpoint in highest.map(|text| text.parse::<Endpoint>().unwrap()) {
            assert!(!EndpointSet::empty().contains(endpoint.address, endpoint.port));
            let set = EndpointSet::new([endpoint]).unwrap();
            assert!(set.contains(endpoint.address, endpoint.port));
            assert_eq!(set.iter().collect::<Vec<_>>(), [endpoint]);
        }
    }
}
