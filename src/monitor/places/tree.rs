//! From an address to the number of its range's value: a tree without pointers.
//!
//! Every node is one or two cache lines of range ends; how many of them are below the address says
//! which node of the next level is the one, without a branch that could be mispredicted. All
//! levels but the last are so small that they stay in the cache. A batch goes down level by level,
//! so that its misses overlap.

use super::cover::Address;

/// A level with no more nodes than this stays in the cache by itself.
const IN_CACHE: usize = 4096;

/// Ranges that cover all addresses, with `FANOUT` ends in a node.
#[derive(Debug)]
pub(in super::super) struct Tree<A, const FANOUT: usize> {
    /// From the top, which is one node, to all range ends. A node is filled up with the last
    /// address there is, which is below no address, and so never counted.
    levels: Vec<Vec<[A; FANOUT]>>,
    values: Vec<u32>,
}

impl<A: Address, const FANOUT: usize> Tree<A, FANOUT> {
    /// Of range ends in order, the last of which is the last address, and their values.
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

    /// Finds the values of as many addresses as there is room for.
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

/// Touches the nodes that come next, none waiting for another: when they are compared, they are in
/// the cache.
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
