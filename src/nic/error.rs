//! Why a NIC cannot be used, with the remedy.

use super::{Offload, Relative, vlan};
use exitmark_policy::packet::MacAddr;
use std::io;

/// Why a NIC cannot be used, or one of its settings not changed. Messages end with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// A netlink request failed for another reason than a missing interface or permission.
    #[error("cannot query network interfaces over netlink: {0}")]
    Netlink(io::Error),
    /// The interface does not exist.
    #[error("there is no network interface {0} here; `ip link` lists the existing ones")]
    Missing(String),
    /// The interface is not an Ethernet NIC.
    #[error("{0} has no MAC address: exitmark needs Ethernet interfaces")]
    NotEthernet(String),
    /// The interface is a bridge, bond or the like, with other interfaces as ports.
    #[error(
        "{name} is {} {kind}, whose frames leave by other interfaces: name one of the NICs in it \
         (`ip link show master {name}` lists them), after `ip link set dev NIC nomaster`, which takes \
         the NIC out{}",
        article(.0),
        aggregation(.0),
        name = .0.name,
        kind = .0.kind
    )]
    Bundle(Relative),
    /// The interface shares a NIC with others.
    #[error(
        "{name} is {} {kind}, which shares the NIC below it with others: name that NIC (`ip link \
         show dev {name}` has it behind the `@`)",
        article(.0),
        name = .0.name,
        kind = .0.kind
    )]
    Share(Relative),
    /// The NIC of this name is a port of another interface.
    #[error(
        "{0} is a port of the {kind} {master}, which sends and receives by it: `ip link set dev \
         {0} nomaster` takes it out{remedy}",
        kind = .1.kind,
        master = .1.name,
        remedy = aggregation(.1)
    )]
    Member(String, Relative),
    /// An interface on top of the NIC of this name sends by it.
    #[error(
        "{0} has the {kind} {upper} on top of it, which sends by it: `ip link set dev {upper} down`",
        kind = .1.kind,
        upper = .1.name
    )]
    Upper(String, Relative),
    /// The NIC does not have the VLAN interface on which the next hop is to be resolved.
    #[error(
        "there is no interface for {tags} on {nic}, and the box resolves the next hop there; create \
         it, with an address of the box in that network: {commands}",
        tags = vlan::in_words(tags),
        commands = vlan::commands(nic, tags, outer.as_deref())
    )]
    NoVlan {
        /// The name of the NIC.
        nic: String,
        /// The VLAN IDs: one, or an outer and an inner one.
        tags: Vec<u16>,
        /// The name of the interface with the outer ID of a pair, if it exists.
        outer: Option<String>,
    },
    /// The VLAN interface of this name is set down.
    #[error("{0} is down, and the box resolves the next hop there: `ip link set dev {0} up`")]
    VlanDown(String),
    /// The VLAN interface has other tag protocol identifiers than the box writes.
    #[error(
        "{vlan} has tags of another protocol than those that the box writes: 802.1ad for the outer \
         tag of a pair, 802.1Q for every other one; `ip link del dev {vlan}`, also the interface \
         with its outer tag, then {}",
        vlan::commands(nic, tags, None)
    )]
    VlanProtocol {
        /// The name of the VLAN interface.
        vlan: String,
        /// The name of the NIC.
        nic: String,
        /// The VLAN IDs, the outer one first.
        tags: Vec<u16>,
    },
    /// The VLAN interface has another MAC address than its NIC.
    #[error(
        "{vlan} has the MAC address {mac} and {nic}, by which its frames arrive, {wanted}: the box \
         would not receive the next hop's answers; `ip link set dev {vlan} address {wanted}`"
    )]
    VlanMac {
        /// The name of the VLAN interface.
        vlan: String,
        /// Its MAC address.
        mac: MacAddr,
        /// The name of the NIC.
        nic: String,
        /// The MAC address of the NIC.
        wanted: MacAddr,
    },
    /// The process may not change neighbour entries.
    #[error(
        "cannot make the kernel resolve a next hop on {0}: that requires CAP_NET_ADMIN; run this as \
         root, or grant the capability in its service"
    )]
    Resolve(String),
    /// The NIC has an offload that a wire must not have, and cannot turn it off.
    #[error(
        "the driver of {0} has {1} on and cannot turn it off: {harm}; use another NIC",
        harm = .1.harm()
    )]
    OffloadFixed(String, Offload),
    /// An offload could not be turned on or off.
    #[error(
        "cannot turn {offload} {wanted} on {name}: {reason}; `ethtool -K {name} {offload} \
         {wanted}` may say more"
    )]
    Offload {
        /// The interface name (IFLA_IFNAME).
        name: String,
        /// The offload that was to be changed.
        offload: Offload,
        /// The state that was requested: `on` or `off`.
        wanted: &'static str,
        /// The kernel's error, or its effect.
        reason: String,
    },
    /// The NIC of this name cannot be set up, for this reason.
    #[error("cannot set {0} up: {1}")]
    Up(String, String),
    /// The NIC of this name cannot be set down, for this reason.
    #[error("cannot set {0} down: {1}")]
    Down(String, String),
    /// Promiscuous mode could not be turned on or off.
    #[error("cannot turn promiscuous mode {wanted} on {name}: {reason}")]
    Promiscuous {
        /// The interface name (IFLA_IFNAME).
        name: String,
        /// The state that was requested: `on` or `off`.
        wanted: &'static str,
        /// The error that the kernel returned.
        reason: String,
    },
}

/// The indefinite article before the kind of an interface.
fn article(interface: &Relative) -> &'static str {
    match interface.kind.as_str() {
        "hsr" => "an",
        kind if kind.starts_with(['a', 'e', 'i', 'o']) => "an",
        _ => "a",
    }
}

/// The remedy if links are aggregated.
fn aggregation(interface: &Relative) -> &'static str {
    match interface.kind.as_str() {
        "bond" | "team" => {
            "; aggregated links do not pass through exitmark: end the aggregation in front of the \
             box and give it one link"
        }
        _ => "",
    }
}
