//! The interface that a port needs of the four rings of a queue, and its implementation by xsk-rs.

use std::os::fd::{AsRawFd, RawFd};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

/// A ring's descriptor of a chunk.
pub trait Descriptor: Copy + Send + 'static {
    /// A placeholder that names no chunk, for slots that are written before they are used.
    fn empty() -> Self;

    /// The beginning of the packet, in bytes from the beginning of the memory.
    fn address(&self) -> usize;

    /// The length of the packet's part in this chunk, in bytes.
    fn length(&self) -> usize;

    /// Whether the packet continues in the next descriptor (XDP_PKT_CONTD).
    fn has_more(&self) -> bool;

    /// Sets whether the packet continues in the next descriptor.
    fn set_more(&mut self, more: bool);

    /// Whether [`Descriptor::moved`] is supported.
    const MOVES: bool;

    /// The descriptor of a packet that begins this many bytes later, or earlier if negative, and
    /// has this length.
    #[must_use]
    fn moved(self, by: isize, length: usize) -> Self;
}

/// The four rings of one queue.
///
/// Descriptors from a ring come from the kernel, and are checked before use as an address.
pub trait Rings: Send + 'static {
    /// The type of the rings' entries.
    type Descriptor: Descriptor;

    /// The descriptor of the socket, which stays open as long as the rings.
    fn socket(&self) -> RawFd;

    /// Takes received frames from the rx ring; returns how many descriptors were written.
    fn receive(&mut self, into: &mut [Self::Descriptor]) -> usize;

    /// Takes sent frames from the completion ring; returns how many descriptors were written.
    fn complete(&mut self, into: &mut [Self::Descriptor]) -> usize;

    /// How many descriptors the fill ring has room for; exact up to `wanted`.
    fn room_to_fill(&mut self, wanted: u32) -> u32;

    /// Submits chunks to the fill ring; returns how many.
    ///
    /// # Safety
    /// The chunks are of these rings' memory, and are not touched before they are received.
    unsafe fn fill(&mut self, chunks: &[Self::Descriptor]) -> usize;

    /// How many descriptors the transmit ring has room for; exact up to `wanted`.
    fn room_to_send(&mut self, wanted: u32) -> u32;

    /// Submits chunks to the tx ring; returns how many.
    ///
    /// # Safety
    /// The chunks are of these rings' memory, and are not touched before they are completed.
    unsafe fn send(&mut self, chunks: &[Self::Descriptor]) -> usize;

    /// How many descriptors the transmit ring has room for, by the kernel's current index.
    fn exact_room_to_send(&mut self) -> u32;

    /// Wakes the kernel to take chunks from the fill ring, if the ring needs a wakeup.
    fn wake_to_receive(&mut self);

    /// Whether the tx ring needs a wakeup (XDP_RING_NEED_WAKEUP).
    fn needs_wake_to_send(&self) -> bool;

    /// Wakes the kernel to send. Ignores errors: a link that is down, or a full queue.
    fn wake_to_send(&mut self);
}

impl Descriptor for FrameDesc {
    fn empty() -> Self {
        Self::default()
    }

    #[inline]
    fn address(&self) -> usize {
        self.addr()
    }

    #[inline]
    fn length(&self) -> usize {
        self.lengths().data()
    }

    #[inline]
    fn has_more(&self) -> bool {
        self.has_more_frames()
    }

    #[inline]
    fn set_more(&mut self, more: bool) {
        self.set_options(u32::from(more));
    }

    /// xsk-rs sets addresses itself.
    const MOVES: bool = false;

    #[inline]
    fn moved(self, _: isize, _: usize) -> Self {
        self
    }
}

/// The rings of a socket that xsk-rs made: bound before its fill ring is filled.
pub struct SharedRings {
    pub(super) tx: TxQueue,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
}

impl Rings for SharedRings {
    type Descriptor = FrameDesc;

    fn socket(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    #[inline]
    fn receive(&mut self, into: &mut [FrameDesc]) -> usize {
        // SAFETY: only chunks of this UMEM were given to the fill ring.
        unsafe { self.rx.consume(into) }
    }

    #[inline]
    fn complete(&mut self, into: &mut [FrameDesc]) -> usize {
        // SAFETY: only chunks of this UMEM were given to the tx ring.
        unsafe { self.completion.consume(into) }
    }

    #[inline]
    fn room_to_fill(&mut self, wanted: u32) -> u32 {
        self.fill.nb_free(wanted)
    }

    #[inline]
    unsafe fn fill(&mut self, chunks: &[FrameDesc]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.fill.produce(chunks) }
    }

    #[inline]
    fn room_to_send(&mut self, wanted: u32) -> u32 {
        self.tx.nb_free(wanted)
    }

    #[inline]
    unsafe fn send(&mut self, chunks: &[FrameDesc]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.tx.produce(chunks) }
    }

    #[inline]
    fn exact_room_to_send(&mut self) -> u32 {
        self.tx.nb_free_exact()
    }

    fn wake_to_receive(&mut self) {
        if self.fill.needs_wakeup() {
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
    }

    fn needs_wake_to_send(&self) -> bool {
        self.tx.needs_wakeup()
    }

    fn wake_to_send(&mut self) {
        let _ = self.tx.wakeup();
    }
}
