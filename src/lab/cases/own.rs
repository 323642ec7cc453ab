//! Tables for services on the host itself: a relay, and a resolver.

use super::{
    ADDRESSES, HOST4, HOST6, MARK, Table, WEB4, WEB6, configuration, exit, passed, remarked,
};
use crate::frames::{tcp, udp};
use exitmark_policy::Class;

/// A recursive resolver on the host queries any server over UDP and TCP.
pub(super) fn resolver() -> Table {
    let host = format!("{ADDRESSES}\nresolvers = \"any\"");
    Table {
        name: "the host's own recursive resolver",
        configuration: configuration("", &host, ""),
        cases: vec![
            passed("udp", Class::Resolver, &udp(HOST4, "198.51.100.53:53")),
            passed("tcp", Class::Resolver, &tcp(HOST4, "198.51.100.53:53")),
            passed("IPv6", Class::Resolver, &tcp(HOST6, "[2001:db8:53::1]:53")),
            passed("TLS", Class::Resolver, &tcp(HOST4, "198.51.100.53:853")),
            remarked(
                "marked",
                Class::Resolver,
                tcp(HOST4, "198.51.100.53:53").tos(MARK),
                0,
            ),
            passed(
                "a server that is a relay too",
                Class::Resolver,
                &tcp(HOST4, "198.18.0.1:53"),
            ),
            exit("a server's web page", tcp(HOST4, "198.51.100.53:443")),
            passed(
                "from another host",
                Class::Foreign,
                &tcp("192.0.2.11:40000", "198.51.100.53:53"),
            ),
        ],
    }
}

/// A relay on the host, whose ports the relay set lists.
pub(super) fn relay() -> Table {
    let host =
        "addresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\nrelay_addresses = [\"192.0.2.11\"]";
    Table {
        name: "the host's own relay needs no listener where the relay set lists it",
        configuration: configuration("", host, "").replace(
            "extra = [",
            "extra = [\"192.0.2.10:9001\", \"[2001:db8:1::10]:9001\", \"192.0.2.11:443\", ",
        ),
        cases: vec![
            passed(
                "answer of the ORPort",
                Class::Reply,
                &tcp("192.0.2.10:9001", WEB4),
            ),
            passed(
                "the same, IPv6",
                Class::Reply,
                &tcp("[2001:db8:1::10]:9001", WEB6),
            ),
            passed(
                "answer from a relay address",
                Class::Reply,
                &tcp("192.0.2.11:443", WEB4),
            ),
            exit("another port", tcp("192.0.2.10:9002", WEB4)),
            exit("the other address' port", tcp("192.0.2.10:443", WEB4)),
        ],
    }
}
