//! Frame counters of the workers and the XDP program.
//!
//! A worker counts a batch in a plain [`Tally`] and adds it to its [`Counters`] once: one writer
//! per counter, no lock, no bus-locked instruction. A frame is counted by the rule that it matched;
//! a read derives its class from the rule. The XDP program has the same counters, one set per CPU.
//! Both are pinned with the program, and another process that takes over continues them.

use super::contract::{MAX_GROUPS, index_of};
use super::groups::{ALL_GROUP_SLOTS, GROUP_SLOTS, GroupCounts};
use super::tap::Direction;
use super::{Cells, Role};
use exitmark_policy::packet::{Dscp, Malformed};
use exitmark_policy::{Class, Rule};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The slot of a field of `struct exitmark_counts`; the first one, if the field is an array.
macro_rules! slot {
    ($field:ident) => {
        index_of!(exitmark_counts, $field)
    };
}

/// The slots of a tally. The structure's fields from `stack` on are the XDP program's only.
pub(super) const SLOTS: usize = slot!(stack);
/// The slots of a queue's worker: its tally, then those of the groups.
pub(super) const QUEUE_SLOTS: usize = SLOTS + ALL_GROUP_SLOTS;

/// Why a frame was not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The egress port's transmit ring had no room.
    TxFull(Role),
    /// A frame for the host arrived by `incoming`, and the host's MAC address is not known yet.
    HostMacUnknown,
    /// A frame that only the box's own network stack could take reached user space.
    NotForHost,
    /// The egress role has no NIC, or its NIC does not accept redirected frames.
    NoEgress,
    /// Relay traffic could not be steered, and the configuration forbids sending it by the uplink.
    SteerUnavailable,
    /// The egress port is down, so the kernel did not redirect the frame to it.
    TxDown(Role),
    /// The egress port's driver refused a redirected frame for another reason than a full ring:
    /// it has no ring for the CPU (ENXIO), no headroom (EOVERFLOW), or the frame is too long.
    TxRefused(Role),
}

impl DropReason {
    /// The reason's name in metrics and logs, without the port.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TxFull(_) => "tx_full",
            Self::HostMacUnknown => "host_mac_unknown",
            Self::NotForHost => "not_for_host",
            Self::NoEgress => "no_egress",
            Self::SteerUnavailable => "steer_unavailable",
            Self::TxDown(_) => "tx_down",
            Self::TxRefused(_) => "tx_refused",
        }
    }

    const fn slot(self) -> usize {
        match self {
            Self::TxFull(role) => slot!(tx_full) + role.index(),
            Self::HostMacUnknown => slot!(host_mac_unknown),
            Self::NotForHost => slot!(not_for_host),
            Self::NoEgress => slot!(no_egress),
            Self::SteerUnavailable => slot!(steer_unavailable),
            Self::TxDown(role) => slot!(tx_down) + role.index(),
            Self::TxRefused(role) => slot!(tx_refused) + role.index(),
        }
    }

    /// The egress port, if the reason concerns one port.
    pub const fn port(self) -> Option<Role> {
        match self {
            Self::TxFull(role) | Self::TxDown(role) | Self::TxRefused(role) => Some(role),
            _ => None,
        }
    }
}

