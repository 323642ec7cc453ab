//! Look-up of an address's range: a search tree without pointers.
//!
//! A node is one cache line. The number of range ends below the address selects the node of the
//! next level, without branches. A leaf has ends and values, so that it is the only line of a
//! look-up that is not in the cache: all levels above stay there. A batch descends level by level,
//! so that its cache misses overlap.
//!
//! Of an IPv6 address, the tree has the upper half only. Few ranges end within a /64; their
//! addresses are looked up once more.

use super::super::prefetch::prefetch;
use super::cover::Address;

/// Levels of at most this many nodes are not prefetched: they stay in the cache.
const IN_CACHE: usize = 512;

/// Instead of a value: ranges end within this key. There are at most 2²¹ values.
const DIVIDED: u32 = 1 << 31;

/// A node, or the ends of a leaf.
type Ends<K, const N: usize> = [K; N];

/// A cache line of range ends above the leaves.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Node<K, const N: usize>(Ends<K, N>);

/// A cache line of ranges.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Leaf<K, const N: usize> {
    ends: Ends<K, N>,
    values: [u32; N],
}

/// A search tree over ranges that cover all addresses, with `NODE` ends in a node, a power of two,
/// and `LEAF` ranges in a leaf.
#[derive(Debug)]
pub(in super::super) struct Tree<A: Address, const NODE: usize, const LEAF: usize> {
    /// From the root down. Nodes and leaves are padded with the last key, which is below no key and
    /// so never counted.
    levels: Vec<Vec<Node<A::Key, NODE>>>,
    leaves: Vec<Leaf<A::Key, LEAF>>,
    /// The ranges within divided keys, and the first one that reaches beyond each: ends, and values.
    divided: Divided<A>,
    ranges: usize,
}

