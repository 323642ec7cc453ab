//! The worker: one thread that moves frames between the rings of one queue of every port.
//!
//! Every turn serves every ring, whether frames arrived or not: a loop that continues early when
//! nothing arrived misses completions and unsent frames. No port can block another: frames that do
//! not fit into a transmit ring are dropped and counted for that port.

use super::wait::{FastWakes, SpinLimits, Wait};
use super::{
    Counters, CpuLatency, DropReason, Forwarder, Frame, FramePool, Guard, Outbox, PerRole, Port,
    Role,
};
use crossbeam::channel::{Receiver, Sender};
use exitmark_policy::Snapshot;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long an idle worker sleeps at most; an arriving frame wakes it.
const IDLE_SLEEP: Duration = Duration::from_secs(1);
/// The shortest and longest pause between two attempts to send frames that the kernel has not
/// taken.
const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_LAST: Duration = Duration::from_millis(64);
/// How long a worker sleeps while frames were handed over that the kernel has not delivered yet.
const WAITING_SLEEP: Duration = Duration::from_millis(2);
/// How often a worker that never sleeps publishes its balance, in turns.
const CHECK_EVERY: u64 = 1024;
/// How long a stopping worker waits for outstanding frames.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How many turns without a frame end the drain.
const DRAIN_QUIET_TURNS: u32 = 4;

/// The batch size of a worker, and how long it busy-polls while frames arrive that fast.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
    /// The most frames received from one port in one turn.
    pub batch: usize,
    /// How long the worker busy-polls for the next frame; waking up would take longer.
    pub spin: SpinLimits,
}

impl WorkerLimits {
    /// Limits of this batch and this spin.
    pub const fn new(batch: u32, spin: SpinLimits) -> Self {
        Self {
            batch: batch as usize,
            spin,
        }
    }

    /// The most frames that a worker holds outside of the pool and rings. For each of three ports:
    /// a received batch, a batch to send, and the beginning of a packet that a batch cut off.
    #[allow(clippy::cast_possible_truncation, reason = "a batch came from a u32")]
    pub const fn in_hand(self) -> u32 {
        (6 * self.batch + 3 * MAX_FRAMES_PER_PACKET) as u32
    }
}

/// Moves frames between one queue of every port.
pub struct Worker<P: Port> {
    ports: PerRole<Option<P>>,
    memory: P::Memory,
    pool: FramePool,
    forwarder: Forwarder,
    limits: WorkerLimits,
    arrived: PerRole<Vec<Frame>>,
    outbox: Outbox,
    counters: Arc<Counters>,
    guard: Option<Guard>,
}

/// The handles by which other threads control a worker.
pub struct Control {
    /// New snapshots; the worker checks for one every turn.
    pub snapshots: Receiver<Arc<Snapshot>>,
    /// Receives old snapshots, to be freed off the packet path.
    pub retired: Sender<Arc<Snapshot>>,
    /// Set this to stop the worker, then wake it.
    pub stop: Arc<AtomicBool>,
    /// Write to this to wake a sleeping worker; non-blocking.
    pub wake: Arc<EventFd>,
    /// Receives the worker's balance, from time to time.
    pub gauge: Arc<BalanceGauge>,
    /// What makes wake-ups fast while frames arrive often, if anything.
    pub cpu_latency: Option<Arc<CpuLatency>>,
}

/// A worker's published balance: the fields of [`Balance`] and the number of unaccounted frames.
#[derive(Debug, Default)]
pub struct BalanceGauge([AtomicUsize; 6]);

impl BalanceGauge {
    fn publish(&self, balance: &Balance) {
        let numbers = [
            balance.pool,
            balance.in_hand,
            balance.receiving,
            balance.sending,
            balance.total,
            balance.unaccounted(),
        ];
        for (cell, number) in self.0.iter().zip(numbers) {
            cell.store(number, Ordering::Relaxed);
        }
    }

    /// The last balance and its number of unaccounted frames. The parts may be from two moments;
    /// the number of unaccounted frames is from one.
    pub fn read(&self) -> (Balance, u64) {
        let numbers = self.0.each_ref().map(|cell| cell.load(Ordering::Relaxed));
        let [pool, in_hand, receiving, sending, total, unaccounted] = numbers;
        let balance = Balance {
            pool,
            in_hand,
            receiving,
            sending,
            total,
        };
        (balance, unaccounted as u64)
    }
}

