//! One queue of every port, one thread: the loop that moves frames between rings.
//!
//! A turn looks at every ring, whether anything arrived or not: a loop that skips ahead when
//! nothing arrived forgets completions and unsent frames. No port can hold up another: what
//! does not fit into a transmit ring is dropped, by that port's name.

use super::{
    Counters, DropReason, Forwarder, Frame, FramePool, Guard, Outbox, PerRole, Port, Role,
};
use crate::policy::Snapshot;
use crossbeam::channel::{Receiver, Sender};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a worker sleeps when nothing happens; it wakes at once when a frame arrives.
const IDLE_SLEEP: Duration = Duration::from_secs(1);
/// The first and the longest pause between two attempts to send what the kernel has not taken.
const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_LAST: Duration = Duration::from_millis(64);
/// How long a worker sleeps while frames are under way to it that the kernel has not delivered.
const WAITING_SLEEP: Duration = Duration::from_millis(2);
/// How often a worker that never sleeps says where its frames are, in turns.
const CHECK_EVERY: u64 = 1024;
/// How long a stopping worker waits for frames that are still under way.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How many turns without a frame mean that nothing more arrives.
const DRAIN_QUIET_TURNS: u32 = 4;

/// How much a worker does in a turn, and for how long it looks for the next frame.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
    /// Frames that are received from one port in one turn.
    pub batch: usize,
    /// How long it waits for the next frame awake, where frames come so fast: to be woken takes
    /// longer.
    pub spin: Duration,
}

impl WorkerLimits {
    /// Limits of this batch and this spin.
    pub const fn new(batch: u32, spin: Duration) -> Self {
        Self {
            batch: batch as usize,
            spin,
        }
    }

    /// The most frames that a worker has in its hands: a batch of each port on its way in and one
    /// on its way out, and of each port the beginning of a packet that the last batch cut off.
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

/// The threads of a worker's life that others hold.
pub struct Control {
    /// New snapshots, looked at once a turn.
    pub snapshots: Receiver<Arc<Snapshot>>,
    /// Where old ones go, to be freed off the packet path.
    pub retired: Sender<Arc<Snapshot>>,
    /// Set to end the worker; then wake it.
    pub stop: Arc<AtomicBool>,
    /// Written to wake a sleeping worker; never blocks.
    pub wake: Arc<EventFd>,
    /// Where the frames are, from time to time.
    pub gauge: Arc<BalanceGauge>,
}

/// A worker's balance, for others to see.
#[derive(Debug, Default)]
pub struct BalanceGauge {
    pool: AtomicU64,
    in_hand: AtomicU64,
    receiving: AtomicU64,
    sending: AtomicU64,
    total: AtomicU64,
    unaccounted: AtomicU64,
}

impl BalanceGauge {
    fn publish(&self, balance: &Balance) {
        for (cell, number) in [
            (&self.pool, balance.pool),
            (&self.in_hand, balance.in_hand),
            (&self.receiving, balance.receiving),
            (&self.sending, balance.sending),
            (&self.total, balance.total),
            (&self.unaccounted, balance.unaccounted()),
        ] {
            cell.store(number as u64, Ordering::Relaxed);
        }
    }

    /// The last one. Its parts may be of two moments; what is unaccounted for is of one.
    pub fn read(&self) -> (Balance, u64) {
        let number =
            |cell: &AtomicU64| usize::try_from(cell.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let balance = Balance {
            pool: number(&self.pool),
            in_hand: number(&self.in_hand),
            receiving: number(&self.receiving),
            sending: number(&self.sending),
            total: number(&self.total),
        };
        (balance, self.unaccounted.load(Ordering::Relaxed))
    }
}

/// Where every frame of a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Unused.
    pub pool: usize,
    /// Received and not handed on.
    pub in_hand: usize,
    /// With the ports to receive into: fill and rx rings.
    pub receiving: usize,
    /// With the ports to be sent: tx and completion rings.
    pub sending: usize,
    /// How many there are.
    pub total: usize,
}

impl Balance {
    /// How many frames are in none of the places, or in two.
    pub const fn unaccounted(&self) -> usize {
        (self.pool + self.in_hand + self.receiving + self.sending).abs_diff(self.total)
    }
}

/// What a worker says when it ends.
#[derive(Clone, Copy, Debug)]
pub struct WorkerReport {
    /// Where its frames were at the end.
    pub balance: Balance,
    /// Whether no frame rested in the pool twice.
    pub pool_is_sound: bool,
}

impl<P: Port> Worker<P> {
    /// A worker over these ports, all of whose frames are in `pool`. A role without a port
    /// neither receives nor sends.
    pub fn new(
        ports: PerRole<Option<P>>,
        memory: P::Memory,
        pool: FramePool,
        forwarder: Forwarder,
        limits: WorkerLimits,
    ) -> Self {
        // Room for a batch and for the beginning of a packet that the last one cut off, so that
        // no turn allocates.
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

    /// With somebody who watches that it lives and keeps up.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Counting on where others have.
    #[must_use]
    pub fn counting(mut self, counters: Counters) -> Self {
        self.counters = Arc::new(counters);
        self
    }

    /// The counts that this worker publishes.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The port that plays a role.
    pub fn port(&mut self, role: Role) -> Option<&mut P> {
        self.ports[role].as_mut()
    }

    /// The decisions' side, e.g. to follow another snapshot.
    pub const fn forwarder(&mut self) -> &mut Forwarder {
        &mut self.forwarder
    }

    /// Looks at every ring once; says whether anything arrived. `now` counts from any fixed
    /// moment; where the worker is guarded, it is CLOCK_MONOTONIC's.
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
            self.counters.publish(self.forwarder.tally());
        }
        self.report_done(done, now);
        active
    }

