//! Finds values that are valid alone, but impossible or doubtful together.
//!
//! These functions are pure: the machine's NICs are passed in.

use super::check::quoted;
use super::groups::with_groups;
use super::steer::{HopKey, version_name};
use super::{Hop, Incoming, Settings, SettingsError, needs_relays, raw};
use exitmark_nic::{LocalNic, NextHop};
use exitmark_policy::packet::{Version, VlanTags};
use exitmark_policy::{AtUplink, Endpoint, ExitProtocols, Group, Mode, Steer};
use exitmark_service::config::value;
use ipnet::IpNet;
use std::net::IpAddr;

/// The shortest prefix lengths accepted for one site's hosts: IPv4, IPv6.
const SITE: (u8, u8) = (16, 29);
/// `host.exempt` may cover at most one in this many unicast addresses. The private and shared
/// ranges of IPv4 (RFC 6890) are one in 90.
const EXEMPT_PART: u128 = 32;
const NEXT_HOP: &str = "steer.next_hop";
const SOURCE: &str = "steer.source";
const CONFIGURATION: &str = "configuration";
/// The kind of the warning that relay traffic of an IP version has no next hop, and of the alarm that
/// there is such traffic.
pub const UNROUTED_FAMILY: &str = "unrouted_family";

/// An objection to a configuration.
#[derive(Debug)]
pub struct Objection {
    /// Whether a box refuses to start with it; otherwise it is a warning.
    pub is_fatal: bool,
    /// The kind of the warning that a running box reports.
    pub kind: &'static str,
    /// The key, the value, and the reason.
    pub what: SettingsError,
}

impl Objection {
    const fn fatal(what: SettingsError) -> Self {
        Self {
            is_fatal: true,
            kind: CONFIGURATION,
            what,
        }
    }

    const fn doubt(what: SettingsError) -> Self {
        Self {
            is_fatal: false,
            kind: CONFIGURATION,
            what,
        }
    }
}

impl Settings {
    /// The objections that hold on any machine; none is fatal.
    pub fn doubts(&self) -> Vec<Objection> {
        let mut doubts = Vec::new();
        let sources = &self.relays.sources;
        if needs_relays(&self.rules, self.tor.is_some()) && !sources.names_documents() {
            doubts.push(value(
                "relays.consensus",
                "[]",
                format_args!(
                    "only the {} endpoints of relays.extra count as relays, so nearly all relay \
                     traffic is marked as exit traffic and not steered; name tor's \
                     cached-microdesc-consensus or cached-consensus",
                    sources.extra.len()
                ),
            ));
        }
        doubts.extend(self.only_counts());
        doubts.extend(self.by_group(provoked_marks));
        doubts.extend(self.lone_source());
        let doubts = doubts.into_iter().map(Objection::doubt);
        let incoming = self.incoming().into_iter();
        let unrouted = incoming.flat_map(|incoming| self.unrouted(incoming));
        let unrouted = unrouted.map(|what| Objection {
            kind: UNROUTED_FAMILY,
            ..Objection::doubt(what)
        });
        doubts.chain(unrouted).collect()
    }

    /// The doubts of each group; groups with the same one share it.
    fn by_group(
        &self,
        doubt: impl Fn(&Group, &raw::Host) -> Option<SettingsError>,
    ) -> Vec<SettingsError> {
        let mut found: Vec<(SettingsError, Vec<&str>)> = Vec::new();
        for (group, host) in self.rules.groups().iter().zip(self.hosts.groups()) {
            let Some(error) = doubt(group, host) else {
                continue;
            };
            let text = error.to_string();
            match found
                .iter_mut()
                .find(|(known, _)| known.to_string() == text)
            {
                Some((_, names)) => names.push(&group.name),
                None => found.push((error, vec![&group.name])),
            }
        }
        let located = |(error, names): (_, Vec<&str>)| match self.hosts.are_several() {
            true => with_groups(error, &names),
            false => error,
        };
        found.into_iter().map(located).collect()
    }

    /// Doubts that a box neither marks nor steers, though it is to enforce.
    fn only_counts(&self) -> Option<SettingsError> {
        let only_counts = |group: &Group| {
            let intent = group.actions.intent();
            intent.mode == Mode::Enforce
                && intent.at_uplink == AtUplink::Strip
                && intent.steer == Steer::Off
        };
        if !self.rules.groups().iter().all(only_counts) {
            return None;
        }
        let without = match self.incoming() {
            None => format!("without {} none is steered", self.incoming_key()),
            Some(_) => "none is steered".to_owned(),
        };
        let reason = format!(
            "no frame leaves marked, and {without}: the box only counts, as with mode = \"audit\""
        );
        Some(value("mark.at_uplink", "\"strip\"", reason))
    }

