//! The table of cases: a configuration, an input frame, its class, egress port and output frame.
//!
//! The same table tests every implementation of the rule. Output frames are built from scratch with
//! the expected DSCP and MAC addresses, never computed by the code under test.

mod answers;
pub mod connections;
mod groups;
mod host_mark;
mod own;
pub mod taps;
pub mod translated;
mod unrouted;

use super::frames::{FROM, Frame, extension, of_protocol, tcp, udp};
use super::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_box::settings::{Hop, Settings, SettingsError};
use exitmark_datapath::{IncomingLink, Links, Role};
use exitmark_nic::NextHop;
use exitmark_policy::Class::{
    self, Exempt, Exit, Foreign, Host, Malformed, NonIp, Relay, Reply, Resolver,
};
use exitmark_policy::packet::MacAddr;
use exitmark_policy::{EndpointSet, Snapshot};
use std::path::Path;
use std::sync::Arc;

const MARK: u8 = 0x28;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// An IPv4 endpoint of the host, from which it connects.
pub const HOST4: &str = "192.0.2.10:40000";
/// An IPv6 endpoint of the host.
pub const HOST6: &str = "[2001:db8:1::10]:40000";
/// A web server, which no relay set lists.
pub const WEB4: &str = "198.51.100.7:443";
/// A web server over IPv6.
pub const WEB6: &str = "[2001:db8:51::7]:443";
/// A relay that the relay set lists.
pub const RELAY4: &str = "198.18.0.1:9001";
/// A listed relay over IPv6.
pub const RELAY6: &str = "[2001:db8:18::1]:9001";
const RESOLVER: &str = "9.9.9.9";
const DNS4: &str = "9.9.9.9:53";
const EXEMPT4: &str = "203.0.113.99:80";
/// Ports on which the host accepts connections.
const SSH4: &str = "192.0.2.10:22";
const ORPORT4: &str = "192.0.2.10:9001";
const ORPORT6: &str = "[2001:db8:1::10]:9001";
/// An address of the host that carries Tor traffic only, in some tables.
const OR4: &str = "192.0.2.11:40000";
const FOREIGN4: &str = "192.0.2.11:1";

/// A segment of the host to the web server.
fn web4() -> Frame {
    tcp(HOST4, WEB4)
}

fn web6() -> Frame {
    tcp(HOST6, WEB6)
}

/// A segment of the host to the relay.
fn relay4() -> Frame {
    tcp(HOST4, RELAY4)
}

fn relay6() -> Frame {
    tcp(HOST6, RELAY6)
}

/// Cases that run one after the other with one configuration.
pub struct CaseTable {
    /// The subject of the table, for messages.
    pub name: &'static str,
    /// The configuration in TOML.
    pub configuration: String,
    /// The cases in order, which matters for fragments.
    pub cases: Vec<Case>,
}

/// One frame and its expected treatment.
pub struct Case {
    /// What distinguishes the case, for messages.
    pub name: &'static str,
    /// The frame as the host sends it, from its Ethernet header on.
    pub before: Vec<u8>,
    /// The class that both engines count.
    pub class: Class,
    /// The expected egress port.
    pub egress: Role,
    /// The expected frame at the egress port.
    pub after: Vec<u8>,
}

impl CaseTable {
    /// Parses the configuration.
    ///
    /// # Errors
    /// Fails if the table's configuration is invalid.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        Settings::parse(&self.configuration, Path::new(""))
    }

    /// A worker's snapshot: the configuration's rules and extra endpoints.
    pub fn snapshot(&self, settings: &Settings) -> Snapshot {
        let extra = settings.relays.sources.extra.iter().copied();
        let relays = EndpointSet::new(extra).unwrap_or_else(|_| EndpointSet::empty());
        Snapshot::new(1, Arc::clone(&settings.rules), relays)
    }

    /// The links of a site with an incoming port, if the configuration has one.
    pub fn links(&self, settings: &Settings) -> Links {
        let links = Links::new(self.incoming(settings));
        self.steer(settings, &links);
        links
    }

    /// The egress link for relay traffic at such a site.
    pub fn incoming(&self, settings: &Settings) -> Option<IncomingLink> {
        let incoming = settings.incoming()?;
        Some(IncomingLink {
            port: Role::Incoming,
            own: mac(INCOMING_MAC),
            next_hop: incoming.next_hops.first().map(|hop| mac_of_hop(0, hop)),
        })
    }

    /// Sets the MAC addresses of the next hops, as if all had been resolved.
    pub fn steer(&self, settings: &Settings, links: &Links) {
        let hops = settings.incoming().map(|incoming| &incoming.next_hops);
        for (number, hop) in hops.into_iter().flatten().enumerate() {
            links.steer_to(number, Some(mac_of_hop(number, hop)));
        }
    }
}

