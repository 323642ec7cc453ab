//! The errors of the box: what failed, where, and the remedy.

use crate::control::ControlError;
use crate::settings::SettingsError;
use exitmark_datapath::{ConnectError, KernelError, PinError, Role, XskError};
use exitmark_nic::NicError;
use exitmark_relays::LoadError;
use exitmark_service::process::ProcessError;
use std::io;

/// Why the box cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error(transparent)]
    Nic(#[from] NicError),
    #[error("{0} ({1}) is down; set it up with `ip link set dev {0} up`")]
    Down(String, Role),
    /// This machine or the configuration does not meet a requirement: which one, and the remedy.
    #[error("{0}")]
    Unmet(String),
    #[error("steer.next_hop is the MAC address of {0} itself; name the router on that network")]
    NextHopIsSelf(String),
    #[error(transparent)]
    Configuration(SettingsError),
    #[error(transparent)]
    Relays(#[from] LoadError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Xsk(#[from] XskError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(
        "engine = \"xdp\" must redirect what arrives at {0}, but a NIC by which those frames leave \
         takes no redirected frames: its driver has no ndo_xdp_xmit (a veth pair has it while its other \
         end polls: `ethtool -K PEER gro on`, and set this end down and up again); after \
         `exitmark detach` the program can be attached in generic mode, which sends to any NIC; \
         engine = \"af_xdp\" needs no redirects"
    )]
    NoRedirect(Role),
    /// A system call failed: the step, as a verb phrase, and the error.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    #[error(
        "a port was lost and could not be set up again in {0} tries: {1}; the program decides for \
         the other ports until the next start"
    )]
    PortLost(u32, #[source] Box<Self>),
    #[error(
        "the ports have an MTU of {0} bytes now, and the XDP program is for frames in one buffer: it \
         must be loaded again: restart exitmark"
    )]
    OtherBuffers(u32),
    #[error("{1}; these are plain wires: {0}")]
    SomeWires(String, #[source] Box<Self>),
    #[error(
        "the wire {0} can be set up now: this process ends, for the service manager to start it \
         again; the programs of the other wires forward meanwhile"
    )]
    WireIsBack(String),
    #[error("worker {0} ended unexpectedly, so this process ends; report this")]
    WorkerDied(usize),
    #[error("worker {0} cannot account for {1} frames, a fault of exitmark: report it")]
    FramesLost(usize, usize),
}
