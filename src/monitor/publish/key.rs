//! The key of a row, and which coarser rows contain it.

use crate::cell::{Cell, Country, Counts};
use crate::ledger::Ledger;
use crate::row::{Dimension, Encryption, Row};
use crate::services;
use exitmark_policy::packet::Version;
use std::collections::BTreeMap;

/// The key of a row within its dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// Of [`Dimension::Total`], which has one row.
    Total,
    /// Of [`Dimension::Port`]; 0 for packets without ports.
    Port(u16),
    /// Of [`Dimension::System`].
    System(u32),
    /// Of [`Dimension::Country`].
    Country(Country),
    /// Of [`Dimension::IpVersion`].
    IpVersion(Version),
    /// Of [`Dimension::Encryption`].
    Encryption(Encryption),
    /// Of [`Dimension::PortCountry`].
    PortCountry(u16, Country),
    /// Of [`Dimension::PortSystem`].
    PortSystem(u16, u32),
    /// Of [`Dimension::SystemCountry`].
    SystemCountry(u32, Country),
}

impl RowKey {
    /// The row of a dimension that counts a cell.
    pub fn of(dimension: Dimension, cell: &Cell) -> Self {
        let (port, place) = (cell.port, cell.place);
        match dimension {
            Dimension::Total => Self::Total,
            Dimension::Port => Self::Port(port),
            Dimension::System => Self::System(place.asn),
            Dimension::Country => Self::Country(place.country),
            Dimension::IpVersion => Self::IpVersion(cell.version),
            Dimension::Encryption => Self::Encryption(services::encryption(port)),
            Dimension::PortCountry => Self::PortCountry(port, place.country),
            Dimension::PortSystem => Self::PortSystem(port, place.asn),
            Dimension::SystemCountry => Self::SystemCountry(place.asn, place.country),
        }
    }

    /// The exact sums of a dimension. Dimensions of two columns lack what was spilled.
    pub fn sums(dimension: Dimension, ledger: &Ledger) -> BTreeMap<Self, Counts> {
        let of = |cell: &Cell| Self::of(dimension, cell);
        let spilled = &ledger.spilled;
        match dimension {
            Dimension::Total => ledger.sums(of, &spilled.ports, |_| Self::Total),
            Dimension::Port => ledger.sums(of, &spilled.ports, Self::Port),
            Dimension::Encryption => ledger.sums(of, &spilled.ports, |port| {
                Self::Encryption(services::encryption(port))
            }),
            Dimension::System => ledger.sums(of, &spilled.systems, Self::System),
            Dimension::Country => ledger.sums(of, &spilled.countries, Self::Country),
            Dimension::IpVersion => ledger.sums(of, &spilled.versions, Self::IpVersion),
            Dimension::PortCountry | Dimension::PortSystem | Dimension::SystemCountry => {
                ledger.sums::<_, ()>(of, &[], |()| Self::Total)
            }
        }
    }

    /// The dimensions whose rows are sums of rows of `dimension`.
    pub const fn coarser(dimension: Dimension) -> &'static [Dimension] {
        use Dimension::{Country, Encryption, Port, System, Total};
        match dimension {
            Dimension::Total => &[],
            Port | System | Country | Dimension::IpVersion | Encryption => &[Total],
            Dimension::PortCountry => &[Total, Encryption, Port, Country],
            Dimension::PortSystem => &[Total, Encryption, Port, System],
            Dimension::SystemCountry => &[Total, System, Country],
        }
    }

    /// The row of a coarser dimension that contains this row; `None` if `dimension` is not coarser.
    pub fn within(self, dimension: Dimension) -> Option<Self> {
        match (dimension, self) {
            (Dimension::Total, _) => Some(Self::Total),
            (
                Dimension::Encryption,
                Self::Port(port) | Self::PortCountry(port, _) | Self::PortSystem(port, _),
            ) => Some(Self::Encryption(services::encryption(port))),
            (Dimension::Port, Self::PortCountry(port, _) | Self::PortSystem(port, _)) => {
                Some(Self::Port(port))
            }
            (Dimension::System, Self::PortSystem(_, asn) | Self::SystemCountry(asn, _)) => {
                Some(Self::System(asn))
            }
            (
                Dimension::Country,
                Self::PortCountry(_, country) | Self::SystemCountry(_, country),
            ) => Some(Self::Country(country)),
            _ => None,
        }
    }

    /// Writes the key's columns into a row.
    pub fn write(self, row: &mut Row) {
        match self {
            Self::Total => {}
            Self::Port(port) => row.port = Some(port),
            Self::System(asn) => row.asn = Some(asn),
            Self::Country(country) => row.country = Some(country),
            Self::IpVersion(Version::V4) => row.ip_version = Some(4),
            Self::IpVersion(Version::V6) => row.ip_version = Some(6),
            Self::Encryption(encryption) => row.encryption = Some(encryption),
            Self::PortCountry(port, country) => {
                (row.port, row.country) = (Some(port), Some(country));
            }
            Self::PortSystem(port, asn) => (row.port, row.asn) = (Some(port), Some(asn)),
            Self::SystemCountry(asn, country) => {
                (row.asn, row.country) = (Some(asn), Some(country));
            }
        }
    }
}
