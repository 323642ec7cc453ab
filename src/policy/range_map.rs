//! What is known of each range of addresses, searched for every frame.
//!
//! The ranges are disjoint and sorted. A table of candidates in front of them finds nearly every
//! address in one step, however many ranges there are; a binary search finds the others. The XDP
//! program has the same table and the same ranges.

use super::endpoint::halves;

/// A number as wide as an address, in the order of addresses.
pub(super) trait Number: Copy + Ord {
    const ZERO: Self;
    const MAX: Self;

    fn words(self) -> [u64; 2];
    fn next(self) -> Option<Self>;
}

impl Number for u32 {
    const ZERO: Self = 0;
    const MAX: Self = Self::MAX;

    #[inline]
    fn words(self) -> [u64; 2] {
        [0, u64::from(self)]
    }

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Number for u128 {
    const ZERO: Self = 0;
    const MAX: Self = Self::MAX;

    #[inline]
    fn words(self) -> [u64; 2] {
        halves(self)
    }

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Consecutive addresses, both ends included, of which the same is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range<N, T> {
    pub(super) first: N,
    pub(super) last: N,
    pub(super) value: T,
}

impl<N: Ord, T> Range<N, T> {
    #[inline(always)]
    fn covers(&self, number: &N) -> bool {
        self.first <= *number && *number <= self.last
    }
}

/// The ranges of one IP version.
#[derive(Clone, Debug)]
pub(super) struct RangeMap<N, T> {
    /// The beginning of the first range and the end of the last one; the first is above the
    /// last if the map is empty.
    ends: (N, N),
    pub(super) ranges: Box<[Range<N, T>]>,
    /// The index of a range per hash of an address: it may be the one that covers the address. At
    /// least four.
    pub(super) candidates: Box<[u16]>,
    pub(super) hash: CandidateHash,
}

/// The index of an address' candidate: the masked halves of the address, each multiplied, summed
/// and shifted right.
#[derive(Clone, Copy, Debug)]
pub(super) struct CandidateHash {
    pub(super) masks: [u64; 2],
    pub(super) multipliers: [u64; 2],
    pub(super) shift: u32,
}

impl CandidateHash {
    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "after the shift, only the index is left"
    )]
    fn of(&self, [high, low]: [u64; 2]) -> usize {
        let high = (high & self.masks[0]).wrapping_mul(self.multipliers[0]);
        let low = (low & self.masks[1]).wrapping_mul(self.multipliers[1]);
        (high.wrapping_add(low) >> self.shift) as usize
    }
}

/// How many multipliers are tried for the fewest collisions.
const ATTEMPTS: u64 = 16;
/// 2^64 divided by the golden ratio, odd: steps through all numbers, well distributed.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl<N: Number, T: Copy> RangeMap<N, T> {
    /// Sorts the ranges. Where two overlap, the one that begins first keeps the addresses.
    pub(super) fn new(mut given: Vec<Range<N, T>>) -> Self {
        given.sort_by_key(|range| (range.first, std::cmp::Reverse(range.last)));
        let mut ranges: Vec<Range<N, T>> = Vec::with_capacity(given.len());
        for mut range in given {
            if let Some(before) = ranges.last_mut() {
                if range.last <= before.last {
                    continue;
                }
                if range.first <= before.last {
                    match before.last.next() {
                        Some(next) => range.first = next,
                        None => continue,
                    }
                }
            }
            ranges.push(range);
        }
        let ends = match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) => (first.first, last.last),
            _ => (N::MAX, N::ZERO),
        };
        let (hash, candidates) = Self::candidates(&ranges);
        Self {
            ends,
            ranges: ranges.into_boxed_slice(),
            candidates,
            hash,
        }
    }

    fn hash(attempt: u64, masks: [u64; 2], slots: usize) -> CandidateHash {
        let multiplier = |number: u64| GOLDEN.wrapping_mul(2 * number + 1) | 1;
        CandidateHash {
            masks,
            multipliers: [multiplier(2 * attempt + 1), multiplier(2 * attempt)],
            shift: u64::BITS - slots.trailing_zeros(),
        }
    }

    /// The table in which the most ranges are candidates for all of their addresses.
    fn candidates(ranges: &[Range<N, T>]) -> (CandidateHash, Box<[u16]>) {
        // Four slots a range: two ranges rarely share one.
        let slots = (4 * ranges.len()).next_power_of_two().max(4);
        let varying = ranges.iter().fold([0; 2], |[high, low], range| {
            let ([a, b], [c, d]) = (range.first.words(), range.last.words());
            [high | filled(a ^ c), low | filled(b ^ d)]
        });
        // By whole addresses, or by the bits that are the same within every range.
        let of_all = [[u64::MAX; 2], varying.map(|bits| !bits)];
        let of_masks = |masks| (0..ATTEMPTS).map(move |attempt| Self::hash(attempt, masks, slots));
        let mut best = (0, Self::hash(0, [u64::MAX; 2], slots), vec![0; slots]);
        for hash in of_all.into_iter().flat_map(of_masks) {
            let mut table = vec![None; slots];
            let mut direct = 0;
            for (index, range) in (0..).zip(ranges) {
                let slot = &mut table[hash.of(range.first.words())];
                if slot.is_none() {
                    *slot = Some(index);
                    let masked = |[a, b]: [u64; 2]| [a & hash.masks[0], b & hash.masks[1]];
                    let is_one = masked(range.first.words()) == masked(range.last.words());
                    direct += usize::from(is_one);
                }
            }
            if direct > best.0 {
                // A candidate is checked: for the free slots any will do.
                let table = table.into_iter().map(Option::unwrap_or_default);
                best = (direct, hash, table.collect());
            }
        }
        (best.1, best.2.into_boxed_slice())
    }

    /// What is known of an address, if it is in a range.
    #[inline(always)]
    pub(super) fn find(&self, number: N) -> Option<T> {
        if number < self.ends.0 || number > self.ends.1 {
            return None;
        }
        match &*self.ranges {
            [only] => Some(only.value),
            _ => self.find_among_several(number),
        }
    }

    #[inline(never)]
    fn find_among_several(&self, number: N) -> Option<T> {
        let candidate = self.candidates.get(self.hash.of(number.words()))?;
        let candidate = self.ranges.get(usize::from(*candidate))?;
        if candidate.covers(&number) {
            return Some(candidate.value);
        }
        let after = self.ranges.partition_point(|range| range.first <= number);
        let range = self.ranges[..after].last()?;
        (number <= range.last).then_some(range.value)
    }
}

