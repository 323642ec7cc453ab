//! The operator's rules, compiled to tables for the packet path.

use super::{Class, Egress, Endpoint, EndpointSet, Family, PrefixSet, Rule};
use crate::packet::{Dscp, Version};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most listeners with an address; limited by the room in the XDP program's map.
pub const MAX_LISTENERS: usize = 256;
/// The most resolvers of one family; limited by the room in the XDP program's map.
pub const MAX_RESOLVERS: usize = 64;

/// The operator's configuration of the verdicts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How exit traffic is distinguished from relay traffic.
    pub classify_by: ClassifyBy,
    /// The host's clearnet addresses.
    pub addresses: PrefixSet,
    /// The host's addresses that carry Tor traffic only.
    pub relay_addresses: PrefixSet,
    /// The host's listeners, besides its own relay's endpoints.
    pub listeners: Box<[Listener]>,
    /// The host's DNS resolvers; every address, if the host has a recursive resolver. Only their
    /// ports 53 and 853 match, over TCP and UDP.
    pub resolvers: PrefixSet,
    /// Destinations whose traffic is the host's own, never exit traffic.
    pub exempt: PrefixSet,
    /// The protocols from a clearnet address that count as exit.
    pub exit_protocols: ExitProtocols,
    /// The action on a frame, by the rule that it matched.
    pub actions: Actions,
    /// How engine `connect` changes sockets; the other engines do not use it.
    pub sockets: SocketRules,
}

/// How engine `connect` changes the sockets of outgoing connections, besides the mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketRules {
    /// The source address of relay connections over IPv4.
    pub source_v4: Option<Ipv4Addr>,
    /// The source address of relay connections over IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// The fwmark (`SO_MARK`) of relay connections; 0: none.
    pub fwmark: u32,
    /// The index of the NIC by which relay connections leave (`SO_BINDTOIFINDEX`); 0: any.
    pub interface: u32,
    /// Exit connections get the mark even if tor has set another ToS on their socket.
    pub overwrites: bool,
}

impl Rules {
    /// The DSCP of a frame on departure, given the one on arrival. Exit frames get the mark; other
    /// frames that carry it get 0, so that on the wire the mark means exit only. A host mark, if
    /// traffic is classified by it, is no longer needed and is cleared like the mark, on foreign
    /// frames too.
    fn dscp(&self, marking: Marking, carried: Dscp) -> Dscp {
        let mark = self.actions.mark();
        match marking {
            Marking::Set => mark,
            Marking::Clear if carried == mark => Dscp::DEFAULT,
            Marking::Clear if self.classify_by == ClassifyBy::HostMark(carried) => Dscp::DEFAULT,
            Marking::Clear | Marking::Leave => carried,
        }
    }

    /// Whether this is an address of the host, of either kind.
    pub fn is_host(&self, address: IpAddr) -> bool {
        self.addresses.contains(address) || self.relay_addresses.contains(address)
    }

    /// The same rules with [`Actions::passing`].
    pub fn passing(&self) -> Self {
        Self {
            actions: self.actions.passing(),
            ..self.clone()
        }
    }
}

/// How exit traffic is distinguished from relay traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassifyBy {
    /// By destination: traffic to an endpoint in the relay set is relay traffic.
    #[default]
    RelaySet,
    /// By the DSCP that a patched host sets on its exit traffic; not 0.
    HostMark(Dscp),
}

/// Whether verdicts are applied to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Exit frames get the mark, other frames lose it, and relay frames are steered, as far as
    /// [`Intent`] says.
    #[default]
    Enforce,
    /// Classify and count only; neither change nor steer frames.
    Audit,
}

impl ClassifyBy {
    /// The value's name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RelaySet => "relay-set",
            Self::HostMark(_) => "host-mark",
        }
    }
}

