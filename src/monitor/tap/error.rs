//! Errors of opening and reading a tap, each with its remedy.

use super::program::MAX_RANGES;
use super::{MAX_FRAMES, MIN_RING};
use exitmark_bpf::BpfError;
use exitmark_nic::NicError;
use std::io;

/// Why a NIC cannot be used as a tap, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The NIC does not exist, or cannot be queried or changed.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The ring size is not possible for AF_XDP, or exceeds the memory bound.
    #[error(
        "a ring of {0} packets is not possible: give a power of two, {MIN_RING} to {MAX_FRAMES}"
    )]
    Ring(u32),
    /// More ranges of clearnet addresses than the filter's table holds.
    #[error("{0} address ranges of one IP version are too many: {MAX_RANGES} are possible")]
    Ranges(usize),
    /// No clearnet address is configured; nothing would be counted.
    #[error(
        "no clearnet address is configured: name the addresses from which the Tor host sends exit \
         traffic"
    )]
    NoSource,
    /// The NIC of this name has more receive queues than the memory bound allows: their number, and
    /// the command that reduces them.
    #[error("{0} has {1} receive queues, too many for the monitor's packet memory; set fewer: {2}")]
    Queues(String, u32, String),
    /// The NIC has an address, so this machine could send and answer through it.
    #[error(
        "{interface} has the address {address}, and a tap must have none: run \
         `ip addr flush dev {interface}` and \
         `sysctl -w net.ipv6.conf.{sysctl}.disable_ipv6=1`"
    )]
    Address {
        /// The interface name of the NIC.
        interface: String,
        /// The NIC's name as written in a sysctl key.
        sysctl: String,
        /// One of its addresses, without the prefix length.
        address: String,
    },
    /// IPv6 is enabled: the kernel would add an address on link-up and announce it.
    #[error(
        "IPv6 is enabled on {interface}, so the kernel sends packets there whenever the link comes \
         up, which a tap must not do: run `sysctl -w net.ipv6.conf.{sysctl}.disable_ipv6=1`"
    )]
    Ipv6 {
        /// The interface name of the NIC.
        interface: String,
        /// The NIC's name as written in a sysctl key.
        sysctl: String,
    },
    /// The NIC is not set up (IFF_UP), so it receives nothing. Holds its name.
    #[error("{0} is down: run `ip link set dev {0} up`")]
    Down(String),
    /// The NIC has another XDP program.
    #[error(
        "{0} has an XDP program already: end the program that put it there (`bpftool net` shows \
         it), or run `ip link set dev {0} xdp off`"
    )]
    Attached(String),
    /// Another AF_XDP socket is bound to this queue, from 0, of the NIC of this name.
    #[error(
        "queue {1} of {0} belongs to another AF_XDP socket: end the program that has it \
         (`ss --xdp --all --processes` names it)"
    )]
    Busy(String, u32),
    /// The kernel rejects the filter.
    #[error("cannot load the tap's filter: {0}")]
    Load(#[from] BpfError),
    /// A map of the filter cannot be accessed.
    #[error("cannot use the tap's filter: {0}")]
    Map(#[source] libbpf_rs::Error),
    /// The filter cannot be attached to the NIC of this name, neither in native nor in generic mode.
    /// The remedy is empty or begins with a semicolon.
    #[error("cannot attach the tap's filter to {0}: {1}{2}")]
    Attach(String, #[source] io::Error, &'static str),
    /// The packet memory of this many bytes cannot be allocated or registered.
    #[error(
        "cannot register {0} bytes of packet memory: {1}; the memory lock limit may be too small \
         (raise LimitMEMLOCK or grant CAP_IPC_LOCK), or ask for a smaller ring"
    )]
    Memory(u64, #[source] io::Error),
    /// A socket cannot be bound to this queue, from 0, of the NIC of this name. The remedy is empty
    /// or begins with a semicolon.
    #[error("cannot bind an AF_XDP socket to queue {1} of {0}: {2}{3}")]
    Bind(String, u32, #[source] io::Error, &'static str),
    /// Waiting for packets failed.
    #[error("cannot wait for packets: {0}")]
    Wait(#[source] io::Error),
    /// A socket's statistics cannot be read.
    #[error("cannot read an AF_XDP socket's statistics: {0}")]
    Statistics(#[source] io::Error),
    /// The interface of this name has disappeared.
    #[error("{0} is gone ({1}): once it is back (`ip link show dev {0}`), start the monitor again")]
    Gone(String, #[source] io::Error),
}

impl TapError {
    pub(super) fn bind(interface: &str, queue: u32, source: io::Error) -> Self {
        let interface = interface.to_owned();
        if source.raw_os_error() == Some(libc::EBUSY) {
            return Self::Busy(interface, queue);
        }
        let hint = match source.raw_os_error() {
            Some(libc::EPERM) => "; that requires CAP_NET_RAW",
            Some(libc::EINVAL) => {
                "; the NIC may not have this queue (any more): `ethtool -l NIC` shows how many it \
                 has; start again once that number is stable"
            }
            Some(libc::ENETDOWN) => "; the NIC is down: `ip link set dev NIC up`",
            Some(libc::ENODEV) => "; the NIC is gone: `ip link` lists those that are there",
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                "; memory is short: raise LimitMEMLOCK, grant CAP_IPC_LOCK, or make `memory.ring` \
                 smaller"
            }
            _ => "",
        };
        Self::Bind(interface, queue, source, hint)
    }

    pub(super) fn attach(interface: &str, source: io::Error) -> Self {
        let interface = interface.to_owned();
        let hint = match source.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => return Self::Attached(interface),
            Some(libc::EPERM) => "; that requires CAP_NET_ADMIN and CAP_BPF",
            _ => "",
        };
        Self::Attach(interface, source, hint)
    }
}
