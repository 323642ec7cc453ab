//! Tables for services on the host itself: a relay, and a resolver.

use super::{
    ADDRESSES, CaseTable, HOST4, HOST6, MARK, OR4, ORPORT4, ORPORT6, WEB4, WEB6, cleared,
    configuration, exit, passed,
};
use crate::frames::{tcp, udp};
use exitmark_policy::Class::{Foreign, Reply, Resolver};

/// A recursive resolver on the host queries any server over UDP and TCP.
pub(super) fn resolver() -> CaseTable {
    let host = format!("{ADDRESSES}\nresolvers = \"any\"");
    CaseTable {
        name: "the host's own recursive resolver",
        configuration: configuration("", &host, ""),
        cases: vec![
            passed("udp", Resolver, udp(HOST4, "198.51.100.53:53")),
            passed("tcp", Resolver, tcp(HOST4, "198.51.100.53:53")),
            passed("IPv6", Resolver, tcp(HOST6, "[2001:db8:53::1]:53")),
            passed("TLS", Resolver, tcp(HOST4, "198.51.100.53:853")),
            cleared("marked", Resolver, tcp(HOST4, "198.51.100.53:53").tos(MARK)),
            passed(
                "a server that is a relay too",
                Resolver,
                tcp(HOST4, "198.18.0.1:53"),
            ),
            exit("a server's web page", tcp(HOST4, "198.51.100.53:443")),
            passed("from another host", Foreign, tcp(OR4, "198.51.100.53:53")),
        ],
    }
}

/// A relay on the host, whose ports the relay set lists.
pub(super) fn relay() -> CaseTable {
    let host =
        "addresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\nrelay_addresses = [\"192.0.2.11\"]";
    CaseTable {
        name: "the host's own relay needs no listener where the relay set lists it",
        configuration: configuration("", host, "").replace(
            "extra = [",
            "extra = [\"192.0.2.10:9001\", \"[2001:db8:1::10]:9001\", \"192.0.2.11:443\", ",
        ),
        cases: vec![
            passed("answer of the ORPort", Reply, tcp(ORPORT4, WEB4)),
            passed("the same, IPv6", Reply, tcp(ORPORT6, WEB6)),
            passed(
                "answer from a relay address",
                Reply,
                tcp("192.0.2.11:443", WEB4),
            ),
            exit("another port", tcp("192.0.2.10:9002", WEB4)),
            exit("the other address' port", tcp("192.0.2.10:443", WEB4)),
        ],
    }
}
