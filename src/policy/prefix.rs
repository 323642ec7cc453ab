//! A set of address prefixes, searched once or twice for every frame.

use super::Family;
use ipnet::IpNet;
use std::net::IpAddr;
use std::ops::{Deref, Not};

/// The most prefixes of one family in a set; the XDP program has room for, and searches, this many.
pub const MAX_PREFIXES: usize = 1024;

/// The addresses that a list of prefixes covers, as disjoint sorted ranges. Binary search: one
/// prefix costs two comparisons, 256 cost eight steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// The ranges of one family. Most sets are empty or have one address per family; for these, and
/// for addresses outside of `first` to `last`, two comparisons suffice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges<N> {
    /// The beginning of the first range; above `last` in an empty set.
    first: N,
    /// The end of the last range, inclusive; 0 in an empty set.
    last: N,
    all: Box<[(N, N)]>,
}

impl PrefixSet {
    /// Builds the set; prefixes may overlap and repeat.
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()))),
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self {
            v4: Ranges::new(v4),
            v6: Ranges::new(v6),
        }
    }

    /// The set with more prefixes, which may overlap its own.
    #[must_use]
    pub fn with(&self, prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let more = Self::new(prefixes);
        Self {
            v4: Ranges::new([&*self.v4.all, &*more.v4.all].concat()),
            v6: Ranges::new([&*self.v6.all, &*more.v6.all].concat()),
        }
    }

    /// Whether a prefix covers the address.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.covers(u32::from(address)),
            IpAddr::V6(address) => self.covers(u128::from(address)),
        }
    }

    /// As [`PrefixSet::contains`], for an address whose family is known at compile time.
    #[inline]
    pub(super) fn covers<F: Family>(&self, address: F) -> bool {
        F::ranges(self).cover(address)
    }

    /// The IPv4 ranges: first and last address of each, sorted.
    pub fn v4_ranges(&self) -> &[(u32, u32)] {
        &self.v4
    }

    /// The IPv6 ranges: first and last address of each, sorted.
    pub fn v6_ranges(&self) -> &[(u128, u128)] {
        &self.v6
    }

    pub(super) const fn v4(&self) -> &Ranges<u32> {
        &self.v4
    }

    pub(super) const fn v6(&self) -> &Ranges<u128> {
        &self.v6
    }

    /// Whether no address is covered.
    pub fn is_empty(&self) -> bool {
        self.v4.all.is_empty() && self.v6.all.is_empty()
    }
}

impl FromIterator<IpAddr> for PrefixSet {
    /// A set of single addresses.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Self::new(addresses.into_iter().map(IpNet::from))
    }
}

impl<N: Copy + Ord + From<u8> + Not<Output = N>> Ranges<N> {
    /// Sorts the ranges, and merges those that overlap.
    fn new(mut ranges: Vec<(N, N)>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let overlap = next.0 <= kept.1;
            if overlap {
                kept.1 = kept.1.max(next.1);
            }
            overlap
        });
        let zero = N::from(0);
        Self {
            first: ranges.first().map_or(!zero, |range| range.0),
            last: ranges.last().map_or(zero, |range| range.1),
            all: ranges.into_boxed_slice(),
        }
    }
}

impl<N: Copy + Ord + From<u8> + Not<Output = N>> Default for Ranges<N> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<N: Copy + Ord> Ranges<N> {
    #[inline(always)]
    fn cover(&self, number: N) -> bool {
        self.first <= number && number <= self.last && (self.all.len() == 1 || self.search(number))
    }

    #[cold]
    #[inline(never)]
    fn search(&self, number: N) -> bool {
        let after = self.all.partition_point(|&(first, _)| first <= number);
        (self.all[..after].last()).is_some_and(|&(_, last)| number <= last)
    }
}

impl<N> Deref for Ranges<N> {
    type Target = [(N, N)];

    fn deref(&self) -> &[(N, N)] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(prefixes: &[&str]) -> PrefixSet {
        PrefixSet::new(prefixes.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn covers_exactly_the_addresses_of_the_prefixes() {
        let set = set(&["192.0.2.16/28", "2001:db8::/64", "10.0.0.1/32"]);
        for inside in [
            "192.0.2.16",
            "192.0.2.31",
            "10.0.0.1",
            "2001:db8::",
            "2001:db8::ffff:ffff:ffff:ffff",
        ] {
            assert!(set.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "192.0.2.15",
            "192.0.2.32",
            "10.0.0.0",
            "10.0.0.2",
            "2001:db8:0:1::",
            "::",
            "255.255.255.255",
        ] {
            assert!(!set.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(PrefixSet::default().is_empty());
        assert!(!PrefixSet::default().contains("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn prefixes_of_length_0_cover_every_address() {
        let set = set(&["0.0.0.0/0", "::/0"]);
        for address in ["0.0.0.0", "255.255.255.255", "::", "ffff::ffff"] {
            assert!(set.contains(address.parse().unwrap()), "{address}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_asking_each_prefix(
            prefixes in proptest::collection::vec((0u32..1024, 22u8..=32), 0..40),
            addresses in proptest::collection::vec(0u32..1100, 40),
        ) {
            let nets: Vec<IpNet> = prefixes
                .iter()
                .map(|&(bits, length)| IpNet::new(std::net::Ipv4Addr::from(bits).into(), length).unwrap())
                .collect();
            let set = PrefixSet::new(nets.iter().copied());
            for bits in addresses {
                let address = IpAddr::from(std::net::Ipv4Addr::from(bits));
                prop_assert_eq!(set.contains(address), nets.iter().any(|net| net.contains(&address)));
            }
        }
    }
}
