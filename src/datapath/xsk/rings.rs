//! The four rings of a queue as xsk-rs has them, and what a port needs of rings.

use std::os::fd::{AsRawFd, RawFd};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

/// A chunk as a ring describes it.
pub trait Descriptor: Copy + Send + 'static {
    /// Describes nothing yet.
    fn empty() -> Self;

    /// Where the packet begins, in bytes from the beginning of the memory.
    fn address(&self) -> usize;

    /// How long the packet's part in this chunk is.
    fn length(&self) -> usize;

    /// Whether the packet goes on in the next descriptor.
    fn has_more(&self) -> bool;

    /// Says whether it does.
    fn set_more(&mut self, more: bool);
}

/// The four rings of one queue.
///
/// What a ring gives is the kernel's word and is checked before it is used as an address.
pub trait Rings: Send + 'static {
    /// What goes into these rings and comes out.
    type Descriptor: Descriptor;

    /// The socket. It stays open as long as the rings.
    fn socket(&self) -> RawFd;

    /// Takes what arrived; returns how many descriptors were written.
    fn receive(&mut self, into: &mut [Self::Descriptor]) -> usize;

    /// Takes what has been sent, likewise.
    fn complete(&mut self, into: &mut [Self::Descriptor]) -> usize;

    /// How many descriptors the fill ring has room for; exact up to `wanted`.
    fn room_to_fill(&mut self, wanted: u32) -> u32;

    /// Gives chunks to receive into; returns how many.
    ///
    /// # Safety
    /// The chunks are of these rings' memory, and are not touched before they are received.
    unsafe fn fill(&mut self, chunks: &[Self::Descriptor]) -> usize;

    /// How many descriptors the transmit ring has room for; exact up to `wanted`.
    fn room_to_send(&mut self, wanted: u32) -> u32;

    /// Gives chunks to send; returns how many.
    ///
    /// # Safety
    /// The chunks are of these rings' memory, and are not touched before they are completed.
    unsafe fn send(&mut self, chunks: &[Self::Descriptor]) -> usize;

    /// How many descriptors the transmit ring has room for, as the kernel has it now.
    fn exact_room_to_send(&mut self) -> u32;

    /// Has the kernel take chunks from the fill ring, if it asks for the call.
    fn wake_to_receive(&mut self);

    /// Whether the kernel asks for a call to send.
    fn needs_wake_to_send(&self) -> bool;

    /// Has the kernel send. An error is a link that is down or a queue that is full.
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
}

/// The rings of a socket that xsk-rs made: bound before anything is in them.
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
