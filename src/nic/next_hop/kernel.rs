//! Netlink requests and notifications about one interface and one neighbour on it.
//!
//! Answers and notifications share one socket, so that they are received in order.

use super::resolution::{NeighbourEntry, State};
use crate::LinkState;
use crate::vlan::vlan_id;
use exitmark_policy::packet::MacAddr;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The longest datagram that the kernel sends here.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// The length of a message's header, the shortest message.
const HEADER_BYTES: usize = 16;
/// The kernel answers before `send` returns; after this timeout, the answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// A message from the kernel about the interface, the neighbour, or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetlinkEvent {
    /// The state of the interface: its carrier (IFF_LOWER_UP), and its MAC address if it is unicast.
    Link {
        has_carrier: bool,
        mac: Option<MacAddr>,
    },
    /// The interface was removed, or moved to another network namespace.
    LinkGone,
    /// There is another VLAN interface with the ID of the monitored one.
    OtherVlan,
    /// The neighbour's entry; `None` if it was removed.
    Neighbour(Option<NeighbourEntry>),
    /// Notifications were lost because the socket's buffer was full (ENOBUFS); the state is to be
    /// queried.
    Missed,
    /// The answer to a request: 0, or an errno.
    Answer { question: u32, code: i32 },
}

/// An open netlink socket (NETLINK_ROUTE) for requests and notifications.
pub(super) struct NetlinkSocket {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    ifindex: u32,
    vlan_id: Option<u16>,
    neighbour: Option<IpAddr>,
}

impl NetlinkSocket {
    /// Opens the socket in the calling thread's network namespace. Reports messages about the
    /// interface with index `ifindex`, and about other VLAN interfaces with the ID `vlan_id`.
    pub(super) fn open(
        ifindex: u32,
        vlan_id: Option<u16>,
        neighbour: Option<IpAddr>,
    ) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.add_membership(MulticastGroup::Link as u32)?;
        if neighbour.is_some() {
            socket.add_membership(MulticastGroup::Neigh as u32)?;
        }
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM_BYTES),
            sequence: 0,
            ifindex,
            vlan_id,
            neighbour,
        })
    }

    /// Turns to the interface with another index; 0: none.
    pub(super) const fn turn_to(&mut self, ifindex: u32) {
        self.ifindex = ifindex;
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Queries the interface (RTM_GETLINK). Returns the request's sequence number, as the other requests
    /// do.
    pub(super) fn look_at_link(&mut self) -> io::Result<u32> {
        let mut message = LinkMessage::default();
        message.header.index = self.ifindex;
        self.ask(RouteNetlinkMessage::GetLink(message), 0)
    }

    pub(super) fn look_at_neighbour(&mut self) -> io::Result<u32> {
        let message = self.entry(NeighbourState::None, NeighbourFlags::empty());
        self.ask(RouteNetlinkMessage::GetNeighbour(message), 0)
    }

    /// Checks the permission to change entries. Sends a request that never succeeds (NLM_F_EXCL
    /// without NLM_F_CREATE), because the kernel checks the permission first.
    pub(super) fn try_right(&mut self) -> io::Result<u32> {
        let message = self.entry(NeighbourState::None, NeighbourFlags::empty());
        self.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_EXCL)
    }

    /// Sets the entry to NUD_PROBE: the kernel sends unicast probes. It refuses without an entry.
    pub(super) fn confirm(&mut self) -> io::Result<u32> {
        let message = self.entry(NeighbourState::Probe, NeighbourFlags::empty());
        self.ask(RouteNetlinkMessage::NewNeighbour(message), 0)
    }

    /// Deletes the entry (RTM_DELNEIGH).
    pub(super) fn forget(&mut self) -> io::Result<u32> {
        let message = self.entry(NeighbourState::None, NeighbourFlags::empty());
        self.ask(RouteNetlinkMessage::DelNeighbour(message), 0)
    }

    /// Makes a new entry that the kernel resolves by broadcast or multicast. The kernel refuses if
    /// there is an entry: it may be permanent, and must not be changed.
    pub(super) fn resolve(&mut self) -> io::Result<u32> {
        let message = self.entry(NeighbourState::None, NeighbourFlags::Use);
        let only_new = NLM_F_CREATE | NLM_F_EXCL;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), only_new)
    }

    fn entry(&self, state: NeighbourState, flags: NeighbourFlags) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = self.ifindex;
        message.header.state = state;
        message.header.flags = flags;
        let (family, address) = match self.neighbour {
            Some(IpAddr::V4(address)) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
            Some(IpAddr::V6(address)) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
            None => return message,
        };
        message.header.family = family;
        message.attributes = vec![NeighbourAttribute::Destination(address)];
        message
    }

    /// Sends a request; returns its sequence number.
    fn ask(&mut self, question: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(self.sequence)
    }

    /// Receives one datagram, without waiting. Returns false if no datagram is pending.
    pub(super) fn receive(&mut self, events: &mut Vec<NetlinkEvent>) -> io::Result<bool> {
        self.buffer.clear();
        let sender = match self.socket.recv_from(&mut self.buffer, 0) {
            Ok((_, sender)) => sender,
            Err(error) => {
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(false),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => events.push(NetlinkEvent::Missed),
                    _ => return Err(error),
                }
                return Ok(true);
            }
        };
        // Other processes can send to this socket too; only the kernel has port 0.
        if sender.port_number() == 0 {
            let mut rest = self.buffer.as_slice();
            while let Ok(one) = NetlinkBuffer::new_checked(rest) {
                let length = one.length() as usize;
                let said = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
                events.extend(said.ok().and_then(|said| self.understand(said)));
                let next = length.max(HEADER_BYTES).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
            }
        }
        Ok(true)
    }

    /// Waits for a datagram. Returns false on timeout.
    pub(super) fn wait(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.socket(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(ANSWER_TIMEOUT).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn understand(&self, said: NetlinkMessage<RouteNetlinkMessage>) -> Option<NetlinkEvent> {
        match said.payload {
            NetlinkPayload::Error(error) => Some(NetlinkEvent::Answer {
                question: said.header.sequence_number,
                code: -error.raw_code(),
            }),
            NetlinkPayload::Overrun(_) => Some(NetlinkEvent::Missed),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                if !self.is_it(&link) {
                    let is_other = self.vlan_id.is_some() && vlan_id(&link) == self.vlan_id;
                    return is_other.then_some(NetlinkEvent::OtherVlan);
                }
                let LinkState {
                    has_carrier, mac, ..
                } = LinkState::of_message(&link);
                let mac = mac.filter(|mac| mac.is_unicast());
                Some(NetlinkEvent::Link { has_carrier, mac })
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                self.is_it(&link).then_some(NetlinkEvent::LinkGone)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => {
                let state = state(entry.header.state)?;
                self.is_them(&entry).then(|| {
                    let mac = lladdr(&entry);
                    NetlinkEvent::Neighbour(Some(NeighbourEntry { state, mac }))
                })
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(entry)) => self
                .is_them(&entry)
                .then_some(NetlinkEvent::Neighbour(None)),
            _ => None,
        }
    }

    fn is_it(&self, link: &LinkMessage) -> bool {
        // Bridges use the same messages, with another family, for their ports.
        link.header.index == self.ifindex && link.header.interface_family == AddressFamily::Unspec
    }

    fn is_them(&self, entry: &NeighbourMessage) -> bool {
        entry.header.ifindex == self.ifindex
            && self.neighbour.is_some_and(|address| is_of(entry, address))
    }
}

fn is_of(entry: &NeighbourMessage, address: IpAddr) -> bool {
    let has = |attribute: &NeighbourAttribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address == IpAddr::V4(*v4),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address == IpAddr::V6(*v6),
        _ => false,
    };
    !entry.header.flags.contains(NeighbourFlags::Proxy) && entry.attributes.iter().any(has)
}

