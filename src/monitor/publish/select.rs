//! Selects the rows of a table that are shown; the rest is `other`.

use super::{Noise, PublishSettings, RowKey};
use crate::cell::{Counts, Directions};
use crate::ledger::Ledger;
use crate::row::{Dimension, Row};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, SubAssign};

/// Noise can make counts negative.
pub(super) type Signed = Counts<i128>;

/// Counts without what came down if only one direction is published.
pub(super) const fn published(counts: Signed, directions: Directions) -> Signed {
    match directions {
        Directions::Both => counts,
        Directions::Out => Signed {
            down_bytes: 0,
            down_packets: 0,
            ..counts
        },
    }
}

impl AddAssign for Signed {
    fn add_assign(&mut self, more: Self) {
        *self = self.zip(more).map(|(one, more)| one + more);
    }
}

impl Add for Signed {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl SubAssign for Signed {
    fn sub_assign(&mut self, less: Self) {
        *self = self.zip(less).map(|(all, less)| all - less);
    }
}

/// Pairs (outer, inner): rows of the inner dimension may lie within one row of the outer one. A row
/// of two columns lies in rows of one column, of which `other` is one; public databases also tell
/// which autonomous systems lie in one country only, and the reverse.
const LIES: [(Dimension, Dimension); 14] = {
    use Dimension::{Country, Encryption, Port, PortCountry, PortSystem, System, SystemCountry};
    [
        (Port, PortCountry),
        (Country, PortCountry),
        (Encryption, PortCountry),
        (Port, PortSystem),
        (System, PortSystem),
        (Encryption, PortSystem),
        (System, SystemCountry),
        (Country, SystemCountry),
        (Country, System),
        (System, Country),
        (Country, PortSystem),
        (System, PortCountry),
        (PortCountry, PortSystem),
        (PortSystem, PortCountry),
    ]
};

/// The total to be shown, before rounding.
pub(super) struct Total {
    /// The sum of each table, with its row `other`,
    pub(super) attributed: Signed,
    /// and what is in no table, because no connection had begun there.
    pub(super) rest: Signed,
}

/// A table to be shown, before rounding.
pub(super) struct ShownTable {
    pub(super) shown: Vec<(RowKey, Signed)>,
    pub(super) other: Option<Signed>,
}

/// A period's sums, and the rows that may be shown.
pub(super) struct Figures<'a> {
    ledger: &'a Ledger,
    settings: &'a PublishSettings,
    /// Sum of all cells in which connections began.
    total: Signed,
    /// The rows of each dimension, most flows first. Exact: noise may remove rows, but adds none.
    shown: BTreeMap<Dimension, Vec<(RowKey, Signed)>>,
}

impl<'a> Figures<'a> {
    pub(super) fn new(ledger: &'a Ledger, settings: &'a PublishSettings) -> Self {
        let mut figures = Self {
            ledger,
            settings,
            total: Signed::default(),
            shown: BTreeMap::new(),
        };
        let total = figures.sums(Dimension::Total).next();
        figures.total = total.map_or(Signed::default(), |(_, amount)| amount);
        if !figures.is_enough(figures.total) {
            return figures;
        }
        for dimension in settings.dimensions() {
            let mut rows = figures.largest(figures.sums(dimension));
            for &coarser in RowKey::coarser(dimension) {
                let whole = figures.sums(coarser).collect();
                figures.withdraw(&mut rows, whole, |key| key.within(coarser));
            }
            figures.shown.insert(dimension, rows);
        }
        figures.hide_ports();
        // A withdrawn row joins `other`, which may then contain more rows.
        while LIES
            .iter()
            .any(|&(outer, inner)| figures.hide_lying(outer, inner))
        {}
        figures
    }

    /// The total, if it may be shown. Each packet is in one of its two parts, so noise on both
    /// costs no more of ε than noise on one.
    pub(super) fn total(&self, mut noise: Option<&mut Noise>) -> Option<Total> {
        let mut blurred = |exact: Signed| {
            let noise = noise.as_deref_mut();
            noise.map_or(exact, |noise| noise.blur(exact))
        };
        let attributed = blurred(self.total);
        let is_shown = self.is_enough(self.total) && self.is_enough(attributed);
        is_shown.then(|| Total {
            attributed,
            rest: Signed {
                // Unattributed packets begin no flow.
                flows: 0,
                ..blurred(self.exact(self.ledger.all_unattributed()))
            },
        })
    }

    /// The shown rows of a dimension. A row that noise brings below the threshold joins `other`.
    pub(super) fn table(
        &self,
        dimension: Dimension,
        total: Signed,
        mut noise: Option<&mut Noise>,
    ) -> ShownTable {
        let mut shown = Vec::new();
        let (mut left, mut other) = (self.total, total);
        for &(key, exact) in self.shown.get(&dimension).into_iter().flatten() {
            let noise = noise.as_deref_mut();
            let amount = noise.map_or(exact, |noise| noise.blur(exact));
            if self.is_enough(amount) {
                left -= exact;
                other -= amount;
                shown.push((key, amount));
            }
        }
        // With or without noise, `other` exists if something is not shown: readers take a dimension
        // without any row for a truncated file.
        let other = (left != Signed::default()).then_some(other);
        ShownTable { shown, other }
    }

