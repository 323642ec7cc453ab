//! The rule itself, in the order in which the first match wins. The reference for every other
//! place where it is written.
//!
//! By the host's mark, relay traffic is all the TCP that does not bear it, and the mark is a
//! few bits that others have a hand in. Two things follow:
//!
//! - Exempt prefixes come before relay traffic. The relay set names relays one by one and may
//!   come first; what is left over may not, or nothing would ever be exempt.
//! - Only exit protocols can be marked. The kernel copies the ToS of a ping into its answer, so
//!   whoever pings the host chooses what its answers bear.

use super::rules::Marking;
use super::{
    ClassifyBy, ExitProtocols, Family, FragmentTable, Remark, Rule, Rules, Snapshot, Verdict,
};
use crate::packet::{Dscp, Fragment, Headers, Packet, protocol};
use std::time::Duration;

const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;

/// What shall happen to an outbound frame with these headers. `now` counts from any fixed
/// moment; only fragments care.
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

#[inline(always)]
fn judge_packet<F: Family>(
    packet: &Packet<F>,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> Verdict {
    let (rule, disagreement) = match packet.fragment {
        None => classify(packet, snapshot),
        Some(fragment) => classify_fragment(*packet, fragment, snapshot, fragments, now),
    };
    let action = snapshot.rules.actions.of(rule);
    Verdict {
        rule,
        egress: action.egress,
        remark: remark(packet, action.marking, &snapshot.rules),
        disagreement,
    }
}

/// The verdict on a frame that has no IP header we could read.
#[cold]
fn unread(rule: Rule, snapshot: &Snapshot) -> Verdict {
    Verdict {
        rule,
        egress: snapshot.rules.actions.of(rule).egress,
        remark: None,
        disagreement: false,
    }
}

/// The DSCP to write: the mark on exit frames, 0 on every other frame that bears it. On the wire
/// the mark means exit and nothing else. The host's own mark, where that tells what exit traffic
/// is, has done its work here: it is cleared like the mark, on foreign frames too.
#[inline]
fn remark<F: Family>(packet: &Packet<F>, marking: Marking, rules: &Rules) -> Option<Remark> {
    let (bears, mark) = (Dscp::of(packet.tos), rules.actions.mark());
    let dscp = match marking {
        Marking::Set if bears != mark => mark,
        Marking::Clear if bears == mark || rules.classify_by == ClassifyBy::HostMark(bears) => {
            Dscp::DEFAULT
        }
        _ => return None,
    };
    Some(Remark {
        l3: packet.l3,
        version: F::VERSION,
        dscp,
    })
}

/// A first fragment is classified by its ports, and later ones follow it. It takes a copy of the
/// packet, so that the fields of all others can stay in registers.
#[cold]
fn classify_fragment<F: Family>(
    packet: Packet<F>,
    fragment: Fragment,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> (Rule, bool) {
    if packet.ports_are_elsewhere() && is_from_host(&packet, snapshot) {
        let rule = fragments.recall(&packet, fragment, now);
        return (rule.unwrap_or(Rule::UnseenFragment), false);
    }
    let (rule, disagreement) = classify(&packet, snapshot);
    if fragment.first && rule != Rule::ForeignSource {
        fragments.remember(&packet, fragment, rule, now);
    }
    (rule, disagreement)
}

#[inline]
fn is_from_host<F: Family>(packet: &Packet<F>, snapshot: &Snapshot) -> bool {
    snapshot.rules.addresses.covers(packet.source)
        || snapshot.rules.relay_addresses.covers(packet.source)
}

/// The rule that a packet meets, and whether the relay set contradicts its source address.
#[inline(always)]
fn classify<F: Family>(packet: &Packet<F>, snapshot: &Snapshot) -> (Rule, bool) {
    let rules = &snapshot.rules;
    let clearnet = rules.addresses.covers(packet.source);
    if !clearnet && !rules.relay_addresses.covers(packet.source) {
        return (Rule::ForeignSource, false);
    }
    if matches!(packet.ports.destination, DNS | DNS_OVER_TLS)
        && rules.resolvers.covers(packet.destination)
    {
        return (Rule::ToResolver, false);
    }
    if packet.protocol == protocol::TCP
        && let Some(decided) = classify_tcp(packet, clearnet, snapshot)
    {
        return decided;
    }
    if rules.exempt.covers(packet.destination) {
        return (Rule::ToExemptPrefix, false);
    }
    let exit = match rules.exit_protocols {
        ExitProtocols::Tcp => packet.protocol == protocol::TCP,
        ExitProtocols::TcpUdp => matches!(packet.protocol, protocol::TCP | protocol::UDP),
        ExitProtocols::All => true,
    };
    let rule = match rules.classify_by {
        _ if !clearnet || !exit => Rule::OtherProtocol,
        ClassifyBy::RelaySet => Rule::ExitProtocol,
        ClassifyBy::HostMark(mark) if Dscp::of(packet.tos) == mark => Rule::HostMarked,
        ClassifyBy::HostMark(_) if packet.protocol == protocol::TCP => Rule::NotHostMarked,
        ClassifyBy::HostMark(_) => Rule::OtherProtocol,
    };
    (rule, false)
}

/// The rules that only TCP can meet. Where the host has addresses of both kinds, source
/// address and relay set each tell the kind of a flow, and are checked against each other. By
/// the host's mark the relay set is not asked: it need not be there.
#[inline(always)]
fn classify_tcp<F: Family>(
    packet: &Packet<F>,
    clearnet: bool,
    snapshot: &Snapshot,
) -> Option<(Rule, bool)> {
    let rules = &snapshot.rules;
    if snapshot
        .listeners
        .contains(&snapshot.relays, packet.source, packet.ports.source)
    {
        return Some((Rule::FromListener, false));
    }
    if matches!(rules.classify_by, ClassifyBy::HostMark(_)) {
        return (!clearnet).then_some((Rule::FromRelayAddress, false));
    }
    let listed = snapshot
        .relays
        .lists(packet.destination, packet.ports.destination);
    let both_kinds = || !rules.addresses.is_empty() && !rules.relay_addresses.is_empty();
    match (clearnet, listed) {
        (true, false) => None,
        (true, true) => Some((Rule::ToListedRelay, both_kinds())),
        (false, listed) => Some((Rule::FromRelayAddress, !listed && both_kinds())),
    }
}
