//! Redaction of captured frames: selects the bytes of a frame that an operator may see.
//!
//! The shown frame starts as zeros, and known fields are copied into it, so unknown fields are
//! hidden. Fields that reveal hidden ones or identify a packet are hidden too: checksums narrow
//! an address down to one in 2^16, identifications, sequence numbers, timestamps and flow labels
//! are the same wherever the packet is captured, and a hop count reveals a distance.

use super::auditor::Auditor;
use super::wire::Wire;
use crate::observe::CaptureRequest;
use exitmark_policy::packet::{MacAddr, Version};
use exitmark_policy::{Class, Rule, Snapshot};
use std::net::IpAddr;
use std::ops::Range;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// ICMPv6 types of neighbour discovery (RFC 4861): router solicitation to redirect.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// The most extension headers that are parsed; the engines count more as malformed.
const MAX_EXTENSIONS: usize = 8;
/// The known TCP options, by kind and length: maximum segment size (RFC 9293, section 3.7.1),
/// window scale (RFC 7323, section 2.2), SACK permitted (RFC 2018) and timestamps (RFC 7323,
/// section 3.2).
const NAMED_OPTIONS: [(u8, usize); 4] = [(2, 4), (3, 3), (4, 2), (8, 10)];
/// The options whose value is shown if the host sent it.
const SHOWN_OPTIONS: [u8; 2] = [2, 3];

/// The site's own addresses, which a capture always shows.
pub(super) struct Site<'a> {
    /// The host's IP addresses, and the relays.
    pub(super) snapshot: &'a Snapshot,
    /// Whether the relay set is from a document that is not stale.
    pub(super) knows_relays: bool,
    /// Knows the MAC addresses of the hosts, the box and the next hops.
    pub(super) auditor: &'a Auditor,
}

impl Site<'_> {
    /// Whether the other side's port may be shown. The list of relays is public, and many relays
    /// have a unique port, so a relay's port would identify it. Inbound frames have no class that
    /// excludes relays, and without a current relay set a class does not exclude them either.
    fn shows_port(&self, rule: Option<Rule>, other: (IpAddr, u16)) -> bool {
        let may_be_shown = match rule.map(Rule::class) {
            Some(Class::Resolver) => true,
            Some(Class::Exit | Class::Exempt | Class::Reply) => self.knows_relays,
            _ => false,
        };
        may_be_shown && !self.snapshot.relays.contains(other.0, other.1)
    }

    fn has_mac(&self, octets: &[u8]) -> bool {
        let mac = octets.first_chunk().map(|octets| MacAddr::new(*octets));
        mac.is_some_and(|mac| self.auditor.knows(mac))
    }
}

/// The frame with bytes that the request hides set to 0, cut after the last shown part.
pub(super) fn redacted(
    request: &CaptureRequest,
    frame: &[u8],
    rule: Option<Rule>,
    site: &Site<'_>,
) -> Vec<u8> {
    if request.with_payload && request.with_addresses {
        return frame.to_vec();
    }
    // A runt has no EtherType.
    let Some(wire) = Wire::of(frame) else {
        return Vec::new();
    };
    let mut reader = Reader::new(frame, wire);
    reader.ethernet(site);
    reader.packet(rule, site);
    if request.with_addresses {
        // The transport checksum covers the payload.
        let checksum = reader.checksum.clone();
        reader.keep(0..reader.end);
        reader.hide(checksum);
    }
    if request.with_payload && reader.is_stream {
        // Padding after the packet may contain memory of the sender, so it stays hidden.
        let packet_end = reader.packet_end;
        reader.keep(reader.end..packet_end);
        reader.end = packet_end;
    }
    reader.shown.truncate(reader.end);
    reader.shown
}

