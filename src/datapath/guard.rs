//! The state that a worker and the XDP program share about liveness and backlog.
//!
//! The program hands over frames only while the worker keeps up (the rule is in bpf/guard.h). The
//! worker stamps a heartbeat every turn and reports how many frames it has finished.

use super::contract::{exitmark_guard, exitmark_handed, index_of};
use super::{Cells, PerRole, Role};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const HEARTBEAT: usize = index_of!(exitmark_guard, heartbeat);
const PROCESSED: usize = index_of!(exitmark_guard, processed);
const HANDED: usize = index_of!(exitmark_guard, handed);
const HANDED_NUMBERS: usize = size_of::<exitmark_handed>() / size_of::<u64>();
const SENT: usize = index_of!(exitmark_handed, sent);
const STAMPED: usize = index_of!(exitmark_handed, stamped);
const STAMPED_AT: usize = index_of!(exitmark_handed, stamped_at);
/// The size of one queue's guard, in 64-bit numbers.
pub const GUARD_NUMBERS: usize = size_of::<exitmark_guard>() / size_of::<u64>();

/// How long the counts must be still before frames that were handed over and never arrived are
/// given up.
const SETTLE_AFTER: Duration = Duration::from_millis(20);

/// The worker's side of one queue's guard.
#[derive(Debug)]
pub struct Guard {
    cells: Arc<Cells>,
    first: usize,
    /// Since when the counts have been still, and how many frames had been handed over by then.
    still: PerRole<Option<(Duration, u64)>>,
    /// The hand-over time, in ns, of the last frame that was measured or given up.
    measured: PerRole<u64>,
}

impl Guard {
    /// The guard of this queue, in cells with [`GUARD_NUMBERS`] numbers per queue.
    pub fn new(cells: Arc<Cells>, queue: u32) -> Self {
        let mut guard = Self {
            cells,
            first: queue as usize * GUARD_NUMBERS,
            still: PerRole::default(),
            measured: PerRole::default(),
        };
        // Frames that an earlier worker never finished are lost.
        for role in Role::ALL {
            guard.give_up(role, guard.sent(role));
        }
        guard
    }

    /// The age of this queue's heartbeat. `now` is CLOCK_MONOTONIC.
    pub fn age(cells: &Cells, queue: u32, now: Duration) -> Duration {
        let beat = cells[queue as usize * GUARD_NUMBERS + HEARTBEAT].load(Ordering::Acquire);
        now.saturating_sub(Duration::from_nanos(beat))
    }

    fn load(&self, number: usize) -> u64 {
        self.cells[self.first + number].load(Ordering::Acquire)
    }

    fn store(&self, number: usize, value: u64) {
        self.cells[self.first + number].store(value, Ordering::Release);
    }

    fn handed(&self, role: Role, number: usize) -> u64 {
        self.load(HANDED + role.index() * HANDED_NUMBERS + number)
    }

    /// How many frames the program has handed over so far.
    fn sent(&self, role: Role) -> u64 {
        self.handed(role, SENT)
    }

    fn give_up(&mut self, role: Role, sent: u64) {
        self.measured[role] = self.handed(role, STAMPED_AT);
        self.store(PROCESSED + role.index(), sent);
    }

