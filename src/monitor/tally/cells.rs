//! The table of cells: open addressing in one array, never resized.

use super::super::cell::{Cell, Counts, Place};
use super::super::prefetch::prefetch;
use super::hash::Hash;
use super::lane::{Lane, STAGED};
use exitmark_policy::packet::Version;
use zeroize::DefaultIsZeroes;

/// A cell's key packed into a number: place number, port, IP version. 0 is an empty slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackedKey(u64);

const USED: u64 = 1 << 63;
const IS_V6: u64 = 1 << 48;
const PORT: u32 = 32;

impl PackedKey {
    #[inline]
    pub(super) const fn new(port: u16, version: Version, place: u32) -> Self {
        let version = match version {
            Version::V4 => 0,
            Version::V6 => IS_V6,
        };
        Self(USED | version | (port as u64) << PORT | place as u64)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the number is taken apart")]
    pub(super) const fn port(self) -> u16 {
        (self.0 >> PORT) as u16
    }

    #[allow(clippy::cast_possible_truncation, reason = "the number is taken apart")]
    pub(super) const fn place(self) -> u32 {
        self.0 as u32
    }

    pub(super) const fn version(self) -> Version {
        if self.0 & IS_V6 == 0 {
            Version::V4
        } else {
            Version::V6
        }
    }

    pub(super) fn cell(self, place: impl Fn(u32) -> Place) -> Cell {
        Cell {
            port: self.port(),
            place: place(self.place()),
            version: self.version(),
        }
    }
}

/// A key, flows, and what went up; half a cache line. Plain integers: a zeroed table is allocated
/// without touching its pages.
type Slot = [u64; 4];

/// What came down: bytes and packets.
type Down = [u64; 2];

const fn slot_of(key: PackedKey, counts: Counts) -> Slot {
    [key.0, counts.flows, counts.bytes, counts.packets]
}

const fn counts_of(slot: &Slot, down: Down) -> Counts {
    let [_, flows, bytes, packets] = *slot;
    let [down_bytes, down_packets] = down;
    Counts {
        flows,
        bytes,
        packets,
        down_bytes,
        down_packets,
    }
}

/// The table. At most half of the slots are used, which keeps probe sequences short.
pub(super) struct Cells {
    slots: Vec<Slot>,
    /// By slot; empty until a packet comes down, so that counting one direction does not pay for
    /// two.
    down: Vec<Down>,
    hash: Hash,
    pub(super) used: usize,
    pub(super) capacity: usize,
    /// Used cells without a connection,
    unopened: usize,
    /// and how many there may be.
    max_unopened: usize,
}

impl Cells {
    pub(super) fn new(capacity: usize, max_unopened: usize) -> Self {
        Self {
            slots: vec![[0; 4]; (capacity * 2).next_power_of_two()],
            down: Vec::new(),
            hash: Hash::new(),
            used: 0,
            capacity,
            unopened: 0,
            max_unopened,
        }
    }

    /// The first slot to probe for a key.
    #[inline]
    pub(super) fn slot(&self, key: PackedKey) -> usize {
        self.hash.of(key.0) as usize & (self.slots.len() - 1)
    }

    /// The keys of packets and their first slots, which are prefetched.
    #[inline]
    pub(super) fn locate<A: DefaultIsZeroes>(
        &self,
        lane: &Lane<A>,
        version: Version,
    ) -> ([PackedKey; STAGED], [usize; STAGED]) {
        let (mut keys, mut slots) = ([PackedKey::default(); STAGED], [0; STAGED]);
        for ((port, place), (key, slot)) in lane.found().zip(keys.iter_mut().zip(&mut slots)) {
            *key = PackedKey::new(port, version, place);
            *slot = self.slot(*key);
            prefetch(&self.slots[*slot]);
            if let Some(down) = self.down.get(*slot) {
                prefetch(down);
            }
        }
        (keys, slots)
    }

