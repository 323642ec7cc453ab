//! Monitors the next hop of steered frames: the NIC's carrier, and the next hop's MAC address.
//! A thread receives every change over netlink.
//!
//! The box's own network stack resolves the address (ARP, neighbour solicitation) and maintains the
//! entry; this module sends no packets. See `pursuit` for when it requests a resolution.

mod kernel;
mod next_hop;
mod pursuit;

use super::NicError;
use super::link::is_closed;
use exitmark_policy::packet::MacAddr;
use kernel::{News, Talk};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pursuit::{Order, Pursuit};
use std::io::{self, PipeReader, PipeWriter};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub(super) use kernel::mac_of;
pub use next_hop::{NextHop, NextHopError};

/// The most datagrams received at a time.
const DATAGRAMS: usize = 64;
/// How long to pause when the netlink socket fails.
const FAULT_REST: Duration = Duration::from_secs(1);

/// Whether steered frames can leave, and the MAC address to which they are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Whether the NIC has carrier.
    pub has_carrier: bool,
    /// The next hop's MAC address, if it is known.
    pub next_hop: Option<MacAddr>,
}

/// Monitors the next hop in a thread of its own, until dropped.
pub struct WayWatch {
    shared: Arc<Shared>,
    /// The thread ends when this is closed.
    stop: Option<PipeWriter>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    way: Mutex<Way>,
    /// The last state for which `tell` has returned; a moment behind `way`.
    told: Mutex<Way>,
    changed: Condvar,
}

