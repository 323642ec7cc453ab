//! The frames that nearly all are: IPv4 without options or IPv6 without extension headers, in one
//! piece, TCP or UDP, and long enough for TCP's control bits.
//!
//! In such a frame every field is at a fixed place behind the tags, so one look at the length pays
//! for all of them. What these readers make of a frame is what [`super::parse`] makes of it, or
//! nothing.

use super::ethernet::{ETHERNET_HEADER_BYTES, IPV4, IPV6};
use super::headers::{Packet, Ports, Tcp, protocol};
use super::{ipv4, ipv6};

/// Ethertype, version, and IPv4's header length.
const START_V4: u32 = (IPV4 as u32) << 16 | 0x4500;
const START_V6: u32 = (IPV6 as u32) << 16 | 0x6000;
/// From an IPv4 header's flags to its protocol: what a packet has there that is no fragment, and
/// what else does not matter (do not fragment, time to live).
const WHOLE_OF: u32 = u32::from_ne_bytes([0x3f, 0xff, 0, 0xff]);
const WHOLE_TCP: u32 = u32::from_ne_bytes([0, 0, 0, protocol::TCP]);
const WHOLE_UDP: u32 = u32::from_ne_bytes([0, 0, 0, protocol::UDP]);

const L3: usize = ETHERNET_HEADER_BYTES;
const BYTES_V4: usize = L3 + ipv4::MIN_BYTES + Tcp::BYTES;
const BYTES_V6: usize = L3 + ipv6::HEADER_BYTES + Tcp::BYTES;

/// The headers of a plain IPv4 frame with so many bytes of tags, as [`super::tag_bytes`] says. The
/// other arguments are those of [`super::parse`].
#[inline(always)]
pub fn plain_v4(frame: &[u8], tags: usize, frame_bytes: usize) -> Option<Packet<u32>> {
    let head = frame.get(tags..)?.first_chunk::<BYTES_V4>()?;
    // Ethertype, version and header length are next to each other, and the ToS follows.
    let start = u32::from_be_bytes(*at(head, L3 - 2));
    // Beyond the control bits: in the packet, and in the frame. Wrapped, a number is too large.
    let total = usize::from(u16::from_be_bytes(*at(head, L3 + ipv4::TOTAL_LENGTH)));
    let payload = total.wrapping_sub(BYTES_V4 - L3);
    let room = frame_bytes.checked_sub(tags + BYTES_V4)?;
    let middle = u32::from_ne_bytes(*at(head, L3 + ipv4::FLAGS_AND_OFFSET));
    let plain = start & 0xffff_ff00 == START_V4
        && matches!(middle & WHOLE_OF, WHOLE_TCP | WHOLE_UDP)
        && payload <= room;
    plain.then(|| Packet {
        source: u32::from_be_bytes(*at(head, L3 + ipv4::SOURCE)),
        destination: u32::from_be_bytes(*at(head, L3 + ipv4::DESTINATION)),
        l3: tags + L3,
        ports: ports(head),
        tcp: tcp(head, head[L3 + ipv4::PROTOCOL]),
        fragment: None,
        tos: head[L3 + 1],
        protocol: head[L3 + ipv4::PROTOCOL],
    })
}

/// The headers of a plain IPv6 frame.
#[inline(always)]
pub fn plain_v6(frame: &[u8], tags: usize, frame_bytes: usize) -> Option<Packet<u128>> {
    let head = frame.get(tags..)?.first_chunk::<BYTES_V6>()?;
    let start = u32::from_be_bytes(*at(head, L3 - 2));
    let total = usize::from(u16::from_be_bytes(*at(head, L3 + ipv6::PAYLOAD_LENGTH)));
    let payload = total.wrapping_sub(Tcp::BYTES);
    let room = frame_bytes.checked_sub(tags + BYTES_V6)?;
    let protocol = head[L3 + ipv6::NEXT_HEADER];
    let plain = start & 0xffff_f000 == START_V6
        && matches!(protocol, protocol::TCP | protocol::UDP)
        && payload <= room;
    plain.then(|| Packet {
        source: u128::from_be_bytes(*at(head, L3 + ipv6::SOURCE)),
        destination: u128::from_be_bytes(*at(head, L3 + ipv6::DESTINATION)),
        l3: tags + L3,
        ports: ports(head),
        tcp: tcp(head, protocol),
        fragment: None,
        tos: head[L3] << 4 | head[L3 + 1] >> 4,
        protocol,
    })
}

/// The ports of a plain frame.
#[inline(always)]
fn ports<const N: usize>(head: &[u8; N]) -> Ports {
    Ports {
        source: u16::from_be_bytes(*at(head, N - Tcp::BYTES)),
        destination: u16::from_be_bytes(*at(head, N - Tcp::BYTES + 2)),
    }
}

/// What else TCP's header says, at the end of a plain frame's headers.
#[inline(always)]
fn tcp<const N: usize>(head: &[u8; N], protocol: u8) -> Tcp {
    match protocol {
        protocol::TCP => Tcp::read(at(head, N - Tcp::BYTES)),
        _ => Tcp::default(),
    }
}

/// The bytes of a field that is within the headers, as the compiler sees: all offsets are
/// constants, so nothing is left of the checks.
#[inline(always)]
fn at<const FIELD: usize, const N: usize>(head: &[u8; N], offset: usize) -> &[u8; FIELD] {
    match head[offset..].first_chunk() {
        Some(field) => field,
        None => const { &[0; FIELD] },
    }
}