/// How many frames of a worker are in which place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Unused, in the pool: neither in a ring nor in the worker's hands.
    pub pool: usize,
    /// Received and not yet processed.
    pub in_hand: usize,
    /// Submitted to be filled, or received: fill ring, NIC and rx ring.
    pub receiving: usize,
    /// Submitted to be sent: tx ring, NIC and completion ring.
    pub sending: usize,
    /// All frames of the worker: its part of the UMEM. Constant while the worker runs.
    pub total: usize,
}

impl Balance {
    /// The difference between the total and the sum of the places; 0 unless there is a bug.
    pub const fn unaccounted(&self) -> usize {
        (self.pool + self.in_hand + self.receiving + self.sending).abs_diff(self.total)
    }
}

/// A worker's report when it ends: whether frames are missing or in the pool twice.
#[derive(Clone, Copy, Debug)]
pub struct WorkerReport {
    /// The balance after the drain, in frames.
    pub balance: Balance,
    /// Whether no frame was in the pool twice.
    pub pool_is_sound: bool,
}

impl<P: Port> Worker<P> {
    /// A worker over these ports, with all frames that are in no ring in `pool`. A role without a
    /// port neither receives nor sends.
    pub fn new(
        ports: PerRole<Option<P>>,
        memory: P::Memory,
        pool: FramePool,
        forwarder: Forwarder,
        limits: WorkerLimits,
    ) -> Self {
        // Room for all frames in hand, so that no turn allocates.
        let room = || Vec::with_capacity(limits.in_hand() as usize);
        let mut worker = Self {
            ports,
            memory,
            pool,
            forwarder,
            limits,
            arrived: PerRole::from_fn(|_| room()),
            outbox: Outbox {
                leaving: PerRole::from_fn(|_| room()),
                dropped: room(),
            },
            counters: Arc::default(),
            guard: None,
        };
        worker.fill();
        worker
    }

    /// Reports the worker's heartbeat and progress to the XDP program through this guard.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Counts into these counters, and continues their values.
    #[must_use]
    pub fn counting(mut self, counters: Counters) -> Self {
        self.counters = Arc::new(counters);
        self
    }

    /// The counts that this worker publishes.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The port of a role; `None` if the role has no NIC.
    pub fn port(&mut self, role: Role) -> Option<&mut P> {
        self.ports[role].as_mut()
    }

    /// The forwarder, e.g. to use another snapshot.
    pub const fn forwarder(&mut self) -> &mut Forwarder {
        &mut self.forwarder
    }

    /// Serves every ring once; returns whether anything arrived. `now` counts from any fixed
    /// moment; with a guard it must be CLOCK_MONOTONIC.
    pub fn turn(&mut self, now: Duration) -> bool {
        if let Some(guard) = &self.guard {
            guard.beat(now);
        }
        for (_, port) in self.ports.iter_mut() {
            if let Some(port) = port {
                port.complete(&mut self.memory, &mut self.pool);
            }
        }
        let mut active = false;
        let mut done = PerRole::<u64>::default();
        for role in Role::ALL {
            let Some(port) = &mut self.ports[role] else {
                continue;
            };
            let arrived = &mut self.arrived[role];
            let before = arrived.len();
            port.receive(&mut self.memory, arrived, self.limits.batch);
            if arrived.len() > before {
                active = true;
                done[role] = self.forwarder.process_batch(
                    role,
                    arrived,
                    &mut self.memory,
                    &mut self.outbox,
                    now,
                );
            }
        }
        if active {
            self.send();
        }
        self.fill();
        for (_, port) in self.ports.iter_mut() {
            if let Some(port) = port {
                port.kick();
            }
        }
        if active {
            self.forwarder.publish(&self.counters);
        }
        self.report_done(done, now);
        active
    }

    /// Reports this turn's frames to the guard, after they were sent.
    fn report_done(&mut self, done: PerRole<u64>, now: Duration) {
        let Some(guard) = &mut self.guard else {
            return;
        };
        for (role, &packets) in done.iter() {
            if packets > 0 {
                if let Some(handed_at) = guard.done(role, packets)
                    && let Some(samples) = self.forwarder.samples()
                {
                    samples.record_latency(clock().saturating_sub(handed_at));
                }
            } else {
                guard.idle(role, now);
            }
        }
    }

    fn send(&mut self) {
        for role in Role::ALL {
            let leaving = &mut self.outbox.leaving[role];
            if leaving.is_empty() {
                continue;
            }
            let mut sent = packets(leaving);
            if let Some(port) = &mut self.ports[role] {
                port.transmit(&mut self.memory, leaving);
            }
            let left = packets(leaving);
            sent -= left;
            let tally = self.forwarder.tally();
            tally.forwarded(role, sent);
            tally.dropped(DropReason::TxFull(role), left);
            self.outbox.dropped.append(leaving);
        }
        for frame in self.outbox.dropped.drain(..) {
            self.pool.put(frame);
        }
    }

