//! Numbers that several threads, and possibly the XDP program, read and write.

use super::kernel::Mapped;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

/// An array of atomic 64-bit numbers, in this process or in a BPF map.
#[derive(Debug)]
pub struct Cells(Place);

#[derive(Debug)]
enum Place {
    /// In this process' own memory, not shared with the kernel.
    Heap(Box<[AtomicU64]>),
    /// In a map of the XDP program.
    Map(Mapped),
}

impl Cells {
    /// Allocates `numbers` zeros in this process' own memory.
    pub fn own(numbers: usize) -> Self {
        Self(Place::Heap(
            (0..numbers).map(|_| AtomicU64::new(0)).collect(),
        ))
    }

    pub(super) const fn shared(mapped: Mapped) -> Self {
        Self(Place::Map(mapped))
    }
}

impl Deref for Cells {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        match &self.0 {
            Place::Heap(cells) => cells,
            Place::Map(mapped) => mapped,
        }
    }
}
