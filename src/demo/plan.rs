//! The demo's flows and the expected treatment of each: the ground truth.
//!
//! A frame's kind follows from this plan alone, by destination and port as etherparse reads them.
//! It must never use `policy`, which is under test.

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use exitmark_lab::site::{OR_PORT, RELAY_V4, RELAY_V6, SERVER_V4, SERVER_V6};
use std::net::{IpAddr, SocketAddr};

/// AF11, the code point that marks exit traffic.
pub(super) const MARK: u8 = 10;
/// The port of HTTPS, the most common exit traffic.
pub(super) const WEB: u16 = 443;
/// The port of the bulk-data sink on the clearnet.
pub(super) const BULK: u16 = 80;
/// The port of the name servers.
pub(super) const DNS: u16 = 53;
/// The port on which the host itself accepts connections.
pub(super) const SSH: u16 = 22;
/// IEEE 802 Local Experimental Ethertype 1.
pub(super) const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// The expected treatment of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Mark it, send it to the uplink.
    Exit,
    /// Give it new MAC addresses, send it to the network that carries Tor traffic.
    Relay,
    /// Leave it alone, send it to the uplink.
    Other,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Relay => "relay",
            Self::Other => "other",
        }
    }
}

/// How a frame is matched with a flow.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    TcpTo(IpAddr, u16),
    TcpFrom(u16),
    /// RST without ACK: the host's kernel answers segments of unknown connections, the markers too.
    Refusal,
    UdpTo(u16),
    Ping,
    /// ARP, and ICMPv6 other than echo requests.
    Neighbours,
    Rest,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) title: &'static str,
    pub(super) kind: Kind,
    pattern: Pattern,
}

const fn flow(title: &'static str, kind: Kind, pattern: Pattern) -> Flow {
    Flow {
        title,
        kind,
        pattern,
    }
}

const SERVER: IpAddr = IpAddr::V4(SERVER_V4);
const SERVER6: IpAddr = IpAddr::V6(SERVER_V6);
const RELAY: IpAddr = IpAddr::V4(RELAY_V4);
const RELAY6: IpAddr = IpAddr::V6(RELAY_V6);

/// All flows; a frame belongs to the first one that matches.
pub(super) const FLOWS: [Flow; 12] = {
    use Kind::{Exit, Other, Relay};
    use Pattern::{Neighbours, Ping, Refusal, Rest, TcpFrom, TcpTo, UdpTo};
    [
        flow("web page, IPv4", Exit, TcpTo(SERVER, WEB)),
        flow("web page, IPv6", Exit, TcpTo(SERVER6, WEB)),
        flow("web page at a relay's IP", Exit, TcpTo(RELAY, WEB)),
        flow("relay connection, IPv4", Relay, TcpTo(RELAY, OR_PORT)),
        flow("relay connection, IPv6", Relay, TcpTo(RELAY6, OR_PORT)),
        flow("DNS over TCP", Other, TcpTo(SERVER, DNS)),
        flow("DNS over UDP, 4 and 6", Other, UdpTo(DNS)),
        flow("ssh, the host's answers", Other, TcpFrom(SSH)),
        flow("ping, 4 and 6", Other, Ping),
        flow("ARP and ND", Other, Neighbours),
        flow("refusals, RST", Other, Refusal),
        flow("non-IP frames", Other, Rest),
    ]
};

/// Which flow a frame from the host belongs to, as an index into [`FLOWS`].
pub(super) fn flow_of(frame: &[u8]) -> usize {
    let packet = SlicedPacket::from_ethernet(frame).ok();
    let position = FLOWS
        .iter()
        .position(|flow| flow.pattern.fits(packet.as_ref()));
    position.unwrap_or(FLOWS.len() - 1)
}

impl Pattern {
    fn fits(self, packet: Option<&SlicedPacket<'_>>) -> bool {
        let Some(packet) = packet else {
            return matches!(self, Self::Rest);
        };
        match (self, &packet.transport) {
            (Self::TcpTo(..) | Self::TcpFrom(_), Some(TransportSlice::Tcp(tcp)))
                if tcp.rst() && !tcp.ack() =>
            {
                false
            }
            (Self::Refusal, Some(TransportSlice::Tcp(tcp))) => tcp.rst() && !tcp.ack(),
            (Self::TcpTo(address, port), Some(TransportSlice::Tcp(tcp))) => {
                destination(packet) == Some(address) && tcp.destination_port() == port
            }
            (Self::TcpFrom(port), Some(TransportSlice::Tcp(tcp))) => tcp.source_port() == port,
            (Self::UdpTo(port), Some(TransportSlice::Udp(udp))) => udp.destination_port() == port,
            (Self::Ping, Some(TransportSlice::Icmpv4(icmp))) => {
                matches!(icmp.icmp_type(), Icmpv4Type::EchoRequest(_))
            }
            (Self::Ping, Some(TransportSlice::Icmpv6(icmp))) => {
                matches!(icmp.icmp_type(), Icmpv6Type::EchoRequest(_))
            }
            (Self::Neighbours, Some(TransportSlice::Icmpv6(_))) => true,
            (Self::Neighbours, None) => matches!(packet.net, Some(NetSlice::Arp(_))),
            (Self::Rest, _) => true,
            _ => false,
        }
    }
}

fn destination(packet: &SlicedPacket<'_>) -> Option<IpAddr> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => Some(ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => Some(ip.header().destination_addr().into()),
        NetSlice::Arp(_) => None,
    }
}

pub(super) fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let source = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
        NetSlice::Arp(_) => return None,
    };
    Some((source, destination(&packet)?))
}

/// The TCP endpoints of the servers on the clearnet.
pub(super) fn clearnet_tcp() -> [SocketAddr; 4] {
    // The web server at the relay's address is reached over the clearnet.
    [(SERVER, WEB), (SERVER6, WEB), (RELAY, WEB), (SERVER, DNS)].map(SocketAddr::from)
}

/// The relay's TCP endpoints.
pub(super) fn tornet_tcp() -> [SocketAddr; 2] {
    [RELAY, RELAY6].map(|address| (address, OR_PORT).into())
}

/// The name server's UDP endpoints.
pub(super) fn name_servers() -> [SocketAddr; 2] {
    [SERVER, SERVER6].map(|address| (address, DNS).into())
}