impl Mode {
    /// The value's name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// The operator's settings from which the action for each rule is derived.
#[derive(Clone, Copy, Debug)]
pub struct Intent {
    /// Whether verdicts are applied.
    pub mode: Mode,
    /// The code point that means exit, and nothing else, on the uplink.
    pub mark: Dscp,
    /// Whether exit frames carry the mark on the uplink.
    pub at_uplink: AtUplink,
    /// Which relay frames leave by `incoming`; the others leave unmarked by `uplink`.
    pub steer: Steer,
}

/// Which relay frames are steered.
///
/// The next hop is resolved in the untagged network of `incoming`, so frames with a VLAN tag are
/// never steered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steer {
    /// No frames: no NIC is `incoming`.
    #[default]
    Off,
    /// Both IP versions: the next hop is configured as a MAC address.
    Both,
    /// Those of one IP version: the next hop is configured as an address of that version.
    Only(Version),
}

impl Steer {
    /// Whether packets of this IP version are steered.
    pub fn routes(self, version: Version) -> bool {
        match self {
            Self::Off => false,
            Self::Both => true,
            Self::Only(only) => only == version,
        }
    }
}

/// The action for each rule, precomputed and looked up for each frame.
#[derive(Clone, Debug)]
pub struct Actions {
    intent: Intent,
    by_rule: [Action; Rule::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) egress: Egress,
    pub(super) marking: Marking,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marking {
    /// The DSCP does not change, even if it is the mark.
    Leave,
    /// The frame gets the mark in place of any DSCP that the host set. The ECN bits stay.
    Set,
    /// The mark and the host's mark are cleared; any other DSCP does not change.
    Clear,
}

impl Actions {
    /// Derives the actions from the settings.
    pub fn new(intent: Intent) -> Self {
        Self {
            intent,
            by_rule: Rule::ALL.map(|rule| Action::of(rule.class(), intent)),
        }
    }

    /// The settings from which the actions were derived.
    pub const fn intent(&self) -> Intent {
        self.intent
    }

    /// The DSCP that marks exit frames.
    #[inline]
    pub const fn mark(&self) -> Dscp {
        self.intent.mark
    }

    /// Whether verdicts are applied.
    #[inline]
    pub const fn mode(&self) -> Mode {
        self.intent.mode
    }

    /// The actions of a box that cannot classify frames: none is steered, and none leaves marked.
    pub fn passing(&self) -> Self {
        Self::new(Intent {
            at_uplink: AtUplink::Strip,
            steer: Steer::Off,
            ..self.intent
        })
    }

    #[inline]
    pub(super) const fn of(&self, rule: Rule) -> Action {
        self.by_rule[rule as usize]
    }
}

impl Action {
    const fn of(class: Class, intent: Intent) -> Self {
        let untouched = Self {
            egress: Egress::Uplink,
            marking: Marking::Leave,
        };
        if matches!(intent.mode, Mode::Audit) {
            return untouched;
        }
        match class {
            Class::NonIp | Class::Malformed => untouched,
            Class::Exit if matches!(intent.at_uplink, AtUplink::Keep) => Self {
                egress: Egress::Uplink,
                marking: Marking::Set,
            },
            Class::Relay if !matches!(intent.steer, Steer::Off) => Self {
                egress: Egress::Incoming,
                marking: Marking::Clear,
            },
            _ => Self {
                egress: Egress::Uplink,
                marking: Marking::Clear,
            },
        }
    }
}

/// Egress and DSCP of a frame on departure, by its rule, IP version, and DSCP on arrival. Looked up
/// for each frame.
#[derive(Debug)]
pub(super) struct Leaves {
    v4: [Egress; Rule::ALL.len()],
    v6: [Egress; Rule::ALL.len()],
    dscp: [[Dscp; 64]; Rule::ALL.len()],
}

impl Leaves {
    pub(super) fn new(rules: &Rules) -> Self {
        let steer = rules.actions.intent.steer;
        let egress = |version| {
            Rule::ALL.map(|rule| match rules.actions.of(rule).egress {
                Egress::Incoming if !steer.routes(version) => Egress::Unrouted,
                egress => egress,
            })
        };
        Self {
            v4: egress(Version::V4),
            v6: egress(Version::V6),
            dscp: Rule::ALL.map(|rule| {
                let marking = rules.actions.of(rule).marking;
                Dscp::ALL.map(|carried| rules.dscp(marking, carried))
            }),
        }
    }

