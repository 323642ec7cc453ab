//! The table of connections: a configuration of engine connect, a socket of the Tor host and its
//! destination, the class, and the socket options after connect(2).
//!
//! The same table tests the reference, the programs in the kernel, and `explain --connect`. All
//! addresses exist in the namespaces of `tests/connect`.

use exitmark_box::settings::{Settings, SettingsError};
use exitmark_policy::Class::{self, Exempt, Exit, Relay, Resolver};
use exitmark_policy::{EndpointSet, Snapshot};
use std::path::Path;
use std::sync::Arc;

/// The address from which the Tor host connects, unless a socket is bound.
pub const HOST_V4: &str = "192.0.2.10";
/// Its IPv6 address, likewise.
pub const HOST_V6: &str = "2001:db8:1::10";
/// Its address for relay connections.
pub const RELAY_SOURCE_V4: &str = "203.0.113.10";
/// Its IPv6 address for relay connections.
pub const RELAY_SOURCE_V6: &str = "2001:db8:3::10";
/// A web server, which no relay set lists.
pub const WEB: &str = "198.51.100.7:80";
/// A web server over IPv6.
pub const WEB_V6: &str = "[2001:db8:51::7]:80";
/// A relay that the relay set lists.
pub const RELAY: &str = "198.18.0.1:9001";
/// A listed relay over IPv6.
pub const RELAY_V6: &str = "[2001:db8:18::1]:9001";
/// The resolver, at the web server's address.
pub const RESOLVER: &str = "198.51.100.7:53";
/// A listener on the Tor host, which is a listed relay.
pub const OWN: &str = "192.0.2.10:4444";

/// The mark AF11 in a ToS byte.
pub const MARK: u8 = 0x28;
/// The mark EF in a ToS byte.
const EF: u8 = 0xb8;
/// A ToS that tor sets itself.
const OTHER_TOS: u8 = 0x10;

/// Networks of which engine connect exempts every connection on the Tor host: RFC 6890, RFC 3927
/// and RFC 4291, and its own addresses.
const OF_THE_MACHINE: [&str; 10] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "::/128",
    "::1/128",
    "fe80::/10",
    "192.0.2.10/32",
    "203.0.113.10/32",
    "2001:db8:1::10/128",
    "2001:db8:3::10/128",
];

/// A configuration of engine connect for the connections of a user: `head` is lines before the
/// first table, `mark` and `steer` are lines of these tables.
pub fn configuration(user: u32, head: &str, mark: &str, steer: &str) -> String {
    format!(
        "engine = \"connect\"\n{head}\n\
         [tor]\nusers = [{user}]\n\
         [host]\nresolvers = [\"198.51.100.7\", \"2001:db8:51::7\"]\n\
         exempt = [\"198.18.9.0/24\", \"2001:db8:18:1::/64\"]\n\
         [mark]\n{mark}\n\
         [steer]\n{steer}\n\
         [relays]\nextra = [\"{RELAY}\", \"{RELAY_V6}\", \"198.51.100.7:853\", \
         \"198.18.9.1:9001\", \"{OWN}\"]\n\
         state = \"relays.state\"\n\
         [metrics]\nlisten = \"off\"\n"
    )
}

/// Connections with one configuration.
pub struct ConnectionTable {
    /// The subject of the table, for messages.
    pub name: &'static str,
    head: &'static str,
    mark: &'static str,
    steer: &'static str,
    /// The cases, which do not depend on their order.
    pub cases: Vec<ConnectionCase>,
}

/// One connection and its expected treatment.
#[derive(Clone, Copy)]
pub struct ConnectionCase {
    /// What distinguishes the case, for messages.
    pub name: &'static str,
    /// The address and port that are given to connect(2).
    pub destination: &'static str,
    /// The user and the type of the socket.
    pub owner: Owner,
    /// The options that the owner has set before connect(2).
    pub before: SocketOptions,
    /// The expected class; `None` if the connection is not judged.
    pub class: Option<Class>,
    /// The expected treatment.
    pub treatment: Treatment,
    /// The expected options after connect(2).
    pub after: SocketOptions,
}

/// The user and the type of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A TCP socket of a user of `tor.users`.
    Tor,
    /// A UDP socket of such a user, which is not judged.
    TorUdp,
    /// A TCP socket of a user that `tor.users` does not name.
    AnotherUser,
}

