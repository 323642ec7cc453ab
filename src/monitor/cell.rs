//! The keys by which packets are counted. A key never identifies a single destination.

use exitmark_policy::packet::Version;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;
use std::str::FromStr;

/// The default for `memory.cells`. With a full table the whole monitor stays within 64 MiB.
pub const DEFAULT_CELLS: usize = 1 << 17;
/// The largest table of cells; takes 64 MiB.
pub const MAX_CELLS: usize = 1 << 20;

/// Two letters of ISO 3166-1 alpha-2 or of a database's own code, or `??` for unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Country([u8; 2]);

/// The text is neither two letters or digits nor `??`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a country: two letters or digits, or `??` for an unknown one")]
pub struct CountryError(String);

impl Country {
    /// `??`: no database knows the country.
    pub const UNKNOWN: Self = Self(*b"??");
}

impl Default for Country {
    fn default() -> Self {
        Self::UNKNOWN
    }
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

/// Country and autonomous system of a remote address: all that is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The country; `??` if it is unknown.
    pub country: Country,
    /// The autonomous system's number; 0, which is reserved (RFC 7607), means unknown.
    pub asn: u32,
}

impl Place {
    /// Country and autonomous system unknown.
    pub const UNKNOWN: Self = Self {
        country: Country::UNKNOWN,
        asn: 0,
    };
}

/// The key of a counter. Serialised without field names to keep files small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u16, Country, u32, Version)")]
#[serde(into = "(u16, Country, u32, Version)")]
pub struct Cell {
    /// The remote port: of packets up, the destination's; 0 for packets without ports.
    pub port: u16,
    /// Country and autonomous system of the remote address.
    pub place: Place,
    /// IP version of the packets.
    pub version: Version,
}

/// Whether a packet left the host or came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a clearnet address of the host.
    Up,
    /// To a clearnet address of the host.
    Down,
}

/// The directions that are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directions {
    /// Packets of the host.
    #[default]
    Out,
    /// Packets of the host, and those to it.
    Both,
}

/// What is counted in a cell, or a value for each of the five. Serialised without field names, and
/// without the last two if nothing came down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<T>", into = "Vec<T>")]
#[serde(bound(
    serialize = "T: Clone + Default + PartialEq + Serialize",
    deserialize = "T: Default + Deserialize<'de>"
))]
pub struct Counts<T = u64> {
    /// TCP connections begun: segments of the host with SYN and without ACK.
    pub flows: T,
    /// Up: bytes of the IP packets, headers included.
    pub bytes: T,
    /// Up: number of packets, each fragment counting as one.
    pub packets: T,
    /// Down: bytes of the IP packets, headers included.
    pub down_bytes: T,
    /// Down: number of packets, each fragment counting as one.
    pub down_packets: T,
}

/// The list has neither three nor five numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} numbers are not counts: there are three, or five")]
pub struct CountsError(usize);

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

/// Flows, and bytes and packets that went up.
impl<T: Default> From<[T; 3]> for Counts<T> {
    fn from([flows, bytes, packets]: [T; 3]) -> Self {
        Self {
            flows,
            bytes,
            packets,
            ..Self::default()
        }
    }
}

impl<T> From<[T; 5]> for Counts<T> {
    fn from([flows, bytes, packets, down_bytes, down_packets]: [T; 5]) -> Self {
        Self {
            flows,
            bytes,
            packets,
            down_bytes,
            down_packets,
        }
    }
}

impl<T> From<Counts<T>> for [T; 5] {
    fn from(counts: Counts<T>) -> Self {
        [
            counts.flows,
            counts.bytes,
            counts.packets,
            counts.down_bytes,
            counts.down_packets,
        ]
    }
}

impl<T: Default> TryFrom<Vec<T>> for Counts<T> {
    type Error = CountsError;

    fn try_from(numbers: Vec<T>) -> Result<Self, CountsError> {
        let up = |numbers| <[T; 3]>::try_from(numbers).map(Self::from);
        let both = <[T; 5]>::try_from(numbers).map(Self::from);
        both.or_else(up)
            .map_err(|numbers| CountsError(numbers.len()))
    }
}

impl<T: Default + PartialEq> From<Counts<T>> for Vec<T> {
    fn from(counts: Counts<T>) -> Self {
        let [flows, bytes, packets, down @ ..] = <[T; 5]>::from(counts);
        let is_up = down.iter().all(|number| *number == T::default());
        let up = [flows, bytes, packets].into_iter();
        match is_up {
            true => up.collect(),
            false => up.chain(down).collect(),
        }
    }
}

impl<T> Counts<T> {
    /// Replaces flows, bytes and packets, then those that came down, in this order.
    pub fn map<U>(self, to: impl FnMut(T) -> U) -> Counts<U> {
        <[T; 5]>::from(self).map(to).into()
    }

    /// Pairs each value with the other's.
    pub fn zip<U>(self, other: Counts<U>) -> Counts<(T, U)> {
        Counts {
            flows: (self.flows, other.flows),
            bytes: (self.bytes, other.bytes),
            packets: (self.packets, other.packets),
            down_bytes: (self.down_bytes, other.down_bytes),
            down_packets: (self.down_packets, other.down_packets),
        }
    }
}

impl Counts {
    /// The sum; `None` if one of the numbers exceeds 64 bits.
    pub fn checked_add(self, more: Self) -> Option<Self> {
        Some(Self {
            flows: self.flows.checked_add(more.flows)?,
            bytes: self.bytes.checked_add(more.bytes)?,
            packets: self.packets.checked_add(more.packets)?,
            down_bytes: self.down_bytes.checked_add(more.down_bytes)?,
            down_packets: self.down_packets.checked_add(more.down_packets)?,
        })
    }

    /// Bytes in both directions.
    pub const fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.down_bytes)
    }

    /// Packets in both directions.
    pub const fn all_packets(&self) -> u64 {
        self.packets.saturating_add(self.down_packets)
    }

    /// The difference, where it is positive.
    #[must_use]
    pub fn saturating_sub(self, less: Self) -> Self {
        self.zip(less).map(|(all, less)| all.saturating_sub(less))
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let mut sum = Self::default();
        all.for_each(|counts| sum += counts);
        sum
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.flows = self.flows.saturating_add(more.flows);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.packets = self.packets.saturating_add(more.packets);
        self.down_bytes = self.down_bytes.saturating_add(more.down_bytes);
        self.down_packets = self.down_packets.saturating_add(more.down_packets);
    }
}