    /// The addresses of `steer.source` of engine connect.
    fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let sockets = &self.rules.sockets;
        let v4 = sockets.source_v4.map(IpAddr::from);
        v4.into_iter().chain(sockets.source_v6.map(IpAddr::from))
    }

    /// Doubts that relay connections of engine connect are steered by a source address of one IP
    /// version only.
    fn lone_source(&self) -> Option<SettingsError> {
        let [tor] = self.rules.groups() else {
            return None;
        };
        let Steer::Only(version) = tor.actions.intent().steer else {
            return None;
        };
        let (is, other) = match version {
            Version::V4 => ("an IPv4", "IPv6"),
            Version::V6 => ("an IPv6", "IPv4"),
        };
        let source = self.sources().next()?;
        let reason = format!(
            "is {is} address, and relay connections over {other} leave unsteered: give an {other} \
             address too, or set steer.fwmark or steer.interface, which steer both; if this \
             machine has no {other}, nothing is missing"
        );
        Some(quoted(SOURCE, source, reason))
    }

    /// Doubts an address of `steer.source` of engine connect that no NIC has; it may appear later.
    /// On a box it must be on a certain NIC, which these do not identify.
    fn absent_sources(&self, nics: &[LocalNic]) -> Vec<Objection> {
        let networks = || nics.iter().flat_map(|nic| &nic.networks);
        // Without NICs the machine could not be read.
        let is_absent =
            |source: &IpAddr| !nics.is_empty() && !networks().any(|own| own.addr() == *source);
        let doubt = |source| {
            let reason = "is not an address of this machine, so no connection can leave from it, and \
                          relay connections leave unsteered; correct it, or `ip addr add \
                          ADDRESS/LENGTH dev NIC`";
            Objection::doubt(quoted(SOURCE, source, reason))
        };
        self.sources().filter(is_absent).map(doubt).collect()
    }

    /// The objections on a machine with these NICs, including [`Self::doubts`].
    pub fn objections(&self, nics: &[LocalNic]) -> Vec<Objection> {
        let mut objections = self.doubts();
        for nic in nics {
            objections.extend(self.host_address_of(nic));
            let own = self.by_group(|group, _| {
                let mac = group.mac.filter(|mac| nic.mac == Some(*mac))?;
                let reason = format!(
                    "is the MAC address of {}, a NIC of the box; give the Tor host's",
                    nic.name
                );
                Some(quoted("host.mac", mac, reason))
            });
            objections.extend(own.into_iter().map(Objection::fatal));
        }
        objections.extend(self.absent_sources(nics));
        let hops = self.incoming().map_or(&[][..], |one| &one.next_hops);
        for (hop, key) in hops.iter().zip(&self.hop_keys) {
            if let Some(own) = self.own_next_hop(*hop, key, nics) {
                objections.push(own);
                continue;
            }
            let networks = self.all_incoming();
            objections.extend(networks.filter_map(|one| next_hop(one, *hop, key, nics)));
        }
        objections
    }

    /// Doubts that relay traffic of an IP version that hosts have is not steered.
    fn unrouted(&self, incoming: &Incoming) -> Vec<SettingsError> {
        [Version::V4, Version::V6]
            .into_iter()
            .flat_map(|version| {
                self.by_group(|group, host| self.unrouted_of(incoming, version, group, host))
            })
            .collect()
    }

    fn unrouted_of(
        &self,
        incoming: &Incoming,
        version: Version,
        group: &Group,
        host: &raw::Host,
    ) -> Option<SettingsError> {
        let steer = group.actions.intent().steer;
        let is_v4 = version == Version::V4;
        let is_of_version = |relay: &Endpoint| relay.address.is_ipv4() == is_v4;
        let relays = &self.relays.sources;
        // A consensus lists relays of both IP versions; without it, relay traffic may be of any.
        let dials = !self.decides_by_relays()
            || !group.relay_addresses.is_empty()
            || relays.names_documents()
            || relays.extra.iter().any(is_of_version);
        // Only the text of an IPv6 address has colons.
        let is_own = |text: &String| text.contains(':') != is_v4;
        let mut own = host.addresses.iter().chain(&host.relay_addresses);
        let has_own = own.any(is_own);
        let is_enabled = host.steer.enabled.unwrap_or(self.steers);
        if !is_enabled || steer.routes(version) || !dials || !has_own {
            return None;
        }
        let (name, consequence) = (version_name(version), incoming.consequence());
        let interface = &incoming.interface;
        let result = format!(
            "relay traffic over {name} is not steered and {consequence}; give the {name} address of \
             a router too, as in [\"203.0.113.1\", \"fe80::1\"], or the MAC address of one for both, \
             which `ip neighbour show dev {interface}` shows"
        );
        let number = match steer {
            Steer::Off => {
                let reason =
                    format!("names no router, and the host has {name} addresses: {result}");
                return Some(value(NEXT_HOP, "[]", reason));
            }
            Steer::Only(other) => group.path.next_hop(other),
            Steer::Both => return None,
        };
        let hop = incoming.next_hops.get(number)?.next_hop;
        let key = self.hop_keys.get(number)?.key;
        let is = match hop {
            NextHop::Mac(_) if is_v4 => "is for IPv6 only",
            NextHop::Mac(_) => "is for IPv4 only",
            NextHop::Address(IpAddr::V4(_)) => "is an IPv4 address",
            NextHop::Address(IpAddr::V6(_)) => "is an IPv6 address",
        };
        let reason = format!("{is}, and the host has {name} addresses too: {result}");
        Some(quoted(key, hop, reason))
    }

    /// Objects to a next hop that is the box itself.
    fn own_next_hop(&self, hop: Hop, key: &HopKey, nics: &[LocalNic]) -> Option<Objection> {
        let is_own = |nic: &&LocalNic| match hop.next_hop {
            NextHop::Mac(mac) => nic.mac == Some(mac),
            NextHop::Address(address) => nic.networks.iter().any(|own| own.addr() == address),
        };
        let own = nics.iter().find(is_own)?;
        let reason = format!(
            "is the box itself, on {}; name the router on the network of {}",
            own.name,
            self.incoming_key()
        );
        Some(Objection::fatal(key.error(hop.next_hop, reason)))
    }

    /// Objects to an address of the box among the host's: packets to it would go to the host.
    fn host_address_of(&self, nic: &LocalNic) -> Option<Objection> {
        let (net, own) = self.host_prefixes.iter().find_map(|net| {
            let addresses = nic.networks.iter().map(IpNet::addr);
            let own = addresses.filter(|own| net.contains(own)).min()?;
            Some((net, own))
        })?;
        let name = &nic.name;
        let reason = format!(
            "has {own}, an address of the box itself on {name}: packets that `incoming` receives \
             for it go to the Tor host; name the Tor host's addresses only"
        );
        let group = self.rules.owner(own).map(|owner| owner.group());
        let group = group.and_then(|number| self.rules.group(number));
        let locate = |error| match group {
            Some(group) if self.hosts.are_several() => with_groups(error, &[&group.name]),
            _ => error,
        };
        let is_one = net.prefix_len() == net.max_prefix_len();
        Some(match is_one {
            true => Objection::fatal(locate(quoted("host.addresses", own, reason))),
            false => Objection::doubt(locate(quoted("host.addresses", net, reason))),
        })
    }
}

