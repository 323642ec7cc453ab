//! The rules, in order; the first match wins. This is the reference for every other
//! implementation and description of them.
//!
//! If traffic is classified by the host's mark, all TCP without the mark is relay traffic, and
//! outsiders can influence the ToS bits. Two things follow:
//!
//! - Exempt prefixes are checked before relay traffic. The relay set lists single relays and may
//!   be checked first; "all TCP without the mark" may not, or nothing would be exempt.
//! - Only exit protocols can count as marked. The kernel copies the ToS byte of an echo request
//!   into its reply, so the sender of the request chooses the ToS byte of the host's reply.
//!
//! An outsider can make the host send TCP segments from a clearnet address to any address and
//! port, by a SYN with a forged source address. Two kinds of such answers are recognised by their
//! control bits, before the relay set and the host's mark are used:
//!
//! - SYN with ACK accepts an inbound connection. The host opens its own connections with SYN
//!   only.
//! - RST without ACK, or with sequence number 0, answers a segment that belongs to no connection
//!   (RFC 9293, section 3.5.2). A stack that aborts its own connection sends its next sequence
//!   number and ACK.
//!
//! A segment with neither SYN nor RST belongs to a connection, or seems to: it gets the class of
//! its flow.

use super::{
    ClassifyBy, Egress, ExitProtocols, Family, FragmentTable, Group, GroupNumber, Owner, Remark,
    Rule, Rules, Snapshot, Verdict,
};
use crate::packet::{Dscp, Fragment, Headers, Packet, Ports, Tcp, Version, VlanTags, protocol};
use std::time::Duration;

const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;

