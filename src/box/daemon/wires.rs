//! All wires of the box: what concerns more than one of them.

use super::counters::Counted;
use super::in_force::Engine;
use super::link_loss::CarrierWatch;
use super::nics::{self, Nics};
use super::parts::Loaded;
use super::record::Record;
use super::roaming::Roaming;
use super::wire::{Prepared, Wire, own_pins};
use super::{DaemonError, Event, capabilities, detach, steering};
use crate::audit::{CapturePart, CaptureTotals};
use crate::observe::{CaptureRequest, Warning};
use crate::settings::{Frags, OnStop, Settings};
use crossbeam::channel::{self, Receiver, Select, Sender};
use exitmark_datapath::{Buffers, KernelCounts, Pins, Role};
use exitmark_nic::{Nic, Overview};
use exitmark_policy::{Rules, Snapshot};
use exitmark_service::process;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// The type of an interface statistics block.
const STATISTICS: u32 = 5;

/// The wires that are set up, in the order of the configuration.
pub(super) struct Wires {
    pub(super) all: Vec<Wire>,
    failed: Vec<Failed>,
    roaming: Roaming,
    /// If a wire carries the loss of a link forward.
    carriers: Option<CarrierWatch>,
    /// The lock on the pin directory, in which each of several wires has one of its own.
    pub(super) directory: Option<Pins>,
}

