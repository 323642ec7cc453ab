//! Ethernet II with IEEE 802.1Q and 802.1ad tags.

use super::be16;
use std::fmt;
use std::str::FromStr;

/// Length of an untagged header: destination, source, EtherType.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// How many VLAN tags are skipped to find the payload. QinQ needs two; a frame with more tags is
/// not treated as IP and is forwarded unchanged.
pub const MAX_VLAN_TAGS: usize = 4;

pub(super) const VLAN_TAG_BYTES: usize = 4;
const ETHERTYPE: usize = 12;

pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;
pub(super) const VLAN: u16 = 0x8100;
pub(super) const QINQ: u16 = 0x88a8;
/// The EtherType of provider bridges before 802.1ad.
const LEGACY_QINQ: u16 = 0x9100;

/// The payload of a frame, with its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    Ipv4(usize),
    Ipv6(usize),
    Other,
}

/// Skips the tags and returns the payload's kind and offset. Runts are `Other`.
#[inline]
pub(super) fn payload(frame: &[u8]) -> Payload {
    let mut offset = ETHERTYPE;
    for _ in 0..=MAX_VLAN_TAGS {
        match be16(frame, offset) {
            Some(IPV4) => return Payload::Ipv4(offset + 2),
            Some(IPV6) => return Payload::Ipv6(offset + 2),
            Some(VLAN | QINQ | LEGACY_QINQ) => offset += VLAN_TAG_BYTES,
            _ => break,
        }
    }
    Payload::Other
}

/// The length of the tags in front of an IP packet, in bytes; 0 for other frames.
#[inline]
pub fn tag_bytes(frame: &[u8]) -> usize {
    match payload(frame) {
        Payload::Ipv4(l3) | Payload::Ipv6(l3) => l3 - ETHERNET_HEADER_BYTES,
        Payload::Other => 0,
    }
}

/// A 48-bit MAC address, stored as a number: read with one load and compared as one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(u64);

/// A destination and a source address: the first 12 bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacPair([u8; 12]);