/// One number that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Frames that a port received.
    Received(Role),
    /// Bytes that a port received: Ethernet header to the end of the packet.
    ReceivedBytes(Role),
    /// Frames handed to a port to send.
    Forwarded(Role),
    /// Outbound frames of a class.
    Class(Class),
    /// Bytes of the outbound frames of a class.
    ClassBytes(Class),
    /// Outbound frames that are malformed in this way.
    Malformed(Malformed),
    /// Frames whose DSCP was set to the mark.
    Marked,
    /// Frames of another class whose mark was cleared.
    Cleared,
    /// Outbound frames about which the relay set and the source address disagree.
    Disagreement,
    /// Relay frames that left by the uplink, because they could not be steered.
    Unsteered,
    /// Relay frames that were not steered, because they have other VLAN tags than their group.
    UnroutedVlan,
    /// Relay frames that were not steered, because their IP version has no next hop.
    UnroutedFamily,
    /// Relay frames that were not steered, because the relay set does not list their destination: no
    /// answer would be translated back.
    UnroutedSource,
    /// Relay frames that left with another source address than the host's.
    Translated,
    /// Frames by `incoming` that got the address of a host again.
    TranslatedBack,
    /// Frames that arrived by `uplink` from an address of the host, counted while
    /// [`super::Links::seek_host`] is on.
    HostByUplink,
    /// Frames that accept a connection at a port without a configured listener.
    UnnamedListener,
    /// Later fragments whose first one was not seen.
    UnseenFragment,
    /// Frames that only user space can parse, but that the kernel handled without it.
    NoUserSpace,
    /// Frames that were dropped for this reason, in either direction.
    Dropped(DropReason),
    /// Copies that the tap has sent.
    Tapped(Direction),
    /// Copies that were not made, because those before them had not been sent yet.
    TapFull,
    /// Copies that were not sent, because the tap has no NIC or no link.
    TapDown,
    /// Copies that the tap's NIC or socket did not take, or whose headers are too long.
    TapRefused,
}

impl Counter {
    /// Every counter, in display order.
    pub fn all() -> impl Iterator<Item = Self> {
        let singles = [
            Self::Marked,
            Self::Cleared,
            Self::Disagreement,
            Self::Unsteered,
            Self::UnroutedVlan,
            Self::UnroutedFamily,
            Self::UnroutedSource,
            Self::Translated,
            Self::TranslatedBack,
            Self::HostByUplink,
            Self::UnnamedListener,
            Self::UnseenFragment,
            Self::NoUserSpace,
        ];
        let single_drops = [
            DropReason::HostMacUnknown,
            DropReason::NotForHost,
            DropReason::NoEgress,
            DropReason::SteerUnavailable,
        ];
        let dropped = |by: fn(Role) -> DropReason| Role::ALL.map(by).map(Self::Dropped);
        (Class::ALL.map(Self::Class).into_iter().chain(singles))
            .chain(Malformed::ALL.map(Self::Malformed))
            .chain(Role::ALL.map(Self::Received))
            .chain(Role::ALL.map(Self::Forwarded))
            .chain(dropped(DropReason::TxFull))
            .chain(single_drops.map(Self::Dropped))
            .chain(dropped(DropReason::TxDown))
            .chain(dropped(DropReason::TxRefused))
            .chain(Class::ALL.map(Self::ClassBytes))
            .chain(Role::ALL.map(Self::ReceivedBytes))
            .chain(Direction::ALL.map(Self::Tapped))
            .chain(Self::LOST_COPIES)
    }

    /// The copies for the tap that were lost, by reason.
    pub const LOST_COPIES: [Self; 3] = [Self::TapFull, Self::TapDown, Self::TapRefused];

