//! `LiveSet`: what is in force, and what may follow it.
//!
//! Pure: documents and the time arrive as arguments. An authentic document can still be the wrong
//! one: an old one put back, one from a clock that is wrong, one of a network that has lost half
//! of its relays overnight. Such are refused, and what was there stays.

use super::load::unite;
use super::{Age, Identity, LoadError, Loaded, SourceReport, Sources, Trust, utc};
use crate::policy::{Endpoint, EndpointSet, MAX_ENDPOINTS};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How far a document's `valid-after` may be ahead of this machine's clock.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60 * 60);

/// The relay set in force and its history, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveSet {
    /// The documents that it was made of.
    pub(super) sources: Vec<SourceReport>,
    /// When they were accepted.
    pub(super) accepted_at: Option<SystemTime>,
    /// What they list; sorted.
    pub(super) listed: Vec<Endpoint>,
    /// What documents before them listed, and since when none does.
    pub(super) departed: BTreeMap<Endpoint, SystemTime>,
    /// How many times documents were accepted.
    pub(super) accepted: u64,
    /// How many times documents were refused.
    pub(super) refused: u64,
    /// The last time that this happened.
    pub(super) last_refusal: Option<Refusal>,
    /// Whose signatures counted; nobody's where nobody was asked.
    pub(super) authorities: Vec<Identity>,
}

/// That something was refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// When.
    #[serde(with = "super::validity::seconds")]
    pub at: SystemTime,
    /// Why.
    pub reason: String,
}

/// Why a set that could be loaded does not come into force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Before its time.
    #[error(
        "{}: begins to hold at {valid_after} UTC, more than an hour after this machine's clock; set \
         the clock", path.display()
    )]
    Future {
        /// The file.
        path: PathBuf,
        /// When.
        valid_after: String,
    },
    /// Older than what is in force.
    #[error(
        "{}: is of {valid_after} UTC, older than what is in force, of {in_force} UTC; if it is meant \
         to go back, stop, remove the file relays.state, and start", path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// When it began to hold.
        valid_after: String,
        /// The same of what is in force.
        in_force: String,
    },
    /// Too small to be true.
    #[error(
        "{}: lists {now} endpoints, less than half of the {before} in force; if that is so indeed, \
         stop, remove the file relays.state, and start", path.display()
    )]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// How many are in force.
        before: usize,
        /// How many it lists.
        now: usize,
    },
}

impl LiveSet {
    /// Whether there is nothing in force yet.
    pub fn is_empty(&self) -> bool {
        self.accepted_at.is_none()
    }

    /// This set as far as it concerns these sources, at this time: what other documents listed is
    /// no reason to refuse one. None if nobody may believe it any more.
    pub fn for_sources(mut self, sources: &Sources, now: SystemTime) -> Option<Self> {
        self.sources.retain(|report| {
            let is_asked_for = sources
                .files
                .iter()
                .any(|file| file.consensus == report.path);
            let is_past = now
                .checked_add(CLOCK_SLACK)
                .is_none_or(|limit| report.validity.valid_after <= limit);
            is_asked_for && is_past
        });
        // What others have signed is no better than what nobody has.
        let is_believed = match &sources.trust {
            Trust::MostOf(authorities) => authorities.iter().eq(self.authorities.iter().copied()),
            Trust::Anybody => true,
        };
        if !is_believed {
            return None;
        }
        (!self.sources.is_empty()).then_some(self)
    }

    /// Lets what was loaded come into force, or says why not and changes nothing.
    ///
    /// # Errors
    /// It makes no sense at this time, or after what is in force.
    pub fn offer(&mut self, loaded: Loaded, now: SystemTime) -> Result<(), Refused> {
        for offered in &loaded.sources {
            self.consider(offered, now)?;
        }
        for endpoint in &self.listed {
            if loaded.listed.binary_search(endpoint).is_err() {
                self.departed.insert(*endpoint, now);
            }
        }
        self.departed
            .retain(|endpoint, _| loaded.listed.binary_search(endpoint).is_err());
        self.listed = loaded.listed;
        self.sources = loaded.sources;
        self.trim();
        self.accepted_at = Some(now);
        self.accepted = self.accepted.saturating_add(1);
        Ok(())
    }

    /// Notes who was believed when the set came into force.
    pub fn believe(&mut self, trust: &Trust) {
        self.authorities = match trust {
            Trust::MostOf(authorities) => authorities.iter().collect(),
            Trust::Anybody => Vec::new(),
        };
    }

