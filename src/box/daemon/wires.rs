//! All wires of the box: what concerns more than one of them.

use super::counters::Counted;
use super::in_force::Engine;
use super::link_loss::CarrierWatch;
use super::nics::{self, Nics};
use super::record::Record;
use super::roaming::Roaming;
use super::sources::{Sources, Translated, refuse_listener};
use super::wire::Wire;
use super::{DaemonError, Event, detach, steering};
use crate::observe::Warning;
use crate::settings::{OnStop, Settings};
use crossbeam::channel::Sender;
use exitmark_datapath::{KernelCounts, Pins, Role};
use exitmark_nic::Overview;
use exitmark_policy::{Rules, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// The wires that are set up, in the order of the configuration.
pub(super) struct Wires {
    pub(super) all: Vec<Wire>,
    pub(super) failed: Vec<Failed>,
    pub(super) roaming: Roaming,
    pub(super) sources: Sources,
    /// If a wire carries the loss of a link forward.
    pub(super) carriers: Option<CarrierWatch>,
    /// The lock on the pin directory, in which each of several wires has one of its own.
    pub(super) directory: Option<Pins>,
}

/// A wire that is not set up, while others are.
pub(super) struct Failed {
    settings: Settings,
    error: DaemonError,
    /// Its NICs were the reason, which can be mended while the box runs.
    lacks_nics: bool,
    /// What an earlier process has left of it, locked.
    pub(super) pins: Option<Pins>,
    record: Record,
}

/// Removes the pin directory of several wires if none of them is attached.
pub(super) fn remove_if_unused(directory: Option<Pins>) {
    if let Some(directory) = directory.filter(|directory| !directory.has_wires())
        && let Err(error) = directory.remove()
    {
        tracing::warn!("{error}");
    }
}

/// The reason why no wire is set up.
pub(super) fn first_error(failed: Vec<Failed>) -> DaemonError {
    let mut errors = failed.into_iter().map(|failed| failed.error);
    let none = || DaemonError::Unmet("no wire is configured: set [ports] or [[wire]]".to_owned());
    errors.next().unwrap_or_else(none)
}

impl Wires {
    /// Undoes a failed start.
    pub(super) fn abandon(self, error: DaemonError) -> DaemonError {
        let error = self.all.into_iter().fold(error, |error, mut wire| {
            wire.end();
            wire.abandon(error)
        });
        remove_if_unused(self.directory);
        error
    }

    /// Stops every wire: what each has counted, and the first failure. `keeps` leaves the programs
    /// attached also with `on_stop = "detach"`.
    pub(super) fn stop(self, keeps: bool) -> (Vec<Counted>, Result<(), DaemonError>) {
        let stop = |wire: Wire| wire.stop(keeps);
        let (counted, mut stopped): (Vec<_>, Vec<_>) = self.all.into_iter().map(stop).unzip();
        for failed in self.failed {
            let detaches = failed.settings.pin.on_stop == OnStop::Detach && !keeps;
            if let Some(pins) = failed.pins.filter(|_| detaches) {
                stopped.push(detach::take_off(pins, &failed.record).map(drop));
            }
        }
        remove_if_unused(self.directory);
        (counted, stopped.into_iter().collect())
    }

    /// Watches the links that are carried forward.
    pub(super) fn watch(&mut self, events: &Sender<Event>) -> Result<(), DaemonError> {
        if self.all.iter().any(|wire| wire.carrying.is_some()) {
            let carriers = CarrierWatch::start(events.clone())?;
            carriers.follow(&self.all);
            self.carriers = Some(carriers);
        }
        Ok(())
    }

    /// Checks every port, logs what has changed, and repairs what can be repaired.
    pub(super) fn look_at_links(&mut self) -> Result<(), DaemonError> {
        let overview = Overview::look();
        // All wires wait for next hops at the same time.
        let due = Instant::now() + steering::TIMEOUT;
        let ports = self.all.iter().flat_map(|wire| &wire.bound.ports);
        let ports: Vec<_> = ports.map(|port| port.nic.index).collect();
        let mut wires = self.all.iter_mut();
        wires.try_for_each(|wire| wire.look_at_links(&overview, &ports, due))?;
        Roaming::follow_links(&self.all);
        if let Some(carriers) = &self.carriers {
            carriers.follow(&self.all);
        }
        Ok(())
    }

    /// Whether every worker has shown a sign of life.
    pub(super) fn are_alive(&self) -> bool {
        self.all.iter().all(|wire| wire.workers.are_alive())
    }

    /// Logs why wires are not set up.
    pub(super) fn log_failures(&self) {
        for failed in &self.failed {
            tracing::error!("ALARM: {}", failed.text());
        }
    }

    /// Checks the NICs of wires that are not set up for lack of them.
    ///
    /// # Errors
    /// [`DaemonError::WireIsBack`]: a start can set one up now.
    pub(super) fn look_at_failed(&self) -> Result<(), DaemonError> {
        let lacking = self.failed.iter().filter(|failed| failed.lacks_nics);
        for failed in lacking {
            if Nics::look(&failed.settings).is_ok() {
                return Err(DaemonError::WireIsBack(failed.name().to_owned()));
            }
        }
        Ok(())
    }

    /// The warnings that concern several wires.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        let failed = self.failed.iter();
        let failed = failed.map(|failed| Warning::new("wire_down", true, failed.text()));
        let of_hosts = failed.chain(self.roaming.warning());
        of_hosts.chain(self.sources.warnings())
    }

    /// Compares the counts, and the addresses of the hosts, with those of the last look.
    pub(super) fn look_at_counters(&mut self, lacks_relays: bool) {
        self.roaming.look(&mut self.all, self.failed.is_empty());
        // If reading fails, the next call compares.
        let counts: Vec<Option<KernelCounts>> = self
            .all
            .iter()
            .map(|wire| wire.kernel.counts().ok())
            .collect();
        // Only one wire's program is attached to a NIC that several have, and sees its frames first.
        let mut by_incoming = BTreeMap::<u32, u64>::new();
        for (wire, counts) in self.all.iter().zip(&counts) {
            if let (Some(incoming), Some(counts)) = (wire.incoming(), counts) {
                let seen = by_incoming.entry(incoming).or_default();
                *seen = seen.wrapping_add(counts.seen(Role::Incoming));
            }
        }
        let mut translated = Translated::default();
        for (wire, counts) in self.all.iter_mut().zip(&counts) {
            if let Some(counts) = counts {
                let by_incoming = wire.incoming().and_then(|nic| by_incoming.get(&nic));
                let by_incoming = by_incoming.copied().unwrap_or_default();
                wire.look_at_counters(counts, by_incoming, lacks_relays, &mut translated);
            }
        }
        self.sources.look(&self.all, translated);
    }
}