    /// Rounds counts up into a row.
    pub(super) fn rounded(&self, blank: &Row, amount: Signed) -> Row {
        let amount = amount.zip(self.settings.bins);
        Row {
            counts: amount.map(|(exact, bin)| round_up(exact, bin)),
            ..blank.clone()
        }
    }

    /// The exact sums of a dimension, by key. Computed on demand: most are large and used once.
    fn sums(&self, dimension: Dimension) -> impl Iterator<Item = (RowKey, Signed)> {
        let sums = RowKey::sums(dimension, self.ledger).into_iter();
        sums.map(|(key, counts)| (key, self.exact(counts)))
    }

    fn exact(&self, counts: Counts) -> Signed {
        published(counts.map(i128::from), self.settings.directions)
    }

    fn is_enough(&self, amount: Signed) -> bool {
        amount.flows >= self.settings.threshold_flows.into()
    }

    /// Whether a rest may be derived by subtraction: it has no flow at all, or enough.
    fn is_hidden(&self, rest: Signed) -> bool {
        rest.flows == 0 || self.is_enough(rest)
    }

    /// The rows with enough flows, most flows first, limited to `top`.
    fn largest(&self, cells: impl Iterator<Item = (RowKey, Signed)>) -> Vec<(RowKey, Signed)> {
        let mut shown: Vec<_> = cells
            .filter(|(_, amount)| self.is_enough(*amount))
            .collect();
        shown.sort_by_key(|&(key, amount)| (Reverse(amount.flows), key));
        shown.truncate(usize::try_from(self.settings.top).unwrap_or(usize::MAX));
        shown
    }

    /// Withdraws the smallest shown row of each whole whose rest is too small. A withdrawn row has
    /// enough flows, so its withdrawal exposes nothing new.
    fn withdraw<K: Ord>(
        &self,
        shown: &mut Vec<(RowKey, Signed)>,
        whole: BTreeMap<K, Signed>,
        within: impl Fn(RowKey) -> Option<K>,
    ) {
        let mut left = left(shown, whole, &within);
        left.retain(|_, amount| !self.is_hidden(*amount));
        for index in (0..shown.len()).rev() {
            if within(shown[index].0).is_some_and(|whole| left.remove(&whole).is_some()) {
                shown.remove(index);
            }
        }
    }

    /// Withdraws rows of `inner` that lie in a single row of `outer` (or in its `other`) and leave
    /// too small a rest. Returns whether any was withdrawn.
    fn hide_lying(&mut self, outer: Dimension, inner: Dimension) -> bool {
        let (Some(around), Some(shown)) = (self.shown.get(&outer), self.shown.get(&inner)) else {
            return false;
        };
        // `other` has the key `None`.
        let mut whole: BTreeMap<_, _> = around.iter().map(|&(key, of)| (Some(key), of)).collect();
        // The row that contains each inner key; `None` for several rows or if all of it spilled.
        let mut lies = BTreeMap::new();
        for (cell, _) in self.ledger.opened() {
            let row = Some(RowKey::of(outer, cell)).filter(|key| whole.contains_key(&Some(*key)));
            let alone = lies.entry(RowKey::of(inner, cell)).or_insert(Some(row));
            if *alone != Some(row) {
                *alone = None;
            }
        }
        whole.insert(None, rest(self.total, around));
        // Spilled counts may lie elsewhere, but a row is never within a smaller one.
        for (key, amount) in shown {
            if let Some(alone) = lies.get_mut(key) {
                *alone = alone.filter(|row| amount.flows <= whole[row].flows);
            }
        }
        let mut kept = shown.clone();
        self.withdraw(&mut kept, whole, |key| lies.get(&key).copied().flatten());
        let is_less = kept.len() < shown.len();
        self.shown.insert(inner, kept);
        is_less
    }

    /// Withdraws rows of encryption from which hidden ports could be derived: the shown ports must
    /// leave nothing of such a row, or enough.
    fn hide_ports(&mut self) {
        let sums: BTreeMap<_, _> = self.sums(Dimension::Encryption).collect();
        let ports = self.shown.get(&Dimension::Port);
        let left = left(
            ports.map_or(&[], Vec::as_slice),
            sums.clone(),
            |port: RowKey| port.within(Dimension::Encryption),
        );
        let mut shown = self
            .shown
            .remove(&Dimension::Encryption)
            .unwrap_or_default();
        shown.retain(|(key, _)| left.get(key).is_none_or(|left| self.is_hidden(*left)));
        let other = |shown: &[(RowKey, Signed)], of: &BTreeMap<RowKey, Signed>| {
            let mut other = Signed::default();
            let is_other = |key| shown.iter().all(|(row, _)| row != key);
            of.iter()
                .filter(|(key, _)| is_other(*key))
                .for_each(|(_, amount)| other += *amount);
            self.is_hidden(other)
        };
        // Ends with no row shown at the latest: the total has enough flows, and its hidden ports
        // have none or enough.
        while !(other(&shown, &sums) && other(&shown, &left)) && shown.pop().is_some() {}
        self.shown.insert(Dimension::Encryption, shown);
    }
}

