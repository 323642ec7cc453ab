//! The tables of steered frames that get a source address of the network of `incoming`, and of the
//! frames that arrive for such an address.

use super::{
    Case, CaseTable, HOST4, HOST6, INCOMING_MAC, MARK, RELAY4, RELAY6, TORNET_MAC, WEB4,
    configuration, exit, mac, passed, untouched, web4, web6,
};
use crate::frames::{FROM, Frame, extension, tcp, udp};
use exitmark_datapath::Role;
use exitmark_policy::Class::Relay;
use exitmark_policy::packet::Tcp;

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

/// Frames of the hosts.
pub fn table() -> CaseTable {
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

/// A frame that arrives by `incoming` at a box with the configuration of [`table`].
pub struct Arrival {
    /// What distinguishes the case, for messages.
    pub name: &'static str,
    /// The frame as the router sends it.
    pub before: Vec<u8>,
    /// The expected frame at the host; `None` if the frame goes to the box's own stack.
    pub after: Option<Vec<u8>>,
}

/// A frame that reaches the host as if it had been sent to the other address.
fn back(name: &'static str, frame: Frame, delivered: Frame) -> Arrival {
    let (own, router) = (mac(INCOMING_MAC), mac(TORNET_MAC));
    Arrival {
        name,
        before: frame.sealed().macs(own, router).build(),
        after: Some(delivered.sealed().macs(FROM, router).build()),
    }
}

fn to_box(name: &'static str, frame: Frame) -> Arrival {
    Arrival {
        after: None,
        ..back(name, frame.clone(), frame)
    }
}

/// Frames for the addresses in place of the hosts', in order, which matters for fragments. The host
/// has sent a frame before.
pub fn arrivals() -> Vec<Arrival> {
    let [from4, from6, as4, as6] = [HOST4, HOST6, SOURCE4, SOURCE6];
    let (syn, ack, rst) = (Tcp::SYN, Tcp::ACK, Tcp::RST);
    let answer4 = || (tcp(RELAY4, as4), tcp(RELAY4, from4));
    let answer6 = || (tcp(RELAY6, as6), tcp(RELAY6, from6));
    let both = |name, (sent, delivered): (Frame, Frame), change: fn(Frame) -> Frame| {
        back(name, change(sent), change(delivered))
    };
    vec![
        both("IPv4", answer4(), |frame| frame),
        both("IPv6", answer6(), |frame| frame),
        back(
            "of a prefix",
            tcp(RELAY4, SOURCE_WITHIN4),
            tcp(RELAY4, WITHIN4),
        ),
        back("relay address", tcp(RELAY4, SOURCE_OR4), tcp(RELAY4, OR4)),
        both("a full packet", answer6(), |frame| frame.payload(1460)),
        both("an odd length", answer4(), |frame| frame.payload(37)),
        both("behind options", answer4(), |frame| frame.options(8)),
        both("with padding", answer4(), |frame| {
            frame.payload(20).padding(6)
        }),
        both("ToS of the internet", answer4(), |frame| frame.tos(0x2a)),
        back(
            "accepts",
            tcp(RELAY4, as4).control(syn | ack),
            tcp(RELAY4, from4).control(syn | ack),
        ),
        back(
            "refuses",
            tcp(RELAY6, as6).control(rst | ack),
            tcp(RELAY6, from6).control(rst | ack),
        ),
        both("first fragment", answer4(), |frame| {
            frame.fragment(9, 0, true)
        }),
        // The checksum is in the first fragment.
        both("later fragment", answer4(), |frame| {
            frame.fragment(9, 5, false)
        }),
        to_box("unseen fragment", tcp(RELAY4, as4).fragment(10, 5, false)),
        to_box("opens", tcp(RELAY4, as4).control(syn)),
        to_box("another port of the relay", tcp("198.18.0.1:9002", as4)),
        to_box("another address", tcp(WEB4, as4)),
        to_box("UDP", udp(RELAY4, as4)),
        to_box("without a checksum", tcp(RELAY4, as4).payload(17)),
        to_box(
            "an extension header",
            tcp(RELAY6, as6).extensions(&[extension::DESTINATION]),
        ),
        to_box("beside the prefix", tcp(RELAY4, "203.0.113.79:40000")),
    ]
}