/// The MAC address of a next hop at such a site, by its number.
fn mac_of_hop(number: usize, hop: &Hop) -> MacAddr {
    match (hop.next_hop, number) {
        (NextHop::Mac(mac), _) => mac,
        (NextHop::Address(_), 0) => mac(TORNET_MAC),
        (NextHop::Address(_), number) => numbered_mac(number),
    }
}

/// The MAC address of a next hop other than the first.
fn numbered_mac(number: usize) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 4, u8::try_from(number).unwrap_or(u8::MAX)])
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap_or(FROM)
}

fn exit(name: &'static str, frame: Frame) -> Case {
    remarked(name, Exit, frame, MARK)
}

/// Leaves by the uplink without a mark, whichever it had.
fn cleared(name: &'static str, class: Class, frame: Frame) -> Case {
    remarked(name, class, frame, 0)
}

/// Leaves by the uplink with the DSCP of `tos` and the frame's own ECN bits.
fn remarked(name: &'static str, class: Class, frame: Frame, tos: u8) -> Case {
    let before = frame.build();
    let ecn = frame.ecn();
    Case {
        name,
        class,
        egress: Role::Uplink,
        after: frame.tos(tos | ecn).build(),
        before,
    }
}

fn untouched(name: &'static str, class: Class, before: Vec<u8>) -> Case {
    Case {
        name,
        class,
        egress: Role::Uplink,
        after: before.clone(),
        before,
    }
}

fn passed(name: &'static str, class: Class, frame: Frame) -> Case {
    untouched(name, class, frame.build())
}

fn steered(name: &'static str, frame: Frame) -> Case {
    Case {
        name,
        class: Relay,
        egress: Role::Incoming,
        before: frame.build(),
        after: frame.macs(mac(TORNET_MAC), mac(INCOMING_MAC)).build(),
    }
}

/// A steered frame that carried the mark, which only exit frames may carry.
fn steered_and_cleared(name: &'static str, frame: Frame) -> Case {
    let ecn = frame.ecn();
    Case {
        before: frame.build(),
        ..steered(name, frame.tos(ecn))
    }
}

/// `head` is lines before the first table, `host` lines of `[host]`, `more` what follows.
fn configuration(head: &str, host: &str, more: &str) -> String {
    format!(
        "{head}\n[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\
         [steer]\nnext_hop = \"{TORNET_MAC}\"\n\
         [relays]\nextra = [\"{RELAY4}\", \"{RELAY6}\"]\n\
         [host]\n{host}\n{more}"
    )
}

const ADDRESSES: &str = "addresses = [\"192.0.2.10\", \"192.0.2.64/28\", \"2001:db8:1::10\"]";

/// Every table of frames, for both engines.
pub fn tables() -> Vec<CaseTable> {
    let mut tables = by_relay_set();
    tables.extend(answers::tables());
    tables.extend(unrouted::tables());
    tables.push(translated::table());
    tables.extend(groups::tables());
    tables.extend(host_mark::tables());
    tables
}

