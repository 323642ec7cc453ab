//! The thread that sends the copies of exit frames by a tap.

use super::memory::HeapMemory;
use super::{Counters, Direction, FramePool, PacketPort, Tally, TapCopy, TapRing, clock};
use crossbeam::channel::Receiver;
use exitmark_policy::{Answers, Snapshot};
use nix::errno::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The most copies of one system call.
const BATCH: u32 = 64;
/// Bytes of the memory of one copy.
const CHUNK: u16 = 256;
/// The pause between two looks at empty rings, which together hold the copies of this time. At once
/// after a copy it is short: a ring for 2,048 copies is full after 2 ms at a million frames a second.
const PAUSE: Duration = Duration::from_micros(500);
const IDLE_PAUSE: Duration = Duration::from_millis(5);
/// How many short pauses without a copy precede the long ones.
const SHORT_PAUSES: u32 = 200;

/// The handles by which other threads control a sender.
pub struct TapControl {
    /// What has changed.
    pub changes: Receiver<TapChange>,
    /// Set to stop the sender. It then sends what the rings hold at that moment.
    pub stop: Arc<AtomicBool>,
    /// The sender sets this when the NIC of its port is gone: the port is of no more use.
    pub is_lost: Arc<AtomicBool>,
    /// The snapshot in force, for slow-path frames of the XDP program.
    pub snapshot: Arc<Mutex<Arc<Snapshot>>>,
}

/// A change for a running sender.
pub enum TapChange {
    /// The port of the tap's NIC; `None` while the tap has no NIC or no link.
    Port(Option<PacketPort>),
    /// The rings of other workers, in place of the earlier ones.
    Workers(Vec<TapRing>),
}

/// Takes the copies out of the rings, finishes and sends them.
pub struct TapSender {
    /// The rings of the XDP program, and of the workers.
    rings: [Vec<TapRing>; 2],
    memory: HeapMemory,
    pool: FramePool,
    port: Option<PacketPort>,
    counters: Counters,
    tally: Tally,
    answers: Answers,
    /// Runs after each batch.
    #[cfg(test)]
    after_batch: Box<dyn FnMut() + Send>,
}

impl TapSender {
    /// A sender of the copies in these rings of the XDP program, which counts into these counters.
    pub fn new(rings: Vec<TapRing>, counters: Counters) -> Self {
        let rings = [rings, Vec::new()];
        let (memory, pool) = HeapMemory::new(BATCH, CHUNK);
        Self {
            rings,
            memory,
            pool,
            port: None,
            counters,
            tally: Tally::default(),
            answers: Answers::default(),
            #[cfg(test)]
            after_batch: Box::new(|| ()),
        }
    }

    /// The most frames that a port of a sender holds.
    pub const ROOM: u32 = BATCH;

    /// Sends until [`TapControl::stop`] is set, and closes the rings.
    pub fn run(mut self, control: &TapControl) {
        let mut pauses = SHORT_PAUSES;
        loop {
            // Read first: copies from before the stop are sent.
            let stops = control.stop.load(Ordering::Acquire);
            while let Ok(change) = control.changes.try_recv() {
                match change {
                    TapChange::Port(port) => self.port = port,
                    TapChange::Workers(rings) => {
                        let earlier = std::mem::replace(&mut self.rings[1], rings);
                        self.drain(&earlier, control);
                    }
                }
            }
            if stops {
                let rings = std::mem::take(&mut self.rings).concat();
                self.drain(&rings, control);
                return;
            }
            if self.turn(control) {
                pauses = 0;
                continue;
            }
            pauses = (pauses + 1).min(SHORT_PAUSES);
            thread::sleep(if pauses < SHORT_PAUSES {
                PAUSE
            } else {
                IDLE_PAUSE
            });
        }
    }

    /// Sends what these rings hold now, and closes them. What their writers add meanwhile is lost:
    /// it may be more than can be sent.
    fn drain(&mut self, rings: &[TapRing], control: &TapControl) {
        let held: Vec<_> = rings.iter().map(TapRing::held).collect();
        for (ring, held) in rings.iter().zip(held) {
            let mut copies = (0..held).map_while(|_| ring.take());
            loop {
                let batch: Vec<_> = copies.by_ref().take(BATCH as usize).collect();
                if batch.is_empty() {
                    break;
                }
                self.send(batch, control);
            }
        }
        for ring in rings {
            self.tally.tap_full(ring.close());
        }
        self.counters.publish(&mut self.tally);
    }

    /// Sends a batch of each ring. Returns whether there was a copy.
    pub fn turn(&mut self, control: &TapControl) -> bool {
        let mut had_copy = false;
        let rings = std::mem::take(&mut self.rings);
        for ring in rings.iter().flatten() {
            let batch: Vec<_> = std::iter::from_fn(|| ring.take())
                .take(BATCH as usize)
                .collect();
            if !batch.is_empty() {
                had_copy = true;
                self.send(batch, control);
            }
        }
        self.rings = rings;
        if had_copy {
            self.counters.publish(&mut self.tally);
        }
        had_copy
    }

    fn send(&mut self, batch: Vec<TapCopy>, control: &TapControl) {
        self.try_to_send(batch, control);
        #[cfg(test)]
        (self.after_batch)();
    }