/// All bits from the highest one that is set down to the lowest.
const fn filled(bits: u64) -> u64 {
    match bits {
        0 => 0,
        bits => u64::MAX >> bits.leading_zeros(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range<N>(first: N, last: N, value: u8) -> Range<N, u8> {
        Range { first, last, value }
    }

    #[test]
    fn no_range_and_one_range_are_searched_too() {
        let none = RangeMap::<u32, u8>::new(Vec::new());
        assert_eq!((none.find(0), none.find(u32::MAX)), (None, None));
        let all = RangeMap::new(vec![range(0_u128, u128::MAX, 3)]);
        assert_eq!(all.find(u128::MAX), Some(3));
    }

    /// The common layouts: a /24 of single addresses, and one /64 per host.
    #[test]
    fn single_addresses_and_equal_prefixes_are_their_own_candidates() {
        let v4 = (0..254).map(|at| range(0xc000_0201 + at, 0xc000_0201 + at, 0));
        let v6 = (0..64_u128).map(|at| {
            let first = 0x2001_0db8 << 96 | at << 64;
            range(first, first | u128::from(u64::MAX), 1)
        });
        let v4 = RangeMap::new(v4.collect());
        let v6 = RangeMap::new(v6.collect());
        let is_direct = |of: &RangeMap<u32, u8>, range: &Range<u32, u8>| {
            let index = of.candidates[of.hash.of(range.first.words())];
            of.ranges[usize::from(index)] == *range
        };
        let direct = v4.ranges.iter().filter(|range| is_direct(&v4, range));
        assert!(direct.count() >= 240, "of 254");
        let direct = v6.ranges.iter().filter(|range| {
            let middle = range.first | 0x1234_5678;
            let index = v6.candidates[v6.hash.of(middle.words())];
            v6.ranges[usize::from(index)] == **range
        });
        assert!(direct.count() >= 60, "of 64");
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_each_range(
            ranges in proptest::collection::vec((0_u32..3000, 0_u32..40, 0_u8..128), 0..60),
            wide in any::<bool>(),
        ) {
            let scale = if wide { 1 << 64 } else { 1_u128 };
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(first, more, number)| {
                    let (first, last) = (u128::from(first), u128::from(first + more));
                    range(first * scale, (last + 1) * scale - 1, number)
                })
                .collect();
            let map = RangeMap::new(ranges.clone());
            for at in 0..3100_u128 {
                let address = at * scale + (scale - 1) / 2;
                let found = map.find(address);
                let covering = ranges.iter().filter(|range| range.covers(&address));
                let mut expected = covering.map(|range| range.value).peekable();
                prop_assert_eq!(found.is_some(), expected.peek().is_some());
                prop_assert!(found.is_none_or(|found| expected.any(|value| value == found)));
            }
        }
    }
}
