//! Monitors the next hop of steered frames: the carrier, and the next hop's MAC address. A thread
//! receives every change over netlink.
//!
//! The next hop of tagged frames is resolved on the box's VLAN interface with their tags, which may
//! be deleted and created again: each has another index, so it is found by NIC and tags.
//!
//! The box's own network stack resolves the address (ARP, neighbour solicitation) and maintains the
//! entry; this module sends no packets. See `resolution` for when it requests a resolution.

mod configured;
mod kernel;
mod resolution;

use super::NicError;
use super::link::{StoppableThread, is_closed, name_at};
use super::vlan::vlan_interface;
use exitmark_policy::packet::MacAddr;
use kernel::{NetlinkEvent, NetlinkSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use resolution::{NeighbourRequest, Resolution};
use std::io::{self, PipeReader};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use configured::{NextHop, NextHopError};
pub(super) use kernel::mac_of;

/// The most datagrams received at a time.
const DATAGRAMS: usize = 64;
/// How long to pause when the netlink socket fails.
const FAULT_REST: Duration = Duration::from_secs(1);

/// Whether steered frames can leave, and the MAC address to which they are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHopState {
    /// Whether the NIC, or its VLAN interface, has carrier. A VLAN interface has it while it is set
    /// up and the NIC has carrier (vlan_device_event in the kernel's net/8021q/vlan.c).
    pub has_carrier: bool,
    /// The next hop's MAC address, if it is known.
    pub mac: Option<MacAddr>,
}

/// Monitors the next hop in a thread of its own, until dropped.
pub struct NextHopMonitor {
    shared: Arc<Shared>,
    _thread: StoppableThread,
}

#[derive(Default)]
struct Shared {
    state: Mutex<NextHopState>,
    /// The last state for which `notify` has returned; a moment behind `state`.
    notified: Mutex<NextHopState>,
    changed: Condvar,
}

impl NextHopMonitor {
    /// Starts in the calling thread's network namespace, with its capabilities. A next hop that is
    /// an IP address needs CAP_NET_ADMIN as long as it is monitored. Calls `notify` in the new
    /// thread with the first state and after each change.
    ///
    /// # Errors
    /// The NIC does not exist, or CAP_NET_ADMIN is missing.
    pub fn start(
        ifindex: u32,
        next_hop: NextHop,
        notify: impl FnMut(NextHopState) + Send + 'static,
    ) -> Result<Self, NicError> {
        Self::start_on_vlan(ifindex, &[], next_hop, notify)
    }

    /// As [`NextHopMonitor::start`], for frames with these VLAN tags, the outer first: the next hop
    /// is resolved on the VLAN interface that [`crate::vlan_interface`] finds for `parent` and
    /// `tags`. As long as that is missing, also at the start, the state has neither carrier nor MAC
    /// address; one that is created later is monitored from then on. A next hop with a configured
    /// MAC address, or without tags, is monitored on the NIC itself.
    ///
    /// # Errors
    /// The NIC with index `parent` does not exist, or CAP_NET_ADMIN is missing.
    pub fn start_on_vlan(
        parent: u32,
        tags: &[u16],
        next_hop: NextHop,
        mut notify: impl FnMut(NextHopState) + Send + 'static,
    ) -> Result<Self, NicError> {
        let mut monitor = MonitorThread::begin(parent, tags, next_hop)?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = StoppableThread::start("exitmark-hop", move |stopping| {
            monitor.follow(stopping, |state| {
                *lock(&for_thread.state) = state;
                notify(state);
                // `first` must not return a state before `notify` has returned for it.
                *lock(&for_thread.notified) = state;
                for_thread.changed.notify_all();
            });
        });
        Ok(Self {
            shared,
            _thread: thread.map_err(NicError::Netlink)?,
        })
    }

    /// The current state, which may be newer than the last one passed to `notify`.
    pub fn now(&self) -> NextHopState {
        *lock(&self.shared.state)
    }

