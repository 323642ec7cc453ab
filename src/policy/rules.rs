//! The operator's rules, compiled to what the packet path asks.

use super::{Class, Egress, Endpoint, EndpointSet, Family, PrefixSet, Rule};
use crate::packet::{Dscp, Version};
use std::net::IpAddr;

/// How many listeners with an address can be named: what the kernel's program has room for.
pub const MAX_LISTENERS: usize = 256;
/// How many resolvers of one family can be named, for the same reason.
pub const MAX_RESOLVERS: usize = 64;

/// Everything in a verdict that is the operator's to say.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What tells exit traffic from relay traffic.
    pub classify_by: ClassifyBy,
    /// The host's clearnet addresses.
    pub addresses: PrefixSet,
    /// The host's addresses that carry Tor traffic only.
    pub relay_addresses: PrefixSet,
    /// Where the host itself accepts connections, besides its own relay's ports.
    pub listeners: Box<[Listener]>,
    /// The host's DNS resolvers.
    pub resolvers: PrefixSet,
    /// Destinations whose traffic is the host's own, never exit traffic.
    pub exempt: PrefixSet,
    /// Which protocols from a clearnet address count as exit.
    pub exit_protocols: ExitProtocols,
    /// What is done with a frame that met a rule.
    pub actions: Actions,
}

impl Rules {
    /// The code point with which a frame leaves that bears this one: the mark on exit frames, 0 on
    /// every other frame that bears it. On the wire the mark means exit and nothing else. The
    /// host's own mark, where that tells what exit traffic is, has done its work here: it is
    /// cleared like the mark, on foreign frames too.
    fn dscp(&self, marking: Marking, bears: Dscp) -> Dscp {
        let mark = self.actions.mark();
        match marking {
            Marking::Set => mark,
            Marking::Clear if bears == mark => Dscp::DEFAULT,
            Marking::Clear if self.classify_by == ClassifyBy::HostMark(bears) => Dscp::DEFAULT,
            Marking::Clear | Marking::Leave => bears,
        }
    }

    /// Whether this is an address of the host, of either kind.
    pub fn is_host(&self, address: IpAddr) -> bool {
        self.addresses.contains(address) || self.relay_addresses.contains(address)
    }

    /// The same rules for a box that lets all pass.
    pub fn passing(&self) -> Self {
        Self {
            actions: self.actions.passing(),
            ..self.clone()
        }
    }
}

/// What tells exit traffic from relay traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassifyBy {
    /// Where it goes: relays are listed.
    #[default]
    RelaySet,
    /// The code point that the host itself, patched to do so, sets on its exit traffic; not 0.
    HostMark(Dscp),
}

/// Whether verdicts are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Mark and steer.
    #[default]
    Enforce,
    /// Classify and count; change and steer nothing.
    Audit,
}

impl ClassifyBy {
    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RelaySet => "relay-set",
            Self::HostMark(_) => "host-mark",
        }
    }
}

impl Mode {
    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// What the operator wants done, from which follows what is done with each rule's frames.
#[derive(Clone, Copy, Debug)]
pub struct Intent {
    /// Act, or only count.
    pub mode: Mode,
    /// The code point that means exit, and nothing else, on the uplink.
    pub mark: Dscp,
    /// Whether the uplink shows the mark.
    pub at_uplink: AtUplink,
    /// Which relay frames go to `incoming`; the others go, unmarked, to `uplink`.
    pub steer: Steer,
}

/// Which relay frames are steered.
///
/// The next hop is known in the untagged network of `incoming`, so no frame with a VLAN tag is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steer {
    /// None: there is no `incoming`.
    #[default]
    Off,
    /// Both IP versions: the next hop is a MAC address, of which no IP version is known.
    Both,
    /// Those of the IP version by whose address the next hop is resolved.
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

/// What is done with a frame, by the rule that it met: worked out once, looked up for each frame.
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
    /// Whatever the frame bears stays.
    Leave,
    /// The frame bears the mark.
    Set,
    /// The frame bears neither the mark nor the one that the host itself sets.
    Clear,
}