    /// Tells the guard what this turn did, when it is sent.
    fn report_done(&mut self, done: PerRole<u64>, now: Duration) {
        let Some(guard) = &mut self.guard else {
            return;
        };
        for (role, &packets) in done.iter() {
            if packets > 0 {
                if let Some(handed_at) = guard.done(role, packets)
                    && let Some(samples) = self.forwarder.samples()
                {
                    samples.resided(clock().saturating_sub(handed_at));
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

    /// Where every frame is. Cheap: a few additions.
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

    /// What to say at the end.
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

/// Whether a worker that found nothing looks once more instead of going to sleep: only while frames
/// come so close to each other that it would be woken before it slept well.
#[derive(Clone, Copy, Debug)]
pub struct Spin {
    limit: Duration,
    /// When it began to find nothing.
    idle_since: Option<Duration>,
    /// The last frames came less than `limit` after it had begun to wait for them.
    is_worth_it: bool,
}

impl Spin {
    /// Waits for so long, awake.
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            idle_since: Some(Duration::ZERO),
            is_worth_it: false,
        }
    }

    /// After a turn that began at `now`.
    pub fn goes_on(&mut self, now: Duration, was_active: bool) -> bool {
        let in_time = |since| now.saturating_sub(since) < self.limit;
        if was_active {
            self.is_worth_it = self.idle_since.is_none_or(in_time);
            self.idle_since = None;
            return true;
        }
        let since = self.idle_since.unwrap_or(now);
        self.idle_since = Some(since);
        self.is_worth_it && in_time(since)
    }
}

/// The time since boot on the clock that the XDP program reads too.
pub fn clock() -> Duration {
    // Linux always has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The most frames that one packet can take: the kernel's MAX_SKB_FRAGS and a head.
const MAX_FRAMES_PER_PACKET: usize = 18;

fn packets(frames: &[Frame]) -> u64 {
    frames.iter().filter(|frame| !frame.has_more()).count() as u64
}

impl<P: Port + AsFd> Worker<P> {
    /// Runs until told to stop, then drains what is under way and reports.
    pub fn run(mut self, control: &Control) -> WorkerReport {
        let mut retry = RETRY_FIRST;
        let mut spin = Spin::new(self.limits.spin);
        let mut turns = 0_u64;
        while !control.stop.load(Ordering::Acquire) {
            if let Ok(snapshot) = control.snapshots.try_recv() {
                let old = self.forwarder.follow(snapshot);
                let _ = control.retired.send(old);
            }
            let now = clock();
            let was_active = self.turn(now);
            turns += 1;
            // What cannot be sent is not tried again and again.
            let goes_on = spin.goes_on(now, was_active) && (was_active || !self.has_unsent());
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
            self.sleep(&control.wake, sleep);
        }
        self.drain(&control.wake);
        let report = self.report();
        control.gauge.publish(&report.balance);
        report
    }

    /// Forwards what has already arrived and waits, within limits, until it is sent.
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

    /// Sleeps until a frame arrives at any port, somebody wakes this worker, or time is up.
    fn sleep(&self, wake: &EventFd, limit: Duration) {
        // A role without a port is watched by proxy, so that this needs no allocation.
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
