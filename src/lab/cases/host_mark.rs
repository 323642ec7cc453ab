//! Tables for a host that marks its exit traffic itself: `classify_by = "host-mark"`.

use super::{
    ADDRESSES, Case, HOST4, HOST6, ICMP, ICMPV6, MARK, RELAY4, RELAY6, RESOLVER, Table, WEB4, WEB6,
    passed, remarked, steered, steered_and_cleared,
};
use crate::frames::{Frame, extension, of_protocol, tcp, udp};
use crate::site::TORNET_MAC;
use exitmark_policy::Class;

/// The ToS byte of CS1, the host's mark where it differs from the box's.
const CS1: u8 = 0x20;
const EXEMPT: &str = "203.0.113.99:80";
const OR4: &str = "192.0.2.11:40000";

/// A configuration without a relay set. `top` is lines before the first table, `host` lines of
/// `[host]`, `more` what follows.
fn configuration(top: &str, host: &str, more: &str) -> String {
    format!(
        "classify_by = \"host-mark\"\n{top}\n\
         [ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\
         [steer]\nnext_hop = \"{TORNET_MAC}\"\n[host]\n{host}\n{more}"
    )
}

/// Carries the right mark already, and leaves by the uplink unchanged.
fn marked(name: &'static str, frame: &Frame) -> Case {
    passed(name, Class::Exit, frame)
}

fn cleared(name: &'static str, class: Class, frame: Frame) -> Case {
    remarked(name, class, frame, 0)
}

/// Every table.
pub(super) fn tables() -> Vec<Table> {
    vec![
        one_mark(),
        fragments(),
        two_marks(),
        strip("dscp = \"cs1\"", CS1),
        strip("", MARK),
        audit(),
        widened("tcp+udp"),
        widened("all"),
        relay_addresses(),
        Table {
            name: "the host's mark, without an incoming port",
            configuration: format!(
                "classify_by = \"host-mark\"\n[ports]\nhost = \"a\"\nuplink = \"b\"\n\
                 [host]\ntos = 0x20\n{ADDRESSES}"
            ),
            cases: vec![
                remarked("exit", Class::Exit, tcp(HOST4, WEB4).tos(CS1), MARK),
                passed("relay", Class::Relay, &tcp(HOST4, WEB4)),
                cleared("marked relay", Class::Relay, tcp(HOST4, WEB4).tos(MARK)),
            ],
        },
    ]
}

/// The host's mark equals the box's.
fn one_mark() -> Table {
    let host = format!(
        "{ADDRESSES}\nlisteners = [22, \"192.0.2.10:9001\"]\n\
         resolvers = [\"{RESOLVER}\"]\nexempt = [\"203.0.113.0/24\"]"
    );
    Table {
        name: "the host's mark is the box's",
        configuration: configuration("", &host, ""),
        cases: vec![
            marked("marked, IPv4", &tcp(HOST4, WEB4).tos(MARK)),
            marked("marked, IPv6", &tcp(HOST6, WEB6).tos(MARK)),
            marked("ECN may differ", &tcp(HOST4, WEB4).tos(MARK | 0b10)),
            marked("ECN may differ, IPv6", &tcp(HOST6, WEB6).tos(MARK | 0b11)),
            marked("any port", &tcp("192.0.2.79:1", RELAY4).tos(MARK)),
            marked(
                "under tags",
                &tcp(HOST4, WEB4)
                    .tos(MARK)
                    .tag(0x88a8, 0x3007)
                    .tag(0x8100, 0xe064),
            ),
            marked(
                "behind extension headers",
                &tcp(HOST6, WEB6)
                    .tos(MARK)
                    .extensions(&[extension::HOP_BY_HOP, extension::ROUTING]),
            ),
            steered("unmarked, IPv4", tcp(HOST4, WEB4)),
            steered("unmarked, IPv6", tcp(HOST6, WEB6).tos(0b01)),
            steered("another mark", tcp(HOST4, WEB4).tos(0xb8 | 0b10)),
            steered("one bit off", tcp(HOST6, RELAY6).tos(MARK ^ 0b100)),
            passed("udp", Class::Host, &udp(HOST4, WEB4)),
            cleared("marked udp", Class::Host, udp(HOST4, WEB4).tos(MARK)),
            cleared(
                "answer to a marked ping",
                Class::Host,
                of_protocol(ICMP, HOST4, WEB4).tos(MARK),
            ),
            cleared(
                "answer to a marked ping, IPv6",
                Class::Host,
                of_protocol(ICMPV6, HOST6, WEB6).tos(MARK | 0b01),
            ),
            passed("exempt", Class::Exempt, &tcp(HOST4, EXEMPT)),
            cleared(
                "marked to an exempt prefix",
                Class::Exempt,
                tcp(HOST4, EXEMPT).tos(MARK),
            ),
            passed("query", Class::Resolver, &tcp(HOST4, "9.9.9.9:53")),
            cleared(
                "marked query",
                Class::Resolver,
                tcp(HOST4, "9.9.9.9:853").tos(MARK | 0b11),
            ),
            passed("answer of ssh", Class::Reply, &tcp("192.0.2.64:22", WEB4)),
            cleared(
                "marked answer of the ORPort",
                Class::Reply,
                tcp("192.0.2.10:9001", WEB4).tos(MARK),
            ),
            passed("foreign", Class::Foreign, &tcp("192.0.2.11:1", WEB4)),
            cleared(
                "marked foreign",
                Class::Foreign,
                tcp("[2001:db8:1::11]:1", WEB6).tos(MARK),
            ),
        ],
    }
}

