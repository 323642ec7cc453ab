//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// The checksum after one 16-bit word that it covers changed from `old` to `new`.
///
/// RFC 1624, equation 4: HC' = HC - ~m - m'. Equation 2 of RFC 1141, which looks simpler, yields
/// the wrong representation of a zero sum. A wrong checksum stays wrong; it is not repaired.
#[inline]
pub const fn replace_word(checksum: u16, old: u16, new: u16) -> u16 {
    subtract(subtract(checksum, !old), new)
}

/// The ones' complement difference, with end-around borrow.
/// The checksum after its sum has grown by `delta`, 0 to 65,534: the words that it covers have
/// changed by that much, modulo 65,535. Like [`replace_word`], this is RFC 1624, equation 3, with
/// `~m + m'` of all changed words in one number: it keeps 0x0000 and 0xffff apart.
#[inline]
pub(super) const fn add_to_sum(checksum: u16, delta: u16) -> u16 {
    let (sum, carried) = (!checksum).overflowing_add(delta);
    !(sum + carried as u16)
}

#[inline]
const fn subtract(from: u16, number: u16) -> u16 {
    let (difference, borrowed) = from.overflowing_sub(number);
    difference - borrowed as u16
}

/// The checksum over `bytes`, computed from scratch; for tests and for generated frames.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the loop folds the sum into 16 bits"
)]
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether the checksum of a whole IPv4 header (options included) is right.
pub fn ipv4_header_checksum_is_good(header: &[u8]) -> bool {
    internet_checksum(header) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000, not 0xFFFF.
        assert_eq!(replace_word(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn agrees_with_a_sum_from_scratch() {
        let mut header = [
            0x45, 0, 0x05, 0xdc, 0x1c, 0x46, 0x40, 0, 0x40, 0x06, 0, 0, 192, 0, 2, 1, 198, 51, 100,
            7,
        ];
        let sum = internet_checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(ipv4_header_checksum_is_good(&header));
        for tos in 0..=u8::MAX {
            let old = u16::from_be_bytes([header[0], header[1]]);
            let sum = u16::from_be_bytes([header[10], header[11]]);
            header[1] = tos;
            let new = u16::from_be_bytes([header[0], header[1]]);
            header[10..12].copy_from_slice(&replace_word(sum, old, new).to_be_bytes());
            assert!(ipv4_header_checksum_is_good(&header), "ToS {tos:#04x}");
        }
    }

    /// Equation 3, HC' = ~(~HC + ~m + m'), gives the same bits, including both zeros.
    #[test]
    fn agrees_with_the_other_equation() {
        let words = [0, 1, 0x28, 0x4500, 0x7fff, 0x8000, 0xffd7, 0xfffe, 0xffff];
        for checksum in 0..=u16::MAX {
            for (old, new) in words.iter().flat_map(|old| words.map(|new| (*old, new))) {
                let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                let expected = !u16::try_from(sum).unwrap();
                assert_eq!(replace_word(checksum, old, new), expected);
            }
        }
    }

    /// 2001:db8::10 becomes 2001:db8:3::10, all at once and word by word.
    #[test]
    fn adding_is_replacing_every_word() {
        for (old, new) in [(0, 3), (3, 0), (0, 0xffff), (0xffff, 0), (0x1234, 0xfffe)] {
            let delta = (u32::from(new) + 65_535 - u32::from(old)) % 65_535;
            let delta = u16::try_from(delta).unwrap();
            // Every checksum that a sender computes: that of a sum above 0.
            for checksum in 0..0xffff {
                let replaced = replace_word(checksum, old, new);
                assert_eq!(
                    add_to_sum(checksum, delta),
                    replaced,
                    "{checksum:#x} {old} {new}"
                );
            }
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_by_the_same_amount() {
        let wrong = replace_word(0x1234, 0x4500, 0x4528);
        assert_eq!(replace_word(wrong, 0x4528, 0x4500), 0x1234);
    }

    #[test]
    fn sums_every_byte_and_folds_every_carry() {
        // RFC 1071, section 3: these sum up to 0xddf2.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&example), !0xddf2);
        // An odd byte counts as the upper half of a word.
        assert_eq!(internet_checksum(&[1, 2, 3]), !0x0402);
        // 0x1ffff folds to 0x10000, which folds to 1.
        let carries_twice = [0xff, 0xff, 0xff, 0xff, 0x00, 0x01];
        assert_eq!(internet_checksum(&carries_twice), !1);
    }

    #[test]
    fn a_header_with_one_wrong_bit_is_not_good() {
        let mut header = [
            0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0,
        ];
        let sum = internet_checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(ipv4_header_checksum_is_good(&header));
        header[8] ^= 1;
        assert!(!ipv4_header_checksum_is_good(&header));
    }
}
