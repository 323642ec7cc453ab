//! The state that outlives the process (pins, NIC settings), and its removal.

use super::DaemonError;
use super::nics::Nics;
use super::record::{Record, united};
use crate::control;
use crate::settings::Settings;
use exitmark_datapath::{PerRole, Pins, Role, Undo, detach_connect};
use exitmark_nic::{Nic, NicError, Offload, set_admin};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Restores by hand the settings of a NIC that exitmark cannot reach.
pub(crate) const BY_HAND: &str = "run `ip link set dev NIC promisc off` there, and `ethtool -K \
                                  NIC rxvlan on` if that was on";

/// The outcome of a detachment; of several wires, the last one in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Detached {
    /// No box was attached, and no change to a NIC is on record.
    Nothing,
    /// The box is detached and every NIC setting restored.
    All,
    /// The box is detached; a NIC that it had set is not in this network namespace. Its settings
    /// stay on record, in case it returns.
    Absent,
    /// The box is detached; NICs in another network namespace keep the settings it made.
    Partly,
}

/// Detaches every wire of a box whose process has ended. Without its pins, the NIC settings are
/// restored from the record beside its control socket.
///
/// # Errors
/// The box still runs, or a privilege is missing.
pub(crate) fn detach(pins: &Path, socket: &Path) -> Result<Detached, DaemonError> {
    let mut wires: BTreeSet<PathBuf> = Record::below(socket, pins).into_iter().collect();
    wires.extend(Pins::wires_in(pins));
    // A running box holds the lock on this directory, also with several wires.
    let lock = match pins.is_dir() {
        true => Some(Pins::open(pins)?),
        false => None,
    };
    let wires = wires.iter().map(|wire| detach_wire(wire, socket));
    // One that fails does not keep the others.
    let mut outcomes: Vec<_> = wires.collect();
    drop(lock);
    outcomes.push(detach_wire(pins, socket));
    let outcomes: Vec<_> = outcomes.into_iter().collect::<Result<_, _>>()?;
    Ok(outcomes.into_iter().max().unwrap_or(Detached::Nothing))
}

/// Takes off what wires have left that the settings do not name. The directory of a single wire is
/// that of the box, `directory`, if this process has locked it for several wires.
pub(super) fn take_off_others(
    settings: &Settings,
    directory: Option<&Pins>,
) -> Result<(), DaemonError> {
    let (pins, socket) = (&settings.pin.directory, &settings.control.socket);
    let wires = 0..settings.wires.len();
    let named: Vec<_> = wires
        .map(|number| settings.of_wire(number).pin.directory)
        .collect();
    let log = |pins: &Path| {
        tracing::warn!(
            "{}: the wires of the box are other ones now: what is attached by these pins is \
             detached",
            pins.display()
        );
    };
    if let Some(of_box) = directory.filter(|_| !Pins::peek(pins).is_empty()) {
        log(pins);
        take_off_links(of_box, &Record::of(socket, pins))?;
    }
    let others = Pins::wires_in(pins);
    for other in others.iter().filter(|other| !named.contains(other)) {
        log(other);
        let taken = Pins::open(other).map_err(DaemonError::from);
        if let Err(error) = taken.and_then(|pins| take_off(pins, &Record::of(socket, other))) {
            tracing::warn!("{}: {error}", other.display());
        }
    }
    Ok(())
}

fn detach_wire(pins: &Path, socket: &Path) -> Result<Detached, DaemonError> {
    let record = Record::of(socket, pins);
    if pins.is_dir() {
        return take_off(Pins::open(pins)?, &record);
    }
    let changes = record.read();
    if changes.is_empty() {
        return Ok(Detached::Nothing);
    }
    if control::answers(socket) {
        // A box whose pins are gone.
        return Err(DaemonError::Unmet(format!(
            "an exitmark answers at {}: stop it first",
            socket.display()
        )));
    }
    set_all_back(changes, netns()?, &record)
}

/// Detaches the programs, restores the NIC settings, and removes every pin.
pub(super) fn take_off(pins: Pins, record: &Record) -> Result<Detached, DaemonError> {
    detach_connect(&pins)?;
    let outcome = take_off_links(&pins, record);
    pins.remove()?;
    outcome
}

