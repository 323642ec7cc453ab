//! Periods: which one is counted now, that a restart goes on with it, and that each is published
//! once. Owns the state directory and the files that are published; decides nothing of what they
//! show, and never removes one.
//!
//! The way of a period, of which a crash may happen anywhere:
//!
//! 1. While it runs its counts are saved every minute (`state`), so that is what a crash loses.
//! 2. When it is over they are saved a last time, and its rows are made. Its state file gets the
//!    digest of those in its name: that, and only that, may now be in the published file.
//! 3. The published file gets its name, which no file had before. A name that is taken (by an
//!    earlier part, or by somebody) is no loss: this is the next part then.
//! 4. The state file is removed. Whoever finds one with a digest, and a published file that has
//!    it, knows that only this was left to be done; else the period is published as if nothing had
//!    been. With noise that is drawn anew, nobody having seen the other.
//!
//! Where the file cannot be written the period waits, and the next one goes on meanwhile. At most
//! [`MAX_WAITING`] wait; then the oldest is given up, and loudly: memory and tmpfs are bounded, and
//! the newest periods are worth most. A period in which nobody watched has no file, one in which
//! somebody watched and saw nothing has.

pub mod disk;
mod notice;
mod state;
mod waiting;

pub use disk::{Disk, SYSTEM_CALLS};
pub use notice::Notice;
pub use state::StateError;

use super::clock::{Length, Now, Period, Running};
use super::ledger::Ledger;
use super::publish::{Noise, Origin, PublishError, PublishSettings};
use jiff::Timestamp;
use state::{Name, StateDirectory};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use waiting::Waiting;

/// Where counts are kept for a restart, if nothing else is said: on a tmpfs.
pub const DEFAULT_STATE: &str = "/run/exitmark-monitor";
/// How many periods that cannot be published are kept: a week of days.
pub const MAX_WAITING: usize = 7;
/// How much a crash may lose, and how often a full disk is tried.
const INTERVAL: Duration = Duration::from_secs(60);

/// Which periods, and where.
#[derive(Clone, Debug)]
pub struct PeriodSettings {
    /// How long they are.
    pub length: Length,
    /// Where they are published. It must be there: made here, it could hide a disk that is not
    /// mounted yet.
    pub directory: PathBuf,
    /// Where counts are kept for a restart; nowhere for packets from files, which can be read
    /// again.
    pub state: Option<PathBuf>,
}

/// Why there can be no periods.
#[derive(Debug, thiserror::Error)]
pub enum PeriodError {
    /// The exit's name is part of a file's.
    #[error(
        "`{0}` is no name for an exit: 1 to 64 letters, digits, dots, hyphens and underscores, \
         the first a letter or digit"
    )]
    Exit(String),
    /// Somebody could know the noise.
    #[error(
        "noise from a seed protects nobody: remove the seed; it is for tests, from files alone"
    )]
    Seed,
    /// They cannot be published like that.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// What is counted now.
    pub running: Period,
    /// How many closed periods are not published yet.
    pub waiting: usize,
    /// How many were given up since the start.
    pub given_up: u64,
    /// How many were published since the start,
    pub published: u64,
    /// and when the last one was.
    pub last_published: Option<Timestamp>,
    /// Whether the running counts were kept when that was last tried.
    pub is_saved: bool,
}

/// The periods of one exit.
#[derive(Debug)]
pub struct Periods {
    settings: PeriodSettings,
    publish: PublishSettings,
    origin: Origin,
    noise: Option<Noise>,
    disk: Disk,
    state: Option<StateDirectory>,
    running: Running,
    waiting: Waiting,
    saved_at: Duration,
    is_saved: bool,
}

impl Periods {
    /// Goes on where an earlier process was: what it left is published if it is over, and handed
    /// back if it still runs.
    ///
    /// # Errors
    /// Settings that make no sense, or a state directory that cannot be used.
    pub fn open(
        settings: PeriodSettings,
        publish: PublishSettings,
        origin: Origin,
        now: Now,
    ) -> Result<(Self, Option<Ledger>, Vec<Notice>), PeriodError> {
        Self::open_on(Disk::default(), settings, publish, origin, now)
    }

    /// The same, on a disk that a test may break.
    ///
    /// # Errors
    /// As [`Periods::open`].
    pub fn open_on(
        disk: Disk,
        settings: PeriodSettings,
        publish: PublishSettings,
        origin: Origin,
        now: Now,
    ) -> Result<(Self, Option<Ledger>, Vec<Notice>), PeriodError> {
        publish.check()?;
        if !is_exit_name(&origin.exit) {
            return Err(PeriodError::Exit(origin.exit));
        }
        let mut notices = Vec::new();
        let seed = publish.noise.as_ref().and_then(|noise| noise.seed);
        if seed.is_some() {
            if settings.state.is_some() {
                return Err(PeriodError::Seed);
            }
            notices.push(Notice::Seeded);
        }
        let noise = publish.noise.as_ref();
        let noise = noise.map(|noise| Noise::new(noise, publish.tables()));
        let noise = noise.transpose().map_err(PublishError::from)?;
        let state = settings.state.as_deref().map(StateDirectory::open);
        let state = state.transpose()?;
        if let Err(reason) = fs::read_dir(&settings.directory) {
            let path = settings.directory.clone();
            notices.push(Notice::NoDirectory { path, reason });
        }
        let period = Period::at(now.wall, settings.length);
        let mut periods = Self {
            settings,
            publish,
            origin,
            noise,
            disk,
            state,
            running: Running::new(period, Duration::ZERO, now),
            waiting: Waiting::new(now),
            saved_at: now.monotonic,
            is_saved: true,
        };
        let names = periods.state.as_ref().map(StateDirectory::names);
        let restored = periods.adopt(names.transpose()?.unwrap_or_default(), now, &mut notices);
        if restored.is_none() {
            periods.begin(now);
        }
        Ok((periods, restored, notices))
    }

