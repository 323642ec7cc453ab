//! Reads the XDP program's counters.

use super::contract::{
    SHORT_BY_INCOMING, SHORT_BY_UPLINK, SHORT_EXIT, SHORT_FROM_INCOMING, SHORT_FROM_UPLINK,
    SHORT_MARKED, index_of,
};
use super::{COUNTERS, COUNTS, Kernel, KernelError, ONLY, map_error};
use crate::counters::{Counter, SLOTS};
use crate::groups::{ALL_GROUP_SLOTS, GROUP_SLOTS, GroupCounts};
use crate::{PerRole, Role, Tally};
use exitmark_policy::Rule;
use libbpf_rs::{MapCore, MapFlags};

impl Kernel {
    /// Reads the program's counters.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counts(&self) -> Result<KernelCounts, KernelError> {
        let sums = sums::<COUNTS>(&self.skeleton.maps.counters).map_err(map_error(COUNTERS))?;
        let mut tally = Tally::default();
        tally.0.copy_from_slice(&sums[..SLOTS]);
        add_short_ways(&mut tally, &sums);
        let per_role = |first: usize| PerRole::from_fn(|role| sums[first + role.index()]);
        Ok(KernelCounts {
            tally,
            to_stack: per_role(index_of!(exitmark_counts, stack)),
            handed: per_role(index_of!(exitmark_counts, handed)),
            spilled: per_role(index_of!(exitmark_counts, spilled)),
            samples_lost: sums[index_of!(exitmark_counts, samples_lost)],
            groups: sums[index_of!(exitmark_counts, groups)..][..ALL_GROUP_SLOTS]
                .chunks(GROUP_SLOTS)
                .map(GroupCounts::of_numbers)
                .collect(),
        })
    }
}

/// Adds the frames that took a short way, of which the program counts nothing else.
fn add_short_ways(tally: &mut Tally, sums: &[u64; COUNTS]) {
    let exit = Some(Rule::ExitProtocol);
    let relay = Some(Rule::ToListedRelay);
    for (way, ingress, rule, egress) in [
        (SHORT_MARKED, Role::Host, exit, Role::Uplink),
        (SHORT_EXIT, Role::Host, exit, Role::Uplink),
        (SHORT_BY_UPLINK, Role::Host, relay, Role::Uplink),
        (SHORT_BY_INCOMING, Role::Host, relay, Role::Incoming),
        (SHORT_FROM_UPLINK, Role::Uplink, None, Role::Host),
        (SHORT_FROM_INCOMING, Role::Incoming, None, Role::Host),
    ] {
        let at = index_of!(exitmark_counts, shorts) + 2 * way as usize;
        let [frames, bytes] = [sums[at], sums[at + 1]];
        let mut add = |slot: usize, number: u64| {
            tally.0[slot] = tally.0[slot].wrapping_add(number);
        };
        add(
            index_of!(exitmark_counts, received) + ingress.index(),
            frames,
        );
        // Of a frame that its NIC did not accept, the program has subtracted this.
        add(
            index_of!(exitmark_counts, forwarded) + egress.index(),
            frames,
        );
        match rule {
            Some(rule) => {
                add(index_of!(exitmark_counts, rules) + rule as usize, frames);
                add(index_of!(exitmark_counts, bytes) + rule as usize, bytes);
            }
            None => add(
                index_of!(exitmark_counts, inbound_bytes) + ingress.index(),
                bytes,
            ),
        }
        if way == SHORT_MARKED {
            add(index_of!(exitmark_counts, marked), frames);
        }
    }
}

/// The first entry of a per-CPU map of 64-bit numbers, summed over all CPUs.
pub(crate) fn sums<const COUNT: usize>(counters: &impl MapCore) -> libbpf_rs::Result<[u64; COUNT]> {
    let per_cpu = counters.lookup_percpu(&ONLY, MapFlags::ANY)?;
    let mut sums = [0_u64; COUNT];
    for cpu in per_cpu.iter().flatten() {
        for (sum, number) in sums.iter_mut().zip(cpu.chunks_exact(8)) {
            // One CPU may have subtracted what another one counted.
            let number = number.first_chunk().copied().map_or(0, u64::from_ne_bytes);
            *sum = sum.wrapping_add(number);
        }
    }
    Ok(sums)
}

/// The XDP program's counters, summed over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Frames that it decided itself.
    pub tally: Tally,
    /// Frames passed to the box's network stack (XDP_PASS).
    pub to_stack: PerRole<u64>,
    /// Frames handed to user space, which counts them again.
    pub handed: PerRole<u64>,
    /// Frames meant for user space but handled by the kernel, because the worker was missing, dead
    /// or behind.
    pub spilled: PerRole<u64>,
    /// Samples that were not read in time.
    pub samples_lost: u64,
    /// Frames of each group that it decided itself, if there are several groups; zeros otherwise.
    pub groups: Vec<GroupCounts>,
}

impl KernelCounts {
    /// Frames that the program of this port has seen, modulo 2^64.
    pub fn seen(&self, role: Role) -> u64 {
        let decided = self.tally.of(Counter::Received(role));
        let handed = self.handed[role].wrapping_add(self.to_stack[role]);
        decided.wrapping_add(handed)
    }
}
