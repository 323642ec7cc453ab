//! `LiveSet`: the relay set in force, and the checks of a set that is to replace it.
//!
//! Pure: documents and the time are arguments. An authentic document can still be wrong: an old
//! one that was put back, one from a wrong clock, one with less than half of the relays. Such
//! documents are refused, and the set in force stays.

use super::load::unite;
use super::{Age, Identity, LoadError, Loaded, SourceReport, Sources, Trust, Validity, utc};
use exitmark_policy::{Endpoint, EndpointSet, MAX_ENDPOINTS};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How far a document's `valid-after` may be ahead of this machine's clock.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60 * 60);

/// The relay set in force, the endpoints that left it, and the decisions so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveSet {
    pub(super) sources: Vec<SourceReport>,
    /// `None` before the first set.
    pub(super) accepted_at: Option<SystemTime>,
    /// The endpoints that the documents in force list; sorted.
    pub(super) listed: Vec<Endpoint>,
    /// Endpoints that earlier documents listed, and since when no document lists them.
    pub(super) departed: BTreeMap<Endpoint, SystemTime>,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) last_refusal: Option<Refusal>,
    /// The authorities whose signatures counted; empty if signatures were not checked.
    pub(super) authorities: Vec<Identity>,
}

/// A relay set that was refused: when and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The time of the refusal; whole seconds in the state file.
    #[serde(with = "super::validity::seconds")]
    pub at: SystemTime,
    /// The message of the error, which contains no address of a relay.
    pub reason: String,
}

/// Why a loaded set is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The document at this path is not valid yet. Holds its `valid-after` in UTC, too, as [`utc`]
    /// writes it.
    #[error(
        "{}: is not valid before {_1} UTC, more than an hour after this machine's clock; \
         set the clock (`timedatectl`)", _0.display()
    )]
    Future(PathBuf, String),
    /// The document is older than the one in force.
    #[error(
        "{}: is of {valid_after} UTC, older than what is in force, of {in_force} UTC; if this is \
         intended, stop exitmark, remove the file relays.state, and start", path.display()
    )]
    Older {
        /// The path of the consensus.
        path: PathBuf,
        /// Its `valid-after` in UTC, as [`utc`] writes it.
        valid_after: String,
        /// The `valid-after` of the document in force.
        in_force: String,
    },
    /// The document lists less than half of the endpoints in force.
    #[error(
        "{}: lists {now} endpoints, less than half of the {before} in force; if that is right, \
         stop exitmark, remove the file relays.state, and start", path.display()
    )]
    Shrunk {
        /// The path of the consensus.
        path: PathBuf,
        /// The number of endpoints in force.
        before: usize,
        /// The number of endpoints that the document lists.
        now: usize,
    },
}

/// Whether a document is not valid within [`CLOCK_SLACK`] of this machine's clock.
fn is_ahead(validity: Validity, now: SystemTime) -> bool {
    let limit = now.checked_add(CLOCK_SLACK);
    limit.is_some_and(|limit| validity.valid_after > limit)
}

impl LiveSet {
    /// Whether no set is in force yet.
    pub fn is_empty(&self) -> bool {
        self.accepted_at.is_none()
    }

    /// Restricts the set to these sources, because documents from other files are no reason to
    /// refuse one; drops sources from the future. `None` if no source is left, or if the set was
    /// verified against other authorities than configured now.
    pub fn for_sources(mut self, sources: &Sources, now: SystemTime) -> Option<Self> {
        self.sources
            .retain(|report| sources.names(&report.path) && !is_ahead(report.validity, now));
        // Signatures of other authorities do not count.
        let is_believed = match &sources.trust {
            Trust::Majority(authorities) => authorities.iter().eq(self.authorities.iter().copied()),
            Trust::Unverified => true,
        };
        if !is_believed {
            return None;
        }
        (!self.sources.is_empty()).then_some(self)
    }

    /// Puts a loaded set in force, or refuses it and changes nothing.
    ///
    /// # Errors
    /// A document is from the future, older than the one in force, or less than half its size.
    pub fn offer(&mut self, loaded: Loaded, now: SystemTime) -> Result<(), Refused> {
        for offered in &loaded.sources {
            self.consider(offered, now)?;
        }
        let is_gone = |endpoint: &&Endpoint| loaded.listed.binary_search(endpoint).is_err();
        let gone = self.listed.iter().filter(is_gone);
        self.departed.extend(gone.map(|endpoint| (*endpoint, now)));
        self.departed.retain(|endpoint, _| is_gone(&endpoint));
        self.listed = loaded.listed;
        self.sources = loaded.sources;
        self.trim();
        self.accepted_at = Some(now);
        self.accepted = self.accepted.saturating_add(1);
        Ok(())
    }

    /// Records which authorities were trusted when the set came into force.
    pub fn believe(&mut self, trust: &Trust) {
        self.authorities = match trust {
            Trust::Majority(authorities) => authorities.iter().collect(),
            Trust::Unverified => Vec::new(),
        };
    }

    /// Limits the departed endpoints to [`MAX_ENDPOINTS`], dropping those that left first, so that
    /// a set that changes again and again does not exhaust the memory.
    pub(super) fn trim(&mut self) {
        if self.departed.len() > MAX_ENDPOINTS {
            self.departed = self.last_departed(MAX_ENDPOINTS).collect();
        }
    }

    /// The departed endpoints without the ones that left first, at most `limit`.
    fn last_departed(&self, limit: usize) -> impl Iterator<Item = (Endpoint, SystemTime)> {
        let departed = self.departed.iter();
        let mut departed: Vec<_> = departed.map(|(one, since)| (*one, *since)).collect();
        departed.sort_by_key(|&(_, since)| Reverse(since));
        departed.truncate(limit);
        departed.into_iter()
    }

