//! What the rules of engine connect depend on besides the configuration: the addresses and the NICs
//! of this machine.

use super::super::DaemonError;
use crate::settings::{Settings, TorHost};
use exitmark_nic::{LocalNic, index_of};
use exitmark_policy::Rules;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Connections to these never leave the machine or its links: "this host" and loopback (RFC 6890,
/// RFC 4291), link-local (RFC 3927, RFC 4291).
const NEAR: [&str; 6] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "::/128",
    "::1/128",
    "fe80::/10",
];

/// The addresses of this machine, and the NIC for relay connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    own: BTreeSet<IpAddr>,
    /// The index of the NIC `steer.interface`, if it exists.
    interface: Option<u32>,
}

impl Machine {
    /// Reads the addresses and NICs again; fails without a change.
    ///
    /// # Errors
    /// Netlink does not answer.
    pub(super) fn follow(&mut self, tor: &TorHost) -> Result<(), DaemonError> {
        let nics = LocalNic::all()?;
        let called = |name: &String| nics.iter().find(|nic| nic.is_called(name));
        let interface = match tor.interface.as_ref().and_then(called) {
            Some(nic) => index_of(&nic.name)?,
            None => None,
        };
        self.own = nics
            .iter()
            .flat_map(|nic| nic.networks.iter().map(IpNet::addr))
            .collect();
        self.interface = interface;
        Ok(())
    }

    /// Whether this is an address of this machine.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Whether the NIC `steer.interface` exists.
    pub(super) const fn has_interface(&self) -> bool {
        self.interface.is_some()
    }

    /// The rules of the settings on this machine: nothing is done to connections to itself.
    pub(super) fn rules(&self, settings: &Settings) -> Rules {
        let near = NEAR.iter().filter_map(|net| net.parse::<IpNet>().ok());
        let own = self.own.iter().copied().map(IpNet::from);
        let mut rules = (*settings.rules).clone();
        rules.exempt = rules.exempt.with(near.chain(own));
        rules.sockets.interface = self.interface.unwrap_or(0);
        rules
    }
}
