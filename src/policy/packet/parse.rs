//! Parses the headers of a frame.

use super::ethernet::{self, ETHERNET_HEADER_BYTES, Payload};
use super::vlan::VlanTags;
use super::{Address, Headers, Packet, Version, be16, ipv4, ipv6, protocol};
use std::net::IpAddr;

/// Parses a frame's headers.
///
/// `frame` is the readable part, `frame_bytes` the length of the whole frame: they differ if a
/// jumbo frame is in several buffers. Never panics.
#[inline(always)]
pub fn parse(frame: &[u8], frame_bytes: usize) -> Headers {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => match ipv4::read(frame, l3, frame_bytes) {
            Ok(packet) => Headers::V4(packet),
            Err(reason) => Headers::Malformed(reason),
        },
        Payload::Ipv6(l3) => match ipv6::read(frame, l3, frame_bytes) {
            Ok(packet) => Headers::V6(packet),
            Err(reason) => Headers::Malformed(reason),
        },
        Payload::Other => Headers::NotIp,
    }
}

/// The destination address of an IP packet, if the frame contains its fixed header. The rest of
/// the packet is not validated, because delivery does not depend on it.
#[inline]
pub fn destination(frame: &[u8]) -> Option<IpAddr> {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => ipv4::address(frame.get(l3..)?, ipv4::DESTINATION),
        Payload::Ipv6(l3) => ipv6::address(frame.get(l3..)?, ipv6::DESTINATION),
        Payload::Other => None,
    }
}

/// The source address of an IP packet, as [`destination`].
#[inline]
pub fn source(frame: &[u8]) -> Option<IpAddr> {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => ipv4::address(frame.get(l3..)?, ipv4::SOURCE),
        Payload::Ipv6(l3) => ipv6::address(frame.get(l3..)?, ipv6::SOURCE),
        Payload::Other => None,
    }
}

/// The VLAN tags in front of an IP packet; untagged for other frames.
pub fn tags(frame: &[u8]) -> VlanTags {
    VlanTags::of(frame, ETHERNET_HEADER_BYTES + ethernet::tag_bytes(frame))
}

/// The offset of the transport header of a packet returned by [`parse`]. A later fragment has
/// none.
#[inline]
pub fn transport<A: Address>(frame: &[u8], packet: &Packet<A>) -> Option<usize> {
    if packet.fragment.is_some_and(|fragment| !fragment.first) {
        return None;
    }
    match A::VERSION {
        Version::V4 => ipv4::transport(frame, packet.l3),
        Version::V6 => ipv6::transport(frame, packet.l3),
    }
}

/// The length of a frame up to the end of its headers: behind the TCP header with its options, 8 bytes
/// of UDP, or the IP headers of any other packet and of a later fragment. At most the end of the
/// packet, which may be behind the bytes in `frame`.
pub fn headers_end<A: Address>(frame: &[u8], packet: &Packet<A>) -> usize {
    let (behind_ip, end) = match A::VERSION {
        Version::V4 => {
            let total = be16(frame, packet.l3 + ipv4::TOTAL_LENGTH);
            let end = packet.l3 + usize::from(total.unwrap_or_default());
            (ipv4::transport(frame, packet.l3), end)
        }
        Version::V6 => {
            let payload = be16(frame, packet.l3 + ipv6::PAYLOAD_LENGTH);
            let end = packet.l3 + ipv6::HEADER_BYTES + usize::from(payload.unwrap_or_default());
            (ipv6::transport(frame, packet.l3), end)
        }
    };
    let l4 = behind_ip.unwrap_or(packet.l3);
    let transport = match (transport(frame, packet), packet.protocol) {
        (Some(_), protocol::TCP) => {
            let words = frame.get(l4 + TCP_DATA_OFFSET).map_or(0, |byte| byte >> 4);
            (usize::from(words) * 4).max(TCP_BYTES)
        }
        (Some(_), protocol::UDP) => UDP_BYTES,
        _ => 0,
    };
    (l4 + transport).min(end)
}

