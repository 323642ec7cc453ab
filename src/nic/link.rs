//! The state of a NIC that can change while it is in use, and notifications of changes.
//!
//! A [`LinkState`] is one snapshot from the kernel. A [`LinkWatch`] reports that it is time to
//! query again: it does not parse the notifications, so a lost one only delays the next query.

use super::{NicError, converse, unanswered};
use exitmark_policy::packet::MacAddr;
use futures_util::stream::TryStreamExt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::sys::{Socket, protocols::NETLINK_ROUTE};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

/// The longest name that an `IFLA_IFNAME` holds, in bytes (IFNAMSIZ less the final zero).
pub(super) const NAME_BYTES: usize = 15;
/// `IFLA_ALT_IFNAME` in the kernel's include/uapi/linux/if_link.h.
const ALTERNATIVE_NAME: u16 = 53;
/// How long the watch pauses after a notification: limits how often `changed` is called on a
/// machine whose links change all the time.
const REST: Duration = Duration::from_millis(5);
/// How long to pause after a failed poll.
const FAULT_REST: Duration = Duration::from_secs(1);

/// The state of a NIC that can change while it is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The interface index, unique within the network namespace; it stays when the NIC is renamed.
    pub index: u32,
    /// The interface name (IFLA_IFNAME), never an alternative name.
    pub name: String,
    /// The MAC address of the NIC.
    pub mac: Option<MacAddr>,
    /// The MTU: the longest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether the NIC is set up (IFF_UP).
    pub is_up: bool,
    /// Whether the link is up (IFF_LOWER_UP).
    pub has_carrier: bool,
    /// Whether promiscuous mode is on (IFF_PROMISC).
    pub is_promiscuous: bool,
    /// The index of the interface of which the NIC is a port (IFLA_MASTER).
    pub master: Option<u32>,
    /// Received packets plus packets missed for lack of buffers (`rx_packets`, `rx_missed_errors`).
    /// Drivers differ in whether the first includes the second.
    pub received: u64,
}

impl LinkState {
    /// The state of the NIC with this index; `None` if it does not exist.
    ///
    /// # Errors
    /// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
    pub fn of_index(index: u32) -> Result<Option<Self>, NicError> {
        converse(async {
            let handle = super::connect()?;
            let message = get(handle.link().get().match_index(index)).await?;
            Ok(message.map(|message| Self::of_message(&message)))
        })
    }

    pub(super) fn of_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut state = Self {
            index: message.header.index,
            name: name_of(message).unwrap_or_default().to_owned(),
            mac: None,
            mtu: 0,
            is_up: flags.contains(LinkFlags::Up),
            has_carrier: flags.contains(LinkFlags::LowerUp),
            is_promiscuous: flags.contains(LinkFlags::Promisc),
            master: master_of(message),
            received: 0,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => {
                    state.mac = bytes.as_slice().try_into().ok().map(MacAddr::new);
                }
                LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
                LinkAttribute::Stats64(counts) => {
                    state.received = counts.rx_packets.wrapping_add(counts.rx_missed_errors);
                }
                _ => {}
            }
        }
        state
    }
}

/// The index of the NIC with this name or alternative name; `None` if it does not exist.
///
/// # Errors
/// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
pub fn index_of(name: &str) -> Result<Option<u32>, NicError> {
    converse(async {
        let handle = super::connect()?;
        let message = by_name(&handle, name).await?;
        Ok(message.map(|message| message.header.index))
    })
}

/// The index of the interface on top of which this one is (IFLA_LINK). `None` if that interface is in
/// another network namespace, to which the index belongs then. The lower interface of a veth is its
/// other end.
pub(super) fn lower_of(message: &LinkMessage) -> Option<u32> {
    let mut lower = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => return None,
            _ => {}
        }
    }
    lower
}

/// The index of the interface of which this one is a port.
pub(super) fn master_of(message: &LinkMessage) -> Option<u32> {
    let mut attributes = message.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        LinkAttribute::Controller(master) if *master != 0 => Some(*master),
        _ => None,
    })
}

