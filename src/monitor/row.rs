//! A row of a period file, in the format of docs/periods.md. Databases load it directly: every row
//! has the same flat columns, and columns without a value are omitted.

use super::cell::{Country, Counts, Directions};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of the format: 1 had one direction, and neither this number nor any column of the
/// other direction.
pub const FORMAT: u32 = 2;

/// Years in which periods may begin; another year means a wrong clock.
pub const YEARS: std::ops::Range<i16> = 2000..2200;

/// A statistic: what its rows are keyed by.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// All packets: one row, which also has the columns of [`About`].
    #[default]
    Total,
    /// By remote port (`port`): the destination of what goes up.
    Port,
    /// By autonomous system (`asn`).
    System,
    /// By country (`country`).
    Country,
    /// By IP version (`ip_version`).
    IpVersion,
    /// By whether the usual protocol of the port encrypts.
    Encryption,
    /// By destination port and country.
    PortCountry,
    /// By destination port and autonomous system.
    PortSystem,
    /// By autonomous system and country.
    SystemCountry,
}

/// Whether the protocol that is usual at a port encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Encrypts from the first byte (HTTPS, SSH).
    Encrypted,
    /// Does not encrypt, or only after STARTTLS or the like (HTTP, SMTP).
    Plain,
    /// The port is not in the table of services, or its usual protocol may or may not encrypt.
    Unknown,
}

/// A row of a period file, one line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When the period began, inclusive (RFC 3339, UTC).
    pub period_start: Timestamp,
    /// When the period ended, exclusive.
    pub period_end: Timestamp,
    /// The exit's name, as configured.
    pub exit: String,
    /// The statistic that the row belongs to.
    pub dimension: Dimension,
    /// The destination port; 0 for packets without ports. `None` in dimensions without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The autonomous system's number; 0 where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    /// The autonomous system's name, if a database has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_name: Option<String>,
    /// The country's two letters; `??` if it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// The IP version, 4 or 6. `None` in other dimensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<u8>,
    /// Whether the port's usual protocol encrypts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Whether the row is the sum of everything in this dimension without a row of its own.
    pub other: bool,
    /// Flows, and bytes and packets in each direction, rounded up.
    #[serde(flatten, with = "CountColumns")]
    pub counts: Counts,
    /// Only in the row of the total.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
}

/// The columns of [`Counts`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Counts")]
pub(super) struct CountColumns {
    flows: u64,
    bytes: u64,
    packets: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    down_bytes: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    down_packets: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The version of files that do not name theirs.
const fn first_format() -> u32 {
    1
}

/// How the numbers of a period were made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Version of the format, [`FORMAT`].
    #[serde(default = "first_format")]
    pub format: u32,
    /// The directions that were counted.
    #[serde(default)]
    pub directions: Directions,
    /// Version of exitmark-monitor.
    pub monitor: String,
    /// The part of the period, from 1. A second part exists if the clock was set back.
    pub part: u32,
    /// Seconds of the period during which the tap was watched.
    pub watched_seconds: u64,
    /// Bytes of the total, rounded up, that are in no other row: packets to where no connection had
    /// begun in the period.
    #[serde(default)]
    pub unattributed_bytes: u64,
    /// Packets of the total, rounded up, that are in no other row.
    #[serde(default)]
    pub unattributed_packets: u64,
    /// As `unattributed_bytes`, of what came down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unattributed_down_bytes: u64,
    /// As `unattributed_packets`, of what came down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unattributed_down_packets: u64,
    /// Packets lost between the kernel's filter and the count.
    pub lost_packets: u64,
    /// The database of countries, with its version and date.
    pub countries: String,
    /// The database of autonomous systems; empty without one.
    pub systems: String,
    /// Rows of a dimension at most, without `other`.
    pub top: u32,
    /// Flows that a row needs at least.
    pub threshold_flows: u64,
    /// Flows are rounded up to multiples of this.
    pub bin_flows: u64,
    /// Bytes are rounded up to multiples of this.
    pub bin_bytes: u64,
    /// Packets are rounded up to multiples of this.
    pub bin_packets: u64,
    /// Bytes that came down are rounded up to multiples of this; 0 before format 2.
    #[serde(default)]
    pub bin_down_bytes: u64,
    /// Packets that came down are rounded up to multiples of this; 0 before format 2.
    #[serde(default)]
    pub bin_down_packets: u64,
    /// The privacy parameter of the noise, 0 where none was added.
    pub epsilon: f64,
    /// Whether the table of cells was full; dimensions of two columns are then incomplete.
    pub spilled: bool,
}
