//! The rule itself, in the order in which the first match wins. The reference for every other
//! place where it is written.

use super::{
    AtUplink, Class, Egress, ExitProtocols, Family, FragmentTable, Mode, Remark, Rule, Snapshot,
    Verdict,
};
use crate::packet::{Dscp, Fragment, Headers, Packet, Ports, protocol};
use std::time::Duration;

const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;

/// What shall happen to an outbound frame with these headers. `now` counts from any fixed
/// moment; only fragments care.
#[inline]
pub fn judge(
    headers: &Headers,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> Verdict {
    match headers {
        Headers::V4(packet) => judge_packet(packet, snapshot, fragments, now),
        Headers::V6(packet) => judge_packet(packet, snapshot, fragments, now),
        Headers::NotIp => untouched(Rule::NotIp, false),
        Headers::Malformed(reason) => untouched(Rule::Malformed(*reason), false),
    }
}

#[inline]
fn judge_packet<F: Family>(
    packet: &Packet<F>,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> Verdict {
    let (rule, disagreement) = match packet.fragment {
        None => classify(packet, snapshot),
        Some(fragment) => classify_fragment(packet, fragment, snapshot, fragments, now),
    };
    let rules = &snapshot.rules;
    if rules.mode == Mode::Audit {
        return untouched(rule, disagreement);
    }
    let class = rule.class();
    Verdict {
        rule,
        egress: if class == Class::Relay && rules.steer {
            Egress::Incoming
        } else {
            Egress::Uplink
        },
        remark: remark(packet, class, snapshot),
        disagreement,
    }
}

const fn untouched(rule: Rule, disagreement: bool) -> Verdict {
    Verdict {
        rule,
        egress: Egress::Uplink,
        remark: None,
        disagreement,
    }
}

/// The DSCP to write: the mark on exit frames, 0 on every other frame that bears the mark.
/// On the wire the mark means exit and nothing else.
#[inline]
fn remark<F: Family>(packet: &Packet<F>, class: Class, snapshot: &Snapshot) -> Option<Remark> {
    let mark = &snapshot.rules.mark;
    let marked = Dscp::of(packet.tos) == mark.dscp;
    let shall_be_marked = class == Class::Exit && mark.at_uplink == AtUplink::Keep;
    if marked == shall_be_marked {
        return None;
    }
    Some(Remark {
        l3: packet.l3,
        version: F::VERSION,
        dscp: if shall_be_marked {
            mark.dscp
        } else {
            Dscp::DEFAULT
        },
    })
}

/// A first fragment is classified by its ports, and later ones follow it.
fn classify_fragment<F: Family>(
    packet: &Packet<F>,
    fragment: Fragment,
    snapshot: &Snapshot,
    fragments: &mut FragmentTable,
    now: Duration,
) -> (Rule, bool) {
    if packet.ports_are_elsewhere() && is_from_host(packet, snapshot) {
        let rule = fragments.recall(packet, fragment, now);
        return (rule.unwrap_or(Rule::UnseenFragment), false);
    }
    let (rule, disagreement) = classify(packet, snapshot);
    if fragment.first && rule != Rule::ForeignSource {
        fragments.remember(packet, fragment, rule, now);
    }
    (rule, disagreement)
}

#[inline]
fn is_from_host<F: Family>(packet: &Packet<F>, snapshot: &Snapshot) -> bool {
    snapshot.rules.addresses.covers(packet.source)
        || snapshot.rules.relay_addresses.covers(packet.source)
}

/// The rule that a packet meets, and whether the relay set contradicts its source address.
#[inline]
fn classify<F: Family>(packet: &Packet<F>, snapshot: &Snapshot) -> (Rule, bool) {
    let rules = &snapshot.rules;
    let clearnet = rules.addresses.covers(packet.source);
    if !clearnet && !rules.relay_addresses.covers(packet.source) {
        return (Rule::ForeignSource, false);
    }
    if let Some(ports) = packet.ports {
        if matches!(ports.destination, DNS | DNS_OVER_TLS)
            && rules.resolvers.covers(packet.destination)
        {
            return (Rule::ToResolver, false);
        }
        if packet.protocol == protocol::TCP
            && let Some(decided) = classify_tcp(packet, ports, clearnet, snapshot)
        {
            return decided;
        }
    }
    if rules.exempt.covers(packet.destination) {
        return (Rule::ToExemptPrefix, false);
    }
    let exit = match rules.mark.protocols {
        ExitProtocols::Tcp => packet.protocol == protocol::TCP,
        ExitProtocols::TcpUdp => matches!(packet.protocol, protocol::TCP | protocol::UDP),
        ExitProtocols::All => true,
    };
    if clearnet && exit {
        (Rule::ExitProtocol, false)
    } else {
        (Rule::OtherProtocol, false)
    }
}

/// The rules that only TCP can meet. Where the host has addresses of both kinds, source
/// address and relay set each tell the kind of a flow, and are checked against each other.
#[inline]
fn classify_tcp<F: Family>(
    packet: &Packet<F>,
    ports: Ports,
    clearnet: bool,
    snapshot: &Snapshot,
) -> Option<(Rule, bool)> {
    let rules = &snapshot.rules;
    if rules.listeners.contains(packet.source, ports.source) {
        return Some((Rule::FromListener, false));
    }
    let listed = snapshot.relays.lists(packet.destination, ports.destination);
    let both_kinds = !rules.addresses.is_empty() && !rules.relay_addresses.is_empty();
    match (clearnet, listed) {
        (true, false) => None,
        (true, true) => Some((Rule::ToListedRelay, both_kinds)),
        (false, listed) => Some((Rule::FromRelayAddress, both_kinds && !listed)),
    }
}