    /// The slots whose sum this counter is.
    fn slots(self) -> impl Iterator<Item = usize> {
        let rules = Rule::ALL.into_iter().filter(move |&rule| match self {
            Self::Class(class) => rule.class() == class,
            Self::Malformed(reason) => rule == Rule::from(reason),
            Self::UnnamedListener => rule == Rule::Accepts,
            Self::UnseenFragment => rule == Rule::UnseenFragment,
            Self::NoUserSpace => rule == Rule::NoUserSpace,
            _ => false,
        });
        let sized = Rule::ALL.into_iter().filter(move |&rule| match self {
            Self::ClassBytes(class) => rule.class() == class,
            // The bytes of outbound frames are counted per rule.
            Self::ReceivedBytes(role) => role == Role::Host,
            _ => false,
        });
        let single = match self {
            Self::Received(role) => Some(slot!(received) + role.index()),
            Self::ReceivedBytes(Role::Host) => None,
            Self::ReceivedBytes(role) => Some(slot!(inbound_bytes) + role.index()),
            Self::Forwarded(role) => Some(slot!(forwarded) + role.index()),
            Self::Marked => Some(slot!(marked)),
            Self::Cleared => Some(slot!(cleared)),
            Self::Disagreement => Some(slot!(disagreed)),
            Self::Unsteered => Some(slot!(unsteered)),
            Self::UnroutedVlan => Some(slot!(unrouted_vlan)),
            Self::UnroutedFamily => Some(slot!(unrouted_family)),
            Self::UnroutedSource => Some(slot!(unrouted_source)),
            Self::Translated => Some(slot!(translated)),
            Self::TranslatedBack => Some(slot!(translated_back)),
            Self::HostByUplink => Some(slot!(host_by_uplink)),
            Self::Dropped(reason) => Some(reason.slot()),
            Self::Tapped(direction) => Some(slot!(tap_copied) + direction as usize),
            Self::TapFull => Some(slot!(tap_full)),
            Self::TapDown => Some(slot!(tap_down)),
            Self::TapRefused => Some(slot!(tap_refused)),
            Self::Class(_)
            | Self::ClassBytes(_)
            | Self::Malformed(_)
            | Self::UnnamedListener
            | Self::UnseenFragment
            | Self::NoUserSpace => None,
        };
        rules
            .map(|rule| slot!(rules) + rule as usize)
            .chain(sized.map(|rule| slot!(bytes) + rule as usize))
            .chain(single)
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Received(role) => write!(f, "{role}_received"),
            Self::ReceivedBytes(role) => write!(f, "{role}_received_bytes"),
            Self::Forwarded(role) => write!(f, "{role}_forwarded"),
            Self::Class(class) => f.write_str(class.name()),
            Self::ClassBytes(class) => write!(f, "{}_bytes", class.name()),
            Self::Malformed(reason) => write!(f, "malformed_{}", reason.name()),
            Self::Marked => f.write_str("marked"),
            Self::Cleared => f.write_str("cleared"),
            Self::Disagreement => f.write_str("disagreement"),
            Self::Unsteered => f.write_str("unsteered"),
            Self::UnroutedVlan => f.write_str("unrouted_vlan"),
            Self::UnroutedFamily => f.write_str("unrouted_family"),
            Self::UnroutedSource => f.write_str("unrouted_source"),
            Self::Translated => f.write_str("translated"),
            Self::TranslatedBack => f.write_str("translated_back"),
            Self::HostByUplink => f.write_str("host_by_uplink"),
            Self::UnnamedListener => f.write_str("unnamed_listener"),
            Self::UnseenFragment => f.write_str("unseen_fragment"),
            Self::NoUserSpace => f.write_str("no_user_space"),
            Self::Dropped(reason) => match reason.port() {
                Some(role) => write!(f, "dropped_{role}_{}", reason.name()),
                None => write!(f, "dropped_{}", reason.name()),
            },
            Self::Tapped(direction) => write!(f, "tapped_{}", direction.name()),
            Self::TapFull => f.write_str("tap_full"),
            Self::TapDown => f.write_str("tap_down"),
            Self::TapRefused => f.write_str("tap_refused"),
        }
    }
}

/// Why no next hop routes a relay frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unrouted {
    /// It has other VLAN tags than its group.
    Vlan,
    /// Its IP version has no next hop.
    Family,
    /// No answer would be translated back.
    Source,
}

/// A worker's own counts since it last added them to its [`Counters`], one number per slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally(pub(super) [u64; SLOTS]);

impl Default for Tally {
    fn default() -> Self {
        Self([0; SLOTS])
    }
}

impl Tally {
    /// Counts a frame of `bytes` bytes under the rule that it matched.
    #[inline]
    pub(super) const fn met(&mut self, rule: Rule, bytes: u64) {
        self.0[slot!(rules) + rule as usize] += 1;
        self.0[slot!(bytes) + rule as usize] += bytes;
    }

    /// Counts frames of `bytes` bytes together under the rule that they matched.
    pub(super) const fn all_met(&mut self, rule: Rule, frames: u64, bytes: u64) {
        self.0[slot!(rules) + rule as usize] += frames;
        self.0[slot!(bytes) + rule as usize] += bytes;
    }

    pub(super) const fn marked(&mut self, frames: u64) {
        self.0[slot!(marked)] += frames;
    }

