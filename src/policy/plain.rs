//! The most common frames of hosts, decided in few steps: untagged IPv4 without options or IPv6
//! without extension headers, with a TCP segment that has neither SYN nor RST, from a host of the
//! only group, if that has no relay addresses, exempt prefixes, tags, translation or tap. Same logic
//! as bpf/plain.h.
//!
//! The verdict is that of [`judge`](super::judge()), or none, and then `judge` decides.

use super::endpoint::halves;
use super::judge::is_dns;
use super::owners::Owner;
use super::packet::{Dscp, Packet, Tcp, Version, VlanTags, protocol};
use super::range_map::Number;
use super::rules::{Listeners, Marking};
use super::{ClassifyBy, Egress, Family, Group, Rule, Rules, Snapshot};

/// The plain hosts of a snapshot, by IP version.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain {
    /// The mark on exit traffic.
    pub mark: Dscp,
    /// Whether the hosts' MAC addresses are learned, and not configured.
    pub(super) learns: bool,
    pub(super) v4: PlainHosts,
    pub(super) v6: PlainHosts,
}

/// The hosts of an IP version: adjacent addresses that have the same upper 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlainHosts {
    /// The upper 64 bits; 0 for IPv4.
    pub(super) high: u64,
    /// The lower 64 bits of the first address.
    pub(super) first: u64,
    /// The number of addresses; 0 without plain hosts.
    pub(super) count: u64,
    /// The highest port on which something listens; 0 for none.
    pub(super) last_listener: u16,
    /// How frames to relays leave.
    pub hop: PlainHop,
}

/// How relay frames of plain hosts leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHop {
    /// They are steered, but no next hop routes this IP version.
    #[default]
    Unrouted,
    /// By the uplink.
    Uplink,
    /// To the next hop with this number.
    Number(u8),
}

/// What a plain frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainFrame {
    /// Exit traffic, which leaves by the uplink with the mark.
    Exit,
    /// Traffic to a relay, which leaves with the DSCP that it has.
    Relay,
}

impl Plain {
    pub(super) fn of(rules: &Rules, listeners: &Listeners) -> Self {
        let [group] = rules.groups() else {
            return Self::default();
        };
        let (exit, tap) = (group.actions.of(Rule::ExitProtocol), rules.tap());
        let is_plain = rules.classify_by == ClassifyBy::RelaySet
            && (exit.egress, exit.marking) == (Egress::Uplink, Marking::Set)
            && !(group.has_both_kinds() || group.translates())
            && !(tap.copies_out() || tap.copies_answers())
            && group.actions.mark() != Dscp::DEFAULT
            && [group.vlan, group.path.vlan] == [VlanTags::UNTAGGED; 2]
            && group.exempt.v4().is_empty()
            && group.exempt.v6().is_empty();
        if !is_plain {
            return Self::default();
        }
        let has_listener = |port: &u16| listeners.any[usize::from(port / 64)] >> (port % 64) & 1;
        let last = (1..=u16::MAX).rfind(|port| has_listener(port) == 1);
        let owners = rules.owners();
        let hosts = |version, range: Option<(Owner, u128, u128)>| PlainHosts {
            last_listener: last.unwrap_or(0),
            ..range.map_or_else(PlainHosts::default, |range| hosts(version, range, group))
        };
        let v4 = match &owners.v4.ranges[..] {
            [range] => Some((range.value, range.first.into(), range.last.into())),
            _ => None,
        };
        let v6 = match &owners.v6.ranges[..] {
            [range] => Some((range.value, range.first, range.last)),
            _ => None,
        };
        Self {
            mark: group.actions.mark(),
            learns: group.mac.is_none(),
            v4: hosts(Version::V4, v4),
            v6: hosts(Version::V6, v6),
        }
    }

    /// The hosts of an IP version.
    #[inline]
    pub const fn hosts(&self, version: Version) -> &PlainHosts {
        match version {
            Version::V4 => &self.v4,
            Version::V6 => &self.v6,
        }
    }
}

/// The hosts in the only range of an IP version, from the first to the last address.
fn hosts(version: Version, (owner, first, last): (Owner, u128, u128), group: &Group) -> PlainHosts {
    let ([high, first], [last_high, last]) = (halves(first), halves(last));
    let count = last.checked_sub(first).and_then(|more| more.checked_add(1));
    let Some(count) = count.filter(|_| owner.to_u8() == 0 && high == last_high) else {
        return PlainHosts::default();
    };
    PlainHosts {
        high,
        first,
        count,
        hop: match group.actions.of(Rule::ToListedRelay).egress {
            Egress::Uplink => PlainHop::Uplink,
            Egress::Incoming if group.actions.intent().steer.routes(version) => {
                PlainHop::Number(group.path.next_hops[version as usize])
            }
            Egress::Incoming | Egress::Unrouted => PlainHop::Unrouted,
        },
        ..PlainHosts::default()
    }
}

impl Snapshot {
    /// The plain hosts.
    #[inline]
    pub const fn plain(&self) -> &Plain {
        &self.plain
    }

    /// What an untagged IPv4 packet that is not a fragment is, if it is plain.
    #[inline(always)]
    pub fn judge_plain_v4(&self, packet: &Packet<u32>) -> Option<PlainFrame> {
        self.judge_plain(packet, &self.plain.v4)
    }

    /// What an untagged IPv6 packet that is not a fragment is, if it is plain.
    #[inline(always)]
    pub fn judge_plain_v6(&self, packet: &Packet<u128>) -> Option<PlainFrame> {
        self.judge_plain(packet, &self.plain.v6)
    }

    #[inline(always)]
    fn judge_plain<F: Family>(&self, packet: &Packet<F>, hosts: &PlainHosts) -> Option<PlainFrame> {
        let [high, low] = Number::words(packet.source);
        let is_plain = packet.protocol == protocol::TCP
            && packet.tcp.control & (Tcp::SYN | Tcp::RST) == 0
            && high == hosts.high
            && low.wrapping_sub(hosts.first) < hosts.count
            && !(packet.ports.source <= hosts.last_listener
                && self.listeners.may_have(packet.ports.source))
            && !is_dns(packet.ports);
        if !is_plain {
            return None;
        }
        if !self
            .relays
            .lists(packet.destination, packet.ports.destination)
        {
            return Some(PlainFrame::Exit);
        }
        let keeps = !self.rules.clears().contains(Dscp::of(packet.tos));
        keeps.then_some(PlainFrame::Relay)
    }
}
