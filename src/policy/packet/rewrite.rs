//! The only code that changes frames: the six DSCP bits, the IPv4 header checksum that covers
//! them, and the MAC addresses of frames that leave for another network.

use super::checksum::replace_word;
use super::dscp::{Dscp, Ecn};
use super::ethernet::{MacAddr, MacPair};
use super::headers::Version;

/// Sets the DSCP of the IP packet at `l3`, and updates IPv4's header checksum. Changes nothing
/// else: not the ECN bits, and not a packet that already has this DSCP.
///
/// `l3` and `version` must be those of [`super::parse`] for the same frame. A frame that ends
/// before the fields is not changed.
#[inline]
pub fn set_dscp(frame: &mut [u8], l3: usize, version: Version, dscp: Dscp) {
    match version {
        Version::V4 => {
            let header = frame.get_mut(l3..).and_then(<[u8]>::first_chunk_mut);
            let Some([_, tos, _, _, _, _, _, _, _, _, high, low]) = header else {
                return;
            };
            // The sum works in either byte order (RFC 1071, section 2), so use the native one.
            // The word's other byte does not change, so its value does not matter.
            let old = u16::from_ne_bytes([0, *tos]);
            *tos = dscp.with_ecn(Ecn::of(*tos));
            let new = u16::from_ne_bytes([0, *tos]);
            if new != old {
                let sum = replace_word(u16::from_ne_bytes([*high, *low]), old, new);
                [*high, *low] = sum.to_ne_bytes();
            }
        }
        Version::V6 => {
            // Version (4 bits), traffic class (8), flow label (20).
            let Some([first, second]) = frame.get_mut(l3..l3 + 2) else {
                return;
            };
            let tos = dscp.with_ecn(Ecn::of(*first << 4 | *second >> 4));
            *first = *first & 0xf0 | tos >> 4;
            *second = tos << 4 | *second & 0x0f;
        }
    }
}

/// Sets both MAC addresses. A runt without them is not changed.
#[inline]
pub fn set_macs(frame: &mut [u8], macs: MacPair) {
    if let Some(header) = frame.first_chunk_mut() {
        *header = macs.bytes();
    }
}

/// Sets only the destination MAC address. A runt without it is not changed.
#[inline]
pub fn set_destination_mac(frame: &mut [u8], destination: MacAddr) {
    if let Some(header) = frame.first_chunk_mut::<6>() {
        *header = destination.bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Headers, internet_checksum, ipv4_header_checksum_is_good, parse};
    use super::*;

    fn frame(version: Version, tos: u8) -> Vec<u8> {
        let mut frame = vec![0x02; 12];
        match version {
            Version::V4 => {
                frame
                    .extend_from_slice(&[0x08, 0x00, 0x45, tos, 0, 40, 0xbe, 0xef, 0x40, 0, 64, 6]);
                frame.extend_from_slice(&[0, 0, 192, 0, 2, 1, 198, 51, 100, 7]);
                let sum = internet_checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            Version::V6 => {
                frame.extend_from_slice(&[
                    0x86,
                    0xdd,
                    0x60 | tos >> 4,
                    tos << 4 | 0x0a,
                    0xbc,
                    0xde,
                ]);
                frame.extend_from_slice(&[0, 20, 6, 64]);
                frame.extend_from_slice(&[0x20; 32]);
            }
        }
        frame.extend_from_slice(&[0x55; 20]);
        frame
    }

    /// Every ToS byte, both families, every code point: the right byte, a right checksum, no
    /// other bit changed, and marking twice equals marking once.
    #[test]
    fn marks_every_tos_byte_with_every_code_point() {
        for version in [Version::V4, Version::V6] {
            for tos in 0..=u8::MAX {
                for bits in 0..64 {
                    let dscp = Dscp::new(bits).unwrap();
                    let before = frame(version, tos);
                    let mut after = before.clone();
                    set_dscp(&mut after, 14, version, dscp);
                    let read_back = match parse(&after, after.len()) {
                        Headers::V4(packet) => packet.tos,
                        Headers::V6(packet) => packet.tos,
                        other => panic!("unreadable after the rewrite: {other:?}"),
                    };
                    assert_eq!(read_back, dscp.with_ecn(Ecn::of(tos)));
                    let expected = frame(version, read_back);
                    assert_eq!(after, expected, "{version:?} {tos:#04x} {dscp}");
                    if version == Version::V4 {
                        assert!(ipv4_header_checksum_is_good(&after[14..34]));
                    }
                    let mut twice = after.clone();
                    set_dscp(&mut twice, 14, version, dscp);
                    assert_eq!(twice, after);
                }
            }
        }
    }

    #[test]
    fn a_truncated_frame_does_not_change() {
        for version in [Version::V4, Version::V6] {
            let fields = if version == Version::V4 { 26 } else { 16 };
            for cut in 0..fields {
                let mut cut_frame = frame(version, 0)[..cut].to_vec();
                let before = cut_frame.clone();
                set_dscp(&mut cut_frame, 14, version, Dscp::AF11);
                assert_eq!(cut_frame, before);
            }
        }
        let mut runt = [7; 5];
        let [destination, source] = [2, 4].map(|byte| MacAddr::new([byte; 6]));
        set_macs(&mut runt, MacPair::new(destination, source));
        set_destination_mac(&mut runt, MacAddr::new([2; 6]));
        assert_eq!(runt, [7; 5]);
    }

    #[test]
    fn mac_addresses_are_set_and_nothing_behind_them() {
        let [destination, source] = [2, 4].map(|byte| MacAddr::new([byte; 6]));
        let mut frame = [7; 14];
        set_macs(&mut frame, MacPair::new(destination, source));
        assert_eq!(frame, [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 7, 7]);
        let mut frame = [7; 14];
        set_destination_mac(&mut frame, destination);
        assert_eq!(frame, [2, 2, 2, 2, 2, 2, 7, 7, 7, 7, 7, 7, 7, 7]);
    }
}
