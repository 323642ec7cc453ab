//! Findings on the addresses of `steer.source` on a box. They are for translated traffic alone: a
//! listed relay's answers to them reach the hosts, whichever socket they are meant for.

use super::tor_facts::NOWHERE;
use super::{Finding, word};
use crate::machine::{Misplaced, SourceNetwork, TcpSocket, single, ss_filter};
use crate::settings::Settings;
use exitmark_nic::{LocalNic, Nic, NicError, RouteQuery};
use exitmark_policy::packet::MacAddr;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// The addresses to check.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceScope {
    networks: Vec<SourceNetwork>,
    /// The names of the NICs `incoming` of all wires.
    incoming: Vec<String>,
}

/// What the machine knows of an address or prefix of `steer.source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceFacts {
    pub(super) network: IpNet,
    /// The box does not have the address where it belongs. An error has the commands that create the
    /// interface there.
    pub(super) misplaced: Result<Option<Misplaced>, String>,
    /// The MAC address of another machine that uses the address, from the neighbour table.
    pub(super) other_user: Option<MacAddr>,
    /// Whether the box's own connections to the internet leave from it.
    pub(super) is_preferred: bool,
    /// The ports at which programs of the box listen there.
    pub(super) listeners: BTreeSet<u16>,
    /// The number of open TCP connections of the box from or to it.
    pub(super) connections: usize,
}

impl SourceScope {
    /// The addresses of all groups.
    pub(super) fn by(settings: &Settings) -> Self {
        let incoming = settings.all_incoming();
        Self {
            networks: SourceNetwork::all(&settings.rules),
            incoming: incoming.map(|one| one.interface.clone()).collect(),
        }
    }

    /// Reads what the machine knows of each.
    pub(super) fn look(&self) -> Result<Vec<SourceFacts>, String> {
        if self.networks.is_empty() {
            return Ok(Vec::new());
        }
        // The findings on the ports report a missing one.
        let incoming = self.incoming.iter();
        let incoming: Vec<_> = incoming.filter_map(|name| Nic::look(name).ok()).collect();
        let incoming: Vec<_> = incoming.iter().collect();
        let all = LocalNic::all().map_err(|error| error.to_string())?;
        let sockets = TcpSocket::all();
        let sockets = sockets.map_err(|error| format!("its sockets cannot be read: {error}"))?;
        let mut facts = Vec::new();
        for network in &self.networks {
            let interfaces = network.interfaces(&incoming);
            let names = interfaces.as_deref().unwrap_or_default().iter();
            let ports: Vec<_> = names.filter_map(|name| Nic::look(name).ok()).collect();
            let interfaces = interfaces.map_err(|error| error.to_string());
            let look = |source: &IpNet| facts_of(*source, &interfaces, &ports, &all, &sockets);
            let looked: Result<Vec<_>, _> = network.sources.iter().map(look).collect();
            facts.extend(looked.map_err(|error| error.to_string())?);
        }
        Ok(facts)
    }
}

fn facts_of(
    network: IpNet,
    interfaces: &Result<Vec<String>, String>,
    ports: &[Nic],
    all: &[LocalNic],
    sockets: &[TcpSocket],
) -> Result<SourceFacts, NicError> {
    let here = |socket: &&TcpSocket| network.contains(&socket.local.ip());
    let here = sockets.iter().filter(here);
    let (listening, connected): (Vec<&TcpSocket>, Vec<_>) = here.partition(|one| one.listens);
    let misplaced = interfaces.as_ref().map_err(String::clone);
    Ok(SourceFacts {
        network,
        misplaced: misplaced.map(|interfaces| Misplaced::of(network, interfaces, all)),
        other_user: other_user(network, ports)?,
        is_preferred: is_preferred(network)?,
        listeners: listening.iter().map(|one| one.local.port()).collect(),
        connections: connected.len(),
    })
}

/// The MAC address that has answered for this address on the network of one of these NICs.
fn other_user(network: IpNet, ports: &[Nic]) -> Result<Option<MacAddr>, NicError> {
    for port in ports {
        if let Some(other) = port.neighbour(network.addr())? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Whether a connection of the box without a source address of its own leaves from one of these.
fn is_preferred(network: IpNet) -> Result<bool, NicError> {
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

pub(super) fn judge(source: &SourceFacts) -> Vec<Finding> {
    let subject = match single(source.network) {
        Some(address) => address.to_string(),
        None => source.network.to_string(),
    };
    let filter = ss_filter(source.network);
    let finding = |what: String| Finding::warning(&subject, what);
    let mut findings = Vec::new();
    match &source.misplaced {
        Ok(None) => {}
        Ok(Some(misplaced)) => findings.push(elsewhere(&subject, source.network, misplaced)),
        Err(missing) => findings.push(finding(missing.clone())),
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
        findings.push(Finding::fault(&subject, what).because(format!(
            "the address is for steered traffic alone: let it listen at another one; `ss -ltnp src \
             {filter}` lists it"
        )));
    }
    if source.connections > 0 {
        let what = match source.connections {
            1 => "a TCP connection of the box has this address".to_owned(),
            count => format!("{count} TCP connections of the box have this address"),
        };
        findings.push(finding(what).because(format!(
            "segments of a listed relay reach the host, so one to a relay breaks; `ss -tnp src \
             {filter}` lists them"
        )));
    }
    if findings.is_empty() {
        let what = "for steered traffic alone: no program of the box uses this address";
        findings.push(Finding::ok(&subject, what));
    }
    findings
}

/// The box does not have the address where it belongs.
fn elsewhere(subject: &str, source: IpNet, misplaced: &Misplaced) -> Finding {
    let Misplaced { interface, home } = misplaced;
    let what = match home {
        Some(home) => format!("an address of {home}, not of {interface}"),
        None => format!("not an address of {interface}"),
    };
    let why = match (home, source) {
        (Some(_), IpNet::V4(_)) => "only with arp_ignore = 0 the kernel answers ARP for it there",
        (Some(_), IpNet::V6(_)) => "the kernel does not answer neighbour discovery for it there",
        (None, _) => "no router can resolve it, so relays' answers do not arrive",
    };
    Finding::warning(subject, what).because(format!(
        "{why}: `ip addr add {subject}/LENGTH dev {}`, with the network's length",
        word(interface)
    ))
}
