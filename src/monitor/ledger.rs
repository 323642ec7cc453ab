//! Exact counts of a period or a part of one. No address is in them, and still they are nobody's
//! affair: they are kept for a restart, and else only [`super::publish`] reads them.
//!
//! A cell is there from the first connection on that begins in it. Packets of a cell in which no
//! connection has begun are unattributed: they are in the total, and in nothing else.

use super::cell::{Cell, Country, Counts, MAX_CELLS};
use crate::packet::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many bytes one takes as JSON at most: as many cells as there can be, and what spilled in every
/// port and more systems than there are, all of the largest numbers.
pub const MAX_JSON_BYTES: usize = (MAX_CELLS + (1 << 16) + (1 << 21)) * 96;

/// Exact counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// What was counted by everything at once; no cell is there twice.
    pub cells: Vec<(Cell, Counts)>,
    /// What came when the table of cells was full.
    pub spilled: Spilled,
    /// Packets of cells in which no connection had begun, by IP version.
    #[serde(default)]
    pub unattributed: Vec<(Version, Counts)>,
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

impl Ledger {
    /// The cells in which a connection began; nothing else is counted by what it is of.
    pub fn opened(&self) -> impl Iterator<Item = &(Cell, Counts)> {
        self.cells.iter().filter(|(_, counts)| counts.flows > 0)
    }

    /// What is in the total alone.
    pub fn all_unattributed(&self) -> Counts {
        let unopened = self.cells.iter().filter(|(_, counts)| counts.flows == 0);
        let unattributed = self.unattributed.iter().map(|(_, counts)| *counts);
        let mut sum = Counts::default();
        for counts in unopened.map(|(_, counts)| *counts).chain(unattributed) {
            sum += counts;
        }
        sum
    }

    /// The sums of the cells that agree in something, and of what of the spilled does.
    pub fn sums<K: Ord, S: Copy>(
        &self,
        of: impl Fn(&Cell) -> K,
        spilled: &[(S, Counts)],
        of_spilled: impl Fn(S) -> K,
    ) -> BTreeMap<K, Counts> {
        let cells = self.opened().map(|(cell, counts)| (of(cell), *counts));
        let spilled = spilled
            .iter()
            .map(|&(key, counts)| (of_spilled(key), counts));
        let mut sums = BTreeMap::<K, Counts>::new();
        for (key, counts) in cells.chain(spilled) {
            *sums.entry(key).or_default() += counts;
        }
        sums
    }

    /// Whether nobody watched, and nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Spilled {
    /// Whether the table of cells never was full.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
