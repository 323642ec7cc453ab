//! The part of a scenario that each group of hosts has for itself.

use super::scenario::{
    Fields, list, optional, read, read_list, read_mark, read_optional, read_variant, single,
    some_address, some_mac, some_mark, some_number, some_port, some_prefixes, some_v4, some_v6,
    wrong,
};
use crate::{LabError, Random};
use exitmark_policy::packet::{Dscp, MacAddr, Version, VlanTags};
use exitmark_policy::{
    Actions, AtUplink, Endpoint, ExitProtocols, Group, Intent, Listener, MAX_LISTENERS,
    MAX_PREFIXES, MAX_RESOLVERS, Mode, PrefixSet, Steer, SteeredPath, Translation,
};
use ipnet::IpNet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A group of hosts.
#[derive(Clone, Debug)]
pub struct GroupScenario {
    /// The box's mark on exit traffic.
    pub mark: Dscp,
    /// Whether exit frames leave by the uplink with the mark.
    pub at_uplink: AtUplink,
    /// Which relay frames go to `incoming`.
    pub steer: Steer,
    /// The protocols that count as exit traffic.
    pub exit_protocols: ExitProtocols,
    /// The hosts' clearnet addresses.
    pub addresses: Vec<IpNet>,
    /// The hosts' addresses that carry Tor traffic only.
    pub relay_addresses: Vec<IpNet>,
    /// The prefixes of the hosts' resolvers.
    pub resolvers: Vec<IpNet>,
    /// The prefixes of exempt destinations.
    pub exempt: Vec<IpNet>,
    /// The ports on which the hosts accept connections.
    pub listeners: Vec<Listener>,
    /// The hosts' MAC address, if configured.
    pub host_mac: Option<MacAddr>,
    /// The IDs of the tags of the hosts' frames, the outer one first.
    pub vlan: Vec<u16>,
    /// The numbers of the next hops, for IPv4 and IPv6.
    pub next_hops: [u8; 2],
    /// The priority of the tags of steered frames.
    pub priority: Option<u8>,
    /// The IDs of the tags of steered frames.
    pub steer_vlan: Vec<u16>,
    /// Prefixes of the hosts, and those in their place in steered frames; of the same length.
    pub translations: Vec<(IpNet, IpNet)>,
}

/// IDs that frames have, too.
const IDS: [u16; 3] = [10, 30, 200];

fn some_vlan(random: &mut Random) -> Vec<u16> {
    let count = random.below(3);
    (0..count).map(|_| random.one_of(IDS)).collect()
}

const fn tags(ids: &[u16]) -> VlanTags {
    match ids {
        [] => VlanTags::UNTAGGED,
        [id] => VlanTags::one(*id),
        [outer, inner, ..] => VlanTags::pair(*outer, *inner),
    }
}

/// Translations of most of these prefixes.
fn some_translations(random: &mut Random, hosts: &[IpNet]) -> Vec<(IpNet, IpNet)> {
    let mut translations = Vec::new();
    for host in hosts {
        let address = match host {
            IpNet::V4(_) => Ipv4Addr::from(some_v4(random)).into(),
            IpNet::V6(_) => Ipv6Addr::from(some_v6(random)).into(),
        };
        if random.percent(80)
            && let Ok(incoming) = IpNet::new(address, host.prefix_len())
        {
            translations.push((*host, incoming.trunc()));
        }
    }
    translations
}

impl GroupScenario {
    /// A random group, one of `groups`.
    pub(super) fn some(random: &mut Random, groups: usize, vlans: bool, next_hops: usize) -> Self {
        // The settings limit the sum of all groups and both kinds of address.
        let mut addresses = some_prefixes(random, MAX_PREFIXES / 2 / groups);
        if random.percent(90) {
            addresses.push(single(Ipv4Addr::from(some_v4(random))));
            addresses.push(single(Ipv6Addr::from(some_v6(random))));
        }
        let most = (MAX_PREFIXES / 2 / groups).saturating_sub(2);
        let relay_addresses = some_prefixes(random, most);
        let mut hosts = addresses.clone();
        hosts.extend(&relay_addresses);
        let listeners = (0..some_number(random, MAX_LISTENERS / groups))
            .map(|_| {
                let port = some_port(random);
                let address = some_address(random);
                let near = random.pick(&hosts).map_or(address, |net| net.addr());
                match random.percent(30) {
                    true => Listener::Port(port),
                    false => Listener::Endpoint(Endpoint::new(near, port)),
                }
            })
            .collect();
        let translations = match random.percent(35) {
            true => some_translations(random, &hosts),
            false => Vec::new(),
        };
        let mut hop = || u8::try_from(random.below(next_hops + 1)).unwrap_or(0);
        let next_hops = [hop(), hop()];
        Self {
            mark: some_mark(random),
            at_uplink: match random.percent(15) {
                true => AtUplink::Strip,
                false => AtUplink::Keep,
            },
            steer: match random.below(8) {
                0 | 1 => Steer::Off,
                2 => Steer::Only(Version::V4),
                3 => Steer::Only(Version::V6),
                _ => Steer::Both,
            },
            exit_protocols: match random.below(4) {
                0 => ExitProtocols::TcpUdp,
                1 => ExitProtocols::All,
                _ => ExitProtocols::Tcp,
            },
            addresses,
            relay_addresses,
            resolvers: some_prefixes(random, MAX_RESOLVERS / groups),
            exempt: some_prefixes(random, MAX_PREFIXES / groups),
            listeners,
            host_mac: random.percent(30).then(|| some_mac(random, 9)),
            next_hops,
            vlan: match vlans {
                true => some_vlan(random),
                false => Vec::new(),
            },
            priority: (vlans && random.percent(30)).then(|| random.byte() & 7),
            steer_vlan: match vlans {
                true => some_vlan(random),
                false => Vec::new(),
            },
            translations,
        }
    }

