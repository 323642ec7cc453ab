//! `LiveSet`: the relay set in force, and the checks of a set that is to replace it.
//!
//! Pure: documents and the time are arguments. An authentic document can still be wrong: an old
//! one that was put back, one from a wrong clock, one with less than half of the relays. Such
//! documents are refused, and the set in force stays.
//!
//! The newest document is in force; several with the same `valid-after` are in force together. An
//! older one adds its endpoints to those that are remembered, and changes nothing else.

use super::load::unite;
use super::{
    Age, Identity, LoadError, LoadedDocument, SourceReport, Sources, Trust, Validity, utc,
};
use exitmark_policy::{Endpoint, EndpointSet, MAX_ENDPOINTS};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How far a document's `valid-after` may be ahead of this machine's clock.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60 * 60);

/// The relay set in force, the endpoints that left it, and the decisions so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveSet {
    /// The documents in force, and older ones that were accepted with them.
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

/// What came of documents that were offered.
#[derive(Debug, Default)]
pub struct Offered {
    /// The number of documents that were accepted.
    pub accepted: usize,
    /// Why the others were refused.
    pub refused: Vec<Refused>,
}

/// Why a loaded document is refused.
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
    /// The document at this path is older than another one, and too old to be of use. Holds its
    /// `valid-until` in UTC, too, as [`utc`] writes it.
    #[error(
        "{}: is stale beside a newer one: it was valid until {_1} UTC, and tor uses it for a day \
         after that; find out why tor fetches no consensus there, or remove the file", _0.display()
    )]
    Stale(PathBuf, String),
    /// The document at this path is as new as others, and lists so many other endpoints that all of
    /// them and the extras are this many.
    #[error(
        "{}: holds {_1} endpoints together with the documents of the same time, more than the \
         {MAX_ENDPOINTS} of a relay set; remove a source", _0.display()
    )]
    Crowded(PathBuf, usize),
}

impl Refused {
    /// The path of the document.
    pub fn path(&self) -> &Path {
        match self {
            Self::Future(path, _) | Self::Stale(path, _) | Self::Crowded(path, _) => path,
            Self::Older { path, .. } | Self::Shrunk { path, .. } => path,
        }
    }
}

/// Whether a document is not valid within [`CLOCK_SLACK`] of this machine's clock.
fn is_ahead(validity: Validity, now: SystemTime) -> bool {
    let limit = now.checked_add(CLOCK_SLACK);
    limit.is_some_and(|limit| validity.valid_after > limit)
}

