//! Findings on the next hops: the box's VLAN interfaces, their addresses, the neighbour table, and
//! the room for the tags that steering adds.

use super::facts::{Facts, Port};
use super::{Finding, word};
use crate::settings::Hop;
use exitmark_nic::{NextHop, Nic, VlanInterface};
use exitmark_policy::packet::MacAddr;
use exitmark_policy::{Group, Steer};
use ipnet::IpNet;
use std::net::IpAddr;

/// MTUs that hosts usually have: Ethernet's standard, and that of jumbo frames.
const OF_HOSTS: [u32; 2] = [1500, 9000];
/// The length of one tag, which the kernel accepts on top of the MTU, except on veth.
const TAG_BYTES: u32 = 4;

/// A next hop, and what the machine knows of it.
#[derive(Clone, Debug)]
pub(crate) struct HopFacts {
    pub(super) hop: Hop,
    /// The box's VLAN interface on which the address is resolved, or the commands that make one.
    /// `None` if none is needed: the next hop is untagged, or configured as a MAC address.
    pub(super) vlan: Option<Result<VlanFacts, String>>,
    /// The MAC address: configured, or from the neighbour table.
    pub(super) mac: Option<MacAddr>,
}

/// A VLAN interface of the box.
#[derive(Clone, Debug)]
pub(crate) struct VlanFacts {
    pub(super) interface: VlanInterface,
    /// The box's own addresses on it.
    pub(super) addresses: Vec<IpNet>,
}

impl HopFacts {
    /// Reads the state of a next hop on this NIC, the one that is `incoming`.
    pub(super) fn look(hop: Hop, nic: Option<&Nic>) -> Self {
        let known = |vlan, mac| Self { hop, vlan, mac };
        let (address, nic) = match (hop.next_hop, nic) {
            (NextHop::Mac(mac), _) => return known(None, Some(mac)),
            (NextHop::Address(_), None) => return known(None, None),
            (NextHop::Address(address), Some(nic)) => (address, nic),
        };
        let neighbour = |nic: &Nic| nic.neighbour(address).ok().flatten();
        let tags: Vec<u16> = hop.vlan.ids().collect();
        if tags.is_empty() {
            return known(None, neighbour(nic));
        }
        let found = nic.vlan_interface(&tags).and_then(|interface| {
            let on = Nic::look(&interface.name)?;
            let facts = VlanFacts {
                interface,
                addresses: on.addresses.clone(),
            };
            Ok((facts, neighbour(&on)))
        });
        match found {
            Ok((vlan, mac)) => known(Some(Ok(vlan)), mac),
            Err(error) => known(Some(Err(error.to_string())), None),
        }
    }
}

/// The most bytes by which the tags of `steer.vlan` make a frame of these groups longer.
pub(super) fn added_tags(groups: &[Group]) -> u32 {
    let steered = groups.iter();
    let steered = steered.filter(|group| group.actions.intent().steer != Steer::Off);
    let added = steered.map(|group| group.path.vlan.bytes().saturating_sub(group.vlan.bytes()));
    u32::try_from(added.max().unwrap_or(0)).unwrap_or(u32::MAX)
}

