//! Mirrored frames: a switch that sends its mirror over a network puts each frame into a packet of
//! its own, with ERSPAN type II or III (draft-foschiano-erspan) or VXLAN (RFC 7348). One level is
//! unwrapped. Implements the rule of bpf/monitor.bpf.c; tests compare the two.
//!
//! Only what the configuration names is unwrapped: a host that can send such a packet to the NIC
//! can have any packet counted.

use exitmark_policy::packet::{Malformed, protocol};

/// The port of VXLAN (RFC 7348, section 5).
pub const VXLAN_PORT: u16 = 4789;

/// The kinds of packets that carry mirrored frames; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unwrap {
    /// GRE with ERSPAN type II or III.
    pub erspan: bool,
    /// UDP to this port with VXLAN.
    pub vxlan: Option<u16>,
}

const ETHERNET_HEADER_BYTES: usize = 14;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
/// Of the outer frame, as in bpf/frame.h.
const MAX_TAGS: usize = 4;

const GRE: u8 = 47;
/// A sequence number, and no other field (RFC 2784, RFC 2890).
const GRE_SEQUENCE_ONLY: u16 = 0x1000;
const GRE_BYTES: usize = 8;
const ERSPAN_II: u16 = 0x88be;
const ERSPAN_III: u16 = 0x22eb;
const ERSPAN_II_BYTES: usize = 8;
const ERSPAN_III_BYTES: usize = 12;
/// The platform-specific subheader, if the O bit is set.
const SUBHEADER_BYTES: usize = 8;
const UDP_BYTES: usize = 8;
const VXLAN_BYTES: usize = 8;
/// The I flag: the VXLAN network identifier is valid.
const VXLAN_FLAGS: u8 = 0x08;

impl Unwrap {
    /// Whether every frame is judged as it is.
    pub const fn is_none(self) -> bool {
        !self.erspan && self.vxlan.is_none()
    }

    /// The mirrored frame in a frame, which may be truncated; the frame itself if it carries none.
    ///
    /// # Errors
    /// It carries one, but its headers are cut off or contradict the formats.
    #[inline]
    pub fn open<'f>(&self, frame: &'f [u8]) -> Result<&'f [u8], Malformed> {
        match self.is_none() {
            true => Ok(frame),
            false => self.find(frame).map(|mirrored| mirrored.unwrap_or(frame)),
        }
    }

    fn find<'f>(&self, frame: &'f [u8]) -> Result<Option<&'f [u8]>, Malformed> {
        let Some(Outer { protocol, at, end }) = outer(frame) else {
            return Ok(None);
        };
        let is_gre = protocol == GRE && self.erspan;
        let port = self.vxlan.filter(|_| protocol == protocol::UDP);
        if !is_gre && port.is_none() {
            return Ok(None);
        }
        let frame = &frame[..end.min(frame.len())];
        let inner = match port {
            None => erspan(frame, at)?,
            Some(port) => vxlan(frame, at, port)?,
        };
        let Some(mirrored) = inner.map(|range| frame.get(range)) else {
            return Ok(None);
        };
        mirrored
            .filter(|mirrored| mirrored.len() >= ETHERNET_HEADER_BYTES)
            .ok_or(Malformed::ShortHeader)
            .map(Some)
    }
}

/// What an outer packet carries.
struct Outer {
    protocol: u8,
    /// Offsets in the frame: of the IP packet's payload, and of its end.
    at: usize,
    end: usize,
}

/// Reads the outer headers. Later fragments and IPv6 extension headers carry no mirrored frame; a
/// first fragment does.
fn outer(frame: &[u8]) -> Option<Outer> {
    let mut ip = ETHERNET_HEADER_BYTES;
    let mut ethertype = be16(frame, ip - 2)?;
    for _ in 0..MAX_TAGS {
        if !matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
            break;
        }
        ip += 4;
        ethertype = be16(frame, ip - 2)?;
    }
    let packet = frame.get(ip..)?;
    match ethertype {
        TYPE_IPV4 => {
            let header = packet.first_chunk::<20>()?;
            let length = usize::from(header[0] & 0x0f) * 4;
            let total = usize::from(be16(packet, 2)?);
            let is_later = be16(packet, 6)? & 0x1fff != 0;
            let is_valid = header[0] >> 4 == 4 && length >= 20 && total >= length;
            (is_valid && !is_later).then_some(Outer {
                protocol: header[9],
                at: ip + length,
                end: ip + total,
            })
        }
        TYPE_IPV6 => {
            let header = packet.first_chunk::<40>()?;
            let at = ip + 40;
            (header[0] >> 4 == 6).then_some(Outer {
                protocol: header[6],
                at,
                end: at + usize::from(be16(packet, 4)?),
            })
        }
        _ => None,
    }
}

type Range = std::ops::Range<usize>;

/// Where the mirrored frame of GRE is; `None` if it carries something else.
fn erspan(frame: &[u8], gre: usize) -> Result<Option<Range>, Malformed> {
    let word = |at| be16(frame, at).ok_or(Malformed::ShortHeader);
    let erspan = gre + GRE_BYTES;
    if frame.len() < erspan {
        return Err(Malformed::ShortHeader);
    }
    let (bytes, version) = match word(gre + 2)? {
        ERSPAN_II => (ERSPAN_II_BYTES, 1),
        ERSPAN_III => (ERSPAN_III_BYTES, 2),
        _ => return Ok(None),
    };
    if word(gre)? != GRE_SEQUENCE_ONLY {
        return Err(Malformed::WrongVersion);
    }
    let mut inner = erspan + bytes;
    if frame.len() < inner {
        return Err(Malformed::ShortHeader);
    }
    if word(erspan)? >> 12 != version {
        return Err(Malformed::WrongVersion);
    }
    if version == 2 {
        let last = word(inner - 2)?;
        // The frame type; 0 is Ethernet.
        if last >> 10 & 0x1f != 0 {
            return Err(Malformed::WrongVersion);
        }
        inner += usize::from(last & 1) * SUBHEADER_BYTES;
    }
    Ok(Some(inner..frame.len()))
}

/// Where the mirrored frame of UDP is; `None` if it goes to another port.
fn vxlan(frame: &[u8], udp: usize, port: u16) -> Result<Option<Range>, Malformed> {
    let word = |at| be16(frame, at).ok_or(Malformed::ShortHeader);
    let vxlan = udp + UDP_BYTES;
    if frame.len() < vxlan {
        return Err(Malformed::ShortHeader);
    }
    if word(udp + 2)? != port {
        return Ok(None);
    }
    let inner = vxlan + VXLAN_BYTES;
    let length = usize::from(word(udp + 4)?);
    if length < UDP_BYTES + VXLAN_BYTES + ETHERNET_HEADER_BYTES {
        return Err(Malformed::BadLength);
    }
    match frame.get(vxlan) {
        Some(flags) if frame.len() >= inner && flags & VXLAN_FLAGS != 0 => {
            Ok(Some(inner..frame.len().min(udp + length)))
        }
        Some(_) if frame.len() >= inner => Err(Malformed::WrongVersion),
        _ => Err(Malformed::ShortHeader),
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}
