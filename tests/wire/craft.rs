//! Frames built by hand, so that the expectations of tests are independent of the code under test.

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};
pub(crate) use exitmark_lab::site::mac;
use exitmark_lab::site::{
    CLEARNET_MAC, HOST_MAC, HOST_V4, HOST_V6, INCOMING_MAC, OR_PORT, RELAY_V4, RELAY_V6, SERVER_V4,
    SERVER_V6, TORNET_MAC,
};
use std::net::IpAddr;

pub(crate) const AF11: u8 = 0x28;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// A VLAN with priority 5 and the drop-eligible bit.
pub(crate) const VLAN: (u16, u16) = (0x8100, 0xb064);
/// An outer provider tag.
pub(crate) const QINQ: (u16, u16) = (0x88a8, 0x7007);

pub(crate) fn ethernet(
    destination: &str,
    source: &str,
    tags: &[(u16, u16)],
    ethertype: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = [mac(destination), mac(source)].concat();
    for (kind, tag) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The fragment fields of a packet; the offset is in units of 8 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FragmentFields {
    pub(crate) id: u16,
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

/// An IP packet to be built, with the fields that tests vary.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) tos: u8,
    pub(crate) hops: u8,
    pub(crate) protocol: u8,
    pub(crate) part: Option<FragmentFields>,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            tos: 0,
            hops: 61,
            protocol,
            part: None,
            payload,
        }
    }

    pub(crate) fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub(crate) fn part(mut self, id: u16, offset: u16, more: bool) -> Self {
        self.part = Some(FragmentFields { id, offset, more });
        self
    }

    pub(crate) const fn ethertype(&self) -> u16 {
        match self.source {
            IpAddr::V4(_) => IPV4,
            IpAddr::V6(_) => IPV6,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = u16::try_from(self.payload.len()).unwrap();
                let protocol = IpNumber(self.protocol);
                let (source, destination) = (source.octets(), destination.octets());
                let mut header =
                    Ipv4Header::new(length, self.hops, protocol, source, destination).unwrap();
                header.dscp = (self.tos >> 2).try_into().unwrap();
                header.ecn = (self.tos & 3).try_into().unwrap();
                if let Some(part) = self.part {
                    header.dont_fragment = false;
                    header.identification = part.id;
                    header.fragment_offset = IpFragOffset::try_new(part.offset).unwrap();
                    header.more_fragments = part.more;
                }
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &self.payload].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                // A fragment header (RFC 8200 section 4.5).
                let fragment = self.part.map(|part| {
                    let offset = (part.offset << 3 | u16::from(part.more)).to_be_bytes();
                    let id = u32::from(part.id).to_be_bytes();
                    [&[self.protocol, 0][..], &offset, &id].concat()
                });
                let next = fragment.as_ref().map_or(self.protocol, |_| 44);
                let payload = [fragment.unwrap_or_default(), self.payload.clone()].concat();
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::try_new(0xa_5a5a).unwrap(),
                    payload_length: u16::try_from(payload.len()).unwrap(),
                    next_header: IpNumber(next),
                    hop_limit: self.hops,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                [&header.to_bytes()[..], &payload].concat()
            }
            _ => unreachable!("a packet has one family"),
        }
    }

    /// The packet in a frame of the host to its router.
    pub(crate) fn outbound(&self, tags: &[(u16, u16)]) -> Vec<u8> {
        self.framed(CLEARNET_MAC, HOST_MAC, tags)
    }

    /// The packet in a frame of the host, with the mark.
    pub(crate) fn marked(&self) -> Vec<u8> {
        self.clone().tos(AF11).outbound(&[])
    }

    /// The packet in a frame of the host that the box has steered.
    pub(crate) fn steered(&self) -> Vec<u8> {
        self.framed(TORNET_MAC, INCOMING_MAC, &[])
    }

    /// The packet in a frame of the clearnet's router to the host.
    pub(crate) fn inbound(&self, tags: &[(u16, u16)]) -> Vec<u8> {
        self.framed(HOST_MAC, CLEARNET_MAC, tags)
    }

    /// The packet in a frame of the router on `incoming` to the box.
    pub(crate) fn incoming(&self, tags: &[(u16, u16)]) -> Vec<u8> {
        self.framed(INCOMING_MAC, TORNET_MAC, tags)
    }

    /// The same frame as the box delivers it to the host.
    pub(crate) fn delivered(&self, tags: &[(u16, u16)]) -> Vec<u8> {
        self.framed(HOST_MAC, TORNET_MAC, tags)
    }

    pub(crate) fn framed(&self, to: &str, from: &str, tags: &[(u16, u16)]) -> Vec<u8> {
        ethernet(to, from, tags, self.ethertype(), &self.bytes())
    }
}

/// Pseudorandom bytes, different for each `seed`.
pub(crate) fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// A TCP segment with this many bytes of payload. Its checksum is not computed.
pub(crate) fn segment(source: u16, destination: u16, bytes: usize) -> Vec<u8> {
    let header = TcpHeader::new(source, destination, 0x0102_0304, 4096);
    [&header.to_bytes()[..], &noise(source.into(), bytes)].concat()
}

/// The (host, server, relay) addresses of IPv4 and of IPv6.
pub(crate) fn families() -> [(IpAddr, IpAddr, IpAddr); 2] {
    [
        (HOST_V4.into(), SERVER_V4.into(), RELAY_V4.into()),
        (HOST_V6.into(), SERVER_V6.into(), RELAY_V6.into()),
    ]
}

pub(crate) fn exit(family: usize, bytes: usize) -> Packet {
    let (host, server, _) = families()[family];
    Packet::new(host, server, TCP, segment(40_000, 443, bytes))
}

pub(crate) fn relay(family: usize, bytes: usize) -> Packet {
    let (host, _, relay) = families()[family];
    Packet::new(host, relay, TCP, segment(40_001, OR_PORT, bytes))
}

/// The server's answer to exit traffic.
pub(crate) fn answer(family: usize, bytes: usize) -> Packet {
    let (host, server, _) = families()[family];
    Packet::new(server, host, TCP, segment(443, 40_000, bytes))
}

pub(crate) fn relay_answer(family: usize, bytes: usize) -> Packet {
    let (host, _, relay) = families()[family];
    Packet::new(relay, host, TCP, segment(OR_PORT, 40_001, bytes))
}