/// Detaches the programs and restores the NIC settings.
fn take_off_links(pins: &Pins, record: &Record) -> Result<Detached, DaemonError> {
    let netns = netns()?;
    pins.remove_links()?;
    let outcome = set_all_back(earlier(pins, record), netns, record);
    for role in Role::ALL {
        pins.remember(role, None)?;
    }
    outcome
}

/// The earlier changes to NICs, from the pins and the record.
fn earlier(pins: &Pins, record: &Record) -> Vec<Undo> {
    let pinned = Role::ALL.into_iter().filter_map(|role| pins.undo(role));
    united(pinned.chain(record.read()))
}

/// Restores every NIC. What is not restored stays on record, except on NICs of another network
/// namespace, which this box cannot reach.
fn set_all_back(changes: Vec<Undo>, netns: u64, record: &Record) -> Result<Detached, DaemonError> {
    let restoration = Restoration::of(changes, netns);
    record.write(&restoration.left);
    match restoration.failure {
        Some(error) => Err(error.into()),
        None => Ok(restoration.outcome),
    }
}

/// The inode number of this thread's network namespace.
pub(super) fn netns() -> Result<u64, DaemonError> {
    std::fs::metadata("/proc/thread-self/ns/net")
        .map(|namespace| namespace.ino())
        .map_err(|error| DaemonError::System("look at the network namespace", error))
}

/// A setting that the box changes on a NIC.
#[derive(Clone, Copy)]
pub(super) enum Setting {
    /// Turned on: a wire receives frames for any MAC address.
    Promiscuous,
    /// Turned off: a wire must not alter frames.
    Offload(Offload),
    /// Set down, while the other side of the wire has no link.
    Held,
}

impl Setting {
    const ALL: [Self; 6] = [
        Self::Promiscuous,
        Self::Offload(Offload::RxVlan),
        Self::Offload(Offload::RxServiceVlan),
        Self::Offload(Offload::Lro),
        Self::Offload(Offload::GroHw),
        Self::Held,
    ];

    /// Its bit in [`Undo::changed`]. These numbers outlive the build: only add to them.
    const fn bit(self) -> u64 {
        match self {
            Self::Promiscuous => Undo::PROMISCUOUS,
            Self::Offload(Offload::RxVlan) => 1 << 1,
            Self::Offload(Offload::Lro) => 1 << 2,
            Self::Offload(Offload::GroHw) => 1 << 3,
            Self::Offload(Offload::RxServiceVlan) => 1 << 4,
            Self::Held => 1 << 5,
        }
    }

    pub(super) fn is_needed(self, role: Role) -> bool {
        match self {
            Self::Promiscuous => matches!(role, Role::Host | Role::Uplink),
            Self::Offload(_) => true,
            Self::Held => false,
        }
    }

    /// Whether the NIC does not yet have the setting that a wire needs.
    fn is_missing(self, nic: &Nic) -> bool {
        match self {
            Self::Promiscuous => !nic.is_promiscuous,
            Self::Offload(offload) => nic.offloads.state(offload).is_on(),
            Self::Held => nic.is_up,
        }
    }

    /// Applies the setting that a wire needs, or reverts it.
    fn set(self, nic: &Nic, needed: bool) -> Result<(), NicError> {
        match self {
            Self::Promiscuous => nic.set_promiscuous(needed),
            Self::Offload(offload) => nic.set_offload(offload, !needed),
            Self::Held => set_admin(nic.index, !needed),
        }
    }
}

/// Turns promiscuous mode on again after it was turned off, and records that for a detachment.
pub(super) fn set_promiscuous(
    kept: (&Pins, &Record),
    role: Role,
    nic: &Nic,
) -> Result<(), DaemonError> {
    note(kept, role, nic.index, |ours| {
        ours | Setting::Promiscuous.bit()
    })?;
    Ok(nic.set_promiscuous(true)?)
}