/// Parses a frame's headers, and copies the bytes that may be shown.
struct Reader<'a> {
    frame: &'a [u8],
    wire: Wire,
    shown: Vec<u8>,
    /// End of the last header with shown bytes.
    end: usize,
    /// End of the IP packet, or of the frame if that is shorter.
    packet_end: usize,
    checksum: Range<usize>,
    /// TCP or UDP: the payload is not defined to contain another packet's header.
    is_stream: bool,
    /// Source and destination address, and whether each is the site's.
    sides: Option<[(IpAddr, bool); 2]>,
}

impl<'a> Reader<'a> {
    fn new(frame: &'a [u8], wire: Wire) -> Self {
        let end = wire.payload.min(frame.len());
        Self {
            frame,
            wire,
            shown: vec![0; frame.len()],
            end,
            packet_end: end,
            checksum: 0..0,
            is_stream: false,
            sides: None,
        }
    }

    fn keep(&mut self, range: Range<usize>) {
        if let (Some(to), Some(from)) = (self.shown.get_mut(range.clone()), self.frame.get(range)) {
            to.copy_from_slice(from);
        }
    }

    fn hide(&mut self, range: Range<usize>) {
        if let Some(bytes) = self.shown.get_mut(range) {
            bytes.fill(0);
        }
    }

    /// MAC addresses, tags and EtherType. A foreign station's MAC address identifies it, so it is
    /// hidden; a group's MAC address ends with a part of its IP address, which is hidden.
    fn ethernet(&mut self, site: &Site<'_>) {
        for at in [0, 6] {
            let Some(mac) = self.frame.get(at..at + 6) else {
                return;
            };
            let shown = match mac {
                [0x33, 0x33, ..] => 2,
                [0x01, 0x00, 0x5e, ..] => 3,
                [first, ..] if first & 1 == 1 => 6,
                mac if site.has_mac(mac) => 6,
                _ => 0,
            };
            self.keep(at..at + shown);
        }
        self.keep(12..self.end);
    }

    /// The IP header and what follows. Of an invalid packet only the EtherType is shown, as of
    /// frames that are not IP.
    fn packet(&mut self, rule: Option<Rule>, site: &Site<'_>) {
        let read = match self.wire.ip {
            Some(Version::V4) => self.ipv4(site),
            Some(Version::V6) => self.ipv6(site),
            None => None,
        };
        let Some((protocol, at, is_own)) = read else {
            return;
        };
        let header = self.frame.get(at..self.packet_end).unwrap_or_default();
        match (protocol, header) {
            (Some(TCP), [_, _, _, _, _, _, _, _, _, _, _, _, offset, _, ..])
                if header.len() >= 20 =>
            {
                let length = usize::from(offset >> 4) * 4;
                self.end = at + length.clamp(20, header.len());
                self.checksum = at + 16..at + 18;
                self.is_stream = true;
                self.ports(at, rule, site);
                self.keep(at + 12..at + 14);
                self.options(at + 20..self.end, is_own);
            }
            (Some(UDP), _) if header.len() >= 8 => {
                self.end = at + 8;
                self.checksum = at + 6..at + 8;
                self.is_stream = true;
                self.ports(at, rule, site);
                self.keep(at + 4..at + 6);
            }
            // Neighbour discovery contains addresses.
            (Some(ICMPV6), [kind, ..]) if DISCOVERY.contains(kind) => {
                self.end = self.wire.payload;
            }
            // The payload may quote other packets.
            _ => self.end = at,
        }
    }

    /// Returns the protocol (`None` for a later fragment), the offset of its header, and whether
    /// the host sent the packet.
    fn ipv4(&mut self, site: &Site<'_>) -> Option<(Option<u8>, usize, bool)> {
        let at = self.wire.payload;
        let header = self.frame.get(at..)?.first_chunk::<20>()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if length < 20 || total < length || at + length > self.frame.len() {
            return None;
        }
        self.packet_end = (at + total).min(self.frame.len());
        self.keep(at..at + 4);
        self.keep(at + 6..at + 8);
        self.keep(at + 9..at + 10);
        let is_own = self.addresses(at + 12, 4, site);
        if is_own {
            self.keep(at + 8..at + 9);
        }
        let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        Some((is_first.then_some(header[9]), at + length, is_own))
    }

