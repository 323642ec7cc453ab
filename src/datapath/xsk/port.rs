//! The rings of a bound queue, and the memory of its frames.

use super::options::read_option;
use super::rings::{Descriptor, Rings};
use crate::frame::LONGEST_GROWTH;
use crate::{Frame, FrameMemory, FramePool, Held, Port, cut};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most `sendto` calls in one kick. With the raised budget one is enough; a kernel without
/// it sends 32 packets per call.
const MAX_SENDS: u32 = 64;

/// One worker's part of the packet memory.
pub struct XskMemory<D> {
    /// Keeps the memory mapped as long as a port can access it.
    pub(super) _region: xsk_rs::Umem,
    /// The base of the descriptors' addresses.
    pub(super) start: NonNull<u8>,
    /// The descriptor of each chunk, as it last came out of a ring.
    pub(super) descriptors: Box<[D]>,
    /// The number of the part's first chunk, counted from `start`.
    pub(super) first: usize,
    pub(super) chunk_bytes: usize,
}

// SAFETY: the memory behind `start` is mapped as long as `_region`, and is not tied to a thread.
unsafe impl<D: Send> Send for XskMemory<D> {}

impl<D: Descriptor> XskMemory<D> {
    /// The token of a descriptor that the kernel returned. `None` if it is not within a chunk of
    /// this memory: such a descriptor must not become a pointer.
    fn token(&mut self, descriptor: D) -> Option<Frame> {
        let chunk = (descriptor.address() / self.chunk_bytes).checked_sub(self.first)?;
        let length = descriptor.length();
        let slot = self.descriptors.get_mut(chunk)?;
        if descriptor.address() % self.chunk_bytes + length > self.chunk_bytes {
            return None;
        }
        *slot = descriptor;
        Some(Frame::new(
            u32::try_from(chunk).ok()?,
            u16::try_from(length).ok()?,
            descriptor.has_more(),
        ))
    }

    /// The beginning and number of a frame's bytes.
    #[inline]
    fn place(&self, frame: &Frame) -> (*mut u8, usize) {
        let descriptor = &self.descriptors[frame.chunk()];
        // A frame begins elsewhere only within its chunk: `lengthen` checks it.
        let offset = descriptor.address().wrapping_add_signed(frame.moved());
        // SAFETY: the descriptor is within one chunk of this memory (`token` checked it or
        // `Umem` made it), and its chunk is not with the kernel, since its token is here.
        let start = unsafe { self.start.as_ptr().add(offset) };
        (start, frame.length())
    }
}

impl<D: Descriptor> FrameMemory for XskMemory<D> {
    #[inline]
    fn bytes(&mut self, frame: &Frame) -> &mut [u8] {
        let (start, length) = self.place(frame);
        // SAFETY: those bytes are in a chunk of this memory, exclusively borrowed through `self`
        // for as long as the result lives; its token is the only one.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }

    #[inline]
    fn view(&self, frame: &Frame) -> &[u8] {
        let (start, length) = self.place(frame);
        // SAFETY: as in `bytes`; they are not written as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(start, length) }
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        let (start, length) = self.place(frame);
        if length > 0 {
            // SAFETY: as in `bytes`; nothing is written here.
            prefetch(unsafe { &*start });
        }
    }

    fn lengthen(&mut self, frame: Frame, new: usize, old: usize) -> Result<Frame, Frame> {
        let offset = self.descriptors[frame.chunk()].address() % self.chunk_bytes;
        let longer = frame.lengthened(new, old)?;
        // The kernel leaves 256 bytes in front of a received frame (XDP_PACKET_HEADROOM).
        let begins = offset.checked_add_signed(longer.moved());
        let fits = begins.is_some_and(|begins| begins + longer.length() <= self.chunk_bytes);
        let may_move = D::MOVES || longer.moved() == 0;
        match may_move && fits && longer.moved() >= -LONGEST_GROWTH {
            true => Ok(longer),
            false => Err(longer.lengthened(old, new).unwrap_or_else(|same| same)),
        }
    }
}

/// Prefetches the cache line of this byte, without waiting for it.
#[inline]
pub(crate) fn prefetch(byte: &u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction (SSE, which every x86-64 has) has no visible effect and faults on no
    // address, and this one is valid. No safe function for it exists yet.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>((&raw const *byte).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(*byte);
}

/// One queue of a NIC: the four rings of a socket, and how many frames are in them.
pub struct XskPort<R: Rings> {
    pub(super) rings: R,
    ring: usize,
    held: Held,
    scratch: Box<[R::Descriptor]>,
    pub(super) zero_copy: bool,
    /// Frames that the NIC seems to have truncated.
    cut: Arc<AtomicU64>,
}

impl<R: Rings> XskPort<R> {
    /// A port over rings of `entries` entries, in copy mode.
    pub(super) fn new(rings: R, entries: u32) -> Self {
        Self {
            rings,
            ring: entries as usize,
            held: Held::default(),
            scratch: vec![R::Descriptor::empty(); entries as usize].into(),
            zero_copy: false,
            cut: Arc::default(),
        }
    }

    /// Whether the kernel bound this queue zero-copy.
    pub const fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// A gauge of this queue's losses, for another thread. It keeps the socket open.
    ///
    /// # Errors
    /// The socket's descriptor cannot be duplicated: the limit of open files is reached (EMFILE).
    pub fn gauge(&self) -> io::Result<QueueGauge> {
        Ok(QueueGauge {
            socket: self.as_fd().try_clone_to_owned()?,
            cut: Arc::clone(&self.cut),
        })
    }