    /// Adds to a cell, probing from `slot` on; false if the cell is new and the table is full. Cells
    /// without a connection have their own, smaller limit.
    #[inline]
    pub(super) fn add(&mut self, key: PackedKey, slot: usize, counts: Counts) -> bool {
        let mask = self.slots.len() - 1;
        let mut at = slot & mask;
        loop {
            let found = &mut self.slots[at];
            if found[0] == key.0 {
                let mut sum = counts_of(found, [0; 2]);
                self.unopened -= usize::from(sum.flows == 0 && counts.flows > 0);
                sum += counts;
                *found = slot_of(key, sum);
                self.add_down(at, counts);
                return true;
            }
            if found[0] == 0 {
                let is_unopened = counts.flows == 0;
                if self.used == self.capacity || is_unopened && self.unopened == self.max_unopened {
                    return false;
                }
                self.used += 1;
                self.unopened += usize::from(is_unopened);
                *found = slot_of(key, counts);
                self.add_down(at, counts);
                return true;
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn add_down(&mut self, at: usize, counts: Counts) {
        if counts.down_packets == 0 {
            return;
        }
        if self.down.is_empty() {
            self.down.resize(self.slots.len(), [0; 2]);
        }
        let [bytes, packets] = &mut self.down[at];
        *bytes = bytes.saturating_add(counts.down_bytes);
        *packets = packets.saturating_add(counts.down_packets);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PackedKey, Counts)> {
        let used = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot[0] != 0);
        used.map(|(at, slot)| {
            let down = self.down.get(at).copied().unwrap_or_default();
            (PackedKey(slot[0]), counts_of(slot, down))
        })
    }

    pub(super) fn clear(&mut self) {
        if self.used > 0 {
            self.slots.fill([0; 4]);
            self.down.fill([0; 2]);
            (self.used, self.unopened) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::cell::Direction;
    use super::*;

    fn key(port: u16) -> PackedKey {
        PackedKey::new(port, Version::V4, 7)
    }

    fn counts(flows: u64) -> Counts {
        [flows, 100 + flows, 10 + flows].into()
    }

    #[test]
    fn memory_for_what_comes_down_is_allocated_when_something_does() {
        let mut cells = Cells::new(4, 4);
        assert!(cells.add(key(1), 0, counts(1)));
        assert!(cells.down.is_empty());
        let down = |bytes| Counts {
            down_bytes: bytes,
            down_packets: 1,
            ..Counts::default()
        };
        // Of a known cell, and of two new ones behind it.
        for (port, bytes) in [(1, 7), (1, 8), (2, 9), (3, u64::MAX), (3, 1)] {
            assert!(cells.add(key(port), 0, down(bytes)));
        }
        let found: Vec<_> = cells
            .iter()
            .map(|(key, counts)| (key.port(), counts))
            .collect();
        let sums = [
            (1, [1, 101, 11, 15, 2].into()),
            (2, [0, 0, 0, 9, 1].into()),
            (3, [0, 0, 0, u64::MAX, 2].into()),
        ];
        assert_eq!(found, sums);
        assert_eq!(cells.unopened, 2);
        cells.clear();
        assert!(cells.add(key(1), 0, counts(0)));
        let found: Vec<_> = cells.iter().map(|(_, counts)| counts).collect();
        assert_eq!(found, [counts(0)]);
    }

    #[test]
    fn a_key_keeps_its_parts_apart_and_is_never_none() {
        for version in [Version::V4, Version::V6] {
            for port in [0, 1, 443, u16::MAX] {
                for place in [0, 1, 1 << 20, u32::MAX] {
                    let key = PackedKey::new(port, version, place);
                    let parts = (key.port(), key.version(), key.place());
                    assert_eq!(parts, (port, version, place));
                    assert_ne!(key, PackedKey::default());
                    let cell = key.cell(|number| Place {
                        asn: number,
                        ..Place::UNKNOWN
                    });
                    assert_eq!((cell.port, cell.version, cell.place.asn), parts);
                }
            }
        }
    }

    #[test]
    fn cells_without_a_connection_have_their_own_limit() {
        let mut cells = Cells::new(3, 1);
        assert_eq!((cells.used, cells.capacity), (0, 3));
        let mut add = |port, flows| {
            let slot = cells.slot(key(port));
            cells.add(key(port), slot, counts(flows))
        };
        assert!(add(1, 0));
        assert!(!add(2, 0), "one without a connection is all");
        assert!(add(1, 1), "it is opened");
        assert!(add(1, 1), "and open");
        assert!(add(2, 0), "so there is room again");
        assert!(!add(3, 0));
        assert!(add(3, 1));
        assert!(!add(4, 1), "three are all");
        assert!(add(3, 0), "what is there is counted");
        assert_eq!(cells.used, 3);

        let found = cells.iter().map(|(key, counts)| (key.port(), counts));
        let mut found: Vec<_> = found.collect();
        found.sort_unstable_by_key(|(port, _)| *port);
        let first = [0, 1, 1].map(counts).into_iter().sum();
        let third = [1, 0].map(counts).into_iter().sum();
        assert_eq!(found, [(1, first), (2, counts(0)), (3, third)]);

        cells.clear();
        assert_eq!((cells.used, cells.iter().count()), (0, 0));
        let slot = cells.slot(key(9));
        let is_added = cells.add(key(9), slot, counts(0));
        assert!(is_added, "none is without a connection any more");
    }

    #[test]
    fn probing_wraps_around_after_the_last_slot() {
        let mut cells = Cells::new(4, 4);
        assert_eq!(cells.slots.len(), 8);
        for port in 1..=3 {
            for _ in 0..2 {
                // Bits beyond the mask are ignored.
                assert!(cells.add(key(port), 8 + 7, counts(1)));
            }
        }
        let at = |slot: usize| PackedKey(cells.slots[slot][0]).port();
        assert_eq!([at(7), at(0), at(1)], [1, 2, 3]);
        assert_eq!(cells.used, 3);
    }

    #[test]
    fn no_more_than_half_of_the_slots_are_used() {
        for (capacity, slots) in [(1, 2), (2, 4), (3, 8), (4, 8), (5, 16)] {
            assert_eq!(Cells::new(capacity, 0).slots.len(), slots, "{capacity}");
        }
    }

    #[test]
    fn locate_finds_the_first_slots_of_packets() {
        let cells = Cells::new(1000, 0);
        let mut lane = Lane::<u32>::default();
        for port in [443, 80] {
            lane.put(crate::filter::PacketFields {
                direction: Direction::Up,
                remote: 1,
                port,
                bytes: 40,
                flow: None,
            });
        }
        let (keys, slots) = cells.locate(&lane, Version::V6);
        let expected = [443, 80].map(|port| PackedKey::new(port, Version::V6, 0));
        assert_eq!(keys[..2], expected);
        assert_eq!(slots[..2], expected.map(|key| cells.slot(key)));
        assert!(keys[2..].iter().all(|key| *key == PackedKey::default()));
    }
}
