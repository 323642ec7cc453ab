//! Checks a NIC at the tap, and sets what listening needs.

use super::TapError;
use exitmark_nic::{Nic, NicError, Offload, OffloadState};
use std::fs;

/// Offloads that would merge packets before they are counted. VLAN offload is harmless: tags are
/// not counted.
const HARMFUL: [Offload; 2] = [Offload::Lro, Offload::GroHw];

/// Refuses a NIC that is down or through which this machine's network stack could send.
pub(super) fn refuse_speakers(nic: &Nic) -> Result<(), TapError> {
    refuse_senders(nic)?;
    let (interface, sysctl) = (nic.name.clone(), nic.sysctl_name());
    // The path needs the name with dots, which the sysctl key does not have.
    let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if fs::read_to_string(switch).is_ok_and(|value| value.trim() == "0") {
        return Err(TapError::Ipv6 { interface, sysctl });
    }
    if !nic.is_up {
        return Err(TapError::Down(interface));
    }
    Ok(())
}

/// Refuses a NIC with an address, or one that another interface sends through.
pub(super) fn refuse_senders(nic: &Nic) -> Result<(), TapError> {
    nic.refuse_bundles()?;
    nic.refuse_uppers()?;
    match nic.addresses.first() {
        None => Ok(()),
        Some(address) => Err(TapError::Address {
            interface: nic.name.clone(),
            sysctl: nic.sysctl_name(),
            address: address.addr().to_string(),
        }),
    }
}

/// The settings of a NIC that listening changes; a trait, so that a test can replace a driver.
pub(super) trait Change {
    fn nic(&self) -> &Nic;
    fn set_offload(&self, offload: Offload, on: bool) -> Result<(), NicError>;
    fn set_promiscuous(&self, on: bool) -> Result<(), NicError>;
    fn is_there(&self) -> bool;
}

impl Change for Nic {
    fn nic(&self) -> &Nic {
        self
    }

    fn set_offload(&self, offload: Offload, on: bool) -> Result<(), NicError> {
        self.set_offload(offload, on)
    }

    fn set_promiscuous(&self, on: bool) -> Result<(), NicError> {
        self.set_promiscuous(on)
    }

    fn is_there(&self) -> bool {
        Self::of_index(self.index).is_ok_and(|nic| nic.is_some())
    }
}

/// A NIC in promiscuous mode without merging offloads. Dropping it restores its settings.
pub(super) struct Listening<N: Change = Nic> {
    nic: N,
    is_promiscuous: bool,
    turned_off: Vec<Offload>,
}

/// Prepares a NIC, then attaches the filter: virtio_net does not change rx-gro-hw (EBUSY) while a
/// program is attached.
pub(super) fn attach_prepared<N: Change, L>(
    nic: N,
    attach: impl FnOnce(&N) -> Result<L, TapError>,
) -> Result<(L, Listening<N>), TapError> {
    let listening = Listening::begin(nic)?;
    Ok((attach(&listening.nic)?, listening))
}

impl<N: Change> Listening<N> {
    fn begin(nic: N) -> Result<Self, NicError> {
        let mut listening = Self {
            nic,
            is_promiscuous: false,
            turned_off: Vec::new(),
        };
        for offload in HARMFUL {
            match listening.nic.nic().offloads.state(offload) {
                OffloadState::FixedOn => {
                    let name = listening.interface().to_owned();
                    return Err(NicError::OffloadFixed(name, offload));
                }
                OffloadState::On => {
                    listening.nic.set_offload(offload, false)?;
                    listening.turned_off.push(offload);
                }
                _ => {}
            }
        }
        if !listening.nic.nic().is_promiscuous {
            listening.nic.set_promiscuous(true)?;
            listening.is_promiscuous = true;
        }
        Ok(listening)
    }

    /// The NIC, as before the changes.
    pub(super) fn nic(&self) -> &Nic {
        self.nic.nic()
    }

    pub(super) fn interface(&self) -> &str {
        &self.nic.nic().name
    }

