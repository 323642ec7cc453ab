//! Ranges that cover all addresses of an IP version. Every database is first converted to them.

use super::super::cell::{Country, Place};
use std::fmt;

/// An IPv4 or IPv6 address as a number.
pub(in super::super) trait Address: Copy + Default + Ord {
    /// The part of an address that selects a range, or ranges, of a tree.
    type Key: Copy + Ord + fmt::Debug;

    const MIN: Self;
    const MAX: Self;
    const LAST_KEY: Self::Key;

    fn key(self) -> Self::Key;
    fn key_before(key: Self::Key) -> Option<Self::Key>;
    /// Whether it is the last address with its key.
    fn is_last_of_key(self) -> bool;
    fn next(self) -> Option<Self>;
    fn before(self) -> Option<Self>;
}

macro_rules! address {
    ($($number:ty: $key:ty),*) => {$(
        impl Address for $number {
            type Key = $key;

            const MIN: Self = <$number>::MIN;
            const MAX: Self = <$number>::MAX;
            const LAST_KEY: $key = <$key>::MAX;

            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, reason = "the upper bits remain")]
            fn key(self) -> $key {
                (self >> (<$number>::BITS - <$key>::BITS)) as $key
            }

            fn key_before(key: $key) -> Option<$key> {
                key.checked_sub(1)
            }

            fn is_last_of_key(self) -> bool {
                self.next().is_none_or(|next| next.key() != self.key())
            }

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn before(self) -> Option<Self> {
                self.checked_sub(1)
            }
        }
    )*};
}

// An IPv6 range seldom ends within a /64.
address!(u32: u32, u128: u64);

/// Ranges of a database at most, after merging neighbours of equal value. Bounds the memory that a
/// file can consume; current databases have half a million.
pub(super) const MAX_RANGES: usize = 1 << 22;

/// The last address of each range, in order, with its value. Neighbours have different values.
/// Gaps, and addresses behind the last range, have the default value: unknown.
#[derive(Debug, Default)]
pub(super) struct Cover<A, V> {
    ends: Vec<A>,
    values: Vec<V>,
}

/// Why a range cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It begins within or before the last range, or ends before it begins.
    NotInOrder,
    /// [`MAX_RANGES`] is reached.
    TooMany,
}

impl<A: Address, V: Copy + Default + PartialEq> Cover<A, V> {
    /// Reserves room for this many ranges, so that growing leaves no freed memory behind.
    pub(super) fn with_room(ranges: usize) -> Self {
        let ranges = ranges.min(MAX_RANGES);
        Self {
            ends: Vec::with_capacity(ranges),
            values: Vec::with_capacity(ranges),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn is_any_known(&self) -> bool {
        self.values.iter().any(|value| *value != V::default())
    }

    /// Adds a range behind the last one.
    pub(super) fn push(&mut self, start: A, end: A, value: V) -> Result<(), Refused> {
        let free = match self.ends.last() {
            Some(last) => last.next().ok_or(Refused::NotInOrder)?,
            None => A::MIN,
        };
        if start < free || end < start {
            return Err(Refused::NotInOrder);
        }
        if let Some(gap_end) = start.before().filter(|gap_end| *gap_end >= free) {
            self.append(gap_end, V::default())?;
        }
        self.append(end, value)
    }

    fn append(&mut self, end: A, value: V) -> Result<(), Refused> {
        let is_full = self.ends.len() >= MAX_RANGES;
        match (self.ends.last_mut(), self.values.last()) {
            (Some(last), Some(same)) if *same == value => *last = end,
            _ if is_full => return Err(Refused::TooMany),
            _ => {
                self.ends.push(end);
                self.values.push(value);
            }
        }
        Ok(())
    }

    /// All ranges, up to the last address.
    fn into_ranges(self) -> impl Iterator<Item = (A, V)> {
        let rest = self.ends.last() != Some(&A::MAX);
        self.ends
            .into_iter()
            .zip(self.values)
            .chain(rest.then_some((A::MAX, V::default())))
    }
}

/// Intersects both covers; each range gets the number of its place. The last range ends with the
/// last address.
pub(super) fn join<A: Address>(
    countries: Cover<A, Country>,
    systems: Cover<A, u32>,
    mut number: impl FnMut(Place) -> u32,
) -> (Vec<A>, Vec<u32>) {
    let most = countries.ends.len() + systems.ends.len() + 1;
    let (mut ends, mut numbers) = (Vec::with_capacity(most), Vec::<u32>::with_capacity(most));
    let (mut countries, mut systems) = (countries.into_ranges(), systems.into_ranges());
    let (mut one, mut other) = (countries.next(), systems.next());
    while let (Some((country_end, country)), Some((system_end, asn))) = (one, other) {
        let end = country_end.min(system_end);
        let number = number(Place { country, asn });
        match (ends.last_mut(), numbers.last()) {
            (Some(last), Some(same)) if *same == number => *last = end,
            _ => {
                ends.push(end);
                numbers.push(number);
            }
        }
        if country_end == end {
            one = countries.next();
        }
        if system_end == end {
            other = systems.next();
        }
    }
    (ends, numbers)
}
