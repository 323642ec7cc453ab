//! What a careful administrator would build without exitmark: the box routes, nftables looks
//! every flow up in a set of the relays' endpoints, marks the one kind and sends the other by
//! policy routing. No connection tracking, no reverse path filter, permanent neighbours.

use super::{Forwarder, InKernel, Job, Running};
use crate::site::{
    BOX_HOST, BOX_HOST_MAC, BOX_INCOMING, BOX_UPLINK, HOST_ADDRESS, INCOMING_MAC, Site, UPLINK_MAC,
};
use crate::traffic::{Traffic, relays};
use exitmark::lab::LabError;
use exitmark::packet::MacAddr;
use std::process::Command;

pub(super) struct Nftables;

impl Forwarder for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn job(&self) -> Job {
        Job::MarkAndSteer
    }

    fn next_hop(&self) -> MacAddr {
        BOX_HOST_MAC
    }

    fn missing(&self) -> Option<String> {
        let nft = Command::new("nft").arg("--version").output();
        nft.err().map(|error| format!("the nft command: {error}"))
    }

    fn start(&self, site: &Site, traffic: &Traffic) -> Result<Box<dyn Running>, LabError> {
        route(site)?;
        load_rules(site)?;
        traffic.attach_pass(site)?;
        Ok(Box::new(InKernel))
    }
}

fn route(site: &Site) -> Result<(), LabError> {
    let router = &site.middle;
    router.sysctl("net/ipv4/ip_forward", "1")?;
    for line in [
        format!("address add 192.0.2.1/24 dev {BOX_HOST}"),
        format!("address add 203.0.113.2/30 dev {BOX_UPLINK}"),
        format!("address add 198.51.100.2/30 dev {BOX_INCOMING}"),
        format!("neighbour add 203.0.113.1 lladdr {UPLINK_MAC} nud permanent dev {BOX_UPLINK}"),
        format!(
            "neighbour add 198.51.100.1 lladdr {INCOMING_MAC} nud permanent dev {BOX_INCOMING}"
        ),
        "route add default via 203.0.113.1".to_owned(),
        "route add default via 198.51.100.1 table 100".to_owned(),
        "rule add fwmark 1 lookup 100".to_owned(),
    ] {
        router.ip(&line)?;
    }
    Ok(())
}

fn load_rules(site: &Site) -> Result<(), LabError> {
    let elements: Vec<_> = relays()
        .map(|relay| format!("{} . {}", relay.ip(), relay.port()))
        .collect();
    let rules = format!(
        "table ip bench {{
    set relays {{
        type ipv4_addr . inet_service
        elements = {{ {elements} }}
    }}
    chain outbound {{
        ip daddr . tcp dport @relays meta mark set 1 return
        ip dscp set af11
    }}
    chain received {{
        type filter hook prerouting priority mangle
        iif {BOX_HOST} ip saddr {HOST_ADDRESS} meta l4proto tcp goto outbound
    }}
}}
",
        elements = elements.join(", ")
    );
    let failed = |error| LabError(format!("cannot write the nftables rules: {error}"));
    let file = tempfile::NamedTempFile::new().map_err(failed)?;
    std::fs::write(file.path(), rules).map_err(failed)?;
    let path = file.path().to_string_lossy();
    site.middle.command("nft", &["-f", &path]).map(|_| ())
}