/// Doubts a group's mark on frames that any remote host can provoke.
fn provoked_marks(group: &Group, host: &raw::Host) -> Option<SettingsError> {
    let (protocols, answers) = match group.exit_protocols {
        ExitProtocols::Tcp => return None,
        ExitProtocols::All => ("\"all\"", "echo replies and a server's datagrams"),
        ExitProtocols::TcpUdp => ("\"tcp+udp\"", "a server's datagrams"),
    };
    let queries = match group.resolvers.is_empty() {
        true => "its DNS queries, unless host.resolvers names the servers, and ",
        false => "",
    };
    let reason = format!(
        "more of the host's own traffic is marked as exit traffic: {queries}answers that any remote \
         host can provoke ({answers}), because host.listeners applies to TCP only"
    );
    let key = match host.mark.protocols {
        Some(_) => "host.mark.protocols",
        None => "mark.protocols",
    };
    Some(value(key, protocols, reason))
}

/// Objects to a next hop that the box cannot resolve.
fn next_hop(incoming: &Incoming, hop: Hop, key: &HopKey, nics: &[LocalNic]) -> Option<Objection> {
    // These NICs do not say which VLAN interface is on top of which NIC; the start and the doctor
    // look for it.
    if hop.vlan != VlanTags::UNTAGGED {
        return None;
    }
    let NextHop::Address(address) = hop.next_hop else {
        return None;
    };
    let nic = nics.iter().find(|nic| nic.is_called(&incoming.interface))?;
    let of_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
    let networks: Vec<_> = nic.networks.iter().filter(of_family).collect();
    // RFC 919 section 7, RFC 1122 section 3.2.1.3; a /31 or /32 has neither (RFC 3021).
    let is_of_all = |net: &&&IpNet| match (net, address) {
        (IpNet::V4(net), IpAddr::V4(address)) if net.prefix_len() < 31 => {
            [net.network(), net.broadcast()].contains(&address)
        }
        _ => false,
    };
    if let Some(net) = networks.iter().find(is_of_all) {
        let reason = format!(
            "is the first or last address of {}, the network of {}, and so no router's; name the \
             router on that network",
            net.trunc(),
            incoming.interface
        );
        return Some(Objection::fatal(key.error(hop.next_hop, reason)));
    }
    let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if is_link_local || networks.iter().any(|net| net.contains(&address)) {
        return None;
    }
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let name = &incoming.interface;
    let reason = match networks.as_slice() {
        [] => format!(
            "{name} has no {family} address from which the box could resolve it; `ip addr add \
             ADDRESS/LENGTH dev {name}`"
        ),
        [net, ..] => format!(
            "is not on the network of {name}, {}: unless the router answers there nevertheless, \
             relay traffic is not steered; correct the address",
            net.trunc()
        ),
    };
    Some(Objection::doubt(key.error(hop.next_hop, reason)))
}

