//! Tables for a host that marks its exit traffic itself: `classify_by = "host-mark"`.

use super::{
    ADDRESSES, Case, CaseTable, DNS4, EXEMPT4, FOREIGN4, HOST4, HOST6, ICMP, ICMPV6, MARK, OR4,
    ORPORT4, RELAY4, RESOLVER, SSH4, WEB4, WEB6, cleared, exit, passed, relay4, relay6, steered,
    steered_and_cleared, web4, web6,
};
use crate::frames::{Frame, extension, of_protocol, tcp, udp};
use crate::site::TORNET_MAC;
use exitmark_policy::Class::{Exempt, Exit, Foreign, Host, Relay, Reply, Resolver};

/// The ToS byte of CS1, the host's mark where it differs from the box's.
const CS1: u8 = 0x20;

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
fn marked(name: &'static str, frame: Frame) -> Case {
    passed(name, Exit, frame)
}

pub(super) fn tables() -> Vec<CaseTable> {
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
        CaseTable {
            name: "the host's mark, without an incoming port",
            configuration: format!(
                "classify_by = \"host-mark\"\n[ports]\nhost = \"a\"\nuplink = \"b\"\n\
                 [host]\ntos = 0x20\n{ADDRESSES}"
            ),
            cases: vec![
                exit("exit", web4().tos(CS1)),
                passed("relay", Relay, web4()),
                cleared("marked relay", Relay, web4().tos(MARK)),
            ],
        },
    ]
}

/// The host's mark equals the box's.
fn one_mark() -> CaseTable {
    let host = format!(
        "{ADDRESSES}\nlisteners = [22, \"192.0.2.10:9001\"]\n\
         resolvers = [\"{RESOLVER}\"]\nexempt = [\"203.0.113.0/24\"]"
    );
    CaseTable {
        name: "the host's mark is the box's",
        configuration: configuration("", &host, ""),
        cases: vec![
            marked("marked, IPv4", web4().tos(MARK)),
            marked("marked, IPv6", web6().tos(MARK)),
            marked("ECN may differ", web4().tos(MARK | 2)),
            marked("ECN may differ, IPv6", web6().tos(MARK | 0b11)),
            marked("any port", tcp("192.0.2.79:1", RELAY4).tos(MARK)),
            marked(
                "under tags",
                web4().tos(MARK).tag(0x88a8, 0x3007).tag(0x8100, 0xe064),
            ),
            marked(
                "behind extension headers",
                web6()
                    .tos(MARK)
                    .extensions(&[extension::HOP_BY_HOP, extension::ROUTING]),
            ),
            steered("unmarked, IPv4", web4()),
            steered("unmarked, IPv6", web6().tos(0b01)),
            steered("another mark", web4().tos(0xb8 | 0b10)),
            steered("one bit off", relay6().tos(MARK ^ 0b100)),
            passed("udp", Host, udp(HOST4, WEB4)),
            cleared("marked udp", Host, udp(HOST4, WEB4).tos(MARK)),
            cleared(
                "answer to a marked ping",
                Host,
                of_protocol(ICMP, HOST4, WEB4).tos(MARK),
            ),
            cleared(
                "answer to a marked ping, IPv6",
                Host,
                of_protocol(ICMPV6, HOST6, WEB6).tos(MARK | 0b01),
            ),
            passed("exempt", Exempt, tcp(HOST4, EXEMPT4)),
            cleared(
                "marked to an exempt prefix",
                Exempt,
                tcp(HOST4, EXEMPT4).tos(MARK),
            ),
            passed("query", Resolver, tcp(HOST4, DNS4)),
            cleared(
                "marked query",
                Resolver,
                tcp(HOST4, "9.9.9.9:853").tos(MARK | 0b11),
            ),
            passed("answer of ssh", Reply, tcp("192.0.2.64:22", WEB4)),
            cleared(
                "marked answer of the ORPort",
                Reply,
                tcp(ORPORT4, WEB4).tos(MARK),
            ),
            passed("foreign", Foreign, tcp(FOREIGN4, WEB4)),
            cleared(
                "marked foreign",
                Foreign,
                tcp("[2001:db8:1::11]:1", WEB6).tos(MARK),
            ),
        ],
    }
}

fn fragments() -> CaseTable {
    let marked = || web4().tos(CS1);
    let host = format!("dscp = \"cs1\"\n{ADDRESSES}");
    CaseTable {
        name: "the host's mark on fragments",
        configuration: configuration("", &host, ""),
        cases: vec![
            cleared(
                "marked, first unseen",
                Host,
                marked().fragment(7, 100, true),
            ),
            exit("first of exit", marked().fragment(7, 0, true)),
            exit("later of exit", marked().fragment(7, 100, true)),
            exit(
                "unmarked last of exit",
                marked().tos(0b10).fragment(7, 200, false),
            ),
            steered("first of relay", web6().fragment(7, 0, true)),
            steered("later of relay", web6().fragment(7, 100, true)),
            steered_and_cleared(
                "marked last of relay",
                web6().tos(CS1).fragment(7, 200, false),
            ),
        ],
    }
}