pub(super) fn name_of(message: &LinkMessage) -> Option<&str> {
    let mut attributes = message.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The name of the interface with this index, for messages.
pub(super) fn name_at(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok();
    let name = name.and_then(|name| name.into_string().ok());
    // nix 0.31 returns an empty name if the interface does not exist.
    let name = name.filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// All interfaces of this network namespace.
pub(super) async fn all(handle: &rtnetlink::Handle) -> Result<Vec<LinkMessage>, NicError> {
    let links = handle.link().get().execute();
    links.try_collect().await.map_err(unanswered)
}

/// The NIC with this name or alternative name.
pub(super) async fn by_name(
    handle: &rtnetlink::Handle,
    name: &str,
) -> Result<Option<LinkMessage>, NicError> {
    let mut request = handle.link().get().match_name(name.to_owned());
    if name.len() > NAME_BYTES {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        let attribute = LinkAttribute::Other(DefaultNla::new(ALTERNATIVE_NAME, bytes));
        request.message_mut().attributes = vec![attribute];
    }
    get(request).await
}

async fn get(request: rtnetlink::LinkGetRequest) -> Result<Option<LinkMessage>, NicError> {
    match Box::pin(request.execute()).try_next().await {
        Ok(message) => Ok(message),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(unanswered(error)),
    }
}

/// Reports changes of links and addresses from a thread of its own, until dropped.
pub struct LinkWatch {
    _thread: StoppableThread,
}

impl LinkWatch {
    /// Starts in the calling thread's network namespace. `begin` is called once, in the new
    /// thread, and `changed` after every change of any link or address there; changes in quick succession are
    /// reported once.
    ///
    /// # Errors
    /// The netlink socket or the thread cannot be made.
    pub fn start(
        begin: impl FnOnce() + Send + 'static,
        mut changed: impl FnMut() + Send + 'static,
    ) -> Result<Self, NicError> {
        let start = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            for group in [
                MulticastGroup::Link,
                MulticastGroup::Ipv4Ifaddr,
                MulticastGroup::Ipv6Ifaddr,
            ] {
                socket.add_membership(group as u32)?;
            }
            let thread = StoppableThread::start("exitmark-links", move |stopping| {
                begin();
                while wait(&socket, stopping) {
                    drain(&socket);
                    changed();
                }
            })?;
            Ok(Self { _thread: thread })
        };
        start().map_err(NicError::Netlink)
    }
}

/// A thread that is stopped and joined when this is dropped.
pub(super) struct StoppableThread {
    /// The thread ends when this is closed.
    stop: Option<PipeWriter>,
    thread: Option<thread::JoinHandle<()>>,
}

impl StoppableThread {
    /// Starts a thread that ends once the pipe is closed.
    pub(super) fn start(
        name: &str,
        work: impl FnOnce(&PipeReader) + Send + 'static,
    ) -> io::Result<Self> {
        let (stopping, stop) = io::pipe()?;
        let builder = thread::Builder::new().name(name.to_owned());
        let thread = builder.spawn(move || work(&stopping))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for StoppableThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a notification. Returns false if the watch is to end.
fn wait(socket: &Socket, stopping: &PipeReader) -> bool {
    if is_closed(stopping, REST) {
        return false;
    }
    let mut fds = [
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        PollFd::new(stopping.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => fds[1].any() != Some(true),
        Err(nix::errno::Errno::EINTR) => true,
        Err(_) => !is_closed(stopping, FAULT_REST),
    }
}

/// Waits until the other end of a pipe is closed. Returns false on timeout.
pub(super) fn is_closed(pipe: &PipeReader, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut fds, timeout), Ok(1..))
}

fn drain(socket: &Socket) {
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        if let Err(error) = socket.recv_from(&mut buffer, 0)
            // An overrun of the socket's buffer is a change as well.
            && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOBUFS))
        {
            return;
        }
    }
}
