//! The configuration and the relay set in force. Both are one snapshot, which is replaced
//! completely or not at all, by whatever engine runs.

use super::DaemonError;
use super::relay_handle::{RelayServiceHandle, Update};
use super::relays::FEW_SIGNATURES;
use crate::control::Reloaded;
use crate::observe::{DocumentSignatures, RelaySetReport, RelaySource, SourceState, Warning};
use crate::settings::{Change, Settings};
use crossbeam::channel::Sender;
use exitmark_policy::{EndpointSet, Rules, Snapshot};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NO_RELAY_SERVICE: &str = "the relay service has stopped; restart exitmark";

/// The part of a daemon that applies settings and snapshots.
pub(super) trait Engine {
    /// The rules of these settings on this machine.
    fn rules(&self, settings: &Settings) -> Arc<Rules>;

    /// Checks settings that are about to be changed to against this machine.
    fn check(&self, settings: &Settings) -> Result<(), DaemonError>;

    /// Changes what depends on the settings besides the rules; fails without a change.
    fn change(&mut self, settings: &Settings) -> Result<(), DaemonError>;

    /// Publishes a snapshot; fails without a change.
    fn publish(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DaemonError>;

    /// The settings are in force, and so is a snapshot of their rules.
    fn changed(&mut self, settings: &Settings);
}

/// The settings, the snapshot in force, and what is about to replace them.
pub(super) struct InForce {
    pub(super) settings: Settings,
    path: PathBuf,
    pub(super) snapshot: Arc<Snapshot>,
    rules: Arc<Rules>,
    /// The rules while the relay set is missing or stale: nothing is marked or steered.
    passing: Arc<Rules>,
    pub(super) is_passing: bool,
    pub(super) relay_service: RelayServiceHandle,
    /// The update that the kernel refused; published again at the next tick.
    unpublished: Option<Update>,
    /// The heartbeat of the relay service has stopped, and the relay set is stale.
    is_orphaned: bool,
    reloading: Option<Reloading>,
    refused_reload: Option<String>,
    has_no_relay_service: bool,
    /// How many reconfigurations of the relay service were requested.
    reconfigurations: u64,
    /// How many configurations came into force after the first, and how many were refused.
    pub(super) reloads: (u64, u64),
}

/// The channel for the outcome of a reload, besides the log.
pub(super) type ReloadReply = Option<Sender<Result<Reloaded, String>>>;

/// A reload in progress, which waits for its relay set.
struct Reloading {
    /// The number of the reconfiguration that it waits for, if it needs another relay set.
    number: Option<u64>,
    settings: Settings,
    change: Change,
    answer: ReloadReply,
}

impl InForce {
    /// The first snapshot, of these rules and this relay set; it is not published yet.
    pub(super) fn new(
        settings: Settings,
        path: &Path,
        rules: Arc<Rules>,
        relay_service: RelayServiceHandle,
        first: Update,
    ) -> Self {
        let passing = Arc::new(rules.passing());
        let is_passing = first.passes;
        let effective = if is_passing { &passing } else { &rules };
        let snapshot = Arc::new(Snapshot::new(1, Arc::clone(effective), first.endpoints));
        Self {
            settings,
            path: path.to_owned(),
            snapshot,
            rules,
            passing,
            is_passing,
            relay_service,
            unpublished: None,
            is_orphaned: false,
            reloading: None,
            refused_reload: None,
            has_no_relay_service: false,
            reconfigurations: 0,
            reloads: (0, 0),
        }
    }

    /// Retries a failed publication, and lets all traffic pass once the set is stale and the
    /// heartbeat of the relay service has stopped.
    pub(super) fn look_around(&mut self, engine: &mut impl Engine) {
        if let Some(update) = self.unpublished.take() {
            self.publish_relays(engine, update);
        }
        let is_overdue = self.relay_service.is_overdue();
        if is_overdue && !self.is_orphaned {
            tracing::error!(
                "ALARM: the relay-file watcher has stopped, and the relay set is stale: \
                 nothing is marked or steered any more; restart exitmark"
            );
        }
        let was_orphaned = std::mem::replace(&mut self.is_orphaned, is_overdue);
        if was_orphaned != is_overdue {
            let passes = self.relay_service.is_past_its_end();
            let update = self.again(passes);
            self.publish_relays(engine, update);
        }
    }

