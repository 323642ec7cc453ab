//! Findings on the addresses of `steer.source` on a box. They are for translated traffic alone: a
//! listed relay's answers to them reach the hosts, whichever socket they are meant for.

use super::Finding;
use super::tor_facts::NOWHERE;
use crate::settings::{Incoming, Settings};
use exitmark_nic::{LocalNic, Nic, NicError, RouteQuery};
use exitmark_policy::Translation;
use exitmark_policy::packet::MacAddr;
use ipnet::IpNet;
use procfs::net::{TcpNetEntry, TcpState, tcp, tcp6};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The addresses to check.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceScope {
    /// Addresses or prefixes in place of the hosts'.
    networks: BTreeSet<IpNet>,
    /// The `incoming` of each wire, by whose network they are reached.
    incoming: Vec<Incoming>,
}

/// What the machine knows of an address or prefix of `steer.source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceFacts {
    pub(super) network: IpNet,
    /// Another NIC that has the address, and the NIC that should have it.
    pub(super) misplaced: Option<(String, String)>,
    /// The MAC address of another machine that uses the address, from the neighbour table.
    pub(super) other_user: Option<MacAddr>,
    /// Whether the box's own connections to the internet leave from it.
    pub(super) is_preferred: bool,
    /// The ports at which programs of the box listen there.
    pub(super) listeners: BTreeSet<u16>,
    /// The number of open TCP connections of the box from or to it.
    pub(super) connections: usize,
}

/// A TCP socket of the box.
struct Socket {
    local: SocketAddr,
    listens: bool,
}

impl SourceScope {
    /// The addresses of all groups.
    pub(super) fn by(settings: &Settings) -> Self {
        let groups = settings.rules.groups().iter();
        let translations = groups.flat_map(|group| &group.translations);
        Self {
            networks: translations.map(Translation::incoming).collect(),
            incoming: settings.all_incoming().cloned().collect(),
        }
    }

    /// Reads what the machine knows of each.
    pub(super) fn look(&self) -> Result<Vec<SourceFacts>, String> {
        if self.networks.is_empty() {
            return Ok(Vec::new());
        }
        let all = LocalNic::all().map_err(|error| error.to_string())?;
        let ports: Vec<_> = self.incoming.iter().flat_map(nics_of).collect();
        let sockets = sockets().map_err(|error| format!("its sockets cannot be read: {error}"))?;
        let look = |network: &IpNet| {
            let here = |socket: &&Socket| network.contains(&socket.local.ip());
            let here = sockets.iter().filter(here);
            let (listening, connected): (Vec<_>, Vec<_>) = here.partition(|socket| socket.listens);
            Ok(SourceFacts {
                network: *network,
                misplaced: misplaced(network, &all, &ports),
                other_user: other_user(network, &ports)?,
                is_preferred: is_preferred(network)?,
                listeners: listening.iter().map(|one| one.local.port()).collect(),
                connections: connected.len(),
            })
        };
        let looked: Result<_, NicError> = self.networks.iter().map(look).collect();
        looked.map_err(|error| error.to_string())
    }
}

/// The NIC, and the box's interfaces of the VLANs of its next hops. Other findings report those that
/// are missing.
fn nics_of(incoming: &Incoming) -> Vec<Nic> {
    let Ok(nic) = Nic::look(&incoming.interface) else {
        return Vec::new();
    };
    let tags = incoming
        .next_hops
        .iter()
        .map(|hop| hop.vlan.ids().collect());
    let tags = tags.filter(|tags: &Vec<u16>| !tags.is_empty());
    let tagged = tags.filter_map(|tags| Nic::look(&nic.vlan_interface(&tags).ok()?.name).ok());
    let tagged: Vec<_> = tagged.collect();
    [vec![nic], tagged].concat()
}

/// The NIC that has this address, and the one that should, unless one of these has it.
fn misplaced(network: &IpNet, all: &[LocalNic], ports: &[Nic]) -> Option<(String, String)> {
    let has = |nic: &&LocalNic| nic.networks.iter().any(|own| own.addr() == network.addr());
    let homes: Vec<_> = all.iter().filter(has).collect();
    let belongs = |home: &&LocalNic| ports.iter().any(|port| port.name == home.name);
    match homes.iter().any(belongs) {
        true => None,
        false => Some((homes.first()?.name.clone(), ports.first()?.name.clone())),
    }
}

