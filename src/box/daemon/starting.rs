//! The start of all wires: which of them can be set up, in what order, and how they share `incoming`.

use super::nics::{self, Nics};
use super::parts::Loaded;
use super::roaming::Roaming;
use super::sources::Sources;
use super::wire::{Prepared, own_pins};
use super::wires::{Failed, Wires, first_error, remove_if_unused};
use super::{DaemonError, Event, detach, steering};
use crate::settings::{Frags, Settings};
use crossbeam::channel::Sender;
use exitmark_datapath::{Buffers, Pins, Role};
use exitmark_nic::Nic;
use exitmark_policy::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

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
            wires.directory = Some(Pins::open(&settings.pin.directory)?);
        }
        if let Err(error) = wires.make_room(settings) {
            return Err(wires.abandon(error));
        }
        for number in 0..settings.wires.len() {
            let of_wire = settings.of_wire(number);
            let looked = Prepared::look(of_wire.clone(), settings);
            match looked.and_then(|ready| wires.refuse_shared(ready)) {
                Ok(ready) => wires.ready.push(ready),
                Err(error) => wires.failed.push(Failed::new(of_wire, error)),
            }
        }
        if wires.ready.is_empty() {
            remove_if_unused(wires.directory);
            return Err(first_error(wires.failed));
        }
        Ok(wires)
    }

    /// Takes off what is attached for other wires than these.
    fn make_room(&self, settings: &Settings) -> Result<(), DaemonError> {
        if let Some(directory) = &self.directory {
            own_pins(settings, directory)?;
        }
        let mut each = (0..settings.wires.len()).map(|number| settings.of_wire(number));
        // Before the NICs are looked at for good, because it sets them back; not for a file that
        // names none of this machine.
        if each.any(|wire| Nics::look(&wire).is_ok()) {
            nics::object(settings)?;
            detach::take_off_others(settings, self.directory.as_ref())?;
        }
        Ok(())
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
            if let Some(index) = ready.incoming() {
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
            sources: Sources::default(),
            carriers: None,
            directory: self.directory,
        };
        let due = Instant::now() + steering::TIMEOUT;
        let (owners, others): (Vec<_>, Vec<_>) = (loaded.into_iter().enumerate())
            .partition(|(_, (ready, _))| !ready.nics.shares_incoming);
        let mut all = Vec::new();
        for (number, (ready, program)) in others.into_iter().chain(owners) {
            let settings = ready.settings.clone();
            let nic = ready.incoming();
            let is_owner = nic.is_some() && !ready.nics.shares_incoming;
            match ready.start(program, snapshot, events, due) {
                Ok(wire) => all.push((number, wire)),
                Err(error) => {
                    let failure = Failed::new(settings, error);
                    let mut heirs = all.iter_mut().map(|(_, wire)| wire);
                    if is_owner && let Some(heir) = heirs.find(|wire| wire.incoming() == nic) {
                        heir.inherit_incoming(failure.pins.as_ref());
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
        if from.0.attached_to(Role::Incoming)? == Some(nic) {
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
        let nic = wire.incoming();
        let mut rest = ready.iter().skip(number + 1);
        let next = rest.find(|(next, _)| nic.is_some() && next.incoming() == nic);
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