/// Moves the link on the NIC `incoming`, and the changes to that NIC, to another wire.
pub(super) fn hand_over_incoming(
    from: (&Pins, &Record),
    to: (&Pins, &Record),
) -> Result<(), DaemonError> {
    let (pins, record) = from;
    let Some(nic) = pins.hand_over(Role::Incoming, to.0)? else {
        return Ok(());
    };
    let netns = netns()?;
    let is_of_nic = |undo: &Undo| undo.netns == netns && undo.ifindex == nic;
    let (moved, left) = earlier(pins, record)
        .into_iter()
        .partition::<Vec<_>, _>(is_of_nic);
    for undo in moved {
        note(to, Role::Incoming, nic, |ours| ours | undo.changed)?;
    }
    pins.remember(Role::Incoming, None)?;
    record.write(&left);
    Ok(())
}

/// Records that a NIC is set down, or that it is not any more.
pub(super) fn note_held(
    kept: (&Pins, &Record),
    role: Role,
    ifindex: u32,
    is_held: bool,
) -> Result<(), DaemonError> {
    let bit = Setting::Held.bit();
    note(kept, role, ifindex, |ours| match is_held {
        true => ours | bit,
        false => ours & !bit,
    })
}

/// Records other changes to a NIC.
fn note(
    (pins, record): (&Pins, &Record),
    role: Role,
    ifindex: u32,
    change: impl FnOnce(u64) -> u64,
) -> Result<(), DaemonError> {
    let netns = netns()?;
    let is_on = |undo: &Undo| undo.netns == netns && undo.ifindex == ifindex;
    let ours = pins.undo(role).filter(is_on).map_or(0, |undo| undo.changed);
    let undo = Undo {
        ifindex,
        netns,
        changed: change(ours),
    };
    pins.remember(role, Some(undo).filter(|undo| undo.changed != 0))?;
    let others = record.read().into_iter().filter(|undo| !is_on(undo));
    record.write(&united(others.chain([undo])));
    Ok(())
}

/// Sets NICs up that a process has set down and left so: it was killed.
pub(super) fn set_up_held(settings: &Settings) -> Result<(), DaemonError> {
    let directory = &settings.pin.directory;
    let record = Record::of(&settings.control.socket, directory);
    let pins = match Pins::are_in(directory) {
        true => Some(Pins::open(directory)?),
        false => None,
    };
    let netns = netns()?;
    let bit = Setting::Held.bit();
    let changes = match &pins {
        Some(pins) => earlier(pins, &record),
        None => record.read(),
    };
    for held in changes {
        if held.changed & bit == 0 || held.netns != netns {
            continue;
        }
        let Some(nic) = Nic::of_index(held.ifindex)? else {
            continue;
        };
        Setting::Held.set(&nic, false)?;
        let cleared = |undo: Undo| {
            let is_on = (undo.ifindex, undo.netns) == (held.ifindex, netns);
            Undo {
                changed: undo.changed & !(bit * u64::from(is_on)),
                ..undo
            }
        };
        for (role, pins) in pins
            .iter()
            .flat_map(|pins| Role::ALL.map(|role| (role, pins)))
        {
            if let Some(undo) = pins.undo(role) {
                pins.remember(role, Some(cleared(undo)).filter(|undo| undo.changed != 0))?;
            }
        }
        record.write(&united(record.read().into_iter().map(cleared)));
    }
    Ok(())
}

/// An offload that alters frames and was turned on again.
pub(super) fn misplaced_offload(nic: &Nic) -> Option<Offload> {
    Setting::ALL.into_iter().find_map(|setting| match setting {
        Setting::Offload(offload) if setting.is_missing(nic) => Some(offload),
        _ => None,
    })
}

/// The result of restoring NICs; one that fails does not stop the others.
struct Restoration {
    outcome: Detached,
    /// The changes that remain, apart from those in another network namespace.
    left: Vec<Undo>,
    /// The first error; the changes that it concerns are in `left`.
    failure: Option<NicError>,
}

impl Restoration {
    fn of(changes: Vec<Undo>, netns: u64) -> Self {
        let mut all = Self {
            outcome: Detached::All,
            left: Vec::new(),
            failure: None,
        };
        for undo in changes.into_iter().filter(|undo| undo.changed != 0) {
            // The box ran in another network namespace.
            if undo.netns != netns {
                all.outcome = Detached::Partly;
                continue;
            }
            match Nic::of_index(undo.ifindex) {
                Ok(Some(nic)) => all.set_back(undo, &nic),
                // The NIC is removed, or in another network namespace by now.
                Ok(None) => {
                    all.left.push(undo);
                    if all.outcome == Detached::All {
                        all.outcome = Detached::Absent;
                    }
                }
                Err(error) => all.failed(undo, error),
            }
        }
        all
    }