/// The MAC address that has answered for this address on the network of one of these NICs.
fn other_user(network: &IpNet, ports: &[Nic]) -> Result<Option<MacAddr>, NicError> {
    for port in ports {
        if let Some(other) = port.neighbour(network.addr())? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Whether a connection of the box without a source address of its own leaves from one of these.
fn is_preferred(network: &IpNet) -> Result<bool, NicError> {
    let mut same = NOWHERE.into_iter();
    let destination = same.find(|one| one.is_ipv4() == network.addr().is_ipv4());
    let Some(destination) = destination else {
        return Ok(false);
    };
    let query = RouteQuery {
        destination,
        source: None,
        fwmark: 0,
        interface: 0,
        user: None,
    };
    let source = query.route()?.and_then(|route| route.source);
    Ok(source.is_some_and(|source| network.contains(&source)))
}

/// The TCP sockets of this network namespace (proc_pid_net(5)).
fn sockets() -> procfs::ProcResult<Vec<Socket>> {
    let v6 = match tcp6() {
        // Without IPv6 in the kernel.
        Err(procfs::ProcError::NotFound(_)) => Vec::new(),
        read => read?,
    };
    // A connection that is closed on this side waits for late segments only.
    let is_over = |entry: &TcpNetEntry| matches!(entry.state, TcpState::TimeWait | TcpState::Close);
    let socket = |entry: TcpNetEntry| Socket {
        local: canonical(entry.local_address),
        listens: entry.state == TcpState::Listen,
    };
    let entries = tcp()?.into_iter().chain(v6);
    Ok(entries.filter(|one| !is_over(one)).map(socket).collect())
}

/// The IPv4 address of a socket of both IP versions is mapped (RFC 4291, section 2.5.5.2).
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub(super) fn judge(source: &SourceFacts) -> Vec<Finding> {
    let is_single = source.network.prefix_len() == source.network.max_prefix_len();
    let subject = match is_single {
        true => source.network.addr().to_string(),
        false => source.network.to_string(),
    };
    let finding = |what: String| Finding::warning(&subject, what);
    let mut findings = Vec::new();
    if let Some((home, nic)) = &source.misplaced {
        let finding = finding(format!("an address of {home}, not of {nic}"));
        findings.push(finding.because(match source.network {
            IpNet::V4(_) => "only with arp_ignore = 0 the kernel answers ARP for it there",
            IpNet::V6(_) => "the kernel does not answer neighbour discovery for it there",
        }));
    }
    if let Some(mac) = source.other_user {
        findings.push(
            finding(format!("{mac} answers for this address, or has")).because(
                "if another machine has it, the router sends answers to either: choose a free address",
            ),
        );
    }
    if source.is_preferred {
        findings.push(
            finding("the box's own connections leave from this address".to_owned()).because(
                "what a listed relay answers to them reaches the host: give the default route \
                 another source (`ip route change default … src ADDRESS`), or for IPv6 this address \
                 `preferred_lft 0`",
            ),
        );
    }
    if !source.listeners.is_empty() {
        let ports: Vec<_> = source.listeners.iter().map(u16::to_string).collect();
        let what = format!(
            "a program of the box listens here: port {}",
            ports.join(", ")
        );
        findings.push(finding(what).because(format!(
            "the address is for steered traffic alone: let it listen at another one; `ss -ltnp src \
             {subject}` lists it"
        )));
    }
    if source.connections > 0 {
        let what = match source.connections {
            1 => "a TCP connection of the box has this address".to_owned(),
            count => format!("{count} TCP connections of the box have this address"),
        };
        findings.push(finding(what).because(format!(
            "segments of a listed relay reach the host, so one to a relay breaks; `ss -tnp src \
             {subject}` lists them"
        )));
    }
    if findings.is_empty() {
        let what = "for steered traffic alone: no program of the box uses this address";
        findings.push(Finding::ok(&subject, what));
    }
    findings
}
