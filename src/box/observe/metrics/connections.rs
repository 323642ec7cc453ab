//! The metrics of engine `connect`, which counts connections and no frames.

use crate::observe::ConnectionsReport;
use exitmark_service::prometheus::{Metrics, labels, single};
use std::fmt;

/// A count of connections by what was done with their sockets.
pub(in crate::observe) struct Count {
    pub(in crate::observe) of: SocketCount,
    /// The name, as in the metric `exitmark_NAME_connections`.
    pub(in crate::observe) name: &'static str,
    help: &'static str,
    pub(in crate::observe) connections: u64,
}

impl Count {
    /// Whether these sockets should have been changed, and were not.
    pub(in crate::observe) fn is_failure(&self) -> bool {
        ["unmarked", "earlier_unmarked", "no_policy", "unsteered"].contains(&self.name)
    }
}

/// The class of the connections in a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::observe) enum SocketCount {
    Exit,
    Relay,
}

/// Every count of connections by what was done with their sockets.
pub(in crate::observe) fn socket_counts(connections: &ConnectionsReport) -> [Count; 9] {
    use SocketCount::{Exit, Relay};
    let count = |of, name, help, connections| Count {
        of,
        name,
        help,
        connections,
    };
    [
        count(
            Exit,
            "marked",
            "Exit connections whose DSCP was set",
            connections.marked,
        ),
        count(
            Exit,
            "own_tos",
            "Exit connections left alone because tor had set a ToS itself",
            connections.own_tos,
        ),
        count(
            Exit,
            "unmarked",
            "Exit connections whose DSCP the kernel refused to set",
            connections.unmarked,
        ),
        count(
            Exit,
            "earlier_marked",
            "Exit connections open before exitmark whose DSCP was set",
            connections.earlier_marked,
        ),
        count(
            Exit,
            "earlier_unmarked",
            "Exit connections open before exitmark whose DSCP the kernel refused to set",
            connections.earlier_unmarked,
        ),
        count(
            Exit,
            "no_policy",
            "Connections before the first policy",
            connections.no_policy,
        ),
        count(
            Relay,
            "steered",
            "Relay connections that got a source address, a fwmark or a NIC",
            connections.steered,
        ),
        count(
            Relay,
            "own_source",
            "Relay connections left alone because tor had bound the socket itself",
            connections.own_source,
        ),
        count(
            Relay,
            "unsteered",
            "Relay connections that could not be steered",
            connections.unsteered,
        ),
    ]
}

pub(super) fn connections(out: &mut Metrics<'_>, connections: &ConnectionsReport) -> fmt::Result {
    out.gauge(
        "users",
        "User IDs whose connections are judged; 0 if those of cgroups are",
        single(connections.users),
    )?;
    let classes = connections.classes.iter();
    out.counter(
        "class_connections",
        "Connections of tor of each class, judged when they were opened",
        classes
            .clone()
            .map(|of| (labels([("class", &of.class)]), of.opened)),
    )?;
    out.counter(
        "class_earlier_connections",
        "Connections of tor of each class that were open before exitmark",
        classes.map(|of| (labels([("class", &of.class)]), of.earlier)),
    )?;
    for count in socket_counts(connections) {
        let name = format!("{}_connections", count.name);
        out.counter(&name, count.help, single(count.connections))?;
    }
    Ok(())
}