    /// Forgets those who left first where they are more than a set holds: whoever makes the set
    /// change again and again does not fill the memory.
    pub(super) fn trim(&mut self) {
        let excess = self.departed.len().saturating_sub(MAX_ENDPOINTS);
        if excess == 0 {
            return;
        }
        let mut times: Vec<_> = self
            .departed
            .iter()
            .map(|(one, since)| (*since, *one))
            .collect();
        times.sort_unstable();
        for (_, endpoint) in times.into_iter().take(excess) {
            self.departed.remove(&endpoint);
        }
    }

    fn consider(&self, offered: &SourceReport, now: SystemTime) -> Result<(), Refused> {
        let path = || offered.path.clone();
        let valid_after = offered.validity.valid_after;
        if now
            .checked_add(CLOCK_SLACK)
            .is_some_and(|limit| valid_after > limit)
        {
            return Err(Refused::Future {
                path: path(),
                valid_after: utc(valid_after),
            });
        }
        let Some(in_force) = self.sources.iter().find(|one| one.path == offered.path) else {
            return Ok(());
        };
        if valid_after < in_force.validity.valid_after {
            return Err(Refused::Older {
                path: path(),
                valid_after: utc(valid_after),
                in_force: utc(in_force.validity.valid_after),
            });
        }
        if offered.distinct < in_force.distinct.div_ceil(2) {
            return Err(Refused::Shrunk {
                path: path(),
                before: in_force.distinct,
                now: offered.distinct,
            });
        }
        Ok(())
    }

    /// Notes that something was refused. Whether the reason is another one than the last time,
    /// or there was a success in between.
    pub fn refuse(&mut self, reason: String, now: SystemTime) -> bool {
        self.refused = self.refused.saturating_add(1);
        let is_news = self.last_refusal.as_ref().is_none_or(|last| {
            last.reason != reason || self.accepted_at.is_some_and(|accepted| accepted > last.at)
        });
        self.last_refusal = Some(Refusal { at: now, reason });
        is_news
    }

    /// Forgets who has been gone for longer than `retain`.
    pub fn forget(&mut self, now: SystemTime, retain: Duration) {
        self.departed.retain(|_, since| {
            // A clock that was set back must not keep anybody for ever.
            *since = (*since).min(now);
            now.duration_since(*since).is_ok_and(|gone| gone < retain)
        });
    }

    /// When [`Self::forget`] has something to do next, at the latest.
    pub fn next_to_forget(&self, retain: Duration) -> Option<SystemTime> {
        self.departed.values().min()?.checked_add(retain)
    }

    /// All that counts as a relay: what is listed, who has left, and the extras. Where there is
    /// too little room, those who left first are left out.
    ///
    /// # Errors
    /// Too many are listed.
    pub fn endpoints(&self, extra: &[Endpoint]) -> Result<EndpointSet, LoadError> {
        let room = MAX_ENDPOINTS.saturating_sub(self.listed.len() + extra.len());
        let mut departed: Vec<_> = self.departed.iter().collect();
        if departed.len() > room {
            departed.sort_unstable_by_key(|&(_, since)| std::cmp::Reverse(since));
            departed.truncate(room);
        }
        let departed = departed.into_iter().map(|(endpoint, _)| *endpoint);
        let listed = self.listed.iter().chain(extra).copied();
        unite(listed.chain(departed), extra)
    }

    /// Whether this endpoint is listed, or remembered.
    pub fn counts_as_relay(&self, endpoint: Endpoint) -> bool {
        self.listed.binary_search(&endpoint).is_ok() || self.departed.contains_key(&endpoint)
    }

    /// The age of the youngest document: each one lists the whole network. None without any.
    pub fn age(&self, now: SystemTime) -> Option<Age> {
        self.sources
            .iter()
            .map(|source| source.validity.age(now))
            .min()
    }

    /// When an age changes next.
    pub fn next_age(&self, now: SystemTime) -> Option<SystemTime> {
        let next = |source: &SourceReport| source.validity.next_age(now);
        self.sources.iter().filter_map(next).min()
    }

    /// The documents in force.
    pub fn sources(&self) -> &[SourceReport] {
        &self.sources
    }

    /// When they were accepted.
    pub const fn accepted_at(&self) -> Option<SystemTime> {
        self.accepted_at
    }

    /// How many endpoints are listed, and how many have departed and are remembered.
    pub fn counts(&self) -> (usize, usize) {
        (self.listed.len(), self.departed.len())
    }

    /// How many times documents were accepted, and refused.
    pub const fn decisions(&self) -> (u64, u64) {
        (self.accepted, self.refused)
    }

    /// The last refusal.
    pub const fn last_refusal(&self) -> Option<&Refusal> {
        self.last_refusal.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relays::{Counts, Flavor, Validity};
    use std::time::UNIX_EPOCH;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        UNIX_EPOCH + HOUR * hours
    }

    fn endpoint(number: u32) -> Endpoint {
        Endpoint::new(std::net::Ipv4Addr::from(number).into(), 9001)
    }