impl WayWatch {
    /// Starts in the calling thread's network namespace, with its capabilities. A next hop that is
    /// an IP address needs CAP_NET_ADMIN as long as it is monitored. Calls `tell` in the new thread
    /// with the first state and after each change.
    ///
    /// # Errors
    /// The NIC does not exist, or CAP_NET_ADMIN is missing.
    pub fn start(
        ifindex: u32,
        next_hop: NextHop,
        tell: impl FnMut(Way) + Send + 'static,
    ) -> Result<Self, NicError> {
        let mut watch = Watch::begin(ifindex, next_hop)?;
        let shared = Arc::new(Shared::default());
        let (stopping, stop) = io::pipe().map_err(NicError::Netlink)?;
        let told = Arc::clone(&shared);
        let mut tell = tell;
        let builder = thread::Builder::new().name("exitmark-way".to_owned());
        let thread = builder.spawn(move || {
            watch.follow(&stopping, |way| {
                *shared_way(&told.way) = way;
                tell(way);
                // `first` must not return a state before `tell` has returned for it.
                *shared_way(&told.told) = way;
                told.changed.notify_all();
            });
        });
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread.map_err(NicError::Netlink)?),
        })
    }

    /// The current state, which may be newer than the last one passed to `tell`.
    pub fn now(&self) -> Way {
        *shared_way(&self.shared.way)
    }

    /// Waits until `tell` was called with a state in which frames can leave, and returns that
    /// state; after the timeout `patience`, returns the last state passed to `tell`.
    pub fn first(&self, patience: Duration) -> Way {
        let way = shared_way(&self.shared.told);
        let is_closed = |way: &mut Way| !way.has_carrier || way.next_hop.is_none();
        let changed = &self.shared.changed;
        let waited = changed.wait_timeout_while(way, patience, is_closed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn shared_way(way: &Mutex<Way>) -> MutexGuard<'_, Way> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for WayWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The source of the MAC address.
enum Source {
    Given(MacAddr),
    Sought(Pursuit),
}

/// The state of the monitoring thread.
struct Watch {
    talk: Talk,
    ifindex: u32,
    address: Option<IpAddr>,
    source: Source,
    is_there: bool,
    has_carrier: bool,
    own: Option<MacAddr>,
    /// Notifications were lost, so the NIC is to be queried again.
    has_missed: bool,
    /// It was logged that the next hop does not answer.
    has_complained: bool,
}

impl Watch {
    fn begin(ifindex: u32, next_hop: NextHop) -> Result<Self, NicError> {
        let (address, source) = match next_hop {
            NextHop::Mac(mac) => (None, Source::Given(mac)),
            NextHop::Address(address) => {
                (Some(address), Source::Sought(Pursuit::new(Instant::now())))
            }
        };
        let mut watch = Self {
            talk: Talk::open(ifindex, address).map_err(NicError::Netlink)?,
            ifindex,
            address,
            source,
            is_there: false,
            has_carrier: false,
            own: None,
            has_missed: false,
            has_complained: false,
        };
        watch.look_at_link().map_err(NicError::Netlink)?;
        if !watch.is_there {
            return Err(NicError::Missing(format!("number {ifindex}")));
        }
        if address.is_some() {
            let answer = watch.ask(Talk::try_right).map_err(NicError::Netlink)?;
            if matches!(answer, libc::EPERM | libc::EACCES) {
                return Err(NicError::Resolve(watch.name()));
            }
        }
        Ok(watch)
    }

    /// Runs until `stopping` is closed.
    fn follow(&mut self, stopping: &PipeReader, mut tell: impl FnMut(Way)) {
        let mut told = None;
        loop {
            let step = self.carry_out().and_then(|()| {
                let way = self.way();
                if told != Some(way) {
                    told = Some(way);
                    tell(way);
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
                    self.take(News::Missed);
                }
            }
        }
    }

    fn way(&self) -> Way {
        let mac = match &self.source {
            Source::Given(mac) => Some(*mac),
            Source::Sought(pursuit) => pursuit.mac(),
        };
        Way {
            has_carrier: self.has_carrier,
            next_hop: mac.filter(|&mac| self.is_there && Some(mac) != self.own),
        }
    }

    /// Sends the requests that are due.
    fn carry_out(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.has_missed) {
            self.look_at_link()?;
        }
        while let Source::Sought(pursuit) = &mut self.source
            && let Some(order) = pursuit.order(Instant::now())
        {
            match order {
                Order::Look => {
                    if self.ask(Talk::look_at_neighbour)? != 0 {
                        self.take(News::Neighbour(None));
                    }
                }
                Order::Confirm => {
                    if self.ask(Talk::confirm)? != 0 {
                        self.take(News::Neighbour(None));
                    }
                }
                Order::Renew => {
                    self.ask(Talk::forget)?;
                    let answer = self.ask(Talk::resolve)?;
                    if let Source::Sought(pursuit) = &mut self.source {
                        match answer {
                            // Another process has made an entry meanwhile.
                            libc::EEXIST => pursuit.look_again(),
                            _ => pursuit.renewed(Instant::now()),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a request, and processes all messages up to its answer. Returns 0 or an errno.
    fn ask(&mut self, question: impl FnOnce(&mut Talk) -> io::Result<u32>) -> io::Result<i32> {
        let asked = question(&mut self.talk)?;
        let mut news = Vec::new();
        let mut answer = None;
        while answer.is_none() {
            if !self.talk.hear(&mut news)? && !self.talk.wait()? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            for one in news.drain(..) {
                match one {
                    News::Answer { question, code } if question == asked => answer = Some(code),
                    other => self.take(other),
                }
            }
        }
        Ok(answer.unwrap_or(0))
    }

    fn look_at_link(&mut self) -> io::Result<()> {
        if self.ask(Talk::look_at_link)? != 0 {
            self.take(News::LinkGone);
        }
        Ok(())
    }

    fn take(&mut self, news: News) {
        match news {
            News::Link { has_carrier, mac } => {
                self.is_there = true;
                self.has_carrier = has_carrier;
                self.own = mac;
            }
            News::LinkGone => {
                self.is_there = false;
                self.has_carrier = false;
            }
            News::Missed => self.has_missed = true,
            News::Neighbour(_) | News::Answer { .. } => {}
        }
        let Source::Sought(pursuit) = &mut self.source else {
            return;
        };
        match news {
            News::Link { .. } | News::LinkGone => {
                pursuit.set_carrier(self.has_carrier);
                if !self.is_there {
                    pursuit.forget();
                }
            }
            News::Neighbour(entry) => {
                let own = self.own;
                let entry = entry.map(|mut entry| {
                    entry.mac = entry.mac.filter(|&mac| Some(mac) != own);
                    entry
                });
                pursuit.see(entry, Instant::now());
            }
            News::Missed => pursuit.look_again(),
            News::Answer { .. } => {}
        }
    }

    /// Waits for messages or until a request is due, and processes the messages. Returns false if
    /// the thread is to stop.
    fn listen(&mut self, stopping: &PipeReader) -> io::Result<bool> {
        let due = match &self.source {
            Source::Given(_) => None,
            Source::Sought(pursuit) => pursuit.due(),
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
            PollFd::new(self.talk.socket(), PollFlags::POLLIN),
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
        let mut news = Vec::new();
        for _ in 0..DATAGRAMS {
            if !self.talk.hear(&mut news)? {
                break;
            }
        }
        news.into_iter().for_each(|one| self.take(one));
        Ok(true)
    }

    /// Logs once that the next hop does not answer, and once that it answers again.
    fn complain(&mut self) {
        let Source::Sought(pursuit) = &self.source else {
            return;
        };
        if pursuit.is_given_up() && !self.has_complained {
            self.has_complained = true;
            let nic = self.name();
            let hint = match self.address {
                Some(IpAddr::V6(_)) => format!(
                    "neighbour solicitation requires a link-local address of the box on {nic}: `sysctl \
                     -w net.ipv6.conf.{nic}.disable_ipv6=0`"
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
        } else if pursuit.mac().is_some() && self.has_complained {
            self.has_complained = false;
            let nic = self.name();
            tracing::info!("the router that steer.next_hop names answers on {nic}");
        }
    }

    fn name(&self) -> String {
        let name = nix::net::if_::if_indextoname(self.ifindex).ok();
        let name = name.and_then(|name| name.into_string().ok());
        name.unwrap_or_else(|| format!("interface {}", self.ifindex))
    }
}