    /// Counts a frame whose DSCP was changed to this one.
    #[inline]
    pub(super) fn remarked(&mut self, dscp: Dscp) {
        if dscp == Dscp::DEFAULT {
            self.0[slot!(cleared)] += 1;
        } else {
            self.0[slot!(marked)] += 1;
        }
    }

    #[inline]
    pub(super) const fn disagreed(&mut self) {
        self.0[slot!(disagreed)] += 1;
    }

    #[inline]
    pub(super) const fn unsteered(&mut self) {
        self.0[slot!(unsteered)] += 1;
    }

    /// Counts a relay frame that no next hop routes.
    pub(super) fn unrouted(&mut self, why: Unrouted) {
        self.0[match why {
            Unrouted::Vlan => slot!(unrouted_vlan),
            Unrouted::Family => slot!(unrouted_family),
            Unrouted::Source => slot!(unrouted_source),
        }] += 1;
    }

    #[inline]
    pub(super) const fn translated(&mut self) {
        self.0[slot!(translated)] += 1;
    }

    #[inline]
    pub(super) const fn translated_back(&mut self) {
        self.0[slot!(translated_back)] += 1;
    }

    #[inline]
    pub(super) const fn host_by_uplink(&mut self) {
        self.0[slot!(host_by_uplink)] += 1;
    }

    pub(super) const fn received(&mut self, role: Role, frames: u64) {
        self.0[slot!(received) + role.index()] += frames;
    }

    /// Adds bytes received by a port other than `host`.
    pub(super) const fn inbound(&mut self, role: Role, bytes: u64) {
        self.0[slot!(inbound_bytes) + role.index()] += bytes;
    }

    pub(super) const fn forwarded(&mut self, role: Role, frames: u64) {
        self.0[slot!(forwarded) + role.index()] += frames;
    }

    pub(super) const fn dropped(&mut self, reason: DropReason, frames: u64) {
        self.0[reason.slot()] += frames;
    }

    pub(super) const fn tapped(&mut self, direction: Direction, copies: u64) {
        self.0[slot!(tap_copied) + direction as usize] += copies;
    }

    /// Takes back a copy that was counted as sent.
    pub(super) const fn untapped(&mut self, direction: Direction) {
        self.0[slot!(tap_copied) + direction as usize] -= 1;
    }

    pub(super) const fn tap_full(&mut self, copies: u64) {
        self.0[slot!(tap_full)] += copies;
    }

    pub(super) const fn tap_down(&mut self, copies: u64) {
        self.0[slot!(tap_down)] += copies;
    }

    pub(super) const fn tap_refused(&mut self, copies: u64) {
        self.0[slot!(tap_refused)] += copies;
    }

    /// The value of one counter: the sum of its slots.
    pub fn of(&self, counter: Counter) -> u64 {
        counter.slots().map(|slot| self.0[slot]).sum()
    }

    fn sum(&self, counters: impl IntoIterator<Item = Counter>) -> u64 {
        counters.into_iter().map(|counter| self.of(counter)).sum()
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            // One CPU may have subtracted what another one counted.
            *sum = sum.wrapping_add(more);
        }
    }

    /// Frames received, by all ports.
    pub fn decided(&self) -> u64 {
        self.sum(Role::ALL.map(Counter::Received))
    }

    /// Outbound frames, summed over the classes; each frame has exactly one class.
    pub fn classified(&self) -> u64 {
        self.sum(Class::ALL.map(Counter::Class))
    }

    /// Whether every received frame was either forwarded or dropped, and every outbound one
    /// classified.
    pub fn is_complete(&self) -> bool {
        let forwarded = self.sum(Role::ALL.map(Counter::Forwarded));
        let drops = Counter::all().filter(|counter| matches!(counter, Counter::Dropped(_)));
        self.decided() == forwarded + self.sum(drops)
            && self.classified() == self.of(Counter::Received(Role::Host))
    }
}

