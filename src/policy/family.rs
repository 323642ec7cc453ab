//! Selects the part of a set that belongs to an address family, at compile time.

use super::endpoint::{EndpointTable, TableKey, halves};
use super::groups::ByFamily;
use super::owners::Owner;
use super::prefix::Ranges;
use super::range_map::{Number, RangeMap};
use super::translation::{ByDirection, Translated};
use super::{EndpointSet, PrefixSet};
use crate::packet::Address;

/// An address that can be searched in sets.
pub(super) trait Family: Address + Number {
    /// An endpoint of this family, as a key of a table.
    type Key: TableKey;

    fn key(self, port: u16) -> Self::Key;
    fn table(set: &EndpointSet) -> &EndpointTable<Self::Key>;
    fn ranges(set: &PrefixSet) -> &Ranges<Self>;
    fn owners(of: &ByFamily) -> &RangeMap<Self, Owner>;
    fn translations(of: &ByDirection) -> &RangeMap<Self, Translated<Self>>;
}

impl Family for u32 {
    type Key = u64;

    #[inline]
    fn key(self, port: u16) -> u64 {
        u64::from(self) << 16 | u64::from(port)
    }

    #[inline]
    fn table(set: &EndpointSet) -> &EndpointTable<u64> {
        set.v4()
    }

    #[inline]
    fn ranges(set: &PrefixSet) -> &Ranges<Self> {
        set.v4()
    }

    #[inline]
    fn owners(of: &ByFamily) -> &RangeMap<Self, Owner> {
        &of.v4
    }

    #[inline]
    fn translations(of: &ByDirection) -> &RangeMap<Self, Translated<Self>> {
        &of.v4
    }
}

impl Family for u128 {
    type Key = [u64; 3];

    #[inline]
    fn key(self, port: u16) -> [u64; 3] {
        let [high, low] = halves(self);
        [high, low, u64::from(port)]
    }

    #[inline]
    fn table(set: &EndpointSet) -> &EndpointTable<[u64; 3]> {
        set.v6()
    }

    #[inline]
    fn ranges(set: &PrefixSet) -> &Ranges<Self> {
        set.v6()
    }

    #[inline]
    fn owners(of: &ByFamily) -> &RangeMap<Self, Owner> {
        &of.v6
    }

    #[inline]
    fn translations(of: &ByDirection) -> &RangeMap<Self, Translated<Self>> {
        &of.v6
    }
}
