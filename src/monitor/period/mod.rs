//! The periods: which one is counted, how it survives a restart, and how each is published once.
//! Owns the state directory and the published files; does not decide their content and never
//! removes a published file.
//!
//! A period goes through these steps, and a crash may happen at any point:
//!
//! 1. While it runs, its counts are saved every minute (`state`); a crash loses at most that.
//! 2. When it ends, they are saved a last time, and its rows are made. The state file gets the
//!    digest of the rows into its name: only those rows may be in the published file from now on.
//! 3. The published file is renamed to its final name, which must not exist. If it does (an earlier
//!    part, or a foreign file), this becomes the next part.
//! 4. The state file is removed. If a restart finds a state file with a digest and a published file
//!    with the same digest, only this step was missing. Otherwise the period is published anew,
//!    with new noise; the earlier noise was never visible.
//!
//! If the file cannot be written, the period waits, and the next one is counted meanwhile. At most
//! [`MAX_WAITING`] periods wait; then the oldest is given up and logged as an error, because memory
//! and tmpfs are bounded and newer periods are worth more. A period in which the tap was not
//! watched has no file; one in which it was watched and nothing was seen has one.

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
use std::path::PathBuf;
use std::time::Duration;
use waiting::{Closed, Waiting};

/// Default of `period.state`; on a tmpfs.
pub const DEFAULT_STATE: &str = "/run/exitmark-monitor";
/// Closed periods that are kept at most while they cannot be published: a week of days.
pub const MAX_WAITING: usize = 7;
/// How often counts are saved and publishing is retried.
const INTERVAL: Duration = Duration::from_secs(60);

/// Length and directories of periods.
#[derive(Clone, Debug)]
pub struct PeriodSettings {
    /// The length of each period.
    pub length: Length,
    /// Directory of the published files. It must exist: creating it could hide an unmounted disk.
    pub directory: PathBuf,
    /// State directory; `None` for packets from files, which can be read again.
    pub state: Option<PathBuf>,
}

/// Why periods cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PeriodError {
    /// The exit's name cannot be part of a file name.
    #[error(
        "`{0}` is not a valid exit name: 1 to 64 letters, digits, dots, hyphens and underscores, \
         the first a letter or digit"
    )]
    Exit(String),
    /// A seed would make the noise predictable.
    #[error(
        "noise from a seed gives no protection: remove the seed; it is for tests with files only"
    )]
    Seed,
    /// The settings for publishing are invalid.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The state of the periods, for metrics and the status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The period that is being counted.
    pub running: Period,
    /// Closed periods that are not published yet.
    pub waiting: usize,
    /// Periods given up since the start.
    pub given_up: u64,
    /// Periods published since the start.
    pub published: u64,
    /// When a period was last published.
    pub last_published: Option<Timestamp>,
    /// Whether the last attempt to save the running counts succeeded.
    pub is_saved: bool,
}

/// The periods of one exit: the running one, and those that wait to be published.
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

/// The periods, the saved counts of the running one, and what opening them revealed.
pub type Opened = (Periods, Option<Ledger>, Vec<Notice>);

