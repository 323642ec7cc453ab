//! The differentiated-services code point (RFC 2474) and the ECN bits (RFC 3168).
//!
//! They share one byte (IPv4's ToS, IPv6's traffic class). Separate types prevent code that may
//! change only the six DSCP bits from writing the whole byte.

use std::fmt;
use std::str::FromStr;

/// A code point: six bits, 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dscp(u8);

/// The two ECN bits (RFC 3168), which exitmark never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecn(u8);

/// The names of RFC 2474 (CS), 2597 (AF), 3246 (EF), 5865 (VA) and 8622 (LE).
const NAMES: [(&str, u8); 23] = [
    ("cs0", 0),
    ("le", 1),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("va", 44),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

/// Why a value is not a code point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DscpError {
    /// A number above 63, the largest of six bits. Holds the number.
    #[error("{0} is not a DSCP: it has six bits, 0 to 63 (for the whole ToS byte, use `tos`)")]
    TooLarge(u64),
    /// A ToS byte whose low two bits are set.
    #[error(
        "ToS byte {0:#04x} sets the ECN bits (its low two), which belong to the hosts; \
         clear them, e.g. {1:#04x}"
    )]
    TosSetsEcn(u8, u8),
    /// A text that is not a name of RFC 2474, 2597, 3246, 5865 or 8622, in upper or lower case. Holds
    /// the text.
    #[error("`{0}` is not a DSCP name; accepted are {names}, or a number 0 to 63", names = names())]
    UnknownName(String),
}

fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

impl Dscp {
    /// Best effort, the code point of unmarked traffic.
    pub const DEFAULT: Self = Self(0);
    /// AF11 (RFC 2597), ToS byte 0x28: the scheme's original value.
    pub const AF11: Self = Self(10);

    /// Every code point, indexed by its number.
    pub const ALL: [Self; 64] = {
        let mut all = [Self(0); 64];
        let mut bits = 0;
        while bits < 64 {
            all[bits as usize] = Self(bits);
            bits += 1;
        }
        all
    };

    /// A code point from its number.
    ///
    /// # Errors
    /// A number above 63.
    pub fn new(number: u64) -> Result<Self, DscpError> {
        match u8::try_from(number) {
            Ok(bits) if bits < 64 => Ok(Self(bits)),
            _ => Err(DscpError::TooLarge(number)),
        }
    }

    /// The code point of a ToS byte whose ECN bits are 0.
    ///
    /// # Errors
    /// A byte with ECN bits.
    pub fn from_tos(tos: u8) -> Result<Self, DscpError> {
        match Ecn::of(tos) {
            Ecn(0) => Ok(Self::of(tos)),
            Ecn(_) => Err(DscpError::TosSetsEcn(tos, tos & !0b11)),
        }
    }

    /// The code point that a ToS or traffic-class byte carries.
    #[inline]
    pub const fn of(tos: u8) -> Self {
        Self(tos >> 2)
    }

    /// The six bits as a number, 0 to 63.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The ToS or traffic-class byte of this code point with these ECN bits.
    #[inline]
    pub const fn with_ecn(self, ecn: Ecn) -> u8 {
        self.0 << 2 | ecn.0
    }
}

impl Ecn {
    /// The ECN bits that a ToS or traffic-class byte carries.
    #[inline]
    pub const fn of(tos: u8) -> Self {
        Self(tos & 0b11)
    }
}

impl FromStr for Dscp {
    type Err = DscpError;

    /// Parses a name such as `af11`, ignoring case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        NAMES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text))
            .map(|&(_, bits)| Self(bits))
            .ok_or_else(|| DscpError::UnknownName(text.to_owned()))
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|&&(_, bits)| bits == self.0) {
            Some((name, bits)) => write!(f, "{name} ({bits})"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_joins_every_byte() {
        for tos in 0..=u8::MAX {
            assert_eq!(Dscp::of(tos).with_ecn(Ecn::of(tos)), tos);
        }
    }

    #[test]
    fn reads_names_numbers_and_tos_bytes() {
        assert_eq!("AF11".parse(), Ok(Dscp::AF11));
        assert_eq!("le".parse(), Ok(Dscp(1)));
        assert_eq!("ef".parse(), Ok(Dscp(46)));
        assert_eq!(Dscp::new(63), Ok(Dscp(63)));
        assert_eq!(Dscp::from_tos(0x28), Ok(Dscp::AF11));
    }

    #[test]
    fn refuses_invalid_code_points() {
        assert_eq!(Dscp::new(64), Err(DscpError::TooLarge(64)));
        assert_eq!(Dscp::new(1 << 40), Err(DscpError::TooLarge(1 << 40)));
        assert_eq!(Dscp::from_tos(0x29), Err(DscpError::TosSetsEcn(0x29, 0x28)));
        let unknown = "af14".parse::<Dscp>().unwrap_err();
        assert!(unknown.to_string().contains("af13"), "{unknown}");
    }

    #[test]
    fn assured_forwarding_follows_its_formula() {
        // RFC 2597: class n and drop precedence m are 8n + 2m.
        for class in 1..=4 {
            for precedence in 1..=3 {
                let name = format!("af{class}{precedence}");
                assert_eq!(name.parse(), Ok(Dscp(8 * class + 2 * precedence)));
            }
        }
    }

    #[test]
    fn shows_the_name_where_there_is_one() {
        assert_eq!(Dscp::AF11.to_string(), "af11 (10)");
        assert_eq!(Dscp(11).to_string(), "11");
    }

    #[test]
    fn every_code_point_stands_at_its_number() {
        let numbers = Dscp::ALL.map(Dscp::bits);
        assert!((0..64).eq(numbers), "{numbers:?}");
    }
}
