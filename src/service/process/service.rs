//! Notifies the service manager that started this process, if any (sd_notify(3)).

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// The interval of checking again after a failed liveness check.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The service manager; without one, every call does nothing.
pub struct Service {
    /// The interval of watchdog notifications, if the watchdog is enabled.
    every: Option<Duration>,
    due: Instant,
}

impl Service {
    /// Reads the watchdog timeout from the environment. To be called while the process has one
    /// thread.
    pub fn find() -> Self {
        Self {
            // Twice per watchdog timeout, as sd_watchdog_enabled(3) recommends.
            every: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            due: Instant::now(),
        }
    }

    fn say(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!("the service manager cannot be notified: {error}");
        }
    }

    /// Sends READY=1 with a status line.
    pub fn is_ready(&self, status: &str) {
        Self::say(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Sends STOPPING=1: the process is shutting down.
    pub fn is_stopping(&self) {
        Self::say(&[NotifyState::Stopping]);
    }

    /// The time until the next watchdog notification is due; `None` without a watchdog.
    pub fn until_watchdog(&self) -> Option<Duration> {
        self.every
            .map(|_| self.due.saturating_duration_since(Instant::now()))
    }

    /// Sends WATCHDOG=1, if it is due and `lives` returns true.
    pub fn beat(&mut self, lives: impl FnOnce() -> bool) {
        if let Some(every) = self.every
            && Instant::now() >= self.due
        {
            let lives = lives();
            if lives {
                Self::say(&[NotifyState::Watchdog]);
            }
            self.due = Instant::now() + if lives { every } else { every.min(LOOK_AGAIN) };
        }
    }
}