    fn fill(&mut self) {
        for (_, port) in self.ports.iter_mut() {
            if let Some(port) = port {
                port.fill(&mut self.memory, &mut self.pool);
            }
        }
    }

    /// The current balance. Cheap: a few additions.
    pub fn balance(&self) -> Balance {
        let mut balance = Balance {
            pool: self.pool.len(),
            in_hand: self.arrived.iter().map(|(_, frames)| frames.len()).sum(),
            receiving: 0,
            sending: 0,
            total: self.pool.total(),
        };
        for (_, port) in self.ports.iter() {
            if let Some(port) = port {
                let held = port.held();
                balance.receiving += held.receiving;
                balance.sending += held.sending;
            }
        }
        balance
    }

    /// The final report, for a worker that has stopped: it checks every frame in the pool.
    pub fn report(&self) -> WorkerReport {
        WorkerReport {
            balance: self.balance(),
            pool_is_sound: self.pool.is_sound(),
        }
    }

    fn has_unsent(&mut self) -> bool {
        self.ports
            .iter_mut()
            .any(|(_, port)| port.as_mut().is_some_and(Port::has_unsent))
    }
}

/// The time since boot on the clock that the XDP program reads too.
pub fn clock() -> Duration {
    // Linux always has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The most frames of one packet: the kernel's MAX_SKB_FRAGS (17) and a head.
const MAX_FRAMES_PER_PACKET: usize = 18;

fn packets(frames: &[Frame]) -> u64 {
    frames.iter().filter(|frame| !frame.has_more()).count() as u64
}

impl<P: Port + AsFd> Worker<P> {
    /// Runs until [`Control::stop`] is set, then drains outstanding frames and reports.
    pub fn run(mut self, control: &Control) -> WorkerReport {
        let mut retry = RETRY_FIRST;
        let mut wait = Wait::new(self.limits.spin);
        let mut fast_wakes = FastWakes::of(control.cpu_latency.clone());
        let mut turns = 0_u64;
        while !control.stop.load(Ordering::Acquire) {
            if let Ok(snapshot) = control.snapshots.try_recv() {
                let old = self.forwarder.follow(snapshot);
                let _ = control.retired.send(old);
            }
            let now = clock();
            let was_active = self.turn(now);
            turns += 1;
            // No busy polling while frames cannot be sent.
            let goes_on = wait.goes_on(now, was_active, fast_wakes.are_on())
                && (was_active || !self.has_unsent());
            fast_wakes.set(wait.wants_fast());
            if !goes_on || turns.is_multiple_of(CHECK_EVERY) {
                control.gauge.publish(&self.balance());
            }
            if was_active {
                retry = RETRY_FIRST;
            }
            if goes_on {
                continue;
            }
            let sleep = if self.has_unsent() {
                retry = (retry * 2).min(RETRY_LAST);
                retry
            } else if self.guard.as_ref().is_some_and(Guard::is_waiting) {
                WAITING_SLEEP
            } else {
                IDLE_SLEEP
            };
            self.sleep(&control.wake, wait.longest_sleep(sleep));
        }
        drop(fast_wakes);
        self.drain(&control.wake);
        let report = self.report();
        control.gauge.publish(&report.balance);
        report
    }

    /// Forwards frames that have already arrived, and waits up to [`DRAIN_LIMIT`] until they are
    /// sent.
    fn drain(&mut self, wake: &EventFd) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut quiet = 0;
        while quiet < DRAIN_QUIET_TURNS && Instant::now() < deadline {
            let active = self.turn(clock());
            if active || self.balance().sending > 0 {
                quiet = 0;
            } else {
                quiet += 1;
            }
            if !active {
                self.sleep(wake, RETRY_FIRST);
            }
        }
    }

    /// Sleeps until a frame arrives at any port, `wake` is written, or `limit` is over.
    fn sleep(&self, wake: &EventFd, limit: Duration) {
        // `wake` stands in for a role without a port, so that this needs no allocation.
        let fd = |role| self.ports[role].as_ref().map_or(wake.as_fd(), AsFd::as_fd);
        let mut watched = [
            wake.as_fd(),
            fd(Role::Host),
            fd(Role::Uplink),
            fd(Role::Incoming),
        ]
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let woken = poll(&mut watched, timeout).is_ok();
        if woken && watched[0].any() == Some(true) {
            let _ = wake.read();
        }
    }
}
