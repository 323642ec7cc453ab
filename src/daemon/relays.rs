//! The keeper of the relay set: a thread that follows tor's files, has them read, holds what is
//! read against what is in force, and tells the main thread what to publish.

use super::prompter::{LOOK, Numbers, Order, Prompter, Update, seconds};
use super::{DaemonError, Event};
use crate::observe::{RelaySetReport, RelaySource};
use crate::policy::Endpoint;
use crate::process;
use crate::relays::{
    Age, Confinement, LiveSet, LoadError, Loader, REASONABLY_LIVE, Refused, StateFile, Watch, utc,
};
use crate::settings::{RelaySettings, Settings, WhenStale};
use caps::Capability;
use crossbeam::channel::{self, Receiver, Sender};
use nix::unistd::{Uid, User};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// After how long a load that failed is tried again, though no file has changed.
const RETRY: Duration = Duration::from_secs(300);
/// How often it is said again that the set is stale.
const REMIND: Duration = Duration::from_secs(3600);
/// A limit counts as passed when it is over, not when it is reached.
const PAST: Duration = Duration::from_millis(20);

/// Follows the files.
pub(super) struct Keeper {
    settings: RelaySettings,
    /// The set tells exit traffic from relay traffic; otherwise only the host's own listeners.
    decides: bool,
    loader: Loader,
    file: StateFile,
    live: LiveSet,
    watch: Watch,
    asked: Arc<AtomicBool>,
    numbers: Arc<Numbers>,
    /// When the last load failed for a reason that may pass by itself.
    failed_at: Option<Instant>,
    /// The last load failed.
    failed: bool,
    /// A file is another one than when it was loaded last.
    has_news: bool,
    /// No load before this moment but on demand.
    rests_until: Instant,
    saved: Option<LiveSet>,
    said: Said,
    published: (Vec<Endpoint>, bool),
    /// Settings to go on with, if they can be used.
    orders: Receiver<Order>,
    ordering: Sender<Order>,
}

/// What has been said already, and when.
#[derive(Default)]
struct Said {
    age: Option<Age>,
    stale_at: Option<Instant>,
    unwritable: bool,
}

impl Keeper {
    /// Loads the set for the first time: from the documents, or else what was in force before.
    pub(super) fn begin(settings: &Settings) -> Result<(Self, Update), DaemonError> {
        let decides = settings.decides_by_relays();
        let settings = settings.relays.clone();
        let watch = watch(Watch::new(watched(&settings)))?;
        let (ordering, orders) = channel::unbounded();
        let mut keeper = Self {
            loader: Loader::new(match settings.sources.files.as_slice() {
                // Nobody is needed to read nothing.
                [] => Confinement::default(),
                _ => confinement(&settings.user)?,
            }),
            file: StateFile::new(settings.state.clone()),
            live: LiveSet::default(),
            asked: Arc::default(),
            numbers: Arc::default(),
            failed_at: None,
            failed: false,
            has_news: false,
            rests_until: Instant::now(),
            saved: None,
            said: Said::default(),
            published: (Vec::new(), false),
            settings,
            decides,
            watch,
            orders,
            ordering,
        };
        keeper.recall();
        let started = Instant::now();
        let now = SystemTime::now();
        if let Err(error) = keeper.load(now) {
            if keeper.live.is_empty() {
                return Err(error);
            }
            tracing::error!("going on with the relay set of the last time: {error}");
            keeper.live.refuse(error.to_string(), now);
            keeper.failed_at = Some(Instant::now());
        }
        keeper.tell_age(now);
        let update = keeper.update(now, started.elapsed())?;
        keeper.published = update.content();
        Ok((keeper, update))
    }

    /// Whether there is anything to read.
    pub(super) fn follows_files(&self) -> bool {
        !self.settings.sources.files.is_empty()
    }

    pub(super) fn prompter(&self) -> Prompter {
        Prompter {
            ordering: self.ordering.clone(),
            asked: Arc::clone(&self.asked),
            wake: self.watch.waker(),
            numbers: Arc::clone(&self.numbers),
        }
    }

