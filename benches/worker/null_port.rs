//! A port without a NIC, like DPDK's net_null: it receives the frames that are in the chunks of its
//! fill ring, in the order in which they were filled, and sends to nowhere. It copies nothing.

use exitmark_datapath::memory::HeapMemory;
use exitmark_datapath::{Frame, FramePool, Held, Port};
use std::collections::VecDeque;

pub(crate) struct NullPort {
    receives: bool,
    ring: usize,
    filled: VecDeque<Frame>,
    sent: Vec<Frame>,
}

impl NullPort {
    /// A port with this many entries in each ring. Without `receives`, it only sends.
    pub(crate) fn new(ring: usize, receives: bool) -> Self {
        Self {
            receives,
            ring,
            filled: VecDeque::with_capacity(ring),
            sent: Vec::with_capacity(ring),
        }
    }
}

impl Port for NullPort {
    type Memory = HeapMemory;

    fn receive(&mut self, _: &mut HeapMemory, arrived: &mut Vec<Frame>, limit: usize) {
        arrived.extend(self.filled.drain(..limit.min(self.filled.len())));
    }

    fn transmit(&mut self, _: &mut HeapMemory, leaving: &mut Vec<Frame>) {
        let fitting = leaving.len().min(self.ring - self.sent.len());
        self.sent.extend(leaving.drain(..fitting));
    }

    fn complete(&mut self, _: &mut HeapMemory, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.put(frame));
    }

    fn fill(&mut self, _: &mut HeapMemory, pool: &mut FramePool) {
        while self.receives
            && self.filled.len() < self.ring
            && let Some(frame) = pool.take()
        {
            self.filled.push_back(frame);
        }
    }

    fn kick(&mut self) {}

    fn held(&self) -> Held {
        Held {
            receiving: self.filled.len(),
            sending: self.sent.len(),
        }
    }

    fn has_unsent(&mut self) -> bool {
        false
    }
}