    /// Reverts changes on a NIC, each even if another one fails.
    fn set_back(&mut self, undo: Undo, nic: &Nic) {
        let (mut rest, mut failure) = (undo, None);
        for setting in Setting::ALL {
            if undo.changed & setting.bit() == 0 {
                continue;
            }
            match setting.set(nic, false) {
                Ok(()) => rest.changed &= !setting.bit(),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            self.failed(rest, error);
        }
    }

    fn failed(&mut self, undo: Undo, error: NicError) {
        self.left.push(undo);
        self.failure.get_or_insert(error);
    }
}

/// Sets on each NIC what a wire needs. Changes are recorded first, for a detachment. Earlier
/// changes that are not needed any more are returned, to be reverted once the earlier programs are
/// off.
pub(super) fn prepare(pins: &Pins, record: &Record, nics: &Nics) -> Result<Leftover, DaemonError> {
    let netns = netns()?;
    let earlier = earlier(pins, record);
    let needed = |role: Role| {
        let settings = Setting::ALL.into_iter();
        settings.filter(move |setting| setting.is_needed(role))
    };
    let bits = |role: Role| needed(role).fold(0, |all, setting| all | setting.bit());
    let is_on = |undo: &Undo, nic: &Nic| undo.netns == netns && undo.ifindex == nic.index;
    let missing = |role: Role, nic: &Nic| -> Vec<Setting> {
        needed(role)
            .filter(|setting| setting.is_missing(nic))
            .collect()
    };
    // The wire whose program is attached to a shared NIC sets it.
    let own = |role: Role| nics.ports[role].as_ref().filter(|_| !nics.is_shared(role));
    let undos = PerRole::from_fn(|role| {
        let nic = own(role)?;
        let ours = earlier.iter().filter(|undo| is_on(undo, nic));
        let ours = ours.fold(0, |ours, undo| ours | undo.changed & bits(role));
        let missing = missing(role, nic).into_iter();
        let changed = missing.fold(ours, |all, setting| all | setting.bit());
        (changed != 0).then_some(Undo {
            ifindex: nic.index,
            netns,
            changed,
        })
    });
    let now: Vec<Undo> = undos.iter().filter_map(|(_, undo)| *undo).collect();
    record.write(&united(earlier.iter().chain(&now).copied()));
    for role in Role::ALL {
        pins.remember(role, undos[role])?;
        if let Some(nic) = own(role) {
            for setting in missing(role, nic) {
                setting.set(nic, true)?;
            }
        }
    }
    let unneeded = earlier.into_iter().map(|undo| {
        let role = nics.own().find(|(_, nic)| is_on(&undo, nic));
        let needed = role.map_or(0, |(role, _)| bits(role));
        Undo {
            changed: undo.changed & !needed,
            ..undo
        }
    });
    Ok(Leftover {
        changes: united(unneeded),
        now,
        netns,
    })
}

/// NIC settings that an earlier box changed and that this one does not need.
#[must_use = "the NICs stay as the earlier box set them"]
pub(super) struct Leftover {
    changes: Vec<Undo>,
    /// Changes of this box, which stay on record.
    now: Vec<Undo>,
    netns: u64,
}

impl Leftover {
    /// Reverts them. Some drivers (virtio_net) refuse an offload while a program is attached, so
    /// the earlier programs must be off. A refused change stays on record for a detachment.
    pub(super) fn set_back(self, record: &Record) {
        let restoration = Restoration::of(self.changes, self.netns);
        if restoration.outcome == Detached::Partly {
            tracing::warn!(
                "NICs in another network namespace keep the settings of the box: {BY_HAND}"
            );
        }
        if let Some(error) = restoration.failure {
            tracing::warn!("{error}; `exitmark detach` tries it again");
        }
        let on_record = self.now.into_iter().chain(restoration.left);
        record.write(&united(on_record));
    }
}