    fn try_to_send(&mut self, batch: Vec<TapCopy>, control: &TapControl) {
        let mut leaving = Vec::with_capacity(batch.len());
        let mut directions = [Direction::Out; BATCH as usize];
        for mut copy in batch {
            if copy.is_unjudged() && !self.is_exit(&mut copy, control) {
                continue;
            }
            if self.port.is_none() {
                self.tally.tap_down(1);
                continue;
            }
            if !copy.finish() {
                self.tally.tap_refused(1);
                continue;
            }
            for frame in self.memory.load(copy.bytes(), &mut self.pool) {
                directions[frame.chunk()] = copy.direction();
                leaving.push(frame);
            }
        }
        let Some(port) = &mut self.port else {
            return;
        };
        for frame in &leaving {
            self.tally.tapped(directions[frame.chunk()], 1);
        }
        let failure = port.send_all(&self.memory, &mut leaving);
        port.complete(&mut self.pool);
        let is_down = matches!(
            failure,
            Some(Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)
        );
        for frame in leaving {
            self.tally.untapped(directions[frame.chunk()]);
            match is_down {
                true => self.tally.tap_down(1),
                false => self.tally.tap_refused(1),
            }
            self.pool.put(frame);
        }
        if matches!(failure, Some(Errno::ENXIO | Errno::ENODEV)) {
            control.is_lost.store(true, Ordering::Release);
        }
    }

    fn is_exit(&mut self, copy: &mut TapCopy, control: &TapControl) -> bool {
        let snapshot = control.snapshot.lock();
        let snapshot = Arc::clone(&snapshot.unwrap_or_else(PoisonError::into_inner));
        copy.is_exit(&snapshot, &mut self.answers, clock())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{TAP_IN, TAP_OUT, TAP_SLOTS, TAP_UNJUDGED};
    use super::super::counters::QUEUE_SLOTS;
    use super::super::{Cells, Counter};
    use super::*;
    use crossbeam::channel;
    use exitmark_policy::packet::Dscp;
    use exitmark_policy::{ClassifyBy, EndpointSet, Rules, SocketRules};

    const TIMEOUT: Duration = Duration::from_secs(20);
    /// A frame that must be judged, and is not exit traffic: in no count.
    const UNCOUNTED: u32 = TAP_IN | TAP_UNJUDGED;

    fn write(ring: &TapRing, flags: u32) -> bool {
        ring.push(&[1; 60], 60, flags, Dscp::AF11)
    }

    /// A full ring, whose last copies are these exit packets.
    fn full(exit_packets: u32) -> TapRing {
        let ring = TapRing::own();
        for number in 0..TAP_SLOTS {
            let is_last = number >= TAP_SLOTS - exit_packets;
            assert!(write(&ring, if is_last { TAP_OUT } else { UNCOUNTED }));
        }
        ring
    }

    /// Runs a sender that is stopped at its start, while `refilled` are filled up again after each
    /// batch. Returns how many exit packets it has taken to send: without a port, those count as
    /// `down`.
    #[track_caller]
    fn run(rings: Vec<TapRing>, workers: Vec<Vec<TapRing>>, refilled: Vec<TapRing>) -> u64 {
        let cells = Arc::new(Cells::own(QUEUE_SLOTS));
        let counters = Counters::over(Arc::clone(&cells), 0);
        let mut sender = TapSender::new(rings, Counters::over(cells, 0));
        sender.after_batch = Box::new(move || {
            refilled
                .iter()
                .for_each(|ring| while write(ring, UNCOUNTED) {})
        });
        let rules = Rules::new(ClassifyBy::RelaySet, Vec::new(), SocketRules::default());
        let snapshot = Snapshot::new(1, Arc::new(rules), EndpointSet::empty());
        let (to_sender, changes) = channel::unbounded();
        for rings in workers {
            to_sender.send(TapChange::Workers(rings)).unwrap();
        }
        let control = TapControl {
            changes,
            stop: Arc::new(AtomicBool::new(true)),
            is_lost: Arc::default(),
            snapshot: Arc::new(Mutex::new(Arc::new(snapshot))),
        };
        let (ended, end) = channel::bounded(1);
        thread::spawn(move || {
            sender.run(&control);
            let _ = ended.send(());
        });
        assert_eq!(
            end.recv_timeout(TIMEOUT),
            Ok(()),
            "the sender does not stop"
        );
        counters.read().of(Counter::TapDown)
    }

    #[test]
    fn the_sender_stops_while_its_rings_are_refilled_and_sends_what_they_held() {
        let rings = vec![full(100), full(1)];
        assert_eq!(run(rings.clone(), Vec::new(), rings.clone()), 101);
        for ring in rings {
            assert!(!write(&ring, TAP_OUT), "the ring is closed");
        }
    }

    #[test]
    fn the_sender_takes_other_workers_while_the_earlier_ones_refill_their_rings() {
        let earlier = vec![full(100), full(10)];
        let later = TapRing::own();
        assert!(write(&later, TAP_OUT));
        let workers = vec![earlier.clone(), vec![later.clone()]];
        assert_eq!(run(Vec::new(), workers, earlier.clone()), 111);
        for ring in earlier.iter().chain([&later]) {
            assert!(!write(ring, TAP_OUT), "the ring is closed");
        }
    }
}
