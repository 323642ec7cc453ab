//! The fast path of the parser, for nearly all frames: IPv4 without options or IPv6 without
//! extension headers, unfragmented, TCP or UDP, and long enough for TCP's control bits.
//!
//! In such a frame every field is at a fixed offset behind the tags, so one length check covers all
//! of them. These readers return the same as [`super::parse`], or `None`.

use super::ethernet::{ETHERNET_HEADER_BYTES, IPV4, IPV6};
use super::headers::{Packet, Ports, Tcp, protocol};
use super::vlan::VlanTags;
use super::{ipv4, ipv6};

/// EtherType, version, and IPv4's header length.
const START_V4: u32 = (IPV4 as u32) << 16 | 0x4500;
const START_V6: u32 = (IPV6 as u32) << 16 | 0x6000;
/// Mask of an IPv4 header from its flags to its protocol. It selects the bits that are 0 unless
/// the packet is a fragment, and the protocol; it leaves out DF and the time to live.
const WHOLE_OF: u32 = u32::from_ne_bytes([0x3f, 0xff, 0, 0xff]);
const WHOLE_TCP: u32 = u32::from_ne_bytes([0, 0, 0, protocol::TCP]);
const WHOLE_UDP: u32 = u32::from_ne_bytes([0, 0, 0, protocol::UDP]);

const L3: usize = ETHERNET_HEADER_BYTES;
const BYTES_V4: usize = L3 + ipv4::MIN_BYTES + Tcp::BYTES;
const BYTES_V6: usize = L3 + ipv6::HEADER_BYTES + Tcp::BYTES;

/// The headers of a fast-path IPv4 frame with `tags` bytes of tags (see [`super::tag_bytes`]);
/// otherwise `None`. The other arguments are those of [`super::parse`].
#[inline(always)]
pub fn fast_path_v4(frame: &[u8], tags: usize, frame_bytes: usize) -> Option<Packet<u32>> {
    let head = frame.get(tags..)?.first_chunk::<BYTES_V4>()?;
    // EtherType, version and header length are adjacent; the ToS follows.
    let start = u32::from_be_bytes(*at(head, L3 - 2));
    // Bytes after the control bits, of the packet and of the frame. If the first subtraction wraps,
    // the number is too large and the check below fails.
    let total = usize::from(u16::from_be_bytes(*at(head, L3 + ipv4::TOTAL_LENGTH)));
    let payload = total.wrapping_sub(BYTES_V4 - L3);
    let room = frame_bytes.checked_sub(tags + BYTES_V4)?;
    let middle = u32::from_ne_bytes(*at(head, L3 + ipv4::FLAGS_AND_OFFSET));
    let is_fast_path = start & 0xffff_ff00 == START_V4
        && matches!(middle & WHOLE_OF, WHOLE_TCP | WHOLE_UDP)
        && payload <= room;
    is_fast_path.then(|| Packet {
        source: u32::from_be_bytes(*at(head, L3 + ipv4::SOURCE)),
        destination: u32::from_be_bytes(*at(head, L3 + ipv4::DESTINATION)),
        l3: tags + L3,
        vlan: VlanTags::of(frame, tags + L3),
        ports: ports(head),
        tcp: tcp(head, head[L3 + ipv4::PROTOCOL]),
        fragment: None,
        tos: head[L3 + 1],
        protocol: head[L3 + ipv4::PROTOCOL],
    })
}

/// The headers of a fast-path IPv6 frame, as [`fast_path_v4`].
#[inline(always)]
pub fn fast_path_v6(frame: &[u8], tags: usize, frame_bytes: usize) -> Option<Packet<u128>> {
    let head = frame.get(tags..)?.first_chunk::<BYTES_V6>()?;
    let start = u32::from_be_bytes(*at(head, L3 - 2));
    let total = usize::from(u16::from_be_bytes(*at(head, L3 + ipv6::PAYLOAD_LENGTH)));
    let payload = total.wrapping_sub(Tcp::BYTES);
    let room = frame_bytes.checked_sub(tags + BYTES_V6)?;
    let protocol = head[L3 + ipv6::NEXT_HEADER];
    let is_fast_path = start & 0xffff_f000 == START_V6
        && matches!(protocol, protocol::TCP | protocol::UDP)
        && payload <= room;
    is_fast_path.then(|| Packet {
        source: u128::from_be_bytes(*at(head, L3 + ipv6::SOURCE)),
        destination: u128::from_be_bytes(*at(head, L3 + ipv6::DESTINATION)),
        l3: tags + L3,
        vlan: VlanTags::of(frame, tags + L3),
        ports: ports(head),
        tcp: tcp(head, protocol),
        fragment: None,
        tos: head[L3] << 4 | head[L3 + 1] >> 4,
        protocol,
    })
}

