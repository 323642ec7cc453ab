//! Numbers that several threads, or the kernel's program too, read and write.

use super::kernel::Mapped;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

/// A row of atomic numbers, wherever they are.
#[derive(Debug)]
pub struct Cells(Place);

#[derive(Debug)]
enum Place {
    /// In this process' own memory: there is no kernel to share them with.
    Heap(Box<[AtomicU64]>),
    /// In a map of the XDP program's.
    Map(Mapped),
}

impl Cells {
    /// So many zeros of this process' own.
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
