//! What of a frame may be shown: its headers, without what tells who the other side is.
//!
//! An address can stand where one does not look for it: in options, in routing headers, in the
//! MAC address of a multicast group, in what an ICMP error quotes. All that is blanked or cut.

use super::wire::Wire;
use crate::packet::Version;

const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Neighbour discovery: router solicitation to redirect.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// More are malformed to everybody here.
const MAX_EXTENSIONS: usize = 8;
/// A TCP option that can bear addresses (RFC 8684).
const MULTIPATH: u8 = 30;

/// Whose IP addresses are blanked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blank {
    pub(super) source: bool,
    pub(super) destination: bool,
}

/// What is shown of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) with_payload: bool,
    pub(super) with_addresses: bool,
}

impl View {
    /// What is shown of a frame.
    pub(super) fn of(self, frame: &[u8], blank: Blank) -> Vec<u8> {
        let mut shown = frame.to_vec();
        if self.with_payload && self.with_addresses {
            return shown;
        }
        let Some(wire) = Wire::of(frame) else {
            // A runt, without so much as an ethertype.
            shown.truncate(0);
            return shown;
        };
        let headers = Headers::of(frame, wire);
        let shows_payload = self.with_payload && headers.is_stream;
        if !shows_payload {
            shown.truncate(headers.end);
        }
        if !self.with_addresses {
            headers.blank(&mut shown, blank);
        }
        shown
    }
}

/// Where the headers of a frame are.
struct Headers {
    wire: Wire,
    /// Where the last one that is shown ends.
    end: usize,
    /// IPv4 options, the insides of extension headers.
    hidden: Vec<(usize, usize)>,
    /// TCP's options.
    options: (usize, usize),
    /// TCP or UDP: behind its header there is no header of another packet.
    is_stream: bool,
}

impl Headers {
    fn of(frame: &[u8], wire: Wire) -> Self {
        let mut headers = Self {
            wire,
            end: wire.payload.min(frame.len()),
            hidden: Vec::new(),
            options: (0, 0),
            is_stream: false,
        };
        let found = match wire.ip {
            Some(Version::V4) => headers.v4(frame),
            Some(Version::V6) => headers.v6(frame),
            None => None,
        };
        // What cannot be read is shown as what is no IP.
        if let Some((protocol, at, end)) = found {
            headers.end = at;
            headers.transport(frame, protocol, at, end.min(frame.len()));
        } else {
            headers.wire.ip = None;
        }
        headers
    }

    /// The protocol, where its header begins (none for a later fragment's) and where the packet
    /// ends.
    fn v4(&mut self, frame: &[u8]) -> Option<(Option<u8>, usize, usize)> {
        let at = self.wire.payload;
        let header = frame.get(at..)?.first_chunk::<20>()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if length < 20 || total < length || at + length > frame.len() {
            return None;
        }
        self.hidden.push((at + 20, at + length));
        let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        Some((is_first.then_some(header[9]), at + length, at + total))
    }

    fn v6(&mut self, frame: &[u8]) -> Option<(Option<u8>, usize, usize)> {
        let start = self.wire.payload;
        let header = frame.get(start..)?.first_chunk::<40>()?;
        let end = start + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut kind = header[6];
        let mut at = start + 40;
        for _ in 0..MAX_EXTENSIONS {
            let keeps = match kind {
                HOP_BY_HOP | DESTINATION_OPTIONS => 2,
                ROUTING => 4,
                FRAGMENT => 8,
                _ => return Some((Some(kind), at, end)),
            };
            // One that is cut off is not shown.
            let Some(extension) = frame.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
                break;
            };
            let length = match kind {
                FRAGMENT => 8,
                _ => (usize::from(extension[1]) + 1) * 8,
            };
            if at + length > frame.len().min(end) {
                break;
            }
            self.hidden.push((at + keeps, at + length));
            let offset = u16::from_be_bytes([extension[2], extension[3]]) >> 3;
            let is_later = kind == FRAGMENT && offset != 0;
            kind = extension[0];
            at += length;
            if is_later {
                break;
            }
        }
        Some((None, at, end))
    }

    fn transport(&mut self, frame: &[u8], protocol: Option<u8>, at: usize, end: usize) {
        let Some(header) = frame.get(at..end) else {
            return;
        };
        match protocol {
            Some(TCP) if header.len() >= 20 => {
                let length = usize::from(header[12] >> 4) * 4;
                self.end = at + length.clamp(20, header.len());
                self.options = (at + 20, self.end);
                self.is_stream = true;
            }
            Some(UDP) if header.len() >= 8 => {
                self.end = at + 8;
                self.is_stream = true;
            }
            // It is to neighbours, and full of their addresses.
            Some(ICMPV6) if header.first().is_some_and(|kind| DISCOVERY.contains(kind)) => {
                self.end = self.wire.payload;
                self.wire.ip = None;
            }
            _ => {}
        }
    }

    fn blank(&self, shown: &mut [u8], blank: Blank) {
        // A group's MAC address has the end of its IP address.
        if shown.starts_with(&[0x33, 0x33]) || shown.starts_with(&[0x01, 0x00, 0x5e]) {
            fill(shown, (3, 6));
            if shown.starts_with(&[0x33]) {
                fill(shown, (2, 6));
            }
        }
        let at = self.wire.payload;
        let (source, destination) = match self.wire.ip {
            Some(Version::V4) => ((at + 12, at + 16), (at + 16, at + 20)),
            Some(Version::V6) => ((at + 8, at + 24), (at + 24, at + 40)),
            None => return,
        };
        if blank.source {
            fill(shown, source);
        }
        if blank.destination {
            fill(shown, destination);
        }
        for &range in &self.hidden {
            fill(shown, range);
        }
        self.blank_options(shown);
    }

    /// Blanks what multipath TCP says in its options, and whatever is no list of options.
    fn blank_options(&self, shown: &mut [u8]) {
        let (mut at, end) = self.options;
        let end = end.min(shown.len());
        while at < end {
            let length = match (shown[at], shown.get(at + 1)) {
                (0, _) => break,
                (1, _) => 1,
                (kind, Some(&length)) if length >= 2 && at + usize::from(length) <= end => {
                    if kind == MULTIPATH {
                        fill(shown, (at + 2, at + usize::from(length)));
                    }
                    usize::from(length)
                }
                _ => break,
            };
            at += length;
        }
        fill(shown, (at, end));
    }
}

fn fill(bytes: &mut [u8], (from, to): (usize, usize)) {
    let to = to.min(bytes.len());
    if let Some(range) = bytes.get_mut(from..to) {
        range.fill(0);
    }
}
