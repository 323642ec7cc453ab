//! The relay service: a thread that watches tor's files, has them loaded, checks the result against
//! the set in force, and sends updates to the main thread to publish.

mod logging;
mod reading;

use super::relay_handle::{LOOK, Numbers, Reconfiguration, RelayServiceHandle, Update, seconds};
use super::{DaemonError, Event};
use crate::settings::{RelaySettings, Settings, WhenStale};
use caps::Capability;
use crossbeam::channel::{self, Receiver, Sender};
use exitmark_policy::Endpoint;
use exitmark_relays::{
    Age, Confinement, FileWatcher, LiveSet, Loader, REASONABLY_LIVE, SourceRefusal, StateFile,
    refresh,
};
use exitmark_service::process;
pub(super) use logging::FEW_SIGNATURES;
use logging::Logged;
use reading::{Failure, Unaccepted, confinement, watch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The delay before a failed load is retried while no file changes.
const RETRY: Duration = Duration::from_secs(300);
/// The delay before a failed load is retried while no set is in force.
const RETRY_MISSING: Duration = Duration::from_secs(10);
/// Added to each wait, because a limit must be exceeded, not only reached.
const PAST: Duration = Duration::from_millis(20);

/// The relay service: loads documents, keeps the set in force, and reports its age, in a thread of
/// its own.
pub(super) struct RelayService {
    settings: RelaySettings,
    /// Exit and relay traffic are classified by the set; otherwise only the host's own listeners.
    decides: bool,
    loader: Loader,
    file: StateFile,
    live: LiveSet,
    watch: FileWatcher,
    load_requested: Arc<AtomicBool>,
    numbers: Arc<Numbers>,
    /// Why the current content of the files, or a part of it, is not in force.
    failure: Option<Failure>,
    /// The sources that the last load refused.
    refusals: Vec<SourceRefusal>,
    has_news: bool,
    /// No load before this moment, except on demand.
    rests_until: Instant,
    saved: Option<LiveSet>,
    unsaved: Option<String>,
    logged: Logged,
    published: (Vec<Endpoint>, bool),
    reconfigurations: Receiver<Reconfiguration>,
    reconfigure: Sender<Reconfiguration>,
}

impl RelayService {
    /// Loads the first set: from the documents, else from the state file, else an empty one. The
    /// wire does not wait for a relay set: without one everything is forwarded unmarked.
    ///
    /// # Errors
    /// The configured user or the extra endpoints cannot be used, or the files cannot be watched.
    pub(super) fn begin(settings: &Settings) -> Result<(Self, Update), DaemonError> {
        let decides = settings.decides_by_relays();
        let settings = settings.relays.clone();
        let watch = watch(FileWatcher::new(&settings.sources))?;
        let (reconfigure, reconfigurations) = channel::unbounded();
        let mut relay_service = Self {
            loader: Loader::new(match settings.sources.names_documents() {
                // Without files, `relays.user` is not needed and need not exist.
                false => Confinement::default(),
                true => confinement(&settings.user)?,
            }),
            file: StateFile::new(settings.state.clone()),
            live: LiveSet::default(),
            load_requested: Arc::default(),
            numbers: Arc::default(),
            failure: None,
            refusals: Vec::new(),
            has_news: false,
            rests_until: Instant::now(),
            saved: None,
            logged: Logged::default(),
            unsaved: None,
            published: (Vec::new(), false),
            settings,
            decides,
            watch,
            reconfigurations,
            reconfigure,
        };
        let update = relay_service.first_update()?;
        Ok((relay_service, update))
    }

    /// The update at the start, by the files or by what is left of an earlier process.
    fn first_update(&mut self) -> Result<Update, DaemonError> {
        let started = Instant::now();
        let now = SystemTime::now();
        self.recall(now);
        if let Err(Unaccepted { reason, .. }) = self.load(now, false) {
            match self.live.is_empty() {
                false => {
                    tracing::error!("continuing with the relay set of the previous run: {reason}");
                }
                // Otherwise `log_age` raises the alarm.
                true if !self.decides => tracing::error!("there is no relay set yet: {reason}"),
                true => {}
            }
        }
        let update = match self.update(now, started.elapsed()) {
            // The documents list too many endpoints: go on with the extras alone.
            Err(error) if !self.live.is_empty() => {
                self.live = LiveSet::default();
                self.fail(&error, now);
                self.update(now, started.elapsed())?
            }
            update => update?,
        };
        self.log_age(now);
        self.published = update.content();
        Ok(update)
    }

    /// Whether documents are configured.
    fn follows_files(&self) -> bool {
        self.settings.sources.names_documents()
    }

    /// Whether documents are configured, and none has been accepted yet.
    fn is_missing(&self) -> bool {
        self.follows_files() && self.live.is_empty()
    }

    pub(super) fn handle(&self) -> RelayServiceHandle {
        RelayServiceHandle {
            reconfigure: self.reconfigure.clone(),
            load_requested: Arc::clone(&self.load_requested),
            wake: self.watch.waker(),
            numbers: Arc::clone(&self.numbers),
        }
    }

    /// Starts the service's thread, which runs until the receiver of `events` is dropped.
    pub(super) fn start(
        mut self,
        events: Sender<Event>,
        capabilities: &'static [Capability],
    ) -> Result<(), DaemonError> {
        // Only now, because a start that fails must not change the state file.
        self.save();
        let thread = thread::Builder::new().name("exitmark-relays".to_owned());
        thread
            .spawn(move || {
                // Signals are the main thread's.
                let _ = nix::sys::signal::SigSet::all().thread_block();
                process::keep_or_say(capabilities);
                while let Some(event) = self.turn() {
                    if events.send(event).is_err() {
                        return;
                    }
                }
                // Before the event, so that sending a reconfiguration fails from then on.
                drop(self);
                let _ = events.send(Event::RelayServiceEnded);
            })
            .map_err(|error| DaemonError::System("start the relay service", error))?;
        Ok(())
    }

    /// Waits for work and does it; returns the next event, or `None` if waiting fails.
    fn turn(&mut self) -> Option<Event> {
        loop {
            // When the set next ages, or an endpoint is next forgotten.
            let next_age = self.live.next_age(SystemTime::now());
            let next_to_forget = self.live.next_to_forget(self.settings.retain);
            let limit = next_age.into_iter().chain(next_to_forget).min();
            let timeout = self.timeout(limit);
            if let Err(error) = self.watch.wait(timeout) {
                tracing::error!("the relay files are no longer watched: {error}; restart exitmark");
                return None;
            }
            if let Ok(reconfiguration) = self.reconfigurations.try_recv() {
                return Some(Event::Reconfigured(
                    reconfiguration.number,
                    self.follow(reconfiguration),
                ));
            }
            let was_requested = self.load_requested.swap(false, Ordering::AcqRel);
            self.has_news |= self.watch.has_changed();
            let started = Instant::now();
            let is_retry_due = self.retry_at().is_some_and(|at| started >= at);
            let is_due = started >= self.rests_until && (self.has_news || is_retry_due);
            if was_requested || is_due {
                self.attempt(was_requested);
                // Loading takes at most a fifth of the time, however often files are replaced.
                self.rests_until = Instant::now() + started.elapsed() * 4;
            } else if limit.is_none_or(|limit| SystemTime::now() <= limit) && !self.has_aged() {
                self.log_age(SystemTime::now());
                if self.unsaved.is_some() {
                    self.save();
                }
                self.beat();
                continue;
            }
            match self.changed_update(started) {
                Ok(Some(update)) => return Some(Event::Relays(update)),
                Ok(None) if was_requested && self.failure.is_none() => {
                    tracing::info!("relay set confirmed: nothing in it has changed");
                }
                Ok(None) => {}
                Err(error) => tracing::error!("the relay set stays as it was: {error}"),
            }
        }
    }

    /// The update to publish now, unless its content is published already.
    fn changed_update(&mut self, started: Instant) -> Result<Option<Update>, DaemonError> {
        let now = SystemTime::now();
        self.live.forget(now, self.settings.retain);
        self.log_age(now);
        let update = self.update(now, started.elapsed())?;
        let content = update.content();
        if content == self.published {
            return Ok(None);
        }
        self.published = content;
        Ok(Some(update))
    }

    /// Applies other settings, if a relay set can be loaded with them.
    fn follow(&mut self, reconfiguration: Reconfiguration) -> Result<Update, String> {
        let now = SystemTime::now();
        let (new, old) = (&reconfiguration.settings.sources, &self.settings.sources);
        // Other extras need no document.
        let has_other_files =
            (&new.files, &new.patterns, &new.trust) != (&old.files, &old.patterns, &old.trust);
        let watch = watch(self.watch.over(new));
        let watch = watch.map_err(|error| error.to_string())?;
        let before = (self.settings.clone(), self.decides, self.live.clone());
        let refused_before = has_other_files.then(|| {
            let refusals = std::mem::take(&mut self.refusals);
            (self.failure.take(), refusals)
        });
        match self.change_to(reconfiguration, has_other_files, now) {
            Ok(update) => {
                self.watch = watch;
                self.prefer();
                // The new watch does not report changes that the old one had pending.
                self.has_news = !(has_other_files && self.follows_files());
                self.logged = Logged::default();
                self.log_age(now);
                self.save();
                self.published = update.content();
                Ok(update)
            }
            Err(error) => {
                (self.settings, self.decides, self.live) = before;
                if let Some(before) = refused_before {
                    (self.failure, self.refusals) = before;
                }
                Err(error.to_string())
            }
        }
    }

    /// The update by these settings. On an error, the caller goes back to the earlier ones.
    fn change_to(
        &mut self,
        reconfiguration: Reconfiguration,
        has_other_files: bool,
        now: SystemTime,
    ) -> Result<Update, DaemonError> {
        let started = Instant::now();
        let was_missing = self.is_missing();
        let (was_judged, before) = (self.decides, self.listed());
        (self.settings, self.decides) = (reconfiguration.settings, reconfiguration.decides);
        if has_other_files {
            self.load_others(was_missing, now)?;
        }
        self.live.forget(now, self.settings.retain);
        let listed = self.listed();
        // The same limit as for a new document.
        if was_judged && self.decides && listed < before.div_ceil(2) {
            return Err(DaemonError::Unmet(format!(
                "relays: {listed} endpoints would be listed instead of {before}, and connections \
                 to the other relays would be marked as exit traffic; if that is intended, restart \
                 exitmark"
            )));
        }
        self.update(now, started.elapsed())
    }

    fn load_others(&mut self, was_missing: bool, now: SystemTime) -> Result<(), DaemonError> {
        let live = std::mem::take(&mut self.live);
        let known = live.for_sources(&self.settings.sources, now);
        self.live = known.unwrap_or_default();
        if !self.follows_files() {
            return Ok(());
        }
        match self.load(now, false) {
            // Without a document everything is unmarked already: other paths make nothing worse.
            Err(_) if was_missing => Ok(()),
            outcome => outcome.map_err(|unaccepted| DaemonError::Unmet(unaccepted.reason)),
        }
    }

    /// The number of endpoints in the documents in force and in the extras.
    fn listed(&self) -> usize {
        self.live.counts().0 + self.settings.sources.extra.len()
    }

    /// The longest wait: until the next check, `limit`, the end of the rest, or the retry.
    fn timeout(&self, limit: Option<SystemTime>) -> Duration {
        // One wait consumes all wake-ups, but one turn does one task.
        if !self.reconfigurations.is_empty() || self.load_requested.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let now = SystemTime::now();
        let until = |moment: SystemTime| moment.duration_since(now).unwrap_or_default() + PAST;
        let rest = self.rests_until.saturating_duration_since(Instant::now()) + PAST;
        let rest = self.has_news.then_some(rest);
        let retry = self.retry_at();
        let retry = retry.map(|at| at.saturating_duration_since(Instant::now()));
        let waits = limit.map(until).into_iter().chain(rest).chain(retry);
        waits.fold(LOOK, Ord::min)
    }

    /// When a failed load is retried while no file changes.
    fn retry_at(&self) -> Option<Instant> {
        let failure = self.failure.as_ref()?;
        let pause = match self.is_missing() {
            true => RETRY_MISSING,
            false => RETRY,
        };
        let is_of_use = failure.may_pass || self.is_missing();
        is_of_use.then(|| failure.at + pause)
    }

    /// Stamps the heartbeat, and stores when the set gets stale if no further document is accepted.
    fn beat(&self) {
        let (numbers, now) = (&self.numbers, seconds(SystemTime::now()));
        numbers.stale_at.store(self.stale_at(), Ordering::Relaxed);
        numbers.beat.store(now, Ordering::Relaxed);
    }

    /// When everything is forwarded unmarked without a further set, in seconds since 1970.
    fn stale_at(&self) -> u64 {
        let documents = self.live.documents_in_force();
        let end = documents.map(|one| one.validity.valid_until).max();
        match end.and_then(|end| end.checked_add(REASONABLY_LIVE)) {
            Some(end) if self.passes_stale() => seconds(end),
            _ => u64::MAX,
        }
    }

    fn passes_stale(&self) -> bool {
        self.decides && self.settings.when_stale == WhenStale::Pass
    }

    /// Loads the files. Logs a failure once for each reason, and always on demand.
    fn attempt(&mut self, was_requested: bool) {
        let now = SystemTime::now();
        self.has_news = false;
        if self.is_missing() {
            self.recall(now);
        }
        if let Err(Unaccepted { reason, is_news }) = self.load(now, was_requested)
            && (is_news || was_requested)
        {
            match self.is_missing() {
                true => tracing::error!("there is no relay set yet: {reason}"),
                false => tracing::error!("the relay set stays as it was: {reason}"),
            }
        }
        self.save();
    }

    /// Loads each document by itself. Logs each refusal of one among several, at first or always.
    ///
    /// # Errors
    /// No document was accepted.
    fn load(&mut self, now: SystemTime, logs_always: bool) -> Result<(), Unaccepted> {
        let sources = &self.settings.sources;
        let refresh = refresh(&mut self.live, sources, &self.loader, &self.refusals, now);
        if refresh.is_accepted {
            self.live.believe(&sources.trust);
            self.live.forget(now, self.settings.retain);
        }
        self.log_refusals(&refresh, logs_always);
        self.failure = Failure::of_sources(&refresh.refusals);
        self.refusals = refresh.refusals;
        self.prefer();
        // With an accepted document a set was accepted: the refusals are those of single sources.
        let reason = match &self.failure {
            Some(failure) if !refresh.is_accepted => failure.reason.clone(),
            _ => return Ok(()),
        };
        let is_news = self.live.refuse(reason.clone(), now);
        Err(Unaccepted { reason, is_news })
    }

    /// Has the documents of the set found first, if more match than are read.
    fn prefer(&mut self) {
        let sources = self.live.sources().iter();
        self.watch.prefer(sources.map(|one| one.path.clone()));
    }

    /// Records why the set cannot be used.
    fn fail(&mut self, error: &DaemonError, now: SystemTime) {
        self.failure = Some(Failure::of(error));
        self.live.refuse(error.to_string(), now);
    }

    /// Restores the set from the state file, as far as it is still usable.
    fn recall(&mut self, now: SystemTime) {
        if !self.follows_files() {
            return;
        }
        match self.file.load() {
            Ok(Some(live)) => match live.for_sources(&self.settings.sources, now) {
                Some(live) => self.live = live,
                None if std::mem::replace(&mut self.logged.unknown, true) => {}
                None => tracing::info!(
                    "the saved relay set is in the future, or of other sources or authorities"
                ),
            },
            Ok(None) => {}
            Err(_) if std::mem::replace(&mut self.logged.unknown, true) => {}
            Err(error) => tracing::warn!("the saved relay set cannot be restored: {error}"),
        }
    }

    fn save(&mut self) {
        let is_saved = self.saved.as_ref() == Some(&self.live);
        // An empty set does not replace the file, which may be usable once the clock is right.
        if !self.follows_files() || self.live.is_empty() || is_saved {
            return;
        }
        let outcome = self.file.save(&self.live);
        if let (Err(error), None) = (&outcome, &self.unsaved) {
            tracing::warn!("the relay set cannot be saved, and a restart would lose it: {error}");
        }
        match outcome {
            Ok(()) => (self.unsaved, self.saved) = (None, Some(self.live.clone())),
            Err(error) => self.unsaved = Some(error.to_string()),
        }
        self.numbers.report().unsaved.clone_from(&self.unsaved);
    }

    /// The update to publish now; also stamps the heartbeat.
    fn update(&mut self, now: SystemTime, loading: Duration) -> Result<Update, DaemonError> {
        self.beat();
        let age = self.live.age(now);
        {
            // Also if the endpoints cannot be used.
            let mut report = self.numbers.report();
            (report.accepted, report.refused) = self.live.decisions();
            report.age = age.map(|age| age.name().to_owned());
        }
        self.log_signatures();
        let is_stale = age == Some(Age::Stale);
        let update = Update {
            endpoints: self.live.endpoints(&self.settings.sources.extra)?,
            passes: self.decides && self.is_missing() || self.passes_stale() && is_stale,
            loading,
        };
        let report = self.report(now, &update);
        *self.numbers.report() = report;
        Ok(update)
    }
}
