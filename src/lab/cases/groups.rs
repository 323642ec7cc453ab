//! Tables for several groups of hosts, VLAN tags, and a next hop for each IP version.

use super::{
    Case, CaseTable, HOST4, HOST6, RELAY4, RELAY6, WEB4, WEB6, cleared, exit, mac, numbered_mac,
    passed, remarked, steered, tcp, udp,
};
use crate::frames::Frame;
use crate::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_policy::Class::{Exempt, Exit, Foreign, Host, Relay, Reply};
use exitmark_policy::packet::MacAddr;

/// A host of the second group.
const SECOND4: &str = "192.0.2.20:40000";
const SECOND6: &str = "[2001:db8:1::20]:40000";

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
/// The mark of the second group, CS1.
const SECOND_MARK: u8 = 0x20;

pub(super) fn tables() -> Vec<CaseTable> {
    vec![
        policies(),
        next_hops(),
        trunk(),
        untagged_behind_the_next_hop(),
    ]
}

fn configuration(steer: &str, first: &str, second: &str) -> String {
    format!(
        "[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\
         [steer]\n{steer}\n[relays]\nextra = [\"{RELAY4}\", \"{RELAY6}\"]\n\
         [[host]]\nname = \"first\"\naddresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\n{first}\n\
         [[host]]\nname = \"second\"\naddresses = [\"192.0.2.20\", \"2001:db8:1::20\"]\n{second}\n"
    )
}

/// A frame that leaves by `incoming` as `after` says, to this next hop.
fn steered_as(name: &'static str, before: Frame, after: Frame, next_hop: MacAddr) -> Case {
    Case {
        after: after.macs(next_hop, mac(INCOMING_MAC)).build(),
        ..steered(name, before)
    }
}

/// Each group has its own listeners, exempt prefixes, mark and steering.
fn policies() -> CaseTable {
    let first = "listeners = [22]\nexempt = [\"198.51.100.0/24\"]";
    let second = "listeners = [443, \"192.0.2.20:9001\"]\nresolvers = [\"9.9.9.9\"]\n\
                  mark = { dscp = \"cs1\" }\nsteer = { enabled = false }";
    CaseTable {
        name: "each group has its own policy",
        configuration: configuration(&format!("next_hop = \"{TORNET_MAC}\""), first, second),
        cases: vec![
            passed("exempt for the first", Exempt, tcp(HOST4, WEB4)),
            exit("over IPv6", tcp(HOST6, WEB6)),
            remarked(
                "the second's own mark",
                Exit,
                tcp(SECOND4, WEB4),
                SECOND_MARK,
            ),
            cleared(
                "the first's mark on a frame of the second",
                Host,
                udp(SECOND4, WEB4).tos(0x28),
            ),
            cleared(
                "the second's mark on a frame of the first",
                Host,
                udp(HOST4, "203.0.113.7:80").tos(SECOND_MARK | 1),
            ),
            cleared(
                "the second's mark on a foreign frame",
                Foreign,
                tcp("192.0.2.30:1", WEB4).tos(SECOND_MARK),
            ),
            passed(
                "the first's listener",
                Reply,
                tcp("192.0.2.10:22", "203.0.113.7:443"),
            ),
            remarked(
                "the same port of the second",
                Exit,
                tcp("192.0.2.20:22", WEB4),
                SECOND_MARK,
            ),
            passed(
                "the second's listener",
                Reply,
                tcp("[2001:db8:1::20]:443", WEB6),
            ),
            exit(
                "the same port of the first",
                tcp("[2001:db8:1::10]:443", WEB6),
            ),
            passed(
                "a listener with an address",
                Reply,
                tcp("192.0.2.20:9001", WEB4),
            ),
            steered("a relay, from the first", tcp(HOST4, RELAY4)),
            passed("a relay, from the second", Relay, tcp(SECOND4, RELAY4)),
            passed(
                "a relay, from the second, IPv6",
                Relay,
                tcp(SECOND6, RELAY6),
            ),
        ],
    }
}

