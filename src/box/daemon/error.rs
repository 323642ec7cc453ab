//! The errors of the box: what failed, where, and the remedy.

use crate::control::ControlError;
use crate::settings::SettingsError;
use exitmark_datapath::{KernelError, MAX_QUEUES, PinError, Role, XskError};
use exitmark_nic::NicError;
use exitmark_relays::{LoadError, Refused};
use exitmark_service::process::ProcessError;
use std::io;
use std::path::PathBuf;

/// Why the box cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A NIC cannot be read or set, or does not meet a requirement.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// A NIC is administratively down (IFF_UP is not set).
    #[error("{0} ({1}) is down; set it up with `ip link set dev {0} up`")]
    Down(String, Role),
    /// The ports differ in their MTU.
    #[error(
        "{0} has MTU {1} but {2} has MTU {3}; a wire needs the same on every port: \
         `ip link set dev {2} mtu {1}`"
    )]
    Mtu(String, u32, String, u32),
    /// The ports have different numbers of queues.
    #[error(
        "{0} has {1} receive queues but {2} has {3}; engines af_xdp and auto need the same number \
         on every port, engine = \"xdp\" does not: {4}"
    )]
    Queues(String, u32, String, u32, String),
    /// Multi-buffer is off, and a frame of the MTU takes several buffers.
    #[error(
        "{0} has MTU {1}, but with datapath.frags = \"off\" a frame must fit one buffer: \
         `ip link set dev {0} mtu {2}` on every port, or datapath.frags = \"auto\""
    )]
    NeedsFrags(String, u32, u32),
    /// The kernel would panic on a redirect to a NIC with this number of queues.
    #[error(
        "{name} has {queues} queue pairs, and its driver ({driver}) is safe with {most} on {cpus} \
         CPUs: with more the kernel panics when XDP redirects a frame to it; {advice}"
    )]
    UnsafeQueues {
        /// The interface name of the NIC.
        name: String,
        /// The name of the NIC's driver, as the kernel reports it.
        driver: String,
        /// The number of queue pairs in use.
        queues: u32,
        /// The largest safe number of queue pairs.
        most: u32,
        /// The number of possible CPUs.
        cpus: u32,
        /// The command that sets a safe number.
        advice: String,
    },
    /// This machine has an address on a wire port.
    #[error(
        "{0} ({1}) has the address {2}, but the box is a wire there: nothing that is sent to that \
         address would reach it; remove it with `ip addr del {2} dev {0}`"
    )]
    Address(String, Role, ipnet::IpNet),
    /// A NIC has more queues than workers are supported.
    #[error("{0} has {1} receive queues, more than {MAX_QUEUES}: {2}")]
    TooManyQueues(String, u32, String),
    /// The next hop is the box itself.
    #[error("steer.next_hop is the MAC address of {0} itself; name the router on that network")]
    NextHopIsSelf(String),
    /// The configuration does not fit this machine.
    #[error(transparent)]
    Configuration(SettingsError),
    /// The relay set cannot be loaded.
    #[error(transparent)]
    Relays(#[from] LoadError),
    /// The relay set was loaded but failed the plausibility checks.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A reload would remove more than half of the relay endpoints.
    #[error(
        "relays: {now} endpoints would be listed instead of {before}, and connections to the \
         other relays would be marked as exit traffic; if that is intended, restart exitmark"
    )]
    Shrunk {
        /// The number of endpoints listed now.
        before: usize,
        /// The number of endpoints after the reload.
        now: usize,
    },
    /// The user for reading documents does not exist.
    #[error("relays.user = \"{0}\": there is no such user; create it with `useradd --system {0}`")]
    NoSuchUser(String),
    /// Untrusted documents must not be read as root.
    #[error(
        "relays.user is root; untrusted documents must be read by a user without privileges: name \
         one, such as \"nobody\""
    )]
    LoaderIsRoot,
    /// Privileges cannot be dropped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// This process could not remove its pins at the end.
    #[error(
        "pin.on_stop = \"detach\": the user of this process cannot access {0}; mount a BPF file \
         system of its own (`mount -t bpf -o mode=711 bpf DIRECTORY`) and name a directory in it in \
         pin.directory, or use \"keep\""
    )]
    UnreachablePins(PathBuf),
    /// The control socket or the metrics port cannot be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A box whose pins are gone still answers on its control socket.
    #[error("an exitmark answers at {0}: stop it first")]
    Runs(PathBuf),
    /// The AF_XDP sockets cannot be created.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// The XDP program or a map cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A pin cannot be read, created or removed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Engine xdp needs redirects that an egress NIC does not take.
    #[error(
        "engine = \"xdp\" must redirect what arrives at {0}, but a NIC by which those frames leave \
         takes no redirected frames: its driver has no ndo_xdp_xmit (a veth pair has it while its other \
         end polls: `ethtool -K PEER gro on`, and set this end down and up again); after \
         `exitmark detach` the program can be attached in generic mode, which sends to any NIC; \
         engine = \"af_xdp\" needs no redirects"
    )]
    NoRedirect(Role),
    /// Engine xdp with zero-copy would lose every frame.
    #[error(
        "engine = \"xdp\" with datapath.zero_copy = \"require\" would forward nothing: {0}; set \
         datapath.zero_copy to \"auto\", or engine to \"af_xdp\""
    )]
    LossyZeroCopy(String),
    /// A system call failed: the step, as a verb phrase, and the error.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// One NIC is configured for two roles that it cannot have together.
    #[error(
        "ports.{first_role} = \"{first}\" and ports.{second_role} = \"{second}\" are two names of \
         one NIC, {nic}: name another one; uplink and incoming alone can be one NIC, and then both \
         keys have the same name"
    )]
    SameNic {
        /// The name under the first key.
        first: String,
        /// The role of the first key.
        first_role: Role,
        /// The name under the second key.
        second: String,
        /// The role of the second key.
        second_role: Role,
        /// The NIC's name in the kernel.
        nic: String,
    },
    /// A lost port is back and cannot be set up again.
    #[error(
        "a port was lost and could not be set up again in {0} tries: {1}; the program decides for \
         the other ports until the next start"
    )]
    PortLost(u32, #[source] Box<Self>),
    /// The MTU now needs multi-buffer frames, but the loaded program is for a single buffer.
    #[error(
        "the ports have an MTU of {0} bytes now, and the XDP program is for frames in one buffer: it \
         must be loaded again: restart exitmark"
    )]
    OtherBuffers(u32),
    /// A worker ended by itself.
    #[error("worker {0} ended unexpectedly, so this process ends; report this")]
    WorkerDied(usize),
    /// A worker's buffers do not add up at the end.
    #[error("worker {0} cannot account for {1} frames, a fault of exitmark: report it")]
    FramesLost(usize, usize),
}