    /// The egress of an untagged frame of this IP version.
    #[inline]
    pub(super) const fn egress(&self, rule: Rule, version: Version) -> Egress {
        match version {
            Version::V4 => self.v4[rule as usize],
            Version::V6 => self.v6[rule as usize],
        }
    }

    /// The DSCP of a frame on departure, given the one on arrival.
    #[inline]
    pub(super) const fn dscp(&self, rule: Rule, carried: Dscp) -> Dscp {
        self.dscp[rule as usize][carried.bits() as usize]
    }
}

/// The protocols from a clearnet address that count as exit. Tor exits carry TCP only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitProtocols {
    /// Only TCP (`tcp` in the configuration).
    #[default]
    Tcp,
    /// TCP and UDP (`tcp+udp`); ICMP and all other protocols do not count.
    #[serde(rename = "tcp+udp")]
    TcpUdp,
    /// Every IP protocol (`all`), including ICMP.
    All,
}

/// Whether exit frames carry the mark on the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AtUplink {
    /// Exit frames leave marked: a device behind the box uses the mark.
    #[default]
    Keep,
    /// No frame leaves marked: exit frames are classified and counted only.
    Strip,
}

/// A place where the host accepts TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// This port of every address of the host.
    Port(u16),
    /// This address and port only.
    Endpoint(Endpoint),
}

/// All listeners, for fast look-up. The endpoints of the host's own relay are in the relay set.
#[derive(Debug)]
pub(super) struct Listeners {
    /// One bit per port that has any listener: one load suffices for nearly every frame.
    pub(super) any: Box<[u64; 1024]>,
    /// One bit per port that has a listener on every address.
    pub(super) everywhere: Box<[u64; 1024]>,
    /// The configured listeners with an address.
    pub(super) endpoints: EndpointSet,
}

impl Listeners {
    /// The configured listeners, and the ports of the host's own relay.
    pub(super) fn new(named: &[Listener], own_ports: impl IntoIterator<Item = u16>) -> Self {
        let mut everywhere = Box::new([0; 1024]);
        let mut endpoints = Vec::new();
        for listener in named {
            match listener {
                Listener::Port(port) => set(&mut everywhere, *port),
                Listener::Endpoint(endpoint) => endpoints.push(*endpoint),
            }
        }
        let mut any = everywhere.clone();
        let ports = endpoints.iter().map(|endpoint| endpoint.port);
        for port in ports.chain(own_ports) {
            set(&mut any, port);
        }
        Self {
            any,
            everywhere,
            // The settings limit the number, and refuse port 0.
            endpoints: EndpointSet::new(endpoints).unwrap_or_else(|_| EndpointSet::empty()),
        }
    }

    /// Whether the host accepts connections at this address, one of its own, and port.
    #[inline]
    pub(super) fn contains<F: Family>(&self, relays: &EndpointSet, address: F, port: u16) -> bool {
        is_set(&self.any, port)
            && (is_set(&self.everywhere, port) || self.names(relays, address, port))
    }

    /// A separate function: few frames need it, and inlined it would cost every frame registers.
    #[inline(never)]
    fn names<F: Family>(&self, relays: &EndpointSet, address: F, port: u16) -> bool {
        self.endpoints.lists(address, port) || relays.lists(address, port)
    }
}

fn set(bits: &mut [u64; 1024], port: u16) {
    bits[usize::from(port / 64)] |= 1 << (port % 64);
}