/// What engine connect does with a socket, by the counters of `exitmark status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// No option of the socket is set.
    Unchanged,
    /// The DSCP is set to the mark.
    Marked,
    /// The DSCP is not set, because tor has set another one.
    OwnTos,
    /// The source address, the fwmark or the NIC is set.
    Steered,
    /// The source address is not set, because tor has bound the socket.
    OwnSource,
    /// Nothing is set, because `steer.source` has no address of the IP version.
    Unsteered,
}

impl Treatment {
    /// The counter, as a field of the report; `None` without one.
    pub const fn counter(self) -> Option<&'static str> {
        match self {
            Self::Unchanged => None,
            Self::Marked => Some("marked"),
            Self::OwnTos => Some("own_tos"),
            Self::Steered => Some("steered"),
            Self::OwnSource => Some("own_source"),
            Self::Unsteered => Some("unsteered"),
        }
    }
}

/// The options of a socket that engine connect may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// The ToS or traffic class of the IP version of the destination.
    pub tos: u8,
    /// The address to which the socket is bound; `None`: the kernel chooses it.
    pub source: Option<&'static str>,
    /// The fwmark (SO_MARK); 0: none.
    pub fwmark: u32,
    /// SO_BINDTODEVICE; `None`: any.
    pub nic: Option<&'static str>,
}

impl ConnectionTable {
    /// The configuration in TOML, for the connections of this user.
    pub fn configuration(&self, user: u32) -> String {
        configuration(user, self.head, self.mark, self.steer)
    }

    /// Parses the configuration.
    ///
    /// # Errors
    /// Fails if the table's configuration is invalid.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        Settings::parse(&self.configuration(1), Path::new(""))
    }
}

impl ConnectionCase {
    /// Whether the destination is an IPv4-mapped IPv6 address.
    pub fn is_mapped(&self) -> bool {
        self.destination.starts_with("[::ffff:")
    }

    /// With a ToS that tor has set.
    const fn own_tos(mut self, tos: u8) -> Self {
        self.before.tos = tos;
        self
    }

    /// With an address to which tor has bound the socket, and which stays.
    const fn own_source(mut self, source: &'static str) -> Self {
        (self.before.source, self.after.source) = (Some(source), Some(source));
        self
    }
}

const NOT_SET: SocketOptions = SocketOptions {
    tos: 0,
    source: None,
    fwmark: 0,
    nic: None,
};

const fn case(
    name: &'static str,
    destination: &'static str,
    class: Class,
    treatment: Treatment,
    after: SocketOptions,
) -> ConnectionCase {
    ConnectionCase {
        name,
        destination,
        owner: Owner::Tor,
        before: NOT_SET,
        class: Some(class),
        treatment,
        after,
    }
}

const fn unchanged(name: &'static str, class: Class, destination: &'static str) -> ConnectionCase {
    case(name, destination, class, Treatment::Unchanged, NOT_SET)
}

const fn exempt(name: &'static str, destination: &'static str) -> ConnectionCase {
    unchanged(name, Exempt, destination)
}

const fn resolver(name: &'static str, destination: &'static str) -> ConnectionCase {
    unchanged(name, Resolver, destination)
}

/// A socket that is not judged.
const fn other(name: &'static str, owner: Owner, destination: &'static str) -> ConnectionCase {
    ConnectionCase {
        owner,
        class: None,
        ..unchanged(name, Exit, destination)
    }
}

const fn exit(name: &'static str, destination: &'static str) -> ConnectionCase {
    marked(name, destination, MARK)
}

const fn marked(name: &'static str, destination: &'static str, tos: u8) -> ConnectionCase {
    let after = SocketOptions { tos, ..NOT_SET };
    case(name, destination, Exit, Treatment::Marked, after)
}

/// An exit connection that keeps the ToS that tor has set.
const fn keeps_tos(name: &'static str, destination: &'static str) -> ConnectionCase {
    let tos = OTHER_TOS;
    let after = SocketOptions { tos, ..NOT_SET };
    case(name, destination, Exit, Treatment::OwnTos, after).own_tos(tos)
}

const fn steered(
    name: &'static str,
    destination: &'static str,
    after: SocketOptions,
) -> ConnectionCase {
    case(name, destination, Relay, Treatment::Steered, after)
}

