//! `Validity`: the three times of a consensus, and its age at a given time.
//!
//! Pure: the time is an argument. The daemon decides what an age means for the traffic.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long after `fresh-until` a consensus may still be the newest on disk: tor fetches the next
/// one at a random time in the following hour.
pub const FETCH_SLACK: Duration = Duration::from_secs(60 * 60);

/// How long after `valid-until` tor's clients and relays still work with a consensus
/// (`REASONABLY_LIVE_TIME` in tor).
pub const REASONABLY_LIVE: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest validity that is accepted.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The period in which a consensus is valid (dir-spec, "Preamble").
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validity {
    /// `valid-after`: the beginning of the validity.
    #[serde(with = "seconds")]
    pub valid_after: SystemTime,
    /// `fresh-until`: when the next document is due.
    #[serde(with = "seconds")]
    pub fresh_until: SystemTime,
    /// `valid-until`: the end of the validity.
    #[serde(with = "seconds")]
    pub valid_until: SystemTime,
}

/// The age of a consensus, from the youngest to the oldest; a younger one compares as less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Age {
    /// Before `valid-after`: not valid yet, or this machine's clock is behind.
    Early,
    /// Up to `fresh-until` + [`FETCH_SLACK`].
    Fresh,
    /// Later, up to `valid-until`.
    Old,
    /// Later, up to `valid-until` + [`REASONABLY_LIVE`].
    Expired,
    /// Later: tor does not use it any more.
    Stale,
}

impl Validity {
    /// Reads the times from the first lines of a consensus, and parses or checks nothing else.
    /// `None` if a time is missing or they are not in order.
    pub fn of_beginning(text: &str) -> Option<Self> {
        if !text.starts_with("network-status-version 3") {
            return None;
        }
        let time = |keyword: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '))?;
            humantime::parse_rfc3339_weak(value).ok()
        };
        let validity = Self {
            valid_after: time("valid-after")?,
            fresh_until: time("fresh-until")?,
            valid_until: time("valid-until")?,
        };
        validity.is_ordered().then_some(validity)
    }

    /// Whether the three times are in order.
    pub fn is_ordered(&self) -> bool {
        self.valid_after < self.fresh_until && self.fresh_until < self.valid_until
    }

    /// Whether the validity is at most a week. Consensuses of the Tor network are valid for three
    /// hours; one that is valid for ever would never show its age.
    pub fn is_brief(&self) -> bool {
        let length = self.valid_until.duration_since(self.valid_after);
        length.is_ok_and(|length| length <= LONGEST)
    }

    /// When the age changes next after `now`.
    pub fn next_age(&self, now: SystemTime) -> Option<SystemTime> {
        let limits = [
            Some(self.valid_after),
            self.fresh_until.checked_add(FETCH_SLACK),
            Some(self.valid_until),
            self.valid_until.checked_add(REASONABLY_LIVE),
        ];
        let limits = limits.into_iter().flatten();
        limits.filter(|&limit| limit >= now).min()
    }

    /// The age at `now`. A limit belongs to the younger of two ages.
    pub fn age(&self, now: SystemTime) -> Age {
        // A limit beyond what the clock can express is never passed.
        let passed =
            |limit: SystemTime, slack| limit.checked_add(slack).is_some_and(|end| now > end);
        if now < self.valid_after {
            Age::Early
        } else if passed(self.valid_until, REASONABLY_LIVE) {
            Age::Stale
        } else if passed(self.valid_until, Duration::ZERO) {
            Age::Expired
        } else if passed(self.fresh_until, FETCH_SLACK) {
            Age::Old
        } else {
            Age::Fresh
        }
    }
}

impl Age {
    /// The age as one word, e.g. `fresh`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Early => "early",
            Self::Fresh => "fresh",
            Self::Old => "old",
            Self::Expired => "expired",
            Self::Stale => "stale",
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Early => "early: not valid yet; check this machine's clock",
            Self::Fresh => "fresh",
            Self::Old => "old: the next one is overdue",
            Self::Expired => "expired, but tor still uses it",
            Self::Stale => "stale: it expired more than a day ago, and tor no longer uses it",
        })
    }
}

/// A time as seconds since 1970, in files and between processes.
pub(super) mod seconds {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, out: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        out.serialize_u64(since.as_secs())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<SystemTime, D::Error> {
        let seconds = u64::deserialize(input)?;
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| D::Error::custom("a time out of range"))
    }
}

/// Formats a time in UTC as in directory documents: `2021-08-29 19:00:00` (dir-spec,
/// "Iso8601TimeSp"). Truncates fractions of a second.
pub fn utc(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::from(since.as_secs()),
        Err(before) => -i128::from(before.duration().as_secs()),
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));

    // Civil date from a day count. Years begin on 1 March here, so that the leap day is the
    // last of its year; 719,468 days lie between 0000-03-01 and 1970-01-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i128::from(month <= 2);

    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn utc_agrees_with_known_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_630_263_600, "2021-08-29 19:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
        ] {
            assert_eq!(utc(at(seconds)), text);
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(utc(before), "1969-12-31 23:59:59");
    }

    #[test]
    fn each_age_begins_one_second_past_its_limit() {
        let hour = 3_600;
        let validity = Validity {
            valid_after: at(10 * hour),
            fresh_until: at(11 * hour),
            valid_until: at(13 * hour),
        };
        for (seconds, age) in [
            (10 * hour - 1, Age::Early),
            (10 * hour, Age::Fresh),
            (12 * hour, Age::Fresh),
            (12 * hour + 1, Age::Old),
            (13 * hour, Age::Old),
            (13 * hour + 1, Age::Expired),
            (37 * hour, Age::Expired),
            (37 * hour + 1, Age::Stale),
        ] {
            assert_eq!(validity.age(at(seconds)), age, "at {seconds}");
        }
    }
}
