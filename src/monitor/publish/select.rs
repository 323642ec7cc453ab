//! Which cells of a table are shown, and what `other` is.

use super::{Key, Noise, PublishSettings};
use crate::monitor::cell::Counts;
use crate::monitor::ledger::Ledger;
use crate::monitor::row::{Dimension, Row};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::{AddAssign, SubAssign};

/// Counts that noise may have made negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) flows: i128,
    pub(super) bytes: i128,
    pub(super) packets: i128,
}

impl From<Counts> for Amount {
    fn from(counts: Counts) -> Self {
        Self {
            flows: counts.flows.into(),
            bytes: counts.bytes.into(),
            packets: counts.packets.into(),
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, more: Self) {
        self.flows += more.flows;
        self.bytes += more.bytes;
        self.packets += more.packets;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, less: Self) {
        self.flows -= less.flows;
        self.bytes -= less.bytes;
        self.packets -= less.packets;
    }
}

/// A table as it is shown, but for the rounding.
pub(super) struct Table {
    pub(super) shown: Vec<(Key, Amount)>,
    pub(super) other: Option<Amount>,
}

/// A period's exact sums, each calculated once.
pub(super) struct Figures<'a> {
    ledger: &'a Ledger,
    settings: &'a PublishSettings,
    sums: BTreeMap<Dimension, BTreeMap<Key, Amount>>,
    /// The ports shown, when they are.
    ports: Vec<(Key, Amount)>,
}

impl<'a> Figures<'a> {
    pub(super) const fn new(ledger: &'a Ledger, settings: &'a PublishSettings) -> Self {
        Self {
            ledger,
            settings,
            sums: BTreeMap::new(),
            ports: Vec::new(),
        }
    }

    /// The total, if it may be shown.
    pub(super) fn total(&mut self, noise: Option<&mut Noise>) -> Option<Amount> {
        let exact = self.sums(Dimension::Total).get(&Key::Total).copied();
        let exact = exact.unwrap_or_default();
        let total = noise.map_or(exact, |noise| noise.blur(exact));
        self.is_enough(total).then_some(total)
    }

    /// What a dimension shows of a total.
    pub(super) fn table(
        &mut self,
        dimension: Dimension,
        total: Amount,
        noise: Option<&mut Noise>,
    ) -> Table {
        match noise {
            None => self.exact(dimension, total),
            Some(noise) => self.noisy(dimension, total, noise),
        }
    }

    /// A row's counts, rounded up.
    pub(super) fn rounded(&self, blank: &Row, amount: Amount) -> Row {
        let settings = self.settings;
        Row {
            flows: round_up(amount.flows, settings.bin_flows),
            bytes: round_up(amount.bytes, settings.bin_bytes),
            packets: round_up(amount.packets, settings.bin_packets),
            ..blank.clone()
        }
    }

    fn sums(&mut self, dimension: Dimension) -> &BTreeMap<Key, Amount> {
        self.sums.entry(dimension).or_insert_with(|| {
            let sums = Key::sums(dimension, self.ledger).into_iter();
            sums.map(|(key, counts)| (key, counts.into())).collect()
        })
    }

    fn is_enough(&self, amount: Amount) -> bool {
        amount.flows >= self.settings.threshold_flows.into()
    }

    /// The largest of those that have enough flows, the largest first.
    fn largest(&self, cells: impl IntoIterator<Item = (Key, Amount)>) -> Vec<(Key, Amount)> {
        let cells = cells.into_iter();
        let mut shown: Vec<_> = cells
            .filter(|(_, amount)| self.is_enough(*amount))
            .collect();
        shown.sort_by_key(|&(key, amount)| (Reverse(amount.bytes), key));
        shown.truncate(usize::try_from(self.settings.top).unwrap_or(usize::MAX));
        shown
    }