const fn from_source(
    name: &'static str,
    destination: &'static str,
    source: &'static str,
) -> ConnectionCase {
    let source = Some(source);
    steered(name, destination, SocketOptions { source, ..NOT_SET })
}

/// A relay connection that keeps the address to which tor has bound it.
const fn keeps_source(
    name: &'static str,
    destination: &'static str,
    source: &'static str,
) -> ConnectionCase {
    let treatment = Treatment::OwnSource;
    case(name, destination, Relay, treatment, NOT_SET).own_source(source)
}

const fn unsteered(name: &'static str, destination: &'static str) -> ConnectionCase {
    case(name, destination, Relay, Treatment::Unsteered, NOT_SET)
}

/// The rules of a configuration on the Tor host, and its extra endpoints.
pub fn snapshot(settings: &Settings) -> Snapshot {
    let of_the_machine = OF_THE_MACHINE.iter().filter_map(|net| net.parse().ok());
    let rules = settings
        .rules
        .exempting(&of_the_machine.collect::<Vec<_>>());
    let extra = settings.relays.sources.extra.iter().copied();
    let relays = EndpointSet::new(extra).unwrap_or_else(|_| EndpointSet::empty());
    Snapshot::new(1, Arc::new(rules), relays)
}

const WEB_MAPPED: &str = "[::ffff:198.51.100.7]:80";
const RELAY_MAPPED: &str = "[::ffff:198.18.0.1]:9001";
const AF11: &str = "dscp = \"af11\"";
const BOTH_SOURCES: &str = "source = [\"203.0.113.10\", \"2001:db8:3::10\"]";

/// A table with the mark AF11, in mode `enforce`.
fn table(name: &'static str, steer: &'static str, cases: Vec<ConnectionCase>) -> ConnectionTable {
    ConnectionTable {
        name,
        head: "",
        mark: AF11,
        steer,
        cases,
    }
}

/// Every table of connections.
pub fn tables() -> Vec<ConnectionTable> {
    let of_ef = vec![
        marked("IPv4", WEB, EF),
        marked("IPv6", WEB_V6, EF),
        marked("IPv4-mapped", WEB_MAPPED, EF),
        marked("own ToS, IPv4", WEB, EF).own_tos(OTHER_TOS),
        marked("own ToS, IPv6", WEB_V6, EF).own_tos(OTHER_TOS),
        keeps_source("own source", RELAY, HOST_V4),
    ];
    let audited = vec![
        unchanged("exit, IPv4", Exit, WEB),
        unchanged("exit, IPv6", Exit, WEB_V6),
        unchanged("exit, IPv4-mapped", Exit, WEB_MAPPED),
        unchanged("relay, IPv4", Relay, RELAY),
        unchanged("relay, IPv6", Relay, RELAY_V6),
        resolver("resolver", RESOLVER),
        exempt("exempt", OWN),
    ];
    let unsteerable = vec![
        exit("exit", WEB),
        unchanged("relay, IPv4", Relay, RELAY),
        unchanged("relay, IPv6", Relay, RELAY_V6),
    ];
    let by_ipv4 = vec![
        from_source("IPv4", RELAY, RELAY_SOURCE_V4),
        from_source("IPv4-mapped", RELAY_MAPPED, RELAY_SOURCE_V4),
        unsteered("IPv6", RELAY_V6),
    ];
    let by_ipv6 = vec![
        unsteered("IPv4", RELAY),
        unsteered("IPv4-mapped", RELAY_MAPPED),
        from_source("IPv6", RELAY_V6, RELAY_SOURCE_V6),
    ];
    vec![
        table(
            "every class and socket",
            BOTH_SOURCES,
            [classes(), sockets()].concat(),
        ),
        ConnectionTable {
            mark: "dscp = 46\noverwrite = true",
            ..table("another mark, which overwrites", BOTH_SOURCES, of_ef)
        },
        ConnectionTable {
            head: "mode = \"audit\"",
            ..table("audit changes nothing", BOTH_SOURCES, audited)
        },
        table("without steering", "", unsteerable),
        table("a source of IPv4", "source = [\"203.0.113.10\"]", by_ipv4),
        table("a source of IPv6", "source = [\"2001:db8:3::10\"]", by_ipv6),
        table(
            "a fwmark, and a source of IPv4",
            "fwmark = 0x77\nsource = [\"203.0.113.10\"]",
            by_fwmark(),
        ),
        table("a NIC", "interface = \"eth0\"", by_nic()),
    ]
}

