//! All wires of the box: what concerns more than one of them.

use super::counters::Counted;
use super::in_force::Engine;
use super::nics::{self, Nics};
use super::roaming::Roaming;
use super::wire::{Prepared, Wire};
use super::{DaemonError, Event, capabilities, detach};
use crate::observe::{CaptureRequest, Warning};
use crate::settings::{Frags, Settings};
use crossbeam::channel::{self, Receiver, Select, Sender};
use exitmark_datapath::{Buffers, KernelCounts, Pins, Role};
use exitmark_nic::Nic;
use exitmark_policy::{Rules, Snapshot};
use exitmark_service::process;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

/// The type of an enhanced packet block.
const ENHANCED_PACKET: u32 = 6;

/// The wires that are set up, in the order of the configuration.
pub(super) struct Wires {
    pub(super) all: Vec<Wire>,
    failed: Vec<Failed>,
    roaming: Roaming,
    /// The lock on the pin directory, in which each of several wires has one of its own.
    pub(super) directory: Option<Pins>,
}

/// A wire that is not set up, while others are.
struct Failed {
    settings: Settings,
    error: DaemonError,
    /// Its NICs were the reason, which can be mended while the box runs.
    lacks_nics: bool,
}

/// The wires whose NICs are checked.
pub(super) struct PreparedWires {
    ready: Vec<Prepared>,
    failed: Vec<Failed>,
    directory: Option<Pins>,
}

impl PreparedWires {
    /// Checks the NICs of every wire and locks the pins. Of several wires, one that cannot be used
    /// is left out.
    ///
    /// # Errors
    /// No wire can be used.
    pub(super) fn look(settings: &Settings) -> Result<Self, DaemonError> {
        detach::take_off_others(settings)?;
        let mut wires = Self {
            ready: Vec::new(),
            failed: Vec::new(),
            directory: None,
        };
        if settings.wires.len() > 1 {
            wires.directory = Some(Pins::open(&settings.pin.directory)?);
        }
        for number in 0..settings.wires.len() {
            let settings = settings.of_wire(number);
            let looked = Prepared::look(settings.clone());
            match looked.and_then(|ready| wires.refuse_shared(ready)) {
                Ok(ready) => wires.ready.push(ready),
                Err(error) => wires.failed.push(Failed::new(settings, error)),
            }
        }
        if wires.ready.is_empty() {
            remove_if_unused(wires.directory);
            return Err(first_error(wires.failed));
        }
        match nics::object(settings) {
            Ok(()) => Ok(wires),
            Err(error) => Err(wires.abandon(error)),
        }
    }

    /// Refuses a wire one of whose NICs is that of another wire by an alternative name.
    fn refuse_shared(&self, ready: Prepared) -> Result<Prepared, DaemonError> {
        let taken = self.ready.iter().flat_map(|other| other.nics.present());
        for (other, one) in taken {
            let is_same = |(role, nic): &(Role, &Nic)| {
                nic.index == one.index && (*role, other) != (Role::Incoming, Role::Incoming)
            };
            let shared = ready.nics.present().find(is_same);
            if let Some((role, name)) = shared.map(|(role, nic)| (role, nic.name.clone())) {
                let error = DaemonError::Unmet(format!(
                    "{name} is the NIC of two wires, as {other} of one and {role} of the other, by two \
                     names: name another one; incoming alone can be the same"
                ));
                return Err(ready.abandon(error));
            }
        }
        Ok(ready)
    }

    /// Undoes a failed start: detaches what was not attached before.
    pub(super) fn abandon(self, error: DaemonError) -> DaemonError {
        let abandon = |error, wire: Prepared| wire.abandon(error);
        let error = self.ready.into_iter().fold(error, abandon);
        remove_if_unused(self.directory);
        error
    }

    /// Sets up every wire. Of several wires with one NIC `incoming`, the first one attaches its
    /// program there.
    ///
    /// # Errors
    /// No wire can be set up.
    pub(super) fn start(
        self,
        snapshot: &Arc<Snapshot>,
        events: &Sender<Event>,
    ) -> Result<Wires, DaemonError> {
        let mut wires = Wires {
            all: Vec::new(),
            failed: self.failed,
            roaming: Roaming::default(),
            directory: self.directory,
        };
        let mut taken = Vec::new();
        // A program passes frames on only to one that is loaded for the same frames.
        let several = |ready: &Prepared| {
            let frags = ready.settings.datapath.frags;
            ready.nics.buffers(frags) == Buffers::Several
        };
        let has_several = self.ready.iter().any(several);
        for mut ready in self.ready {
            if has_several {
                ready.settings.datapath.frags = Frags::On;
            }
            let settings = ready.settings.clone();
            let incoming = ready.nics.incoming().map(|nic| nic.index);
            let shared = match incoming.is_some_and(|index| taken.contains(&index)) {
                true => ready.share_incoming(),
                false => Ok(()),
            };
            let started = match shared {
                Ok(()) => ready.start(snapshot, events),
                Err(error) => Err(ready.abandon(error)),
            };
            match started {
                Ok(wire) => {
                    taken.extend(incoming);
                    wires.all.push(wire);
                }
                Err(error) => wires.failed.push(Failed::new(settings, error)),
            }
        }
        if wires.all.is_empty() {
            remove_if_unused(wires.directory);
            return Err(first_error(wires.failed));
        }
        match wires.chain() {
            Ok(()) => Ok(wires),
            Err(error) => Err(wires.abandon(error)),
        }
    }
}

