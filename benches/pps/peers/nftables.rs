//! The alternative with kernel forwarding: the box routes, nftables looks every flow up in a set of
//! the relays' endpoints, marks exit flows and steers relay flows by policy routing. No connection
//! tracking, no reverse path filter, permanent neighbours.

use super::{Forwarder, Job, Started, in_kernel, nft};
use crate::load::{Family, Load};
use crate::site::{
    BOX_HOST, BOX_HOST_MAC, BOX_INCOMING, BOX_UPLINK, INCOMING_MAC, Site, UPLINK_MAC,
};
use crate::traffic::Traffic;
use exitmark_lab::{LabError, Netns};

pub(super) fn forwarder() -> Forwarder {
    Forwarder {
        next_hop: BOX_HOST_MAC,
        missing: nft::missing,
        ..Forwarder::new("nftables", Job::MarkAndSteer, start)
    }
}

fn start(site: &Site, traffic: &Traffic, load: &Load) -> Started {
    route(site, load.family)?;
    nft::load(&site.middle, &table(load))?;
    traffic.attach_pass(site)?;
    in_kernel()
}

fn route(site: &Site, family: Family) -> Result<(), LabError> {
    let router = &site.middle;
    let (ip, [host, uplink, incoming], [uplink_hop, incoming_hop]) = match family {
        Family::Ipv4 => {
            router.sysctl("net/ipv4/ip_forward", "1")?;
            (
                "-4",
                ["192.0.2.1/24", "203.0.113.2/30", "198.51.100.2/30"],
                ["203.0.113.1", "198.51.100.1"],
            )
        }
        Family::Ipv6 => {
            enable_ipv6(router)?;
            (
                "-6",
                ["2001:db8:1::1/64", "2001:db8:a::2/64", "2001:db8:b::2/64"],
                ["2001:db8:a::1", "2001:db8:b::1"],
            )
        }
    };
    for line in [
        format!("address add {host} dev {BOX_HOST}"),
        format!("address add {uplink} dev {BOX_UPLINK}"),
        format!("address add {incoming} dev {BOX_INCOMING}"),
        format!("neighbour add {uplink_hop} lladdr {UPLINK_MAC} nud permanent dev {BOX_UPLINK}"),
        format!(
            "neighbour add {incoming_hop} lladdr {INCOMING_MAC} nud permanent dev {BOX_INCOMING}"
        ),
        format!("route add default via {uplink_hop}"),
        format!("route add default via {incoming_hop} table 100"),
        "rule add fwmark 1 lookup 100".to_owned(),
    ] {
        router.ip(&format!("{ip} {line}"))?;
    }
    Ok(())
}

/// Enables IPv6 forwarding, without router solicitations or other traffic of the router's own.
fn enable_ipv6(router: &Netns) -> Result<(), LabError> {
    for port in [BOX_HOST, BOX_UPLINK, BOX_INCOMING] {
        for (key, value) in [
            ("accept_ra", "0"),
            ("accept_dad", "0"),
            ("router_solicitations", "0"),
            ("disable_ipv6", "0"),
        ] {
            router.sysctl(&format!("net/ipv6/conf/{port}/{key}"), value)?;
        }
    }
    router.sysctl("net/ipv6/conf/all/forwarding", "1")
}

fn table(load: &Load) -> String {
    let ip = nft::ip(load.family);
    let set = nft::relay_set(load);
    let hosts = nft::hosts(load);
    format!(
        "table {ip} bench {{
{set}
    chain outbound {{
        {ip} daddr . tcp dport @relays meta mark set 1 return
        {ip} dscp set af11
    }}
    chain received {{
        type filter hook prerouting priority mangle
        iif {BOX_HOST} {ip} saddr {hosts} meta l4proto tcp goto outbound
    }}
}}
"
    )
}