fn fragments() -> Table {
    let exit = || tcp(HOST4, WEB4).tos(CS1);
    let relay = || tcp(HOST6, WEB6);
    let host = format!("dscp = \"cs1\"\n{ADDRESSES}");
    Table {
        name: "the host's mark on fragments",
        configuration: configuration("", &host, ""),
        cases: vec![
            cleared(
                "marked, first unseen",
                Class::Host,
                exit().fragment(7, 100, true),
            ),
            remarked(
                "first of exit",
                Class::Exit,
                exit().fragment(7, 0, true),
                MARK,
            ),
            remarked(
                "later of exit",
                Class::Exit,
                exit().fragment(7, 100, true),
                MARK,
            ),
            remarked(
                "unmarked last of exit",
                Class::Exit,
                exit().tos(0b10).fragment(7, 200, false),
                MARK,
            ),
            steered("first of relay", relay().fragment(7, 0, true)),
            steered("later of relay", relay().fragment(7, 100, true)),
            steered_and_cleared(
                "marked last of relay",
                relay().tos(CS1).fragment(7, 200, false),
            ),
        ],
    }
}

/// The host's mark differs from the box's.
fn two_marks() -> Table {
    let host = format!("dscp = \"cs1\"\n{ADDRESSES}\nlisteners = [22]\nexempt = [\"{WEB_NET}\"]");
    Table {
        name: "the host's mark differs from the box's",
        configuration: configuration("", &host, ""),
        cases: vec![
            remarked("exit", Class::Exit, tcp(HOST4, WEB4).tos(CS1 | 0b01), MARK),
            remarked(
                "exit, IPv6",
                Class::Exit,
                tcp(HOST6, WEB6).tos(CS1 | 0b10),
                MARK,
            ),
            steered("relay", tcp(HOST4, WEB4)),
            steered_and_cleared(
                "the box's mark does not mean exit",
                tcp(HOST4, WEB4).tos(MARK | 0b01),
            ),
            cleared(
                "reply with the host's mark",
                Class::Reply,
                tcp("192.0.2.10:22", WEB4).tos(CS1 | 0b11),
            ),
            cleared(
                "reply with the box's mark",
                Class::Reply,
                tcp("192.0.2.10:22", WEB4).tos(MARK),
            ),
            passed(
                "reply with a third",
                Class::Reply,
                &tcp("192.0.2.10:22", WEB4).tos(0x48),
            ),
            cleared(
                "exempt with the host's mark",
                Class::Exempt,
                tcp(HOST4, "192.0.3.1:80").tos(CS1),
            ),
            cleared(
                "udp with the host's mark",
                Class::Host,
                udp(HOST6, WEB6).tos(CS1),
            ),
            cleared(
                "udp with the box's mark",
                Class::Host,
                udp(HOST6, WEB6).tos(MARK),
            ),
            passed("udp with a third", Class::Host, &udp(HOST6, WEB6).tos(0x48)),
            cleared(
                "foreign with the host's mark",
                Class::Foreign,
                tcp("192.0.2.11:1", WEB4).tos(CS1),
            ),
            cleared(
                "foreign with the box's mark",
                Class::Foreign,
                tcp("192.0.2.11:1", WEB4).tos(MARK),
            ),
        ],
    }
}

const WEB_NET: &str = "192.0.3.0/24";

