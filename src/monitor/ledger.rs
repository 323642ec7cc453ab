//! Exact counts of a period or a part of one. No address is in them, and still they are nobody's
//! affair: they are kept for a restart, and else only [`super::publish`] reads them.

use super::cell::{Cell, Country, Counts};
use crate::packet::Version;
use serde::{Deserialize, Serialize};

/// Exact counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// What was counted by everything at once; no cell is there twice.
    pub cells: Vec<(Cell, Counts)>,
    /// What came when the table of cells was full.
    pub spilled: Spilled,
    /// Packets that the kernel let through and that were lost on the way, as far as it knows.
    pub lost: u64,
    /// For how many seconds the tap was watched.
    pub watched_seconds: u64,
}

/// Packets for which there was no cell any more, each counted once in every dimension: what a full
/// table costs is what lies between the dimensions, never a number of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spilled {
    /// By destination port.
    pub ports: Vec<(u16, Counts)>,
    /// By autonomous system.
    pub systems: Vec<(u32, Counts)>,
    /// By country.
    pub countries: Vec<(Country, Counts)>,
    /// By IP version.
    pub versions: Vec<(Version, Counts)>,
}
