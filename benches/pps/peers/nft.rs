//! Code shared by the nftables forwarders: the relay set as an nftables set, and the `nft` command.

use crate::load::{Family, Load};
use exitmark_lab::{LabError, Netns};
use std::process::Command;

/// A missing prerequisite of nftables on this machine.
pub(super) fn missing() -> Option<String> {
    let nft = Command::new("nft").arg("--version").output();
    nft.err().map(|error| format!("the nft command: {error}"))
}

/// The name of the family in nftables.
pub(super) fn ip(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

/// The set `relays`, of addresses and ports.
pub(super) fn relay_set(load: &Load) -> String {
    let elements: Vec<_> = load
        .relays()
        .map(|relay| format!("{} . {}", relay.ip(), relay.port()))
        .collect();
    let address = match load.family {
        Family::Ipv4 => "ipv4_addr",
        Family::Ipv6 => "ipv6_addr",
    };
    format!(
        "    set relays {{
        type {address} . inet_service
        flags constant
        size {}
        elements = {{ {} }}
    }}",
        elements.len(),
        elements.join(", ")
    )
}

/// The host's prefixes as the elements of an anonymous set.
pub(super) fn hosts(load: &Load) -> String {
    let prefixes: Vec<_> = load.host_prefixes().collect();
    format!("{{ {} }}", prefixes.join(", "))
}

pub(super) fn load(netns: &Netns, rules: &str) -> Result<(), LabError> {
    let failed = |error| LabError(format!("cannot write the nftables rules: {error}"));
    let file = tempfile::NamedTempFile::new().map_err(failed)?;
    std::fs::write(file.path(), rules).map_err(failed)?;
    let path = file.path().to_string_lossy();
    netns.command("nft", &["-f", &path]).map(|_| ())
}
