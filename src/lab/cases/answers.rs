//! Tables for TCP segments that a remote host can make the Tor host send.

use super::{
    ADDRESSES, Case, CaseTable, DNS4, EXEMPT4, HOST4, HOST6, MARK, OR4, RELAY4, RELAY6, RESOLVER,
    SSH4, WEB4, WEB6, cleared, configuration, exit, passed, relay4, steered, web4, web6,
};
use crate::frames::{extension, tcp};
use exitmark_policy::Class::{Exit, Host, Reply, Resolver};
use exitmark_policy::packet::Tcp;

const SYN: u8 = Tcp::SYN;
const RST: u8 = Tcp::RST;
const ACK: u8 = Tcp::ACK;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ECE_CWR: u8 = 0xc0;

pub(super) fn tables() -> Vec<CaseTable> {
    vec![by_relay_set(), by_host_mark(), relay_addresses()]
}

fn refused(name: &'static str, source: &str, destination: &str) -> Case {
    let segment = tcp(source, destination).control(RST | ACK).sequence(0);
    passed(name, Host, segment)
}

fn reset(name: &'static str, source: &str, destination: &str) -> Case {
    passed(name, Host, tcp(source, destination).control(RST))
}

fn accepted(name: &'static str, source: &str, destination: &str) -> Case {
    let segment = tcp(source, destination).control(SYN | ACK);
    passed(name, Reply, segment)
}

fn by_relay_set() -> CaseTable {
    let host = format!(
        "{ADDRESSES}\nlisteners = [22]\nresolvers = [\"{RESOLVER}\"]\nexempt = [\"203.0.113.0/24\"]"
    );
    CaseTable {
        name: "answers to outsiders are not exit or relay traffic",
        configuration: configuration("", &host, ""),
        cases: vec![
            // A scan of closed ports, and a SYN with the source address of a relay.
            refused("closed port", "192.0.2.10:8080", WEB4),
            refused("closed port, IPv6", "[2001:db8:1::10]:8080", WEB6),
            refused("closed port, to a relay", "192.0.2.10:8080", RELAY4),
            refused("the same, IPv6", "[2001:db8:1::10]:8080", RELAY6),
            // Answers to an ACK, or SYN and ACK, of an unknown connection.
            reset("stray ACK", HOST4, WEB4),
            reset("stray ACK, IPv6", HOST6, WEB6),
            reset("stray ACK of a relay", HOST4, RELAY4),
            passed(
                "stray ACK with acknowledgment 0",
                Host,
                web4().control(RST).sequence(0),
            ),
            // A listening port that is not in host.listeners.
            accepted("unnamed listener", "192.0.2.10:8080", WEB4),
            accepted("unnamed listener, IPv6", "[2001:db8:1::10]:8080", WEB6),
            accepted("unnamed listener, to a relay", "192.0.2.10:8080", RELAY4),
            accepted("the same, IPv6", "[2001:db8:1::10]:8080", RELAY6),
            passed(
                "SYN and ACK with ECN",
                Reply,
                web4().control(SYN | ACK | ECE_CWR).sequence(0),
            ),
            passed("SYN, ACK and RST", Reply, web4().control(SYN | ACK | RST)),
            passed(
                "named listener that refuses",
                Reply,
                tcp(SSH4, WEB4).control(RST | ACK).sequence(0),
            ),
            passed(
                "refusal by a resolver's client",
                Resolver,
                tcp(HOST4, DNS4).control(RST),
            ),
            passed(
                "refusal to an exempt prefix",
                Host,
                tcp(HOST4, EXEMPT4).control(RST),
            ),
            passed("RST and SYN without ACK", Host, web4().control(RST | SYN)),
            cleared("marked refusal", Host, web4().control(RST).tos(MARK | 2)),
            cleared(
                "marked SYN and ACK",
                Reply,
                web6().control(SYN | ACK).tos(MARK),
            ),
            passed(
                "refusal under tags",
                Host,
                web4().control(RST).tag(0x8100, 0x64),
            ),
            passed(
                "refusal behind IPv4 options",
                Host,
                web4().options(40).control(RST),
            ),
            passed(
                "refusal behind extension headers",
                Host,
                web6().extensions(&[extension::HOP_BY_HOP]).control(RST),
            ),
            passed(
                "first fragment of SYN and ACK",
                Reply,
                web4().control(SYN | ACK).fragment(7, 0, true),
            ),
            passed(
                "last fragment of SYN and ACK",
                Reply,
                web4().fragment(7, 100, false),
            ),
            // Segments of the host's own connections.
            exit("SYN", web4().control(SYN).sequence(0)),
            exit("SYN with ECN", web6().control(SYN | ECE_CWR)),
            steered("SYN to a relay", relay4().control(SYN)),
            exit("data", web4().control(PSH | ACK).sequence(0)),
            exit("end", web4().control(FIN | ACK)),
            exit("no control bits", web4().control(0)),
            exit("aborted", web4().control(RST | ACK)),
            exit("aborted, IPv6", web6().control(RST | ACK)),
            steered("aborted to a relay", relay4().control(RST | ACK)),
            exit(
                "control bits cut off",
                web4().control(RST).payload(13).padding(20),
            ),
            passed(
                "nothing behind the control bits",
                Host,
                web4().control(RST).payload(14),
            ),
        ],
    }
}

/// The kernel copies the ToS of a segment into the RST that answers it.
fn by_host_mark() -> CaseTable {
    CaseTable {
        name: "answers to outsiders with the host's mark",
        configuration: configuration("classify_by = \"host-mark\"", ADDRESSES, ""),
        cases: vec![
            cleared(
                "marked refusal",
                Host,
                web4().control(RST | ACK).sequence(0).tos(MARK),
            ),
            cleared("marked RST", Host, web6().control(RST).tos(MARK)),
            cleared(
                "marked SYN and ACK",
                Reply,
                web4().control(SYN | ACK).tos(MARK),
            ),
            refused("unmarked refusal", HOST4, WEB4),
            reset("unmarked RST", HOST6, WEB6),
            accepted("unmarked SYN and ACK", HOST4, WEB4),
            passed("marked abort", Exit, web4().control(RST | ACK).tos(MARK)),
            steered("unmarked abort", web6().control(RST | ACK)),
        ],
    }
}

fn relay_addresses() -> CaseTable {
    let host = "addresses = [\"192.0.2.10\"]\nrelay_addresses = [\"192.0.2.11\"]";
    CaseTable {
        name: "answers to outsiders from addresses that carry Tor traffic only",
        configuration: configuration("", host, ""),
        cases: vec![
            refused("closed port", OR4, WEB4),
            reset("stray ACK of a relay", OR4, RELAY4),
            accepted("unnamed listener", OR4, RELAY4),
            steered("aborted", tcp(OR4, RELAY4).control(RST | ACK)),
            steered("SYN", tcp(OR4, RELAY4).control(SYN)),
        ],
    }
}
