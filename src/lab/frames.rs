//! A frame builder for tables of cases: every field can be set, to invalid values too.
//!
//! Checksums are computed from scratch, never updated: a frame built with another DSCP is the
//! expected result of rewriting.

use exitmark_policy::packet::{MacAddr, Tcp, internet_checksum, protocol};
use std::net::{IpAddr, SocketAddr};

/// The source MAC address of built frames: the Tor host's.
pub const FROM: MacAddr = MacAddr::new([2, 0, 0, 0, 1, 1]);
/// The destination MAC address of built frames: the clearnet router's.
pub const TO: MacAddr = MacAddr::new([2, 0, 0, 0, 2, 2]);

/// Next header values of IPv6 extension headers (RFC 8200 section 4).
pub mod extension {
    /// The hop-by-hop options header.
    pub const HOP_BY_HOP: u8 = 0;
    /// The routing header (RFC 8200, section 4.4).
    pub const ROUTING: u8 = 43;
    /// The destination options header.
    pub const DESTINATION: u8 = 60;
}

const FRAGMENT: u8 = 44;

/// A frame to be built, with or without VLAN tags.
#[derive(Clone, Debug)]
#[must_use]
pub struct Frame {
    from: MacAddr,
    to: MacAddr,
    tags: Vec<(u16, u16)>,
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    tos: u8,
    control: u8,
    sequence: u32,
    words: u8,
    options: usize,
    extensions: Vec<u8>,
    fragment: Option<(u32, u16, bool)>,
    payload: usize,
    padding: usize,
    is_sealed: bool,
}

/// A TCP segment between two endpoints of one family, such as `192.0.2.10:40000`.
///
/// # Panics
/// If an endpoint is invalid: tables of cases are constants.
pub fn tcp(source: &str, destination: &str) -> Frame {
    of_protocol(protocol::TCP, source, destination)
}

/// A UDP datagram, otherwise as [`tcp`].
///
/// # Panics
/// As [`tcp`].
pub fn udp(source: &str, destination: &str) -> Frame {
    of_protocol(protocol::UDP, source, destination)
}

/// A packet of another protocol, whose first four bytes are the two ports.
///
/// # Panics
/// As [`tcp`].
pub fn of_protocol(protocol: u8, source: &str, destination: &str) -> Frame {
    let endpoint = |text: &str| -> SocketAddr {
        text.parse()
            .unwrap_or_else(|error| panic!("{text} is not an endpoint: {error}"))
    };
    Frame {
        from: FROM,
        to: TO,
        tags: Vec::new(),
        source: endpoint(source),
        destination: endpoint(destination),
        protocol,
        tos: 0,
        control: Tcp::ACK,
        sequence: 0x0506_0708,
        words: 5,
        options: 0,
        extensions: Vec::new(),
        fragment: None,
        payload: 40,
        padding: 0,
        is_sealed: false,
    }
}

impl Frame {
    /// Sets the destination and the source MAC address.
    pub const fn macs(mut self, to: MacAddr, from: MacAddr) -> Self {
        (self.to, self.from) = (to, from);
        self
    }

    /// Sets the ToS or traffic-class byte.
    pub const fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// Sets the TCP control bits; the default is ACK.
    pub const fn control(mut self, bits: u8) -> Self {
        self.control = bits;
        self
    }

    /// Sets the TCP sequence number; the default is not 0.
    pub const fn sequence(mut self, number: u32) -> Self {
        self.sequence = number;
        self
    }

    /// Sets the length of the TCP header in words of 4 bytes, with its options; the default is 5.
    pub const fn words(mut self, words: u8) -> Self {
        self.words = words;
        self
    }

    /// The ECN bits, 0 to 3 (RFC 3168).
    pub const fn ecn(&self) -> u8 {
        self.tos & 0b11
    }

    /// Adds an innermost VLAN tag: tag protocol identifier, and tag control information.
    pub fn tag(mut self, identifier: u16, control: u16) -> Self {
        self.tags.push((identifier, control));
        self
    }

    /// Sets the length of the IPv4 options in bytes, a multiple of 4 up to 40.
    pub const fn options(mut self, bytes: usize) -> Self {
        self.options = bytes;
        self
    }

    /// Sets the IPv6 extension headers, 8 bytes each.
    pub fn extensions(mut self, kinds: &[u8]) -> Self {
        self.extensions = kinds.to_vec();
        self
    }

