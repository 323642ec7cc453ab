//! The packets of one IP version in a batch, between the stages.

use super::super::cell::{Counts, Direction};
use super::super::filter::PacketFields;
use super::super::places::Address;
use super::super::places::Tree;
use zeroize::{DefaultIsZeroes, Zeroize};

/// Packets that are staged together: their scratch fits into the L1 cache.
pub(super) const STAGED: usize = 64;

/// Parsed properties of packets, and their remote addresses.
pub(super) struct Lane<A> {
    remotes: [A; STAGED],
    /// During a look-up the node numbers in the tree, which reveal as much as an address; then the
    /// numbers of places.
    places: [u32; STAGED],
    bytes: [u32; STAGED],
    ports: [u16; STAGED],
    flows: [bool; STAGED],
    is_down: [bool; STAGED],
    pub(super) len: usize,
}

impl<A: DefaultIsZeroes> Default for Lane<A> {
    fn default() -> Self {
        Self {
            remotes: [A::default(); STAGED],
            places: [0; STAGED],
            bytes: [0; STAGED],
            ports: [0; STAGED],
            flows: [false; STAGED],
            is_down: [false; STAGED],
            len: 0,
        }
    }
}

impl<A: DefaultIsZeroes> Lane<A> {
    /// Adds a packet; there are at most [`STAGED`].
    #[inline(always)]
    pub(super) fn put(&mut self, fields: PacketFields<A>) {
        let at = self.len % STAGED;
        self.remotes[at] = fields.remote;
        self.bytes[at] = fields.bytes;
        self.ports[at] = fields.port;
        self.flows[at] = fields.flow == Some(true);
        self.is_down[at] = fields.direction == Direction::Down;
        self.len = at + 1;
    }

    #[inline]
    pub(super) fn counts(&self, index: usize) -> Counts {
        let bytes = self.bytes[index].into();
        match self.is_down[index] {
            false => Counts {
                flows: self.flows[index].into(),
                bytes,
                packets: 1,
                ..Counts::default()
            },
            true => Counts {
                down_bytes: bytes,
                down_packets: 1,
                ..Counts::default()
            },
        }
    }

    /// Each packet's port and place number.
    #[inline]
    pub(super) fn found(&self) -> impl Iterator<Item = (u16, u32)> {
        let found = self.ports.iter().zip(&self.places);
        found.take(self.len).map(|(port, place)| (*port, *place))
    }

    /// Removes the packets and wipes their addresses.
    #[inline]
    pub(super) fn wipe(&mut self) {
        self.remotes[..self.len].zeroize();
        self.len = 0;
    }
}

impl<A: Address + DefaultIsZeroes> Lane<A> {
    #[inline]
    pub(super) fn look_up<const NODE: usize, const LEAF: usize>(
        &mut self,
        tree: &Tree<A, NODE, LEAF>,
    ) {
        let len = self.len;
        tree.find(&self.remotes[..len], &mut self.places[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u16) -> PacketFields<u32> {
        PacketFields {
            direction: Direction::Up,
            remote: u32::from(number),
            port: number,
            bytes: 2 * u32::from(number),
            flow: Some(number % 2 == 1),
        }
    }

    #[test]
    fn packets_are_kept_in_order_until_they_are_wiped() {
        let mut lane = Lane::<u32>::default();
        let all = u16::try_from(STAGED).unwrap();
        for number in 1..=all {
            lane.put(part(number));
            assert_eq!(lane.len, usize::from(number));
        }
        for (index, number) in (1..=all).enumerate() {
            let number = u64::from(number);
            assert_eq!(lane.counts(index), [number % 2, 2 * number, 1].into());
        }
        assert!(lane.found().map(|(port, _)| port).eq(1..=all));
        lane.wipe();
        assert_eq!((lane.len, lane.found().count()), (0, 0));
        assert_eq!(lane.remotes, [0; STAGED]);
    }

    #[test]
    fn a_packet_down_has_no_flow() {
        let mut lane = Lane::<u32>::default();
        lane.put(PacketFields {
            direction: Direction::Down,
            ..part(7)
        });
        lane.put(part(7));
        assert_eq!(lane.counts(0), [0, 0, 0, 14, 1].into());
        assert_eq!(lane.counts(1), [1, 14, 1].into());
    }

    #[test]
    fn a_packet_without_flags_begins_no_flow() {
        let mut lane = Lane::<u32>::default();
        lane.put(PacketFields {
            flow: None,
            ..part(1)
        });
        assert_eq!(lane.counts(0).flows, 0);
    }
}