    /// Detaches the filter, then restores the settings.
    pub(super) fn end<L>(mut self, link: Option<L>) -> Result<(), NicError> {
        drop(link);
        self.set_back()
    }

    fn set_back(&mut self) -> Result<(), NicError> {
        let promiscuous = std::mem::take(&mut self.is_promiscuous);
        let turned_off = std::mem::take(&mut self.turned_off);
        if !promiscuous && turned_off.is_empty() || !self.nic.is_there() {
            return Ok(());
        }
        let mut outcome = Ok(());
        if promiscuous {
            outcome = self.nic.set_promiscuous(false);
        }
        for offload in turned_off.into_iter().rev() {
            outcome = outcome.and(self.nic.set_offload(offload, true));
        }
        outcome
    }
}

impl<N: Change> Drop for Listening<N> {
    fn drop(&mut self) {
        if let Err(error) = self.set_back() {
            tracing::warn!("{}: {error}", self.interface());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_nic::Offloads;
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    /// A virtio NIC of a KVM guest: its driver does not change guest offloads while a program is
    /// attached.
    #[derive(Clone)]
    struct Virtio {
        nic: Nic,
        calls: Rc<RefCell<Vec<String>>>,
        has_program: Rc<Cell<bool>>,
    }

    impl Virtio {
        fn new() -> Self {
            Self {
                nic: Nic {
                    offloads: Offloads::default()
                        .with(Offload::Lro, OffloadState::On)
                        .with(Offload::GroHw, OffloadState::On),
                    ..Nic::example("tap0", Some("virtio_net"))
                },
                calls: Rc::default(),
                has_program: Rc::default(),
            }
        }

        fn call(&self, what: String) {
            self.calls.borrow_mut().push(what);
        }
    }

    impl Change for Virtio {
        fn nic(&self) -> &Nic {
            &self.nic
        }

        fn set_offload(&self, offload: Offload, on: bool) -> Result<(), NicError> {
            self.call(format!("{offload} {on}"));
            match self.has_program.get() {
                true => Err(NicError::Offload {
                    name: self.nic.name.clone(),
                    offload,
                    wanted: if on { "on" } else { "off" },
                    reason: "Device or resource busy".to_owned(),
                }),
                false => Ok(()),
            }
        }

        fn set_promiscuous(&self, on: bool) -> Result<(), NicError> {
            self.call(format!("promiscuous {on}"));
            Ok(())
        }

        fn is_there(&self) -> bool {
            true
        }
    }

    /// The filter's link; dropping it detaches the filter.
    struct Link(Virtio);

    impl Link {
        fn new(nic: &Virtio) -> Self {
            nic.call("attach".to_owned());
            nic.has_program.set(true);
            Self(nic.clone())
        }
    }

    impl Drop for Link {
        fn drop(&mut self) {
            self.0.call("take off".to_owned());
            self.0.has_program.set(false);
        }
    }

    #[test]
    fn offloads_are_changed_while_no_program_is_attached() {
        let nic = Virtio::new();
        let (link, listening) = attach_prepared(nic.clone(), |nic| Ok(Link::new(nic))).unwrap();
        listening.end(Some(link)).unwrap();
        let calls = [
            "rx-lro false",
            "rx-gro-hw false",
            "promiscuous true",
            "attach",
            "take off",
            "promiscuous false",
            "rx-gro-hw true",
            "rx-lro true",
        ];
        assert_eq!(*nic.calls.borrow(), calls);
    }

    #[test]
    fn a_nic_that_rejects_the_filter_is_restored() {
        let nic = Virtio::new();
        let refused = attach_prepared(nic.clone(), |_| {
            Err::<Link, _>(TapError::attach("tap0", std::io::Error::other("no")))
        });
        assert!(refused.is_err());
        let restored = ["promiscuous false", "rx-gro-hw true", "rx-lro true"];
        assert_eq!(nic.calls.borrow()[3..], restored);
    }
}
