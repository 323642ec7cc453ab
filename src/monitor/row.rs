//! A line of a period's file: the format that docs/periods.md documents, and that databases load
//! as it is. Every line has the same flat columns; those that say nothing are left out.

use super::cell::Country;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The years in which periods begin: what is of another one had a wrong clock.
pub const YEARS: std::ops::Range<i16> = 2000..2200;

/// What the packets of a row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// That they were counted at all: one row, which has the columns of [`About`] too.
    Total,
    /// The destination port.
    Port,
    /// The autonomous system.
    System,
    /// The country.
    Country,
    /// The IP version.
    IpVersion,
    /// Whether the port is one of a protocol that encrypts.
    Encryption,
    /// Port and country.
    PortCountry,
    /// Port and autonomous system.
    PortSystem,
    /// Autonomous system and country.
    SystemCountry,
}

/// Whether a protocol encrypts, as far as the port tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// From the first byte (HTTPS, SSH).
    Encrypted,
    /// Not, or not always (HTTP, and what may change over to TLS).
    Plain,
    /// Nobody can tell by the port.
    Unknown,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When the period began, inclusive (RFC 3339, UTC).
    pub period_start: Timestamp,
    /// When it ended, exclusive.
    pub period_end: Timestamp,
    /// The name that the operator gave the exit.
    pub exit: String,
    /// Which statistic the row belongs to.
    pub dimension: Dimension,
    /// The destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The autonomous system's number; 0 where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    /// Its name, where a database has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_name: Option<String>,
    /// The country's two letters, `??` where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<u8>,
    /// Whether the port's protocol encrypts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Everything of this dimension that has no row of its own.
    pub other: bool,
    /// TCP connections begun, rounded up.
    pub flows: u64,
    /// Bytes of IP packets, rounded up.
    pub bytes: u64,
    /// Packets, rounded up.
    pub packets: u64,
    /// In the row of the total alone.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
}

/// How the numbers of a period came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The program's version.
    pub monitor: String,
    /// Which part of the period this file is, from 1: a second one is there where the clock was
    /// set back.
    pub part: u32,
    /// Seconds of the period during which the tap was watched.
    pub watched_seconds: u64,
    /// Bytes of the total, rounded up, that are in no other row: of packets to where no connection
    /// had begun in the period.
    #[serde(default)]
    pub unattributed_bytes: u64,
    /// Packets, likewise.
    #[serde(default)]
    pub unattributed_packets: u64,
    /// Packets that were lost between the kernel's filter and the count.
    pub lost_packets: u64,
    /// The database of countries, with its version and date.
    pub countries: String,
    /// The database of autonomous systems; empty where there is none.
    pub systems: String,
    /// How many rows a dimension has at most, without `other`.
    pub top: u32,
    /// Fewer flows than this have no row of their own.
    pub threshold_flows: u64,
    /// Flows are rounded up to multiples of this,
    pub bin_flows: u64,
    /// bytes of this,
    pub bin_bytes: u64,
    /// and packets of this.
    pub bin_packets: u64,
    /// The privacy parameter of the noise, 0 where none was added.
    pub epsilon: f64,
    /// Whether the table of cells was full: then dimensions of two columns miss something.
    pub spilled: bool,
}
