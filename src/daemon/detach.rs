//! What lasts beyond the process, and how it is taken off again.

use super::DaemonError;
use super::nics::Nics;
use crate::datapath::{Pins, Role};
use crate::nic::{Nic, NicError};
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

/// Removes every pin, and sets the NICs back.
pub(super) fn take_off(pins: Pins) -> Result<(), DaemonError> {
    let promiscuous = Role::ALL.map(|role| pins.promiscuous(role));
    pins.remove()?;
    for index in promiscuous.into_iter().flatten() {
        calm(index)?;
    }
    Ok(())
}

/// Turns promiscuous mode off on a NIC, if that is still there.
fn calm(index: u32) -> Result<(), NicError> {
    Nic::of_index(index).map_or(Ok(()), |nic| nic.set_promiscuous(false))
}

/// A wire takes frames for any address, so `host` and `uplink` must. What is changed is
/// remembered for whoever detaches the box.
pub(super) fn set_promiscuous(pins: &Pins, nics: &Nics) -> Result<(), DaemonError> {
    for role in [Role::Host, Role::Uplink] {
        let Some(nic) = &nics.ports[role] else {
            continue;
        };
        let before = pins.promiscuous(role);
        if let Some(index) = before
            && index != nic.index
        {
            calm(index)?;
            pins.remember_promiscuous(role, None)?;
        }
        if !nic.is_promiscuous {
            pins.remember_promiscuous(role, Some(nic.index))?;
            nic.set_promiscuous(true)?;
        }
    }
    Ok(())
}