fn by_relay_set() -> Vec<CaseTable> {
    vec![
        classes(),
        marks(),
        shapes(),
        ipv4_fragments(),
        ipv6_fragments(),
        relay_addresses(),
        own::relay(),
        own::resolver(),
        CaseTable {
            name: "audit changes nothing",
            configuration: configuration("mode = \"audit\"", ADDRESSES, ""),
            cases: vec![
                passed("exit", Exit, web4()),
                passed("relay", Relay, relay4()),
                passed(
                    "marked UDP, not exit traffic",
                    Host,
                    udp(HOST6, WEB6).tos(MARK),
                ),
            ],
        },
        CaseTable {
            name: "strip leaves no mark on the uplink",
            configuration: configuration("", ADDRESSES, "[mark]\nat_uplink = \"strip\""),
            cases: vec![
                passed("exit", Exit, web4()),
                cleared("marked exit", Exit, web6().tos(MARK | 1)),
                cleared("marked host", Host, udp(HOST4, WEB4).tos(MARK)),
                steered("relay", relay4()),
            ],
        },
        CaseTable {
            name: "without an incoming port relay traffic stays on the uplink",
            configuration: format!(
                "[ports]\nhost = \"a\"\nuplink = \"b\"\n[host]\n{ADDRESSES}\n\
                 [relays]\nextra = [\"{RELAY4}\"]"
            ),
            cases: vec![
                passed("relay", Relay, relay4()),
                cleared("marked relay", Relay, relay4().tos(MARK)),
                exit("exit", web4()),
            ],
        },
        CaseTable {
            name: "exit traffic widened to UDP, with another mark",
            configuration: configuration(
                "",
                ADDRESSES,
                "[mark]\nprotocols = \"tcp+udp\"\ndscp = 46",
            ),
            cases: vec![
                remarked("udp", Exit, udp(HOST4, WEB4), 0xb8),
                remarked("tcp", Exit, web6(), 0xb8),
                passed("icmp", Host, of_protocol(ICMP, HOST4, WEB4)),
                passed("udp to a relay's port", Exit, udp(HOST4, RELAY4).tos(0xb8)),
            ],
        },
        CaseTable {
            name: "exit traffic widened to every protocol",
            configuration: configuration("", ADDRESSES, "[mark]\nprotocols = \"all\"\ntos = 0x28"),
            cases: vec![
                exit("icmp", of_protocol(ICMP, HOST4, WEB4)),
                exit("icmpv6", of_protocol(ICMPV6, HOST6, WEB6)),
                exit("sctp", of_protocol(SCTP, HOST4, WEB4)),
                exit(
                    "later fragment of icmp",
                    of_protocol(ICMP, HOST4, WEB4).fragment(5, 100, false),
                ),
            ],
        },
    ]
}

fn classes() -> CaseTable {
    let host = format!(
        "{ADDRESSES}\nlisteners = [22, \"192.0.2.10:9001\", \"[2001:db8:1::10]:9001\"]\n\
         resolvers = [\"{RESOLVER}\", \"2620:fe::fe\"]\nexempt = [\"203.0.113.0/24\"]"
    );
    CaseTable {
        name: "every class",
        configuration: configuration("", &host, ""),
        cases: vec![
            exit("tcp over IPv4", web4()),
            exit("tcp over IPv6", web6()),
            exit("from a prefix", tcp("192.0.2.79:5000", WEB4)),
            exit(
                "a relay's address, another port",
                tcp(HOST4, "198.18.0.1:443"),
            ),
            exit(
                "a relay's port, another address",
                tcp(HOST4, "198.18.0.2:9001"),
            ),
            exit(
                "an IPv6 relay's address, another port",
                tcp(HOST6, "[2001:db8:18::1]:443"),
            ),
            steered("a relay over IPv4", relay4()),
            steered("a relay over IPv6", relay6()),
            passed("udp to a relay's endpoint", Host, udp(HOST4, RELAY4)),
            passed("dns over udp", Resolver, udp(HOST4, DNS4)),
            passed("dns over tcp", Resolver, tcp(HOST4, DNS4)),
            passed("dns over tls", Resolver, tcp(HOST6, "[2620:fe::fe]:853")),
            exit("a resolver's web page", tcp(HOST4, "9.9.9.9:443")),
            exit("another resolver", tcp(HOST4, "198.51.100.53:53")),
            passed("answer of ssh", Reply, tcp(SSH4, WEB4)),
            passed(
                "answer of the own ORPort to a relay",
                Reply,
                tcp(ORPORT4, RELAY4),
            ),
            passed("answer of the own ORPort, IPv6", Reply, tcp(ORPORT6, WEB6)),
            exit(
                "the ORPort's number at another address",
                tcp("192.0.2.64:9001", WEB4),
            ),
            passed("udp from a listener's port", Host, udp(SSH4, WEB4)),
            passed("exempt", Exempt, tcp(HOST4, EXEMPT4)),
            passed("exempt udp", Exempt, udp(HOST4, "203.0.113.99:123")),
            passed("udp", Host, udp(HOST4, WEB4)),
            passed("icmp", Host, of_protocol(ICMP, HOST4, WEB4)),
            passed("icmpv6", Host, of_protocol(ICMPV6, HOST6, WEB6)),
            passed("foreign source", Foreign, tcp("192.0.2.11:40000", WEB4)),
            passed(
                "foreign source to a relay",
                Foreign,
                tcp("192.0.2.80:40000", RELAY4),
            ),
            passed(
                "foreign source, IPv6",
                Foreign,
                tcp("[2001:db8:1::11]:1", WEB6),
            ),
        ],
    }
}

