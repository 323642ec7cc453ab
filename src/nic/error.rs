//! Why a NIC cannot be used, and what to do.

use super::Offload;
use std::io;

/// Why a NIC cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// Netlink itself does not work.
    #[error("cannot ask the kernel about network interfaces: {0}")]
    Netlink(io::Error),
    /// No such interface.
    #[error("there is no network interface {0} here; `ip link` lists those there are")]
    Missing(String),
    /// Not an Ethernet NIC.
    #[error("{0} has no MAC address: exitmark needs Ethernet interfaces")]
    NotEthernet(String),
    /// It bundles other interfaces.
    #[error(
        "{name} is {} {kind}, whose frames leave by other interfaces: name one of the NICs in it \
         (`ip link show master {name}` lists them), taken out of it by `ip link set dev NIC \
         nomaster`{}",
        article(.kind),
        aggregation(.kind)
    )]
    Bundle {
        /// The interface.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// It shares a NIC with others.
    #[error(
        "{name} is {} {kind}, which shares the NIC below it with others: name that NIC (`ip link \
         show dev {name}` has it behind the `@`)",
        article(.kind)
    )]
    Share {
        /// The interface.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// It is a port of another interface.
    #[error(
        "{name} is a port of the {kind} {master}, which sends and receives by it: `ip link set dev \
         {name} nomaster` takes it out{}",
        aggregation(.kind)
    )]
    Member {
        /// The NIC.
        name: String,
        /// What it is a port of.
        master: String,
        /// Its kind.
        kind: String,
    },
    /// Another interface sends by it.
    #[error(
        "{name} has the {kind} {upper} on top of it, which sends by it: `ip link set dev {upper} down`"
    )]
    Upper {
        /// The NIC.
        name: String,
        /// What is on top of it.
        upper: String,
        /// Its kind.
        kind: String,
    },
    /// Nobody may be resolved.
    #[error("cannot have the kernel resolve a next hop on {0}: it takes CAP_NET_ADMIN")]
    Resolve(String),
    /// It does to frames what a wire must not, and cannot help it.
    #[error(
        "the driver of {name} has {offload} on and cannot turn it off: {}; use another NIC",
        .offload.harm()
    )]
    OffloadFixed {
        /// The NIC.
        name: String,
        /// What it does.
        offload: Offload,
    },
    /// It was not made to do so, or not to.
    #[error(
        "cannot turn {offload} {wanted} on {name}: {reason}; `ethtool -K {name} {offload} \
         {wanted}` may say more"
    )]
    Offload {
        /// The NIC.
        name: String,
        /// What was to be changed.
        offload: Offload,
        /// `on` or `off`.
        wanted: &'static str,
        /// What the kernel said, or did.
        reason: String,
    },
    /// It does not go up.
    #[error("cannot set {name} up: {reason}")]
    Up {
        /// The NIC.
        name: String,
        /// What the kernel said.
        reason: String,
    },
    /// A change was refused.
    #[error("cannot turn promiscuous mode {wanted} on {name}: {reason}")]
    Promiscuous {
        /// The NIC.
        name: String,
        /// `on` or `off`.
        wanted: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

/// The indefinite article before a kind of interface.
fn article(kind: &str) -> &'static str {
    match kind {
        "hsr" => "an",
        _ if kind.starts_with(['a', 'e', 'i', 'o']) => "an",
        _ => "a",
    }
}

/// What to do where links are aggregated.
fn aggregation(kind: &str) -> &'static str {
    match kind {
        "bond" | "team" => {
            "; aggregated links do not pass through exitmark: end the aggregation in front of the \
             box and give it one link"
        }
        _ => "",
    }
}
