//! When periods begin and end. Pure: clock readings are arguments.
//!
//! A period is a stretch of UTC that ends when the wall clock reaches its end. If the clock is set
//! back, the running period goes on until its length has passed on the monotonic clock. The next
//! period is aligned to the wall clock again; if that period was counted in part before, this is
//! its next part.

use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::time::Duration;

const DAY: i64 = 24 * 3600;
const HOUR: i64 = 3600;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall-clock time; it may be set at any time.
    pub wall: Timestamp,
    /// Monotonic time since an arbitrary start.
    pub monotonic: Duration,
}

impl Now {
    /// For packets from a file: only their own time counts.
    pub const fn of_packet(wall: Timestamp) -> Self {
        Self {
            wall,
            monotonic: Duration::ZERO,
        }
    }
}

/// Length of periods, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length(i64);

/// The duration cannot be a period's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "periods of {0:?}: they last whole days, or a length that divides a day evenly, and at least \
     an hour, so that each has many users"
)]
pub struct LengthError(Duration);

impl Length {
    /// A day, as in Tor's own statistics.
    pub const DAY: Self = Self(DAY);

    /// Checks a length.
    ///
    /// # Errors
    /// It neither divides a day nor is a multiple of one, or it is not within an hour to 366 days.
    pub fn new(length: Duration) -> Result<Self, LengthError> {
        let seconds = i64::try_from(length.as_secs()).map_err(|_| LengthError(length))?;
        let is_aligned = seconds > 0 && (DAY % seconds == 0 || seconds % DAY == 0);
        let is_ordinary = (HOUR..=366 * DAY).contains(&seconds);
        if length.subsec_nanos() == 0 && is_aligned && is_ordinary {
            Ok(Self(seconds))
        } else {
            Err(LengthError(length))
        }
    }

    /// Any number of seconds, at least 1; for tests.
    pub const fn brief(seconds: u32) -> Self {
        Self(if seconds == 0 { 1 } else { seconds as i64 })
    }

    /// The length in seconds, at least 1; an hour to 366 days in a configuration.
    pub const fn seconds(self) -> i64 {
        self.0
    }

    /// A length from a state file, within 1 second to 366 days.
    pub(crate) fn stored(seconds: i64) -> Option<Self> {
        (1..=366 * DAY).contains(&seconds).then_some(Self(seconds))
    }

    fn duration(self) -> Duration {
        Duration::from_secs(self.0.unsigned_abs())
    }
}

/// A period, or one part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// When the period begins, inclusive.
    pub start: Timestamp,
    /// Length of the whole period.
    pub length: Length,
    /// The number of the part, from 1.
    pub part: u32,
}

impl Period {
    /// The first part of the period that contains `wall`.
    pub fn at(wall: Timestamp, length: Length) -> Self {
        let seconds = wall.as_second();
        let start = seconds.div_euclid(length.0).saturating_mul(length.0);
        Self {
            start: Timestamp::from_second(start).unwrap_or(Timestamp::MIN),
            length,
            part: 1,
        }
    }

    /// When the period ends, exclusive.
    pub fn end(&self) -> Timestamp {
        let length = SignedDuration::from_secs(self.length.0);
        self.start.checked_add(length).unwrap_or(Timestamp::MAX)
    }

    /// Whether `wall` lies within the period.
    pub fn contains(&self, wall: Timestamp) -> bool {
        self.start <= wall && wall < self.end()
    }
}

/// As in file names: `20261122T000000Z-1`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.start.strftime("%Y%m%dT%H%M%SZ");
        write!(f, "{start}-{}", self.part)
    }
}

/// The period that is being counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) period: Period,
    /// Monotonic time when it began or was restored.
    since: Duration,
    /// How long it had run before that.
    before: Duration,
}

impl Running {
    pub(crate) const fn new(period: Period, before: Duration, now: Now) -> Self {
        Self {
            period,
            since: now.monotonic,
            before,
        }
    }

    pub(crate) const fn ran(&self, now: Now) -> Duration {
        let since = now.monotonic.saturating_sub(self.since);
        self.before.saturating_add(since)
    }

    /// Whether the period is over. The two clocks drift apart: the wall clock counts as set back
    /// only if they differ by more than a hundredth of the period.
    pub(crate) fn is_over(&self, now: Now) -> bool {
        let length = self.period.length.duration();
        now.wall >= self.period.end() || self.ran(now) >= length + length / 100
    }
}