/// Whether a prefix holds more than one site's addresses; see [`SITE`].
pub(super) fn is_wider_than_a_site(net: &IpNet) -> bool {
    let (v4, v6) = SITE;
    net.prefix_len() < if net.addr().is_ipv4() { v4 } else { v6 }
}

/// The percentage of a family's unicast addresses that these prefixes cover, if that is more than
/// one in [`EXEMPT_PART`].
pub(super) fn covers_too_much(prefixes: &[IpNet]) -> Option<u128> {
    // All but multicast and reserved addresses; global unicast (RFC 4291 section 2.4).
    let families: [&[&str]; 2] = [&["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3"], &["2000::/3"]];
    families.iter().find_map(|unicast| {
        let unicast: Vec<IpNet> = unicast.iter().filter_map(|net| net.parse().ok()).collect();
        let all: u128 = unicast.iter().map(size).sum();
        let covered: u128 = IpNet::aggregate(&prefixes.to_vec())
            .iter()
            .flat_map(|net| unicast.iter().map(move |part| overlap(net, part)))
            .sum();
        (covered > all / EXEMPT_PART).then(|| covered / (all / 100))
    })
}

/// The number of addresses of an IPv4 prefix, or of /64 networks of an IPv6 prefix.
fn size(net: &IpNet) -> u128 {
    let bits = net.max_prefix_len() - net.prefix_len();
    1 << match net {
        IpNet::V4(_) => bits,
        IpNet::V6(_) => bits.saturating_sub(64),
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> u128 {
    if one.contains(other) {
        size(other)
    } else if other.contains(one) {
        size(one)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn special_ranges_may_be_exempt_and_large_parts_of_the_internet_may_not() {
        for few in [
            &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"][..],
            &["100.64.0.0/10", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"],
            &["fc00::/7", "fe80::/10", "ff00::/8", "2001:db8::/32"],
            &["203.0.113.0/24"],
            &[],
        ] {
            assert_eq!(covers_too_much(&nets(few)), None, "{few:?}");
        }
        for (much, percent) in [
            (&["0.0.0.0/0"][..], 100),
            (&["0.0.0.0/1", "128.0.0.0/1"], 100),
            (&["::/0"], 100),
            (&["2000::/3"], 100),
            (&["10.0.0.0/8", "2400::/6"], 12),
            (&["16.0.0.0/5", "16.0.0.0/5"], 3),
        ] {
            assert_eq!(covers_too_much(&nets(much)), Some(percent), "{much:?}");
        }
        // In many pieces.
        let pieces: Vec<IpNet> = (1..=9)
            .map(|first| format!("{first}.0.0.0/8").parse().unwrap())
            .collect();
        assert_eq!(covers_too_much(&pieces), Some(4));
    }
}
