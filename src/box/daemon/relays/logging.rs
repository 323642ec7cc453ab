//! The relay service's log messages and its report.

use super::super::relay_handle::{Update, seconds};
use super::RelayService;
use crate::observe::{DocumentSignatures, RelaySetReport, RelaySource, SourceState};
use crate::settings::WhenStale;
use exitmark_relays::{Age, Refresh, Signatures, SourceReport, Trust, utc};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// The interval of repeating the alarm for a missing or stale set.
const REMIND: Duration = Duration::from_secs(3600);
/// The explanation for a document with hardly more signatures than it needs.
pub(in crate::daemon) const FEW_SIGNATURES: &str = "once another authority is \
    replaced, no consensus may be accepted: upgrade exitmark, or correct relays.authorities";

/// What has been logged already, and when.
#[derive(Default)]
pub(super) struct Logged {
    age: Option<Age>,
    alarm_at: Option<Instant>,
    /// That the state file is not usable.
    pub(super) unknown: bool,
    are_few: bool,
}

impl RelayService {
    pub(super) fn report(&self, now: SystemTime, update: &Update) -> RelaySetReport {
        let (listed, departed) = self.live.counts();
        let (accepted, refused) = self.live.decisions();
        RelaySetReport {
            endpoints: update.endpoints.len() as u64,
            listed: listed as u64,
            departed: departed as u64,
            extra: self.settings.sources.extra.len() as u64,
            age: self.live.age(now).map(|age| age.name().to_owned()),
            is_passing: update.passes,
            is_missing: self.is_missing(),
            sources: self.sources(),
            accepted_at: self.live.accepted_at().map(seconds),
            accepted,
            refused,
            last_refusal: self.live.last_refusal().map(|one| one.reason.clone()),
            failure: self.failure.as_ref().map(|failure| failure.reason.clone()),
            unsaved: self.unsaved.clone(),
        }
    }

    /// The accepted documents, then the sources of which none is.
    fn sources(&self) -> Vec<RelaySource> {
        let refusal = |path: &Path| {
            let refusal = self.refusals.iter().find(|one| one.path == path);
            refusal.map(ToString::to_string)
        };
        let of_accepted = |source: &SourceReport| {
            let refusal = refusal(&source.path);
            RelaySource {
                path: source.path.display().to_string(),
                state: match (self.live.is_in_force(source), &refusal) {
                    (true, _) => SourceState::InForce,
                    (false, None) => SourceState::Older,
                    (false, Some(_)) => SourceState::Refused,
                },
                refusal,
                valid_after: seconds(source.validity.valid_after),
                fresh_until: seconds(source.validity.fresh_until),
                valid_until: seconds(source.validity.valid_until),
                signatures: source
                    .signatures
                    .and_then(|signatures| self.signed(signatures)),
            }
        };
        let accepted = self.live.sources().iter();
        let is_accepted = |path: &Path| accepted.clone().any(|one| one.path == path);
        let refused = self.refusals.iter().filter(|one| !is_accepted(&one.path));
        let refused = refused.map(|one| RelaySource {
            path: one.path.display().to_string(),
            state: SourceState::Refused,
            refusal: Some(one.to_string()),
            ..RelaySource::default()
        });
        accepted.clone().map(of_accepted).chain(refused).collect()
    }

    /// Warns of the refusals, of new ones or of all. The only refusal is logged by the caller, if
    /// nothing was accepted.
    pub(super) fn log_refusals(&self, refresh: &Refresh, of_all: bool) {
        let before: Vec<_> = self.refusals.iter().map(ToString::to_string).collect();
        let refusals = refresh.refusals.iter().map(ToString::to_string);
        for refusal in refusals.filter(|one| of_all || !before.contains(one)) {
            match refresh.is_accepted {
                true => tracing::warn!(
                    "a source of the relay set was refused, the others are used: {refusal}"
                ),
                false if refresh.refusals.len() > 1 => {
                    tracing::warn!("a source of the relay set was refused: {refusal}");
                }
                false => {}
            }
        }
    }

    fn signed(&self, signatures: Signatures) -> Option<DocumentSignatures> {
        let Trust::Majority(authorities) = &self.settings.sources.trust else {
            return None;
        };
        Some(DocumentSignatures {
            good: signatures.good as u64,
            needed: signatures.needed as u64,
            unknown: signatures.unknown as u64,
            known: authorities.iter().count() as u64,
        })
    }

    /// Warns once when hardly enough listed authorities sign the documents.
    pub(super) fn log_signatures(&mut self) {
        let mut signed = self.live.sources().iter().filter_map(|one| one.signatures);
        let scarce = signed.find_map(|one| self.signed(one).filter(DocumentSignatures::is_scarce));
        let is_news =
            std::mem::replace(&mut self.logged.are_few, scarce.is_some()) != scarce.is_some();
        if let (Some(signed), true) = (scarce, is_news) {
            tracing::warn!("the consensus is {signed}; {FEW_SIGNATURES}");
        }
    }

    /// Whether the set's age differs from the one last logged; the clock may have been set back.
    pub(super) fn has_aged(&self) -> bool {
        self.live.age(SystemTime::now()) != self.logged.age
    }

    /// The reason why the set is old, or how to find it.
    fn why(&self) -> String {
        match &self.failure {
            Some(failure) => format!("the newest was refused: {}", failure.reason),
            None => "find out why tor fetches no consensus".to_owned(),
        }
    }

    /// The alarm for a set of this age, whose newest document is of the time `of`.
    fn alarm(&self, age: Option<Age>, of: &str) -> Option<String> {
        match age {
            _ if !self.decides => None,
            None if self.is_missing() => {
                let reason = self.failure.as_ref().map(|failure| failure.reason.as_str());
                Some(format!(
                    "there is no relay set: nothing is marked or steered until a \
                     document is accepted; loading is retried: {}",
                    reason.unwrap_or_default()
                ))
            }
            Some(Age::Stale) => {
                let consequence = match self.settings.when_stale {
                    WhenStale::Pass => "nothing is marked or steered any more",
                    WhenStale::Keep => {
                        "marking and steering continue with this set, with more errors each hour"
                    }
                };
                Some(format!(
                    "the relay set is stale, its newest consensus is from {of} UTC: {consequence}; {}",
                    self.why()
                ))
            }
            _ => None,
        }
    }

    /// Logs when the set gets old, once for each age; while it is stale or missing, every hour.
    pub(super) fn log_age(&mut self, now: SystemTime) {
        let age = self.live.age(now);
        let is_news = std::mem::replace(&mut self.logged.age, age) != age;
        let newest = self
            .live
            .sources()
            .iter()
            .map(|one| one.validity.valid_after);
        let of = newest.max().map_or_else(String::new, utc);
        if let Some(alarm) = self.alarm(age, &of) {
            let reminded = self.logged.alarm_at.is_some_and(|at| at.elapsed() < REMIND);
            if is_news || !reminded {
                self.logged.alarm_at = Some(Instant::now());
                tracing::error!("ALARM: {alarm}");
            }
            return;
        }
        match age {
            Some(Age::Old | Age::Expired | Age::Stale) if is_news => tracing::warn!(
                "the relay set is getting old, its newest consensus is from {of} UTC; {}",
                self.why()
            ),
            Some(Age::Early) if is_news => tracing::warn!(
                "the newest consensus is not valid before {of} UTC; compare this machine's clock"
            ),
            _ => {}
        }
    }
}
