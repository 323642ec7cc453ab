//! How a worker waits for the next frame: whether it busy-polls or sleeps, and whether a wake-up is
//! made fast meanwhile.
//!
//! The decisions depend only on the times that they are given, never on a clock.

use super::CpuLatency;
use std::sync::Arc;
use std::time::Duration;

/// The time over which waits are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// From this many waits within a window on, one in 2 ms, wake-ups are made fast, and below half as
/// many no longer. Idle states that take long to leave save energy only if they last as long.
const MANY: u32 = 50;
const FEW: u32 = MANY / 2;

/// How long a worker busy-polls at most before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpinLimits {
    /// While a wake-up may have to wait for the core to leave an idle state.
    pub usual: Duration,
    /// While wake-ups are fast.
    pub fast: Duration,
}

impl SpinLimits {
    /// As long as a wake-up takes: spinning then costs at most as much as it saves.
    pub const DEFAULT: Self = Self {
        usual: Duration::from_micros(50),
        fast: Duration::from_micros(10),
    };

    /// The same limit in either case.
    pub const fn fixed(limit: Duration) -> Self {
        Self {
            usual: limit,
            fast: limit,
        }
    }
}

/// Decides whether an idle worker busy-polls instead of sleeping: only while frames arrive in such
/// quick succession that sleeping would not pay off. Decides from the same times when to make
/// wake-ups fast: while frames arrive often, but not so often that the worker would not sleep.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    limits: SpinLimits,
    /// Since when turns have found nothing; `None` after a turn with frames.
    idle_since: Option<Duration>,
    /// How long the worker was idle before the last frames.
    waited: Duration,
    /// The begin of the window, and the waits in it that are longer than the limit for fast
    /// wake-ups. They are the same whether or not wake-ups are fast.
    window: Duration,
    waits: u32,
    wants_fast: bool,
}

impl Wait {
    /// A worker to which no frame has arrived.
    pub const fn new(limits: SpinLimits) -> Self {
        Self {
            limits,
            idle_since: Some(Duration::ZERO),
            waited: Duration::MAX,
            window: Duration::ZERO,
            waits: 0,
            wants_fast: false,
        }
    }

    /// Call after a turn that began at `now`, with whether it found frames and whether wake-ups
    /// are fast. Returns whether to make another turn without sleep.
    pub fn goes_on(&mut self, now: Duration, was_active: bool, is_fast: bool) -> bool {
        self.renew_window(now);
        if was_active {
            self.waited = match self.idle_since.take() {
                Some(since) => now.saturating_sub(since),
                None => Duration::ZERO,
            };
            if self.waited > self.limits.fast {
                self.waits = self.waits.saturating_add(1);
                self.wants_fast |= self.waits >= MANY;
            }
            return true;
        }
        let since = *self.idle_since.get_or_insert(now);
        let limit = match is_fast {
            true => self.limits.fast,
            false => self.limits.usual,
        };
        self.waited < limit && now.saturating_sub(since) < limit
    }

    fn renew_window(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.window);
        if elapsed < WINDOW {
            return;
        }
        // A sleep may have made the window longer.
        self.wants_fast = WINDOW * self.waits >= elapsed * FEW && self.wants_fast;
        (self.window, self.waits) = (now, 0);
    }

    /// Whether wake-ups are to be fast.
    pub const fn wants_fast(&self) -> bool {
        self.wants_fast
    }

    /// How long the worker may sleep without frames: with fast wake-ups not so long that they
    /// outlast the traffic.
    pub fn longest_sleep(&self, limit: Duration) -> Duration {
        match self.wants_fast {
            true => limit.min(WINDOW),
            false => limit,
        }
    }
}

/// A worker's share in the request for fast wake-ups, which ends with it.
#[derive(Debug, Default)]
pub(crate) struct FastWakes {
    latency: Option<Arc<CpuLatency>>,
    is_requested: bool,
}

impl FastWakes {
    /// Without a limit, wake-ups stay as they are.
    pub(crate) const fn of(latency: Option<Arc<CpuLatency>>) -> Self {
        Self {
            latency,
            is_requested: false,
        }
    }

    /// Whether wake-ups are fast.
    pub(crate) const fn are_on(&self) -> bool {
        self.is_requested
    }

    /// Requests fast wake-ups, or withdraws the request. Makes a system call only if that changes.
    #[inline]
    pub(crate) fn set(&mut self, wanted: bool) {
        if wanted != self.is_requested
            && let Some(latency) = &self.latency
        {
            latency.request(wanted);
            self.is_requested = wanted;
        }
    }
}

impl Drop for FastWakes {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::OwnedFd;

    fn us(number: u64) -> Duration {
        Duration::from_micros(number)
    }