    fn exact(&mut self, dimension: Dimension, total: Amount) -> Table {
        let cells = self.sums(dimension).clone();
        let mut shown = self.largest(cells);
        // Withdrawing a row adds enough flows to what it is a part of, so this comes to an end
        // with nothing new exposed.
        for &coarser in Key::coarser(dimension) {
            let whole = self.sums(coarser).clone();
            while let Some(row) = self.exposing(&shown, coarser, &whole) {
                shown.remove(row);
            }
        }
        match dimension {
            Dimension::Port => self.ports.clone_from(&shown),
            Dimension::Encryption => self.hide_ports(&mut shown),
            _ => {}
        }
        let other = rest(total, &shown);
        Table {
            shown,
            other: (other != Amount::default()).then_some(other),
        }
    }

    /// The smallest row of a coarser one, of which the rows shown leave something, but too little.
    fn exposing(
        &self,
        shown: &[(Key, Amount)],
        coarser: Dimension,
        whole: &BTreeMap<Key, Amount>,
    ) -> Option<usize> {
        let mut lacking = whole.clone();
        for (key, amount) in shown {
            if let Some(lacking) = key.within(coarser).and_then(|key| lacking.get_mut(&key)) {
                *lacking -= *amount;
            }
        }
        lacking.retain(|_, amount| *amount != Amount::default() && !self.is_enough(*amount));
        shown.iter().rposition(|(key, _)| {
            let coarse = key.within(coarser);
            coarse.is_some_and(|key| lacking.contains_key(&key))
        })
    }

    /// Withdraws rows of encryption by which something of the ports that are not shown could be
    /// told: the ports shown leave nothing of a row, or enough.
    fn hide_ports(&mut self, shown: &mut Vec<(Key, Amount)>) {
        let mut left = self.sums(Dimension::Encryption).clone();
        for (port, amount) in &self.ports {
            if let Some(left) = port
                .within(Dimension::Encryption)
                .and_then(|key| left.get_mut(&key))
            {
                *left -= *amount;
            }
        }
        let sums = self.sums(Dimension::Encryption).clone();
        let is_hidden = |amount: Amount| amount == Amount::default() || self.is_enough(amount);
        shown.retain(|(key, _)| left.get(key).is_none_or(|left| is_hidden(*left)));
        let other = |shown: &[(Key, Amount)], of: &BTreeMap<Key, Amount>| {
            let mut other = Amount::default();
            let is_other = |key| shown.iter().all(|(row, _)| row != key);
            of.iter()
                .filter(|(key, _)| is_other(*key))
                .for_each(|(_, amount)| other += *amount);
            other
        };
        // The last step leaves nothing shown, and of the total enough ports are not.
        while !(is_hidden(other(shown, &sums)) && is_hidden(other(shown, &left)))
            && shown.pop().is_some()
        {}
    }

    /// With noise every number can be subtracted from every other: only what it does not hide,
    /// that there is a row, is held to the threshold.
    fn noisy(&mut self, dimension: Dimension, total: Amount, noise: &mut Noise) -> Table {
        let mut cells = self.sums(dimension).clone();
        let all = Key::all(dimension);
        for key in all.iter().flatten() {
            cells.entry(*key).or_default();
        }
        for amount in cells.values_mut() {
            *amount = noise.blur(*amount);
        }
        let mut shown = self.largest(cells.clone());
        if all.is_some() {
            for (key, _) in &shown {
                cells.remove(key);
            }
            let mut other = Amount::default();
            cells.values().for_each(|amount| other += *amount);
            let other = self.is_enough(other).then_some(other);
            return Table { shown, other };
        }
        let mut other = rest(total, &shown);
        while !self.is_enough(other)
            && let Some((_, smallest)) = shown.pop()
        {
            other += smallest;
        }
        Table {
            shown,
            other: self.is_enough(other).then_some(other),
        }
    }
}

/// What is not shown.
fn rest(total: Amount, shown: &[(Key, Amount)]) -> Amount {
    let mut rest = total;
    shown.iter().for_each(|(_, amount)| rest -= *amount);
    rest
}

fn round_up(amount: i128, bin: NonZeroU64) -> u64 {
    let amount = u64::try_from(amount.max(0)).unwrap_or(u64::MAX);
    amount.div_ceil(bin.get()).saturating_mul(bin.get())
}