impl fmt::Display for Tally {
    /// One line: every class, then every other counter that is not 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for counter in Counter::all() {
            let number = self.of(counter);
            if number != 0 || matches!(counter, Counter::Class(_)) {
                write!(f, "{separator}{counter}={number}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

/// Counts that one worker publishes and any thread reads.
#[derive(Debug)]
pub struct Counters {
    cells: Arc<Cells>,
    first: usize,
}

impl Default for Counters {
    /// Zeros in this process' own memory.
    fn default() -> Self {
        Self::over(Arc::new(Cells::own(QUEUE_SLOTS)), 0)
    }
}

impl Counters {
    /// The counters of a queue's worker, in cells that begin with those of queue 0.
    pub const fn over(cells: Arc<Cells>, queue: usize) -> Self {
        Self {
            cells,
            first: queue * QUEUE_SLOTS,
        }
    }

    fn own(&self) -> &[AtomicU64] {
        &self.cells[self.first..self.first + SLOTS]
    }

    fn of_group(&self, group: usize) -> &[AtomicU64] {
        let first = self.first + SLOTS + group * GROUP_SLOTS;
        &self.cells[first..first + GROUP_SLOTS]
    }

    /// Adds the tally to the published counts and resets it. Only the worker that owns these
    /// counters may call this: a load and a store are enough for one writer.
    pub fn publish(&self, tally: &mut Tally) {
        publish(self.own(), &mut tally.0);
    }

    /// The same for the counts of a group.
    pub(super) fn publish_group(&self, group: usize, counts: &mut [u64; GROUP_SLOTS]) {
        publish(self.of_group(group), counts);
    }

    /// A copy of the published counts of the first `groups` groups.
    pub fn read_groups(&self, groups: usize) -> Vec<GroupCounts> {
        let read = |group| {
            let cells = self.of_group(group).iter();
            let numbers: Vec<_> = cells.map(|cell| cell.load(Ordering::Relaxed)).collect();
            GroupCounts::of_numbers(&numbers)
        };
        (0..groups.min(MAX_GROUPS as usize)).map(read).collect()
    }

    /// A copy of the published counts.
    pub fn read(&self) -> Tally {
        let mut tally = Tally::default();
        for (count, published) in tally.0.iter_mut().zip(self.own()) {
            *count = published.load(Ordering::Relaxed);
        }
        tally
    }
}

/// Adds counts to published ones, and resets them.
fn publish(published: &[AtomicU64], counts: &mut [u64]) {
    for (published, count) in published.iter().zip(counts) {
        if *count != 0 {
            let sum = published.load(Ordering::Relaxed) + *count;
            published.store(sum, Ordering::Relaxed);
            *count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_slot_is_read_and_every_counter_has_a_name_of_its_own() {
        let slots: BTreeSet<_> = Counter::all().flat_map(Counter::slots).collect();
        // The bytes from the host are counted per rule.
        let unused = slot!(inbound_bytes) + Role::Host.index();
        assert_eq!(slots, (0..SLOTS).filter(|&slot| slot != unused).collect());
        let names: BTreeSet<_> = Counter::all().map(|counter| counter.to_string()).collect();
        assert_eq!(names.len(), Counter::all().count());
        for (index, rule) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(rule as usize, index);
        }
    }

    #[test]
    fn publishing_moves_counts_once() {
        let counters = Counters::default();
        let mut tally = Tally::default();
        tally.remarked(Dscp::AF11);
        counters.publish(&mut tally);
        counters.publish(&mut tally);
        assert_eq!(counters.read().of(Counter::Marked), 1);
        assert_eq!(tally, Tally::default());
    }

    #[test]
    fn a_line_shows_every_class_and_every_nonzero_counter() {
        let mut tally = Tally::default();
        tally.met(Rule::ExitProtocol, 60);
        tally.met(Rule::UnseenFragment, 1514);
        tally.dropped(DropReason::TxFull(Role::Uplink), 2);
        assert_eq!(
            tally.to_string(),
            "non_ip=0 malformed=0 foreign=0 resolver=0 reply=0 relay=0 exempt=0 exit=1 host=1 \
             unseen_fragment=1 dropped_uplink_tx_full=2 exit_bytes=60 host_bytes=1514 \
             host_received_bytes=1574"
        );
    }
}