    fn loaded(hour: u32, numbers: std::ops::Range<u32>) -> Loaded {
        let listed: Vec<_> = numbers.map(endpoint).collect();
        Loaded {
            sources: vec![SourceReport {
                path: "cached-consensus".into(),
                flavor: Flavor::Ns,
                validity: Validity {
                    valid_after: at(hour),
                    fresh_until: at(hour + 1),
                    valid_until: at(hour + 3),
                },
                signatures: None,
                counts: Counts::default(),
                distinct: listed.len(),
                parse_time: Duration::ZERO,
            }],
            listed,
        }
    }

    fn has(live: &LiveSet, number: u32) -> bool {
        let Endpoint { address, port } = endpoint(number);
        live.endpoints(&[]).unwrap().contains(address, port)
    }

    #[test]
    fn who_leaves_is_remembered_for_as_long_as_asked() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        live.offer(loaded(101, 3..13), at(101)).unwrap();
        assert_eq!(live.counts(), (10, 2));
        assert!(has(&live, 1) && has(&live, 12));
        assert_eq!(live.next_to_forget(HOUR * 28), Some(at(129)));
        live.forget(at(129) - Duration::from_secs(1), HOUR * 28);
        assert!(has(&live, 1));
        live.forget(at(129), HOUR * 28);
        assert!(!has(&live, 1) && has(&live, 3));
        assert_eq!(live.next_to_forget(HOUR * 28), None);
    }

    #[test]
    fn who_comes_back_has_not_left() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        live.offer(loaded(101, 2..11), at(101)).unwrap();
        live.offer(loaded(102, 1..11), at(102)).unwrap();
        assert_eq!(live.counts(), (10, 0));
        live.offer(loaded(103, 2..11), at(103)).unwrap();
        live.forget(at(130), HOUR * 28);
        assert!(has(&live, 1), "counted from the last time that it left");
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_for_ever() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(500)).unwrap();
        live.offer(loaded(101, 2..11), at(500)).unwrap();
        live.forget(at(102), HOUR * 28);
        live.forget(at(130), HOUR * 28);
        assert!(!has(&live, 1));
    }

    #[test]
    fn an_older_a_future_and_a_shrunk_document_change_nothing() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        let before = live.clone();
        let refused = |live: &mut LiveSet, hour, numbers, now| {
            live.offer(loaded(hour, numbers), now).unwrap_err()
        };
        let error = refused(&mut live, 99, 1..11, at(100));
        assert!(matches!(error, Refused::Older { .. }), "{error}");
        let error = refused(&mut live, 102, 1..11, at(101) - Duration::from_secs(1));
        assert!(matches!(error, Refused::Future { .. }), "{error}");
        let error = refused(&mut live, 101, 1..5, at(101));
        assert!(
            matches!(
                error,
                Refused::Shrunk {
                    before: 10,
                    now: 4,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(live, before);
        // At the limits.
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        live.offer(loaded(101, 1..6), at(100)).unwrap();
        live.offer(loaded(102, 1..4), at(102)).unwrap();
        let error = refused(&mut live, 102, 1..2, at(102));
        assert!(
            matches!(
                error,
                Refused::Shrunk {
                    before: 3,
                    now: 1,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_refusal_is_news_once() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        assert!(live.refuse("a".to_owned(), at(101)));
        assert!(!live.refuse("a".to_owned(), at(102)));
        assert!(live.refuse("b".to_owned(), at(103)));
        live.offer(loaded(104, 1..11), at(104)).unwrap();
        assert!(live.refuse("b".to_owned(), at(105)));
        assert_eq!(live.decisions(), (2, 4));
    }

    #[test]
    fn the_youngest_document_gives_the_age() {
        let mut live = LiveSet::default();
        assert_eq!(live.age(at(100)), None);
        let mut both = loaded(100, 1..11);
        let mut other = loaded(200, 1..11).sources.remove(0);
        other.path = "other".into();
        both.sources.push(other);
        live.offer(both, at(200)).unwrap();
        assert_eq!(live.age(at(201)), Some(Age::Fresh));
        assert_eq!(live.age(at(204)), Some(Age::Expired));
        assert_eq!(live.next_age(at(201)), Some(at(202)));
    }

    #[test]
    fn the_remembered_make_room_for_the_listed() {
        let mut live = LiveSet::default();
        let most = u32::try_from(MAX_ENDPOINTS).unwrap();
        live.offer(loaded(100, 1..most), at(100)).unwrap();
        live.offer(loaded(101, 1001..most + 1000), at(101)).unwrap();
        assert_eq!(live.counts().1, 1000);
        let set = live.endpoints(&[]).unwrap();
        assert_eq!(set.len(), MAX_ENDPOINTS);
        assert!(has(&live, most + 999));
    }
}