    fn unsent(&mut self) -> usize {
        self.ring - (self.rings.exact_room_to_send() as usize).min(self.ring)
    }
}

/// Reads the losses of a queue, from any thread.
pub struct QueueGauge {
    socket: OwnedFd,
    cut: Arc<AtomicU64>,
}

impl QueueGauge {
    /// The errors of this queue so far, from XDP_STATISTICS.
    ///
    /// # Errors
    /// getsockopt(2) fails.
    pub fn troubles(&self) -> io::Result<Troubles> {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        read_option(&self.socket, libc::XDP_STATISTICS, &mut statistics)?;
        Ok(Troubles {
            missed: statistics.rx_dropped + statistics.rx_ring_full,
            tx_invalid: statistics.tx_invalid_descs,
        })
    }

    /// Frames that arrived zero-copy and seem to be truncated at the end of a receive buffer.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }
}

/// A queue's error counts in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Received packets that the kernel could not deliver: the rx ring was full, no frame was in
    /// the fill ring, or the packet was too long.
    pub missed: u64,
    /// Frames to send that the kernel refused, e.g. of a packet in more than 17 frames.
    pub tx_invalid: u64,
}

impl<R: Rings> AsFd for XskPort<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the rings that are borrowed here.
        unsafe { BorrowedFd::borrow_raw(self.rings.socket()) }
    }
}

impl<R: Rings> Port for XskPort<R> {
    type Memory = XskMemory<R::Descriptor>;

    fn receive(&mut self, memory: &mut Self::Memory, arrived: &mut Vec<Frame>, limit: usize) {
        let room = limit.min(self.ring);
        let count = self.rings.receive(&mut self.scratch[..room]);
        let first = arrived.len();
        for &descriptor in &self.scratch[..count] {
            // A foreign descriptor leaves a frame unaccounted for, which raises an alarm.
            arrived.extend(memory.token(descriptor));
        }
        self.held.receiving -= count.min(self.held.receiving);
        // In copy mode the kernel counts frames that do not fit.
        if self.zero_copy {
            let cut = cut::count(arrived, first, memory);
            if cut > 0 {
                self.cut.fetch_add(cut, Ordering::Relaxed);
            }
        }
    }

    fn transmit(&mut self, memory: &mut Self::Memory, leaving: &mut Vec<Frame>) {
        let wanted = u32::try_from(leaving.len()).unwrap_or(u32::MAX);
        let room = (self.rings.room_to_send(wanted) as usize).min(self.ring - self.held.sending);
        let mut fitting = leaving.len().min(room);
        while fitting > 0 && leaving[fitting - 1].has_more() {
            fitting -= 1;
        }
        for (slot, frame) in self.scratch.iter_mut().zip(leaving.drain(..fitting)) {
            *slot = memory.descriptors[frame.chunk()];
            if frame.moved() != 0 {
                *slot = slot.moved(frame.moved(), frame.length());
            }
            slot.set_more(frame.has_more());
        }
        // SAFETY: these chunks belong to this UMEM, and their tokens ended with the drain above:
        // they cannot be accessed until they come back as completions.
        let sent = unsafe { self.rings.send(&self.scratch[..fitting]) };
        debug_assert_eq!(sent, fitting, "the ring had room");
        self.held.sending += sent;
    }

    fn complete(&mut self, memory: &mut Self::Memory, pool: &mut FramePool) {
        if self.held.sending == 0 {
            return;
        }
        let count = self.rings.complete(&mut self.scratch);
        for &descriptor in &self.scratch[..count] {
            if let Some(frame) = memory.token(descriptor) {
                pool.put(frame);
            }
        }
        self.held.sending -= count.min(self.held.sending);
    }

    fn fill(&mut self, memory: &mut Self::Memory, pool: &mut FramePool) {
        let wanted = self.ring - self.held.receiving;
        if wanted == 0 {
            return;
        }
        let room = self
            .rings
            .room_to_fill(u32::try_from(wanted).unwrap_or(u32::MAX)) as usize;
        let mut count = 0;
        while count < wanted.min(room)
            && let Some(frame) = pool.take()
        {
            self.scratch[count] = memory.descriptors[frame.chunk()];
            count += 1;
        }
        // SAFETY: these chunks belong to this UMEM, and their tokens ended in the loop above:
        // they cannot be accessed until they come back as received frames.
        let filled = unsafe { self.rings.fill(&self.scratch[..count]) };
        debug_assert_eq!(filled, count, "the ring had room");
        self.held.receiving += filled;
    }

    fn kick(&mut self) {
        self.rings.wake_to_receive();
        if self.held.sending == 0 || !self.rings.needs_wake_to_send() {
            return;
        }
        let mut unsent = self.unsent();
        for _ in 0..MAX_SENDS {
            if unsent == 0 {
                return;
            }
            // On failure the frames stay in the ring; later frames that do not fit are dropped and
            // counted.
            self.rings.wake_to_send();
            let before = std::mem::replace(&mut unsent, self.unsent());
            if unsent >= before {
                return;
            }
        }
    }

    fn held(&self) -> Held {
        self.held
    }

    fn has_unsent(&mut self) -> bool {
        self.held.sending > 0 && self.unsent() > 0
    }
}