    /// The relay set in force, to be published once more.
    fn again(&self, passes: bool) -> Update {
        Update {
            endpoints: self.snapshot.relays.clone(),
            passes,
            loading: Duration::ZERO,
        }
    }

    pub(super) fn publish_relays(&mut self, engine: &mut impl Engine, update: Update) {
        let started = Instant::now();
        let loading = update.loading;
        match self.publish(engine, update) {
            Ok(()) => tracing::info!(
                generation = self.snapshot.generation,
                endpoints = self.snapshot.relays.len(),
                loading_ms = loading.as_millis(),
                publishing_ms = started.elapsed().as_millis(),
                "relay set replaced"
            ),
            Err(error) => {
                tracing::error!(
                    "the relay set stays as it was, and the update is retried: {error}"
                );
            }
        }
    }

    /// Publishes the rules anew after this machine has changed.
    pub(super) fn follow_machine(&mut self, engine: &mut impl Engine) -> Result<(), DaemonError> {
        self.rules = engine.rules(&self.settings);
        self.passing = Arc::new(self.rules.passing());
        let update = self.unpublished.take();
        let update = update.unwrap_or_else(|| self.again(self.is_passing));
        self.publish(engine, update)
    }

    /// Publishes the current rules with a relay set. An update that the kernel refuses is kept for
    /// a retry.
    fn publish(&mut self, engine: &mut impl Engine, update: Update) -> Result<(), DaemonError> {
        let rules = if update.passes {
            &self.passing
        } else {
            &self.rules
        };
        let generation = self.snapshot.generation + 1;
        let snapshot = Snapshot::new(generation, Arc::clone(rules), update.endpoints);
        let snapshot = Arc::new(snapshot);
        if let Err(error) = engine.publish(&snapshot) {
            let endpoints: EndpointSet = snapshot.relays.clone();
            self.unpublished = Some(Update {
                endpoints,
                ..update
            });
            return Err(error);
        }
        self.unpublished = None;
        self.is_passing = update.passes;
        self.snapshot = snapshot;
        Ok(())
    }

    /// Gives up a reload that waits for its relay set.
    pub(super) fn stop(&mut self) {
        self.reloading = None;
    }

    /// Reads the configuration again. If it needs another relay set, an event completes the reload.
    /// The relay files are checked in any case.
    pub(super) fn reload(&mut self, engine: &mut impl Engine, answer: ReloadReply) {
        if self.reloading.is_some() {
            // Not recorded as a refusal, because the configuration has not been read.
            let reason = "another reload is under way; try again when it has ended";
            return reply(answer, Err(reason.to_owned()));
        }
        let (settings, change) = match self.read_again(engine) {
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
        self.take_on(engine, reloading, None);
        self.relay_service.load_now();
    }

    fn read_again(&self, engine: &impl Engine) -> Result<(Settings, Change), String> {
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
            let checked = engine.check(&settings);
            checked.map_err(|error| format!("{path}: {error}"))?;
        }
        Ok((settings, change))
    }

