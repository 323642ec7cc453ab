//! What this process has counted for each group of hosts.
//!
//! The data path counts by the number of a group, and continues the counts of an earlier process,
//! whose groups may have been others. This ledger counts by name, from the first look on, so that
//! neither a restart nor a reload adds the counts of one group to those of another.

use super::wire::Wire;
use crate::observe::{ClassCount, GroupReport};
use exitmark_datapath::{GroupCounts, KernelCounts};
use exitmark_policy::Class;
use std::collections::BTreeMap;

/// Numbers of a group that only grow.
pub(super) trait Counted: Clone + Default {
    /// What was counted since `earlier`.
    fn since(&self, earlier: &Self) -> Self;
    /// Adds what was counted elsewhere.
    fn add(&mut self, more: &Self);
}

impl Counted for GroupCounts {
    fn since(&self, earlier: &Self) -> Self {
        GroupCounts::since(self, earlier)
    }

    fn add(&mut self, more: &Self) {
        GroupCounts::add(self, more);
    }
}

/// The counts of each group since the first look at it.
#[derive(Debug, Default)]
pub(super) struct GroupLedger<C> {
    places: Vec<Place<C>>,
    /// The counts of groups at a place that they have lost, by name.
    earlier: BTreeMap<String, C>,
}

/// The group with a certain number.
#[derive(Debug)]
struct Place<C> {
    name: String,
    /// The data path's counts of this number when the group got it, and at the last look.
    first: C,
    last: C,
}

impl<C: Counted> GroupLedger<C> {
    /// Takes the data path's counts of each number, in the order of these groups.
    pub(super) fn look(&mut self, names: &[&str], now: &[C]) {
        for (number, (name, now)) in names.iter().zip(now).enumerate() {
            let place = || Place {
                name: (*name).to_owned(),
                first: now.clone(),
                last: now.clone(),
            };
            match self.places.get_mut(number) {
                Some(known) if known.name == *name => known.last = now.clone(),
                Some(other) => {
                    let left = std::mem::replace(other, place());
                    self.keep(left);
                }
                None => self.places.push(place()),
            }
        }
        for left in self.places.split_off(names.len().min(self.places.len())) {
            self.keep(left);
        }
    }

    fn keep(&mut self, left: Place<C>) {
        let counted = left.last.since(&left.first);
        self.earlier.entry(left.name).or_default().add(&counted);
    }

    /// The counts of each group at the last look, in their order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, C)> {
        self.places.iter().map(|place| {
            let mut counts = place.last.since(&place.first);
            if let Some(earlier) = self.earlier.get(&place.name) {
                counts.add(earlier);
            }
            (place.name.as_str(), counts)
        })
    }
}

impl Wire {
    /// The number of groups that the data path counts, 0 with only one: nothing is counted twice.
    pub(super) fn counted_groups(&self) -> usize {
        match self.settings.rules.groups().len() {
            1 => 0,
            groups => groups,
        }
    }

    /// Enters the present counts of both engines into the ledger.
    pub(super) fn enter_groups(&mut self) {
        // If reading fails, the next look enters them.
        if let Ok(kernel) = self.kernel.counts() {
            let sums = self.workers.sums(self.counted_groups());
            self.groups(&kernel, &sums.groups);
        }
    }

    /// Enters the counts of both engines into the ledger, and returns each group's.
    pub(super) fn groups(
        &mut self,
        kernel: &KernelCounts,
        workers: &[GroupCounts],
    ) -> Vec<GroupReport> {
        let groups = self.settings.rules.groups();
        let counted = self.counted_groups();
        let names: Vec<&str> = groups
            .iter()
            .map(|group| group.name.as_str())
            .take(counted)
            .collect();
        let mut now = kernel.groups.clone();
        for (sum, more) in now.iter_mut().zip(workers) {
            sum.add(more);
        }
        self.group_ledger.look(&names, &now);
        let counts = self.group_ledger.counts();
        counts.map(|(name, counts)| report(name, &counts)).collect()
    }
}

fn report(name: &str, counts: &GroupCounts) -> GroupReport {
    GroupReport {
        name: name.to_owned(),
        classes: Class::ALL
            .map(|class| {
                let (frames, bytes) = counts.class(class);
                ClassCount {
                    class: class.name().to_owned(),
                    frames,
                    bytes,
                }
            })
            .into(),
        marked: counts.marked(),
        cleared: counts.cleared(),
        unsteered: counts.unsteered(),
        unrouted_vlan: counts.unrouted_vlan(),
        unrouted_family: counts.unrouted_family(),
        unrouted_source: counts.unrouted_source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Counted for u64 {
        fn since(&self, earlier: &Self) -> Self {
            self - earlier
        }

        fn add(&mut self, more: &Self) {
            *self += more;
        }
    }

    fn counts(ledger: &GroupLedger<u64>) -> Vec<(&str, u64)> {
        ledger.counts().collect()
    }

    #[test]
    fn counts_of_an_earlier_process_are_not_those_of_a_group() {
        let mut ledger = GroupLedger::default();
        ledger.look(&["a", "b"], &[1000, 2000]);
        assert_eq!(counts(&ledger), [("a", 0), ("b", 0)]);
        ledger.look(&["a", "b"], &[1001, 2010]);
        assert_eq!(counts(&ledger), [("a", 1), ("b", 10)]);
    }

    #[test]
    fn a_group_keeps_its_counts_when_its_number_changes() {
        let mut ledger = GroupLedger::default();
        ledger.look(&["a", "b"], &[0, 0]);
        ledger.look(&["a", "b"], &[1, 10]);
        // A reload puts a group in front.
        ledger.look(&["new", "a", "b"], &[1, 10, 0]);
        assert_eq!(counts(&ledger), [("new", 0), ("a", 1), ("b", 10)]);
        ledger.look(&["new", "a", "b"], &[101, 12, 7]);
        assert_eq!(counts(&ledger), [("new", 100), ("a", 3), ("b", 17)]);
        // A group that is removed and comes back.
        ledger.look(&["a"], &[101]);
        assert_eq!(counts(&ledger), [("a", 3)]);
        ledger.look(&["a", "b"], &[102, 12]);
        assert_eq!(counts(&ledger), [("a", 4), ("b", 17)]);
    }

    #[test]
    fn a_group_with_the_same_number_loses_nothing_at_a_reload() {
        let mut ledger = GroupLedger::default();
        ledger.look(&["a", "b"], &[5, 5]);
        ledger.look(&["a", "c"], &[8, 9]);
        assert_eq!(counts(&ledger), [("a", 3), ("c", 0)]);
    }

    #[test]
    fn one_group_has_no_counts_of_its_own() {
        let mut ledger = GroupLedger::default();
        ledger.look(&[], &[7_u64; 64]);
        assert_eq!(counts(&ledger), []);
    }
}