fn classes() -> Vec<ConnectionCase> {
    vec![
        exit("exit, IPv4", WEB),
        exit("exit, IPv6", WEB_V6),
        exit("exit, IPv4-mapped", WEB_MAPPED),
        exit("a relay's address, another port", "198.18.0.1:80"),
        exit("a relay's port, another address", "198.51.100.7:9001"),
        exit("the same, IPv6", "[2001:db8:51::7]:9001"),
        from_source("relay, IPv4", RELAY, RELAY_SOURCE_V4),
        from_source("relay, IPv6", RELAY_V6, RELAY_SOURCE_V6),
        from_source("relay, IPv4-mapped", RELAY_MAPPED, RELAY_SOURCE_V4),
        resolver("DNS, IPv4", RESOLVER),
        resolver("DNS, IPv6", "[2001:db8:51::7]:53"),
        resolver("DNS, IPv4-mapped", "[::ffff:198.51.100.7]:53"),
        resolver("DNS over TLS, IPv6", "[2001:db8:51::7]:853"),
        resolver("a listed relay at a resolver's port", "198.51.100.7:853"),
        exit("another resolver", "198.18.0.1:53"),
        exempt("an exempt prefix, IPv4", "198.18.9.1:80"),
        exempt("an exempt prefix, IPv6", "[2001:db8:18:1::1]:80"),
        exempt("an exempt prefix, IPv4-mapped", "[::ffff:198.18.9.1]:80"),
        exempt("a listed relay in an exempt prefix", "198.18.9.1:9001"),
        exempt("loopback, IPv4", "127.0.0.1:4444"),
        exempt("loopback, IPv6", "[::1]:4444"),
        exempt("loopback, IPv4-mapped", "[::ffff:127.0.0.1]:4444"),
        exempt("the machine's own address, a listed relay", OWN),
        exempt("the machine's second address", "203.0.113.10:4444"),
        exempt("the machine's IPv6 address", "[2001:db8:1::10]:4444"),
    ]
}

/// Sockets that are not judged, and sockets with options that tor has set.
fn sockets() -> Vec<ConnectionCase> {
    use Owner::{AnotherUser, TorUdp};
    vec![
        other("another user, IPv4", AnotherUser, WEB),
        other("another user, IPv6", AnotherUser, WEB_V6),
        other("another user to a relay, IPv4", AnotherUser, RELAY),
        other("another user to a relay, IPv6", AnotherUser, RELAY_V6),
        other("UDP, IPv4", TorUdp, WEB),
        other("UDP, IPv6", TorUdp, WEB_V6),
        other("UDP to a relay", TorUdp, RELAY),
        keeps_tos("own ToS, IPv4", WEB),
        keeps_tos("own ToS, IPv6", WEB_V6),
        keeps_tos("own ToS, IPv4-mapped", WEB_MAPPED),
        exit("the mark as own ToS, IPv4", WEB).own_tos(MARK),
        exit("the mark as own ToS, IPv6", WEB_V6).own_tos(MARK),
        exit("own source to an exit", WEB).own_source(RELAY_SOURCE_V4),
        keeps_source("own source, IPv4", RELAY, HOST_V4),
        keeps_source("own source, IPv6", RELAY_V6, HOST_V6),
        keeps_source("own source, IPv4-mapped", RELAY_MAPPED, "::ffff:192.0.2.10"),
    ]
}

fn by_fwmark() -> Vec<ConnectionCase> {
    let fwmark = SocketOptions {
        fwmark: 0x77,
        ..NOT_SET
    };
    let both = SocketOptions {
        source: Some(RELAY_SOURCE_V4),
        ..fwmark
    };
    vec![
        exit("exit", WEB),
        steered("IPv4", RELAY, both),
        steered("IPv4-mapped", RELAY_MAPPED, both),
        steered("IPv6", RELAY_V6, fwmark),
        steered("own source", RELAY, fwmark).own_source(HOST_V4),
    ]
}

fn by_nic() -> Vec<ConnectionCase> {
    let nic = SocketOptions {
        nic: Some("eth0"),
        ..NOT_SET
    };
    vec![
        exit("exit", WEB_V6),
        steered("IPv4", RELAY, nic),
        steered("IPv4-mapped", RELAY_MAPPED, nic),
        steered("IPv6", RELAY_V6, nic),
    ]
}