pub(super) fn judge(facts: &Facts, port: &Port, nic: &Nic) -> Vec<Finding> {
    if !facts.scope.is_egress(port.role) {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = room_for_tags(facts, nic).into_iter().collect();
    // Two next hops may be in one VLAN.
    for finding in facts.next_hops.iter().flat_map(|hop| next_hop(hop, nic)) {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

/// Warns if a full frame of a host does not fit with the tags that steering adds. The kernel
/// accepts frames of MTU and Ethernet header, and except on veth one tag more
/// (include/linux/filter.h, `xdp_ok_fwd_dev`; drivers/net/veth.c, `veth_xdp_xmit`).
fn room_for_tags(facts: &Facts, nic: &Nic) -> Option<Finding> {
    let added = facts.scope.added_tags;
    let room = if nic.is_veth { 0 } else { TAG_BYTES };
    let lacking = added.checked_sub(room).filter(|lacking| *lacking > 0)?;
    // The MTU of the hosts is not known: an unusual one of the NICs is meant to leave room.
    let is_lacking = |of_hosts: &u32| nic.mtu >= *of_hosts && nic.mtu - of_hosts < lacking;
    let of_hosts = OF_HOSTS.into_iter().find(is_lacking)?;
    let what = format!("MTU {}, without room for the tags of steer.vlan", nic.mtu);
    Some(Finding::warning(&nic.name, what).because(format!(
        "they make relay frames of the hosts {added} bytes longer, so that full frames are lost: set \
         the MTU of every port to {}, and leave that of the hosts at {of_hosts}",
        of_hosts + lacking
    )))
}

fn next_hop(facts: &HopFacts, nic: &Nic) -> Vec<Finding> {
    let hop = facts.hop;
    let address = match hop.next_hop {
        NextHop::Mac(mac) if mac == nic.mac => {
            let finding = Finding::fault(&nic.name, "steer.next_hop is this NIC's own MAC address");
            return vec![finding.because("name the router on that network")];
        }
        NextHop::Mac(_) => return vec![Finding::ok(&nic.name, format!("the next hop is {hop}"))],
        NextHop::Address(address) => address,
    };
    let (subject, addresses, mut findings) = match &facts.vlan {
        None => (&nic.name, &nic.addresses, Vec::new()),
        Some(Err(missing)) => return vec![Finding::fault(&nic.name, missing.as_str())],
        Some(Ok(vlan)) => {
            let name = &vlan.interface.name;
            match vlan_interface(&vlan.interface, nic, facts.hop) {
                Some(fault) => return vec![fault],
                None => {
                    let what = format!("the box's interface of {} on {}", hop.vlan, nic.name);
                    (name, &vlan.addresses, vec![Finding::ok(name, what)])
                }
            }
        }
    };
    let is_same = |own: &IpNet| own.addr().is_ipv4() == address.is_ipv4();
    let can_ask = addresses.iter().any(is_same);
    // For an untagged next hop the configuration's findings say it.
    if facts.vlan.is_some() && !can_ask {
        findings.push(no_address(subject, address));
        return findings;
    }
    findings.push(match facts.mac {
        Some(mac) => Finding::ok(subject, format!("the next hop {hop} is {mac}")),
        None => {
            let what = format!("the next hop {hop} is not in the neighbour table");
            let finding = Finding::warning(subject, what).because(
                "`exitmark run` resolves it; until the next hop answers, relay traffic is not steered",
            );
            match can_ask {
                true => finding.mended_by(format!("ping -c 1 -I {} {address}", word(subject))),
                false => finding,
            }
        }
    });
    findings
}

/// The fault of a VLAN interface with which `exitmark run` does not start.
fn vlan_interface(vlan: &VlanInterface, nic: &Nic, hop: Hop) -> Option<Finding> {
    let (name, shown) = (&vlan.name, word(&vlan.name));
    let tags: Vec<u16> = hop.vlan.ids().collect();
    if let Err(error) = vlan.refuse_other_protocol(nic, &tags) {
        return Some(Finding::fault(name, error.to_string()));
    }
    if vlan.refuse_down().is_err() {
        let finding = Finding::fault(name, "down").because("the box resolves a next hop there");
        return Some(finding.mended_by(format!("ip link set dev {shown} up")));
    }
    if vlan.refuse_other_mac(nic).is_err() {
        let what = format!("MAC address {}, not that of {}", vlan.mac, nic.name);
        let finding = Finding::fault(name, what)
            .because("the box does not receive what the next hop answers there");
        return Some(finding.mended_by(format!("ip link set dev {shown} address {}", nic.mac)));
    }
    None
}

fn no_address(subject: &str, next_hop: IpAddr) -> Finding {
    let family = if next_hop.is_ipv4() { "IPv4" } else { "IPv6" };
    let what = format!("no {family} address, from which the next hop {next_hop} could be resolved");
    Finding::warning(subject, what).because(format!(
        "relay traffic to it is not steered: `ip addr add ADDRESS/LENGTH dev {}`",
        word(subject)
    ))
}