    /// Frames at this interval in µs for a while, each of them found by a turn of its own, with
    /// idle turns in between as long as the worker does not sleep. Returns whether it ever spun to
    /// the next frame, and the time of the last one.
    fn frames(wait: &mut Wait, from: u64, interval: u64, count: u64, is_fast: bool) -> (bool, u64) {
        let mut spun = false;
        let mut last = from;
        for number in 0..count {
            last = from + number * interval;
            assert!(wait.goes_on(us(last), true, is_fast));
            let goes_on = |wait: &mut Wait, at| wait.goes_on(us(at), false, is_fast);
            let mut idle = (last + 1..last + interval).take_while(|&at| goes_on(wait, at));
            spun |= idle.by_ref().last() == Some(last + interval - 1);
        }
        (spun, last)
    }

    #[test]
    fn a_worker_spins_less_while_wake_ups_are_fast() {
        for (interval, usual, fast) in [(5, true, true), (40, true, false), (60, false, false)] {
            for (is_fast, expected) in [(false, usual), (true, fast)] {
                let mut wait = Wait::new(SpinLimits::DEFAULT);
                let (spun, _) = frames(&mut wait, 1_000_000, interval, 100, is_fast);
                assert_eq!(spun, expected, "{interval} us, {is_fast}");
            }
        }
        // A limit that is configured holds in either case.
        let mut wait = Wait::new(SpinLimits::fixed(us(300)));
        assert!(frames(&mut wait, 1_000_000, 200, 100, true).0);
        let mut wait = Wait::new(SpinLimits::fixed(Duration::ZERO));
        assert!(!frames(&mut wait, 1_000_000, 5, 100, false).0);
    }

    #[test]
    fn wake_ups_are_fast_while_the_worker_often_waits() {
        // 5,000 frames a second: after the fiftieth.
        let mut wait = Wait::new(SpinLimits::DEFAULT);
        let (_, last) = frames(&mut wait, 1_000_000, 200, 49, false);
        assert!(!wait.wants_fast());
        frames(&mut wait, last + 200, 200, 1, false);
        assert!(wait.wants_fast());
        assert_eq!(wait.longest_sleep(us(1_000_000)), WINDOW);
        // It stays so at 300 a second, and ends at 200.
        let (_, last) = frames(&mut wait, last + 400, 3_333, 1000, true);
        assert!(wait.wants_fast());
        frames(&mut wait, last + 5000, 5000, 100, true);
        assert!(!wait.wants_fast());
        assert_eq!(wait.longest_sleep(us(1_000_000)), us(1_000_000));
    }

    #[test]
    fn a_few_frames_or_a_flood_do_not_make_wake_ups_fast() {
        // 400 a second.
        let mut wait = Wait::new(SpinLimits::DEFAULT);
        frames(&mut wait, 1_000_000, 2500, 1000, false);
        assert!(!wait.wants_fast());
        // The worker never sleeps.
        frames(&mut wait, 10_000_000, 5, 100_000, false);
        assert!(!wait.wants_fast());
        // A spin that bridges the gaps does not hide them: at the shorter limit it would sleep.
        let (spun, _) = frames(&mut wait, 20_000_000, 40, 1000, false);
        assert!(spun && wait.wants_fast());
    }

    #[test]
    fn fast_wake_ups_end_with_the_traffic() {
        let mut wait = Wait::new(SpinLimits::DEFAULT);
        let (_, last) = frames(&mut wait, 1_000_000, 200, 1000, false);
        assert!(wait.wants_fast());
        // The worker sleeps as long as it may, twice at most.
        let mut now = us(last);
        for _ in 0..2 {
            now += wait.longest_sleep(us(1_000_000));
            assert!(!wait.goes_on(now, false, true));
        }
        assert!(!wait.wants_fast());
        // A frame after a second is a late one, not many.
        assert!(wait.goes_on(now + us(1_000_000), true, false));
        assert!(!wait.goes_on(now + us(1_000_001), false, false) && !wait.wants_fast());
    }

    #[test]
    fn a_request_changes_with_the_wish_and_ends_with_the_worker() {
        let (mut requests, device) = io::pipe().unwrap();
        let latency = CpuLatency::over(File::from(OwnedFd::from(device)), us(10));
        let mut wakes = FastWakes::of(Some(Arc::new(latency)));
        for wanted in [false, true, true, false, true] {
            wakes.set(wanted);
            assert_eq!(wakes.are_on(), wanted);
        }
        drop(wakes);
        let mut values = Vec::new();
        requests.read_to_end(&mut values).unwrap();
        let values = values.as_chunks::<4>().0.iter();
        let values: Vec<_> = values.map(|&value| i32::from_ne_bytes(value)).collect();
        assert_eq!(values, [10, -1, 10, -1]);
        // Without a device, wake-ups are never fast.
        let mut wakes = FastWakes::of(None);
        wakes.set(true);
        assert!(!wakes.are_on());
    }
}