/// The rest of each whole after subtracting the shown rows.
fn left<K: Ord>(
    shown: &[(RowKey, Signed)],
    mut whole: BTreeMap<K, Signed>,
    within: impl Fn(RowKey) -> Option<K>,
) -> BTreeMap<K, Signed> {
    for (key, amount) in shown {
        if let Some(left) = within(*key).and_then(|key| whole.get_mut(&key)) {
            *left -= *amount;
        }
    }
    whole
}

/// What is not shown of the total.
fn rest(total: Signed, shown: &[(RowKey, Signed)]) -> Signed {
    let mut rest = total;
    shown.iter().for_each(|(_, amount)| rest -= *amount);
    rest
}

fn round_up(amount: i128, bin: NonZeroU64) -> u64 {
    let amount = u64::try_from(amount.max(0)).unwrap_or(u64::MAX);
    amount.div_ceil(bin.get()).saturating_mul(bin.get())
}

#[cfg(test)]
mod tests {
    use super::super::NoiseSettings;
    use super::*;
    use crate::cell::{Cell, Place};
    use exitmark_policy::packet::Version;

    fn amount(flows: i128, bytes: i128, packets: i128) -> Signed {
        [flows, bytes, packets, 7 * bytes, 5 * packets].into()
    }

    #[test]
    fn amounts_are_added_and_subtracted_by_measure() {
        let (one, other) = (amount(7, 50, 400), amount(2, 10, 100));
        assert_eq!(one + other, amount(9, 60, 500));
        let mut sum = one;
        sum += other;
        assert_eq!(sum, amount(9, 60, 500));
        sum -= other;
        assert_eq!(sum, one);
        sum -= amount(8, 51, 401);
        assert_eq!(sum, amount(-1, -1, -1));
        assert_eq!(published(one, Directions::Both), one);
        assert_eq!(published(one, Directions::Out), [7, 50, 400].into());
    }

    /// Noise must not give flows to packets that are counted because they have none.
    #[test]
    fn packets_without_a_connection_have_no_flows_under_noise_either() {
        let counts = |flows| Counts::from([flows, 9_000, 9, 8_000, 8]);
        let cell = Cell {
            port: 443,
            place: Place::UNKNOWN,
            version: Version::V4,
        };
        let ledger = Ledger {
            cells: vec![(cell, counts(1_000_000))],
            unattributed: vec![(Version::V4, counts(0))],
            ..Ledger::default()
        };
        let noise = NoiseSettings {
            epsilon: 0.01.try_into().unwrap(),
            user: counts(1_000),
            seed: Some(1),
        };
        for directions in [Directions::Out, Directions::Both] {
            let settings = PublishSettings {
                directions,
                ..PublishSettings::default()
            };
            let figures = Figures::new(&ledger, &settings);
            let mut noise = Noise::new(&noise, 1, directions).unwrap();
            let total = figures.total(Some(&mut noise)).unwrap();
            assert_eq!(total.rest.flows, 0);
            assert_ne!(total.rest.bytes, 9_000);
            assert_ne!(total.rest.down_bytes, 8_000);
            assert_ne!(total.attributed.flows, 1_000_000);
            let is_down = total.rest.down_bytes != 0 || total.attributed.down_packets != 0;
            assert_eq!(is_down, directions == Directions::Both);
        }
    }

    #[test]
    fn left_subtracts_shown_rows() {
        let rows = [
            (RowKey::Port(80), amount(1, 2, 3)),
            (RowKey::Port(443), amount(10, 20, 30)),
            (RowKey::Port(22), amount(4, 4, 4)),
        ];
        assert_eq!(rest(amount(15, 26, 40), &rows), amount(0, 0, 3));
        let whole = BTreeMap::from([("web", amount(20, 30, 40)), ("mail", amount(5, 5, 5))]);
        let within = |key| match key {
            RowKey::Port(80 | 443) => Some("web"),
            RowKey::Port(22) => Some("no whole"),
            _ => None,
        };
        let expected = BTreeMap::from([("web", amount(9, 8, 7)), ("mail", amount(5, 5, 5))]);
        assert_eq!(left(&rows, whole, within), expected);
    }

    #[test]
    fn numbers_are_rounded_up_to_their_bin_and_are_never_negative() {
        for (number, rounded) in [
            (-9, 0),
            (0, 0),
            (1, 8),
            (8, 8),
            (9, 16),
            (i128::from(u64::MAX), u64::MAX),
            (i128::MAX, u64::MAX),
        ] {
            let found = round_up(number, NonZeroU64::new(8).unwrap());
            assert_eq!(found, rounded, "{number}");
        }
    }
}
