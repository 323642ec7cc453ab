//! The addresses of `steer.source` of a box: on which of its NICs they are, and which TCP sockets of
//! the box use them.

use exitmark_nic::{LocalNic, Nic, NicError};
use exitmark_policy::packet::VlanTags;
use exitmark_policy::{Rules, Translation};
use ipnet::IpNet;
use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};
use std::net::{IpAddr, SocketAddr};

/// The addresses and prefixes of `steer.source` of a group, and the tags of the network of its next
/// hops, to which they belong.
#[derive(Clone, Debug)]
pub(crate) struct SourceNetwork {
    vlan: VlanTags,
    pub(crate) sources: Vec<IpNet>,
}

impl SourceNetwork {
    /// Of each group with a `steer.source`.
    pub(crate) fn all(rules: &Rules) -> Vec<Self> {
        let groups = rules.groups().iter().filter(|group| group.translates());
        let network = groups.map(|group| Self {
            vlan: group.path.vlan,
            sources: (group.translations.iter())
                .map(Translation::incoming)
                .collect(),
        });
        network.collect()
    }

    /// The names of the box's own interfaces on this network: each NIC `incoming` itself, or its VLAN
    /// interface with the tags.
    ///
    /// # Errors
    /// [`NicError::NoVlan`] with the commands that create the interface; [`NicError::Netlink`].
    pub(crate) fn interfaces(&self, incoming: &[&Nic]) -> Result<Vec<String>, NicError> {
        let tags: Vec<u16> = self.vlan.ids().collect();
        let interface = |nic: &&Nic| match tags.is_empty() {
            true => Ok(nic.name.clone()),
            false => Ok(nic.vlan_interface(&tags)?.name),
        };
        incoming.iter().map(interface).collect()
    }
}

/// An address of `steer.source` that the box does not have where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    /// The interface on which it belongs.
    pub(crate) interface: String,
    /// Another one that has it.
    pub(crate) home: Option<String>,
}

impl Misplaced {
    /// Whether the address is on none of its interfaces. `false` for a prefix: the router may send its
    /// traffic to the box without resolving each address.
    pub(crate) fn of(source: IpNet, interfaces: &[String], all: &[LocalNic]) -> Option<Self> {
        let address = single(source)?;
        let has = |nic: &&LocalNic| nic.networks.iter().any(|own| own.addr() == address);
        let homes: Vec<_> = all.iter().filter(has).map(|nic| &nic.name).collect();
        match homes.iter().any(|home| interfaces.contains(home)) {
            true => None,
            false => Some(Self {
                interface: interfaces.first()?.clone(),
                home: homes.first().copied().cloned(),
            }),
        }
    }

    /// Whether no router can resolve the address. With arp_ignore = 0 the kernel answers ARP for the
    /// addresses of all NICs, neighbour discovery for those of the same NIC only.
    pub(crate) const fn is_unreachable(&self, source: IpNet) -> bool {
        self.home.is_none() || matches!(source, IpNet::V6(_))
    }
}

/// The address of a prefix of one.
pub(crate) fn single(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// The sockets of these addresses, as a filter of ss(8).
pub(crate) fn ss_filter(net: IpNet) -> String {
    match single(net) {
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        Some(IpAddr::V4(address)) => address.to_string(),
        None => net.to_string(),
    }
}

/// A TCP socket of the box.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpSocket {
    pub(crate) local: SocketAddr,
    pub(crate) listens: bool,
}

impl TcpSocket {
    /// All sockets of this network namespace (proc_pid_net(5)).
    pub(crate) fn all() -> procfs::ProcResult<Vec<Self>> {
        let v6 = match tcp6() {
            // Without IPv6 in the kernel.
            Err(procfs::ProcError::NotFound(_)) => Vec::new(),
            read => read?,
        };
        // A connection that is closed on this side waits for late segments only.
        let is_over =
            |entry: &TcpNetEntry| matches!(entry.state, TcpState::TimeWait | TcpState::Close);
        let socket = |entry: TcpNetEntry| Self {
            local: canonical(entry.local_address),
            listens: entry.state == TcpState::Listen,
        };
        let entries = tcp()?.into_iter().chain(v6);
        Ok(entries.filter(|one| !is_over(one)).map(socket).collect())
    }
}

