//! The rule itself, in the order in which the first match wins. The reference for every other
//! place where it is written.

use super::{
    AtUplink, Class, Egress, ExitProtocols, FragmentTable, Mode, Remark, Rule, Snapshot, Verdict,
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
    let packet = match headers {
        Headers::Ip(packet) => packet,
        Headers::NotIp => return untouched(Rule::NotIp),
        Headers::Malformed(reason) => return untouched(Rule::Malformed(*reason)),
    };
    let (rule, disagreement) = match packet.fragment {
        None => classify(packet, snapshot),
        Some(fragment) => classify_fragment(packet, fragment, snapshot, fragments, now),
    };
    let rules = &snapshot.rules;
    if rules.mode == Mode::Audit {
        return Verdict {
            disagreement,
            ..untouched(rule)
        };
    }
    let class = rule.class();
    Verdict {
        rule,
        egress: match class {
            Class::Relay if rules.steer => Egress::Incoming,
            _ => Egress::Uplink,
        },
        remark: remark(packet, class, snapshot),
        disagreement,
    }
}

const fn untouched(rule: Rule) -> Verdict {
    Verdict {
        rule,
        egress: Egress::Uplink,
        remark: None,
        disagreement: false,
    }
}

/// The DSCP to write: the mark on exit frames, 0 on every other frame that bears the mark.
/// On the wire the mark means exit and nothing else.
#[inline]
fn remark(packet: &Packet, class: Class, snapshot: &Snapshot) -> Option<Remark> {
    let mark = &snapshot.rules.mark;
    let marked = Dscp::of(packet.tos) == mark.dscp;
    let shall_be_marked = class == Class::Exit && mark.at_uplink == AtUplink::Keep;
    if marked == shall_be_marked {
        return None;
    }
    Some(Remark {
        l3: packet.l3,
        version: packet.version,
        dscp: if shall_be_marked {
            mark.dscp
        } else {
            Dscp::DEFAULT
        },
    })
}

/// A first fragment is classified by its ports, and later ones follow it.
fn classify_fragment(
    packet: &Packet,
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
fn is_from_host(packet: &Packet, snapshot: &Snapshot) -> bool {
    snapshot.rules.addresses.contains(packet.source)
        || snapshot.rules.relay_addresses.contains(packet.source)
}

/// The rule that a packet meets, and whether the relay set contradicts its source address.
#[inline]
fn classify(packet: &Packet, snapshot: &Snapshot) -> (Rule, bool) {
    let rules = &snapshot.rules;
    let clearnet = rules.addresses.contains(packet.source);
    if !clearnet && !rules.relay_addresses.contains(packet.source) {
        return (Rule::ForeignSource, false);
    }
    if let Some(ports) = packet.ports {
        if matches!(ports.destination, DNS | DNS_OVER_TLS)
            && rules.resolvers.contains(packet.destination)
        {
            return (Rule::ToResolver, false);
        }
        if packet.protocol == protocol::TCP
            && let Some(decided) = classify_tcp(packet, ports, clearnet, snapshot)
        {
            return decided;
        }
    }
    if rules.exempt.contains(packet.destination) {
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
fn classify_tcp(
    packet: &Packet,
    ports: Ports,
    clearnet: bool,
    snapshot: &Snapshot,
) -> Option<(Rule, bool)> {
    let rules = &snapshot.rules;
    if rules.listeners.contains(packet.source, ports.source) {
        return Some((Rule::FromListener, false));
    }
    let listed = snapshot
        .relays
        .contains(packet.destination, ports.destination);
    let both_kinds = !rules.addresses.is_empty() && !rules.relay_addresses.is_empty();
    match (clearnet, listed) {
        (true, false) => None,
        (true, true) => Some((Rule::ToListedRelay, both_kinds)),
        (false, listed) => Some((Rule::FromRelayAddress, both_kinds && !listed)),
    }
}
