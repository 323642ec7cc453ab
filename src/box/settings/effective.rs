//! The effective policy as text: each group with the keys that it inherits, then what all share.

use super::raw::{Host, Listener, Resolvers};
use super::{Settings, TorHost, WhenStale};
use exitmark_policy::packet::{Version, VlanTags};
use exitmark_policy::{AtUplink, ClassifyBy, ExitProtocols, Group, Mode, Steer, Tap};
use exitmark_relays::Trust;
use ipnet::IpNet;
use std::net::IpAddr;

/// A text of headings, each with lines of a name and a value.
#[derive(Default)]
struct Blocks(String);

impl Blocks {
    fn begin(&mut self, heading: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.0 += &format!("{gap}{heading}\n");
    }

    fn line(&mut self, name: &str, value: impl AsRef<str>) {
        self.0 += &format!("  {name:16} {}\n", value.as_ref());
    }

    fn list(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        let values: Vec<_> = values.into_iter().collect();
        match values.as_slice() {
            [] => self.line(name, "none"),
            values => self.line(name, values.join(", ")),
        }
    }
}

impl Settings {
    /// The effective policy, for its operator: a block for each group, then one for all groups.
    /// Contains the addresses of the hosts, of their resolvers, of next hops, and exempt prefixes.
    pub fn effective(&self) -> String {
        let mut blocks = Blocks::default();
        for (group, host) in self.rules.groups().iter().zip(self.hosts.groups()) {
            blocks.begin(&format!("group {}", group.name));
            match &self.tor {
                None => self.add_group(&mut blocks, group, host),
                Some(tor) => self.add_tor(&mut blocks, group, host, tor),
            }
        }
        blocks.begin("all groups");
        self.add_common(&mut blocks);
        blocks.0
    }

    fn add_group(&self, blocks: &mut Blocks, group: &Group, host: &Host) {
        blocks.list("addresses", host.addresses.iter().cloned());
        blocks.list("relay_addresses", host.relay_addresses.iter().cloned());
        let listener = |listener: &Listener| match listener {
            Listener::Port(port) => port.to_string(),
            Listener::Endpoint(endpoint) => endpoint.clone(),
        };
        blocks.list("listeners", host.listeners.iter().map(listener));
        add_exceptions(blocks, host);
        blocks.line("mark", group.actions.mark().to_string());
        blocks.line(
            "at_uplink",
            match group.actions.intent().at_uplink {
                AtUplink::Keep => "keep",
                AtUplink::Strip => "strip",
            },
        );
        blocks.line(
            "protocols",
            match group.exit_protocols {
                ExitProtocols::Tcp => "tcp",
                ExitProtocols::TcpUdp => "tcp+udp",
                ExitProtocols::All => "all",
            },
        );
        let mac = group.mac.map(|mac| mac.to_string());
        blocks.line("mac", mac.as_deref().unwrap_or("learned"));
        blocks.line("vlan", group.vlan.to_string());
        // The wire changes no tags, so `uplink.vlan` is the same if it is set.
        blocks.line("uplink vlan", group.vlan.to_string());
        blocks.line("relays by IPv4", self.relay_egress(group, Version::V4));
        blocks.line("relays by IPv6", self.relay_egress(group, Version::V6));
        for translation in &group.translations {
            let (host, source) = (shown(translation.host()), shown(translation.incoming()));
            blocks.line("source", format!("{source} in place of {host}"));
        }
    }

    /// How the relay traffic of a group leaves.
    fn relay_egress(&self, group: &Group, version: Version) -> String {
        let steer = group.actions.intent().steer;
        let path = &group.path;
        let incoming = self.incoming();
        let next_hops = incoming.map_or(&[][..], |incoming| &incoming.next_hops);
        match next_hops.get(path.next_hop(version)) {
            Some(hop) if steer.routes(version) => {
                let pcp = match path.priority {
                    _ if path.vlan == VlanTags::UNTAGGED => String::new(),
                    Some(pcp) => format!(", PCP {pcp}"),
                    None => ", PCP kept".to_owned(),
                };
                format!("{}, {}{pcp}", hop.next_hop, path.vlan)
            }
            _ if steer != Steer::Off && incoming.is_some_and(|one| one.drops_unsteered) => {
                "dropped".to_owned()
            }
            _ => "uplink, unmarked".to_owned(),
        }
    }