impl Failed {
    pub(super) fn new(settings: Settings, error: DaemonError) -> Self {
        let directory = &settings.pin.directory;
        let pins = Pins::are_in(directory).then(|| Pins::open(directory).ok());
        Self {
            lacks_nics: Nics::look(&settings).is_err(),
            pins: pins.flatten(),
            record: Record::of(&settings.control.socket, directory),
            settings,
            error,
        }
    }

    pub(super) fn kept(&self) -> Option<(&Pins, &Record)> {
        Some((self.pins.as_ref()?, &self.record))
    }

    fn name(&self) -> &str {
        let wire = self.settings.wires.first();
        wire.map_or("", |wire| wire.name.as_str())
    }

    fn text(&self) -> String {
        let (name, error) = (self.name(), &self.error);
        format!(
            "the wire {name} is not set up: {error}; if it was set up by an earlier process, its \
             programs forward as that one left them"
        )
    }
}

impl Engine for Wires {
    fn rules(&self, settings: &Settings) -> Arc<Rules> {
        // The next hops have the same numbers on every wire.
        let steers = |wire: &&Wire| wire.incoming().is_some();
        let wire = self.all.iter().find(steers).or(self.all.first());
        match wire {
            Some(wire) => wire.steering.numbered(settings),
            None => Arc::clone(&settings.rules),
        }
    }

    fn check(&self, settings: &Settings) -> Result<(), DaemonError> {
        if !self.all.iter().all(|wire| wire.workers.suit(settings)) {
            return Err(DaemonError::Unmet(
                "host.vlan and steer.vlan differ in the number of their tags, and the sockets of \
                 this process cannot replace tags: changed only by a restart, which loses no \
                 fast-path frame: `systemctl restart exitmark`, or stop and start it"
                    .to_owned(),
            ));
        }
        nics::object(settings)?;
        refuse_listener(settings)
    }

    fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        let mut failure = None;
        for number in 0..self.all.len() {
            let wire = &mut self.all[number];
            if let Err(error) = wire.steering.change(&wire.with_ports(settings)) {
                for wire in &mut self.all[..number] {
                    wire.steering.change(&wire.settings)?;
                }
                failure = Some(error);
                break;
            }
        }
        // All wires wait at the same time.
        let due = Instant::now() + steering::TIMEOUT;
        let wires = self.all.iter_mut();
        wires.for_each(|wire| wire.steering.settle(due));
        failure.map_or(Ok(()), Err)
    }

    fn publish(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), DaemonError> {
        for number in 0..self.all.len() {
            if let Err(error) = self.all[number].publish(snapshot) {
                // The wires before it go back to the earlier one.
                let earlier = Arc::clone(&self.all[number].snapshot);
                for wire in &mut self.all[..number] {
                    wire.publish(&earlier)?;
                }
                return Err(error);
            }
        }
        for wire in &mut self.all {
            wire.snapshot = Arc::clone(snapshot);
        }
        Ok(())
    }

    fn changed(&mut self, settings: &Settings) {
        for wire in &mut self.all {
            // What was counted by the earlier numbers of the groups, and from when on by the new ones.
            wire.enter_groups();
            wire.settings = wire.with_ports(settings);
            let hops = wire.settings.incoming().map(|incoming| &incoming.next_hops);
            wire.steering.forget(hops.map_or(&[], Vec::as_slice));
            wire.enter_groups();
        }
    }
}
