//! The IPv6 header and its extension headers (RFC 8200).

use super::headers::{self, FRAGMENT, Fragment, Malformed, Packet, is_extension};
use super::vlan::VlanTags;
use std::net::{IpAddr, Ipv6Addr};

/// The most extension headers that are skipped; a longer chain counts as malformed.
pub const MAX_EXTENSION_HEADERS: usize = 8;

pub(super) const HEADER_BYTES: usize = 40;
pub(super) const PAYLOAD_LENGTH: usize = 4;
pub(super) const NEXT_HEADER: usize = 6;
pub(super) const SOURCE: usize = 8;
pub(super) const DESTINATION: usize = 24;

/// Reads the header at `l3` and its extension headers, up to the transport header. The arguments
/// are those of the IPv4 reader.
#[inline(always)]
pub(super) fn read(frame: &[u8], l3: usize, frame_bytes: usize) -> Result<Packet<u128>, Malformed> {
    let header = frame
        .get(l3..)
        .and_then(|rest| rest.first_chunk::<HEADER_BYTES>())
        .ok_or(Malformed::ShortHeader)?;
    if header[0] >> 4 != 6 {
        return Err(Malformed::WrongVersion);
    }
    let payload = u16::from_be_bytes([header[PAYLOAD_LENGTH], header[PAYLOAD_LENGTH + 1]]);
    let end = l3 + HEADER_BYTES + usize::from(payload);
    if end > frame_bytes {
        return Err(Malformed::BeyondFrame);
    }
    let mut chain = Chain {
        protocol: header[NEXT_HEADER],
        fragment: None,
        l4: l3 + HEADER_BYTES,
    };
    if is_extension(chain.protocol) {
        chain.walk(frame, end)?;
    }
    let address = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&header[at..at + 16]);
        u128::from_be_bytes(bytes)
    };
    let (ports, tcp) = headers::transport(
        frame,
        chain.l4,
        end,
        chain.protocol,
        chain.fragment.is_some_and(|fragment| !fragment.first),
    )?;
    Ok(Packet {
        source: address(SOURCE),
        destination: address(DESTINATION),
        l3,
        vlan: VlanTags::of(frame, l3),
        ports,
        tcp,
        fragment: chain.fragment,
        tos: header[0] << 4 | header[1] >> 4,
        protocol: chain.protocol,
    })
}

/// The address at this offset, without validating the rest of the header.
#[inline]
pub(super) fn address(packet: &[u8], offset: usize) -> Option<IpAddr> {
    let header = packet.first_chunk::<HEADER_BYTES>()?;
    let address = header[offset..].first_chunk::<16>()?;
    (header[0] >> 4 == 6).then(|| Ipv6Addr::from(*address).into())
}

/// The offset of the payload after the header at `l3` and its extension headers.
#[inline]
pub(super) fn transport(frame: &[u8], l3: usize) -> Option<usize> {
    let mut chain = Chain {
        protocol: *frame.get(l3 + NEXT_HEADER)?,
        fragment: None,
        l4: l3 + HEADER_BYTES,
    };
    if is_extension(chain.protocol) {
        chain.walk(frame, frame.len()).ok()?;
    }
    Some(chain.l4)
}

/// The position in a chain of extension headers.
struct Chain {
    /// The type of the header at `l4`.
    protocol: u8,
    /// The fragment header's fields, if there was one.
    fragment: Option<Fragment>,
    /// Offset of the current header in the frame.
    l4: usize,
}

impl Chain {
    /// Skips extension headers. Stops after the fragment header of a later fragment: what follows
    /// there is payload (RFC 8200, section 4.5).
    #[cold]
    fn walk(&mut self, frame: &[u8], end: usize) -> Result<(), Malformed> {
        let readable = end.min(frame.len());
        for _ in 0..MAX_EXTENSION_HEADERS {
            let extension = frame
                .get(self.l4..readable)
                .and_then(|rest| rest.first_chunk::<8>())
                .ok_or(Malformed::ShortExtension)?;
            let kind = self.protocol;
            self.protocol = extension[0];
            if kind == FRAGMENT {
                self.l4 += 8;
                let [_, _, high, low, id @ ..] = *extension;
                let offset_and_more = u16::from_be_bytes([high, low]);
                let (first, more) = (offset_and_more >> 3 == 0, offset_and_more & 1 == 1);
                // Offset 0 without more fragments is an atomic fragment (RFC 6946): a whole packet.
                if !first || more {
                    self.fragment = Some(Fragment {
                        id: u32::from_be_bytes(id),
                        protocol: self.protocol,
                        first,
                    });
                }
                if !first {
                    return Ok(());
                }
            } else {
                self.l4 += (usize::from(extension[1]) + 1) * 8;
            }
            if !is_extension(self.protocol) {
                return Ok(());
            }
        }
        Err(Malformed::TooManyExtensions)
    }
}
