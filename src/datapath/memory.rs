//! Ports without a kernel: everything but the two unsafe rooms is tested and measured over
//! these. They can misbehave on purpose, as NICs do.

use super::{Frame, FramePool, Held, Memory, Port};
use std::collections::VecDeque;

/// Chunks begin at cache lines, as those of a UMEM do.
const CACHE_LINE: usize = 64;

/// Frames in ordinary memory.
pub struct HeapMemory {
    bytes: Box<[u8]>,
    /// Where the first chunk begins.
    start: usize,
    chunk_bytes: usize,
}

impl HeapMemory {
    /// Memory of `frames` buffers, with the pool of their tokens. Each has `chunk_bytes`, or the
    /// next power of two.
    pub fn new(frames: u32, chunk_bytes: u16) -> (Self, FramePool) {
        let chunk_bytes = usize::from(chunk_bytes).next_power_of_two();
        let bytes = vec![0; frames as usize * chunk_bytes + CACHE_LINE].into_boxed_slice();
        let memory = Self {
            start: bytes.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE),
            bytes,
            chunk_bytes,
        };
        (memory, FramePool::new(frames))
    }

    #[inline]
    const fn offset(&self, frame: &Frame) -> usize {
        self.start + frame.chunk() * self.chunk_bytes
    }

    /// Copies a packet into as many frames of the pool as it takes. Hands nothing out, and
    /// takes nothing, where the pool has too few.
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

/// The same chunk with another length. The old token ends here.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a chunk's number came from a u32"
)]
const fn retoken(frame: &Frame, length: u16, more: bool) -> Frame {
    Frame::new(frame.chunk() as u32, length, more)
}

impl Memory for HeapMemory {
    #[inline]
    fn bytes(&mut self, frame: &Frame) -> &mut [u8] {
        let start = self.offset(frame);
        &mut self.bytes[start..start + frame.length()]
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        super::xsk::prefetch(&self.bytes[self.offset(frame)]);
    }
}

/// What is wrong with a memory port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It takes frames to send until its ring is full, and sends none.
    Stuck,
    /// It sends, and never says so.
    NoCompletions,
}

/// A port whose wire is two queues of packets.
pub struct MemoryPort {
    ring: usize,
    filled: Vec<Frame>,
    unsent: VecDeque<Frame>,
    unsent_packets: VecDeque<Vec<u8>>,
    sent_frames: Vec<Frame>,
    /// Packets that wait to be received.
    pub incoming: VecDeque<Vec<u8>>,
    /// Packets that were sent.
    pub sent: Vec<Vec<u8>>,
    /// How it misbehaves.
    pub fault: Fault,
}

impl MemoryPort {
    /// A port whose rings hold `ring` frames each.
    pub const fn new(ring: usize) -> Self {
        Self {
            ring,
            filled: Vec::new(),
            unsent: VecDeque::new(),
            unsent_packets: VecDeque::new(),
            sent_frames: Vec::new(),
            incoming: VecDeque::new(),
            sent: Vec::new(),
            fault: Fault::None,
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
        if self.fault == Fault::None {
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
        if self.fault != Fault::Stuck {
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
