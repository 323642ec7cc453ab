//! Copies of exit frames for the tap.
//!
//! A writer, which is the XDP program on one CPU or a worker, puts the beginning of each frame into
//! a ring of its own. One thread, the [`TapSender`](crate::TapSender), takes the copies out, cuts them after their
//! headers, marks them, and sends them. So the frames themselves never wait for the tap: a full ring
//! loses copies, which are counted.

mod copy;

use super::Cells;
use super::contract::{
    TAP_FLAGS_AT, TAP_LENGTH_AT, TAP_MARK_AT, TAP_SLOTS, exitmark_tap, exitmark_tap_copy, index_of,
};
use exitmark_policy::packet::{Dscp, Ecn};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use copy::TapCopy;

/// How many bytes of a frame's beginning a copy has.
pub const TAP_BYTES: usize = super::contract::TAP_BYTES as usize;
/// The numbers of a ring.
pub(super) const RING_NUMBERS: usize = size_of::<exitmark_tap>() / size_of::<u64>();
/// The numbers of a copy: one about it, then its bytes.
const COPY_NUMBERS: usize = size_of::<exitmark_tap_copy>() / size_of::<u64>();
const SLOTS: u64 = TAP_SLOTS as u64;
/// The numbers of all copies of a ring.
const SLOTS_NUMBERS: usize = TAP_SLOTS as usize * COPY_NUMBERS;

/// Which frame a copy is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Of a host.
    Out,
    /// An answer to a host.
    In,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Out, Self::In];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// A ring of copies with one writer and one reader, `struct exitmark_tap`.
#[derive(Clone, Debug)]
pub struct TapRing {
    cells: Arc<Cells>,
    first: usize,
}

impl TapRing {
    /// A ring in this process' own memory.
    pub fn own() -> Self {
        Self::over(Arc::new(Cells::own(RING_NUMBERS)), 0)
    }

    /// The ring with this number, in cells that begin with those of ring 0.
    pub(super) const fn over(cells: Arc<Cells>, number: usize) -> Self {
        Self {
            cells,
            first: number * RING_NUMBERS,
        }
    }

    /// The cells of the copy with this number.
    fn slot(&self, number: u64) -> &[std::sync::atomic::AtomicU64] {
        // Below SLOTS, which is a small constant.
        let slot = usize::try_from(number % SLOTS).unwrap_or(0);
        let at = self.first + index_of!(exitmark_tap, copies) + slot * COPY_NUMBERS;
        &self.cells[at..at + COPY_NUMBERS]
    }

    /// Writes a copy of the beginning of a frame of `frame_bytes` bytes. `flags` are those of the
    /// header file. Returns false if the ring is full. Only its writer may call this.
    pub(super) fn push(&self, frame: &[u8], frame_bytes: usize, flags: u32, mark: Dscp) -> bool {
        let written = &self.cells[self.first + index_of!(exitmark_tap, written)];
        let read = &self.cells[self.first + index_of!(exitmark_tap, read)];
        let number = written.load(Ordering::Relaxed);
        // Acquire: the reader has read the copy that is overwritten.
        if number.wrapping_sub(read.load(Ordering::Acquire)) >= SLOTS {
            return false;
        }
        let bytes = &frame[..frame.len().min(TAP_BYTES)];
        let [about, words @ ..] = self.slot(number) else {
            return false;
        };
        let about_it = (frame_bytes as u64) << TAP_LENGTH_AT
            | u64::from(flags) << TAP_FLAGS_AT
            | u64::from(mark.with_ecn(Ecn::of(0))) << TAP_MARK_AT
            | bytes.len() as u64;
        about.store(about_it, Ordering::Relaxed);
        for (word, part) in words.iter().zip(bytes.chunks(size_of::<u64>())) {
            let mut whole = [0; size_of::<u64>()];
            whole[..part.len()].copy_from_slice(part);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        written.store(number.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes the oldest copy out, and erases it from the ring: it has addresses. Returns `None` if
    /// the ring is empty. Only its reader may call this.
    pub fn take(&self) -> Option<TapCopy> {
        let written = &self.cells[self.first + index_of!(exitmark_tap, written)];
        let read = &self.cells[self.first + index_of!(exitmark_tap, read)];
        let number = read.load(Ordering::Relaxed);
        if written.load(Ordering::Acquire) == number {
            return None;
        }
        let [about, words @ ..] = self.slot(number) else {
            return None;
        };
        let mut copy = TapCopy::of(about.load(Ordering::Relaxed));
        let parts = copy.whole().chunks_exact_mut(size_of::<u64>());
        for (part, word) in parts.zip(words) {
            part.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            word.store(0, Ordering::Relaxed);
        }
        read.store(number.wrapping_add(1), Ordering::Release);
        Some(copy)
    }

    /// How many copies can be taken out. Only its reader may call this.
    pub(super) fn held(&self) -> u64 {
        let written = &self.cells[self.first + index_of!(exitmark_tap, written)];
        let read = &self.cells[self.first + index_of!(exitmark_tap, read)];
        let number = written.load(Ordering::Acquire);
        number.wrapping_sub(read.load(Ordering::Relaxed))
    }

    /// Makes the ring look full, so that its writer copies no more frames: without a reader, their
    /// addresses would stay in it. Returns how many copies are lost with it. Only its reader may call
    /// this, as the last.
    pub(super) fn close(&self) -> u64 {
        let read = &self.cells[self.first + index_of!(exitmark_tap, read)];
        let lost = self.held();
        let number = read.load(Ordering::Relaxed).wrapping_add(lost);
        read.store(number.wrapping_sub(SLOTS), Ordering::Release);
        for cell in &self.cells[self.first + index_of!(exitmark_tap, copies)..][..SLOTS_NUMBERS] {
            cell.store(0, Ordering::Relaxed);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{TAP_IN, TAP_OUT};
    use super::*;

    #[test]
    fn a_ring_returns_what_was_written_in_order_and_loses_what_has_no_room() {
        let ring = TapRing::own();
        assert!(ring.take().is_none());
        for round in 0..3_u64 {
            for number in 0..SLOTS {
                let frame = [(round * 7 + number).to_be_bytes(); 30].concat();
                let length = usize::try_from(number % 200).unwrap() + 8;
                let flags = [TAP_OUT, TAP_IN][usize::from(number % 2 == 1)];
                assert!(ring.push(&frame[..length], 1000 + length, flags, Dscp::AF11));
            }
            assert!(!ring.push(&[1; 60], 60, TAP_OUT, Dscp::AF11));
            for number in 0..SLOTS {
                let copy = ring.take().unwrap();
                let length = usize::try_from(number % 200).unwrap() + 8;
                let expected = [(round * 7 + number).to_be_bytes(); 30].concat();
                assert_eq!(copy.bytes(), &expected[..length.min(TAP_BYTES)]);
                let is_answer = number % 2 == 1;
                assert_eq!(copy.direction() == Direction::In, is_answer, "{number}");
                assert_eq!(copy.mark(), Dscp::AF11);
            }
            assert!(ring.take().is_none());
        }
        assert_eq!(ring.held(), 0);
        assert!(ring.push(&[1; 60], 60, TAP_OUT, Dscp::AF11));
        assert_eq!(ring.held(), 1);
        assert_eq!(ring.close(), 1);
        assert!(!ring.push(&[1; 60], 60, TAP_OUT, Dscp::AF11));
        let left = ring.cells.iter().skip(index_of!(exitmark_tap, copies));
        assert!(
            left.into_iter()
                .all(|cell| cell.load(Ordering::Relaxed) == 0)
        );
    }
}
