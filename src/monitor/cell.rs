//! What packets are counted by. None of it names a destination.

use crate::packet::Version;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

/// How many cells are counted apart unless somebody says so: full, and with all that has to be
/// beside it, the monitor stays within 64 MiB.
pub const DEFAULT_CELLS: usize = 1 << 17;
/// How many there can be at most: their table takes 64 MiB.
pub const MAX_CELLS: usize = 1 << 20;

/// A country's two letters (ISO 3166-1 alpha-2, and what databases have beside it), or `??`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Country([u8; 2]);

/// Not two letters, digits or question marks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no country: two letters or digits, or `??` for an unknown one")]
pub struct CountryError(String);

impl Country {
    /// Where nobody knows.
    pub const UNKNOWN: Self = Self(*b"??");
}

impl FromStr for Country {
    type Err = CountryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match *text.as_bytes() {
            [b'?', b'?'] => Ok(Self::UNKNOWN),
            [first, second] if first.is_ascii_alphanumeric() && second.is_ascii_alphanumeric() => {
                Ok(Self([first, second].map(|byte| byte.to_ascii_uppercase())))
            }
            _ => Err(CountryError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Country {
    type Error = CountryError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Country> for String {
    fn from(country: Country) -> Self {
        country.to_string()
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|&byte| write!(f, "{}", char::from(byte)))
    }
}

/// All that is kept of a destination's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The country.
    pub country: Country,
    /// The autonomous system's number; 0, which nobody can have (RFC 7607), where it is unknown.
    pub asn: u32,
}

impl Place {
    /// Nobody knows where.
    pub const UNKNOWN: Self = Self {
        country: Country::UNKNOWN,
        asn: 0,
    };
}

/// What is counted apart. Stored without the names of its fields: there are many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u16, Country, u32, Version)")]
#[serde(into = "(u16, Country, u32, Version)")]
pub struct Cell {
    /// The destination port.
    pub port: u16,
    /// Where the destination is.
    pub place: Place,
    /// The IP version.
    pub version: Version,
}

/// What is counted of it. Stored without the names of its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u64)", into = "(u64, u64, u64)")]
pub struct Counts {
    /// TCP connections begun: segments with SYN and without ACK.
    pub flows: u64,
    /// Bytes of the IP packets, headers included.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

impl From<(u16, Country, u32, Version)> for Cell {
    fn from((port, country, asn, version): (u16, Country, u32, Version)) -> Self {
        Self {
            port,
            place: Place { country, asn },
            version,
        }
    }
}

impl From<Cell> for (u16, Country, u32, Version) {
    fn from(cell: Cell) -> Self {
        let Place { country, asn } = cell.place;
        (cell.port, country, asn, cell.version)
    }
}

impl From<(u64, u64, u64)> for Counts {
    fn from((flows, bytes, packets): (u64, u64, u64)) -> Self {
        Self {
            flows,
            bytes,
            packets,
        }
    }
}

impl From<Counts> for (u64, u64, u64) {
    fn from(counts: Counts) -> Self {
        (counts.flows, counts.bytes, counts.packets)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.flows = self.flows.saturating_add(more.flows);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.packets = self.packets.saturating_add(more.packets);
    }
}
