//! The header fields that the policy uses.

use super::vlan::VlanTags;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IP protocol numbers that the policy distinguishes.
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol (RFC 768).
    pub const UDP: u8 = 17;
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Whether this next-header value is an extension header that the parser skips.
#[inline]
pub(super) const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
    )
}

/// The parsed headers of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// Neither IPv4 nor IPv6, or a runt.
    NotIp,
    /// The EtherType is IP's, but the packet is invalid.
    Malformed(Malformed),
    /// An IPv4 packet whose header is valid. Its checksum is not verified.
    V4(Packet<u32>),
    /// An IPv6 packet whose header and extension headers are valid.
    V6(Packet<u128>),
}

/// Why an IP packet cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// The frame ends within the fixed IP header.
    ShortHeader,
    /// The version field contradicts the EtherType.
    WrongVersion,
    /// An IHL below 5, or a total length below the header's.
    BadLength,
    /// The packet's length field exceeds the frame.
    BeyondFrame,
    /// An IPv6 extension header is cut off.
    ShortExtension,
    /// More than [`super::MAX_EXTENSION_HEADERS`] extension headers.
    TooManyExtensions,
    /// TCP or UDP, but the ports are cut off.
    ShortTransport,
}

impl Malformed {
    /// Every reason, in the order of declaration.
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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Version {
    /// IPv4 (RFC 791), EtherType 0x0800.
    #[serde(rename = "4")]
    V4,
    /// IPv6 (RFC 8200), EtherType 0x86dd.
    #[serde(rename = "6")]
    V6,
}

/// An address of either family as a number in host byte order, which is compared and hashed for
/// every frame. Generic code is compiled for each family, and needs no check of the IP version.
pub trait Address: Copy + Ord + Hash {
    /// The IP version of the family.
    const VERSION: Version;

    /// The address as a type of the standard library.
    fn to_ip(self) -> IpAddr;

    /// The address at this offset, if it is there.
    fn read(bytes: &[u8], at: usize) -> Option<Self>;

    /// The bits in which two addresses differ.
    #[must_use]
    fn xor(self, other: Self) -> Self;

    /// Flips these bits of the address at this offset, if it is there.
    fn xor_into(self, bytes: &mut [u8], at: usize);

    /// The sum of the address' 16-bit words, modulo 65,535 (RFC 1071, section 2).
    fn sum(self) -> u16;
}

macro_rules! address {
    ($number:ty, $address:ty, $version:expr) => {
        impl Address for $number {
            const VERSION: Version = $version;

            fn to_ip(self) -> IpAddr {
                <$address>::from(self).into()
            }

            fn read(bytes: &[u8], at: usize) -> Option<Self> {
                let address = bytes.get(at..)?.first_chunk()?;
                Some(Self::from_be_bytes(*address))
            }

            #[inline]
            fn xor(self, other: Self) -> Self {
                self ^ other
            }

            fn xor_into(self, bytes: &mut [u8], at: usize) {
                if let Some(address) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
                    *address = (Self::from_be_bytes(*address) ^ self).to_be_bytes();
                }
            }

            #[allow(
                clippy::cast_possible_truncation,
                reason = "the remainder is below 65,535"
            )]
            fn sum(self) -> u16 {
                (self % 0xffff) as u16
            }
        }
    };
}

address!(u32, Ipv4Addr, Version::V4);
address!(u128, Ipv6Addr, Version::V6);

/// The fields of an IP packet that a verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// The source address, as a number in host byte order.
    pub source: A,
    /// The destination address, as a number in host byte order.
    pub destination: A,
    /// Offset of the IP header in the frame, in bytes.
    pub l3: usize,
    /// The VLAN tags in front of the IP header.
    pub vlan: VlanTags,
    /// TCP or UDP ports; both are 0 for other protocols and later fragments.
    pub ports: Ports,
    /// TCP sequence number and control bits; 0 for other protocols, later fragments, and packets
    /// that end before them.
    pub tcp: Tcp,
    /// Set if the packet is a fragment of a larger one.
    pub fragment: Option<Fragment>,
    /// The ToS or traffic-class byte.
    pub tos: u8,
    /// The IP protocol number after the extension headers that the parser skips.
    pub protocol: u8,
}

