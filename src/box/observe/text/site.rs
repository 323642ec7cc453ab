//! The text of the groups of hosts, the next hops, and the host addresses.

use super::{Text, bytes, count, item, those_there_are};
use crate::observe::metrics::group_counts;
use crate::observe::{HostReport, NextHopReport, SteeringState};
use std::collections::BTreeMap;
use std::fmt;

/// The most host addresses shown, as many as a /24 has.
const ADDRESSES: usize = 256;

impl Text<'_> {
    /// A block for each group, if there are several.
    pub(super) fn groups(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in &self.0.groups {
            let classes = group.classes.iter().filter(|class| class.frames > 0);
            let classes = classes.map(|class| {
                let (frames, bytes) = (count(class.frames), bytes(class.bytes));
                format!("{} {frames} ({bytes})", class.class)
            });
            let classes = match classes.collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "no frames".to_owned(),
                some => some,
            };
            item(f, "group", &format!("{}: {classes}", group.name))?;
            let counts = group_counts(group).into_iter();
            let counts = counts.map(|(name, _, frames)| (name.replace('_', " "), frames));
            let counts = those_there_are(counts);
            if counts != "none" {
                item(f, "", &counts)?;
            }
        }
        Ok(())
    }

    pub(super) fn steering(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steering = &self.0.steering;
        let hops = steering.next_hops.as_slice();
        let has_several = hops.len() > 1;
        let state = match (steering.state, has_several) {
            (SteeringState::Off, _) => {
                return item(f, "steering", "off: incoming is not set");
            }
            (SteeringState::Steering, _) => "relay traffic leaves by `incoming`",
            (SteeringState::NoCarrier, false) => "no-carrier: the NIC has no link",
            (SteeringState::NoCarrier, true) => "no-carrier: a next hop has no link",
            (SteeringState::Unresolved, false) => {
                "unresolved: the next hop's MAC address is not known"
            }
            (SteeringState::Unresolved, true) => {
                "unresolved: the MAC address of a next hop is not known"
            }
        };
        item(f, "steering", state)?;
        let changes = count(steering.changes);
        let rest = format!(
            "changes: {changes}; on_unavailable: {}",
            steering.on_unavailable
        );
        if has_several {
            item(f, "", &rest)?;
            return hops.iter().try_for_each(|hop| next_hop(f, hop));
        }
        let next_hop = steering.next_hop.as_deref().unwrap_or("none");
        let vlan = hops.first().map_or_else(String::new, in_vlan);
        let mac = steering.next_hop_mac.as_deref().unwrap_or("not known");
        let at = match next_hop == mac {
            true => format!("{mac}{vlan}"),
            false => format!("{next_hop}{vlan} at {mac}"),
        };
        item(f, "", &format!("next hop {at}, {rest}"))
    }

    /// The host addresses, by their MAC addresses.
    pub(super) fn hosts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = &self.0.hosts;
        let mut by_mac: BTreeMap<&str, Vec<&HostReport>> = BTreeMap::new();
        for host in hosts.iter().take(ADDRESSES) {
            by_mac.entry(&host.mac).or_default().push(host);
        }
        let line = match hosts.len() {
            0 => "no host has sent a frame yet".to_owned(),
            1 => "1 address".to_owned(),
            addresses => format!("{addresses} addresses"),
        };
        item(f, "hosts", &line)?;
        for (mac, hosts) in by_mac {
            let shown: Vec<_> = hosts.into_iter().map(address).collect();
            item(f, "", &format!("{mac}: {}", shown.join(", ")))?;
        }
        match hosts.len().saturating_sub(ADDRESSES) {
            0 => Ok(()),
            more => item(f, "", &format!("and {more} more: `exitmark status --json`")),
        }
    }
}

/// The line of one of several next hops.
fn next_hop(f: &mut fmt::Formatter<'_>, hop: &NextHopReport) -> fmt::Result {
    let state = match (&hop.mac, hop.is_usable()) {
        (Some(mac), true) if *mac == hop.next_hop => String::new(),
        (Some(mac), true) => format!(" at {mac}"),
        _ => format!(" {}", hop.state.name()),
    };
    let (families, groups) = (hop.families.join(" and "), hop.groups.join(", "));
    let vlan = in_vlan(hop);
    let line = format!("{}{vlan}{state}, {families} of {groups}", hop.next_hop);
    item(f, "next hop", &line)
}

fn in_vlan(hop: &NextHopReport) -> String {
    match hop.vlan.as_str() {
        "" | "untagged" => String::new(),
        vlan => format!(" ({vlan})"),
    }
}

fn address(host: &HostReport) -> String {
    match host.changes {
        0 => host.address.clone(),
        1 => format!("{} (1 change)", host.address),
        changes => format!("{} ({changes} changes)", host.address),
    }
}