    /// Leaves the group one prefix of each IP version, and nothing that only some operators need.
    pub(super) fn simplify(&mut self, random: &mut Random) {
        let bits = u8::try_from(random.below(7)).unwrap_or(0);
        let nets = [
            IpNet::new(Ipv4Addr::from(some_v4(random)).into(), 32 - bits),
            IpNet::new(Ipv6Addr::from(some_v6(random)).into(), 128 - bits),
        ];
        self.addresses = nets.into_iter().flatten().map(|net| net.trunc()).collect();
        self.relay_addresses.clear();
        self.exempt.clear();
        self.translations.clear();
        self.vlan.clear();
        self.steer_vlan.clear();
    }

    /// The prefixes of both kinds.
    pub fn hosts(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.iter().chain(&self.relay_addresses).copied()
    }

    /// The group in the form that the engines use.
    pub(super) fn group(&self, mode: Mode) -> Group {
        let set = |nets: &[IpNet]| PrefixSet::new(nets.iter().copied());
        let actions = Actions::new(Intent {
            mode,
            mark: self.mark,
            at_uplink: self.at_uplink,
            steer: self.steer,
        });
        Group {
            addresses: set(&self.addresses),
            relay_addresses: set(&self.relay_addresses),
            listeners: self.listeners.iter().copied().collect(),
            resolvers: set(&self.resolvers),
            exempt: set(&self.exempt),
            exit_protocols: self.exit_protocols,
            mac: self.host_mac,
            vlan: tags(&self.vlan),
            path: SteeredPath {
                next_hops: self.next_hops,
                vlan: tags(&self.steer_vlan),
                priority: self.priority,
            },
            translations: (self.translations.iter())
                .filter_map(|&(host, incoming)| Translation::new(host, incoming))
                .collect(),
            ..Group::new("group", actions)
        }
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, LabError> {
        let mut next = |key: &str| fields.next(key);
        let mut group = Self {
            mark: read_mark(next("mark")?)?,
            at_uplink: read_variant(next("at_uplink")?, &[AtUplink::Keep, AtUplink::Strip])?,
            steer: read_variant(next("steer")?, &STEERS)?,
            exit_protocols: read_variant(next("protocols")?, &PROTOCOLS)?,
            addresses: read_list(next("addresses")?, read)?,
            relay_addresses: read_list(next("relay_addresses")?, read)?,
            resolvers: read_list(next("resolvers")?, read)?,
            exempt: read_list(next("exempt")?, read)?,
            listeners: read_list(next("listeners")?, read_listener)?,
            host_mac: read_optional(next("host_mac")?, read)?,
            vlan: read_ids(next("vlan")?)?,
            next_hops: [0; 2],
            priority: None,
            steer_vlan: Vec::new(),
            translations: Vec::new(),
        };
        let path = next("path")?;
        let [v4, v6, priority, vlan] = path.split(',').collect::<Vec<_>>()[..] else {
            return Err(wrong(path));
        };
        group.next_hops = [read(v4)?, read(v6)?];
        group.priority = read_optional(priority, read)?;
        group.steer_vlan = read_ids(vlan)?;
        if let Some(translations) = fields.optional("translations") {
            group.translations = read_list(translations, read_translation)?;
        }
        Ok(group)
    }
}

impl fmt::Display for GroupScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listeners: Vec<_> = self
            .listeners
            .iter()
            .map(|listener| match listener {
                Listener::Port(port) => port.to_string(),
                Listener::Endpoint(endpoint) => endpoint.to_string(),
            })
            .collect();
        let ids = |ids: &[u16]| ids.iter().map(u16::to_string).collect::<Vec<_>>().join("+");
        write!(
            f,
            "mark={} at_uplink={:?} steer={:?} protocols={:?} addresses={} relay_addresses={} \
             resolvers={} exempt={} listeners={} host_mac={} vlan={} path={},{},{},{}",
            self.mark.bits(),
            self.at_uplink,
            self.steer,
            self.exit_protocols,
            list(&self.addresses),
            list(&self.relay_addresses),
            list(&self.resolvers),
            list(&self.exempt),
            listeners.join(","),
            optional(self.host_mac),
            ids(&self.vlan),
            self.next_hops[0],
            self.next_hops[1],
            optional(self.priority),
            ids(&self.steer_vlan),
        )?;
        let pair = |(host, incoming): &(IpNet, IpNet)| format!("{host}>{incoming}");
        let pairs: Vec<_> = self.translations.iter().map(pair).collect();
        match pairs.is_empty() {
            true => Ok(()),
            false => write!(f, " translations={}", pairs.join(",")),
        }
    }
}

const PROTOCOLS: [ExitProtocols; 3] = [
    ExitProtocols::Tcp,
    ExitProtocols::TcpUdp,
    ExitProtocols::All,
];
const STEERS: [Steer; 4] = [
    Steer::Off,
    Steer::Both,
    Steer::Only(Version::V4),
    Steer::Only(Version::V6),
];

fn read_listener(text: &str) -> Result<Listener, LabError> {
    text.parse()
        .map(Listener::Port)
        .or_else(|_| read(text).map(Listener::Endpoint))
}

fn read_translation(text: &str) -> Result<(IpNet, IpNet), LabError> {
    let (host, incoming) = text.split_once('>').ok_or_else(|| wrong(text))?;
    Ok((read(host)?, read(incoming)?))
}

fn read_ids(text: &str) -> Result<Vec<u16>, LabError> {
    let ids = text.split('+').filter(|id| !id.is_empty());
    ids.map(read).collect()
}
