//! What lasts beyond the process, and how it is taken off again.

use super::DaemonError;
use super::nics::Nics;
use crate::datapath::{Pins, Role, Undo};
use crate::nic::{Nic, NicError, Offload};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Takes a box off its NICs; false where there is none. The process that ran it has ended.
///
/// # Errors
/// It still runs, or there is no privilege.
pub fn detach(directory: &Path) -> Result<bool, DaemonError> {
    if !Pins::exist(directory) {
        return Ok(false);
    }
    take_off(Pins::open(directory)?)?;
    Ok(true)
}

/// Takes the programs off, sets the NICs back, and removes every pin.
pub(super) fn take_off(pins: Pins) -> Result<(), DaemonError> {
    let netns = netns()?;
    pins.remove_links()?;
    let undos: Vec<_> = Role::ALL
        .into_iter()
        .filter_map(|role| pins.undo(role))
        .collect();
    // One that cannot be set back keeps no other from it, and nobody from another start.
    let set_back = undos
        .into_iter()
        .map(|undo| set_back(undo, undo.changed, netns))
        .fold(Ok(()), Result::and);
    pins.remove()?;
    Ok(set_back?)
}

/// The number of this thread's network namespace.
pub(super) fn netns() -> Result<u64, DaemonError> {
    std::fs::metadata("/proc/thread-self/ns/net")
        .map(|namespace| namespace.ino())
        .map_err(|error| DaemonError::System("look at the network namespace", error))
}

/// Something that the box sets on a NIC.
#[derive(Clone, Copy)]
enum Setting {
    /// Turned on: a wire takes frames for any address.
    Promiscuous,
    /// Turned off: a wire leaves frames as they are.
    Offload(Offload),
}

impl Setting {
    const ALL: [Self; 5] = [
        Self::Promiscuous,
        Self::Offload(Offload::RxVlan),
        Self::Offload(Offload::RxServiceVlan),
        Self::Offload(Offload::Lro),
        Self::Offload(Offload::GroHw),
    ];

    /// Its bit in [`Undo::changed`]. These numbers outlive the build: only add to them.
    const fn bit(self) -> u64 {
        match self {
            Self::Promiscuous => Undo::PROMISCUOUS,
            Self::Offload(Offload::RxVlan) => 1 << 1,
            Self::Offload(Offload::Lro) => 1 << 2,
            Self::Offload(Offload::GroHw) => 1 << 3,
            Self::Offload(Offload::RxServiceVlan) => 1 << 4,
        }
    }

    /// Whether a NIC in this role must have it.
    fn is_needed(self, role: Role) -> bool {
        match self {
            Self::Promiscuous => matches!(role, Role::Host | Role::Uplink),
            Self::Offload(_) => true,
        }
    }

    /// Whether it is not yet as a wire needs it.
    fn is_missing(self, nic: &Nic) -> bool {
        match self {
            Self::Promiscuous => !nic.is_promiscuous,
            Self::Offload(offload) => nic.offloads.state(offload).is_on(),
        }
    }

    /// Sets it as a wire needs it, or back.
    fn set(self, nic: &Nic, needed: bool) -> Result<(), NicError> {
        match self {
            Self::Promiscuous => nic.set_promiscuous(needed),
            Self::Offload(offload) => nic.set_offload(offload, !needed),
        }
    }
}

/// Something that a wire cannot do with, and that somebody has turned on since.
pub(super) fn misplaced_offload(nic: &Nic) -> Option<Offload> {
    Setting::ALL.into_iter().find_map(|setting| match setting {
        Setting::Offload(offload) if setting.is_missing(nic) => Some(offload),
        _ => None,
    })
}

/// Sets these changes back on a NIC, if that is still there, and here: all that can be, whatever
/// cannot.
fn set_back(undo: Undo, changes: u64, netns: u64) -> Result<(), NicError> {
    if changes == 0 {
        return Ok(());
    }
    if undo.netns != netns {
        tracing::warn!(
            "a NIC in another network namespace stays as the box has set it: `ip link set dev NIC \
             promisc off` there, and `ethtool -K NIC rxvlan on` if it was on"
        );
        return Ok(());
    }
    let Some(nic) = Nic::of_index(undo.ifindex) else {
        return Ok(());
    };
    Setting::ALL
        .into_iter()
        .filter(|setting| changes & setting.bit() != 0)
        .map(|setting| setting.set(&nic, false))
        .fold(Ok(()), Result::and)
}

/// Sets on each NIC what a wire needs. What is changed is remembered before, for whoever
/// detaches the box; what an earlier box changed and is needed no more is set back.
pub(super) fn prepare(pins: &Pins, nics: &Nics) -> Result<(), DaemonError> {
    let netns = netns()?;
    let earlier: Vec<Undo> = Role::ALL
        .into_iter()
        .filter_map(|role| pins.undo(role))
        .collect();
    let needed = |role: Role| -> u64 {
        let settings = Setting::ALL.into_iter();
        settings
            .filter(|setting| setting.is_needed(role))
            .map(Setting::bit)
            .sum()
    };
    for role in Role::ALL {
        let Some(nic) = &nics.ports[role] else {
            pins.remember(role, None)?;
            continue;
        };
        let missing: Vec<Setting> = Setting::ALL
            .into_iter()
            .filter(|setting| setting.is_needed(role) && setting.is_missing(nic))
            .collect();
        let ours = earlier
            .iter()
            .filter(|undo| undo.netns == netns && undo.ifindex == nic.index)
            .fold(0, |ours, undo| ours | undo.changed & needed(role));
        let undo = Undo {
            ifindex: nic.index,
            netns,
            changed: missing
                .iter()
                .fold(ours, |all, setting| all | setting.bit()),
        };
        pins.remember(role, (undo.changed != 0).then_some(undo))?;
        for setting in missing {
            setting.set(nic, true)?;
        }
    }
    // At last what is needed no more: until here a start can still fail.
    for &undo in &earlier {
        let role = nics
            .present()
            .find(|(_, nic)| undo.netns == netns && undo.ifindex == nic.index)
            .map(|(role, _)| role);
        set_back(undo, undo.changed & !role.map_or(0, needed), netns)?;
    }
    Ok(())
}