fn marks() -> CaseTable {
    let host = format!("{ADDRESSES}\nlisteners = [22]\nresolvers = [\"{RESOLVER}\"]");
    CaseTable {
        name: "the mark means exit and nothing else",
        configuration: configuration("", &host, ""),
        cases: vec![
            exit("ECN survives", web4().tos(0b11)),
            exit("ECN survives, IPv6", web6().tos(0b01)),
            exit("another DSCP is replaced", web4().tos(0xb8 | 0b10)),
            exit("marked already", web6().tos(MARK | 2)),
            cleared("marked reply", Reply, tcp(SSH4, WEB4).tos(MARK | 1)),
            cleared("marked query", Resolver, udp(HOST4, DNS4).tos(MARK)),
            cleared("marked udp", Host, udp(HOST6, WEB6).tos(MARK | 2)),
            cleared("marked foreign", Foreign, tcp(FOREIGN4, WEB4).tos(MARK)),
            steered_and_cleared("marked relay", relay4().tos(MARK)),
            passed(
                "another DSCP on udp stays",
                Host,
                udp(HOST4, WEB4).tos(0xb8),
            ),
            steered("another DSCP on relay traffic stays", relay6().tos(0xb9)),
        ],
    }
}

fn shapes() -> CaseTable {
    use extension::{DESTINATION, HOP_BY_HOP, ROUTING};
    let plain = web4().build();
    let with = |at: usize, byte: u8| {
        let mut frame = plain.clone();
        frame[at] = byte;
        frame
    };
    let malformed = |name, frame: Vec<u8>| untouched(name, Malformed, frame);
    let non_ip = |name, frame: Vec<u8>| untouched(name, NonIp, frame);
    let ethertype = |high, low| {
        let mut frame = plain.clone();
        frame[12..14].copy_from_slice(&[high, low]);
        frame
    };
    let chain = |count: usize| web6().extensions(&vec![DESTINATION; count]);
    CaseTable {
        name: "shapes of frames",
        configuration: configuration("", ADDRESSES, ""),
        cases: vec![
            exit("one tag", web4().tag(0x8100, 0xe064)),
            exit("two tags", web6().tag(0x88a8, 0x3007).tag(0x8100, 0xe064)),
            exit("IPv4 options", web4().options(40)),
            steered("IPv4 options to a relay", relay4().options(4)),
            exit("padding", web4().payload(20).padding(6)),
            exit("ports and nothing more", web4().payload(4)),
            steered(
                "extension headers",
                relay6().extensions(&[HOP_BY_HOP, ROUTING, DESTINATION]),
            ),
            exit("eight extension headers", chain(8)),
            malformed("nine extension headers", chain(9).build()),
            malformed("cut ports", web4().payload(3).build()),
            malformed("IHL below 5", with(14, 0x44)),
            malformed("IHL beyond the packet", {
                let mut f = web4().payload(0).build();
                f[14] = 0x4f;
                f
            }),
            malformed("wrong version", with(14, 0x65)),
            malformed("total length beyond the frame", with(16, 0x10)),
            malformed("total length below the header", {
                let mut f = with(16, 0);
                f[17] = 19;
                f
            }),
            malformed("cut IPv4 header", plain[..33].to_vec()),
            malformed("cut IPv6 header", web6().build()[..53].to_vec()),
            malformed("cut extension header", {
                let mut f = web6().extensions(&[ROUTING]).payload(0).build();
                f[55] = 200;
                f
            }),
            non_ip("arp", ethertype(0x08, 0x06)),
            non_ip("lldp", ethertype(0x88, 0xcc)),
            non_ip("802.3 length", ethertype(0x00, 0x40)),
            non_ip(
                "five tags",
                (0..5).fold(web4(), |frame, _| frame.tag(0x8100, 1)).build(),
            ),
            non_ip("runt", plain[..13].to_vec()),
            non_ip("one byte", vec![0xff]),
        ],
    }
}