    fn add_tor(&self, blocks: &mut Blocks, group: &Group, host: &Host, tor: &TorHost) {
        let sockets = &self.rules.sockets;
        add_exceptions(blocks, host);
        let overwrites = match sockets.overwrites {
            true => "in place of any DSCP that tor sets",
            false => "unless tor sets another DSCP",
        };
        let mark = group.actions.mark();
        blocks.line("mark", format!("{mark}, {overwrites}"));
        let sources = [
            sockets.source_v4.map(IpAddr::from),
            sockets.source_v6.map(IpAddr::from),
        ];
        for (source, name) in sources
            .into_iter()
            .zip(["relays by IPv4", "relays by IPv6"])
        {
            let egress = [
                source.map(|source| format!("from {source}")),
                (sockets.fwmark != 0).then(|| format!("fwmark {:#x}", sockets.fwmark)),
                tor.interface.as_ref().map(|name| format!("by {name}")),
            ];
            let egress: Vec<_> = egress.into_iter().flatten().collect();
            match egress.as_slice() {
                [] => blocks.line(name, "as other programs"),
                egress => blocks.line(name, egress.join(", ")),
            }
        }
    }

    fn add_common(&self, blocks: &mut Blocks) {
        blocks.line(
            "classify_by",
            match self.rules.classify_by {
                ClassifyBy::RelaySet => "relay-set".to_owned(),
                ClassifyBy::HostMark(mark) => format!("host-mark, {mark}"),
            },
        );
        blocks.line(
            "mode",
            match self.rules.mode() {
                Mode::Enforce => "enforce",
                Mode::Audit => "audit: nothing is marked or steered",
            },
        );
        for wire in &self.wires {
            let ports = &wire.ports;
            let incoming = ports.incoming.as_ref();
            let incoming = incoming.map(|incoming| format!(", incoming {}", incoming.interface));
            let (host, uplink) = (&ports.host, &ports.uplink);
            let tap = ports.tap.as_ref().map(|tap| format!(", tap {tap}"));
            let nics = format!(
                "host {host}, uplink {uplink}{}{}",
                incoming.unwrap_or_default(),
                tap.unwrap_or_default()
            );
            match self.table_of_nics() {
                "ports" => blocks.line("ports", nics),
                _ => blocks.line(
                    &format!("wire {}", wire.name),
                    format!("{nics}, link_loss {}", wire.link_loss.name()),
                ),
            }
        }
        match self.rules.tap() {
            Tap::Off => {}
            Tap::Out => blocks.line("tap", "exit packets of the hosts"),
            Tap::Both => blocks.line("tap", "exit packets of the hosts, and answers to them"),
        }
        if let Some(incoming) = self.incoming() {
            let treatment = match incoming.drops_unsteered {
                true => "drop",
                false => "uplink",
            };
            blocks.line("on_unavailable", treatment);
        }
        if let Some(tor) = &self.tor {
            blocks.line("tor", tor.owners());
        }
        let sources = &self.relays.sources;
        let files = sources.files.iter().map(|file| &*file.consensus);
        let patterns = sources.patterns.iter().map(|pattern| pattern.path());
        let documents = files.chain(patterns).map(|path| path.display().to_string());
        blocks.list("consensus", documents);
        blocks.line("extra relays", sources.extra.len().to_string());
        if sources.names_documents() {
            let trust = match &sources.trust {
                Trust::Majority(authorities) => {
                    let (needed, all) = (authorities.majority(), authorities.iter().count());
                    format!("{needed} of {all} authorities")
                }
                Trust::Unverified => "not checked".to_owned(),
            };
            blocks.line("signatures", trust);
        }
        blocks.line(
            "when_stale",
            match self.relays.when_stale {
                WhenStale::Keep => "keep",
                WhenStale::Pass => "pass",
            },
        );
    }
}

fn add_exceptions(blocks: &mut Blocks, host: &Host) {
    match &host.resolvers {
        Resolvers::Word(word) => blocks.line("resolvers", word),
        Resolvers::Named(servers) => blocks.list("resolvers", servers.iter().cloned()),
    }
    blocks.list("exempt", host.exempt.iter().cloned());
}

/// A prefix, or an address without its length.
fn shown(net: IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}