    /// Follows the files on a thread of its own, until nobody listens.
    pub(super) fn start(
        mut self,
        events: Sender<Event>,
        capabilities: &'static [Capability],
    ) -> Result<(), DaemonError> {
        // Not before the box is there: a start that is refused changes nothing.
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
                // Before it is told, so that nothing is ordered of nobody.
                drop(self);
                let _ = events.send(Event::KeeperEnded);
            })
            .map_err(|error| DaemonError::System("start the keeper of the relay set", error))?;
        Ok(())
    }

    /// Waits for the next thing that is to be done, and does it. None if it cannot wait.
    fn turn(&mut self) -> Option<Event> {
        loop {
            let limit = self.next_limit();
            // One wait takes every wake-up away, and one turn does one thing.
            let has_mail = !self.orders.is_empty() || self.asked.load(Ordering::Acquire);
            let patience = match has_mail {
                true => Duration::ZERO,
                false => self.patience(limit),
            };
            if let Err(error) = self.watch.wait(patience) {
                tracing::error!("the relay files are not followed any more: {error}");
                return None;
            }
            if let Ok(order) = self.orders.try_recv() {
                return Some(Event::Reconfigured(order.number, self.follow(order)));
            }
            let was_asked = self.asked.swap(false, Ordering::AcqRel);
            self.has_news |= self.watch.has_changed();
            let may_load = Instant::now() >= self.rests_until;
            let is_due = self.failed_at.is_some_and(|at| at.elapsed() >= RETRY);
            let started = Instant::now();
            if was_asked || may_load && (self.has_news || is_due) {
                self.attempt(was_asked);
                // Whoever keeps replacing files does not keep this machine busy with them.
                self.rests_until = Instant::now() + started.elapsed() * 4;
            } else if limit.is_none_or(|limit| SystemTime::now() <= limit) {
                self.tell_age(SystemTime::now());
                self.beat();
                continue;
            }
            let now = SystemTime::now();
            self.live.forget(now, self.settings.retain);
            self.tell_age(now);
            match self.update(now, started.elapsed()) {
                Ok(update) => {
                    let content = update.content();
                    if content != self.published {
                        self.published = content;
                        return Some(Event::Relays(update));
                    }
                    if was_asked && !self.failed {
                        tracing::info!("relay set confirmed: nothing in it has changed");
                    }
                }
                Err(error) => tracing::error!("the relay set stays as it was: {error}"),
            }
        }
    }

    /// Follows other settings, if a relay set can be had by them.
    fn follow(&mut self, order: Order) -> Result<Update, String> {
        let now = SystemTime::now();
        let started = Instant::now();
        let has_other_sources = order.settings.sources != self.settings.sources;
        // What reading tor's files takes, and what makes another user of their reader, is given up
        // where there is nothing to read.
        let has_files = !order.settings.sources.files.is_empty();
        if process::is_root() && has_files && !self.follows_files() {
            return Err(
                "relays.consensus: documents can only be read after a restart, because this \
                 process, which began without any, has given up the means to; a restart loses no \
                 frame"
                    .to_owned(),
            );
        }
        let watch = watch(self.watch.over(watched(&order.settings)));
        let watch = watch.map_err(|error| error.to_string())?;
        let before = (self.settings.clone(), self.decides, self.live.clone());
        self.settings = order.settings;
        self.decides = order.decides;
        if has_other_sources {
            let known = self.live.clone().for_sources(&self.settings.sources, now);
            self.live = known.unwrap_or_default();
        }
        let loads = has_other_sources && self.follows_files();
        let outcome = match loads {
            true => self.load(now),
            false => Ok(()),
        };
        self.live.forget(now, self.settings.retain);
        let update = outcome.and_then(|()| self.update(now, started.elapsed()));
        match update {
            Ok(update) => {
                self.watch = watch;
                // Another watch does not tell what the last one was about to.
                self.has_news = !loads;
                self.said = Said::default();
                self.tell_age(now);
                self.save();
                self.published = update.content();
                Ok(update)
            }
            Err(error) => {
                (self.settings, self.decides, self.live) = before;
                Err(error.to_string())
            }
        }
    }

    /// When time alone changes something.
    fn next_limit(&self) -> Option<SystemTime> {
        let next_age = self.live.next_age(SystemTime::now());
        let next_to_forget = self.live.next_to_forget(self.settings.retain);
        next_age.into_iter().chain(next_to_forget).min()
    }

    /// How long to wait at most: until the next look, until then, or until the rest is over.
    fn patience(&self, limit: Option<SystemTime>) -> Duration {
        let now = SystemTime::now();
        let until = |moment: SystemTime| moment.duration_since(now).unwrap_or_default() + PAST;
        let rest = self.rests_until.saturating_duration_since(Instant::now()) + PAST;
        let rest = self.has_news.then_some(rest);
        let waits = limit.map(until).into_iter().chain(rest);
        waits.fold(LOOK, Ord::min)
    }

    /// A sign of life, and when the set gets stale if there is none any more.
    fn beat(&self) {
        let numbers = &self.numbers;
        let ends = self
            .live
            .sources()
            .iter()
            .map(|one| one.validity.valid_until);
        let stale_at = match ends.max().and_then(|end| end.checked_add(REASONABLY_LIVE)) {
            Some(end) if self.decides && self.settings.when_stale == WhenStale::Pass => {
                seconds(end)
            }
            _ => u64::MAX,
        };
        numbers.stale_at.store(stale_at, Ordering::Relaxed);
        numbers
            .beat
            .store(seconds(SystemTime::now()), Ordering::Relaxed);
    }

    /// Loads the files, and says why not if it fails: once for each reason, or when asked for.
    fn attempt(&mut self, was_asked: bool) {
        let now = SystemTime::now();
        self.has_news = false;
        match self.load(now) {
            Ok(()) => (self.failed, self.failed_at) = (false, None),
            Err(error) => {
                // What a document lacks, it will lack; what this machine lacks, it may get.
                let may_pass = matches!(
                    error,
                    DaemonError::Relays(
                        LoadError::Loader(_)
                            | LoadError::Read { .. }
                            | LoadError::Certificates { .. }
                            | LoadError::Changed { .. }
                    ) | DaemonError::Refused(Refused::Future { .. })
                );
                self.failed_at = may_pass.then(Instant::now);
                self.failed = true;
                if self.live.refuse(error.to_string(), now) || was_asked {
                    tracing::error!("the relay set stays as it was: {error}");
                }
            }
        }
        self.save();
    }

    fn load(&mut self, now: SystemTime) -> Result<(), DaemonError> {
        let loaded = self.loader.load(&self.settings.sources)?;
        self.live.offer(loaded, now)?;
        self.live.believe(&self.settings.sources.trust);
        self.live.forget(now, self.settings.retain);
        Ok(())
    }

    /// What was in force when the box ran last.
    fn recall(&mut self) {
        if self.settings.sources.files.is_empty() {
            return;
        }
        match self.file.load() {
            Ok(Some(live)) => match live.for_sources(&self.settings.sources, SystemTime::now()) {
                Some(live) => self.live = live,
                None => tracing::info!(
                    "the relay set of the last time is not for these sources, authorities and clock"
                ),
            },
            Ok(None) => {}
            Err(error) => tracing::warn!("nothing is known of the last time: {error}"),
        }
    }

    fn save(&mut self) {
        let is_saved = self.saved.as_ref() == Some(&self.live);
        if self.settings.sources.files.is_empty() || is_saved {
            return;
        }
        match self.file.save(&self.live) {
            Ok(()) => {
                self.said.unwritable = false;
                self.saved = Some(self.live.clone());
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said.unwritable, true) {
                    tracing::warn!("the relay set will not outlive this process: {error}");
                }
            }
        }
    }

    /// What is to be published now; a sign of life, too.
    fn update(&self, now: SystemTime, loading: Duration) -> Result<Update, DaemonError> {
        self.beat();
        let is_stale = self.live.age(now) == Some(Age::Stale);
        let (accepted, refused) = self.live.decisions();
        let Numbers {
            accepted: a,
            refused: r,
            stale: s,
            ..
        } = &*self.numbers;
        for (shown, number) in [(a, accepted), (r, refused), (s, is_stale.into())] {
            shown.store(number, Ordering::Relaxed);
        }
        let update = Update {
            endpoints: self.live.endpoints(&self.settings.sources.extra)?,
            passes: is_stale && self.decides && self.settings.when_stale == WhenStale::Pass,
            loading,
        };
        let report = self.report(now, &update);
        *self
            .numbers
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = report;
        Ok(update)
    }

    fn report(&self, now: SystemTime, update: &Update) -> RelaySetReport {
        let (listed, departed) = self.live.counts();
        let (accepted, refused) = self.live.decisions();
        let sources = self.live.sources().iter().map(|source| RelaySource {
            path: source.path.display().to_string(),
            valid_after: seconds(source.validity.valid_after),
            fresh_until: seconds(source.validity.fresh_until),
            valid_until: seconds(source.validity.valid_until),
        });
        RelaySetReport {
            endpoints: update.endpoints.len() as u64,
            listed: listed as u64,
            departed: departed as u64,
            extra: self.settings.sources.extra.len() as u64,
            age: self.live.age(now).map(|age| age.name().to_owned()),
            is_passing: update.passes,
            sources: sources.collect(),
            accepted_at: self.live.accepted_at().map(seconds),
            accepted,
            refused,
            last_refusal: self.live.last_refusal().map(|one| one.reason.clone()),
        }
    }

    /// Where to look for why it is old.
    fn why(&self) -> String {
        match self.live.last_refusal() {
            Some(refusal) if self.live.accepted_at().is_none_or(|at| refusal.at >= at) => {
                format!("the newest was refused: {}", refusal.reason)
            }
            _ => "find out why tor fetches none".to_owned(),
        }
    }

    /// Says so when the set gets old, once for each age; that it is stale, every hour.
    fn tell_age(&mut self, now: SystemTime) {
        let age = self.live.age(now);
        let is_news = std::mem::replace(&mut self.said.age, age) != age;
        let newest = self
            .live
            .sources()
            .iter()
            .map(|one| one.validity.valid_after);
        let of = newest.max().map_or_else(String::new, utc);
        match age {
            Some(Age::Stale) if self.decides => {
                let reminded = self.said.stale_at.is_some_and(|at| at.elapsed() < REMIND);
                if is_news || !reminded {
                    self.said.stale_at = Some(Instant::now());
                    let consequence = match self.settings.when_stale {
                        WhenStale::Pass => "nothing is marked or steered any more",
                        WhenStale::Keep => {
                            "marking and steering go on by it, more wrongly each hour"
                        }
                    };
                    tracing::error!(
                        "ALARM: the relay set is stale, its newest consensus is of {of} UTC: \
                         {consequence}; {}",
                        self.why()
                    );
                }
            }
            Some(Age::Old | Age::Expired | Age::Stale) if is_news => tracing::warn!(
                "the relay set is getting old, its newest consensus is of {of} UTC; {}",
                self.why()
            ),
            Some(Age::Early) if is_news => tracing::warn!(
                "the newest consensus begins to hold at {of} UTC only; compare this machine's clock"
            ),
            _ => {}
        }
    }
}