    fn consider(&self, offered: &SourceReport, now: SystemTime) -> Result<(), Refused> {
        let path = || offered.path.clone();
        let valid_after = offered.validity.valid_after;
        if is_ahead(offered.validity, now) {
            return Err(Refused::Future(path(), utc(valid_after)));
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

    /// Records a refusal. Returns whether it is new: the reason differs from the last one, or a set
    /// was accepted in between.
    pub fn refuse(&mut self, reason: String, now: SystemTime) -> bool {
        self.refused = self.refused.saturating_add(1);
        let is_news = self.last_refusal.as_ref().is_none_or(|last| {
            last.reason != reason || self.accepted_at.is_some_and(|accepted| accepted > last.at)
        });
        self.last_refusal = Some(Refusal { at: now, reason });
        is_news
    }

    /// Forgets endpoints that departed at least `retain` ago.
    pub fn forget(&mut self, now: SystemTime, retain: Duration) {
        self.departed.retain(|_, since| {
            // A clock that was set back must not keep an endpoint for ever.
            *since = (*since).min(now);
            now.duration_since(*since).is_ok_and(|gone| gone < retain)
        });
    }

    /// When [`Self::forget`] has to be called next.
    pub fn next_to_forget(&self, retain: Duration) -> Option<SystemTime> {
        self.departed.values().min()?.checked_add(retain)
    }

    /// All endpoints that count as relays: listed, departed, and extras. If they are too many, the
    /// ones that departed first are left out.
    ///
    /// # Errors
    /// The listed endpoints and the extras are too many by themselves, or an extra has port 0.
    pub fn endpoints(&self, extra: &[Endpoint]) -> Result<EndpointSet, LoadError> {
        let room = MAX_ENDPOINTS.saturating_sub(self.listed.len() + extra.len());
        let departed = self.last_departed(room).map(|(endpoint, _)| endpoint);
        unite(self.listed.iter().copied().chain(departed), extra)
    }

    /// Whether this endpoint is listed or departed.
    pub fn counts_as_relay(&self, endpoint: Endpoint) -> bool {
        self.listed.binary_search(&endpoint).is_ok() || self.departed.contains_key(&endpoint)
    }

    /// The age of the newest document, because each one lists the whole network. `None` without a
    /// document.
    pub fn age(&self, now: SystemTime) -> Option<Age> {
        let age = |source: &SourceReport| source.validity.age(now);
        self.sources.iter().map(age).min()
    }

    /// When the age of a document changes next after `now`.
    pub fn next_age(&self, now: SystemTime) -> Option<SystemTime> {
        let next = |source: &SourceReport| source.validity.next_age(now);
        self.sources.iter().filter_map(next).min()
    }

    /// The documents in force, in the order of the configuration; empty before the first set.
    pub fn sources(&self) -> &[SourceReport] {
        &self.sources
    }

    /// When the documents in force were accepted.
    pub const fn accepted_at(&self) -> Option<SystemTime> {
        self.accepted_at
    }

    /// The numbers of listed and of departed endpoints.
    pub fn counts(&self) -> (usize, usize) {
        (self.listed.len(), self.departed.len())
    }

    /// How many times documents were accepted, and refused.
    pub const fn decisions(&self) -> (u64, u64) {
        (self.accepted, self.refused)
    }

    /// The last refusal, also if a set was accepted since; `None` if no set was refused.
    pub const fn last_refusal(&self) -> Option<&Refusal> {
        self.last_refusal.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counts, Flavor};
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
    fn departed_endpoints_are_kept_for_the_retention_time() {
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
    fn an_endpoint_that_returns_is_no_longer_departed() {
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
    fn departed_endpoints_expire_after_the_clock_is_set_back() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(500)).unwrap();
        live.offer(loaded(101, 2..11), at(500)).unwrap();
        live.forget(at(102), HOUR * 28);
        live.forget(at(130), HOUR * 28);
        assert!(!has(&live, 1));
    }

    #[test]
    fn refuses_older_future_and_shrunk_documents_without_a_change() {
        let mut live = LiveSet::default();
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        let before = live.clone();
        let refused = |live: &mut LiveSet, hour, numbers, now| {
            live.offer(loaded(hour, numbers), now).unwrap_err()
        };
        let shrunk = |error: &Refused| match *error {
            Refused::Shrunk { before, now, .. } => Some((before, now)),
            _ => None,
        };
        let error = refused(&mut live, 99, 1..11, at(100));
        assert!(matches!(error, Refused::Older { .. }), "{error}");
        let error = refused(&mut live, 102, 1..11, at(101) - Duration::from_secs(1));
        assert!(matches!(error, Refused::Future { .. }), "{error}");
        let error = refused(&mut live, 101, 1..5, at(101));
        assert_eq!(shrunk(&error), Some((10, 4)));
        assert_eq!(live, before);
        // At the limits.
        live.offer(loaded(100, 1..11), at(100)).unwrap();
        live.offer(loaded(101, 1..6), at(100)).unwrap();
        live.offer(loaded(102, 1..4), at(102)).unwrap();
        let error = refused(&mut live, 102, 1..2, at(102));
        assert_eq!(shrunk(&error), Some((3, 1)));
    }

    #[test]
    fn a_repeated_refusal_is_not_new() {
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
    fn the_newest_document_determines_the_age() {
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
    fn departed_endpoints_make_room_for_listed_ones() {
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
