//! A minimal BPF program with the whole rule and nothing else, in XDP and in tc: both are
//! benches/bpf/rule.bpf.c.

#[path = "../../common/rule.rs"]
mod bare;

use super::{Started, in_kernel};
use crate::load::Load;
use crate::site::{BOX_HOST, BOX_INCOMING, BOX_INCOMING_MAC, BOX_UPLINK, INCOMING_MAC, Site};
use crate::traffic::Traffic;
use bare::RuleSite;
use exitmark_lab::LabError;
use exitmark_lab::bpf::{Programs, interface_index};

// `enum port` of rule.bpf.c.
const PORTS: [&str; 2] = [BOX_UPLINK, BOX_INCOMING];

/// Starts the program in XDP, before the kernel allocates an skb.
pub(super) fn start_xdp(site: &Site, _: &Traffic, load: &Load) -> Started {
    start(site, load, "rule_xdp")
}

/// Starts a program that marks every frame and redirects it to the uplink.
pub(super) fn start_touch(site: &Site, _: &Traffic, load: &Load) -> Started {
    start(site, load, "touch_xdp")
}

fn start(site: &Site, load: &Load, program: &'static str) -> Started {
    let programs = load_with_relays(site, load)?;
    for (number, interface) in (0_u32..).zip(PORTS) {
        programs.aim("ports", number, &site.middle, interface)?;
    }
    programs.attach(program, &site.middle, BOX_HOST)?;
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
    let index = |interface| site.middle.run(move || interface_index(interface));
    let [uplink, incoming] = PORTS.map(index);
    let rule = RuleSite {
        host: vec![load.host()],
        interfaces: [uplink?, incoming?],
        macs: [INCOMING_MAC, BOX_INCOMING_MAC],
    };
    rule.load(load.relays())
}
