//! Tables of copies for the tap: frames of the hosts and to them, and the copy of each.

use super::{
    ADDRESSES, EXEMPT4, HOST4, HOST6, ICMP, MARK, OR4, RELAY4, RELAY6, RESOLVER, SSH4, WEB4, WEB6,
    configuration, mac,
};
use crate::frames::{Frame, extension, of_protocol, tcp, udp};
use crate::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_box::settings::{Settings, SettingsError};
use exitmark_datapath::Role;
use exitmark_policy::packet::Tcp;
use exitmark_policy::{EndpointSet, Snapshot};
use std::path::Path;
use std::sync::Arc;

/// Frames with one configuration, in order, which matters for fragments.
pub struct TapTable {
    /// The subject of the table, for messages.
    pub name: &'static str,
    configuration: String,
    /// The cases in order.
    pub cases: Vec<TapCase>,
}

/// A frame, and its copy.
pub struct TapCase {
    /// What distinguishes the case, for messages.
    pub name: &'static str,
    /// The port that receives the frame.
    pub ingress: Role,
    /// The frame.
    pub frame: Vec<u8>,
    /// The copy; `None` if the frame is not copied.
    pub copy: Option<Vec<u8>>,
}

impl TapTable {
    /// Parses the configuration.
    ///
    /// # Errors
    /// Fails if the table's configuration is invalid.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        Settings::parse(&self.configuration, Path::new(""))
    }

    /// A snapshot of the configuration's rules and extra endpoints.
    pub fn snapshot(&self, settings: &Settings) -> Arc<Snapshot> {
        let extra = settings.relays.sources.extra.iter().copied();
        let relays = EndpointSet::new(extra).unwrap_or_else(|_| EndpointSet::empty());
        Arc::new(Snapshot::new(1, Arc::clone(&settings.rules), relays))
    }
}

/// A frame whose copy has `headers` bytes: the frame itself, marked.
fn copied(ingress: Role, name: &'static str, frame: Frame, headers: usize) -> TapCase {
    let ecn = frame.ecn();
    let mut copy = frame.clone().tos(MARK | ecn).build();
    copy.truncate(headers);
    TapCase {
        name,
        ingress,
        frame: frame.build(),
        copy: Some(copy),
    }
}

fn out(name: &'static str, frame: Frame, headers: usize) -> TapCase {
    copied(Role::Host, name, frame, headers)
}

fn answer(name: &'static str, frame: Frame, headers: usize) -> TapCase {
    copied(Role::Uplink, name, frame, headers)
}

fn not_copied(ingress: Role, name: &'static str, frame: Frame) -> TapCase {
    TapCase {
        name,
        ingress,
        frame: frame.build(),
        copy: None,
    }
}

fn never_out(name: &'static str, frame: Frame) -> TapCase {
    not_copied(Role::Host, name, frame)
}

fn no_answer(name: &'static str, frame: Frame) -> TapCase {
    not_copied(Role::Uplink, name, frame)
}

/// The same configuration with a tap.
fn with_tap(text: &str) -> String {
    text.replace("[ports]\n", "[ports]\ntap = \"tap0\"\n")
}

const TCP4: usize = 14 + 20 + 20;
const TCP6: usize = 14 + 40 + 20;

/// Every table.
pub fn tables() -> Vec<TapTable> {
    vec![hosts(), answers(), protocols(), one_way(), by_mark()]
}

