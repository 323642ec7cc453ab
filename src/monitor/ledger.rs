//! Exact counts of a period or of a part of one. They hold no address but are confidential: they
//! are kept for a restart, and only [`super::publish`] reads them otherwise.
//!
//! A cell exists from the first connection that begins in it. Packets of cells in which no
//! connection has begun are unattributed: they are in the total only.

use super::cell::{Cell, Country, Counts, MAX_CELLS};
use exitmark_policy::packet::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Upper bound of a ledger's size as JSON: all cells, and spilled counts for every port and for
/// more systems than exist, each with the largest numbers.
pub const MAX_JSON_BYTES: usize = (MAX_CELLS + (1 << 16) + (1 << 21)) * 144;

/// Exact counts of a period or of a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The counts by cell; each cell occurs once.
    pub cells: Vec<(Cell, Counts)>,
    /// Counts of packets that found the table of cells full.
    pub spilled: Spilled,
    /// Packets of cells without a connection, by IP version.
    #[serde(default)]
    pub unattributed: Vec<(Version, Counts)>,
    /// Packets that passed the kernel's filter and were lost, as far as the kernel reports it.
    pub lost: u64,
    /// Seconds during which the tap was watched.
    pub watched_seconds: u64,
}

/// Packets that found no free cell, counted once in every dimension. So a full table costs only the
/// tables of two columns; the numbers of single dimensions stay complete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spilled {
    /// By destination port, 0 for packets without ports; each port at most once.
    pub ports: Vec<(u16, Counts)>,
    /// By autonomous system, 0 if it is unknown; each number at most once.
    pub systems: Vec<(u32, Counts)>,
    /// By country, `??` if it is unknown; each code at most once.
    pub countries: Vec<(Country, Counts)>,
    /// By IP version; each version at most once.
    pub versions: Vec<(Version, Counts)>,
}

impl Ledger {
    /// The cells in which a connection began. Only these appear in dimensions.
    pub fn opened(&self) -> impl Iterator<Item = &(Cell, Counts)> {
        self.cells.iter().filter(|(_, counts)| counts.flows > 0)
    }

    /// Counts that are in the total only.
    pub fn all_unattributed(&self) -> Counts {
        let unopened = self.cells.iter().filter(|(_, counts)| counts.flows == 0);
        let unattributed = self.unattributed.iter().map(|(_, counts)| *counts);
        let unopened = unopened.map(|(_, counts)| *counts);
        unopened.chain(unattributed).sum()
    }

    /// Sums over the cells, and over `spilled`, by a common key.
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

    /// Whether the tap was not watched and nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Spilled {
    /// Whether no packet was spilled.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