/// The IPv4 address of a socket of both IP versions is mapped (RFC 4291, section 2.5.5.2).
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The first endpoint at which a program of the box listens, at an address of `steer.source` and not
/// at all addresses.
pub(crate) fn listener(rules: &Rules, sockets: &[TcpSocket]) -> Option<SocketAddr> {
    let networks = SourceNetwork::all(rules);
    let is_source = |address: IpAddr| {
        let mut sources = networks.iter().flat_map(|network| &network.sources);
        sources.any(|source| source.contains(&address))
    };
    let mut listening = sockets.iter().filter(|socket| socket.listens);
    listening
        .find(|socket| is_source(socket.local.ip()))
        .map(|socket| socket.local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::packet::Dscp;
    use exitmark_policy::{
        Actions, AtUplink, ClassifyBy, Group, Intent, Mode, SocketRules, Steer, SteeredPath,
    };

    fn nic(name: &str, networks: &[&str]) -> LocalNic {
        LocalNic {
            name: name.to_owned(),
            alt_names: Vec::new(),
            mac: None,
            networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    const V4: &str = "203.0.113.10/32";
    const V6: &str = "2001:db8:3::10/128";

    #[test]
    fn an_address_belongs_on_the_interface_of_its_network() {
        let of = |source: &str, interfaces: &[&str], all: &[LocalNic]| {
            let interfaces: Vec<_> = interfaces.iter().map(|&name| name.to_owned()).collect();
            let source: IpNet = source.parse().unwrap();
            let found = Misplaced::of(source, &interfaces, all)?;
            let unreachable = found.is_unreachable(source);
            Some((found.interface, found.home, unreachable))
        };
        let own = ["203.0.113.10/24", "2001:db8:3::10/64"];
        let on = |name: &str| {
            let nics = ["lo", "incoming0", "incoming0.30", "incoming1"];
            nics.map(|one| nic(one, if one == name { &own } else { &[] }))
        };
        let wrong = |interface: &str, home: Option<&str>, is_unreachable| {
            Some((
                interface.to_owned(),
                home.map(str::to_owned),
                is_unreachable,
            ))
        };
        for (source, is_unreachable) in [(V4, false), (V6, true)] {
            assert_eq!(of(source, &["incoming0"], &on("incoming0")), None);
            let both = ["incoming0", "incoming1"];
            assert_eq!(of(source, &both, &on("incoming1")), None);
            assert_eq!(of(source, &["incoming0.30"], &on("incoming0.30")), None);
            for (belongs, home) in [("incoming0", "lo"), ("incoming0.30", "incoming0")] {
                let expected = wrong(belongs, Some(home), is_unreachable);
                assert_eq!(of(source, &[belongs], &on(home)), expected);
            }
            let nowhere = wrong("incoming0", None, true);
            assert_eq!(of(source, &["incoming0"], &on("")), nowhere);
        }
        // The router routes a prefix to the box.
        assert_eq!(of("203.0.113.0/28", &["incoming0"], &on("lo")), None);
    }

    fn rules() -> Rules {
        let actions = Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer: Steer::Both,
        });
        let translation = |host: &str, incoming: &str| {
            Translation::new(host.parse().unwrap(), incoming.parse().unwrap()).unwrap()
        };
        let group = |name: &str, vlan, translations: Vec<Translation>| Group {
            path: SteeredPath {
                vlan,
                ..SteeredPath::default()
            },
            translations: translations.into(),
            ..Group::new(name, actions.clone())
        };
        let groups = vec![
            group("kept", VlanTags::one(10), Vec::new()),
            group(
                "tagged",
                VlanTags::one(30),
                vec![translation("192.0.2.10/32", V4)],
            ),
            group(
                "untagged",
                VlanTags::UNTAGGED,
                vec![translation("2001:db8:1::/64", "2001:db8:3::/64")],
            ),
        ];
        Rules::new(ClassifyBy::RelaySet, groups, SocketRules::default())
    }

    #[test]
    fn each_group_has_the_network_of_its_next_hops() {
        let networks = SourceNetwork::all(&rules());
        let networks = networks.iter();
        let found: Vec<_> = networks
            .map(|network| (network.vlan, network.sources[0].to_string()))
            .collect();
        let expected = [
            (VlanTags::one(30), V4.to_owned()),
            (VlanTags::UNTAGGED, "2001:db8:3::/64".to_owned()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_listener_is_found_at_the_address_and_not_at_all_addresses() {
        let found = |local: &str, listens| {
            let local = canonical(local.parse().unwrap());
            let found = listener(&rules(), &[TcpSocket { local, listens }])?;
            Some(found.to_string())
        };
        for (local, expected) in [
            ("203.0.113.10:22", "203.0.113.10:22"),
            ("[::ffff:203.0.113.10]:22", "203.0.113.10:22"),
            ("[2001:db8:3::77]:22", "[2001:db8:3::77]:22"),
        ] {
            assert_eq!(found(local, true).as_deref(), Some(expected));
            assert_eq!(found(local, false), None, "a connection");
        }
        for other in ["0.0.0.0:22", "[::]:22", "203.0.113.11:22", "192.0.2.10:22"] {
            assert_eq!(found(other, true), None, "{other}");
        }
    }
}
