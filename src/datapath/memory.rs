//! Ports in memory, without a kernel: everything except the two unsafe modules is tested and
//! measured over these. They can simulate faults of NICs.

use super::frame::LONGEST_GROWTH;
use super::{Frame, FrameMemory, FramePool, Held, Port};
use std::collections::VecDeque;

/// Chunks begin at cache lines, as those of a UMEM do.
const CACHE_LINE: usize = 64;

/// Frames in heap memory, in chunks of equal size.
pub struct HeapMemory {
    bytes: Box<[u8]>,
    /// The offset of the first chunk in `bytes`.
    start: usize,
    chunk_bytes: usize,
}

impl HeapMemory {
    /// Memory of `frames` chunks, with the pool of their tokens. Each has `chunk_bytes`, rounded up
    /// to a power of two.
    pub fn new(frames: u32, chunk_bytes: u16) -> (Self, FramePool) {
        let chunk_bytes = usize::from(chunk_bytes).next_power_of_two();
        let bytes = frames as usize * (chunk_bytes + CACHE_LINE) + CACHE_LINE;
        let bytes = vec![0; bytes].into_boxed_slice();
        let memory = Self {
            start: bytes.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE),
            bytes,
            chunk_bytes,
        };
        (memory, FramePool::new(frames))
    }

    #[inline]
    const fn offset(&self, frame: &Frame) -> usize {
        // In front of each chunk is a cache line into which a frame can grow.
        let chunk = self.start + frame.chunk() * (self.chunk_bytes + CACHE_LINE) + CACHE_LINE;
        chunk.wrapping_add_signed(frame.moved())
    }

    /// Copies a packet into frames of the pool. Returns no frames, and takes none, if the pool has
    /// too few.
    pub fn load(&mut self, packet: &[u8], pool: &mut FramePool) -> Vec<Frame> {
        let parts = packet.chunks(self.chunk_bytes).collect::<Vec<_>>();
        if pool.len() < parts.len() {
            return Vec::new();
        }
        let last = parts.len().saturating_sub(1);
        let mut frames = Vec::with_capacity(parts.len());
        for (index, part) in parts.into_iter().enumerate() {
            let (Some(empty), Ok(length)) = (pool.take(), u16::try_from(part.len())) else {
                return frames;
            };
            let start = self.offset(&empty);
            self.bytes[start..start + part.len()].copy_from_slice(part);
            frames.push(retoken(&empty, length, index != last));
        }
        frames
    }
}

/// A token of the same chunk with another length. The old token must not be used again.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a chunk's number came from a u32"
)]
const fn retoken(frame: &Frame, length: u16, more: bool) -> Frame {
    Frame::new(frame.chunk() as u32, length, more)
}

impl FrameMemory for HeapMemory {
    #[inline]
    fn bytes(&mut self, frame: &Frame) -> &mut [u8] {
        let start = self.offset(frame);
        &mut self.bytes[start..start + frame.length()]
    }

    #[inline]
    fn view(&self, frame: &Frame) -> &[u8] {
        let start = self.offset(frame);
        &self.bytes[start..start + frame.length()]
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        super::xsk::prefetch(&self.bytes[self.offset(frame)]);
    }

    fn lengthen(&mut self, frame: Frame, new: usize, old: usize) -> Result<Frame, Frame> {
        let longer = frame.lengthened(new, old)?;
        match longer.moved() < -LONGEST_GROWTH {
            true => Err(longer.lengthened(old, new).unwrap_or_else(|same| same)),
            false => Ok(longer),
        }
    }
}

/// The simulated fault of a memory port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SimulatedFault {
    /// Every frame is sent and completed.
    #[default]
    None,
    /// Accepts frames to send until its ring is full, but sends none.
    Stuck,
    /// Sends frames, but never completes them.
    NoCompletions,
}

/// A port over two packet queues instead of a wire.
pub struct MemoryPort {
    ring: usize,
    filled: Vec<Frame>,
    unsent: VecDeque<Frame>,
    unsent_packets: VecDeque<Vec<u8>>,
    sent_frames: Vec<Frame>,
    /// Packets to be received, oldest first.
    pub incoming: VecDeque<Vec<u8>>,
    /// Packets that were sent, oldest first.
    pub sent: Vec<Vec<u8>>,
    /// The simulated fault; may be changed at any time.
    pub fault: SimulatedFault,
}

impl MemoryPort {
    /// A port whose rings have `ring` entries each.
    pub const fn new(ring: usize) -> Self {
        Self {
            ring,
            filled: Vec::new(),
            unsent: VecDeque::new(),
            unsent_packets: VecDeque::new(),
            sent_frames: Vec::new(),
            incoming: VecDeque::new(),
            sent: Vec::new(),
            fault: SimulatedFault::None,
        }
    }
}

impl Port for MemoryPort {
    type Memory = HeapMemory;

    fn receive(&mut self, memory: &mut HeapMemory, arrived: &mut Vec<Frame>, limit: usize) {
        let end = arrived.len() + limit;
        while let Some(packet) = self.incoming.front() {
            let parts = packet.len().div_ceil(memory.chunk_bytes);
            if arrived.len() + parts > end || self.filled.len() < parts {
                return;
            }
            for (index, part) in packet.chunks(memory.chunk_bytes).enumerate() {
                let (Some(empty), Ok(length)) = (self.filled.pop(), u16::try_from(part.len()))
                else {
                    return;
                };
                let frame = retoken(&empty, length, index + 1 != parts);
                memory.bytes(&frame).copy_from_slice(part);
                arrived.push(frame);
            }
            self.incoming.pop_front();
        }
    }

    fn transmit(&mut self, memory: &mut HeapMemory, leaving: &mut Vec<Frame>) {
        let mut fitting = leaving.len().min(self.ring - self.held().sending);
        while fitting > 0 && leaving[fitting - 1].has_more() {
            fitting -= 1;
        }
        let mut packet = Vec::new();
        for frame in leaving.drain(..fitting) {
            packet.extend_from_slice(memory.bytes(&frame));
            if !frame.has_more() {
                self.unsent_packets.push_back(std::mem::take(&mut packet));
            }
            self.unsent.push_back(frame);
        }
    }

    fn complete(&mut self, _: &mut HeapMemory, pool: &mut FramePool) {
        if self.fault == SimulatedFault::None {
            self.sent_frames.drain(..).for_each(|frame| pool.put(frame));
        }
    }

    fn fill(&mut self, _: &mut HeapMemory, pool: &mut FramePool) {
        while self.filled.len() < self.ring
            && let Some(frame) = pool.take()
        {
            self.filled.push(frame);
        }
    }

    fn kick(&mut self) {
        if self.fault != SimulatedFault::Stuck {
            self.sent.extend(self.unsent_packets.drain(..));
            self.sent_frames.extend(self.unsent.drain(..));
        }
    }

    fn held(&self) -> Held {
        Held {
            receiving: self.filled.len(),
            sending: self.unsent.len() + self.sent_frames.len(),
        }
    }

    fn has_unsent(&mut self) -> bool {
        !self.unsent.is_empty()
    }
}