fn hosts() -> TapTable {
    let host = format!("{ADDRESSES}\nlisteners = [22]\nexempt = [\"203.0.113.0/24\"]");
    TapTable {
        name: "frames of the hosts",
        configuration: with_tap(&configuration("", &host, "[mark]\nat_uplink = \"strip\"")),
        cases: vec![
            out("exit", tcp(HOST4, WEB4).payload(900), TCP4),
            out("exit, IPv6", tcp(HOST6, WEB6).payload(900), TCP6),
            out("ECN is kept", tcp(HOST4, WEB4).tos(0xb9), TCP4),
            out("ECN is kept, IPv6", tcp(HOST6, WEB6).tos(0xbb), TCP6),
            out("IPv4 options", tcp(HOST4, WEB4).options(40), TCP4 + 40),
            out(
                "TCP options",
                tcp(HOST4, WEB4).words(15).payload(90),
                TCP4 + 40,
            ),
            out(
                "TCP options, IPv6",
                tcp(HOST6, WEB6).words(8).payload(90),
                TCP6 + 12,
            ),
            out(
                "a data offset beyond the packet",
                tcp(HOST4, WEB4).words(15),
                TCP4 + 20,
            ),
            out("a data offset of nothing", tcp(HOST4, WEB4).words(0), TCP4),
            out(
                "padding behind the packet",
                tcp(HOST4, WEB4).payload(20).padding(6),
                TCP4,
            ),
            out("one tag", tcp(HOST4, WEB4).tag(0x8100, 7), TCP4 + 4),
            out(
                "two tags",
                tcp(HOST6, WEB6).tag(0x88a8, 7).tag(0x8100, 8),
                TCP6 + 8,
            ),
            out(
                "extension header",
                tcp(HOST6, WEB6).extensions(&[extension::DESTINATION]),
                TCP6 + 8,
            ),
            out(
                "first fragment",
                tcp(HOST4, WEB4).fragment(9, 0, true),
                TCP4,
            ),
            out(
                "later fragment",
                tcp(HOST4, WEB4).fragment(9, 5, false),
                TCP4 - 20,
            ),
            out(
                "first fragment, IPv6",
                tcp(HOST6, WEB6).fragment(9, 0, true),
                TCP6 + 8,
            ),
            out(
                "later fragment, IPv6",
                tcp(HOST6, WEB6).fragment(9, 5, false),
                TCP6 - 12,
            ),
            never_out("unseen fragment", tcp(HOST4, WEB4).fragment(10, 5, false)),
            never_out("relay", tcp(HOST4, RELAY4)),
            never_out("relay, IPv6", tcp(HOST6, RELAY6)),
            never_out("reply", tcp(SSH4, WEB4)),
            never_out("exempt", tcp(HOST4, EXEMPT4)),
            never_out("UDP", udp(HOST4, WEB4)),
            never_out("another host", tcp("192.0.2.99:40000", WEB4)),
        ],
    }
}

