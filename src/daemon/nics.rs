//! The NICs that the settings name, checked against what a wire needs, and what is set on them.

use super::DaemonError;
use crate::datapath::{MAX_QUEUES, PerRole, Role};
use crate::nic::{Nic, NicError};
use crate::settings::Settings;

/// The NICs in their roles. Where one plays `uplink` and `incoming`, `incoming` has no port of
/// its own.
pub(super) struct Nics {
    pub(super) ports: PerRole<Option<Nic>>,
    pub(super) incoming_role: Option<Role>,
}

impl Nics {
    pub(super) fn look(settings: &Settings) -> Result<Self, DaemonError> {
        let ports = &settings.ports;
        let mut nics = Self {
            ports: PerRole::from_fn(|_| None),
            incoming_role: None,
        };
        nics.ports[Role::Host] = Some(Nic::look(&ports.host)?);
        nics.ports[Role::Uplink] = Some(Nic::look(&ports.uplink)?);
        if let Some(incoming) = &ports.incoming {
            let role = if incoming.interface == ports.uplink {
                Role::Uplink
            } else {
                nics.ports[Role::Incoming] = Some(Nic::look(&incoming.interface)?);
                Role::Incoming
            };
            nics.incoming_role = Some(role);
            if let Some(nic) = &nics.ports[role]
                && nic.mac == incoming.next_hop
            {
                return Err(DaemonError::NextHopIsSelf(nic.name.clone()));
            }
        }
        nics.check()?;
        Ok(nics)
    }

    fn check(&self) -> Result<(), DaemonError> {
        let mut first: Option<&Nic> = None;
        for (role, nic) in self.present() {
            if !nic.is_up {
                return Err(DaemonError::Down(nic.name.clone(), role));
            }
            if nic.queues as usize > MAX_QUEUES {
                return Err(DaemonError::TooManyQueues(nic.name.clone(), nic.queues));
            }
            let first = *first.get_or_insert(nic);
            let names = (first.name.clone(), nic.name.clone());
            if nic.mtu != first.mtu {
                return Err(DaemonError::Mtu(names.0, first.mtu, names.1, nic.mtu));
            }
            if nic.queues != first.queues {
                return Err(DaemonError::Queues(
                    names.0,
                    first.queues,
                    names.1,
                    nic.queues,
                ));
            }
        }
        Ok(())
    }

    pub(super) fn present(&self) -> impl Iterator<Item = (Role, &Nic)> {
        self.ports
            .iter()
            .filter_map(|(role, nic)| Some((role, nic.as_ref()?)))
    }

    /// The largest of a number over all ports. After the checks they are all the same.
    pub(super) fn common(&self, number: impl Fn(&Nic) -> u32) -> u32 {
        self.present()
            .map(|(_, nic)| number(nic))
            .max()
            .unwrap_or(0)
    }

    pub(super) fn names(&self) -> PerRole<Option<String>> {
        PerRole::from_fn(|role| self.ports[role].as_ref().map(|nic| nic.name.clone()))
    }
}

/// Turns promiscuous mode off again, where it was turned on here.
#[derive(Default)]
pub(super) struct Promiscuous(Vec<Nic>);

impl Promiscuous {
    /// A wire takes frames for any address, so `host` and `uplink` must.
    pub(super) fn set(nics: &Nics) -> Result<Self, NicError> {
        let mut changed = Self(Vec::new());
        for role in [Role::Host, Role::Uplink] {
            if let Some(nic) = &nics.ports[role]
                && !nic.is_promiscuous
            {
                nic.set_promiscuous(true)?;
                changed.0.push(nic.clone());
            }
        }
        Ok(changed)
    }
}

impl Drop for Promiscuous {
    fn drop(&mut self) {
        for nic in &self.0 {
            if let Err(error) = nic.set_promiscuous(false) {
                tracing::warn!("{error}");
            }
        }
    }
}