    /// Waits until `notify` was called with a state in which frames can leave, and returns that
    /// state; after `timeout`, returns the last state passed to `notify`.
    pub fn first(&self, timeout: Duration) -> NextHopState {
        let state = lock(&self.shared.notified);
        let is_unusable = |state: &mut NextHopState| !state.has_carrier || state.mac.is_none();
        let changed = &self.shared.changed;
        let waited = changed.wait_timeout_while(state, timeout, is_unusable);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn lock(state: &Mutex<NextHopState>) -> MutexGuard<'_, NextHopState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

enum MacSource {
    Configured(MacAddr),
    Resolved(Resolution),
}

struct MonitorThread {
    netlink: NetlinkSocket,
    /// The NIC, and the tags of the VLAN interface on top of it that is monitored; without tags,
    /// the NIC itself is.
    parent: u32,
    tags: Vec<u16>,
    /// The index of the monitored interface; 0 if the VLAN interface is missing.
    ifindex: u32,
    address: Option<IpAddr>,
    source: MacSource,
    is_there: bool,
    has_carrier: bool,
    own: Option<MacAddr>,
    /// The interface is to be found and queried again: notifications were lost, or there may be
    /// another VLAN interface with these tags.
    must_look: bool,
    /// It was logged that the next hop does not answer.
    has_complained: bool,
}

impl MonitorThread {
    fn begin(parent: u32, tags: &[u16], next_hop: NextHop) -> Result<Self, NicError> {
        let (address, source) = match next_hop {
            NextHop::Mac(mac) => (None, MacSource::Configured(mac)),
            NextHop::Address(address) => (
                Some(address),
                MacSource::Resolved(Resolution::new(Instant::now())),
            ),
        };
        // A configured MAC address does not depend on the box's own VLAN interface.
        let tags = if address.is_some() { tags } else { &[] };
        let netlink = NetlinkSocket::open(parent, tags.last().copied(), address);
        let mut monitor = Self {
            netlink: netlink.map_err(NicError::Netlink)?,
            parent,
            tags: tags.to_vec(),
            ifindex: parent,
            address,
            source,
            is_there: false,
            has_carrier: false,
            own: None,
            must_look: false,
            has_complained: false,
        };
        monitor.look_at_link().map_err(NicError::Netlink)?;
        if !monitor.is_there {
            return Err(NicError::Missing(format!("number {parent}")));
        }
        monitor.must_look = !tags.is_empty();
        monitor.look()?;
        if address.is_some() {
            let answer = monitor
                .ask(NetlinkSocket::try_right)
                .map_err(NicError::Netlink)?;
            if matches!(answer, libc::EPERM | libc::EACCES) {
                return Err(NicError::Resolve(monitor.name()));
            }
        }
        Ok(monitor)
    }

    /// Runs until `stopping` is closed.
    fn follow(&mut self, stopping: &PipeReader, mut notify: impl FnMut(NextHopState)) {
        let mut notified = None;
        loop {
            let step = self.carry_out().and_then(|()| {
                let state = self.state();
                if notified != Some(state) {
                    notified = Some(state);
                    notify(state);
                }
                self.complain();
                self.listen(stopping)
            });
            match step {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!("the next hop of steered frames cannot be monitored: {error}");
                    if is_closed(stopping, FAULT_REST) {
                        return;
                    }
                    self.take(NetlinkEvent::Missed);
                }
            }
        }
    }

    fn state(&self) -> NextHopState {
        let mac = match &self.source {
            MacSource::Configured(mac) => Some(*mac),
            MacSource::Resolved(resolution) => resolution.mac(),
        };
        NextHopState {
            has_carrier: self.has_carrier,
            mac: mac.filter(|&mac| self.is_there && Some(mac) != self.own),
        }
    }

    /// Sends the requests that are due.
    fn carry_out(&mut self) -> io::Result<()> {
        self.look().map_err(io::Error::other)?;
        while let MacSource::Resolved(resolution) = &mut self.source
            && let Some(request) = resolution.request(Instant::now())
        {
            match request {
                NeighbourRequest::Look => {
                    if self.ask(NetlinkSocket::look_at_neighbour)? != 0 {
                        self.take(NetlinkEvent::Neighbour(None));
                    }
                }
                NeighbourRequest::Confirm => {
                    if self.ask(NetlinkSocket::confirm)? != 0 {
                        self.take(NetlinkEvent::Neighbour(None));
                    }
                }
                NeighbourRequest::Renew => {
                    self.ask(NetlinkSocket::forget)?;
                    let answer = self.ask(NetlinkSocket::resolve)?;
                    if let MacSource::Resolved(resolution) = &mut self.source {
                        match answer {
                            // Another process has made an entry meanwhile.
                            libc::EEXIST => resolution.look_again(),
                            _ => resolution.renewed(Instant::now()),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a request, and processes all messages up to its answer. Returns 0 or an errno.
    fn ask(
        &mut self,
        question: impl FnOnce(&mut NetlinkSocket) -> io::Result<u32>,
    ) -> io::Result<i32> {
        let sequence = question(&mut self.netlink)?;
        let mut events = Vec::new();
        let mut answer = None;
        while answer.is_none() {
            if !self.netlink.receive(&mut events)? && !self.netlink.wait()? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            for one in events.drain(..) {
                match one {
                    NetlinkEvent::Answer { question, code } if question == sequence => {
                        answer = Some(code)
                    }
                    other => self.take(other),
                }
            }
        }
        Ok(answer.unwrap_or(0))
    }

    /// Finds and queries the interface, if that is due.
    fn look(&mut self) -> Result<(), NicError> {
        while std::mem::take(&mut self.must_look) {
            if !self.tags.is_empty() {
                let found = vlan_interface(self.parent, &self.tags)?;
                self.turn_to(found.map_or(0, |found| found.index));
            }
            self.look_at_link().map_err(NicError::Netlink)?;
        }
        Ok(())
    }

    /// Monitors the interface with this index from now on; 0: none.
    fn turn_to(&mut self, index: u32) {
        if index != self.ifindex {
            self.ifindex = index;
            self.netlink.turn_to(index);
            self.lose_link();
        }
    }

    fn look_at_link(&mut self) -> io::Result<()> {
        if self.ifindex != 0 && self.ask(NetlinkSocket::look_at_link)? != 0 {
            self.take(NetlinkEvent::LinkGone);
        }
        Ok(())
    }

    fn take(&mut self, event: NetlinkEvent) {
        match event {
            NetlinkEvent::Link { has_carrier, mac } => {
                self.is_there = true;
                self.has_carrier = has_carrier;
                self.own = mac;
            }
            NetlinkEvent::LinkGone => {
                self.lose_link();
                self.must_look |= !self.tags.is_empty();
            }
            NetlinkEvent::OtherVlan | NetlinkEvent::Missed => self.must_look = true,
            NetlinkEvent::Neighbour(_) | NetlinkEvent::Answer { .. } => {}
        }
        let MacSource::Resolved(resolution) = &mut self.source else {
            return;
        };
        match event {
            NetlinkEvent::Link { .. } => resolution.set_carrier(self.has_carrier),
            NetlinkEvent::Neighbour(entry) => {
                let own = self.own;
                let entry = entry.map(|mut entry| {
                    entry.mac = entry.mac.filter(|&mac| Some(mac) != own);
                    entry
                });
                resolution.observe(entry, Instant::now());
            }
            NetlinkEvent::Missed => resolution.look_again(),
            NetlinkEvent::LinkGone | NetlinkEvent::OtherVlan | NetlinkEvent::Answer { .. } => {}
        }
    }

    /// Forgets the state of an interface that is gone.
    fn lose_link(&mut self) {
        self.is_there = false;
        self.has_carrier = false;
        if let MacSource::Resolved(resolution) = &mut self.source {
            resolution.set_carrier(false);
            resolution.forget();
        }
    }

    /// Waits for messages or until a request is due, and processes the messages. Returns false if
    /// the thread is to stop.
    fn listen(&mut self, stopping: &PipeReader) -> io::Result<bool> {
        let due = match &self.source {
            MacSource::Configured(_) => None,
            MacSource::Resolved(resolution) => resolution.due(),
        };
        let timeout = match due {
            None => PollTimeout::NONE,
            // Rounded up: otherwise the last millisecond would be a busy loop.
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [
            PollFd::new(self.netlink.socket(), PollFlags::POLLIN),
            PollFd::new(stopping.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].any() == Some(true) {
            return Ok(false);
        }
        // Read all messages before the clock decides that an answer did not arrive.
        let mut events = Vec::new();
        for _ in 0..DATAGRAMS {
            if !self.netlink.receive(&mut events)? {
                break;
            }
        }
        events.into_iter().for_each(|one| self.take(one));
        Ok(true)
    }

    /// Logs once that the next hop does not answer, and once that it answers again.
    fn complain(&mut self) {
        let MacSource::Resolved(resolution) = &self.source else {
            return;
        };
        if resolution.is_given_up() && !self.has_complained {
            self.has_complained = true;
            let nic = self.name();
            let hint = match self.address {
                Some(IpAddr::V6(_)) => format!(
                    "neighbour solicitation requires a link-local address of the box on {nic}: `sysctl \
                     -w net.ipv6.conf.{}.disable_ipv6=0`",
                    nic.replace('.', "/")
                ),
                _ => format!(
                    "some routers answer ARP requests only from an address of their own network: `ip \
                     addr add ADDRESS/PREFIX dev {nic}`"
                ),
            };
            tracing::warn!(
                "the router that steer.next_hop names does not answer on {nic}; check that \
                 it is on that network; {hint}"
            );
        } else if resolution.mac().is_some() && self.has_complained {
            self.has_complained = false;
            let nic = self.name();
            tracing::info!("the router that steer.next_hop names answers on {nic}");
        }
    }

    fn name(&self) -> String {
        // The NIC stands for a VLAN interface that is missing.
        match self.ifindex {
            0 => name_at(self.parent),
            index => name_at(index),
        }
    }
}
