//! The rings of a bound queue, and the memory of its frames.

use super::options::read_option;
use crate::datapath::{Frame, FramePool, Held, Memory, Port};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

/// The most `sendto` calls in one kick. With the raised budget one is enough; a kernel without
/// it sends 32 packets a call.
const MAX_SENDS: u32 = 64;

/// One worker's part of the UMEM.
pub struct XskMemory {
    pub(super) umem: xsk_rs::Umem,
    /// The descriptor of each chunk, as it last came out of a ring.
    pub(super) descriptors: Box<[FrameDesc]>,
    /// The number of the first chunk in the whole UMEM.
    pub(super) first: usize,
    pub(super) chunk_bytes: usize,
}

impl XskMemory {
    /// The token of a descriptor that the kernel handed back, or none where it describes
    /// nothing of ours: xsk-rs checks nothing, and a wrong one must not become a pointer.
    fn token(&mut self, descriptor: FrameDesc) -> Option<Frame> {
        let chunk = (descriptor.addr() / self.chunk_bytes).checked_sub(self.first)?;
        let length = descriptor.lengths().data();
        let slot = self.descriptors.get_mut(chunk)?;
        if descriptor.addr() % self.chunk_bytes + length > self.chunk_bytes {
            return None;
        }
        *slot = descriptor;
        Some(Frame::new(
            u32::try_from(chunk).ok()?,
            u16::try_from(length).ok()?,
            descriptor.has_more_frames(),
        ))
    }
}

impl Memory for XskMemory {
    #[inline]
    fn bytes(&mut self, frame: &Frame) -> &mut [u8] {
        let descriptor = &mut self.descriptors[frame.chunk()];
        // SAFETY: the descriptor is of this UMEM, within bounds (`token` checked it or
        // `Umem::new` made it), and its chunk is not with the kernel, since its token is here.
        let mut data = unsafe { self.umem.data_mut(descriptor) };
        let bytes = data.contents_mut();
        let (start, length) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the same bytes as above, exclusively borrowed through `self` for as long as the
        // result lives; xsk-rs' own view of them ends with this function.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        // SAFETY: as in `bytes`; nothing is written here.
        let data = unsafe { self.umem.data(&self.descriptors[frame.chunk()]) };
        if let Some(byte) = data.contents().first() {
            prefetch(byte);
        }
    }
}

/// Asks the processor to fetch the cache line of this byte, without waiting for it.
#[inline]
pub(in crate::datapath) fn prefetch(byte: &u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction (SSE, which every x86-64 has) reads nothing that the program could
    // see and faults on no address, and this one is valid. No safe function does the same yet.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>((&raw const *byte).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(*byte);
}

/// One queue of a NIC.
pub struct XskPort {
    pub(super) tx: TxQueue,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
    pub(super) ring: usize,
    pub(super) held: Held,
    pub(super) scratch: Box<[FrameDesc]>,
    pub(super) zero_copy: bool,
}

impl XskPort {
    /// Whether the kernel bound this queue zero-copy.
    pub const fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// A view of what this queue misses, for another thread. It keeps the socket open.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn gauge(&self) -> io::Result<QueueGauge> {
        Ok(QueueGauge(self.as_fd().try_clone_to_owned()?))
    }

    fn unsent(&mut self) -> usize {
        self.ring - (self.tx.nb_free_exact() as usize).min(self.ring)
    }
}

/// What a queue could not take in.
pub struct QueueGauge(OwnedFd);

impl QueueGauge {
    /// What went wrong at this queue so far.
    ///
    /// # Errors
    /// The socket does not say.
    pub fn troubles(&self) -> io::Result<Troubles> {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        read_option(&self.0, libc::XDP_STATISTICS, &mut statistics)?;
        Ok(Troubles {
            missed: statistics.rx_dropped + statistics.rx_ring_full,
            tx_invalid: statistics.tx_invalid_descs,
        })
    }
}

/// What went wrong at a queue, in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Packets that were received and could not be handed over: the rx ring was full, no empty
    /// frame was there, or the packet was too long.
    pub missed: u64,
    /// Frames to send that the kernel refused, e.g. of a packet in more than 17 pieces.
    pub tx_invalid: u64,
}

impl AsFd for XskPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the queue that is borrowed here.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

impl Port for XskPort {
    type Memory = XskMemory;

    fn receive(&mut self, memory: &mut XskMemory, arrived: &mut Vec<Frame>, limit: usize) {
        let room = limit.min(self.ring);
        // SAFETY: the descriptors written are those that the kernel took from this UMEM's fill
        // ring; they are used nowhere but in `token`.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        for &descriptor in &self.scratch[..count] {
            // A descriptor of nothing of ours leaves a frame unaccounted for, which is alarmed.
            arrived.extend(memory.token(descriptor));
        }
        self.held.receiving -= count.min(self.held.receiving);
    }

    fn transmit(&mut self, memory: &mut XskMemory, leaving: &mut Vec<Frame>) {
        let wanted = u32::try_from(leaving.len()).unwrap_or(u32::MAX);
        let room = (self.tx.nb_free(wanted) as usize).min(self.ring - self.held.sending);
        let mut fitting = leaving.len().min(room);
        while fitting > 0 && leaving[fitting - 1].has_more() {
            fitting -= 1;
        }
        for (slot, frame) in self.scratch.iter_mut().zip(leaving.drain(..fitting)) {
            *slot = memory.descriptors[frame.chunk()];
            slot.set_options(u32::from(frame.has_more()));
        }
        // SAFETY: these chunks belong to this UMEM, and their tokens ended with the drain above:
        // nobody can touch them until they come back as completions.
        let sent = unsafe { self.tx.produce(&self.scratch[..fitting]) };
        debug_assert_eq!(sent, fitting, "the ring had room");
        self.held.sending += sent;
    }

    fn complete(&mut self, memory: &mut XskMemory, pool: &mut FramePool) {
        if self.held.sending == 0 {
            return;
        }
        // SAFETY: as in `receive`, for what was given to the tx ring.
        let count = unsafe { self.completion.consume(&mut self.scratch) };
        for &descriptor in &self.scratch[..count] {
            if let Some(frame) = memory.token(descriptor) {
                pool.put(frame);
            }
        }
        self.held.sending -= count.min(self.held.sending);
    }

    fn fill(&mut self, memory: &mut XskMemory, pool: &mut FramePool) {
        let wanted = self.ring - self.held.receiving;
        if wanted == 0 {
            return;
        }
        let room = self.fill.nb_free(u32::try_from(wanted).unwrap_or(u32::MAX)) as usize;
        let mut count = 0;
        while count < wanted.min(room)
            && let Some(frame) = pool.take()
        {
            self.scratch[count] = memory.descriptors[frame.chunk()];
            count += 1;
        }
        // SAFETY: these chunks belong to this UMEM, and their tokens ended in the loop above:
        // nobody can touch them until they come back as received frames.
        let filled = unsafe { self.fill.produce(&self.scratch[..count]) };
        debug_assert_eq!(filled, count, "the ring had room");
        self.held.receiving += filled;
    }

    fn kick(&mut self) {
        if self.fill.needs_wakeup() {
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
        if self.held.sending == 0 || !self.tx.needs_wakeup() {
            return;
        }
        let mut unsent = self.unsent();
        for _ in 0..MAX_SENDS {
            if unsent == 0 {
                return;
            }
            // An error is a link that is down or a queue that is full; the frames stay in the
            // ring, and what does not fit behind them is dropped and counted.
            let _ = self.tx.wakeup();
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
