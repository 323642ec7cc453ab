//! Reads what engine connect needs of the machine: the users and cgroups of tor, and the routes of
//! its connections.

use crate::machine::{self, Machine, Users};
use crate::settings::{Settings, TorHost};
use exitmark_datapath::cgroup_mount;
use exitmark_nic::{LocalNic, NicError, Route, RouteQuery, filters_strictly};
use exitmark_policy::packet::Version;
use exitmark_policy::{Endpoint, EndpointSet, SocketRules};
use exitmark_relays::StateFile;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Destinations for route queries without a relay set: of the ranges for documentation (RFC 5737,
/// RFC 3849), which no route names.
pub(super) const NOWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9001),
    SocketAddr::new(
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        9001,
    ),
];
/// The user ID of packets that the kernel routes by itself.
const ROOT: u32 = 0;

/// The settings of engine connect to check.
#[derive(Clone, Debug)]
pub(crate) struct TorScope {
    host: TorHost,
    sockets: SocketRules,
    /// The state file of the relay set, and further endpoints of relays.
    state: PathBuf,
    extra: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
pub(crate) struct TorFacts {
    /// The mount point of the cgroup2 file system.
    pub(crate) mount: Option<PathBuf>,
    /// The cgroups of `tor.cgroups`, and why one cannot be opened.
    pub(crate) cgroups: Vec<(PathBuf, Option<io::ErrorKind>)>,
    /// The entries of `tor.users`, with the IDs that each matches.
    pub(crate) users: Vec<(String, Vec<u32>)>,
    /// How relay connections are steered; without the index of the NIC.
    pub(crate) sockets: SocketRules,
    /// The name of the NIC `steer.interface`, and whether it exists.
    pub(crate) interface: Option<(String, bool)>,
    /// The routes of each IP version of which relay connections can be steered; an error of netlink.
    pub(crate) routes: Result<Vec<RelayRoutes>, String>,
}

/// The routes of connections of one IP version.
#[derive(Clone, Debug)]
pub(crate) struct RelayRoutes {
    pub(crate) version: Version,
    /// The address of `steer.source`, and the name of the NIC that has it.
    pub(crate) source: Option<(IpAddr, String)>,
    /// The name of the NIC by which relay connections leave; `None` without a route.
    pub(crate) relays: Option<String>,
    /// The same for other connections.
    pub(crate) others: Option<String>,
    /// The source address of relay connections if the kernel drops the answers, because its own
    /// route to a relay from there is by another NIC.
    pub(crate) unanswered: Option<IpAddr>,
}

impl TorScope {
    pub(super) fn by(settings: &Settings) -> Option<Self> {
        Some(Self {
            host: settings.tor.clone()?,
            sockets: settings.rules.sockets,
            state: settings.relays.state.clone(),
            extra: settings.relays.sources.extra.clone(),
        })
    }

    pub(super) fn look(&self) -> TorFacts {
        let host = &self.host;
        let users = host.users.iter().map(|pattern| {
            let mut users = Users::new(std::slice::from_ref(pattern));
            users.look();
            let ids: Vec<u32> = users.ids().iter().copied().collect();
            (pattern.to_string(), ids)
        });
        let users: Vec<_> = users.collect();
        let named = match host.cgroups.is_empty() {
            true => Vec::new(),
            false => machine::cgroups(host).unwrap_or_default(),
        };
        let cgroups = named.into_iter().map(|path| {
            let trouble = File::open(&path).err().map(|error| error.kind());
            (path, trouble)
        });
        let mut machine = Machine::default();
        let read = machine.follow(host);
        let user = users.iter().find_map(|(_, ids)| ids.first().copied());
        let routes = read.and_then(|()| self.routes(&machine, user));
        TorFacts {
            mount: cgroup_mount().ok(),
            cgroups: cgroups.collect(),
            sockets: self.sockets,
            interface: host
                .interface
                .clone()
                .map(|name| (name, machine.interface().is_some())),
            routes: routes.map_err(|error| error.to_string()),
            users,
        }
    }

    /// The routes of connections of this user, of the IP versions that are steered.
    fn routes(&self, machine: &Machine, user: Option<u32>) -> Result<Vec<RelayRoutes>, NicError> {
        // Without this NIC the kernel has no answer, and another finding says why.
        if self.host.interface.is_some() && machine.interface().is_none() {
            return Ok(Vec::new());
        }
        let nics = LocalNic::all()?;
        let has = |nic: &LocalNic, source| nic.networks.iter().any(|net| net.addr() == source);
        let relays = self.relays();
        let mut routes = Vec::new();
        for nowhere in NOWHERE {
            let source = match nowhere {
                SocketAddr::V4(_) => self.sockets.source_v4.map(IpAddr::from),
                SocketAddr::V6(_) => self.sockets.source_v6.map(IpAddr::from),
            };
            let home = source.and_then(|source| nics.iter().find(|nic| has(nic, source)));
            let is_steered =
                source.is_some() || self.sockets.fwmark != 0 || self.host.interface.is_some();
            // The objections to the configuration have an address that is not this machine's.
            if !is_steered || source.is_some() && home.is_none() {
                continue;
            }
            let is_of_version = |relay: &Endpoint| relay.address.is_ipv4() == nowhere.is_ipv4();
            let destination = (relays.iter())
                .filter(|relay| is_of_version(relay) && !machine.has(relay.address))
                .min();
            let other = RouteQuery {
                destination: destination.map_or(nowhere, SocketAddr::from),
                source: None,
                fwmark: 0,
                interface: 0,
                user,
            };
            let relay = RouteQuery {
                source,
                fwmark: self.sockets.fwmark,
                interface: machine.interface().unwrap_or(0),
                ..other
            };
            let source = source.zip(home.map(|nic| nic.name.clone()));
            routes.push(RelayRoutes::query(other, relay, source)?);
        }
        Ok(routes)
    }

    /// The relay set in force, or the extra endpoints alone. Never shown.
    fn relays(&self) -> EndpointSet {
        let saved = StateFile::new(self.state.clone()).load().ok().flatten();
        saved
            .unwrap_or_default()
            .endpoints(&self.extra)
            .unwrap_or_else(|_| EndpointSet::empty())
    }
}

impl RelayRoutes {
    fn query(
        other: RouteQuery,
        relay: RouteQuery,
        source: Option<(IpAddr, String)>,
    ) -> Result<Self, NicError> {
        let (others, relays) = (other.route()?, relay.route()?);
        let unanswered = match &relays {
            Some(route) if drops_answers(other, route)? => route.source,
            _ => None,
        };
        Ok(Self {
            version: match other.destination {
                SocketAddr::V4(_) => Version::V4,
                SocketAddr::V6(_) => Version::V6,
            },
            source,
            relays: relays.map(|route| route.nic),
            others: others.map(|route| route.nic),
            unanswered,
        })
    }
}

/// Whether answers that arrive on this route of a connection are dropped. The kernel checks them
/// without the fwmark and the NIC of the socket.
fn drops_answers(connection: RouteQuery, route: &Route) -> Result<bool, NicError> {
    if !connection.destination.is_ipv4() || !filters_strictly(&route.nic) {
        return Ok(false);
    }
    let back = RouteQuery {
        source: route.source,
        user: Some(ROOT),
        ..connection
    };
    Ok(back.route()?.is_none_or(|back| back.nic != route.nic))
}