impl MacPair {
    /// Makes a pair from its two addresses.
    pub const fn new(destination: MacAddr, source: MacAddr) -> Self {
        let [a, b, c, d, e, f] = destination.bytes();
        let [g, h, i, j, k, l] = source.bytes();
        Self([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    #[inline]
    pub(super) const fn bytes(self) -> [u8; 12] {
        self.0
    }
}

const MAC_BITS: u64 = 0xffff_ffff_ffff;

/// Why a text is not a unicast MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacAddrError {
    /// A text that is not six bytes of two hexadecimal digits, with colons between them. Holds the
    /// text.
    #[error("`{0}` is not a MAC address; the format is 02:00:5e:10:00:01")]
    Syntax(String),
    /// Multicast, broadcast or all zero.
    #[error("{0} is not a unicast address (it is multicast, broadcast or zero)")]
    NotUnicast(MacAddr),
}

impl MacAddr {
    /// An address from its six bytes.
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// The six bytes, in the order of transmission.
    #[inline]
    pub const fn bytes(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// The address as a number, for an atomic cell; never 0 for a unicast address.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`MacAddr::to_u64`]; `None` for 0.
    #[inline]
    pub const fn from_u64(number: u64) -> Option<Self> {
        match number {
            0 => None,
            _ => Some(Self(number & MAC_BITS)),
        }
    }

    /// Whether the address is neither zero nor multicast or broadcast.
    #[inline]
    pub const fn is_unicast(self) -> bool {
        self.0 != 0 && self.0 >> 40 & 1 == 0
    }

    /// The source address of a frame, if the frame is long enough to have one.
    #[inline]
    pub fn source_of(frame: &[u8]) -> Option<Self> {
        // The last six of these eight bytes.
        let word = frame.get(4..)?.first_chunk()?;
        Some(Self(u64::from_be_bytes(*word) & MAC_BITS))
    }

    /// The destination address of a frame, if the frame is long enough to have one.
    #[inline]
    pub fn destination_of(frame: &[u8]) -> Option<Self> {
        Some(Self::new(*frame.first_chunk()?))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    /// Parses a unicast address such as `02:00:5e:10:00:01`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MacAddrError::Syntax(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| {
                    part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit())
                })
                .ok_or_else(syntax)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        match (parts.next(), Self::new(bytes)) {
            (Some(_), _) => Err(syntax()),
            (None, mac) if mac.is_unicast() => Ok(mac),
            (None, mac) => Err(MacAddrError::NotUnicast(mac)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(tags: &[u16], ethertype: u16) -> Vec<u8> {
        let mut frame = vec![0; ETHERTYPE];
        for tag in tags {
            frame.extend_from_slice(&tag.to_be_bytes());
            frame.extend_from_slice(&[0x20, 0x64]);
        }
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame
    }

    #[test]
    fn finds_ip_behind_up_to_four_tags() {
        assert_eq!(payload(&tagged(&[], IPV4)), Payload::Ipv4(14));
        assert_eq!(payload(&tagged(&[VLAN], IPV6)), Payload::Ipv6(18));
        assert_eq!(payload(&tagged(&[QINQ, VLAN], IPV4)), Payload::Ipv4(22));
        assert_eq!(payload(&tagged(&[LEGACY_QINQ; 4], IPV4)), Payload::Ipv4(30));
        assert_eq!(payload(&tagged(&[VLAN; 5], IPV4)), Payload::Other);
    }

    #[test]
    fn runts_and_truncated_tags_are_not_ip() {
        let whole = tagged(&[QINQ, VLAN], IPV4);
        for cut in 0..whole.len() {
            assert_eq!(payload(&whole[..cut]), Payload::Other, "{cut} bytes");
        }
        assert_eq!(payload(&tagged(&[], 0x0806)), Payload::Other);
        assert_eq!(payload(&tagged(&[], 0x0100)), Payload::Other);
    }

    #[test]
    fn mac_addresses_read_back_as_printed() {
        let mac: MacAddr = "02:00:5e:10:0A:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:0a:ff");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), Some(mac));
        for wrong in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02-00-5e-10-00-01",
            "+2:00:00:00:00:01",
        ] {
            let error = wrong.parse::<MacAddr>().unwrap_err();
            assert!(matches!(error, MacAddrError::Syntax(_)), "{wrong}");
        }
        for wrong in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            let error = wrong.parse::<MacAddr>().unwrap_err();
            assert!(matches!(error, MacAddrError::NotUnicast(_)), "{wrong}");
        }
    }

    #[test]
    fn a_frame_begins_with_destination_and_source() {
        let frame = [2, 1, 1, 1, 1, 0xfe, 2, 0xaa, 3, 4, 5, 6, 8];
        let destination = MacAddr::new([2, 1, 1, 1, 1, 0xfe]);
        let source = MacAddr::new([2, 0xaa, 3, 4, 5, 6]);
        assert_eq!(MacAddr::destination_of(&frame), Some(destination));
        assert_eq!(MacAddr::source_of(&frame), Some(source));
        assert_eq!(MacAddr::destination_of(&frame[..5]), None);
        assert_eq!(MacAddr::source_of(&frame[..11]), None);
        assert_eq!(MacPair::new(destination, source).bytes(), frame[..12]);
    }

    #[test]
    fn from_u64_takes_48_bits_and_refuses_0() {
        let number = 0xffff_0200_5e10_0001;
        let mac = MacAddr::new([2, 0, 0x5e, 0x10, 0, 1]);
        assert_eq!(MacAddr::from_u64(number), Some(mac));
        assert_eq!(mac.to_u64(), number & MAC_BITS);
        assert_eq!(MacAddr::from_u64(0), None);
    }

    #[test]
    fn debug_shows_a_mac_address_as_printed() {
        let mac = MacAddr::new([2, 0, 0x5e, 0x10, 0, 1]);
        assert_eq!(format!("{mac:?}"), "02:00:5e:10:00:01");
    }

    #[test]
    fn tag_bytes_is_0_unless_ip_follows_the_tags() {
        assert_eq!(tag_bytes(&tagged(&[], IPV6)), 0);
        assert_eq!(tag_bytes(&tagged(&[QINQ, VLAN], IPV4)), 8);
        assert_eq!(tag_bytes(&tagged(&[VLAN], 0x0806)), 0);
    }
}