    /// Stamps the heartbeat. `now` is CLOCK_MONOTONIC, as in the XDP program.
    #[inline]
    pub fn beat(&self, now: Duration) {
        self.store(HEARTBEAT, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Reports that `packets` more frames of this port are finished. Returns the hand-over time
    /// (CLOCK_MONOTONIC) if the program stamped one of them.
    #[inline]
    pub fn done(&mut self, role: Role, packets: u64) -> Option<Duration> {
        let number = PROCESSED + role.index();
        let processed = self.load(number) + packets;
        // Read before the report below, after which the program may stamp another frame.
        let handed_at = self.handed(role, STAMPED_AT);
        let is_measured = handed_at != self.measured[role]
            && processed
                .wrapping_sub(self.handed(role, STAMPED))
                .cast_signed()
                > 0;
        if is_measured {
            self.measured[role] = handed_at;
        }
        self.store(number, processed);
        self.still[role] = None;
        is_measured.then(|| Duration::from_nanos(handed_at))
    }

    /// Whether frames were handed over that the worker has not finished.
    pub fn is_waiting(&self) -> bool {
        Role::ALL.into_iter().any(|role| self.waits_for(role))
    }

    fn waits_for(&self, role: Role) -> bool {
        self.sent(role) != self.load(PROCESSED + role.index())
    }

    /// Call when nothing arrived from this port. Frames that were handed over but did not arrive
    /// (the ring was full, or no buffer was free) are given up when the counts have been still for
    /// a while; otherwise the worker would seem to be behind.
    pub fn idle(&mut self, role: Role, now: Duration) {
        if !self.waits_for(role) {
            self.still[role] = None;
            return;
        }
        let sent = self.sent(role);
        match self.still[role] {
            Some((since, before)) if before == sent => {
                if now >= since + SETTLE_AFTER {
                    self.give_up(role, sent);
                    self.still[role] = None;
                }
            }
            _ => self.still[role] = Some((now, sent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> (Arc<Cells>, Guard) {
        let cells = Arc::new(Cells::own(2 * GUARD_NUMBERS));
        (Arc::clone(&cells), Guard::new(cells, 1))
    }

    fn hand_over(cells: &Cells, role: Role, frames: u64) {
        let sent = GUARD_NUMBERS + HANDED + role.index() * HANDED_NUMBERS + SENT;
        cells[sent].fetch_add(frames, Ordering::Relaxed);
    }

    #[test]
    fn waits_for_what_was_handed_over_and_is_not_done() {
        let (cells, mut guard) = guard();
        assert!(!guard.is_waiting());
        hand_over(&cells, Role::Incoming, 3);
        assert!(guard.is_waiting());
        guard.done(Role::Incoming, 2);
        assert!(guard.is_waiting());
        guard.done(Role::Incoming, 1);
        assert!(!guard.is_waiting());
        // The other queue's numbers were not touched.
        assert!(
            cells[..GUARD_NUMBERS]
                .iter()
                .all(|cell| cell.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn gives_up_frames_that_did_not_arrive_in_time() {
        let (cells, mut guard) = guard();
        let ms = Duration::from_millis;
        hand_over(&cells, Role::Host, 5);
        guard.idle(Role::Host, ms(100));
        guard.idle(Role::Host, ms(119));
        assert!(guard.is_waiting());
        // Another frame restarts the wait.
        hand_over(&cells, Role::Host, 1);
        guard.idle(Role::Host, ms(120));
        // Other ports do not matter.
        hand_over(&cells, Role::Uplink, 1);
        guard.done(Role::Uplink, 1);
        guard.idle(Role::Host, ms(139));
        assert!(guard.is_waiting());
        guard.idle(Role::Host, ms(140));
        assert!(!guard.is_waiting());
    }

    #[test]
    fn returns_the_stamp_of_a_finished_frame_once() {
        let (cells, mut guard) = guard();
        let host = GUARD_NUMBERS + HANDED;
        let stamp = |before: u64, at: u64| {
            cells[host + STAMPED].store(before, Ordering::Relaxed);
            cells[host + STAMPED_AT].store(at, Ordering::Relaxed);
        };
        hand_over(&cells, Role::Host, 5);
        stamp(3, 700);
        assert_eq!(guard.done(Role::Host, 3), None);
        hand_over(&cells, Role::Incoming, 9);
        assert_eq!(guard.done(Role::Incoming, 9), None);
        assert_eq!(guard.done(Role::Host, 1), Some(Duration::from_nanos(700)));
        assert_eq!(guard.done(Role::Host, 1), None);
        // A frame that is given up is not measured.
        hand_over(&cells, Role::Host, 1);
        stamp(5, 800);
        guard.idle(Role::Host, Duration::from_millis(100));
        guard.idle(Role::Host, Duration::from_millis(200));
        assert!(!guard.is_waiting());
        hand_over(&cells, Role::Host, 1);
        assert_eq!(guard.done(Role::Host, 1), None);
    }

    #[test]
    fn a_new_worker_begins_with_nothing_in_flight() {
        let (cells, guard) = guard();
        hand_over(&cells, Role::Host, 5);
        assert!(guard.is_waiting());
        assert!(!Guard::new(Arc::clone(&cells), 1).is_waiting());
    }

    #[test]
    fn a_heartbeat_is_in_nanoseconds() {
        let (cells, guard) = guard();
        guard.beat(Duration::new(1, 7));
        assert_eq!(cells[GUARD_NUMBERS].load(Ordering::Relaxed), 1_000_000_007);
    }
}
