//! What lasts beyond the process, and how it is taken off again.

use super::DaemonError;
use super::nics::Nics;
use crate::datapath::{Pins, Promiscuous, Role};
use crate::nic::{Nic, NicError};
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
    for role in Role::ALL {
        if let Some(nic) = pins.promiscuous(role) {
            calm(nic, netns)?;
        }
    }
    Ok(pins.remove()?)
}

/// The number of this thread's network namespace.
pub(super) fn netns() -> Result<u64, DaemonError> {
    std::fs::metadata("/proc/thread-self/ns/net")
        .map(|namespace| namespace.ino())
        .map_err(|error| DaemonError::System("look at the network namespace", error))
}

/// Turns promiscuous mode off on a NIC, if that is still there, and here.
fn calm(nic: Promiscuous, netns: u64) -> Result<(), NicError> {
    if nic.netns != netns {
        tracing::warn!(
            "a NIC in another network namespace stays promiscuous: `ip link set dev NIC promisc off` \
             there"
        );
        return Ok(());
    }
    Nic::of_index(nic.ifindex).map_or(Ok(()), |nic| nic.set_promiscuous(false))
}

/// A wire takes frames for any address, so `host` and `uplink` must. What is changed is
/// remembered for whoever detaches the box.
pub(super) fn set_promiscuous(pins: &Pins, nics: &Nics) -> Result<(), DaemonError> {
    let netns = netns()?;
    let wire = [Role::Host, Role::Uplink];
    let ours: Vec<_> = wire
        .map(|role| pins.promiscuous(role))
        .into_iter()
        .flatten()
        .collect();
    let plays = |nic: &Promiscuous| {
        let numbers = nics.numbers();
        nic.netns == netns && wire.iter().any(|&role| numbers[role] == nic.ifindex)
    };
    for nic in ours.iter().filter(|nic| !plays(nic)) {
        calm(*nic, netns)?;
    }
    for role in wire {
        let Some(nic) = &nics.ports[role] else {
            continue;
        };
        let entry = Promiscuous {
            ifindex: nic.index,
            netns,
        };
        let is_ours = ours.contains(&entry);
        pins.remember_promiscuous(role, (is_ours || !nic.is_promiscuous).then_some(entry))?;
        if !nic.is_promiscuous {
            nic.set_promiscuous(true)?;
        }
    }
    Ok(())
}