/// Watches the files of these settings; whatever is there now is looked at now.
fn watched(settings: &RelaySettings) -> Vec<PathBuf> {
    let files = settings.sources.files.iter();
    let paths = files.flat_map(|source| [&source.consensus, &source.certificates]);
    paths.cloned().collect()
}

/// Takes what is there now for known.
fn watch(made: io::Result<Watch>) -> Result<Watch, DaemonError> {
    let mut watch = made.map_err(|error| DaemonError::System("watch the relay files", error))?;
    watch.has_changed();
    Ok(watch)
}

/// As whom documents are read.
fn confinement(user: &str) -> Result<Confinement, DaemonError> {
    if !Uid::effective().is_root() {
        tracing::info!("documents are read as the user of this process, which is not root");
        return Ok(Confinement { user: None });
    }
    match User::from_name(user) {
        Ok(Some(found)) if found.uid.is_root() || found.gid.as_raw() == 0 => {
            Err(DaemonError::LoaderIsRoot)
        }
        Ok(Some(found)) => Ok(Confinement {
            user: Some((found.uid.as_raw(), found.gid.as_raw())),
        }),
        Ok(None) => Err(DaemonError::NoSuchUser(user.to_owned())),
        Err(error) => Err(DaemonError::System("look up relays.user", error.into())),
    }
}