/// The MAC address in an entry, if the entry is for this address and resolved.
pub(in super::super) fn mac_of(entry: &NeighbourMessage, address: IpAddr) -> Option<MacAddr> {
    let state = state(entry.header.state)?;
    let is_known = !matches!(state, State::Incomplete | State::Failed);
    (is_known && is_of(entry, address)).then(|| lladdr(entry))?
}

fn lladdr(entry: &NeighbourMessage) -> Option<MacAddr> {
    let mut attributes = entry.attributes.iter();
    let mac = attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    mac.map(MacAddr::new).filter(|mac| mac.is_unicast())
}

fn state(state: NeighbourState) -> Option<State> {
    Some(match state {
        NeighbourState::Permanent | NeighbourState::Noarp => State::Permanent,
        NeighbourState::Reachable => State::Reachable,
        NeighbourState::Stale | NeighbourState::Delay => State::Stale,
        NeighbourState::Probe => State::Probe,
        NeighbourState::Incomplete => State::Incomplete,
        NeighbourState::Failed => State::Failed,
        // NUD_NONE.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo};

    /// What a socket that monitors interface 7 makes of the kernel's message about a VLAN interface.
    fn understood(monitored: Option<u16>, index: u32, id: u16) -> Option<NetlinkEvent> {
        let socket = NetlinkSocket::open(7, monitored, None).unwrap();
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::Link(1),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
            ]),
        ];
        let payload = NetlinkPayload::from(RouteNetlinkMessage::NewLink(link));
        socket.understand(NetlinkMessage::new(NetlinkHeader::default(), payload))
    }

    #[test]
    fn another_vlan_interface_is_reported_if_it_has_the_monitored_id() {
        let is_link = |event| matches!(event, Some(NetlinkEvent::Link { .. }));
        assert!(is_link(understood(Some(30), 7, 30)));
        assert_eq!(understood(Some(30), 8, 30), Some(NetlinkEvent::OtherVlan));
        assert_eq!(understood(Some(30), 8, 31), None);
        assert_eq!(understood(None, 8, 30), None);
    }
}
