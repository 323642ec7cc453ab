//! When periods begin and end. Pure: what the clocks show is an argument.
//!
//! A period is a stretch of UTC, and ends when the wall clock shows its end. A clock that is set
//! back is believed later: what runs goes on, within its period or before it, until its length has
//! gone by on the monotonic clock. What comes next is aligned to the wall clock again; where that
//! period has been counted before, in part, it is the next part of it.

use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::time::Duration;

const DAY: i64 = 24 * 3600;
const HOUR: i64 = 3600;

/// What the clocks show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The time of day, which somebody may set.
    pub wall: Timestamp,
    /// Since any moment of the past, and never backwards.
    pub monotonic: Duration,
}

impl Now {
    /// For packets from a file, whose time is all the time there is.
    pub const fn of_packet(wall: Timestamp) -> Self {
        Self {
            wall,
            monotonic: Duration::ZERO,
        }
    }
}

/// How long periods are, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length(i64);

/// Not a length of periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "periods of {0:?}: they last whole days, or so many hours, minutes or seconds that a day is \
     whole periods, and at least an hour, so that many people are in each"
)]
pub struct LengthError(Duration);

impl Length {
    /// A day, as Tor's own statistics have it.
    pub const DAY: Self = Self(DAY);

    /// Of this length.
    ///
    /// # Errors
    /// Days cannot be divided into such, or it is shorter than an hour.
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

    /// Of so many seconds, for tests that cannot wait; at least one.
    pub const fn brief(seconds: u32) -> Self {
        Self(if seconds == 0 { 1 } else { seconds as i64 })
    }

    /// In seconds.
    pub const fn seconds(self) -> i64 {
        self.0
    }

    /// As it was stored.
    pub(in crate::monitor) fn stored(seconds: i64) -> Option<Self> {
        (1..=366 * DAY).contains(&seconds).then_some(Self(seconds))
    }

    fn duration(self) -> Duration {
        Duration::from_secs(self.0.unsigned_abs())
    }
}

/// A stretch of time that is counted as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// When it began, inclusive.
    pub start: Timestamp,
    /// How long it is.
    pub length: Length,
    /// Which part of it this is, from 1.
    pub part: u32,
}

impl Period {
    /// The first part of the period at this time.
    pub fn at(wall: Timestamp, length: Length) -> Self {
        let seconds = wall.as_second();
        let start = seconds.div_euclid(length.0).saturating_mul(length.0);
        Self {
            start: Timestamp::from_second(start).unwrap_or(Timestamp::MIN),
            length,
            part: 1,
        }
    }

    /// When it ends, exclusive.
    pub fn end(&self) -> Timestamp {
        let length = SignedDuration::from_secs(self.length.0);
        self.start.checked_add(length).unwrap_or(Timestamp::MAX)
    }

    /// Whether a time lies within it.
    pub fn contains(&self, wall: Timestamp) -> bool {
        self.start <= wall && wall < self.end()
    }
}

/// As in the names of files: `20261122T000000Z-1`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.start.strftime("%Y%m%dT%H%M%SZ");
        write!(f, "{start}-{}", self.part)
    }
}

/// The period that is being counted.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct Running {
    pub(in crate::monitor) period: Period,
    /// What the monotonic clock showed when it began, or went on.
    since: Duration,
    /// For how long it had run before it went on.
    before: Duration,
}

impl Running {
    pub(in crate::monitor) const fn new(period: Period, before: Duration, now: Now) -> Self {
        Self {
            period,
            since: now.monotonic,
            before,
        }
    }

    /// For how long it has run.
    pub(in crate::monitor) const fn ran(&self, now: Now) -> Duration {
        let since = now.monotonic.saturating_sub(self.since);
        self.before.saturating_add(since)
    }

    /// Whether it is over. The two clocks never go at quite the same pace: only where they differ
    /// by more than a hundredth of the period was the wall clock set back.
    pub(in crate::monitor) fn is_over(&self, now: Now) -> bool {
        let length = self.period.length.duration();
        now.wall >= self.period.end() || self.ran(now) >= length + length / 100
    }
}