impl<A: Address, const NODE: usize, const LEAF: usize> Tree<A, NODE, LEAF> {
    /// Takes the range ends, in order up to the last address, and their values.
    pub(super) fn new((mut ends, mut values): (Vec<A>, Vec<u32>)) -> Self {
        let ranges = values.len();
        // Key 0 is always divided: so the zeroed addresses of `Counter::rinse` reach
        // `find_divided`, and overwrite what it left in registers and on the stack.
        if !A::MIN.is_last_of_key() && ends[0] != A::MIN {
            ends.insert(0, A::MIN);
            values.insert(0, values[0]);
        }
        let (keys, values, divided) = by_key(ends, values);
        let leaves = keys.chunks(LEAF).zip(values.chunks(LEAF));
        let leaves: Vec<_> = leaves.map(leaf::<A, LEAF>).collect();
        let mut lasts: Vec<_> = leaves.iter().map(|leaf| leaf.ends[LEAF - 1]).collect();
        let mut levels = Vec::new();
        while lasts.len() > 1 {
            let level: Vec<_> = lasts.chunks(NODE).map(node::<A, NODE>).collect();
            lasts = level.iter().map(|node| node.0[NODE - 1]).collect();
            levels.push(level);
        }
        levels.reverse();
        Self {
            levels,
            leaves,
            divided,
            ranges,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.ranges
    }

    /// Finds the values of a batch of addresses.
    #[inline]
    pub(in super::super) fn find(&self, addresses: &[A], values: &mut [u32]) {
        values.fill(0);
        for (level, next) in self.levels.iter().zip(1..) {
            let below = self.levels.get(next);
            let fetched = below.filter(|nodes| nodes.len() > IN_CACHE);
            for (address, at) in addresses.iter().zip(&mut *values) {
                let node = &level[*at as usize];
                *at = *at * number(NODE) + number(ends_below(&node.0, address.key()));
                match below {
                    None => prefetch(&self.leaves[*at as usize]),
                    Some(_) => {
                        if let Some(nodes) = fetched {
                            prefetch(&nodes[*at as usize]);
                        }
                    }
                }
            }
        }
        let mut any = 0;
        for (address, at) in addresses.iter().zip(&mut *values) {
            let leaf = &self.leaves[*at as usize];
            *at = leaf.values[ends_below(&leaf.ends, address.key())];
            any |= *at;
        }
        if any & DIVIDED != 0 {
            self.find_divided(addresses, values);
        }
    }

    #[cold]
    #[inline(never)]
    fn find_divided(&self, addresses: &[A], values: &mut [u32]) {
        let (ends, divided) = &self.divided;
        let pairs = addresses.iter().zip(values);
        for (address, value) in pairs.filter(|(_, value)| **value == DIVIDED) {
            let at = ends.partition_point(|end| end < address);
            *value = divided.get(at).copied().unwrap_or(0);
        }
    }
}

/// Counts the ends that are below the key; fewer than all are.
#[inline(always)]
fn ends_below<K: Copy + Ord, const N: usize>(ends: &Ends<K, N>, key: K) -> usize {
    if !N.is_power_of_two() {
        let below = ends[..N - 1].iter().map(|end| usize::from(*end < key));
        return below.sum();
    }
    let (mut below, mut step) = (0, N / 2);
    while step > 0 {
        below += step * usize::from(ends[(below + step - 1) % N] < key);
        step /= 2;
    }
    below
}

/// Ranges within keys: ends and values.
type Divided<A> = (Vec<A>, Vec<u32>);

/// The last key of each range and its value, and the ranges of divided keys.
fn by_key<A: Address>(ends: Vec<A>, values: Vec<u32>) -> (Vec<A::Key>, Vec<u32>, Divided<A>) {
    let mut keys: Vec<A::Key> = Vec::with_capacity(ends.len());
    let mut found = Vec::with_capacity(ends.len());
    let mut divided: Divided<A> = Default::default();
    // Whether the last key is divided and its last range is still to come.
    let mut is_open = false;
    for (end, value) in ends.into_iter().zip(values) {
        let key = end.key();
        let (was_open, is_within) = (is_open, !end.is_last_of_key());
        is_open = is_within;
        if was_open || is_within {
            divided.0.push(end);
            divided.1.push(value);
        }
        if was_open && keys.last() == Some(&key) {
            continue;
        }
        if !is_within {
            keys.push(key);
            found.push(value);
            continue;
        }
        if let Some(before) = A::key_before(key)
            && keys.last().is_none_or(|last| *last < before)
        {
            keys.push(before);
            found.push(value);
        }
        keys.push(key);
        found.push(DIVIDED);
    }
    (keys, found, divided)
}

fn leaf<A: Address, const N: usize>((ends, values): (&[A::Key], &[u32])) -> Leaf<A::Key, N> {
    let mut leaf = Leaf {
        ends: [A::LAST_KEY; N],
        values: [0; N],
    };
    leaf.ends[..ends.len()].copy_from_slice(ends);
    leaf.values[..values.len()].copy_from_slice(values);
    leaf
}

fn node<A: Address, const N: usize>(ends: &[A::Key]) -> Node<A::Key, N> {
    let mut node = Node([A::LAST_KEY; N]);
    node.0[..ends.len()].copy_from_slice(ends);
    node
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a node has a handful of ends"
)]
const fn number(ends: usize) -> u32 {
    ends as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ranges of a tree, one address at a time.
    fn value<A: Address>(ends: &[A], address: A) -> u32 {
        let at = ends.partition_point(|end| *end < address);
        u32::try_from(at).unwrap() + 1
    }

    fn tree_of<A: Address, const NODE: usize, const LEAF: usize>(
        ends: &[A],
    ) -> Tree<A, NODE, LEAF> {
        let values = (1..).take(ends.len()).collect();
        Tree::new((ends.to_vec(), values))
    }

    fn check<A: Address + std::fmt::Debug, const NODE: usize, const LEAF: usize>(mut ends: Vec<A>) {
        ends.push(A::MAX);
        ends.sort_unstable();
        ends.dedup();
        let tree = tree_of::<A, NODE, LEAF>(&ends);
        assert_eq!(tree.len(), ends.len());
        let around = |end: &A| [end.before(), Some(*end), end.next()];
        let mut addresses: Vec<_> = ends.iter().flat_map(around).flatten().collect();
        addresses.push(A::MIN);
        let mut values = vec![0; addresses.len()];
        tree.find(&addresses, &mut values);
        for (address, found) in addresses.into_iter().zip(values) {
            assert_eq!(found, value(&ends, address), "{address:?} of {ends:?}");
        }
    }

    #[test]
    fn every_range_has_its_value_up_to_its_ends() {
        for number in [0, 1, 7, 8, 9, 127, 128, 129, 5000] {
            check::<u32, 16, 8>((0..number).map(|at| at * 77_777 + 3).collect());
            let ends = (0..u128::from(number)).map(|at| (at * 77_777 + 3) << 70 | u128::MAX >> 64);
            check::<u128, 8, 5>(ends.collect());
        }
    }

    #[test]
    fn ranges_within_the_lower_half_of_an_ipv6_address_have_their_values() {
        let mut random = 1_u64;
        for _ in 0..500 {
            let ends = (0..40).map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let [high, low, kind] = [random >> 60, random >> 50 & 7, random >> 40 & 3];
                let low = match kind {
                    0 => low,
                    1 => u64::MAX - low,
                    _ => u64::MAX,
                };
                u128::from(high) << 64 | u128::from(low)
            });
            check::<u128, 8, 5>(ends.collect());
        }
    }

    #[test]
    fn only_ranges_that_end_within_a_key_are_kept_apart() {
        let whole = |high: u128| high << 64 | u128::MAX >> 64;
        let tree = tree_of::<u128, 8, 5>(&[whole(3), 7 << 64, whole(9), u128::MAX]);
        let divided = (vec![0, whole(3), 7 << 64, whole(9)], vec![1, 1, 2, 3]);
        assert_eq!(tree.divided, divided, "and key 0");
        let tree = tree_of::<u32, 16, 8>(&[3, 7, u32::MAX]);
        assert_eq!(tree.divided, (vec![], vec![]));
    }

    #[test]
    fn a_zeroed_ipv6_address_is_always_in_a_divided_key() {
        for ends in [&[u128::MAX][..], &[0, u128::MAX], &[1, u128::MAX]] {
            let tree = tree_of::<u128, 8, 5>(ends);
            assert_eq!(tree.leaves[0].ends[0], 0, "{ends:?}");
            assert_eq!(tree.leaves[0].values[0], DIVIDED, "{ends:?}");
            assert_eq!(tree.len(), ends.len());
        }
    }

    #[test]
    fn a_node_and_a_leaf_are_a_cache_line() {
        assert_eq!(size_of::<Node<u32, 16>>(), 64);
        assert_eq!(size_of::<Leaf<u32, 8>>(), 64);
        assert_eq!(size_of::<Node<u64, 8>>(), 64);
        assert_eq!(size_of::<Leaf<u64, 5>>(), 64);
    }
}