impl Periods {
    /// Continues from the state directory: publishes what is over and returns the running period's
    /// counts. Only tests have another disk than the default.
    ///
    /// # Errors
    /// The settings are invalid, or the state directory cannot be used.
    pub fn open(
        disk: Disk,
        settings: PeriodSettings,
        publish: PublishSettings,
        origin: Origin,
        now: Now,
    ) -> Result<Opened, PeriodError> {
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
        let noise = noise.map(|noise| Noise::new(noise, publish.tables(), publish.directions));
        let noise = noise.transpose().map_err(PublishError::from)?;
        let state = settings.state.as_deref().map(StateDirectory::open);
        let state = state.transpose()?;
        if let Err(reason) = fs::read_dir(&settings.directory) {
            notices.push(Notice::NoDirectory(settings.directory.clone(), reason));
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
            waiting: Waiting {
                tried_at: now.monotonic,
                ..Waiting::default()
            },
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

    /// Whether the running period is over and must be closed.
    pub fn is_over(&self, now: Now) -> bool {
        self.running.is_over(now)
    }

    /// Closes the running period with these counts, even before its end, publishes it, and begins
    /// the period of `now`.
    pub fn close(&mut self, ledger: Ledger, now: Now) -> Vec<Notice> {
        let mut notices = Vec::new();
        if !ledger.is_empty() {
            let is_saved = self.keep(&ledger, now, &mut notices);
            let name = Name::of(&self.running.period, None);
            // An existing state file is renamed even if it is older than these counts.
            let state = self.state.as_ref().map(|state| state.place(&name));
            let name = state.is_some_and(|path| path.exists()).then_some(name);
            self.waiting.closed.push_back(Closed {
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

    /// Whether the running counts must be saved.
    pub fn is_save_due(&self, now: Now) -> bool {
        self.state.is_some() && now.monotonic.saturating_sub(self.saved_at) >= INTERVAL
    }

    /// Saves the running counts for a restart.
    pub fn save(&mut self, ledger: &Ledger, now: Now) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.keep(ledger, now, &mut notices);
        notices
    }

    /// Whether publishing must be retried.
    pub fn is_retry_due(&self, now: Now) -> bool {
        self.waiting.is_due(now)
    }

    /// Tries again to publish the waiting periods.
    pub fn retry(&mut self, now: Now) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.settle(now, &mut notices);
        notices
    }

    /// The published file of the period at `wall`, if it exists.
    pub fn published_at(&self, wall: Timestamp) -> Option<PathBuf> {
        let path = self.path(&Period::at(wall, self.settings.length));
        path.exists().then_some(path)
    }

    /// The current state of the running and the waiting periods.
    pub fn status(&self) -> Status {
        Status {
            running: self.running.period,
            waiting: self.waiting.closed.len(),
            given_up: self.waiting.given_up,
            published: self.waiting.published,
            last_published: self.waiting.last_published,
            is_saved: self.is_saved,
        }
    }

    /// Takes over the state files of an earlier process.
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
                        self.waiting.closed.push_back(Closed {
                            period,
                            ran,
                            ledger,
                            digest: name.digest.clone(),
                            state: Some(name),
                            is_saved: true,
                        });
                        // One by one: so only a few are in memory at a time.
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

    /// Begins the period of `now`, or its next part.
    fn begin(&mut self, now: Now) {
        let mut period = Period::at(now.wall, self.settings.length);
        while self.waiting.has(&period) || self.path(&period).exists() {
            period.part += 1;
        }
        self.running = Running::new(period, Duration::ZERO, now);
        self.saved_at = now.monotonic;
    }

    /// Saves the running counts; false if that failed or no state directory is configured.
    fn keep(&mut self, ledger: &Ledger, now: Now, notices: &mut Vec<Notice>) -> bool {
        let Some(state) = &self.state else {
            return false;
        };
        let Running { period, .. } = self.running;
        let name = Name::of(&period, None);
        let saved = state.save(&self.disk, &name, &period, self.running.ran(now), ledger);
        self.saved_at = now.monotonic;
        self.is_saved = saved.is_ok();
        let path = state.place(&name);
        notices.extend(
            saved
                .err()
                .map(|reason| Notice::NotSaved(period, path, reason)),
        );
        self.is_saved
    }

    /// Path of a period's published file.
    fn path(&self, period: &Period) -> PathBuf {
        let name = format!("{}-{period}.jsonl", self.origin.exit);
        self.settings.directory.join(name)
    }
}

/// Whether an exit may have this name, which becomes part of file names.
pub fn is_exit_name(exit: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=64).contains(&exit.len())
        && exit.bytes().all(is_plain)
        && exit.as_bytes()[0].is_ascii_alphanumeric()
}