#[inline(always)]
fn ports<const N: usize>(head: &[u8; N]) -> Ports {
    Ports {
        source: u16::from_be_bytes(*at(head, N - Tcp::BYTES)),
        destination: u16::from_be_bytes(*at(head, N - Tcp::BYTES + 2)),
    }
}

/// The TCP fields at the end of a fast-path frame's headers.
#[inline(always)]
fn tcp<const N: usize>(head: &[u8; N], protocol: u8) -> Tcp {
    match protocol {
        protocol::TCP => Tcp::read(at(head, N - Tcp::BYTES)),
        _ => Tcp::default(),
    }
}

/// The bytes of a field within the headers. All offsets are constants, so the compiler removes the
/// bounds checks.
#[inline(always)]
fn at<const FIELD: usize, const N: usize>(head: &[u8; N], offset: usize) -> &[u8; FIELD] {
    match head[offset..].first_chunk() {
        Some(field) => field,
        None => const { &[0; FIELD] },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Headers;
    use super::*;

    /// The beginning of a TCP header: ports 0x1122 and 0x3344, sequence number 0x55667788, ACK and
    /// SYN.
    const TRANSPORT: [u8; 14] = [
        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0x50, 0x12,
    ];
    const TCP: Tcp = Tcp {
        sequence: 0x5566_7788,
        control: 0x12,
    };
    const PORTS: Ports = Ports {
        source: 0x1122,
        destination: 0x3344,
    };

    /// A frame with `tags` bytes of tags and a packet with two bytes behind its control bits.
    fn frame(tags: usize, ethertype: u16, header: &[u8]) -> Vec<u8> {
        let tag = [0x81, 0x00, 0x20, 0x64].repeat(tags / 4);
        [
            &[2; 12],
            &tag[..],
            &ethertype.to_be_bytes(),
            header,
            &TRANSPORT,
            &[0xdd, 0xee],
        ]
        .concat()
    }

    fn v4(tags: usize) -> Vec<u8> {
        let header = [
            0x45, 0xab, 0, 36, 0x12, 0x34, 0x40, 0, 63, 6, 0xcd, 0xef, 192, 0, 2, 10, 198, 51, 100,
            7,
        ];
        frame(tags, IPV4, &header)
    }

    fn v6(tags: usize) -> Vec<u8> {
        let mut header = vec![0x6a, 0xbc, 0xde, 0xf0, 0, 16, 6, 63];
        header.extend(0x10..0x30);
        frame(tags, IPV6, &header)
    }

    /// Whether each of the two readers reads a frame with these bytes changed.
    fn changed(whole: &[u8], changes: &[(usize, u8)]) -> [bool; 2] {
        let mut frame = whole.to_vec();
        for (at, byte) in changes {
            frame[*at] = *byte;
        }
        let v4 = fast_path_v4(&frame, 0, frame.len());
        let v6 = fast_path_v6(&frame, 0, frame.len());
        // The readers agree with the general parser.
        match super::super::parse(&frame, frame.len()) {
            Headers::V4(packet) => assert!(v4.is_none_or(|fast| fast == packet)),
            Headers::V6(packet) => assert!(v6.is_none_or(|fast| fast == packet)),
            Headers::NotIp | Headers::Malformed(_) => assert!(v4.is_none() && v6.is_none()),
        }
        [v4.is_some(), v6.is_some()]
    }

    #[test]
    fn every_field_is_read_behind_tags() {
        fn packet<A>(tags: usize, source: A, destination: A) -> Packet<A> {
            Packet {
                source,
                destination,
                l3: tags + 14,
                vlan: match tags {
                    0 => VlanTags::UNTAGGED,
                    4 => VlanTags::one(100),
                    _ => VlanTags::pair(100, 100),
                },
                ports: PORTS,
                tcp: TCP,
                fragment: None,
                tos: 0xab,
                protocol: 6,
            }
        }
        for tags in [0, 4, 8] {
            let frame = v4(tags);
            let expected = packet(tags, 0xc000_020a, 0xc633_6407);
            assert_eq!(fast_path_v4(&frame, tags, frame.len()), Some(expected));
            assert_eq!(fast_path_v6(&frame, tags, frame.len()), None);
            let frame = v6(tags);
            let source = 0x1011_1213_1415_1617_1819_1a1b_1c1d_1e1f;
            let destination = 0x2021_2223_2425_2627_2829_2a2b_2c2d_2e2f;
            let expected = packet(tags, source, destination);
            assert_eq!(fast_path_v6(&frame, tags, frame.len()), Some(expected));
            assert_eq!(fast_path_v4(&frame, tags, frame.len()), None);
        }
    }

    #[test]
    fn udp_has_no_sequence_number_and_no_control_bits() {
        let (mut v4, mut v6) = (v4(0), v6(0));
        (v4[23], v6[20]) = (17, 17);
        let v4 = fast_path_v4(&v4, 0, v4.len()).unwrap();
        assert_eq!((v4.protocol, v4.ports, v4.tcp), (17, PORTS, Tcp::default()));
        let v6 = fast_path_v6(&v6, 0, v6.len()).unwrap();
        assert_eq!((v6.protocol, v6.ports, v6.tcp), (17, PORTS, Tcp::default()));
    }

    #[test]
    fn leaves_other_ipv4_frames_to_the_parser() {
        const READ: [bool; 2] = [true, false];
        const LEFT: [bool; 2] = [false, false];
        for (changes, expected) in [
            (&[(13, 0x06)][..], LEFT),
            (&[(12, 0x09)], LEFT),
            (&[(14, 0x55)], LEFT),
            (&[(14, 0x46)], LEFT),
            (&[(15, 0xff)], READ),
            // More fragments; each half of the offset; don't fragment.
            (&[(20, 0x20)], LEFT),
            (&[(20, 0x01)], LEFT),
            (&[(21, 0x01)], LEFT),
            (&[(20, 0xc0)], READ),
            (&[(22, 0xff)], READ),
            (&[(23, 1)], LEFT),
            // 34 bytes end with the control bits, 36 with the frame.
            (&[(17, 33)], LEFT),
            (&[(17, 34)], READ),
            (&[(17, 37)], LEFT),
            (&[(16, 1)], LEFT),
        ] {
            assert_eq!(changed(&v4(0), changes), expected, "{changes:?}");
        }
    }

    #[test]
    fn leaves_other_ipv6_frames_to_the_parser() {
        const READ: [bool; 2] = [false, true];
        const LEFT: [bool; 2] = [false, false];
        for (changes, expected) in [
            (&[(13, 0xdc)][..], LEFT),
            (&[(14, 0x7a)], LEFT),
            (&[(14, 0x60)], READ),
            (&[(15, 0x00)], READ),
            (&[(20, 60)], LEFT),
            (&[(20, 1)], LEFT),
            // 14 bytes end with the control bits, 16 with the frame.
            (&[(19, 13)], LEFT),
            (&[(19, 14)], READ),
            (&[(19, 17)], LEFT),
            (&[(18, 1)], LEFT),
        ] {
            assert_eq!(changed(&v6(0), changes), expected, "{changes:?}");
        }
    }

    /// A frame may be longer than its readable part, and the packet shorter than its frame.
    #[test]
    fn the_packet_is_within_the_frame_and_the_headers_are_readable() {
        for tags in [0, 4] {
            for (whole, headers) in [(v4(tags), 48), (v6(tags), 68)] {
                let is_read = |readable: usize, frame_bytes: usize| {
                    let frame = &whole[..readable];
                    fast_path_v4(frame, tags, frame_bytes).is_some()
                        || fast_path_v6(frame, tags, frame_bytes).is_some()
                };
                let (headers, length) = (tags + headers, whole.len());
                assert!(is_read(headers, length));
                assert!(!is_read(headers - 1, length));
                assert!(is_read(length, length + 100));
                assert!(!is_read(length, length - 1));
                assert!(!is_read(length, headers - 1));
            }
        }
    }
}