impl Actions {
    /// Works out the actions.
    pub fn new(intent: Intent) -> Self {
        Self {
            intent,
            by_rule: Rule::ALL.map(|rule| Action::of(rule.class(), intent)),
        }
    }

    /// What they were worked out from.
    pub const fn intent(&self) -> Intent {
        self.intent
    }

    /// What the exit frames are marked with.
    #[inline]
    pub const fn mark(&self) -> Dscp {
        self.intent.mark
    }

    /// Act, or only count.
    #[inline]
    pub const fn mode(&self) -> Mode {
        self.intent.mode
    }

    /// The actions of a box that lets all pass, because it cannot tell one class from another:
    /// nothing is steered, and nothing leaves marked.
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

/// How a frame leaves, by the rule that it met, its IP version, and the code point that it came
/// with. Looked up for each frame.
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
                Dscp::ALL.map(|bears| rules.dscp(marking, bears))
            }),
        }
    }

    /// Where an untagged frame of this IP version leaves.
    #[inline]
    pub(super) const fn egress(&self, rule: Rule, version: Version) -> Egress {
        match version {
            Version::V4 => self.v4[rule as usize],
            Version::V6 => self.v6[rule as usize],
        }
    }

    /// The code point with which a frame leaves that came with this one.
    #[inline]
    pub(super) const fn dscp(&self, rule: Rule, bears: Dscp) -> Dscp {
        self.dscp[rule as usize][bears.bits() as usize]
    }
}

/// Which protocols from a clearnet address count as exit. Tor exits carry TCP only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExitProtocols {
    /// TCP.
    #[default]
    Tcp,
    /// TCP and UDP.
    TcpUdp,
    /// Every IP protocol.
    All,
}

/// Whether the mark leaves the box by the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtUplink {
    /// Exit frames leave marked.
    #[default]
    Keep,
    /// No frame leaves marked.
    Strip,
}

/// Where the host accepts TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// At this port of each of its addresses.
    Port(u16),
    /// At this address and port only.
    Endpoint(Endpoint),
}

/// All listeners, as they are asked for. The host's own relay has its endpoints in the relay set.
#[derive(Debug)]
pub(super) struct Listeners {
    /// A bit for each port at which there is a listener of any kind: one load answers for
    /// nearly every frame.
    pub(super) any: Box<[u64; 1024]>,
    /// The same for ports that count on every address.
    pub(super) everywhere: Box<[u64; 1024]>,
    /// Those that the operator named with an address.
    pub(super) endpoints: EndpointSet,
}

impl Listeners {
    /// Those that the operator named, and the ports of the host's own relay.
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
            // The settings bound how many there are, and none has port 0.
            endpoints: EndpointSet::new(endpoints).unwrap_or_else(|_| EndpointSet::empty()),
        }
    }

    /// Whether the host accepts connections at this address of its own, and this port.
    #[inline]
    pub(super) fn contains<F: Family>(&self, relays: &EndpointSet, address: F, port: u16) -> bool {
        is_set(&self.any, port)
            && (is_set(&self.everywhere, port) || self.names(relays, address, port))
    }

    /// Apart from its caller: few frames come here, and its registers would be missed by all.
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
        }
    }

    #[test]
    fn the_host_has_addresses_of_either_kind() {
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
        let [here, elsewhere] = [0xc000_020a_u32, 0xc000_020b];
        for (port, at_here, at_elsewhere) in [
            (443, true, true),
            (22, true, false),
            (9001, true, false),
            (444, false, false),
            // As far from 443 as the bits of a word, and as the words.
            (443 - 64, false, false),
            (443 % 64, false, false),
            (0, false, false),
        ] {
            assert_eq!(listeners.contains(&relays, here, port), at_here, "{port}");
            assert_eq!(
                listeners.contains(&relays, elsewhere, port),
                at_elsewhere,
                "{port}"
            );
        }
    }
}
