//! What is said to the service manager that started this process, if one did (sd_notify(3)).

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// How soon a program that gives no sign of life is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The service manager, or nobody.
pub struct Service {
    /// How often it wants a sign of life.
    every: Option<Duration>,
    due: Instant,
}

impl Service {
    /// Whoever the environment names. To be called while there is one thread.
    pub fn find() -> Self {
        Self {
            // Twice in the time after which it gives this process up.
            every: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            due: Instant::now(),
        }
    }

    fn say(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!("the service manager cannot be told: {error}");
        }
    }

    /// The program does its work from now on.
    pub fn is_ready(&self, status: &str) {
        Self::say(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// It is about to end.
    pub fn is_stopping(&self) {
        Self::say(&[NotifyState::Stopping]);
    }

    /// How long may pass before it wants to hear something.
    pub fn patience(&self) -> Option<Duration> {
        self.every
            .map(|_| self.due.saturating_duration_since(Instant::now()))
    }

    /// Says that the program lives, if it does and if that is due.
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
