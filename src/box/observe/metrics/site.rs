//! The metrics of the groups of hosts, the next hops and the host addresses.

use super::Counted;
use crate::observe::{ClassCount, GroupReport, Report, SteeringReport, SteeringState};
use exitmark_service::prometheus::{Labels, Metrics, labels, single};
use std::fmt;

/// Each count of a group's frames with a property.
pub(in crate::observe) fn group_counts(group: &GroupReport) -> [Counted; 6] {
    [
        (
            "marked",
            "Frames of a group whose DSCP was set to the mark",
            group.marked,
        ),
        (
            "cleared",
            "Frames of a group, of classes other than exit, whose mark was cleared",
            group.cleared,
        ),
        (
            "unsteered",
            "Relay frames of a group that left by the uplink, because incoming could not be used",
            group.unsteered,
        ),
        (
            "unrouted_vlan",
            "Relay frames of a group that were not steered, because of other VLAN tags than host.vlan",
            group.unrouted_vlan,
        ),
        (
            "unrouted_family",
            "Relay frames of a group that were not steered, for lack of a next hop of their IP version",
            group.unrouted_family,
        ),
        (
            "unrouted_source",
            "Relay frames of a group that were not steered, because no answer would be translated back",
            group.unrouted_source,
        ),
    ]
}

pub(super) fn site(out: &mut Metrics<'_>, report: &Report) -> fmt::Result {
    groups(out, &report.groups)?;
    steering(out, &report.steering)?;
    out.gauge(
        "host_addresses",
        "Addresses of the hosts whose MAC address is known",
        single(u64::try_from(report.hosts.len()).unwrap_or(u64::MAX)),
    )
}

fn groups(out: &mut Metrics<'_>, groups: &[GroupReport]) -> fmt::Result {
    let classes = |value: fn(&ClassCount) -> u64| {
        groups.iter().flat_map(move |group| {
            let of_class = move |class: &ClassCount| {
                let labels = labels([("group", &group.name), ("class", &class.class)]);
                (labels, value(class))
            };
            group.classes.iter().map(of_class)
        })
    };
    out.counter(
        "group_frames",
        "Frames of each class from the hosts of a group, if there are several groups",
        classes(|class| class.frames),
    )?;
    out.bytes(
        "group",
        "Bytes of frames of each class from the hosts of a group, if there are several groups",
        classes(|class| class.bytes),
    )?;
    for (at, (name, help, _)) in group_counts(&GroupReport::default())
        .into_iter()
        .enumerate()
    {
        let values = groups.iter().map(|group| -> (Labels, u64) {
            let (_, _, frames) = group_counts(group)[at];
            (labels([("group", &group.name)]), frames)
        });
        out.counter(&format!("group_{name}_frames"), help, values)?;
    }
    Ok(())
}

fn steering(out: &mut Metrics<'_>, steering: &SteeringReport) -> fmt::Result {
    out.gauge(
        "steering_up",
        "1 if relay traffic can leave by incoming to every next hop, else 0",
        single((steering.state == SteeringState::Steering).into()),
    )?;
    out.gauge(
        "steering_state",
        "1 for the state that steering is in (the worst of the next hops), 0 for the others",
        SteeringState::ALL.map(|state| {
            let is = (steering.state == state).into();
            (labels([("state", state.name())]), is)
        }),
    )?;
    out.gauge(
        "next_hop_up",
        "1 if relay traffic can leave to this next hop, else 0; vlan is untagged, or the IDs",
        steering.next_hops.iter().map(|hop| {
            let labels = labels([("next_hop", &hop.next_hop), ("vlan", hop.vlan_ids())]);
            (labels, hop.is_usable().into())
        }),
    )?;
    out.counter(
        "steering_changes",
        "Changes of a next hop's MAC address or state, in this process",
        single(steering.changes),
    )
}