    fn ipv6(&mut self, site: &Site<'_>) -> Option<(Option<u8>, usize, bool)> {
        let start = self.wire.payload;
        let header = self.frame.get(start..)?.first_chunk::<40>()?;
        let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        self.packet_end = (start + total).min(self.frame.len());
        self.keep(start..start + 2);
        if let Some(byte) = self.shown.get_mut(start + 1) {
            // The low bits belong to the flow label.
            *byte &= 0xf0;
        }
        self.keep(start + 4..start + 7);
        let is_own = self.addresses(start + 8, 16, site);
        if is_own {
            self.keep(start + 7..start + 8);
        }
        let mut kind = header[6];
        let mut at = start + 40;
        for _ in 0..MAX_EXTENSIONS {
            let shown = match kind {
                HOP_BY_HOP | DESTINATION_OPTIONS => 2,
                // The first four bytes include the routing type and segments left.
                ROUTING | FRAGMENT => 4,
                _ => return Some((Some(kind), at, is_own)),
            };
            let Some(extension) = self.frame.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
                break;
            };
            let length = match kind {
                FRAGMENT => 8,
                _ => (usize::from(extension[1]) + 1) * 8,
            };
            if at + length > self.packet_end {
                break;
            }
            self.keep(at..at + shown);
            let offset = u16::from_be_bytes([extension[2], extension[3]]) >> 3;
            let is_later = kind == FRAGMENT && offset != 0;
            kind = extension[0];
            at += length;
            if is_later {
                break;
            }
        }
        Some((None, at, is_own))
    }

    /// Shows the source and destination address if they are the site's. Returns whether the source
    /// is.
    fn addresses(&mut self, at: usize, bytes: usize, site: &Site<'_>) -> bool {
        let side = |at: usize| {
            let address = address(self.frame.get(at..at + bytes)?)?;
            Some((address, site.snapshot.rules.is_host(address)))
        };
        let (Some(source), Some(destination)) = (side(at), side(at + bytes)) else {
            return false;
        };
        for (place, (_, is_of_site)) in [(at, source), (at + bytes, destination)] {
            if is_of_site {
                self.keep(place..place + bytes);
            }
        }
        self.sides = Some([source, destination]);
        source.1
    }

    /// Shows the ports of a TCP or UDP header: the site's, and the other side's if
    /// [`Site::shows_port`] allows it.
    fn ports(&mut self, at: usize, rule: Option<Rule>, site: &Site<'_>) {
        for ((address, is_of_site), at) in self.sides.into_iter().flatten().zip([at, at + 2]) {
            let port = self.frame.get(at..).and_then(<[u8]>::first_chunk::<2>);
            let port = port.map(|port| u16::from_be_bytes(*port));
            if is_of_site || port.is_some_and(|port| site.shows_port(rule, (address, port))) {
                self.keep(at..at + 2);
            }
        }
    }

    /// Shows kinds and lengths of TCP options, and some values if the host sent them. A list with
    /// an unknown option is hidden, because it may not be a list of options at all.
    fn options(&mut self, range: Range<usize>, is_own: bool) {
        let Some(options) = self.frame.get(range.clone()) else {
            return;
        };
        let mut shown = Vec::new();
        let mut at = 0;
        while let Some(&kind) = options.get(at) {
            let length = match (kind, options.get(at + 1)) {
                (0, _) => break,
                (1, _) => 1,
                (_, Some(&length)) => usize::from(length),
                _ => return,
            };
            if kind != 1 && !NAMED_OPTIONS.contains(&(kind, length)) || at + length > options.len()
            {
                return;
            }
            let has_value = is_own && SHOWN_OPTIONS.contains(&kind);
            let end = at + if has_value { length } else { length.min(2) };
            shown.push(range.start + at..range.start + end);
            at += length;
        }
        for range in shown {
            self.keep(range);
        }
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}
