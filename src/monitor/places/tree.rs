//! Look-up of an address's range: a search tree without pointers.
//!
//! A node is one or two cache lines of range ends; the number of ends below the address selects the
//! node of the next level, without branches. All levels but the last stay in the cache. A batch
//! descends level by level, so that its cache misses overlap.

use super::cover::Address;

/// Levels of at most this many nodes are not prefetched: they stay in the cache.
const IN_CACHE: usize = 4096;

/// A search tree over ranges that cover all addresses, with `FANOUT` ends in a node.
#[derive(Debug)]
pub(in super::super) struct Tree<A, const FANOUT: usize> {
    /// From the root to all range ends. Nodes are padded with the last address, which is below no
    /// address and so never counted.
    levels: Vec<Vec<[A; FANOUT]>>,
    values: Vec<u32>,
}

impl<A: Address, const FANOUT: usize> Tree<A, FANOUT> {
    /// Takes the range ends, in order up to the last address, and their values.
    pub(super) fn new((ends, values): (Vec<A>, Vec<u32>)) -> Self {
        let mut level = nodes(&ends);
        drop(ends);
        let mut levels = Vec::new();
        while level.len() > 1 {
            let lasts: Vec<A> = level.iter().map(|node| node[FANOUT - 1]).collect();
            levels.push(level);
            level = nodes(&lasts);
        }
        levels.push(level);
        levels.reverse();
        let mut values = values;
        values.shrink_to_fit();
        Self { levels, values }
    }

    pub(super) const fn len(&self) -> usize {
        self.values.len()
    }

    /// Finds the values of a batch of addresses.
    #[inline]
    pub(in super::super) fn find(&self, addresses: &[A], values: &mut [u32]) {
        values.fill(0);
        for level in &self.levels {
            if level.len() > IN_CACHE {
                fetch(level, values);
            }
            for (address, node) in addresses.iter().zip(&mut *values) {
                let below = level[*node as usize]
                    .iter()
                    .map(|end| u32::from(end < address));
                *node = *node * width::<FANOUT>() + below.sum::<u32>();
            }
        }
        for value in values {
            *value = self.values[*value as usize];
        }
    }
}

/// Loads the next nodes into the cache; the loads are independent of each other.
#[inline]
fn fetch<A: Address, const FANOUT: usize>(level: &[[A; FANOUT]], nodes: &[u32]) {
    let first = |node: &u32| level[*node as usize][0];
    let touched = nodes.iter().map(first).fold(A::MIN, A::max);
    std::hint::black_box(touched);
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a node has a handful of ends"
)]
const fn width<const FANOUT: usize>() -> u32 {
    FANOUT as u32
}

fn nodes<A: Address, const FANOUT: usize>(ends: &[A]) -> Vec<[A; FANOUT]> {
    let node = |ends: &[A]| {
        let mut node = [A::MAX; FANOUT];
        node[..ends.len()].copy_from_slice(ends);
        node
    };
    ends.chunks(FANOUT).map(node).collect()
}