/// A wire that is not set up, while others are.
struct Failed {
    settings: Settings,
    error: DaemonError,
    /// Its NICs were the reason, which can be mended while the box runs.
    lacks_nics: bool,
    /// What an earlier process has left of it, locked.
    pins: Option<Pins>,
    record: Record,
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
        let mut wires = Self {
            ready: Vec::new(),
            failed: Vec::new(),
            directory: None,
        };
        if settings.wires.len() > 1 {
            let directory = Pins::open(&settings.pin.directory)?;
            own_pins(settings, &directory)?;
            wires.directory = Some(directory);
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
        match nics::object(settings).and_then(|()| detach::take_off_others(settings)) {
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
    /// program there, after the others are set up: that program passes their frames on.
    ///
    /// # Errors
    /// No wire can be set up.
    pub(super) fn start(
        self,
        snapshot: &Arc<Snapshot>,
        events: &Sender<Event>,
    ) -> Result<Wires, DaemonError> {
        let (ready, mut failed) = (self.ready, self.failed);
        // A program passes frames on only to one that is loaded for the same frames.
        let several = |ready: &Prepared| {
            let frags = ready.settings.datapath.frags;
            ready.nics.buffers(frags) == Buffers::Several
        };
        let has_several = ready.iter().any(several);
        let mut loaded = Vec::new();
        for mut ready in ready {
            ready.nics.has_siblings = self.directory.is_some();
            if has_several {
                ready.settings.datapath.frags = Frags::On;
            }
            match ready.load(snapshot) {
                Ok(program) => loaded.push((ready, program)),
                Err(error) => {
                    let settings = ready.settings.clone();
                    failed.push(Failed::new(settings, ready.abandon(error)));
                }
            }
        }
        let mut taken = BTreeMap::new();
        for (number, (ready, _)) in loaded.iter_mut().enumerate() {
            if let Some(index) = ready.nics.incoming().map(|nic| nic.index) {
                let owner = *taken.entry(index).or_insert(number);
                ready.nics.shares_incoming = owner != number;
            }
        }
        let given = taken.iter();
        let mut given = given.map(|(&nic, &owner)| give_incoming(nic, owner, &loaded, &failed));
        let prepared = given.find(Result::is_err).unwrap_or(Ok(()));
        if let Err(error) = prepared.and_then(|()| chain(&loaded, &failed)) {
            let abandon = |error, (ready, _): (Prepared, Loaded)| ready.abandon(error);
            let error = loaded.into_iter().fold(error, abandon);
            remove_if_unused(self.directory);
            return Err(error);
        }
        let mut wires = Wires {
            all: Vec::new(),
            failed,
            roaming: Roaming::default(),
            carriers: None,
            directory: self.directory,
        };
        let due = Instant::now() + steering::TIMEOUT;
        let (owners, others): (Vec<_>, Vec<_>) = (loaded.into_iter().enumerate())
            .partition(|(_, (ready, _))| !ready.nics.shares_incoming);
        let mut all = Vec::new();
        for (number, (ready, program)) in others.into_iter().chain(owners) {
            let settings = ready.settings.clone();
            let nic = ready.nics.incoming().map(|nic| nic.index);
            let is_owner = nic.is_some() && !ready.nics.shares_incoming;
            match ready.start(program, snapshot, events, due) {
                Ok(wire) => all.push((number, wire)),
                Err(error) => {
                    let failure = Failed::new(settings, error);
                    let mut heirs = all.iter_mut().map(|(_, wire)| wire);
                    if is_owner && let Some(heir) = heirs.find(|wire| wire.incoming() == nic) {
                        heir.inherit_incoming(failure.pins.as_ref())?;
                    }
                    wires.failed.push(failure);
                }
            }
        }
        all.sort_by_key(|(number, _)| *number);
        wires.all = all.into_iter().map(|(_, wire)| wire).collect();
        match wires.all.is_empty() {
            true => {
                remove_if_unused(wires.directory);
                Err(first_error(wires.failed))
            }
            false => Ok(wires),
        }
    }
}

/// Moves what other wires have pinned of the NIC `incoming` to its owner: an earlier process may have
/// had another one.
fn give_incoming(
    nic: u32,
    owner: usize,
    ready: &[(Prepared, Loaded)],
    failed: &[Failed],
) -> Result<(), DaemonError> {
    let to = &ready[owner].0;
    let others = ready
        .iter()
        .enumerate()
        .filter(|(number, _)| *number != owner);
    let others = others.map(|(_, (other, _))| (&other.pins, &other.record));
    let failed = failed.iter().filter_map(Failed::kept);
    for from in others.chain(failed.collect::<Vec<_>>()) {
        if from.0.nic_of(Role::Incoming)? == Some(nic) {
            detach::hand_over_incoming(from, (&to.pins, &to.record))?;
        }
    }
    Ok(())
}

/// Makes the programs of wires with one NIC `incoming` pass frames on, in the order of the wires: a
/// frame may be for a host of any of them. At the end is what an earlier process has left of a wire
/// that is not set up.
fn chain(ready: &[(Prepared, Loaded)], failed: &[Failed]) -> Result<(), DaemonError> {
    for (number, (wire, program)) in ready.iter().enumerate() {
        let nic = wire.nics.incoming().map(|nic| nic.index);
        let mut rest = ready.iter().skip(number + 1);
        let next = rest
            .find(|(next, _)| nic.is_some() && next.nics.incoming().map(|nic| nic.index) == nic);
        program
            .kernel
            .chain_to(next.map(|(_, next)| &next.kernel))?;
        if next.is_some() || nic.is_none() {
            continue;
        }
        for left in failed.iter().filter_map(Failed::kept) {
            match program.kernel.chain_to_pinned(left.0) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }
    Ok(())
}

/// Merges the captures of a request. Each begins with the same header, and each piece is whole blocks
/// of the pcapng file (IETF draft-ietf-opsawg-pcapng section 3.1).
fn merged(
    mut captures: Vec<Receiver<Vec<u8>>>,
    totals: Arc<CaptureTotals>,
) -> Result<Receiver<Vec<u8>>, String> {
    let (pieces, read) = channel::bounded(1);
    let merge = move || {
        process::keep_or_say(capabilities::NONE);
        let mut begun = vec![false; captures.len()];
        let mut has_header = false;
        let mut statistics = None;
        while !captures.is_empty() {
            let mut waiting = Select::new();
            for capture in &captures {
                waiting.recv(capture);
            }
            let ready = waiting.select();
            let number = ready.index();
            let Ok(piece) = ready.recv(&captures[number]) else {
                captures.remove(number);
                begun.remove(number);
                continue;
            };
            let is_header = !std::mem::replace(&mut begun[number], true);
            if is_header && std::mem::replace(&mut has_header, true) {
                continue;
            }
            // The last ones are of all captures.
            if piece.first_chunk() == Some(&STATISTICS.to_ne_bytes()) {
                statistics = Some(piece);
            } else if pieces.send(piece).is_err() {
                totals.end();
                return;
            }
        }
        let _ = statistics.map(|piece| pieces.send(piece));
    };
    let thread = thread::Builder::new().name("exitmark-capture".to_owned());
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
        let mut wires = self.all.iter_mut();
        wires.try_for_each(|wire| wire.look_at_links(&overview, due))?;
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
        failed.chain(self.roaming.warning())
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
        for (wire, counts) in self.all.iter_mut().zip(&counts) {
            if let Some(counts) = counts {
                let by_incoming = wire.incoming().and_then(|nic| by_incoming.get(&nic));
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
        if let [one] = self.all.as_slice() {
            return one
                .audit
                .capture(request, CapturePart::default(), knows_relays);
        }
        let totals = Arc::<CaptureTotals>::default();
        let captures = self.all.iter().map(|wire| {
            let part = CapturePart {
                wire: wire.name().to_owned(),
                totals: Arc::clone(&totals),
            };
            wire.audit.capture(request, part, knows_relays)
        });
        match captures.collect::<Result<_, _>>() {
            Ok(captures) => merged(captures, totals),
            Err(refused) => {
                // Those that have begun.
                totals.end();
                Err(refused)
            }
        }
    }
}

impl Failed {
    fn new(settings: Settings, error: DaemonError) -> Self {
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

    fn kept(&self) -> Option<(&Pins, &Record)> {
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
        nics::object(settings)
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
