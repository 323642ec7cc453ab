//! A minimal BPF program with the whole rule and nothing else, in XDP and in tc: both are
//! benches/bpf/rule.bpf.c.

use super::{Started, in_kernel};
use crate::common::bpf;
use crate::load::Load;
use crate::site::{BOX_HOST, BOX_INCOMING, BOX_INCOMING_MAC, BOX_UPLINK, INCOMING_MAC, Site};
use crate::traffic::Traffic;
use exitmark_lab::LabError;
use exitmark_lab::bpf::{Programs, interface_index};
use libbpf_rs::{MapCore, MapFlags};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const RULE: &str = "rule.bpf.c";
// `enum port` of rule.bpf.c.
const PORTS: [&str; 2] = [BOX_UPLINK, BOX_INCOMING];

/// Starts the program in XDP, before the kernel allocates an skb.
pub(super) fn start_xdp(site: &Site, _: &Traffic, load: &Load) -> Started {
    let programs = load_with_relays(site, load)?;
    for (number, interface) in (0_u32..).zip(PORTS) {
        programs.aim("ports", number, &site.middle, interface)?;
    }
    programs.attach("rule_xdp", &site.middle, BOX_HOST)?;
    in_kernel()
}

/// Starts the program in tc, at the ingress of the clsact qdisc.
pub(super) fn start_tc(site: &Site, traffic: &Traffic, load: &Load) -> Started {
    let programs = load_with_relays(site, load)?;
    traffic.attach_pass(site)?;
    programs.attach_tc("rule_tc", &site.middle, BOX_HOST)?;
    in_kernel()
}

fn load_with_relays(site: &Site, load: &Load) -> Result<Programs, LabError> {
    let (compiled, constants) = (bpf::compile(RULE)?, constants(site, load)?);
    let programs = Programs::load_prepared(RULE, &compiled, &[], &constants)?;
    for endpoint in load.relays() {
        list(&programs, endpoint)?;
    }
    Ok(programs)
}

/// The bytes of `site` in rule.bpf.c.
fn constants(site: &Site, load: &Load) -> Result<Vec<u8>, LabError> {
    let (host4, host6) = match load.host() {
        IpAddr::V4(address) => (address, Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(address) => (Ipv4Addr::UNSPECIFIED, address),
    };
    let mut bytes = Vec::new();
    bytes.extend(host4.octets());
    bytes.extend(host6.octets());
    for interface in PORTS {
        let index = site.middle.run(move || interface_index(interface))?;
        bytes.extend(index.to_ne_bytes());
    }
    bytes.extend(INCOMING_MAC.bytes());
    bytes.extend(BOX_INCOMING_MAC.bytes());
    Ok(bytes)
}

/// Adds an endpoint to the relay set of its IP version: address, port, two zero bytes.
fn list(programs: &Programs, endpoint: SocketAddr) -> Result<(), LabError> {
    let (map, mut key) = match endpoint.ip() {
        IpAddr::V4(address) => ("relays4", address.octets().to_vec()),
        IpAddr::V6(address) => ("relays6", address.octets().to_vec()),
    };
    key.extend(endpoint.port().to_be_bytes());
    key.extend([0; 2]);
    programs
        .map(map)?
        .update(&key, &[1], MapFlags::ANY)
        .map_err(|error| LabError(format!("cannot list a relay in {map}: {error}")))
}
