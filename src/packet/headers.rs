//! From a frame to the few fields that the policy looks at.

use super::ethernet::{self, Payload};
use super::{be16, ipv4, ipv6};
use std::net::IpAddr;

/// IP protocol numbers that the policy knows.
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// Neither IPv4 nor IPv6, a runt included.
    NotIp,
    /// The ethertype says IP, the bytes do not.
    Malformed(Malformed),
    /// An IP packet.
    Ip(Packet),
}

/// Why an IP packet could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// The frame ends within the fixed IP header.
    ShortHeader,
    /// The version nibble is not that of the ethertype.
    WrongVersion,
    /// An IHL below 5, or a total length below the header's.
    BadLength,
    /// The packet's own length goes beyond the frame.
    BeyondFrame,
    /// An IPv6 extension header is cut off.
    ShortExtension,
    /// More than [`super::MAX_EXTENSION_HEADERS`] extension headers.
    TooManyExtensions,
    /// TCP or UDP, but the ports are cut off.
    ShortTransport,
}

impl Malformed {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::ShortHeader,
        Self::WrongVersion,
        Self::BadLength,
        Self::BeyondFrame,
        Self::ShortExtension,
        Self::TooManyExtensions,
        Self::ShortTransport,
    ];

    /// The reason's name in counters and explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ShortHeader => "short_header",
            Self::WrongVersion => "wrong_version",
            Self::BadLength => "bad_length",
            Self::BeyondFrame => "beyond_frame",
            Self::ShortExtension => "short_extension",
            Self::TooManyExtensions => "too_many_extensions",
            Self::ShortTransport => "short_transport",
        }
    }
}

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The fields of an IP packet that a verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where the IP header begins, in bytes from the start of the frame.
    pub l3: usize,
    /// IPv4 or IPv6.
    pub version: Version,
    /// The ToS or traffic-class byte.
    pub tos: u8,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The IP protocol number behind every extension header that could be walked.
    pub protocol: u8,
    /// TCP's or UDP's ports; none for another protocol and for a later fragment.
    pub ports: Option<Ports>,
    /// Set where the packet is one part of a larger one.
    pub fragment: Option<Fragment>,
}

/// A pair of transport ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
}

/// Which part of which larger packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The identification field: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// The protocol number that every fragment of the packet carries in its fragment header.
    pub protocol: u8,
    /// Whether this is the part with the transport header.
    pub first: bool,
}

/// What the IP readers hand back: a packet whose transport header has not been looked at.
pub(super) struct Network {
    pub(super) version: Version,
    pub(super) tos: u8,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) fragment: Option<Fragment>,
    /// Where the transport header begins and where the packet ends, from the frame's start.
    pub(super) l4: usize,
    pub(super) end: usize,
}

/// Reads a frame's headers.
///
/// `frame` is the readable part, `frame_bytes` the length of the whole frame: they differ
/// where a jumbo frame lies in several buffers. No input makes it panic.
#[inline]
pub fn parse(frame: &[u8], frame_bytes: usize) -> Headers {
    let (l3, network) = match ethernet::payload(frame) {
        Payload::Ipv4(l3) => (l3, ipv4::read(frame, l3, frame_bytes)),
        Payload::Ipv6(l3) => (l3, ipv6::read(frame, l3, frame_bytes)),
        Payload::Other => return Headers::NotIp,
    };
    match network.and_then(|network| finish(frame, l3, network)) {
        Ok(packet) => Headers::Ip(packet),
        Err(reason) => Headers::Malformed(reason),
    }
}

#[inline]
fn finish(frame: &[u8], l3: usize, network: Network) -> Result<Packet, Malformed> {
    let later = network.fragment.is_some_and(|fragment| !fragment.first);
    let ports = match network.protocol {
        protocol::TCP | protocol::UDP if !later => {
            let readable = &frame[..network.end.min(frame.len())];
            let (Some(source), Some(destination)) =
                (be16(readable, network.l4), be16(readable, network.l4 + 2))
            else {
                return Err(Malformed::ShortTransport);
            };
            Some(Ports {
                source,
                destination,
            })
        }
        _ => None,
    };
    Ok(Packet {
        l3,
        version: network.version,
        tos: network.tos,
        source: network.source,
        destination: network.destination,
        protocol: network.protocol,
        ports,
        fragment: network.fragment,
    })
}

/// The destination address of an IP packet, if the frame holds that much of one. The rest of
/// the packet may be anything: to be delivered, a frame need not make sense to us.
#[inline]
pub fn destination(frame: &[u8]) -> Option<IpAddr> {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => ipv4::destination(frame.get(l3..)?),
        Payload::Ipv6(l3) => ipv6::destination(frame.get(l3..)?),
        Payload::Other => None,
    }
}

impl Packet {
    /// Whether the transport ports are needed to classify this packet and lie in another
    /// fragment: it is a later one of TCP, of UDP, or of an unfinished IPv6 header chain.
    #[inline]
    pub fn ports_are_elsewhere(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.first)
            && (matches!(self.protocol, protocol::TCP | protocol::UDP)
                || self.version == Version::V6 && ipv6::is_extension(self.protocol))
    }
}
