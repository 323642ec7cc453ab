//! The operator's rules, compiled to tables for the packet path.

use super::groups::{ByFamily, DscpSet};
use super::translation::Translations;
use super::{
    Class, Egress, Endpoint, EndpointSet, Family, Group, GroupNumber, MAX_GROUPS, Owner, Rule,
};
use crate::packet::{Dscp, Version};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most listeners with an address; limited by the room in the XDP program's map.
pub const MAX_LISTENERS: usize = 1024;
/// The most resolvers of one family; limited by the room in the XDP program's map.
pub const MAX_RESOLVERS: usize = 256;

/// The operator's configuration of the verdicts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How exit traffic is distinguished from relay traffic.
    pub classify_by: ClassifyBy,
    /// How engine `connect` changes sockets; the other engines do not use it.
    pub sockets: SocketRules,
    groups: Box<[Group]>,
    owners: ByFamily,
    translations: Translations,
    clears: DscpSet,
    tap: Tap,
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
    /// Rules of these groups, of which [`MAX_GROUPS`] are used. Without a group, every frame is
    /// foreign. If groups share an address, it belongs to the group whose prefix begins first.
    pub fn new(classify_by: ClassifyBy, mut groups: Vec<Group>, sockets: SocketRules) -> Self {
        groups.truncate(MAX_GROUPS);
        Self {
            classify_by,
            sockets,
            owners: ByFamily::new(&groups),
            translations: Translations::new(&groups),
            clears: DscpSet::of_marks(classify_by, &groups),
            groups: groups.into_boxed_slice(),
            tap: Tap::Off,
        }
    }

    /// The same rules, with these exit frames copied to the tap. Without the relay set, answers
    /// cannot be recognised: then only frames of the hosts are copied.
    #[must_use]
    pub fn tapping(self, tap: Tap) -> Self {
        let tap = match (tap, self.classify_by) {
            (Tap::Both, ClassifyBy::HostMark(_)) => Tap::Out,
            (tap, _) => tap,
        };
        Self { tap, ..self }
    }

    /// Which exit frames are copied to the tap.
    #[inline]
    pub const fn tap(&self) -> Tap {
        self.tap
    }

    /// The groups of hosts, at most [`MAX_GROUPS`].
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group with this number, if there is one.
    pub fn group(&self, number: GroupNumber) -> Option<&Group> {
        self.groups.get(usize::from(number.to_u8()))
    }

    /// The group that an address belongs to, and the address' kind; `None` for a foreign address.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        match address {
            IpAddr::V4(address) => self.owner_of(u32::from(address)),
            IpAddr::V6(address) => self.owner_of(u128::from(address)),
        }
    }

    /// As [`Rules::owner`], for an address whose family is known at compile time.
    #[inline(always)]
    pub(super) fn owner_of<F: Family>(&self, address: F) -> Option<Owner> {
        F::owners(&self.owners).find(address)
    }

    pub(super) const fn owners(&self) -> &ByFamily {
        &self.owners
    }

    pub(super) const fn translations(&self) -> &Translations {
        &self.translations
    }

    /// The group whose steered frames have this address in place of a host's.
    pub fn translated(&self, address: IpAddr) -> Option<GroupNumber> {
        let arrivals = &self.translations.arrivals;
        match address {
            IpAddr::V4(address) => Some(arrivals.v4.find(u32::from(address))?.group),
            IpAddr::V6(address) => Some(arrivals.v6.find(u128::from(address))?.group),
        }
    }

    /// The code points that mean something on the wire: each group's mark, and the host's mark.
    pub(super) const fn clears(&self) -> DscpSet {
        self.clears
    }

    /// The DSCP of a frame of a group, or of none, on departure, given the one on arrival. Exit
    /// frames get the mark; other frames that carry a group's mark get 0, so that on the wire a
    /// mark means exit only. A host mark, if traffic is classified by it, is no longer needed and
    /// is cleared like a mark, on foreign frames too.
    fn dscp(&self, mark: Dscp, marking: Marking, carried: Dscp) -> Dscp {
        match marking {
            Marking::Set => mark,
            Marking::Clear if self.clears.contains(carried) => Dscp::DEFAULT,
            Marking::Clear | Marking::Leave => carried,
        }
    }

    /// Whether this is an address of a host, of either kind.
    pub fn is_host(&self, address: IpAddr) -> bool {
        self.owner(address).is_some()
    }

    /// Whether verdicts are applied: the same for all groups.
    pub fn mode(&self) -> Mode {
        self.groups
            .first()
            .map_or_else(Mode::default, |group| group.actions.mode())
    }

    /// The same rules with [`Actions::passing`], and without copies to the tap.
    pub fn passing(&self) -> Self {
        let groups = self.groups.iter().map(Group::passing).collect();
        Self::new(self.classify_by, groups, self.sockets)
    }

    /// The same rules with further exempt prefixes in every group.
    #[must_use]
    pub fn exempting(&self, prefixes: &[IpNet]) -> Self {
        let groups = self.groups.iter().map(|group| Group {
            exempt: group.exempt.with(prefixes.iter().copied()),
            ..group.clone()
        });
        Self::new(self.classify_by, groups.collect(), self.sockets).tapping(self.tap)
    }
}

