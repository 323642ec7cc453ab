//! Tables for relay traffic that the next hop does not route.

use super::{
    ADDRESSES, Case, CaseTable, HOST4, HOST6, MARK, RELAY4, RELAY6, cleared, configuration, exit,
    passed, relay4, relay6, steered, steered_and_cleared, web4, web6,
};
use crate::frames::{Frame, extension, tcp};
use crate::site::TORNET_MAC;
use exitmark_policy::Class::Relay;

pub(super) fn tables() -> Vec<CaseTable> {
    vec![
        tagged(),
        resolved("203.0.113.1", false),
        resolved("2001:db8:3::1", true),
    ]
}

/// A relay frame that stays on the wire, unchanged.
fn unsteered(name: &'static str, frame: Frame) -> Case {
    passed(name, Relay, frame)
}

fn tagged4() -> Frame {
    relay4().tag(0x8100, 0x0064)
}

fn tagged6() -> Frame {
    relay6().tag(0x8100, 0x0064)
}

/// The next hop is in the untagged network, so no tagged frame is steered, not even of VLAN 0.
fn tagged() -> CaseTable {
    CaseTable {
        name: "tagged relay frames are not steered",
        configuration: configuration("", ADDRESSES, ""),
        cases: vec![
            unsteered("one tag", tagged4()),
            unsteered("one tag, IPv6", tagged6()),
            unsteered("two tags", relay4().tag(0x88a8, 0x3007).tag(0x8100, 0x1064)),
            unsteered("priority alone", relay4().tag(0x8100, 0xe000)),
            cleared("marked", Relay, tagged4().tos(MARK | 2)),
            unsteered("behind IPv4 options", tagged4().options(8)),
            unsteered(
                "behind extension headers",
                tagged6().extensions(&[extension::ROUTING]),
            ),
            unsteered(
                "three tags",
                (0..3).fold(relay4(), |frame, _| frame.tag(0x8100, 7)),
            ),
            unsteered("first fragment", tagged4().fragment(7, 0, true)),
            unsteered("last fragment", tagged4().fragment(7, 100, false)),
            exit("exit", web4().tag(0x8100, 0x0064)),
            steered("no tag", relay4()),
            steered("no tag, IPv6", relay6()),
        ],
    }
}

/// The next hop is given by its address, which is an IPv6 one if `is_v6`.
fn resolved(next_hop: &str, is_v6: bool) -> CaseTable {
    let (v4, v6) = ((HOST4, RELAY4), (HOST6, RELAY6));
    let ((from, to), (other, away)) = if is_v6 { (v6, v4) } else { (v4, v6) };
    CaseTable {
        name: if is_v6 {
            "a next hop by its IPv6 address routes IPv6 alone"
        } else {
            "a next hop by its IPv4 address routes IPv4 alone"
        },
        configuration: configuration("", ADDRESSES, "").replace(TORNET_MAC, next_hop),
        cases: vec![
            steered("of its version", tcp(from, to)),
            steered_and_cleared("marked", tcp(from, to).tos(MARK | 1)),
            unsteered("of the other version", tcp(other, away)),
            cleared(
                "marked, of the other version",
                Relay,
                tcp(other, away).tos(MARK | 1),
            ),
            unsteered("tagged", tcp(from, to).tag(0x8100, 0x0064)),
            unsteered(
                "first fragment of the other version",
                tcp(other, away).fragment(7, 0, true),
            ),
            unsteered(
                "last fragment of the other version",
                tcp(other, away).fragment(7, 100, false),
            ),
            exit("exit", web4()),
            exit("exit, IPv6", web6()),
        ],
    }
}