    /// Completes a reload with the relay set of its reconfiguration, or refuses it.
    pub(super) fn reconfigured(
        &mut self,
        engine: &mut impl Engine,
        number: u64,
        outcome: Result<Update, String>,
    ) {
        let reloading = self
            .reloading
            .take_if(|waiting| waiting.number == Some(number));
        match (reloading, outcome) {
            (Some(reloading), Ok(update)) => self.take_on(engine, reloading, Some(update)),
            (Some(reloading), Err(reason)) => self.refuse(reloading.answer, reason),
            // The relay set after going back to the earlier configuration.
            (None, Ok(update)) => self.publish_relays(engine, update),
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
    fn take_on(&mut self, engine: &mut impl Engine, reloading: Reloading, update: Option<Update>) {
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
        if let Err(error) = engine.change(&settings) {
            self.go_back();
            return self.refuse(answer, error.to_string());
        }
        let rules = engine.rules(&settings);
        let passing = Arc::new(rules.passing());
        let before = (
            std::mem::replace(&mut self.settings, settings),
            std::mem::replace(&mut self.rules, rules),
            std::mem::replace(&mut self.passing, passing),
        );
        // An update that the kernel has not taken yet is newer than the one in force.
        let update = update.or_else(|| self.unpublished.take());
        let update = update.unwrap_or_else(|| self.again(self.is_passing));
        if let Err(error) = self.publish(engine, update) {
            // Do not retry a relay set of these settings; retry another one with the earlier rules.
            if number.is_some() {
                self.unpublished = None;
            }
            (self.settings, self.rules, self.passing) = before;
            if let Err(error) = engine.change(&self.settings) {
                tracing::error!(
                    "the previous configuration cannot be restored completely: {error}; restart \
                     exitmark"
                );
            }
            engine.changed(&self.settings);
            self.go_back();
            return self.refuse(answer, error.to_string());
        }
        engine.changed(&self.settings);
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

    /// The state of the relay set.
    pub(super) fn relay_set(&self) -> RelaySetReport {
        let mut report = self.relay_service.numbers.report().clone();
        report.is_passing |= self.is_passing;
        report
    }

    /// The warnings on the relay set, the configuration and their replacement.
    pub(super) fn warnings(&self, set: &RelaySetReport) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |kind: &str, is_alarm: bool, text: String| {
            warnings.push(Warning::new(kind, is_alarm, text));
        };
        let decides = self.settings.decides_by_relays();
        if let Some((is_alarm, text)) = aged(set, decides, self.is_orphaned) {
            warn("relay_set", is_alarm, text);
        }
        for text in refusals(set) {
            warn("relay_set_refused", false, text);
        }
        if let Some(reason) = &set.unsaved {
            let text =
                format!("the relay set cannot be saved, and a restart would lose it: {reason}");
            warn("state", false, text);
        }
        if self.has_no_relay_service {
            let text = "the relay files are no longer watched; restart exitmark".to_owned();
            warn("relay_files", false, text);
        }
        if let Some(reason) = &self.refused_reload {
            let text = format!(
                "the file's configuration was refused, the previous one stays in force: {reason}"
            );
            warn("reload", false, text);
        }
        for source in &set.sources {
            if let Some(signed) = source.signatures.filter(DocumentSignatures::is_scarce) {
                let text = format!("{} is {signed}; {FEW_SIGNATURES}", source.path);
                warn("authorities", false, text);
            }
        }
        for doubt in self.settings.doubts() {
            warn(doubt.kind, false, doubt.what.to_string());
        }
        if self.unpublished.is_some() {
            let text =
                "the kernel refused the newest relay set; the update is retried every minute";
            warn("unpublished", false, text.to_owned());
        }
        warnings
    }
}

fn reply(answer: ReloadReply, outcome: Result<Reloaded, String>) {
    if let Some(answer) = answer {
        let _ = answer.send(outcome);
    }
}

/// The warnings of refused sources, while there is a relay set.
fn refusals(set: &RelaySetReport) -> Vec<String> {
    let whole = |reason: &String| {
        format!("the current relay files were refused, the previous set stays in force: {reason}")
    };
    let of_source = |source: &RelaySource| {
        let refusal = source.refusal.as_ref()?;
        Some(match source.state {
            SourceState::InForce => whole(refusal),
            _ => format!("a source of the relay set was refused: {refusal}"),
        })
    };
    let texts: Vec<_> = match set.is_missing {
        true => Vec::new(),
        false => set.sources.iter().filter_map(of_source).collect(),
    };
    match &set.failure {
        Some(reason) if texts.is_empty() && !set.is_missing => vec![whole(reason)],
        _ => texts,
    }
}

/// The warning on the set's age. `decides`: exit and relay traffic are classified by the set, not
/// only the host's own listeners.
fn aged(set: &RelaySetReport, decides: bool, is_orphaned: bool) -> Option<(bool, String)> {
    if set.is_missing {
        let text = match decides {
            true => "there is no relay set: nothing is marked or steered",
            false => "there is no relay set: the host's own ORPorts are not known as listeners",
        };
        let reason = set.failure.as_deref().unwrap_or("not read yet");
        return Some((decides, format!("{text}: {reason}")));
    }
    if set.is_passing || is_orphaned {
        let text = "the relay set is stale: nothing is marked or steered; find out why tor fetches \
                    no consensus";
        return Some((true, text.to_owned()));
    }
    match set.age.as_deref() {
        Some("stale") if decides => Some((
            true,
            "the relay set is stale: marking and steering continue with it, with more errors each \
             hour; find out why tor fetches no consensus"
                .to_owned(),
        )),
        Some("old" | "expired" | "stale") => Some((
            false,
            "the relay set is getting old; find out why tor fetches no consensus".to_owned(),
        )),
        Some("early") => Some((
            false,
            "the newest consensus is not valid yet; compare this machine's clock".to_owned(),
        )),
        _ => None,
    }
}