/// Which exit frames are copied to the tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tap {
    /// None.
    #[default]
    Off,
    /// Those of the hosts.
    Out,
    /// Those of the hosts, and the answers to them.
    Both,
}

impl Tap {
    /// Whether exit frames of the hosts are copied.
    pub const fn copies_out(self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Whether answers to exit frames are copied.
    pub const fn copies_answers(self) -> bool {
        matches!(self, Self::Both)
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

/// Which relay frames are steered: those of the IP versions that have a next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steer {
    /// No frames: no NIC is `incoming`.
    #[default]
    Off,
    /// Both IP versions: each has a next hop, or the next hop is configured as a MAC address.
    Both,
    /// Those of one IP version: only that one has a next hop.
    Only(Version),
}

impl Steer {
    /// Steers the IP versions for which this returns true.
    pub fn of(routes: impl Fn(Version) -> bool) -> Self {
        match [Version::V4, Version::V6].map(routes) {
            [true, true] => Self::Both,
            [true, false] => Self::Only(Version::V4),
            [false, true] => Self::Only(Version::V6),
            [false, false] => Self::Off,
        }
    }

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

    /// The actions on frames of no group: nothing is steered or marked.
    pub(super) fn of_no_group(mode: Mode) -> Self {
        Self::new(Intent {
            mode,
            mark: Dscp::DEFAULT,
            at_uplink: AtUplink::Strip,
            steer: Steer::Off,
        })
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
    /// For the frames of a group, or with `None` for frames of no group.
    pub(super) fn new(rules: &Rules, group: Option<&Group>) -> Self {
        let actions = match group {
            Some(group) => group.actions.clone(),
            None => Actions::of_no_group(rules.mode()),
        };
        let steer = actions.intent.steer;
        let egress = |version| {
            Rule::ALL.map(|rule| match actions.of(rule).egress {
                Egress::Incoming if !steer.routes(version) => Egress::Unrouted,
                egress => egress,
            })
        };
        Self {
            v4: egress(Version::V4),
            v6: egress(Version::V6),
            dscp: Rule::ALL.map(|rule| {
                let marking = actions.of(rule).marking;
                Dscp::ALL.map(|carried| rules.dscp(actions.mark(), marking, carried))
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

/// The listeners of all groups, for fast look-up. The endpoints of the hosts' own relays are in the
/// relay set.
#[derive(Debug)]
pub(super) struct Listeners {
    /// One bit per port that has any listener: one load suffices for nearly every frame.
    pub(super) any: Box<[u64; 1024]>,
    /// One bit per port that has a listener on every address of every group.
    pub(super) everywhere: Box<[u64; 1024]>,
    /// The configured listeners with an address; and as the endpoint of [`GroupNumber::as_address`],
    /// the ports on which all addresses of one group listen.
    pub(super) endpoints: EndpointSet,
}

impl Listeners {
    /// The configured listeners, and the ports of the hosts' own relays.
    pub(super) fn new(groups: &[Group], own_ports: impl IntoIterator<Item = u16>) -> Self {
        let mut everywhere = Box::new([u64::MAX; 1024]);
        let mut endpoints = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            let mut of_group = [0; 1024];
            for listener in &group.listeners {
                match listener {
                    Listener::Port(port) => set(&mut of_group, *port),
                    Listener::Endpoint(endpoint) => endpoints.push(*endpoint),
                }
            }
            for (all, here) in everywhere.iter_mut().zip(of_group) {
                *all &= here;
            }
            let ports = (1..=u16::MAX).filter(|&port| groups.len() > 1 && is_set(&of_group, port));
            let address = GroupNumber::of(number).as_address();
            endpoints.extend(ports.map(|port| Endpoint::new(address.into(), port)));
        }
        if groups.is_empty() {
            everywhere.fill(0);
        }
        endpoints.retain(|endpoint| !is_set(&everywhere, endpoint.port));
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

    /// Whether something listens on a port, at an address of a host.
    #[inline(always)]
    pub(super) fn may_have(&self, port: u16) -> bool {
        is_set(&self.any, port)
    }

    /// Whether a host of this group accepts connections at this address of its own, and port.
    #[inline]
    pub(super) fn contains<F: Family>(
        &self,
        relays: &EndpointSet,
        group: GroupNumber,
        address: F,
        port: u16,
    ) -> bool {
        is_set(&self.any, port)
            && (is_set(&self.everywhere, port) || self.names(relays, group, address, port))
    }

    /// A separate function: few frames need it, and inlined it would cost every frame registers.
    #[inline(never)]
    fn names<F: Family>(
        &self,
        relays: &EndpointSet,
        group: GroupNumber,
        address: F,
        port: u16,
    ) -> bool {
        self.endpoints.lists(u32::from(group.as_address()), port)
            || self.endpoints.lists(address, port)
            || relays.lists(address, port)
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
    use crate::PrefixSet;

    const ENFORCED: Intent = Intent {
        mode: Mode::Enforce,
        mark: Dscp::AF11,
        at_uplink: AtUplink::Keep,
        steer: Steer::Both,
    };

    fn rules(intent: Intent) -> Rules {
        let net = |text: &str| PrefixSet::new([text.parse().unwrap()]);
        let host = Group {
            addresses: net("192.0.2.10/32"),
            relay_addresses: net("2001:db8::10/128"),
            ..Group::new("host", Actions::new(intent))
        };
        Rules::new(ClassifyBy::RelaySet, vec![host], SocketRules::default())
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
            assert_eq!(passing.mode(), mode);
            let passing = &passing.groups()[0];
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
        let rules = rules(ENFORCED);
        let active = &rules.groups()[0].actions;
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
        let group = |listeners: &[Listener]| Group {
            listeners: listeners.into(),
            ..Group::new("host", Actions::new(ENFORCED))
        };
        let here = Listener::Endpoint("192.0.2.10:22".parse().unwrap());
        let relays = EndpointSet::new(["192.0.2.10:9001".parse().unwrap()]).unwrap();
        let one = group(&[Listener::Port(443), here]);
        let other = group(&[Listener::Port(443), Listener::Port(80)]);
        let of_one = Listeners::new(std::slice::from_ref(&one), [9001]);
        let of_both = Listeners::new(&[one, other], [9001]);
        let [first, second] = [0, 1].map(GroupNumber::of);
        let [here, elsewhere] = [0xc000_020a_u32, 0xc000_020b];
        for (port, at_here, at_elsewhere, in_second) in [
            (443, true, true, true),
            (22, true, false, false),
            (9001, true, false, false),
            (80, false, false, true),
            (444, false, false, false),
            // The same bit in two other words.
            (443 - 64, false, false, false),
            (443 % 64, false, false, false),
            (0, false, false, false),
        ] {
            for listeners in [&of_one, &of_both] {
                let contains = |address| listeners.contains(&relays, first, address, port);
                assert_eq!(contains(here), at_here, "{port}");
                assert_eq!(contains(elsewhere), at_elsewhere, "{port}");
            }
            let contains = of_both.contains(&relays, second, elsewhere, port);
            assert_eq!(contains, in_second, "{port}");
        }
        assert!(of_one.endpoints.len() == 1 && of_both.endpoints.len() == 2);
    }
}