/// Merges captures, of which each begins with the same header. Each piece is whole blocks of the
/// pcapng file (IETF draft-ietf-opsawg-pcapng section 3.1).
fn merged(mut captures: Vec<Receiver<Vec<u8>>>, frames: u64) -> Result<Receiver<Vec<u8>>, String> {
    if captures.len() == 1 {
        return Ok(captures.swap_remove(0));
    }
    let (pieces, read) = channel::bounded(1);
    let thread = thread::Builder::new().name("exitmark-capture".to_owned());
    let merge = move || {
        process::keep_or_say(capabilities::NONE);
        let mut has_begun = vec![false; captures.len()];
        let (mut has_header, mut left) = (false, frames);
        while !captures.is_empty() {
            let mut waiting = Select::new();
            for capture in &captures {
                waiting.recv(capture);
            }
            let ready = waiting.select();
            let number = ready.index();
            let Ok(piece) = ready.recv(&captures[number]) else {
                captures.remove(number);
                has_begun.remove(number);
                continue;
            };
            let is_header = !std::mem::replace(&mut has_begun[number], true);
            let is_frame = piece.first_chunk() == Some(&ENHANCED_PACKET.to_ne_bytes());
            let is_left_out = is_header && has_header || is_frame && left == 0;
            has_header |= is_header;
            if is_left_out {
                continue;
            }
            left -= u64::from(is_frame);
            // Dropping the captures ends them.
            if pieces.send(piece).is_err() {
                return;
            }
        }
    };
    match thread.spawn(merge) {
        Ok(_) => Ok(read),
        Err(error) => Err(format!("cannot start a capture: {error}")),
    }
}

/// Removes the pin directory of several wires if none of them is attached.
fn remove_if_unused(directory: Option<Pins>) {
    if let Some(directory) = directory.filter(|directory| !directory.has_wires())
        && let Err(error) = directory.remove()
    {
        tracing::warn!("{error}");
    }
}

/// The reason why no wire is set up.
fn first_error(failed: Vec<Failed>) -> DaemonError {
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

    /// Stops every wire: what each has counted, and the first failure.
    pub(super) fn stop(self) -> (Vec<Counted>, Result<(), DaemonError>) {
        let (counted, stopped): (Vec<_>, Vec<_>) = self.all.into_iter().map(Wire::stop).unzip();
        remove_if_unused(self.directory);
        (counted, stopped.into_iter().collect())
    }

    /// Makes the programs of wires with one NIC `incoming` pass frames on, in the order of the
    /// wires: a frame may be for a host of any of them.
    fn chain(&self) -> Result<(), DaemonError> {
        for (number, wire) in self.all.iter().enumerate() {
            let rest = self.all.get(number + 1..).unwrap_or_default();
            let next = rest.iter().find(|next| {
                let incoming = wire.incoming();
                incoming.is_some() && next.incoming() == incoming
            });
            wire.kernel.chain_to(next.map(|next| &next.kernel))?;
        }
        Ok(())
    }

    /// Checks every port, logs what has changed, and repairs what can be repaired.
    pub(super) fn look_at_links(&mut self) -> Result<(), DaemonError> {
        self.all.iter_mut().try_for_each(Wire::look_at_links)?;
        Roaming::follow_links(&self.all);
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
        failed.chain(self.roaming.warning())
    }

    /// Compares the counts, and the addresses of the hosts, with those of the last look.
    pub(super) fn look_at_counters(&mut self, lacks_relays: bool) {
        self.roaming.look(&mut self.all);
        // If reading fails, the next call compares.
        let counts: Vec<Option<KernelCounts>> = self
            .all
            .iter()
            .map(|wire| wire.kernel.counts().ok())
            .collect();
        // Only one wire's program is attached to a NIC that several have, and sees its frames first.
        let mut by_incoming = BTreeMap::<String, u64>::new();
        for (wire, counts) in self.all.iter().zip(&counts) {
            if let (Some(incoming), Some(counts)) = (wire.incoming(), counts) {
                let seen = by_incoming.entry(incoming.to_owned()).or_default();
                *seen = seen.wrapping_add(counts.seen(Role::Incoming));
            }
        }
        for (wire, counts) in self.all.iter_mut().zip(&counts) {
            if let Some(counts) = counts {
                let by_incoming = wire.incoming().and_then(|name| by_incoming.get(name));
                let by_incoming = by_incoming.copied().unwrap_or_default();
                wire.look_at_counters(counts, by_incoming, lacks_relays);
            }
        }
    }

    /// Captures sampled frames of every wire, as one file.
    pub(super) fn capture(
        &self,
        request: CaptureRequest,
        knows_relays: bool,
    ) -> Result<Receiver<Vec<u8>>, String> {
        let wires = self.all.iter();
        let captures = wires.map(|wire| wire.audit.capture(request, knows_relays));
        merged(captures.collect::<Result<_, _>>()?, request.frames)
    }
}

impl Failed {
    fn new(settings: Settings, error: DaemonError) -> Self {
        Self {
            lacks_nics: Nics::look(&settings).is_err(),
            settings,
            error,
        }
    }

    fn name(&self) -> &str {
        let wire = self.settings.wires.first();
        wire.map_or("", |wire| wire.name.as_str())
    }

    fn text(&self) -> String {
        let (name, error) = (self.name(), &self.error);
        format!(
            "the wire {name} is not set up, and what its programs still forward is as the last \
             process left it: {error}; then `systemctl restart exitmark`, which loses no frame of \
             the other wires"
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
        nics::object(settings)
    }

    fn change(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        for number in 0..self.all.len() {
            let wire = &mut self.all[number];
            if let Err(error) = wire.steering.change(&wire.with_ports(settings)) {
                for wire in &mut self.all[..number] {
                    wire.steering.change(&wire.settings)?;
                }
                return Err(error);
            }
        }
        Ok(())
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
            wire.steering.forget();
            wire.settings = wire.with_ports(settings);
            wire.enter_groups();
        }
    }
}