    /// Whether the running period is over, and to be closed.
    pub fn is_over(&self, now: Now) -> bool {
        self.running.is_over(now)
    }

    /// Closes the running period with these counts, over or not, publishes it, and begins the one
    /// of this time.
    pub fn close(&mut self, ledger: Ledger, now: Now) -> Vec<Notice> {
        let mut notices = Vec::new();
        if !ledger.is_empty() {
            let is_saved = self.keep(&ledger, now, &mut notices);
            let name = Name::of(&self.running.period, None);
            // A file that is older than these counts still is the one to be marked.
            let state = self.state.as_ref().map(|state| state.place(&name));
            let name = state.is_some_and(|path| path.exists()).then_some(name);
            self.waiting.push(waiting::Closed {
                period: self.running.period,
                ran: self.running.ran(now),
                ledger,
                digest: None,
                state: name,
                is_saved,
            });
            self.settle(now, &mut notices);
        }
        self.begin(now);
        notices
    }

    /// Whether the running counts should be kept for a restart.
    pub fn is_save_due(&self, now: Now) -> bool {
        self.state.is_some() && now.monotonic.saturating_sub(self.saved_at) >= INTERVAL
    }

    /// Keeps the running counts for a restart.
    pub fn save(&mut self, ledger: &Ledger, now: Now) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.keep(ledger, now, &mut notices);
        notices
    }

    /// Whether what waits should be tried again.
    pub fn is_retry_due(&self, now: Now) -> bool {
        self.waiting.is_due(now)
    }

    /// Tries again to publish what waits.
    pub fn retry(&mut self, now: Now) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.settle(now, &mut notices);
        notices
    }

    /// A file of the period at this time, where there is one already.
    pub fn published_at(&self, wall: Timestamp) -> Option<PathBuf> {
        let path = self.path(&Period::at(wall, self.settings.length));
        path.exists().then_some(path)
    }

    /// Other databases, for what is published from now on.
    pub fn set_origin(&mut self, countries: String, systems: String, names: super::publish::Names) {
        self.origin.countries = countries;
        self.origin.systems = systems;
        self.origin.names = names;
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        Status {
            running: self.running.period,
            is_saved: self.is_saved,
            ..self.waiting.status(self.running.period)
        }
    }

    /// Takes over what an earlier process left.
    fn adopt(&mut self, names: Vec<Name>, now: Now, notices: &mut Vec<Notice>) -> Option<Ledger> {
        let mut restored = None;
        for name in names {
            let state = self.state.as_ref()?;
            match state.load(&name) {
                Ok((period, ran, ledger)) => {
                    let running = Running::new(period, ran, now);
                    let is_running =
                        name.digest.is_none() && period.contains(now.wall) && !running.is_over(now);
                    if is_running && restored.is_none() {
                        self.running = running;
                        notices.push(Notice::Restored(period));
                        restored = Some(ledger);
                    } else {
                        self.waiting.push(waiting::Closed {
                            period,
                            ran,
                            ledger,
                            digest: name.digest.clone(),
                            state: Some(name),
                            is_saved: true,
                        });
                        // One by one: however many there are, few are in memory.
                        self.settle(now, notices);
                    }
                }
                Err(reason) => notices.push(Notice::SetAside {
                    path: state.place(&name),
                    reason,
                    aside: match state.set_aside(&name) {
                        Ok(aside) => aside.display().to_string(),
                        Err(error) => format!("none ({error})"),
                    },
                }),
            }
        }
        restored
    }

    /// Begins the period of this time, or its next part.
    fn begin(&mut self, now: Now) {
        let mut period = Period::at(now.wall, self.settings.length);
        while self.waiting.has(&period) || self.path(&period).exists() {
            period.part += 1;
        }
        self.running = Running::new(period, Duration::ZERO, now);
        self.saved_at = now.monotonic;
    }

    /// Saves the running counts; false where that failed, or there is no place for it.
    fn keep(&mut self, ledger: &Ledger, now: Now, notices: &mut Vec<Notice>) -> bool {
        let Some(state) = &self.state else {
            return false;
        };
        let Running { period, .. } = self.running;
        let name = Name::of(&period, None);
        let saved = state.save(&self.disk, &name, &period, self.running.ran(now), ledger);
        self.saved_at = now.monotonic;
        self.is_saved = saved.is_ok();
        notices.extend(saved.err().map(|reason| Notice::NotSaved {
            period,
            path: state.place(&name),
            reason,
        }));
        self.is_saved
    }

    /// A period's published file.
    fn path(&self, period: &Period) -> PathBuf {
        published(&self.settings.directory, &self.origin.exit, period)
    }
}

fn published(directory: &Path, exit: &str, period: &Period) -> PathBuf {
    directory.join(format!("{exit}-{period}.jsonl"))
}

/// Whether an exit may have this name: it is a part of files' names.
pub fn is_exit_name(exit: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=64).contains(&exit.len())
        && exit.bytes().all(is_plain)
        && exit.as_bytes()[0].is_ascii_alphanumeric()
}
