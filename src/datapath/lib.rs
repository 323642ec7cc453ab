//! The data path: receives frames, decides and rewrites them, and sends them.
//!
//! [`Forwarder`] handles bytes and counters, without rings. [`Worker`] moves [`Frame`] tokens
//! between [`Port`]s and a [`FramePool`]. Only the two modules with unsafe code use the kernel:
//! `xsk` (sockets, rings, UMEM) and `kernel` (the XDP program, its maps, its attachment and pins).
//! Everything else also runs over memory ports.

mod cells;
mod connect;
mod counters;
mod cpu_latency;
mod cut;
mod forward;
mod frame;
mod groups;
mod guard;
mod hosts;
mod kernel;
mod links;
pub mod memory;
mod sample;
mod sent;
mod tap;
mod tap_sender;
mod wait;
mod worker;
mod xsk;

use std::fmt;

pub use cells::Cells;
pub use connect::{
    Cgroup, Connect, ConnectError, ConnectLinks, Connections, MAX_USERS, cgroup_mount,
    connect_cgroups, detach_connect, is_connect_attached,
};
pub use counters::{Counter, Counters, DropReason, Tally};
pub use cpu_latency::{CPU_LATENCY_DEVICE, CpuLatency};
pub use forward::{Forwarder, Outbox, Outcome};
pub use frame::{Frame, FrameMemory, FramePool};
pub use groups::GroupCounts;

pub use guard::{GUARD_NUMBERS, Guard};
pub use hosts::{ActiveHost, HostAges, KnownHost};
pub use kernel::contract::{self, MAX_QUEUES, SAMPLE_BYTES};
pub use kernel::{
    AttachMode, Attachment, Buffers, DropCounters, Form, Kernel, KernelCounts, KernelError,
    KernelSamples, PinError, Pins, Ran, Undo, XdpFeatures, XdpState, kernel_version, run_live,
    xdp_state,
};
pub use links::{IncomingLink, Links, TakeoverLimits};
pub use sample::{DecidedBy, Excerpt, Sample, Samples};
pub use tap::{Direction, TAP_BYTES, TapCopy, TapRing};
pub use tap_sender::{TapChange, TapControl, TapSender};
pub use wait::{SpinLimits, Wait};
pub use worker::{Balance, BalanceGauge, Control, Worker, WorkerLimits, WorkerReport, clock};
pub use xsk::{
    Bound, FilledRings, PacketPort, QueueGauge, Rings, SharedRings, Troubles, Umem, WorkerPort,
    XskError, XskMemory, XskPort, XskSettings,
};

/// The role of a NIC. One NIC can be both `Uplink` and `Incoming`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The NIC toward the Tor host.
    Host,
    /// The NIC toward the clearnet.
    Uplink,
    /// The NIC on the network that carries Tor traffic.
    Incoming,
}

impl Role {
    /// Every role, in the order of [`Role::index`].
    pub const ALL: [Self; 3] = [Self::Host, Self::Uplink, Self::Incoming];

    /// The role's index, 0 to 2; the XDP program's maps use the same.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The role's name, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Uplink => "uplink",
            Self::Incoming => "incoming",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value per role, indexed by [`Role`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerRole<T>([T; 3]);

impl<T> PerRole<T> {
    /// The three values in the order of [`Role::ALL`].
    pub const fn new(values: [T; 3]) -> Self {
        Self(values)
    }

    /// Calls `make` for the value of each role.
    pub fn from_fn(mut make: impl FnMut(Role) -> T) -> Self {
        Self(Role::ALL.map(&mut make))
    }

    /// Each role with its value, in the order of [`Role::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Role, &T)> {
        Role::ALL.into_iter().zip(&self.0)
    }

    /// Each role with its value, mutable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Role, &mut T)> {
        Role::ALL.into_iter().zip(&mut self.0)
    }
}

impl<T> std::ops::Index<Role> for PerRole<T> {
    type Output = T;
    #[inline]
    fn index(&self, role: Role) -> &T {
        &self.0[role.index()]
    }
}

impl<T> std::ops::IndexMut<Role> for PerRole<T> {
    #[inline]
    fn index_mut(&mut self, role: Role) -> &mut T {
        &mut self.0[role.index()]
    }
}

/// One queue of a NIC: four rings, which pass frames to the kernel and back.
///
/// A frame that was passed on is unavailable until it is received or completed. No call blocks.
pub trait Port {
    /// The memory of this port's frames.
    type Memory: FrameMemory;

    /// Appends received frames to `arrived`, at most `limit`.
    fn receive(&mut self, memory: &mut Self::Memory, arrived: &mut Vec<Frame>, limit: usize);

    /// Takes frames from the front of `leaving`, as many whole packets as there is room for. A
    /// port never holds more frames to send than a ring has entries, including uncompleted ones,
    /// so that a port that stops completing cannot exhaust the pool.
    fn transmit(&mut self, memory: &mut Self::Memory, leaving: &mut Vec<Frame>);

    /// Returns the frames whose sending has completed to the pool.
    fn complete(&mut self, memory: &mut Self::Memory, pool: &mut FramePool);

    /// Submits empty frames to the fill ring, up to this port's share.
    fn fill(&mut self, memory: &mut Self::Memory, pool: &mut FramePool);

    /// Makes the wakeup system calls that the rings need: usually at most one.
    fn kick(&mut self);

    /// How many frames the port holds.
    fn held(&self) -> Held;

    /// Whether the transmit ring has frames that the kernel has not taken.
    fn has_unsent(&mut self) -> bool;
}

/// How many frames a port holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Submitted to be filled and not received yet: fill ring, NIC and rx ring together.
    pub receiving: usize,
    /// Submitted to be sent and not completed yet: tx ring, NIC and completion ring together.
    pub sending: usize,
}
