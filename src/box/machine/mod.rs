//! What depends on this machine besides the configuration: of engine connect its addresses and NICs,
//! users and cgroups; of a box the addresses of `steer.source`.

mod sources;
mod users;

use crate::settings::{Settings, TorHost};
use exitmark_datapath::{ConnectError, cgroup_mount};
use exitmark_nic::{LocalNic, NicError, index_of};
use exitmark_policy::Rules;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

pub(crate) use sources::{Misplaced, SourceNetwork, TcpSocket, listener, single, ss_filter};
pub(crate) use users::Users;

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

/// An index that no NIC has and the kernel refuses: relay connections count as unsteered then.
const NO_NIC: u32 = u32::MAX;

/// The addresses of this machine, and the NIC for relay connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    own: BTreeSet<IpAddr>,
    /// The index of the NIC `steer.interface`, if it exists.
    interface: Option<u32>,
}

impl Machine {
    /// Reads the addresses and NICs again; fails without a change.
    ///
    /// # Errors
    /// Netlink does not answer.
    pub(crate) fn follow(&mut self, tor: &TorHost) -> Result<(), NicError> {
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
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Whether connections to this address stay on the machine or its links, because of the kind of
    /// address: loopback, link-local or unspecified.
    pub(crate) fn is_near(address: IpAddr) -> bool {
        near().any(|net| net.contains(&address))
    }

    /// The index of the NIC `steer.interface`, if it exists.
    pub(crate) const fn interface(&self) -> Option<u32> {
        self.interface
    }

    /// The rules of the settings on this machine: nothing is done to connections to itself.
    pub(crate) fn rules(&self, settings: &Settings) -> Rules {
        let own = self.own.iter().copied().map(IpNet::from);
        let untouched: Vec<_> = near().chain(own).collect();
        let mut rules = settings.rules.exempting(&untouched);
        let names_nic = settings
            .tor
            .as_ref()
            .is_some_and(|tor| tor.interface.is_some());
        rules.sockets.interface = match names_nic {
            true => self.interface.unwrap_or(NO_NIC),
            false => 0,
        };
        rules
    }
}

fn near() -> impl Iterator<Item = IpNet> {
    NEAR.iter().filter_map(|net| net.parse().ok())
}

/// The cgroups whose connections are judged: those of `tor.cgroups`, or the root.
///
/// # Errors
/// No cgroup2 file system is mounted.
pub(crate) fn cgroups(tor: &TorHost) -> Result<Vec<PathBuf>, ConnectError> {
    let mount = cgroup_mount()?;
    if tor.cgroups.is_empty() {
        return Ok(vec![mount]);
    }
    let below = |path: &PathBuf| mount.join(path.strip_prefix("/").unwrap_or(path));
    Ok(tor.cgroups.iter().map(below).collect())
}
