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

/// A period, and how much of it may be shown.
pub(super) struct Figures<'a> {
    ledger: &'a Ledger,
    settings: &'a PublishSettings,
    /// The ports shown, when they are.
    ports: Vec<(Key, Amount)>,
}

impl<'a> Figures<'a> {
    pub(super) const fn new(ledger: &'a Ledger, settings: &'a PublishSettings) -> Self {
        Self {
            ledger,
            settings,
            ports: Vec::new(),
        }
    }

    /// The total, if it may be shown.
    pub(super) fn total(&self, noise: Option<&mut Noise>) -> Option<Amount> {
        let exact = self.sums(Dimension::Total).next();
        let exact = exact.map_or(Amount::default(), |(_, amount)| amount);
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

    /// The exact sums of a dimension, by key. Made anew each time: most are large, and asked for
    /// once.
    fn sums(&self, dimension: Dimension) -> impl Iterator<Item = (Key, Amount)> {
        let sums = Key::sums(dimension, self.ledger).into_iter();
        sums.map(|(key, counts)| (key, counts.into()))
    }

    fn is_enough(&self, amount: Amount) -> bool {
        amount.flows >= self.settings.threshold_flows.into()
    }

    /// Whether a rest tells of nobody.
    fn is_hidden(&self, rest: Amount) -> bool {
        rest == Amount::default() || self.is_enough(rest)
    }

    /// The largest of those that have enough flows, the largest first.
    fn largest(&self, cells: impl Iterator<Item = (Key, Amount)>) -> Vec<(Key, Amount)> {
        let mut shown: Vec<_> = cells
            .filter(|(_, amount)| self.is_enough(*amount))
            .collect();
        shown.sort_by_key(|&(key, amount)| (Reverse(amount.bytes), key));
        shown.truncate(usize::try_from(self.settings.top).unwrap_or(usize::MAX));
        shown
    }

    fn exact(&mut self, dimension: Dimension, total: Amount) -> Table {
        let mut shown = self.largest(self.sums(dimension));
        for &coarser in Key::coarser(dimension) {
            self.withdraw(&mut shown, coarser);
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

    /// What some rows leave of each row of a coarser dimension.
    fn left(&self, shown: &[(Key, Amount)], coarser: Dimension) -> BTreeMap<Key, Amount> {
        let mut left: BTreeMap<_, _> = self.sums(coarser).collect();
        for (key, amount) in shown {
            if let Some(left) = key.within(coarser).and_then(|key| left.get_mut(&key)) {
                *left -= *amount;
            }
        }
        left
    }

    /// Withdraws the smallest row of each coarser one of which the rows shown leave something, but
    /// too little. A row that is withdrawn has enough flows, so nothing new is exposed by it.
    fn withdraw(&self, shown: &mut Vec<(Key, Amount)>, coarser: Dimension) {
        let mut left = self.left(shown, coarser);
        left.retain(|_, amount| !self.is_hidden(*amount));
        for index in (0..shown.len()).rev() {
            let coarse = shown[index].0.within(coarser);
            if coarse.is_some_and(|coarse| left.remove(&coarse).is_some()) {
                shown.remove(index);
            }
        }
    }

    /// Withdraws rows of encryption by which something of the ports that are not shown could be
    /// told: the ports shown leave nothing of a row, or enough.
    fn hide_ports(&self, shown: &mut Vec<(Key, Amount)>) {
        let sums: BTreeMap<_, _> = self.sums(Dimension::Encryption).collect();
        let left = self.left(&self.ports, Dimension::Encryption);
        shown.retain(|(key, _)| left.get(key).is_none_or(|left| self.is_hidden(*left)));
        let other = |shown: &[(Key, Amount)], of: &BTreeMap<Key, Amount>| {
            let mut other = Amount::default();
            let is_other = |key| shown.iter().all(|(row, _)| row != key);
            of.iter()
                .filter(|(key, _)| is_other(*key))
                .for_each(|(_, amount)| other += *amount);
            self.is_hidden(other)
        };
        // The last step leaves nothing shown, and of the total enough ports are not.
        while !(other(shown, &sums) && other(shown, &left)) && shown.pop().is_some() {}
    }

    /// With noise every number can be subtracted from every other: only what it does not hide,
    /// that there is a row, is held to the threshold.
    fn noisy(&self, dimension: Dimension, total: Amount, noise: &mut Noise) -> Table {
        if let Some(all) = Key::all(dimension) {
            let mut cells: BTreeMap<_, _> = self.sums(dimension).collect();
            for key in all {
                let amount = cells.entry(key).or_default();
                *amount = noise.blur(*amount);
            }
            let shown = self.largest(cells.clone().into_iter());
            for (key, _) in &shown {
                cells.remove(key);
            }
            let mut other = Amount::default();
            cells.values().for_each(|amount| other += *amount);
            let other = self.is_enough(other).then_some(other);
            return Table { shown, other };
        }
        let cells = self.sums(dimension);
        let mut shown = self.largest(cells.map(|(key, amount)| (key, noise.blur(amount))));
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