#[inline]
fn is_set(bits: &[u64; 1024], port: u16) -> bool {
    bits[usize::from(port / 64)] >> (port % 64) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENFORCED: Intent = Intent {
        mode: Mode::Enforce,
        mark: Dscp::AF11,
        at_uplink: AtUplink::Keep,
        steer: Steer::Both,
    };

    fn rules(intent: Intent) -> Rules {
        let net = |text: &str| PrefixSet::new([text.parse().unwrap()]);
        Rules {
            classify_by: ClassifyBy::RelaySet,
            addresses: net("192.0.2.10/32"),
            relay_addresses: net("2001:db8::10/128"),
            listeners: [].into(),
            resolvers: PrefixSet::default(),
            exempt: PrefixSet::default(),
            exit_protocols: ExitProtocols::Tcp,
            actions: Actions::new(intent),
            sockets: SocketRules::default(),
        }
    }

    #[test]
    fn is_host_covers_clearnet_and_relay_addresses() {
        let rules = rules(ENFORCED);
        assert!(rules.is_host("192.0.2.10".parse().unwrap()));
        assert!(rules.is_host("2001:db8::10".parse().unwrap()));
        assert!(!rules.is_host("192.0.2.11".parse().unwrap()));
    }

    #[test]
    fn a_passing_box_steers_nothing_and_marks_nothing() {
        for mode in [Mode::Enforce, Mode::Audit] {
            let passing = rules(Intent { mode, ..ENFORCED }).passing();
            assert_eq!(passing.actions.mode(), mode);
            assert_eq!(passing.actions.mark(), Dscp::AF11);
            for rule in Rule::ALL {
                let action = passing.actions.of(rule);
                assert_eq!(action.egress, Egress::Uplink, "{rule:?}");
                assert_ne!(action.marking, Marking::Set, "{rule:?}");
            }
            let intent = passing.actions.intent();
            assert_eq!(
                (intent.at_uplink, intent.steer),
                (AtUplink::Strip, Steer::Off)
            );
        }
        let active = rules(ENFORCED).actions;
        assert_eq!(active.of(Rule::ToListedRelay).egress, Egress::Incoming);
        assert_eq!(active.of(Rule::ExitProtocol).marking, Marking::Set);
    }

    #[test]
    fn a_next_hop_of_one_ip_version_routes_that_one() {
        use Version::{V4, V6};
        let routes = |steer: Steer| [V4, V6].map(|version| steer.routes(version));
        assert_eq!(routes(Steer::Off), [false, false]);
        assert_eq!(routes(Steer::Both), [true, true]);
        assert_eq!(routes(Steer::Only(V4)), [true, false]);
        assert_eq!(routes(Steer::Only(V6)), [false, true]);
    }

    #[test]
    fn choices_are_named_as_in_the_configuration() {
        assert_eq!(Mode::Enforce.name(), "enforce");
        assert_eq!(Mode::Audit.name(), "audit");
        assert_eq!(ClassifyBy::RelaySet.name(), "relay-set");
        assert_eq!(ClassifyBy::HostMark(Dscp::AF11).name(), "host-mark");
    }

    #[test]
    fn a_listener_is_a_port_everywhere_or_at_its_address() {
        let named = [
            Listener::Port(443),
            Listener::Endpoint("192.0.2.10:22".parse().unwrap()),
        ];
        let relays = EndpointSet::new(["192.0.2.10:9001".parse().unwrap()]).unwrap();
        let listeners = Listeners::new(&named, [9001]);
        let contains = |address: u32, port| listeners.contains(&relays, address, port);
        let [here, elsewhere] = [0xc000_020a_u32, 0xc000_020b];
        for (port, at_here, at_elsewhere) in [
            (443, true, true),
            (22, true, false),
            (9001, true, false),
            (444, false, false),
            // The same bit in two other words.
            (443 - 64, false, false),
            (443 % 64, false, false),
            (0, false, false),
        ] {
            assert_eq!(contains(here, port), at_here, "{port}");
            assert_eq!(contains(elsewhere, port), at_elsewhere, "{port}");
        }
    }
}
