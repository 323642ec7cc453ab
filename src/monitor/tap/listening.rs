//! The NIC at the tap: whether it may be one, and what of it is changed while it is listened to.

use super::TapError;
use crate::nic::{Nic, NicError, Offload, OffloadState};
use std::fs;

/// What a NIC must not do to packets before they are counted. That it takes tags off does not
/// matter: nobody counts tags.
const HARMFUL: [Offload; 2] = [Offload::Lro, Offload::GroHw];

/// Refuses a NIC that is not up, or where this machine's own stack takes part in the network.
pub(super) fn refuse_speakers(nic: &Nic) -> Result<(), TapError> {
    refuse_addresses(nic)?;
    let (interface, sysctl) = (nic.name.clone(), nic.sysctl_name());
    // A directory's name has the dots that the name of a sysctl has not.
    let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if fs::read_to_string(switch).is_ok_and(|value| value.trim() == "0") {
        return Err(TapError::Ipv6 { interface, sysctl });
    }
    if !nic.is_up {
        return Err(TapError::Down(interface));
    }
    Ok(())
}

/// Refuses a NIC that has an address: somebody may speak by it.
pub(super) fn refuse_addresses(nic: &Nic) -> Result<(), TapError> {
    match nic.addresses.first() {
        None => Ok(()),
        Some(address) => Err(TapError::Address {
            interface: nic.name.clone(),
            sysctl: nic.sysctl_name(),
            address: address.addr().to_string(),
        }),
    }
}

/// A NIC that hears what is for others, unchanged. Dropping it sets it back.
pub(super) struct Listening {
    nic: Nic,
    is_promiscuous: bool,
    turned_off: Vec<Offload>,
}

impl Listening {
    pub(super) fn begin(nic: Nic) -> Result<Self, NicError> {
        let mut listening = Self {
            nic,
            is_promiscuous: false,
            turned_off: Vec::new(),
        };
        for offload in HARMFUL {
            match listening.nic.offloads.state(offload) {
                OffloadState::FixedOn => {
                    let name = listening.nic.name.clone();
                    return Err(NicError::OffloadFixed { name, offload });
                }
                OffloadState::On => {
                    listening.nic.set_offload(offload, false)?;
                    listening.turned_off.push(offload);
                }
                _ => {}
            }
        }
        if !listening.nic.is_promiscuous {
            listening.nic.set_promiscuous(true)?;
            listening.is_promiscuous = true;
        }
        Ok(listening)
    }

    pub(super) fn interface(&self) -> &str {
        &self.nic.name
    }

    /// Sets back what was changed.
    pub(super) fn end(mut self) -> Result<(), NicError> {
        self.set_back()
    }

    fn set_back(&mut self) -> Result<(), NicError> {
        let promiscuous = std::mem::take(&mut self.is_promiscuous);
        let turned_off = std::mem::take(&mut self.turned_off);
        if !promiscuous && turned_off.is_empty() || Nic::of_index(self.nic.index).is_none() {
            return Ok(());
        }
        let mut outcome = Ok(());
        if promiscuous {
            outcome = self.nic.set_promiscuous(false);
        }
        for offload in turned_off {
            outcome = outcome.and(self.nic.set_offload(offload, true));
        }
        outcome
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Err(error) = self.set_back() {
            tracing::warn!("{}: {error}", self.nic.name);
        }
    }
}
