//! `Endpoint`, an address with a port, and `EndpointSet`, an exact-match set of endpoints that is
//! searched once for every TCP frame.
//!
//! The set is built off the packet path and never changed: a new consensus makes a new set.
//! Each family has one open-addressed table at a load of at most one half, behind a filter that
//! rejects nearly all endpoints that are not in it. The hash has a random key, because relay
//! operators choose their addresses: they cannot aim for a long chain of collisions.

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
    /// The endpoints collide under every random key that was tried, so they are not random.
    #[error(
        "the endpoints collide under every one of {ATTEMPTS} random keys; is this a relay set?"
    )]
    Clustered,
}

/// The most slots that a search may probe: the XDP program needs a bound.
pub const MAX_PROBES: usize = 128;
/// How many random keys are tried until no search of the table takes longer.
const ATTEMPTS: usize = 64;

/// An immutable set of endpoints with a constant-time exact look-up.
#[derive(Clone)]
pub struct EndpointSet {
    v4: EndpointTable<u64>,
    v6: EndpointTable<(u128, u16)>,
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

    pub(super) const fn v6(&self) -> &EndpointTable<(u128, u16)> {
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
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> + '_ {
        let v4 = self.v4.iter().map(|key| {
            let [_, _, a, b, c, d, high, low] = key.to_be_bytes();
            Endpoint::new(
                Ipv4Addr::new(a, b, c, d).into(),
                u16::from_be_bytes([high, low]),
            )
        });
        let v6 = self
            .v6
            .iter()
            .map(|(address, port)| Endpoint::new(Ipv6Addr::from(address).into(), port));
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

/// A key of an [`EndpointTable`], with a spare value for "empty". Port 0 is never stored, so the
/// all-zero key is free.
pub(super) trait TableKey: Copy + Eq {
    const VACANT: Self;

    /// The key in 64-bit words; a vacant slot is all zero.
    fn words(self) -> impl Iterator<Item = u64>;

    /// Multiply-shift hashing (Dietzfelbinger et al. 1997): the top bits of the result are
    /// universal over random odd multipliers.
    fn hash(self, multipliers: &[u64; 3]) -> u64;
}

impl TableKey for u64 {
    const VACANT: Self = 0;

    fn words(self) -> impl Iterator<Item = u64> {
        [self].into_iter()
    }

    #[inline]
    fn hash(self, multipliers: &[u64; 3]) -> u64 {
        self.wrapping_mul(multipliers[0])
    }
}

impl TableKey for (u128, u16) {
    const VACANT: Self = (0, 0);

    fn words(self) -> impl Iterator<Item = u64> {
        let [high, low] = halves(self.0);
        [high, low, u64::from(self.1)].into_iter()
    }

    #[inline]
    fn hash(self, multipliers: &[u64; 3]) -> u64 {
        let [high, low] = halves(self.0);
        high.wrapping_mul(multipliers[0])
            .wrapping_add(low.wrapping_mul(multipliers[1]))
            .wrapping_add(u64::from(self.1).wrapping_mul(multipliers[2]))
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

/// Open addressing with linear probing, behind a filter of one bit per hash.
///
/// Most keys that are searched are not in the set. The filter rejects all but a few per cent of
/// them with one load and a predictable branch; a probe ends at a different slot each time, which
/// the processor mispredicts.
#[derive(Clone)]
pub(super) struct EndpointTable<K> {
    pub(super) filter: Box<[u64]>,
    /// As many slots as the filter's bits divided by [`BITS_PER_SLOT`], and [`MAX_PROBES`] more: a
    /// search never goes back to the beginning.
    pub(super) slots: Box<[K]>,
    /// The number of the filter's bits.
    pub(super) bits: u32,
    pub(super) multipliers: [u64; 3],
    len: usize,
}

/// Bits of the filter per slot of the table. The slot's index is that of the bit divided by this.
pub const BITS_PER_SLOT: usize = 16;

impl<K: TableKey> EndpointTable<K> {
    fn empty() -> Self {
        Self::with_room_for(0)
    }

    fn new(keys: &[K]) -> Result<Self, EndpointSetError> {
        (0..ATTEMPTS)
            .find_map(|_| Self::with_room_for(keys.len()).filled(keys))
            .ok_or(EndpointSetError::Clustered)
    }

    /// An empty table with a new random key.
    fn with_room_for(len: usize) -> Self {
        // Twice the keys, at least 8, so that most searches end at once. Whole words of the filter.
        let capacity = (len * 2).next_multiple_of(4).max(8);
        let bits = capacity * BITS_PER_SLOT;
        let random = RandomState::new();
        Self {
            filter: vec![0; bits / 64].into_boxed_slice(),
            slots: vec![K::VACANT; capacity + MAX_PROBES].into_boxed_slice(),
            // At most 2^21.
            bits: u32::try_from(bits).unwrap_or(u32::MAX),
            multipliers: [1, 2, 3].map(|number| random.hash_one(number) | 1),
            len,
        }
    }

    /// Inserts these keys. `None` if the search for any key could take [`MAX_PROBES`] or more
    /// steps.
    fn filled(mut self, keys: &[K]) -> Option<Self> {
        for &key in keys {
            let bit = self.bit(key);
            self.filter[bit / 64] |= 1 << (bit % 64);
            let mut slot = bit / BITS_PER_SLOT;
            while *self.slots.get(slot)? != K::VACANT {
                slot += 1;
            }
            self.slots[slot] = key;
        }
        (self.longest_run() < MAX_PROBES).then_some(self)
    }

    /// The longest run of occupied slots.
    fn longest_run(&self) -> usize {
        let (mut run, mut longest) = (0, 0);
        for slot in &self.slots {
            run = if *slot == K::VACANT { 0 } else { run + 1 };
            longest = longest.max(run);
        }
        longest
    }

    /// The key's bit in the filter, which also determines the first slot of its search.
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "after the shift, only the bit's index is left"
    )]
    fn bit(&self, key: K) -> usize {
        // The upper half of the hash, scaled to the number of bits.
        (((key.hash(&self.multipliers) >> 32) * u64::from(self.bits)) >> 32) as usize
    }

    #[inline(always)]
    fn contains(&self, key: K) -> bool {
        let bit = self.bit(key);
        self.filter[bit / 64] >> (bit % 64) & 1 == 1 && self.holds(key, bit / BITS_PER_SLOT)
    }

    /// Searches for the key from this slot on.
    #[inline(always)]
    fn holds(&self, key: K, slot: usize) -> bool {
        for &found in self.slots.get(slot..).unwrap_or_default() {
            if found == key {
                return key != K::VACANT;
            }
            if found == K::VACANT {
                return false;
            }
        }
        false
    }

    fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.slots.iter().copied().filter(|&key| key != K::VACANT)
    }
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
    fn keys_that_collide_are_found_and_a_long_run_is_refused() {
        // With this multiplier the upper bits of the key are its slot.
        let table = |len| EndpointTable::<u64> {
            multipliers: [1; 3],
            ..EndpointTable::with_room_for(len)
        };
        let keys: Vec<u64> = (1..=MAX_PROBES as u64).collect();
        let full = table(MAX_PROBES);
        assert!(
            keys.iter().all(|key| full.bit(*key) == 0),
            "all in one place"
        );
        assert!(table(MAX_PROBES).filled(&keys).is_none());
        let most = &keys[..MAX_PROBES - 1];
        let filled = table(MAX_PROBES).filled(most).unwrap();
        assert_eq!(filled.longest_run(), MAX_PROBES - 1);
        assert!(most.iter().all(|key| filled.contains(*key)));
        assert!(!filled.contains(MAX_PROBES as u64));
    }

    #[test]
    fn a_run_at_the_end_goes_on_behind_it() {
        let table = EndpointTable::<u64> {
            multipliers: [1; 3],
            ..EndpointTable::with_room_for(4)
        };
        // All at the last of eight slots.
        let keys = [1, 2, 3, 4].map(|low| u64::MAX << 8 | low);
        let filled = table.filled(&keys).unwrap();
        let taken: Vec<_> = filled.slots.iter().map(|key| *key != 0).collect();
        assert_eq!(taken[7..12], [true, true, true, true, false]);
        assert_eq!(filled.longest_run(), 4);
        assert!(keys.iter().all(|key| filled.contains(*key)));
        assert!(!filled.contains(u64::MAX << 8 | 5));
    }

    #[test]
    fn a_table_is_at_most_half_full() {
        for (keys, slots) in [(0, 8), (4, 8), (5, 12), (8, 16), (9, 20), (65_536, 131_072)] {
            let table = EndpointTable::<u64>::with_room_for(keys);
            assert_eq!(table.slots.len(), slots + MAX_PROBES, "{keys} keys");
            assert_eq!(table.filter.len() * 64, slots * BITS_PER_SLOT);
            assert_eq!(table.bits as usize, slots * BITS_PER_SLOT);
        }
        let [a, b, c] = EndpointTable::<u64>::with_room_for(1).multipliers;
        assert!(
            a & b & c & 1 == 1 && a != b && b != c,
            "odd, and each its own"
        );
    }
}
