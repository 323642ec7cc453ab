//! The IPv4 header (RFC 791, section 3.1): its fields, its lengths, its fragments.

use super::headers::{self, Fragment, Malformed, Packet};
use super::vlan::VlanTags;
use std::net::{IpAddr, Ipv4Addr};

pub(super) const MIN_BYTES: usize = 20;
pub(super) const TOTAL_LENGTH: usize = 2;
const IDENTIFICATION: usize = 4;
pub(super) const FLAGS_AND_OFFSET: usize = 6;
pub(super) const PROTOCOL: usize = 9;
pub(super) const CHECKSUM: usize = 10;
pub(super) const SOURCE: usize = 12;
pub(super) const DESTINATION: usize = 16;

pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Reads the header at `l3`; `frame_bytes` is the length of the whole frame, of which `frame`
/// may be only the first part. Options are skipped by IHL.
#[inline(always)]
pub(super) fn read(frame: &[u8], l3: usize, frame_bytes: usize) -> Result<Packet<u32>, Malformed> {
    let header = frame
        .get(l3..)
        .and_then(|rest| rest.first_chunk::<MIN_BYTES>())
        .ok_or(Malformed::ShortHeader)?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if header[0] >> 4 != 4 {
        return Err(Malformed::WrongVersion);
    }
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(word(TOTAL_LENGTH));
    if header_bytes < MIN_BYTES || total < header_bytes {
        return Err(Malformed::BadLength);
    }
    if l3 + total > frame_bytes {
        return Err(Malformed::BeyondFrame);
    }
    let protocol = header[PROTOCOL];
    let flags = word(FLAGS_AND_OFFSET);
    let fragment = if flags & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0 {
        None
    } else {
        Some(Fragment {
            id: u32::from(word(IDENTIFICATION)),
            protocol,
            first: flags & FRAGMENT_OFFSET == 0,
        })
    };
    let address = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (ports, tcp) = headers::transport(
        frame,
        l3 + header_bytes,
        l3 + total,
        protocol,
        flags & FRAGMENT_OFFSET != 0,
    )?;
    Ok(Packet {
        source: address(SOURCE),
        destination: address(DESTINATION),
        l3,
        vlan: VlanTags::of(frame, l3),
        ports,
        tcp,
        fragment,
        tos: header[1],
        protocol,
    })
}

/// The address at this offset, without validating the rest of the header.
#[inline]
pub(super) fn address(packet: &[u8], offset: usize) -> Option<IpAddr> {
    let header = packet.first_chunk::<MIN_BYTES>()?;
    let address = header[offset..].first_chunk::<4>()?;
    (header[0] >> 4 == 4).then(|| Ipv4Addr::from(*address).into())
}

/// The offset of the payload of the header at `l3`.
#[inline]
pub(super) fn transport(frame: &[u8], l3: usize) -> Option<usize> {
    let words = frame.get(l3)? & 0x0f;
    Some(l3 + usize::from(words) * 4)
}
