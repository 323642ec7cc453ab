//! A bridge of two NICs that marks with nftables: the simplest set-up with a mark. A bridge does
//! not route, so all traffic leaves by the uplink.

use super::{Forwarder, Job, Started, in_kernel, nft};
use crate::load::Load;
use crate::site::{BOX_HOST, BOX_UPLINK, HOST_MAC, Site, UPLINK_MAC};
use crate::traffic::Traffic;

pub(super) fn forwarder() -> Forwarder {
    Forwarder {
        missing: nft::missing,
        ..Forwarder::new("bridge-nft", Job::Mark, start)
    }
}

fn start(site: &Site, traffic: &Traffic, load: &Load) -> Started {
    let bridge = &site.middle;
    // No spanning tree, no multicast snooping.
    bridge.ip("link add bridge0 type bridge stp_state 0 mcast_snooping 0")?;
    for (port, mac) in [(BOX_HOST, HOST_MAC), (BOX_UPLINK, UPLINK_MAC)] {
        bridge.ip(&format!("link set {port} master bridge0"))?;
        let entry = ["fdb", "replace", &mac.to_string(), "dev", port];
        let entry: Vec<_> = entry.into_iter().chain(["master", "static"]).collect();
        bridge.command("bridge", &entry)?;
    }
    bridge.ip("link set bridge0 up")?;
    nft::load(bridge, &table(load))?;
    traffic.attach_pass(site)?;
    in_kernel()
}

fn table(load: &Load) -> String {
    let ip = nft::ip(load.family);
    let set = nft::relay_set(load);
    let hosts = nft::hosts(load);
    format!(
        "table bridge bench {{
{set}
    chain outbound {{
        {ip} daddr . tcp dport @relays return
        {ip} dscp set af11
    }}
    chain forwarded {{
        type filter hook forward priority filter
        iif {BOX_HOST} {ip} saddr {hosts} meta l4proto tcp goto outbound
    }}
}}
"
    )
}
