//! Replaces the configuration in force with another one: completely, or not at all.

use super::relay_handle::Update;
use super::{Daemon, nics};
use crate::control::Reloaded;
use crate::settings::{Change, Settings};
use crossbeam::channel::Sender;
use std::sync::Arc;
use std::time::Duration;

const NO_RELAY_SERVICE: &str = "the relay service has stopped; restart exitmark";

/// The channel for the outcome of a reload, besides the log.
pub(super) type ReloadReply = Option<Sender<Result<Reloaded, String>>>;

/// A reload in progress, which waits for its relay set.
pub(super) struct Reloading {
    /// The number of the reconfiguration that it waits for, if it needs another relay set.
    number: Option<u64>,
    settings: Settings,
    change: Change,
    answer: ReloadReply,
}

impl Daemon {
    /// Reads the configuration again. If it needs another relay set, an event completes the reload.
    /// The relay files are checked in any case.
    pub(super) fn reload(&mut self, answer: ReloadReply) {
        if self.reloading.is_some() {
            // Not recorded as a refusal, because the configuration has not been read.
            let reason = "another reload is under way; try again when it has ended";
            return reply(answer, Err(reason.to_owned()));
        }
        let (settings, change) = match self.read_again() {
            Ok(read) => read,
            Err(reason) => {
                self.relay_service.load_now();
                return self.refuse(answer, reason);
            }
        };
        let needs_relays = settings.relays != self.settings.relays
            || settings.decides_by_relays() != self.settings.decides_by_relays();
        let reloading = Reloading {
            number: needs_relays.then(|| self.next_reconfiguration()),
            settings,
            change,
            answer,
        };
        if let Some(number) = reloading.number {
            let settings = &reloading.settings;
            let decides = settings.decides_by_relays();
            if !self
                .relay_service
                .reconfigure(number, settings.relays.clone(), decides)
            {
                return self.refuse(reloading.answer, NO_RELAY_SERVICE.to_owned());
            }
            self.reloading = Some(reloading);
            return;
        }
        self.take_on(reloading, None);
        self.relay_service.load_now();
    }

    fn read_again(&self) -> Result<(Settings, Change), String> {
        let path = self.path.display();
        let settings = Settings::load(&self.path).map_err(|error| format!("{path}: {error}"))?;
        let change = self.settings.change_to(&settings);
        if !change.fixed.is_empty() {
            return Err(format!(
                "{path}: {}: changed only by a restart, which loses no fast-path frame: \
                 `systemctl restart exitmark`, or stop and start it",
                change.fixed.join(", ")
            ));
        }
        if !change.keys.is_empty() {
            nics::object(&settings).map_err(|error| format!("{path}: {error}"))?;
        }
        Ok((settings, change))
    }

    /// Completes a reload with the relay set of its reconfiguration, or refuses it.
    pub(super) fn reconfigured(&mut self, number: u64, outcome: Result<Update, String>) {
        let reloading = self
            .reloading
            .take_if(|waiting| waiting.number == Some(number));
        match (reloading, outcome) {
            (Some(reloading), Ok(update)) => self.take_on(reloading, Some(update)),
            (Some(reloading), Err(reason)) => self.refuse(reloading.answer, reason),
            // The relay set after going back to the earlier configuration.
            (None, Ok(update)) => self.publish_relays(update),
            (None, Err(reason)) => tracing::error!(
                "the relay settings of the configuration in force cannot be restored after the \
                 refused reload: {reason}; restart exitmark"
            ),
        }
    }

    pub(super) fn without_relay_service(&mut self) {
        self.has_no_relay_service = true;
        if let Some(reloading) = self.reloading.take() {
            self.refuse(reloading.answer, NO_RELAY_SERVICE.to_owned());
        }
    }

    fn next_reconfiguration(&mut self) -> u64 {
        self.reconfigurations += 1;
        self.reconfigurations
    }

    /// Puts a configuration into force, with its relay set if it has another one, or goes back to
    /// the earlier one.
    fn take_on(&mut self, reloading: Reloading, update: Option<Update>) {
        let Reloading {
            number,
            settings,
            change,
            answer,
        } = reloading;
        if change.keys.is_empty() {
            tracing::info!("the configuration was read again: no key has changed");
            return self.accept(answer, change);
        }
        if let Err(error) = self.steering.change(&settings) {
            self.go_back();
            return self.refuse(answer, error.to_string());
        }
        let before = (
            std::mem::replace(&mut self.settings, settings),
            Arc::clone(&self.passing),
        );
        self.passing = Arc::new(self.settings.rules.passing());
        // An update that the kernel has not taken yet is newer than the one in force.
        let update = update.or_else(|| self.unpublished.take());
        let update = update.unwrap_or_else(|| Update {
            endpoints: self.snapshot.relays.clone(),
            passes: self.is_passing,
            loading: Duration::ZERO,
        });
        if let Err(error) = self.publish(update) {
            // Do not retry a relay set of these settings; retry another one with the earlier rules.
            if number.is_some() {
                self.unpublished = None;
            }
            (self.settings, self.passing) = before;
            if let Err(error) = self.steering.change(&self.settings) {
                tracing::error!(
                    "the previous next hop cannot be monitored again: {error}; restart exitmark"
                );
            }
            self.go_back();
            return self.refuse(answer, error.to_string());
        }
        self.links.expect_host(self.settings.host_mac);
        tracing::info!(
            generation = self.snapshot.generation,
            changed = change.keys.join(", "),
            "configuration replaced"
        );
        self.accept(answer, change);
    }

    /// Requests the relay settings in force again.
    fn go_back(&mut self) {
        let number = self.next_reconfiguration();
        let relays = self.settings.relays.clone();
        self.relay_service
            .reconfigure(number, relays, self.settings.decides_by_relays());
    }

    fn accept(&mut self, answer: ReloadReply, change: Change) {
        self.refused_reload = None;
        self.reloads.0 += u64::from(!change.keys.is_empty());
        let reloaded = Reloaded {
            generation: self.snapshot.generation,
            changed: change.keys,
        };
        reply(answer, Ok(reloaded));
    }

    fn refuse(&mut self, answer: ReloadReply, reason: String) {
        self.reloads.1 += 1;
        tracing::error!("the configuration stays as it was: {reason}");
        self.refused_reload = Some(reason.clone());
        reply(answer, Err(reason));
    }
}

fn reply(answer: ReloadReply, outcome: Result<Reloaded, String>) {
    if let Some(answer) = answer {
        let _ = answer.send(outcome);
    }
}