/// The verdict on an outbound frame with these headers.
///
/// Every frame has a verdict: invalid headers match a rule of their own ([`Rule::class`] is
/// `Malformed`), so judging cannot fail. The frame itself is not changed; [`Verdict::remark`] says
/// which DSCP to write at which byte. `now` counts from any fixed moment, such as the start of the
/// process; only fragments use it, for [`FRAGMENT_LIFETIME`](crate::FRAGMENT_LIFETIME).
///
/// # Examples
/// A TCP segment from the host's clearnet address to a web server is exit traffic, because
/// 203.0.113.5:443 is not in the relay set. It leaves by the uplink with the mark AF11.
///
/// ```
/// use exitmark_policy::packet::{Dscp, parse, protocol};
/// use exitmark_policy::{Actions, AtUplink, Class, ClassifyBy, Egress, EndpointSet, FragmentTable};
/// use exitmark_policy::{Group, Intent, Mode, PrefixSet, Rules, Snapshot, Steer, judge};
/// use std::{sync::Arc, time::Duration};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let actions = Actions::new(Intent {
///     mode: Mode::Enforce,
///     mark: Dscp::AF11,
///     at_uplink: AtUplink::Keep,
///     steer: Steer::Off,
/// });
/// let host = Group {
///     addresses: PrefixSet::new(["192.0.2.10/32".parse()?]),
///     ..Group::new("host", actions)
/// };
/// let rules = Rules::new(ClassifyBy::RelaySet, vec![host], Default::default());
/// let relays = EndpointSet::new(["198.51.100.7:9001".parse()?])?;
/// let snapshot = Snapshot::new(1, Arc::new(rules), relays);
///
/// let mut frame = [0_u8; 54]; // Ethernet, IPv4 and TCP headers.
/// frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]); // IPv4, without options,
/// frame[17] = 40; // 40 bytes long.
/// frame[23] = protocol::TCP;
/// frame[26..34].copy_from_slice(&[192, 0, 2, 10, 203, 0, 113, 5]); // Source and destination.
/// frame[36..38].copy_from_slice(&443_u16.to_be_bytes()); // Destination port.
///
/// let headers = parse(&frame, frame.len());
/// let verdict = judge(&headers, &snapshot, &mut FragmentTable::default(), Duration::ZERO);
/// assert_eq!(verdict.class(), Class::Exit);
/// assert_eq!(verdict.egress, Egress::Uplink);
/// assert_eq!(verdict.remark.map(|change| change.dscp), Some(Dscp::AF11));
/// # Ok(())
/// # }
/// ```
#[inline(always)]
pub fn judge(
    headers: &Headers,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> Verdict {
    match headers {
        Headers::V4(packet) => judge_packet(packet, snapshot, fragments, now),
        Headers::V6(packet) => judge_packet(packet, snapshot, fragments, now),
        Headers::NotIp => unread(Rule::NotIp, snapshot),
        Headers::Malformed(reason) => unread((*reason).into(), snapshot),
    }
}

/// The verdict on an IPv4 packet that is not a fragment; same result as [`judge`].
#[inline(always)]
pub fn judge_whole_v4(packet: Packet<u32>, snapshot: &Snapshot) -> Verdict {
    debug_assert!(packet.fragment.is_none(), "only whole packets");
    judge_whole(&packet, snapshot, classify)
}

/// The verdict on an IPv6 packet that is not a fragment; same result as [`judge`].
#[inline(always)]
pub fn judge_whole_v6(packet: Packet<u128>, snapshot: &Snapshot) -> Verdict {
    debug_assert!(packet.fragment.is_none(), "only whole packets");
    judge_whole(&packet, snapshot, classify)
}

#[inline(always)]
fn judge_whole<F: Family>(
    packet: &Packet<F>,
    snapshot: &Snapshot,
    classify: impl FnOnce(&Packet<F>, Owner, &Snapshot) -> Met,
) -> Verdict {
    match snapshot.rules.owner_of(packet.source) {
        Some(owner) => {
            let met = classify(packet, owner, snapshot);
            verdict(packet, owner.group(), met, snapshot)
        }
        None => foreign(packet, snapshot),
    }
}

#[inline(always)]
pub(super) fn judge_packet<F: Family>(
    packet: &Packet<F>,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> Verdict {
    match packet.fragment {
        None => judge_whole(packet, snapshot, classify_apart),
        Some(fragment) => judge_whole(packet, snapshot, |packet, owner, snapshot| {
            classify_fragment(packet, fragment, owner, snapshot, fragments, now)
        }),
    }
}

/// The rule that a packet matched.
#[derive(Clone, Copy)]
struct Met {
    rule: Rule,
    /// The relay set contradicts the source address.
    disagreement: bool,
    /// No answer to the packet would be translated back, because the relay set does not list its
    /// destination.
    is_unanswerable: bool,
}

impl From<Rule> for Met {
    #[inline(always)]
    fn from(rule: Rule) -> Self {
        Self {
            rule,
            disagreement: false,
            is_unanswerable: false,
        }
    }
}

/// The verdict on a packet of a group, from the rule that it matched.
#[inline(always)]
fn verdict<F: Family>(
    packet: &Packet<F>,
    group: GroupNumber,
    met: Met,
    snapshot: &Snapshot,
) -> Verdict {
    let Met {
        rule, disagreement, ..
    } = met;
    let carried = Dscp::of(packet.tos);
    let leaves = &snapshot.group(group).leaves;
    let dscp = leaves.dscp(rule, carried);
    let egress = match leaves.egress(rule, F::VERSION) {
        Egress::Incoming if met.is_unanswerable => Egress::Unrouted,
        Egress::Incoming if !is_of_vlan(packet.vlan, group, &snapshot.rules) => Egress::Unrouted,
        egress => egress,
    };
    Verdict {
        rule,
        group,
        egress,
        remark: (dscp != carried).then_some(Remark {
            l3: packet.l3,
            version: F::VERSION,
            dscp,
        }),
        disagreement,
    }
}

/// Whether a frame has the tags of its group, so that it is of the network that the group's
/// configuration names.
#[inline(always)]
fn is_of_vlan(vlan: VlanTags, group: GroupNumber, rules: &Rules) -> bool {
    rules.group(group).is_some_and(|group| group.vlan == vlan)
}

/// The verdict on a packet whose source is not an address of a group.
#[cold]
#[inline(never)]
fn foreign<F: Family>(packet: &Packet<F>, snapshot: &Snapshot) -> Verdict {
    let met = Rule::ForeignSource.into();
    verdict(packet, GroupNumber::NONE, met, snapshot)
}

/// The verdict on a frame without a valid IP header.
#[cold]
fn unread(rule: Rule, snapshot: &Snapshot) -> Verdict {
    let leaves = &snapshot.group(GroupNumber::NONE).leaves;
    Verdict {
        rule,
        group: GroupNumber::NONE,
        // None of these rules is relay traffic, so the IP version does not matter.
        egress: leaves.egress(rule, Version::V4),
        remark: None,
        disagreement: false,
    }
}

/// Classifies a first fragment by its ports, and later fragments by the first one's rule.
#[cold]
fn classify_fragment<F: Family>(
    packet: &Packet<F>,
    fragment: Fragment,
    owner: Owner,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> Met {
    if packet.ports_are_elsewhere() {
        let rule = fragments.recall(packet, fragment, now);
        return rule.unwrap_or(Rule::UnseenFragment).into();
    }
    let met = classify_apart(packet, owner, snapshot);
    // The rule does not tell later fragments that they are not steered.
    if fragment.first && !met.is_unanswerable {
        fragments.remember(packet, fragment, met.rule, now);
    }
    met
}

/// Out-of-line copy of [`classify`] for frames of the slow path.
#[inline(never)]
fn classify_apart<F: Family>(packet: &Packet<F>, owner: Owner, snapshot: &Snapshot) -> Met {
    classify(packet, owner, snapshot)
}

/// The rule that a packet of a group matches. Rules for traffic other than TCP from a clearnet address are in separate functions that
/// do not take a copy of the packet, so that the fields of nearly all packets stay in registers.
#[inline(always)]
fn classify<F: Family>(packet: &Packet<F>, owner: Owner, snapshot: &Snapshot) -> Met {
    let rules = &*snapshot.rules;
    let (source, destination, ports) = (packet.source, packet.destination, packet.ports);
    let number = owner.group();
    let Some(group) = rules.group(number) else {
        return Rule::ForeignSource.into();
    };
    if owner.is_of_relay() {
        let tcp = packet.tcp;
        let from = (source, ports, number);
        return from_relay_address(from, destination, packet.protocol, tcp, group, snapshot);
    }
    if is_to_resolver(destination, ports, group) {
        return Rule::ToResolver.into();
    }
    if packet.protocol != protocol::TCP {
        return classify_other(packet, group, rules).into();
    }
    if is_from_listener(source, ports, number, snapshot) {
        return Rule::FromListener.into();
    }
    if let Some(rule) = answer(packet.tcp) {
        return rule.into();
    }
    // With a host mark the relay set is not used, and may be missing.
    let left_over = match rules.classify_by {
        ClassifyBy::RelaySet if is_to_relay(destination, ports, snapshot) => {
            return Met {
                disagreement: snapshot.group(number).both_kinds,
                ..Rule::ToListedRelay.into()
            };
        }
        ClassifyBy::RelaySet => Rule::ExitProtocol,
        ClassifyBy::HostMark(mark) if Dscp::of(packet.tos) == mark => Rule::HostMarked,
        ClassifyBy::HostMark(_) => Rule::NotHostMarked,
    };
    if group.exempt.covers(destination) {
        return Rule::ToExemptPrefix.into();
    }
    left_over.into()
}

/// The rule for a protocol other than TCP, from a clearnet address and not to a resolver.
#[inline]
fn classify_other<F: Family>(packet: &Packet<F>, group: &Group, rules: &Rules) -> Rule {
    if group.exempt.covers(packet.destination) {
        return Rule::ToExemptPrefix;
    }
    let exit = match group.exit_protocols {
        ExitProtocols::Tcp => false,
        ExitProtocols::TcpUdp => packet.protocol == protocol::UDP,
        ExitProtocols::All => true,
    };
    match rules.classify_by {
        _ if !exit => Rule::OtherProtocol,
        ClassifyBy::RelaySet => Rule::ExitProtocol,
        ClassifyBy::HostMark(mark) if Dscp::of(packet.tos) == mark => Rule::HostMarked,
        ClassifyBy::HostMark(_) => Rule::OtherProtocol,
    }
}

/// The rule for a packet from an address that carries Tor traffic only.
#[inline(never)]
fn from_relay_address<F: Family>(
    (source, ports, number): (F, Ports, GroupNumber),
    destination: F,
    protocol: u8,
    tcp: Tcp,
    group: &Group,
    snapshot: &Snapshot,
) -> Met {
    if is_to_resolver(destination, ports, group) {
        return Rule::ToResolver.into();
    }
    if protocol == protocol::TCP {
        if is_from_listener(source, ports, number, snapshot) {
            return Rule::FromListener.into();
        }
        if let Some(rule) = answer(tcp) {
            return rule.into();
        }
        let by_relays = snapshot.rules.classify_by == ClassifyBy::RelaySet;
        let is_listed = by_relays && is_to_relay(destination, ports, snapshot);
        let of_group = snapshot.group(number);
        return Met {
            rule: Rule::FromRelayAddress,
            disagreement: by_relays && !is_listed && of_group.both_kinds,
            is_unanswerable: !is_listed && of_group.translates,
        };
    }
    if group.exempt.covers(destination) {
        return Rule::ToExemptPrefix.into();
    }
    Rule::OtherProtocol.into()
}

/// The rule for a segment that an outsider can provoke, if its control bits show that it is one.
#[inline(always)]
fn answer(tcp: Tcp) -> Option<Rule> {
    if tcp.control & (Tcp::SYN | Tcp::RST) == 0 {
        return None;
    }
    if tcp.control & (Tcp::SYN | Tcp::ACK) == Tcp::SYN | Tcp::ACK {
        return Some(Rule::Accepts);
    }
    let refuses = tcp.control & Tcp::ACK == 0 || tcp.sequence == 0;
    (tcp.control & Tcp::RST != 0 && refuses).then_some(Rule::Refuses)
}

#[inline(always)]
fn is_to_resolver<F: Family>(destination: F, ports: Ports, group: &Group) -> bool {
    is_dns(ports) && group.resolvers.covers(destination)
}

/// Whether a resolver may get a packet to this port.
#[inline(always)]
pub(super) const fn is_dns(ports: Ports) -> bool {
    matches!(ports.destination, DNS | DNS_OVER_TLS)
}

#[inline(always)]
fn is_from_listener<F: Family>(
    source: F,
    ports: Ports,
    group: GroupNumber,
    snapshot: &Snapshot,
) -> bool {
    let (listeners, relays) = (&snapshot.listeners, &snapshot.relays);
    listeners.contains(relays, group, source, ports.source)
}

#[inline(always)]
fn is_to_relay<F: Family>(destination: F, ports: Ports, snapshot: &Snapshot) -> bool {
    snapshot.relays.lists(destination, ports.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::ETHERNET_HEADER_BYTES;
    use crate::{Actions, AtUplink, EndpointSet, Intent, Mode, PrefixSet, SocketRules, Steer};
    use std::sync::Arc;

    const HOST: u32 = 0xc000_020a;

    fn snapshot() -> Snapshot {
        let actions = Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer: Steer::Off,
        });
        let host = Group {
            addresses: PrefixSet::new(["192.0.2.10/32".parse().unwrap()]),
            ..Group::new("host", actions)
        };
        let rules = Rules::new(ClassifyBy::RelaySet, vec![host], SocketRules::default());
        Snapshot::new(1, Arc::new(rules), EndpointSet::empty())
    }

    /// A fragment from this source to a fixed destination.
    fn fragment(source: u32, protocol: u8, id: u32, first: bool) -> Headers {
        Headers::V4(Packet {
            source,
            destination: 0xc633_6407,
            l3: ETHERNET_HEADER_BYTES,
            vlan: VlanTags::UNTAGGED,
            ports: Ports::default(),
            tcp: Tcp::default(),
            fragment: Some(Fragment {
                id,
                protocol,
                first,
            }),
            tos: 0,
            protocol,
        })
    }

    /// The fragment table is bounded, so fragments that do not need an entry take none.
    #[test]
    fn only_first_fragments_of_the_host_take_an_entry() {
        const ICMP: u8 = 1;
        let snapshot = snapshot();
        let mut fragments = FragmentTable::default();
        let mut rule = |headers| judge(&headers, &snapshot, &mut fragments, Duration::ZERO).rule;
        let later = || fragment(HOST, protocol::TCP, 7, false);
        assert_eq!(rule(later()), Rule::UnseenFragment);
        assert_eq!(
            rule(fragment(HOST, protocol::TCP, 7, true)),
            Rule::ExitProtocol
        );
        for id in 0..100_000 {
            assert_eq!(rule(fragment(HOST, ICMP, id, false)), Rule::OtherProtocol);
            let foreign = rule(fragment(HOST + 1, protocol::TCP, id, true));
            assert_eq!(foreign, Rule::ForeignSource);
        }
        assert_eq!(rule(later()), Rule::ExitProtocol);
    }
}