/// A pair of transport ports, of TCP or UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The source port, in host byte order.
    pub source: u16,
    /// The destination port, in host byte order.
    pub destination: u16,
}

/// The TCP header fields besides the ports (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// The sequence number, in host byte order.
    pub sequence: u32,
    /// The control bits: CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from the highest to the lowest.
    pub control: u8,
}

impl Tcp {
    /// Opens a connection; with [`Tcp::ACK`], accepts one.
    pub const SYN: u8 = 0x02;
    /// Ends or refuses a connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 0x10;
    /// Bytes from the beginning of the header to the end of the control bits.
    pub(super) const BYTES: usize = 14;

    /// Reads the beginning of a TCP header.
    #[inline(always)]
    pub(super) const fn read(header: &[u8; Self::BYTES]) -> Self {
        Self {
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            control: header[13],
        }
    }
}

/// Identifies the larger packet of a fragment, and whether it is the first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The identification field: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// The protocol field (IPv4) or the fragment header's next header (IPv6).
    pub protocol: u8,
    /// Whether the fragment offset is 0: only this fragment has the transport header.
    pub first: bool,
}

/// The ports and TCP fields of a packet whose transport header begins at `l4` and which ends at
/// `end`, both offsets in the frame. Later fragments and other protocols have neither.
#[inline(always)]
pub(super) fn transport(
    frame: &[u8],
    l4: usize,
    end: usize,
    protocol: u8,
    later_fragment: bool,
) -> Result<(Ports, Tcp), Malformed> {
    if later_fragment || !matches!(protocol, protocol::TCP | protocol::UDP) {
        return Ok((Ports::default(), Tcp::default()));
    }
    let header = frame.get(l4..end.min(frame.len())).unwrap_or_default();
    let bytes = header.first_chunk::<4>().ok_or(Malformed::ShortTransport)?;
    let ports = Ports {
        source: u16::from_be_bytes([bytes[0], bytes[1]]),
        destination: u16::from_be_bytes([bytes[2], bytes[3]]),
    };
    let tcp = match header.first_chunk() {
        Some(header) if protocol == protocol::TCP => Tcp::read(header),
        _ => Tcp::default(),
    };
    Ok((ports, tcp))
}

impl<A: Address> Packet<A> {
    /// The IP version.
    pub const fn version(&self) -> Version {
        A::VERSION
    }

    /// Whether the transport ports are needed to classify this packet but are in another fragment:
    /// it is a later fragment of TCP, UDP, or an incomplete IPv6 header chain.
    #[inline]
    pub fn ports_are_elsewhere(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.first)
            && (matches!(self.protocol, protocol::TCP | protocol::UDP)
                || A::VERSION == Version::V6 && is_extension(self.protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names = BTreeSet::from(Malformed::ALL.map(Malformed::name));
        assert_eq!(names.len(), Malformed::ALL.len());
    }

    #[test]
    fn ports_are_elsewhere_for_later_fragments_that_need_them() {
        fn elsewhere<A: Address>(address: A, protocol: u8, first: Option<bool>) -> bool {
            let packet = Packet {
                source: address,
                destination: address,
                l3: 14,
                vlan: VlanTags::UNTAGGED,
                ports: Ports::default(),
                tcp: Tcp::default(),
                fragment: first.map(|first| Fragment {
                    id: 7,
                    protocol,
                    first,
                }),
                tos: 0,
                protocol,
            };
            packet.ports_are_elsewhere()
        }
        const ICMP: u8 = 1;
        for (protocol, v4, v6) in [
            (protocol::TCP, true, true),
            (protocol::UDP, true, true),
            (ICMP, false, false),
            // In IPv6 the header chain continues; in IPv4 this is a protocol like any other.
            (DESTINATION_OPTIONS, false, true),
        ] {
            assert_eq!(elsewhere(0_u32, protocol, Some(false)), v4, "{protocol}");
            assert_eq!(elsewhere(0_u128, protocol, Some(false)), v6, "{protocol}");
            for first in [Some(true), None] {
                assert!(!elsewhere(0_u32, protocol, first), "{protocol}");
                assert!(!elsewhere(0_u128, protocol, first), "{protocol}");
            }
        }
    }
}