/// No frame leaves with either mark.
fn strip(host: &str, mark: u8) -> Table {
    let host = format!("{host}\n{ADDRESSES}");
    Table {
        name: if mark == MARK {
            "the host's mark, which is the box's, is stripped at the uplink"
        } else {
            "the host's mark, which is not the box's, is stripped at the uplink"
        },
        configuration: configuration("", &host, "[mark]\nat_uplink = \"strip\""),
        cases: vec![
            cleared("exit", Class::Exit, tcp(HOST4, WEB4).tos(mark)),
            cleared("ECN survives", Class::Exit, tcp(HOST4, WEB4).tos(mark | 2)),
            cleared("IPv6", Class::Exit, tcp(HOST6, WEB6).tos(mark | 1)),
            steered("relay", tcp(HOST4, WEB4)),
            steered("relay with a third mark", tcp(HOST4, WEB4).tos(0x48)),
            cleared("udp", Class::Host, udp(HOST4, WEB4).tos(mark)),
            cleared(
                "udp with the box's mark",
                Class::Host,
                udp(HOST4, WEB4).tos(MARK),
            ),
        ],
    }
}

fn audit() -> Table {
    let host = format!("dscp = \"cs1\"\n{ADDRESSES}");
    Table {
        name: "the host's mark in an audit",
        configuration: configuration("mode = \"audit\"", &host, ""),
        cases: vec![
            marked("exit", &tcp(HOST4, WEB4).tos(CS1)),
            passed("relay", Class::Relay, &tcp(HOST6, WEB6)),
            passed("marked relay", Class::Relay, &tcp(HOST6, WEB6).tos(MARK)),
            passed("marked udp", Class::Host, &udp(HOST4, WEB4).tos(CS1)),
        ],
    }
}

fn widened(protocols: &'static str) -> Table {
    let all = protocols == "all";
    let ping = || of_protocol(ICMP, HOST4, WEB4);
    Table {
        name: if all {
            "the host's mark on every protocol"
        } else {
            "the host's mark on UDP too"
        },
        configuration: configuration(
            "",
            &format!("dscp = 8\n{ADDRESSES}"),
            &format!("[mark]\nprotocols = \"{protocols}\""),
        ),
        cases: vec![
            remarked("udp", Class::Exit, udp(HOST4, WEB4).tos(CS1), MARK),
            passed("unmarked udp", Class::Host, &udp(HOST4, WEB4)),
            if all {
                remarked("icmp", Class::Exit, ping().tos(CS1), MARK)
            } else {
                cleared("icmp", Class::Host, ping().tos(CS1))
            },
            passed("unmarked icmp", Class::Host, &ping()),
            remarked("tcp", Class::Exit, tcp(HOST6, WEB6).tos(CS1), MARK),
            steered("unmarked tcp", tcp(HOST6, WEB6)),
        ],
    }
}

/// Source addresses take precedence over the mark; a relay set lists the host's own relay.
fn relay_addresses() -> Table {
    let host = "addresses = [\"192.0.2.10\"]\nrelay_addresses = [\"192.0.2.11\"]\n\
                exempt = [\"203.0.113.0/24\"]";
    let more = format!(
        "[mark]\nprotocols = \"all\"\n\
         [relays]\nextra = [\"192.0.2.10:9001\", \"192.0.2.11:443\", \"{RELAY4}\"]"
    );
    Table {
        name: "the host's mark and addresses that carry Tor traffic only",
        configuration: configuration("", host, &more),
        cases: vec![
            steered("to a relay", tcp(OR4, RELAY4)),
            steered("to any address", tcp(OR4, WEB4)),
            steered("before exempt prefixes", tcp(OR4, EXEMPT)),
            steered_and_cleared("with a mark", tcp(OR4, WEB4).tos(MARK | 0b10)),
            cleared(
                "udp is not exit traffic",
                Class::Host,
                udp(OR4, WEB4).tos(MARK),
            ),
            passed("exempt udp", Class::Exempt, &udp(OR4, EXEMPT)),
            passed(
                "answer of the own ORPort",
                Class::Reply,
                &tcp("192.0.2.10:9001", WEB4),
            ),
            cleared(
                "marked answer from a relay address",
                Class::Reply,
                tcp("192.0.2.11:443", WEB4).tos(MARK),
            ),
            marked("marked to a listed relay", &tcp(HOST4, RELAY4).tos(MARK)),
            steered("unmarked to a listed relay", tcp(HOST4, RELAY4)),
            passed("exempt", Class::Exempt, &tcp(HOST4, EXEMPT)),
        ],
    }
}
