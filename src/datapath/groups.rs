//! Frame counters of each group of hosts, if there are several groups.

use super::Counters;
use super::contract::{MAX_GROUPS, exitmark_group_counts, index_of};
use super::counters::Unrouted;
use exitmark_policy::packet::Dscp;
use exitmark_policy::{Class, GroupNumber, Rule, Snapshot, Verdict};

/// The numbers of a group.
pub(super) const GROUP_SLOTS: usize = size_of::<exitmark_group_counts>() / size_of::<u64>();
/// The numbers of all groups.
pub(super) const ALL_GROUP_SLOTS: usize = GROUP_SLOTS * MAX_GROUPS as usize;

/// The slot of a field of `struct exitmark_group_counts`; the first one, if it is an array.
macro_rules! slot {
    ($field:ident) => {
        index_of!(exitmark_group_counts, $field)
    };
}

/// What was counted of the frames of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCounts([u64; GROUP_SLOTS]);

impl Default for GroupCounts {
    fn default() -> Self {
        Self([0; GROUP_SLOTS])
    }
}

impl GroupCounts {
    pub(super) fn of_numbers(numbers: &[u64]) -> Self {
        let mut counts = Self::default();
        for (count, number) in counts.0.iter_mut().zip(numbers) {
            *count = *number;
        }
        counts
    }

    /// The frames of a class, and their bytes.
    pub fn class(&self, class: Class) -> (u64, u64) {
        let rules = Rule::ALL.into_iter().filter(|rule| rule.class() == class);
        rules.fold((0, 0), |(frames, bytes), rule| {
            let (of_frames, of_bytes) = (slot!(rules), slot!(bytes));
            (
                frames + self.0[of_frames + rule as usize],
                bytes + self.0[of_bytes + rule as usize],
            )
        })
    }

    /// Frames whose DSCP was set to the mark.
    pub const fn marked(&self) -> u64 {
        self.0[slot!(marked)]
    }

    /// Frames of another class whose mark was cleared.
    pub const fn cleared(&self) -> u64 {
        self.0[slot!(cleared)]
    }

    /// Relay frames that left by the uplink, because they could not be steered.
    pub const fn unsteered(&self) -> u64 {
        self.0[slot!(unsteered)]
    }

    /// Relay frames that were not steered, because they have other VLAN tags than the group.
    pub const fn unrouted_vlan(&self) -> u64 {
        self.0[slot!(unrouted_vlan)]
    }

    /// Relay frames that were not steered, because their IP version has no next hop.
    pub const fn unrouted_family(&self) -> u64 {
        self.0[slot!(unrouted_family)]
    }

    /// Relay frames that were not steered, because no answer would be translated back.
    pub const fn unrouted_source(&self) -> u64 {
        self.0[slot!(unrouted_source)]
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let numbers = self.0.iter().zip(earlier.0);
        let numbers: Vec<_> = numbers.map(|(now, then)| now.wrapping_sub(then)).collect();
        Self::of_numbers(&numbers)
    }

    /// Adds the counts of another engine or queue.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.wrapping_add(more);
        }
    }
}

/// A worker's own counts of the groups, since it last added them to its [`Counters`].
pub(super) struct GroupTallies {
    groups: Vec<GroupCounts>,
    /// One bit for each group that has counts.
    counted: u64,
}

impl GroupTallies {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self {
            groups: vec![GroupCounts::default(); several(snapshot)],
            counted: 0,
        }
    }

    /// Counts the groups of another snapshot. A group that is not in it any more loses its latest
    /// counts.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        self.groups
            .resize_with(several(snapshot), GroupCounts::default);
    }

    #[inline]
    pub(super) const fn are_several(&self) -> bool {
        !self.groups.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<GroupCounts> {
        self.counted = 0;
        self.groups.iter_mut().map(std::mem::take).collect()
    }

    fn slots(&mut self, group: GroupNumber) -> Option<&mut [u64; GROUP_SLOTS]> {
        let index = group.index()?;
        let counts = self.groups.get_mut(index)?;
        self.counted |= 1 << index;
        Some(&mut counts.0)
    }

    pub(super) fn count(&mut self, verdict: &Verdict, bytes: u64) {
        let Some(slots) = self.slots(verdict.group) else {
            return;
        };
        slots[slot!(rules) + verdict.rule as usize] += 1;
        slots[slot!(bytes) + verdict.rule as usize] += bytes;
        match verdict.remark {
            Some(remark) if remark.dscp == Dscp::DEFAULT => slots[slot!(cleared)] += 1,
            Some(_) => slots[slot!(marked)] += 1,
            None => {}
        }
    }

    pub(super) fn unsteered(&mut self, group: GroupNumber) {
        if let Some(slots) = self.slots(group) {
            slots[slot!(unsteered)] += 1;
        }
    }

    pub(super) fn unrouted(&mut self, group: GroupNumber, why: Unrouted) {
        let slot = match why {
            Unrouted::Vlan => slot!(unrouted_vlan),
            Unrouted::Family => slot!(unrouted_family),
            Unrouted::Source => slot!(unrouted_source),
        };
        if let Some(slots) = self.slots(group) {
            slots[slot] += 1;
        }
    }

    pub(super) fn publish(&mut self, counters: &Counters) {
        while self.counted != 0 {
            let index = self.counted.trailing_zeros() as usize;
            self.counted &= self.counted - 1;
            if let Some(counts) = self.groups.get_mut(index) {
                counters.publish_group(index, &mut counts.0);
            }
        }
    }
}

/// The number of groups, or 0 if there is only one: it is counted as a whole.
fn several(snapshot: &Snapshot) -> usize {
    match snapshot.rules.groups().len() {
        1 => 0,
        groups => groups,
    }
}