/// The offset of the byte whose upper half is the length of a TCP header (RFC 9293, section 3.1).
const TCP_DATA_OFFSET: usize = 12;
/// The lengths of a TCP header without options and of a UDP header.
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::Malformed;
    use super::*;

    const TAG: [u8; 4] = [0x81, 0x00, 0x20, 0x64];

    /// A frame with `tags` VLAN tags and this packet.
    fn frame(tags: usize, ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[2; 12], &TAG.repeat(tags)[..], &ethertype, packet].concat()
    }

    /// An IPv4 packet of TCP with `options` words of options.
    fn v4(options: u8) -> Vec<u8> {
        let length = 20 + 4 * options + 20;
        let mut packet = vec![0x45 + options, 0, 0, length, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend_from_slice(&[192, 0, 2, 10, 198, 51, 100, 7]);
        packet.resize(usize::from(length), 1);
        packet
    }

    /// An IPv6 packet of TCP behind these extension headers.
    fn v6(extensions: &[&[u8]]) -> Vec<u8> {
        let extensions = extensions.concat();
        let next_header = if extensions.is_empty() { 6 } else { 60 };
        let length = u8::try_from(extensions.len() + 20).unwrap();
        let mut packet = vec![0x60, 0, 0, 0, 0, length, next_header, 64];
        packet.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]);
        packet.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]);
        packet.extend(extensions);
        packet.resize(40 + usize::from(length), 1);
        packet
    }

    /// The offset of the transport header of a valid packet.
    fn transport_of(frame: &[u8]) -> Option<usize> {
        match parse(frame, frame.len()) {
            Headers::V4(packet) => transport(frame, &packet),
            Headers::V6(packet) => transport(frame, &packet),
            other => panic!("not a packet: {other:?}"),
        }
    }

    #[test]
    fn finds_addresses_behind_tags_without_validating_the_payload() {
        for tags in [0, 2] {
            for (ethertype, packet, from, to) in [
                ([0x08, 0x00], v4(0), "192.0.2.10", "198.51.100.7"),
                ([0x86, 0xdd], v6(&[]), "2001:db8::10", "2001:db8::7"),
            ] {
                let header = if ethertype == [0x08, 0x00] { 20 } else { 40 };
                let cut = frame(tags, ethertype, &packet[..header]);
                assert_eq!(source(&cut), Some(from.parse().unwrap()));
                assert_eq!(destination(&cut), Some(to.parse().unwrap()));
                let shorter = &cut[..cut.len() - 1];
                assert_eq!((source(shorter), destination(shorter)), (None, None));
                // A version that contradicts the EtherType.
                let mut wrong = packet.clone();
                wrong[0] ^= 0x20;
                let wrong = frame(tags, ethertype, &wrong);
                assert_eq!((source(&wrong), destination(&wrong)), (None, None));
                let no_ip = frame(tags, [0x08, 0x06], &packet);
                assert_eq!((source(&no_ip), destination(&no_ip)), (None, None));
            }
        }
    }

    #[test]
    fn the_transport_header_is_behind_tags_options_and_extension_headers() {
        for tags in [0, 3] {
            let l3 = 14 + 4 * tags;
            for options in [0, 1, 10] {
                let frame = frame(tags, [0x08, 0x00], &v4(options));
                let header = 20 + 4 * usize::from(options);
                assert_eq!(transport_of(&frame), Some(l3 + header));
            }
            let plain = frame(tags, [0x86, 0xdd], &v6(&[]));
            assert_eq!(transport_of(&plain), Some(l3 + 40));
            // 8 bytes, then 24.
            let chain: [&[u8]; 2] = [
                &[60, 0, 1, 4, 0, 0, 0, 0],
                &[
                    6, 2, 1, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ],
            ];
            let behind = frame(tags, [0x86, 0xdd], &v6(&chain));
            assert_eq!(transport_of(&behind), Some(l3 + 40 + 8 + 24));
        }
    }

    #[test]
    fn only_the_first_fragment_has_a_transport_header() {
        for (offset, is_first) in [(0, true), (8, false)] {
            // More fragments follow, and the offset in units of 8 bytes.
            let mut packet = v4(0);
            packet[6..8].copy_from_slice(&[0x20, offset / 8]);
            let v4 = frame(0, [0x08, 0x00], &packet);
            assert_eq!(transport_of(&v4), is_first.then_some(34));
            let header = [6, 0, 0, offset | 1, 0, 0, 0, 9];
            let chain: [&[u8]; 2] = [&[44, 0, 1, 4, 0, 0, 0, 0], &header];
            let v6 = frame(0, [0x86, 0xdd], &v6(&chain));
            assert_eq!(transport_of(&v6), is_first.then_some(14 + 40 + 16));
        }
    }

    fn refused(frame: &[u8], frame_bytes: usize) -> Option<Malformed> {
        match parse(frame, frame_bytes) {
            Headers::Malformed(reason) => Some(reason),
            Headers::V4(_) | Headers::V6(_) => None,
            Headers::NotIp => panic!("not IP"),
        }
    }

    #[test]
    fn ipv4_length_checks_are_exact() {
        use Malformed::{BadLength, BeyondFrame, ShortHeader, ShortTransport, WrongVersion};
        // ICMP, so that no ports are needed, with one word of options.
        let changed = |at: usize, byte: u8| {
            let mut packet = v4(1);
            packet[9] = 1;
            packet[at] = byte;
            frame(1, [0x08, 0x00], &packet)
        };
        let whole = changed(9, 1);
        let bytes = whole.len();
        assert_eq!(refused(&whole, bytes), None);
        assert_eq!(refused(&whole, bytes - 1), Some(BeyondFrame));
        // The rest is in another buffer.
        assert_eq!(refused(&whole[..18 + 20], bytes), None);
        assert_eq!(refused(&whole[..18 + 19], bytes), Some(ShortHeader));
        assert_eq!(refused(&changed(0, 0x56), bytes), Some(WrongVersion));
        assert_eq!(refused(&changed(0, 0x45), bytes), None);
        assert_eq!(refused(&changed(0, 0x44), bytes), Some(BadLength));
        // A header and nothing more.
        assert_eq!(refused(&changed(3, 24), bytes), None);
        assert_eq!(refused(&changed(3, 23), bytes), Some(BadLength));
        for (length, expected) in [(20 + 4, None), (20 + 3, Some(ShortTransport))] {
            let mut tcp = v4(0);
            tcp[3] = length;
            assert_eq!(refused(&frame(0, [0x08, 0x00], &tcp), 14 + 40), expected);
        }
    }

    #[test]
    fn ipv6_length_checks_are_exact() {
        use Malformed::{
            BeyondFrame, ShortExtension, ShortHeader, TooManyExtensions, WrongVersion,
        };
        let of = |packet: &[u8]| frame(1, [0x86, 0xdd], packet);
        let whole = of(&v6(&[]));
        let bytes = whole.len();
        assert_eq!(refused(&whole, bytes), None);
        assert_eq!(refused(&whole, bytes - 1), Some(BeyondFrame));
        assert_eq!(refused(&whole[..18 + 39], bytes), Some(ShortHeader));
        let mut wrong = v6(&[]);
        wrong[0] = 0x40;
        assert_eq!(refused(&of(&wrong), bytes), Some(WrongVersion));
        let chain = |count: usize| -> Vec<u8> {
            let mut chain = vec![[60, 0, 1, 4, 0, 0, 0, 0]; count];
            chain[count - 1][0] = 6;
            v6(&[&chain.concat()])
        };
        let longest = of(&chain(8));
        assert_eq!(refused(&longest, longest.len()), None);
        let longer = of(&chain(9));
        assert_eq!(refused(&longer, longer.len()), Some(TooManyExtensions));
        // First the packet ends within the header, then the readable part of the frame.
        let mut cut = chain(1);
        cut[5] = 7;
        assert_eq!(refused(&of(&cut), bytes + 8), Some(ShortExtension));
        let one = of(&chain(1));
        let readable = &one[..18 + 40 + 7];
        assert_eq!(refused(readable, one.len()), Some(ShortExtension));
    }

    #[test]
    fn ipv4_fragments_are_recognised_by_flags_and_offset() {
        for (flags, expected) in [
            (0x0000_u16, None),
            (0x4000, None),
            (0x8000, None),
            (0x2000, Some(true)),
            (0x2001, Some(false)),
            (0x0001, Some(false)),
            (0x1000, Some(false)),
        ] {
            let mut packet = v4(0);
            packet[4..6].copy_from_slice(&[0x12, 0x34]);
            packet[6..8].copy_from_slice(&flags.to_be_bytes());
            let frame = frame(0, [0x08, 0x00], &packet);
            let Headers::V4(packet) = parse(&frame, frame.len()) else {
                panic!("{flags:#06x} is not read");
            };
            let first = packet.fragment.map(|fragment| fragment.first);
            assert_eq!(first, expected, "{flags:#06x}");
            assert!(packet.fragment.is_none_or(|fragment| fragment.id == 0x1234));
            // Every byte of the ports is 1; a later fragment has none.
            let ports = if expected == Some(false) { 0 } else { 0x0101 };
            assert_eq!(packet.ports.destination, ports, "{flags:#06x}");
            let addresses = (packet.source, packet.destination);
            assert_eq!(addresses, (0xc000_020a, 0xc633_6407));
        }
    }

    #[test]
    fn only_tcp_has_a_sequence_number_and_control_bits() {
        for (protocol, ports, control) in [(6, 0x0101, 0x01), (17, 0x0101, 0), (1, 0, 0)] {
            let mut packet = v4(1);
            packet[9] = protocol;
            let frame = frame(0, [0x08, 0x00], &packet);
            let Headers::V4(packet) = parse(&frame, frame.len()) else {
                panic!("protocol {protocol} is not read");
            };
            assert_eq!(packet.ports.source, ports, "protocol {protocol}");
            assert_eq!(packet.tcp.control, control, "protocol {protocol}");
        }
    }

    #[test]
    fn ipv6_fragments_are_recognised_except_atomic_ones() {
        for (offset_and_more, expected) in [
            (0x0000_u16, None),
            (0x0006, None),
            (0x0001, Some(true)),
            (0x0008, Some(false)),
            (0x0009, Some(false)),
            (0x8000, Some(false)),
        ] {
            let [high, low] = offset_and_more.to_be_bytes();
            // A later fragment ends the chain, even if its next header is an extension header.
            let next_header = if expected == Some(false) { 60 } else { 6 };
            let header = [next_header, 0, high, low, 0x12, 0x34, 0x56, 0x78];
            let chain: [&[u8]; 2] = [&[44, 0, 1, 4, 0, 0, 0, 0], &header];
            let frame = frame(0, [0x86, 0xdd], &v6(&chain));
            let Headers::V6(packet) = parse(&frame, frame.len()) else {
                panic!("{offset_and_more:#06x} is not read");
            };
            let first = packet.fragment.map(|fragment| fragment.first);
            assert_eq!(first, expected, "{offset_and_more:#06x}");
            let id = packet.fragment.map(|fragment| fragment.id);
            assert!(id.is_none_or(|id| id == 0x1234_5678));
            let ports = if expected == Some(false) { 0 } else { 0x0101 };
            assert_eq!(packet.ports.source, ports, "{offset_and_more:#06x}");
            assert_eq!(packet.protocol, next_header);
        }
    }
}