/// The endpoints of a document united with those of others.
fn united(
    listed: &[Endpoint],
    document: &LoadedDocument,
    extra: &[Endpoint],
) -> Result<Vec<Endpoint>, Refused> {
    let mut all = [listed, &document.listed].concat();
    all.sort();
    all.dedup();
    let is_larger = !listed.is_empty() && all.len() > listed.len();
    if is_larger && unite(all.iter().copied(), extra).is_err() {
        let path = document.report.path.clone();
        return Err(Refused::Crowded(path, all.len()));
    }
    Ok(all)
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

    /// Judges each of these documents by itself, as if the older ones had come first. The newest ones
    /// are in force then, unless those in force are newer still; the endpoints of accepted older ones
    /// are remembered until [`Self::forget`]. Without an accepted document nothing changes.
    ///
    /// Each document must make a relay set with `extra`.
    pub fn offer(
        &mut self,
        documents: Vec<LoadedDocument>,
        extra: &[Endpoint],
        now: SystemTime,
    ) -> Offered {
        let (judged, mut refused) = self.judge(documents, now);
        let times = judged.iter().map(|(_, document)| document.valid_after());
        let newest = times.chain(self.in_force().map(|(time, _)| time)).max();
        let (newer, older): (Vec<_>, Vec<_>) = judged
            .into_iter()
            .partition(|(_, document)| Some(document.valid_after()) == newest);
        let mut sources: Vec<_> = older
            .iter()
            .map(|(index, document)| (*index, document.report.clone()))
            .collect();
        let mut listed = Vec::new();
        for (index, document) in newer {
            match united(&listed, &document, extra) {
                Ok(all) => {
                    listed = all;
                    sources.push((index, document.report));
                }
                Err(error) => refused.push(error),
            }
        }
        let accepted = sources.len();
        if accepted == 0 {
            return Offered { accepted, refused };
        }
        sources.sort_by_key(|&(index, _)| index);
        let sources = sources.into_iter().map(|(_, report)| report);
        if listed.is_empty() {
            // Those in force are newer than all of these.
            let in_force = self.documents_in_force().cloned();
            self.sources = in_force.chain(sources).collect();
        } else {
            self.sources = sources.collect();
            let is_gone = |one: &Endpoint| listed.binary_search(one).is_err();
            let gone = self.listed.iter().copied().filter(is_gone);
            self.departed.extend(gone.map(|one| (one, now)));
            self.departed.retain(|one, _| is_gone(one));
            self.listed = listed;
            self.accepted_at = Some(now);
            self.accepted = self.accepted.saturating_add(1);
        }
        for (_, document) in older {
            self.remember(document, now);
        }
        self.trim();
        Offered { accepted, refused }
    }

    /// The accepted documents with their places, from the oldest to the newest, and why the others
    /// are refused.
    fn judge(
        &self,
        documents: Vec<LoadedDocument>,
        now: SystemTime,
    ) -> (Vec<(usize, LoadedDocument)>, Vec<Refused>) {
        let mut in_force = self.in_force();
        let reports = documents.iter().map(|document| document.report.validity);
        let times = reports.filter(|validity| !is_ahead(*validity, now));
        let newest = times.map(|validity| validity.valid_after);
        let newest = newest.chain(in_force.map(|(time, _)| time)).max();
        let mut documents: Vec<_> = documents.into_iter().enumerate().collect();
        // Of the same time, the largest first: the others are compared with it.
        documents.sort_by_key(|(_, one)| (one.valid_after(), Reverse(one.report.distinct)));
        let mut refused = Vec::new();
        documents.retain(|(_, document)| {
            let report = &document.report;
            if let Err(error) = self.consider(report, in_force, newest, now) {
                refused.push(error);
                return false;
            }
            let time = report.validity.valid_after;
            in_force = match in_force {
                Some(current) if current.0 > time => Some(current),
                Some((of, distinct)) if of == time => Some((of, distinct.max(report.distinct))),
                _ => Some((time, report.distinct)),
            };
            true
        });
        (documents, refused)
    }

    /// Remembers what an older document lists, as long as that is valid.
    fn remember(&mut self, document: LoadedDocument, now: SystemTime) {
        let since = document.report.validity.valid_until.min(now);
        for endpoint in document.listed {
            if self.listed.binary_search(&endpoint).is_err() {
                let known = self.departed.entry(endpoint).or_insert(since);
                *known = since.max(*known);
            }
        }
        self.trim();
    }

    /// The `valid-after` of the documents in force, and the most endpoints that one of them lists.
    fn in_force(&self) -> Option<(SystemTime, usize)> {
        let of = |report: &SourceReport| (report.validity.valid_after, report.distinct);
        self.sources.iter().map(of).max()
    }

    /// Whether this document, one of [`Self::sources`], is in force. Otherwise it is older, and its
    /// endpoints are remembered.
    pub fn is_in_force(&self, report: &SourceReport) -> bool {
        let in_force = self.in_force();
        in_force.is_some_and(|(time, _)| time == report.validity.valid_after)
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

    /// Whether a document can be accepted. `in_force` are the time and the size of what is in force
    /// when it is judged, `newest` is the time of the newest of all documents.
    fn consider(
        &self,
        offered: &SourceReport,
        in_force: Option<(SystemTime, usize)>,
        newest: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<(), Refused> {
        let path = || offered.path.clone();
        let valid_after = offered.validity.valid_after;
        if is_ahead(offered.validity, now) {
            return Err(Refused::Future(path(), utc(valid_after)));
        }
        let known = self.sources.iter().find(|one| one.path == offered.path);
        if let Some(known) = known.filter(|known| valid_after < known.validity.valid_after) {
            return Err(Refused::Older {
                path: path(),
                valid_after: utc(valid_after),
                in_force: utc(known.validity.valid_after),
            });
        }
        let is_newest = newest.is_none_or(|newest| valid_after >= newest);
        if !is_newest && offered.validity.age(now) == Age::Stale {
            return Err(Refused::Stale(path(), utc(offered.validity.valid_until)));
        }
        match in_force {
            Some((time, before))
                if valid_after >= time && offered.distinct < before.div_ceil(2) =>
            {
                Err(Refused::Shrunk {
                    path: path(),
                    before,
                    now: offered.distinct,
                })
            }
            _ => Ok(()),
        }
    }

    /// Records that a set was refused. Returns whether this is new: the reason differs from the last
    /// one, or a set was accepted in between.
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

    /// The age of the documents in force, because each one lists the whole network. `None` without a
    /// document.
    pub fn age(&self, now: SystemTime) -> Option<Age> {
        let age = |source: &SourceReport| source.validity.age(now);
        self.documents_in_force().map(age).min()
    }

    /// When the age of a document in force changes next after `now`.
    pub fn next_age(&self, now: SystemTime) -> Option<SystemTime> {
        let next = |source: &SourceReport| source.validity.next_age(now);
        self.documents_in_force().filter_map(next).min()
    }

    /// The newest of the accepted documents.
    pub fn documents_in_force(&self) -> impl Iterator<Item = &SourceReport> {
        let newest = self.in_force().map(|(time, _)| time);
        let sources = self.sources.iter();
        sources.filter(move |one| Some(one.validity.valid_after) == newest)
    }

    /// The accepted documents, in the order of the configuration, behind those in force whose files
    /// have gone; empty before the first set.
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

    /// How many sets were accepted, and refused.
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

    fn loaded(hour: u32, numbers: std::ops::Range<u32>) -> LoadedDocument {
        of("cached-consensus", hour, numbers)
    }

    fn of(path: &str, hour: u32, numbers: std::ops::Range<u32>) -> LoadedDocument {
        let listed: Vec<_> = numbers.map(endpoint).collect();
        LoadedDocument {
            report: SourceReport {
                path: path.into(),
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
            },
            listed,
        }
    }

    /// Offers one document, alone.
    fn offer(live: &mut LiveSet, one: LoadedDocument, now: SystemTime) -> Result<(), Refused> {
        let offered = live.offer(vec![one], &[], now);
        assert_eq!(offered.accepted + offered.refused.len(), 1);
        offered.refused.into_iter().next().map_or(Ok(()), Err)
    }

    fn has(live: &LiveSet, number: u32) -> bool {
        let Endpoint { address, port } = endpoint(number);
        live.endpoints(&[]).unwrap().contains(address, port)
    }

    #[test]
    fn departed_endpoints_are_kept_for_the_retention_time() {
        let mut live = LiveSet::default();
        offer(&mut live, loaded(100, 1..11), at(100)).unwrap();
        offer(&mut live, loaded(101, 3..13), at(101)).unwrap();
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
        offer(&mut live, loaded(100, 1..11), at(100)).unwrap();
        offer(&mut live, loaded(101, 2..11), at(101)).unwrap();
        offer(&mut live, loaded(102, 1..11), at(102)).unwrap();
        assert_eq!(live.counts(), (10, 0));
        offer(&mut live, loaded(103, 2..11), at(103)).unwrap();
        live.forget(at(130), HOUR * 28);
        assert!(has(&live, 1), "counted from the last time that it left");
    }

    #[test]
    fn departed_endpoints_expire_after_the_clock_is_set_back() {
        let mut live = LiveSet::default();
        offer(&mut live, loaded(100, 1..11), at(500)).unwrap();
        offer(&mut live, loaded(101, 2..11), at(500)).unwrap();
        live.forget(at(102), HOUR * 28);
        live.forget(at(130), HOUR * 28);
        assert!(!has(&live, 1));
    }

    #[test]
    fn refuses_older_future_and_shrunk_documents_without_a_change() {
        let mut live = LiveSet::default();
        offer(&mut live, loaded(100, 1..11), at(100)).unwrap();
        let before = live.clone();
        let refused = |live: &mut LiveSet, hour, numbers, now| {
            offer(live, loaded(hour, numbers), now).unwrap_err()
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
        offer(&mut live, loaded(100, 1..11), at(100)).unwrap();
        offer(&mut live, loaded(101, 1..6), at(100)).unwrap();
        offer(&mut live, loaded(102, 1..4), at(102)).unwrap();
        let error = refused(&mut live, 102, 1..2, at(102));
        assert_eq!(shrunk(&error), Some((3, 1)));
    }

    #[test]
    fn a_repeated_refusal_is_not_new() {
        let mut live = LiveSet::default();
        offer(&mut live, loaded(100, 1..11), at(100)).unwrap();
        assert!(live.refuse("a".to_owned(), at(101)));
        assert!(!live.refuse("a".to_owned(), at(102)));
        assert!(live.refuse("b".to_owned(), at(103)));
        offer(&mut live, loaded(104, 1..11), at(104)).unwrap();
        assert!(live.refuse("b".to_owned(), at(105)));
        assert_eq!(live.decisions(), (2, 4));
    }

    #[test]
    fn the_newest_document_determines_the_age() {
        let mut live = LiveSet::default();
        assert_eq!(live.age(at(100)), None);
        // Older, and valid for longer.
        let mut lasting = of("lasting", 199, 1..11);
        lasting.report.validity.fresh_until = at(290);
        lasting.report.validity.valid_until = at(300);
        let all = vec![loaded(175, 1..11), of("other", 200, 1..11), lasting];
        assert_eq!(live.offer(all, &[], at(200)).accepted, 3);
        assert_eq!(live.age(at(201)), Some(Age::Fresh));
        assert_eq!(live.age(at(204)), Some(Age::Expired));
        assert_eq!(live.next_age(at(201)), Some(at(202)));
    }

    #[test]
    fn departed_endpoints_make_room_for_listed_ones() {
        let mut live = LiveSet::default();
        let most = u32::try_from(MAX_ENDPOINTS).unwrap();
        offer(&mut live, loaded(100, 1..most), at(100)).unwrap();
        offer(&mut live, loaded(101, 1001..most + 1000), at(101)).unwrap();
        assert_eq!(live.counts().1, 1000);
        let set = live.endpoints(&[]).unwrap();
        assert_eq!(set.len(), MAX_ENDPOINTS);
        assert!(has(&live, most + 999));
    }

    #[test]
    fn older_documents_never_push_out_what_the_newest_lists() {
        let mut live = LiveSet::default();
        let most = u32::try_from(MAX_ENDPOINTS).unwrap();
        let documents = vec![
            of("old", 98, 1_000_000..1_000_000 + most),
            of("older", 99, 2_000_000..2_000_000 + most),
            of("newest", 100, 1..most / 2 + 1),
        ];
        assert_eq!(live.offer(documents, &[], at(100)).accepted, 3);
        assert_eq!(live.counts(), (MAX_ENDPOINTS / 2, MAX_ENDPOINTS));
        assert!((1..=most / 2).all(|number| live.counts_as_relay(endpoint(number))));
        assert_eq!(live.endpoints(&[]).unwrap().len(), MAX_ENDPOINTS);
        assert!(has(&live, 1) && has(&live, most / 2));
    }

    #[test]
    fn a_document_with_too_many_others_is_refused_beside_one_of_the_same_time() {
        let mut live = LiveSet::default();
        let most = u32::try_from(MAX_ENDPOINTS).unwrap();
        let extra = [endpoint(3_000_000)];
        let documents = || {
            vec![
                of("a", 100, 1..most / 2 + 1),
                of("b", 100, 1_000_000..1_000_000 + most / 2),
                of("c", 100, 1..most / 2),
            ]
        };
        let offered = live.offer(documents(), &extra, at(100));
        let [Refused::Crowded(path, count)] = offered.refused.as_slice() else {
            panic!("{:?}", offered.refused);
        };
        assert_eq!((path.to_str(), *count), (Some("b"), MAX_ENDPOINTS));
        assert_eq!(live.counts().0, MAX_ENDPOINTS / 2);
        // Without the extra, they fit.
        let offered = live.offer(documents(), &[], at(100));
        assert_eq!((offered.accepted, offered.refused.len()), (3, 0));
        assert_eq!(live.counts().0, MAX_ENDPOINTS);
    }

    #[test]
    fn the_result_does_not_depend_on_the_order_of_the_documents() {
        let documents = [
            of("a", 100, 1..11),
            of("b", 101, 3..13),
            of("c", 101, 1..12),
            of("d", 101, 1..5),
            of("e", 99, 1..20),
        ];
        let outcome = |order: [usize; 5]| {
            let mut live = LiveSet::default();
            let order = order.map(|index| documents[index].clone());
            let offered = live.offer(order.into(), &[], at(101));
            let mut refused: Vec<_> = offered.refused.iter().map(Refused::path).collect();
            refused.sort();
            assert_eq!(
                refused,
                [Path::new("d")],
                "less than half of the others of its time"
            );
            (live.listed, live.departed)
        };
        let first = outcome([0, 1, 2, 3, 4]);
        assert_eq!(first.0.len(), 12);
        for order in [[4, 3, 2, 1, 0], [3, 0, 4, 1, 2], [2, 1, 0, 4, 3]] {
            assert_eq!(outcome(order), first);
        }
    }
}