/// One router for IPv4, another one for IPv6; the second group has a router of its own for IPv4.
fn next_hops() -> CaseTable {
    let steer = "next_hop = [\"203.0.113.1\", \"2001:db8:3::1\"]";
    let second = "steer = { next_hop = \"203.0.113.9\" }";
    let to = |name, frame: Frame, next_hop| steered_as(name, frame.clone(), frame, next_hop);
    CaseTable {
        name: "each IP version of each group has its own next hop",
        configuration: configuration(steer, "", second),
        cases: vec![
            to("IPv4", tcp(HOST4, RELAY4), mac(TORNET_MAC)),
            to("IPv6", tcp(HOST6, RELAY6), numbered_mac(1)),
            to("the second's", tcp(SECOND4, RELAY4), numbered_mac(2)),
            passed("the second has none for IPv6", Relay, tcp(SECOND6, RELAY6)),
        ],
    }
}

/// Both groups on one trunk: VLAN 10 and VLANs 200.20 on the wire, VLAN 30 and VLANs 300.31 behind
/// the next hops.
fn trunk() -> CaseTable {
    let steer = "next_hop = [\"203.0.113.1\", \"2001:db8:3::1\"]\nvlan = 30";
    let second = "vlan = [200, 20]\nsteer = { vlan = [300, 31], pcp = 5 }";
    let one = |frame: Frame, control: u16| frame.tag(VLAN, control);
    let two = |frame: Frame, outer: u16, inner: u16| frame.tag(QINQ, outer).tag(VLAN, inner);
    let (first, second_hop) = (mac(TORNET_MAC), numbered_mac(2));
    CaseTable {
        name: "several groups on a trunk",
        configuration: configuration(steer, "vlan = 10", second),
        cases: vec![
            exit("exit of the first", one(tcp(HOST4, WEB4), 10)),
            exit("exit without a tag", tcp(HOST4, WEB4)),
            exit("exit of the second", two(tcp(SECOND6, WEB6), 200, 20)),
            steered_as(
                "swapped, with its priority",
                one(tcp(HOST4, RELAY4), 0xb00a),
                one(tcp(HOST4, RELAY4), 0xb01e),
                first,
            ),
            steered_as(
                "swapped, IPv6",
                one(tcp(HOST6, RELAY6), 10),
                one(tcp(HOST6, RELAY6), 30),
                numbered_mac(1),
            ),
            steered_as(
                "both tags swapped, with another priority",
                two(tcp(SECOND4, RELAY4), 0xf0c8, 20),
                two(tcp(SECOND4, RELAY4), 0xb12c, 0xa01f),
                second_hop,
            ),
            passed("a relay without a tag", Relay, tcp(HOST4, RELAY4)),
            passed(
                "a relay by another VLAN",
                Relay,
                one(tcp(HOST4, RELAY4), 20),
            ),
            passed(
                "a relay by one tag of two",
                Relay,
                one(tcp(SECOND4, RELAY4), 20),
            ),
            passed(
                "a relay by one tag too many",
                Relay,
                two(tcp(HOST4, RELAY4), 200, 10),
            ),
            passed(
                "a relay of the first by the second's VLANs",
                Relay,
                two(tcp(HOST4, RELAY4), 200, 20),
            ),
        ],
    }
}

/// Tags are pushed for the first group, and popped for the second one.
fn untagged_behind_the_next_hop() -> CaseTable {
    let steer = "next_hop = [\"203.0.113.1\", \"2001:db8:3::1\"]";
    let first = "steer = { vlan = [200, 30] }";
    CaseTable {
        name: "tags are pushed and popped",
        configuration: configuration(steer, first, "vlan = [200, 20]"),
        cases: vec![
            steered_as(
                "pushed",
                tcp(HOST4, RELAY4),
                tcp(HOST4, RELAY4).tag(QINQ, 200).tag(VLAN, 30),
                mac(TORNET_MAC),
            ),
            steered_as(
                "popped",
                tcp(SECOND6, RELAY6).tag(QINQ, 200).tag(VLAN, 20),
                tcp(SECOND6, RELAY6),
                numbered_mac(3),
            ),
            steered_as(
                "pushed, longer",
                tcp(HOST6, RELAY6).payload(1400),
                tcp(HOST6, RELAY6)
                    .payload(1400)
                    .tag(QINQ, 200)
                    .tag(VLAN, 30),
                numbered_mac(1),
            ),
            passed("to be popped, untagged", Relay, tcp(SECOND4, RELAY4)),
            exit("exit, untagged", tcp(HOST4, WEB4)),
        ],
    }
}