    /// Makes a fragment: identification, offset in units of 8 bytes, more-fragments flag.
    pub const fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        self.fragment = Some((id, offset, more));
        self
    }

    /// Sets the length of the IP payload in bytes.
    pub const fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// Sets the length in bytes of the padding behind the packet, as short frames have it.
    pub const fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// Gives a whole TCP segment the right checksum, if it is long enough for one.
    pub const fn sealed(mut self) -> Self {
        self.is_sealed = true;
        self
    }

    /// Builds the frame from its Ethernet header on.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend([self.to, self.from].map(MacAddr::bytes).as_flattened());
        for (identifier, control) in &self.tags {
            frame.extend([*identifier, *control].map(u16::to_be_bytes).as_flattened());
        }
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend_from_slice(&[0x08, 0x00]);
                frame.extend(self.ipv4(source.octets(), destination.octets()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend_from_slice(&[0x86, 0xdd]);
                frame.extend(self.ipv6(source.octets(), destination.octets()));
            }
            _ => panic!("a packet has addresses of one family"),
        }
        frame.extend(self.transport());
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }

    /// A recognisable payload that begins with the ports, unless this is a later fragment.
    fn transport(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (1..=u8::MAX).cycle().take(self.payload).collect();
        if self.fragment.is_none_or(|(_, offset, _)| offset == 0) {
            let mut set = |at, field: &[u8]| {
                for (byte, new) in bytes.iter_mut().skip(at).zip(field) {
                    *byte = *new;
                }
            };
            let ports = [self.source.port(), self.destination.port()].map(u16::to_be_bytes);
            set(0, ports.as_flattened());
            if self.protocol == protocol::TCP {
                set(4, &self.sequence.to_be_bytes());
                set(12, &[self.words << 4, self.control]);
            }
            if self.protocol == protocol::UDP && self.payload >= 6 {
                set(4, &be16(self.payload));
            }
            if self.is_sealed && self.payload >= 18 {
                set(16, &[0, 0]);
                let sum = self.tcp_sum(&bytes).to_be_bytes();
                bytes[16..18].copy_from_slice(&sum);
            }
        }
        bytes
    }

    /// The checksum of a segment with a checksum of 0 (RFC 9293, section 3.1).
    fn tcp_sum(&self, segment: &[u8]) -> u16 {
        let mut summed = Vec::new();
        for address in [self.source.ip(), self.destination.ip()] {
            match address {
                IpAddr::V4(address) => summed.extend(address.octets()),
                IpAddr::V6(address) => summed.extend(address.octets()),
            }
        }
        summed.extend([0, protocol::TCP]);
        summed.extend(be16(segment.len()));
        summed.extend_from_slice(segment);
        internet_checksum(&summed)
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let header_bytes = 20 + self.options;
        let (id, offset, more) = self.fragment.unwrap_or((0x1234, 0, false));
        let flags = offset | if more { 0x2000 } else { 0 };
        let mut header = vec![0x40 | be16(header_bytes / 4)[1], self.tos];
        header.extend_from_slice(&be16(header_bytes + self.payload));
        header.extend_from_slice(&id.to_be_bytes()[2..]);
        header.extend_from_slice(&flags.to_be_bytes());
        header.extend_from_slice(&[64, self.protocol, 0, 0]);
        header.extend_from_slice(&source);
        header.extend_from_slice(&destination);
        header.resize(header_bytes, 1);
        let checksum = internet_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let mut kinds = self.extensions.clone();
        kinds.extend(self.fragment.map(|_| FRAGMENT));
        let payload = kinds.len() * 8 + self.payload;
        // A flow label that an incorrect rewrite of the traffic class would change.
        let mut header = vec![0x60 | self.tos >> 4, self.tos << 4 | 0x0f, 0xff, 0xff];
        header.extend_from_slice(&be16(payload));
        let mut chain = kinds.iter().copied().chain([self.protocol]);
        header.extend([chain.next().unwrap_or(self.protocol), 64]);
        header.extend_from_slice(&source);
        header.extend_from_slice(&destination);
        for (kind, next) in kinds.iter().zip(chain) {
            match (*kind, self.fragment) {
                (FRAGMENT, Some((id, offset, more))) => {
                    let flags = offset << 3 | u16::from(more);
                    header.extend_from_slice(&[next, 0]);
                    header.extend_from_slice(&flags.to_be_bytes());
                    header.extend_from_slice(&id.to_be_bytes());
                }
                _ => header.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        header
    }
}

#[allow(clippy::cast_possible_truncation, reason = "lengths may wrap")]
const fn be16(number: usize) -> [u8; 2] {
    (number as u16).to_be_bytes()
}