fn ipv4_fragments() -> CaseTable {
    let host = format!("{ADDRESSES}\nresolvers = [\"{RESOLVER}\"]");
    CaseTable {
        name: "IPv4 fragments follow their first one",
        configuration: configuration("", &host, ""),
        cases: vec![
            passed(
                "later one, first unseen",
                Host,
                web4().fragment(7, 100, true),
            ),
            cleared(
                "marked, first unseen",
                Host,
                web4().fragment(7, 100, true).tos(MARK),
            ),
            exit("first of exit", web4().fragment(7, 0, true)),
            exit("later of exit", web4().fragment(7, 100, true)),
            exit("last of exit", web4().fragment(7, 200, false)),
            steered("first of relay", relay4().fragment(7, 0, true)),
            steered("last of relay", relay4().fragment(7, 200, false)),
            passed("another id", Host, relay4().fragment(8, 200, false)),
            passed(
                "first of a query",
                Resolver,
                udp(HOST4, DNS4).fragment(9, 0, true),
            ),
            passed(
                "last of a query",
                Resolver,
                udp(HOST4, DNS4).fragment(9, 9, false),
            ),
            passed(
                "icmp needs no ports",
                Host,
                of_protocol(ICMP, HOST4, WEB4).fragment(1, 9, true),
            ),
            passed(
                "foreign",
                Foreign,
                tcp(FOREIGN4, WEB4).fragment(7, 100, true),
            ),
            untouched(
                "first with cut ports",
                Malformed,
                web4().fragment(11, 0, true).payload(2).build(),
            ),
        ],
    }
}

fn ipv6_fragments() -> CaseTable {
    use extension::DESTINATION;
    CaseTable {
        name: "IPv6 fragments follow their first one",
        configuration: configuration("", ADDRESSES, ""),
        cases: vec![
            passed(
                "later one, first unseen",
                Host,
                relay6().fragment(70_000, 100, true),
            ),
            steered("first of relay", relay6().fragment(70_000, 0, true)),
            steered("later of relay", relay6().fragment(70_000, 100, false)),
            exit(
                "first of exit behind options",
                web6().extensions(&[DESTINATION]).fragment(3, 0, true),
            ),
            exit(
                "last of exit behind options",
                web6().extensions(&[DESTINATION]).fragment(3, 50, false),
            ),
            exit("atomic fragment", web6().fragment(4, 0, false)),
            passed(
                "the atomic one is not remembered",
                Host,
                web6().fragment(4, 50, false),
            ),
        ],
    }
}

fn relay_addresses() -> CaseTable {
    let host = "addresses = [\"192.0.2.10\"]\nrelay_addresses = [\"192.0.2.11\", \"2001:db8:1::11\"]\n\
                listeners = [9001]\nresolvers = [\"9.9.9.9\"]";
    CaseTable {
        name: "addresses that carry Tor traffic only",
        configuration: configuration("", host, ""),
        cases: vec![
            steered("to a listed relay", tcp(OR4, RELAY4)),
            steered("to an unlisted relay", tcp(OR4, WEB4)),
            steered("over IPv6", tcp("[2001:db8:1::11]:40000", WEB6)),
            passed("answer of the ORPort", Reply, tcp("192.0.2.11:9001", WEB4)),
            passed("query", Resolver, udp(OR4, DNS4)),
            passed("udp is not exit traffic", Host, udp(OR4, WEB4)),
            exit("clearnet", web4()),
            steered("clearnet to a listed relay", relay4()),
        ],
    }
}
