//! The minimal program with the whole rule: benches/bpf/rule.bpf.c. Not for every bench.

use crate::common::bpf;
use exitmark_lab::LabError;
use exitmark_lab::bpf::Programs;
use exitmark_policy::packet::MacAddr;
use libbpf_rs::{MapCore, MapFlags};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const RULE: &str = "rule.bpf.c";

/// The site of the rule.
pub(crate) struct RuleSite {
    /// The host's addresses.
    pub(crate) host: Vec<IpAddr>,
    /// The indices of the interfaces to the uplink and the incoming network.
    pub(crate) interfaces: [u32; 2],
    /// The destination and the source MAC address of steered frames.
    pub(crate) macs: [MacAddr; 2],
}

impl RuleSite {
    /// Compiles and loads the program with these relays.
    pub(crate) fn load(
        &self,
        relays: impl Iterator<Item = SocketAddr>,
    ) -> Result<Programs, LabError> {
        let compiled = bpf::compile(RULE)?;
        let programs = Programs::load_prepared(RULE, &compiled, &[], &self.constants())?;
        for endpoint in relays {
            list(&programs, endpoint)?;
        }
        Ok(programs)
    }

    /// The bytes of `site` in rule.bpf.c.
    fn constants(&self) -> Vec<u8> {
        let (mut host4, mut host6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        for address in &self.host {
            match address {
                IpAddr::V4(address) => host4 = *address,
                IpAddr::V6(address) => host6 = *address,
            }
        }
        let mut bytes = Vec::new();
        bytes.extend(host4.octets());
        bytes.extend(host6.octets());
        bytes.extend(self.interfaces.map(u32::to_ne_bytes).as_flattened());
        bytes.extend(self.macs.map(MacAddr::bytes).as_flattened());
        bytes
    }
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
