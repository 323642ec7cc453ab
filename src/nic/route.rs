//! The route of a connection that is not opened yet (RTM_GETROUTE, `ip route get`). Sends no packet.
//!
//! Sources: rtnetlink(7), the kernel's net/ipv4/route.c and net/ipv6/route.c.

use super::{NicError, connect, converse, unanswered};
use futures_util::stream::TryStreamExt;
use nix::net::if_::if_indextoname;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The protocol number of TCP (RFC 9293).
const TCP: u8 = 6;

/// A TCP connection of this machine that is to be routed.
#[derive(Clone, Copy)]
pub struct RouteQuery {
    /// The address and port that are connected to.
    pub destination: SocketAddr,
    /// The address to which the socket is bound, of the same IP version; an address of this machine.
    pub source: Option<IpAddr>,
    /// The fwmark of the socket (`SO_MARK`); 0: none.
    pub fwmark: u32,
    /// The index of the NIC to which the socket is bound (`SO_BINDTOIFINDEX`); 0: any.
    pub interface: u32,
    /// The user ID of the socket; `None`: that of this process.
    pub user: Option<u32>,
}

/// The route of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name of the NIC by which packets leave.
    pub nic: String,
    /// The source address of the packets.
    pub source: Option<IpAddr>,
}

impl RouteQuery {
    /// Queries the route of the connection; `None` if there is none.
    ///
    /// # Errors
    /// [`NicError::Netlink`]: the socket cannot be made, or the kernel does not answer.
    pub fn route(&self) -> Result<Option<Route>, NicError> {
        converse(async {
            let handle = connect()?;
            let Some(answer) = get(&handle, self.message(RouteFlags::empty())).await? else {
                return Ok(None);
            };
            // IPv4 assumes the destination on the link of a socket's NIC that has no route. Then no
            // entry of a table matches.
            if self.interface != 0 {
                let entry = get(&handle, self.message(RouteFlags::FibMatch)).await?;
                if entry.is_none() {
                    return Ok(None);
                }
            }
            Ok(self.read(&answer))
        })
    }

    fn message(&self, flags: RouteFlags) -> RouteMessage {
        let mut message = RouteMessage::default();
        let (family, length) = match self.destination {
            SocketAddr::V4(_) => (AddressFamily::Inet, 32),
            SocketAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.header.flags = flags;
        let attributes = &mut message.attributes;
        attributes.extend([
            RouteAttribute::Destination(self.destination.ip().into()),
            RouteAttribute::IpProto(TCP),
            RouteAttribute::Dport(self.destination.port()),
        ]);
        if let Some(source) = self.source {
            message.header.source_prefix_length = length;
            attributes.push(RouteAttribute::Source(source.into()));
        }
        if self.fwmark != 0 {
            attributes.push(RouteAttribute::Mark(self.fwmark));
        }
        if self.interface != 0 {
            attributes.push(RouteAttribute::Oif(self.interface));
        }
        attributes.extend(self.user.map(RouteAttribute::Uid));
        message
    }

    fn read(&self, answer: &RouteMessage) -> Option<Route> {
        let (mut nic, mut source) = (None, self.source);
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => nic = if_indextoname(*index).ok(),
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                    source = source.or(Some(IpAddr::V4(*address)));
                }
                RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                    source = source.or(Some(IpAddr::V6(*address)));
                }
                _ => {}
            }
        }
        Some(Route {
            nic: nic?.to_string_lossy().into_owned(),
            source,
        })
    }
}

async fn get(
    handle: &rtnetlink::Handle,
    message: RouteMessage,
) -> Result<Option<RouteMessage>, NicError> {
    match Box::pin(handle.route().get(message).execute())
        .try_next()
        .await
    {
        Ok(answer) => Ok(answer),
        // No route, one that refuses (ip-route(8), `unreachable`), or a kernel without the IP version.
        Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(unanswered(error)),
    }
}

/// Whether the kernel drops IPv4 packets that arrive at this NIC from a source to which it would
/// send by another one (ip-sysctl, `rp_filter` = 1).
pub fn filters_strictly(nic: &str) -> bool {
    let value = |of: &str| -> u8 {
        let path = format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    // The larger of the two applies.
    value("all").max(value(nic)) == 1
}
