//! The table of steered frames that get a source address of the network of `incoming`.

use super::{
    Case, CaseTable, HOST4, HOST6, INCOMING_MAC, MARK, RELAY4, RELAY6, TORNET_MAC, WEB4,
    configuration, exit, mac, passed, untouched, web4, web6,
};
use crate::frames::{Frame, tcp};
use exitmark_datapath::Role;
use exitmark_policy::Class::Relay;

const SOURCE4: &str = "203.0.113.10:40000";
const SOURCE6: &str = "[2001:db8:3::10]:40000";
/// An address of the host in the middle of a prefix, and that in its place.
const WITHIN4: &str = "192.0.2.69:40000";
const SOURCE_WITHIN4: &str = "203.0.113.85:40000";
/// An address that carries Tor traffic only, and that in its place.
const OR4: &str = "192.0.2.11:40000";
const SOURCE_OR4: &str = "203.0.113.11:40000";

/// A frame that leaves as if it had been sent from the other address.
fn translated(name: &'static str, frame: &Frame, source: Frame) -> Case {
    Case {
        name,
        class: Relay,
        egress: Role::Incoming,
        before: frame.clone().sealed().build(),
        after: source
            .sealed()
            .macs(mac(TORNET_MAC), mac(INCOMING_MAC))
            .build(),
    }
}

pub(super) fn table() -> CaseTable {
    let addresses = "addresses = [\"192.0.2.10\", \"192.0.2.64/28\", \"2001:db8:1::10\"]\n\
                     relay_addresses = [\"192.0.2.11\"]";
    let steer = format!("next_hop = \"{TORNET_MAC}\"");
    let translating = format!(
        "{steer}\n[steer.source]\n\"192.0.2.10\" = \"203.0.113.10\"\n\"192.0.2.11\" = \
         \"203.0.113.11\"\n\"192.0.2.64/28\" = \"203.0.113.80/28\"\n\"2001:db8:1::10\" = \
         \"2001:db8:3::10\""
    );
    let [from4, from6, as4, as6] = [HOST4, HOST6, SOURCE4, SOURCE6];
    CaseTable {
        name: "steered frames have an address of their network",
        configuration: configuration("", addresses, "").replace(&steer, &translating),
        cases: vec![
            translated("IPv4", &tcp(from4, RELAY4), tcp(as4, RELAY4)),
            translated("IPv6", &tcp(from6, RELAY6), tcp(as6, RELAY6)),
            translated(
                "of a prefix",
                &tcp(WITHIN4, RELAY4),
                tcp(SOURCE_WITHIN4, RELAY4),
            ),
            translated("relay address", &tcp(OR4, RELAY4), tcp(SOURCE_OR4, RELAY4)),
            translated(
                "the mark is cleared",
                &tcp(from4, RELAY4).tos(MARK | 1),
                tcp(as4, RELAY4).tos(1),
            ),
            translated(
                "behind options",
                &tcp(from4, RELAY4).options(8),
                tcp(as4, RELAY4).options(8),
            ),
            translated(
                "an odd length",
                &tcp(from6, RELAY6).payload(37),
                tcp(as6, RELAY6).payload(37),
            ),
            translated(
                "with padding",
                &tcp(from4, RELAY4).payload(20).padding(6),
                tcp(as4, RELAY4).payload(20).padding(6),
            ),
            translated(
                "up to the checksum",
                &tcp(from4, RELAY4).payload(18),
                tcp(as4, RELAY4).payload(18),
            ),
            // What cannot be translated, or whose answer would not be, stays on the wire.
            untouched(
                "without a checksum",
                Relay,
                tcp(from4, RELAY4).payload(17).padding(10).build(),
            ),
            passed(
                "relay address to an unlisted endpoint",
                Relay,
                tcp(OR4, WEB4),
            ),
            passed("in another VLAN", Relay, tcp(from4, RELAY4).tag(0x8100, 7)),
            exit("exit", web4()),
            exit("exit, IPv6", web6()),
        ],
    }
}