fn answers() -> TapTable {
    let host = format!(
        "{ADDRESSES}\nrelay_addresses = [\"192.0.2.11\"]\nlisteners = [22]\nresolvers = \
         [\"{RESOLVER}\"]\nexempt = [\"203.0.113.0/24\"]"
    );
    let (syn, ack, rst) = (Tcp::SYN, Tcp::ACK, Tcp::RST);
    let routed = |frame: Frame| frame.macs(mac(INCOMING_MAC), mac(TORNET_MAC));
    TapTable {
        name: "answers",
        configuration: with_tap(&configuration("", &host, "")),
        cases: vec![
            answer("answer", tcp(WEB4, HOST4).payload(1400), TCP4),
            answer("answer, IPv6", tcp(WEB6, HOST6).payload(1400), TCP6),
            answer("ToS of the internet", tcp(WEB4, HOST4).tos(0x2a), TCP4),
            answer("accepts", tcp(WEB4, HOST4).control(syn | ack), TCP4),
            answer(
                "refuses",
                tcp(WEB4, HOST4).control(rst | ack).sequence(0),
                TCP4,
            ),
            answer("resets", tcp(WEB6, HOST6).control(rst), TCP6),
            answer("SYN and RST", tcp(WEB4, HOST4).control(syn | rst), TCP4),
            answer(
                "TCP options",
                tcp(WEB6, HOST6).words(10).payload(80),
                TCP6 + 20,
            ),
            answer("tagged", tcp(WEB4, HOST4).tag(0x8100, 5), TCP4 + 4),
            answer(
                "another port of a relay",
                tcp("198.18.0.1:443", HOST4),
                TCP4,
            ),
            answer(
                "extension header",
                tcp(WEB6, HOST6).extensions(&[extension::DESTINATION]),
                TCP6 + 8,
            ),
            answer(
                "first fragment",
                tcp(WEB4, HOST4).fragment(9, 0, true),
                TCP4,
            ),
            answer(
                "later fragment",
                tcp(WEB4, HOST4).fragment(9, 5, false),
                TCP4 - 20,
            ),
            answer(
                "first fragment, IPv6",
                tcp(WEB6, HOST6).fragment(9, 0, true),
                TCP6 + 8,
            ),
            answer(
                "later fragment, IPv6",
                tcp(WEB6, HOST6).fragment(9, 5, false),
                TCP6 - 12,
            ),
            no_answer("unseen fragment", tcp(WEB4, HOST4).fragment(10, 5, false)),
            no_answer("opens", tcp(WEB4, HOST4).control(syn)),
            no_answer("opens with ECN, IPv6", tcp(WEB6, HOST6).control(syn | 0xc0)),
            no_answer("of a relay", tcp(RELAY4, HOST4)),
            no_answer("of a relay, IPv6", tcp(RELAY6, HOST6)),
            no_answer("accepts, of a relay", tcp(RELAY4, HOST4).control(syn | ack)),
            no_answer("to a listener", tcp(WEB4, SSH4)),
            no_answer("of a resolver", tcp("9.9.9.9:853", HOST4)),
            no_answer("of an exempt prefix", tcp(EXEMPT4, HOST4)),
            no_answer(
                "to an address that carries Tor traffic only",
                tcp(WEB4, OR4),
            ),
            no_answer("to another host", tcp(WEB4, "192.0.2.99:40000")),
            no_answer("from the host's address", tcp(HOST4, WEB4)),
            no_answer("UDP", udp(WEB4, HOST4)),
            no_answer("ICMP", of_protocol(ICMP, WEB4, HOST4)),
            copied(
                Role::Incoming,
                "by incoming",
                routed(tcp(WEB4, HOST4)),
                TCP4,
            ),
            not_copied(
                Role::Incoming,
                "relay by incoming",
                routed(tcp(RELAY4, HOST4)),
            ),
            not_copied(Role::Incoming, "for the box by incoming", tcp(WEB4, HOST4)),
        ],
    }
}

fn protocols() -> TapTable {
    TapTable {
        name: "all protocols are exit traffic",
        configuration: with_tap(&configuration("", ADDRESSES, "[mark]\nprotocols = \"all\"")),
        cases: vec![
            out("UDP", udp(HOST4, WEB4).payload(300), 14 + 20 + 8),
            out("UDP, IPv6", udp(HOST6, WEB6).payload(300), 14 + 40 + 8),
            out("ICMP", of_protocol(ICMP, HOST4, WEB4), 14 + 20),
            answer("UDP answer", udp(WEB4, HOST4).payload(300), 14 + 20 + 8),
            answer(
                "UDP answer, IPv6",
                udp(WEB6, HOST6).payload(300),
                14 + 40 + 8,
            ),
            answer("ICMP answer", of_protocol(ICMP, WEB4, HOST4), 14 + 20),
        ],
    }
}

fn one_way() -> TapTable {
    let head = "mode = \"audit\"";
    let more = "[tap]\ndirections = \"out\"";
    TapTable {
        name: "one direction, in audit mode",
        configuration: with_tap(&configuration(head, ADDRESSES, more)),
        cases: vec![
            out("exit", tcp(HOST4, WEB4), TCP4),
            no_answer("answer", tcp(WEB4, HOST4)),
        ],
    }
}

fn by_mark() -> TapTable {
    let text = format!(
        "classify_by = \"host-mark\"\n[ports]\nhost = \"a\"\nuplink = \"b\"\n\
         [host]\n{ADDRESSES}\ntos = 0x08\n"
    );
    TapTable {
        name: "the host's mark",
        configuration: with_tap(&text),
        cases: vec![
            out("marked", tcp(HOST4, WEB4).tos(0x09), TCP4),
            never_out("not marked", tcp(HOST4, WEB4)),
            no_answer("with its ToS", tcp(WEB4, HOST4).tos(0x08)),
        ],
    }
}
