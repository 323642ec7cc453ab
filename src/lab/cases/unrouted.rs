//! Tables for relay traffic that the next hop does not route.

use super::{
    ADDRESSES, HOST4, HOST6, MARK, RELAY4, RELAY6, Table, WEB4, WEB6, configuration, exit, passed,
    remarked, steered, steered_and_cleared,
};
use crate::frames::{extension, tcp};
use crate::site::TORNET_MAC;
use exitmark_policy::Class;

/// Every table.
pub(super) fn tables() -> Vec<Table> {
    vec![
        tagged(),
        resolved(
            "a next hop by its IPv4 address routes IPv4 alone",
            "203.0.113.1",
            false,
        ),
        resolved(
            "a next hop by its IPv6 address routes IPv6 alone",
            "2001:db8:3::1",
            true,
        ),
    ]
}

/// The next hop is in the untagged network, so no tagged frame is steered, not even of VLAN 0.
fn tagged() -> Table {
    Table {
        name: "tagged relay frames are not steered",
        configuration: configuration("", ADDRESSES, ""),
        cases: vec![
            passed(
                "one tag",
                Class::Relay,
                &tcp(HOST4, RELAY4).tag(0x8100, 0x0064),
            ),
            passed(
                "one tag, IPv6",
                Class::Relay,
                &tcp(HOST6, RELAY6).tag(0x8100, 0x0064),
            ),
            passed(
                "two tags",
                Class::Relay,
                &tcp(HOST4, RELAY4).tag(0x88a8, 0x3007).tag(0x8100, 0x1064),
            ),
            passed(
                "priority alone",
                Class::Relay,
                &tcp(HOST4, RELAY4).tag(0x8100, 0xe000),
            ),
            remarked(
                "marked",
                Class::Relay,
                tcp(HOST4, RELAY4).tag(0x8100, 0x0064).tos(MARK | 0b10),
                0,
            ),
            passed(
                "behind IPv4 options",
                Class::Relay,
                &tcp(HOST4, RELAY4).tag(0x8100, 0x0064).options(8),
            ),
            passed(
                "behind extension headers",
                Class::Relay,
                &tcp(HOST6, RELAY6)
                    .tag(0x8100, 0x0064)
                    .extensions(&[extension::ROUTING]),
            ),
            passed(
                "three tags",
                Class::Relay,
                &(0..3).fold(tcp(HOST4, RELAY4), |frame, _| frame.tag(0x8100, 7)),
            ),
            passed(
                "first fragment",
                Class::Relay,
                &tcp(HOST4, RELAY4).tag(0x8100, 0x0064).fragment(7, 0, true),
            ),
            passed(
                "last fragment",
                Class::Relay,
                &tcp(HOST4, RELAY4)
                    .tag(0x8100, 0x0064)
                    .fragment(7, 100, false),
            ),
            exit("exit", tcp(HOST4, WEB4).tag(0x8100, 0x0064)),
            steered("no tag", tcp(HOST4, RELAY4)),
            steered("no tag, IPv6", tcp(HOST6, RELAY6)),
        ],
    }
}

fn resolved(name: &'static str, next_hop: &str, is_v6: bool) -> Table {
    let (v4, v6) = ((HOST4, RELAY4), (HOST6, RELAY6));
    let ((from, to), (other, away)) = if is_v6 { (v6, v4) } else { (v4, v6) };
    Table {
        name,
        configuration: configuration("", ADDRESSES, "").replace(TORNET_MAC, next_hop),
        cases: vec![
            steered("of its version", tcp(from, to)),
            steered_and_cleared("marked", tcp(from, to).tos(MARK | 1)),
            passed("of the other version", Class::Relay, &tcp(other, away)),
            remarked(
                "marked, of the other version",
                Class::Relay,
                tcp(other, away).tos(MARK | 1),
                1,
            ),
            passed("tagged", Class::Relay, &tcp(from, to).tag(0x8100, 0x0064)),
            passed(
                "first fragment of the other version",
                Class::Relay,
                &tcp(other, away).fragment(7, 0, true),
            ),
            passed(
                "last fragment of the other version",
                Class::Relay,
                &tcp(other, away).fragment(7, 100, false),
            ),
            exit("exit", tcp(HOST4, WEB4)),
            exit("exit, IPv6", tcp(HOST6, WEB6)),
        ],
    }
}