/// The host's mark differs from the box's.
fn two_marks() -> CaseTable {
    let host = format!("dscp = \"cs1\"\n{ADDRESSES}\nlisteners = [22]\nexempt = [\"{WEB_NET}\"]");
    CaseTable {
        name: "the host's mark differs from the box's",
        configuration: configuration("", &host, ""),
        cases: vec![
            exit("exit", web4().tos(CS1 | 0b01)),
            exit("exit, IPv6", web6().tos(CS1 | 0b10)),
            steered("relay", web4()),
            steered_and_cleared("the box's mark does not mean exit", web4().tos(MARK | 0b01)),
            cleared(
                "reply with the host's mark",
                Reply,
                tcp(SSH4, WEB4).tos(CS1 | 0b11),
            ),
            cleared(
                "reply with the box's mark",
                Reply,
                tcp(SSH4, WEB4).tos(MARK),
            ),
            passed("reply with a third", Reply, tcp(SSH4, WEB4).tos(0x48)),
            cleared(
                "exempt with the host's mark",
                Exempt,
                tcp(HOST4, "192.0.3.1:80").tos(CS1),
            ),
            cleared("udp with the host's mark", Host, udp(HOST6, WEB6).tos(CS1)),
            cleared("udp with the box's mark", Host, udp(HOST6, WEB6).tos(MARK)),
            passed("udp with a third", Host, udp(HOST6, WEB6).tos(0x48)),
            cleared(
                "foreign with the host's mark",
                Foreign,
                tcp(FOREIGN4, WEB4).tos(CS1),
            ),
            cleared(
                "foreign with the box's mark",
                Foreign,
                tcp(FOREIGN4, WEB4).tos(MARK),
            ),
        ],
    }
}

const WEB_NET: &str = "192.0.3.0/24";

/// No frame leaves with either mark.
fn strip(host: &str, mark: u8) -> CaseTable {
    let host = format!("{host}\n{ADDRESSES}");
    CaseTable {
        name: if mark == MARK {
            "the host's mark, which is the box's, is stripped at the uplink"
        } else {
            "the host's mark, which is not the box's, is stripped at the uplink"
        },
        configuration: configuration("", &host, "[mark]\nat_uplink = \"strip\""),
        cases: vec![
            cleared("exit", Exit, web4().tos(mark)),
            cleared("ECN survives", Exit, web4().tos(mark | 2)),
            cleared("IPv6", Exit, web6().tos(mark | 1)),
            steered("relay", web4()),
            steered("relay with a third mark", web4().tos(0x48)),
            cleared("udp", Host, udp(HOST4, WEB4).tos(mark)),
            cleared("udp with the box's mark", Host, udp(HOST4, WEB4).tos(MARK)),
        ],
    }
}

fn audit() -> CaseTable {
    let host = format!("dscp = \"cs1\"\n{ADDRESSES}");
    CaseTable {
        name: "the host's mark in an audit",
        configuration: configuration("mode = \"audit\"", &host, ""),
        cases: vec![
            marked("exit", web4().tos(CS1)),
            passed("relay", Relay, web6()),
            passed("marked relay", Relay, web6().tos(MARK)),
            passed("marked udp", Host, udp(HOST4, WEB4).tos(CS1)),
        ],
    }
}

fn widened(protocols: &'static str) -> CaseTable {
    let all = protocols == "all";
    let ping = || of_protocol(ICMP, HOST4, WEB4);
    CaseTable {
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
            exit("udp", udp(HOST4, WEB4).tos(CS1)),
            passed("unmarked udp", Host, udp(HOST4, WEB4)),
            if all {
                exit("icmp", ping().tos(CS1))
            } else {
                cleared("icmp", Host, ping().tos(CS1))
            },
            passed("unmarked icmp", Host, ping()),
            exit("tcp", web6().tos(CS1)),
            steered("unmarked tcp", web6()),
        ],
    }
}

/// Source addresses take precedence over the mark; a relay set lists the host's own relay.
fn relay_addresses() -> CaseTable {
    let host = "addresses = [\"192.0.2.10\"]\nrelay_addresses = [\"192.0.2.11\"]\n\
                exempt = [\"203.0.113.0/24\"]";
    let more = format!(
        "[mark]\nprotocols = \"all\"\n\
         [relays]\nextra = [\"192.0.2.10:9001\", \"192.0.2.11:443\", \"{RELAY4}\"]"
    );
    CaseTable {
        name: "the host's mark and addresses that carry Tor traffic only",
        configuration: configuration("", host, &more),
        cases: vec![
            steered("to a relay", tcp(OR4, RELAY4)),
            steered("to any address", tcp(OR4, WEB4)),
            steered("before exempt prefixes", tcp(OR4, EXEMPT4)),
            steered_and_cleared("with a mark", tcp(OR4, WEB4).tos(MARK | 2)),
            cleared("udp is not exit traffic", Host, udp(OR4, WEB4).tos(MARK)),
            passed("exempt udp", Exempt, udp(OR4, EXEMPT4)),
            passed("answer of the own ORPort", Reply, tcp(ORPORT4, WEB4)),
            cleared(
                "marked answer from a relay address",
                Reply,
                tcp("192.0.2.11:443", WEB4).tos(MARK),
            ),
            marked("marked to a listed relay", relay4().tos(MARK)),
            steered("unmarked to a listed relay", relay4()),
            passed("exempt", Exempt, tcp(HOST4, EXEMPT4)),
        ],
    }
}
