//! Findings on a Tor host with engine connect: cgroups, the users of tor, and the routes of relay
//! connections.

use super::tor_facts::{RelayRoutes, TorFacts};
use super::{Finding, word};
use exitmark_policy::packet::Version;
use std::io;
use std::path::Path;

/// The routing table and the metric in the printed commands, as in docs/connect.md. Only sockets
/// that are bound to its NIC use a route of this metric.
const TABLE: u32 = 100;
const METRIC: u32 = 4096;
const PLACEHOLDERS: &str = "in the command, GATEWAY is the router for relay traffic, NIC the NIC on \
                            its network, and the table one that nothing else uses";
const STEERING: &str = "steering";

pub(super) fn judge(tor: &TorFacts) -> Vec<Finding> {
    let mut findings = vec![mount(tor)];
    let cgroups = tor.cgroups.iter();
    findings.extend(cgroups.map(|(path, trouble)| cgroup(path, *trouble)));
    findings.extend(users(&tor.users));
    findings.extend(steering(tor));
    findings
}

fn mount(tor: &TorFacts) -> Finding {
    match &tor.mount {
        Some(mount) => Finding::ok(
            "cgroups",
            format!("cgroup2 is mounted at {}", mount.display()),
        ),
        None => Finding::fault("cgroups", "no cgroup2 file system is mounted")
            .because("the kernel finds tor's connections by it")
            .mended_by(
                "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
            ),
    }
}

fn cgroup(path: &Path, trouble: Option<io::ErrorKind>) -> Finding {
    let path = path.display();
    let what = match trouble {
        None => return Finding::ok("cgroups", format!("{path} exists")),
        Some(io::ErrorKind::NotFound) => format!("{path} does not exist"),
        Some(other) => format!("{path} cannot be opened: {other}"),
    };
    Finding::fault("cgroups", what).because(
        "its connections are left alone until it exists, and without any of tor.cgroups `exitmark \
         run` does not start; `systemd-cgls` lists those of running units",
    )
}

fn users(users: &[(String, Vec<u32>)]) -> Vec<Finding> {
    let has_any = users.iter().any(|(_, ids)| !ids.is_empty());
    let finding = |(entry, ids): &(String, Vec<u32>)| {
        let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
        if !ids.is_empty() {
            let plural = if ids.len() > 1 { "s" } else { "" };
            let ids = ids.join(", ");
            let what = format!("tor.users: {entry} has the user ID{plural} {ids}");
            return Finding::ok("users", what);
        }
        let what = format!("tor.users: {entry} matches no user");
        match has_any {
            true => {
                Finding::warning("users", what).because("`ps -C tor -o user:32=` shows tor's users")
            }
            false => Finding::fault("users", what)
                .because("no connection is judged; `ps -C tor -o user:32=` shows tor's users"),
        }
    };
    users.iter().map(finding).collect()
}

fn steering(tor: &TorFacts) -> Vec<Finding> {
    if let Some((name, false)) = &tor.interface {
        let what = format!("steer.interface \"{name}\" does not exist");
        let finding = Finding::fault(STEERING, what);
        return vec![
            finding.because("relay connections leave by any NIC; `ip link` lists the NICs"),
        ];
    }
    let sockets = &tor.sockets;
    let names_source = sockets.source_v4.is_some() || sockets.source_v6.is_some();
    if !names_source && sockets.fwmark == 0 && tor.interface.is_none() {
        let what = "relay connections leave as tor's others do";
        let finding = Finding::ok(STEERING, what);
        return vec![finding.because("[steer] names no source, fwmark or interface")];
    }
    match &tor.routes {
        Ok(routes) => routes.iter().flat_map(|one| route(tor, one)).collect(),
        Err(reason) => {
            let what = "the routes of relay connections cannot be read";
            vec![Finding::warning(STEERING, what).because(reason.as_str())]
        }
    }
}

fn route(tor: &TorFacts, routes: &RelayRoutes) -> Vec<Finding> {
    let relays = format!("relay connections over {}", name(routes.version));
    let mut findings = match (&routes.relays, &routes.others) {
        // The machine does not use this IP version.
        (None, None) if routes.source.is_none() => Vec::new(),
        (None, _) => vec![
            Finding::fault(STEERING, format!("{relays} have no route"))
                .because(format!("they fail; {PLACEHOLDERS}"))
                .mended_by(commands(tor, routes)),
        ],
        (Some(nic), Some(others)) if nic == others => vec![alike(tor, routes, nic)],
        (Some(nic), Some(others)) => vec![Finding::ok(
            STEERING,
            format!("{relays} leave by {nic}, tor's others by {others}"),
        )],
        (Some(nic), None) => vec![Finding::ok(STEERING, format!("{relays} leave by {nic}"))],
    };
    if let (Some(nic), Some(source)) = (&routes.relays, routes.unanswered) {
        let what = format!("answers to {relays} are dropped at {nic}");
        let why = format!(
            "net.ipv4.conf.{nic}.rp_filter is 1, and packets from {source} to a relay leave by \
             another NIC without the socket's fwmark or NIC; {PLACEHOLDERS}"
        );
        findings.push(Finding::fault(STEERING, what).because(why).mended_by(rule(
            routes.version,
            &format!("from {source}"),
            &word(nic),
        )));
    }
    findings
}

/// Relay connections leave by the same NIC as others.
fn alike(tor: &TorFacts, routes: &RelayRoutes, nic: &str) -> Finding {
    let what = format!(
        "relay connections over {} leave by {nic}, as tor's others do",
        name(routes.version)
    );
    let fwmark = tor.sockets.fwmark;
    match (&routes.source, &tor.interface) {
        (None, Some(_)) => Finding::warning(STEERING, what).because(
            "steer.interface is the NIC of all connections, so nothing distinguishes them; name the \
             NIC for relay traffic",
        ),
        (_, None) if fwmark != 0 => Finding::warning(STEERING, what)
            .because(format!(
                "no rule routes the fwmark {fwmark:#x} to another NIC; {PLACEHOLDERS}"
            ))
            .mended_by(commands(tor, routes)),
        (Some((source, home)), None) if home != nic => Finding::warning(STEERING, what)
            .because(format!(
                "they leave from {source}, which is an address of {home}, and no rule routes it \
                 there; {PLACEHOLDERS}"
            ))
            .mended_by(commands(tor, routes)),
        (Some((source, _)), None) => Finding::ok(STEERING, what).because(format!(
            "they are distinguished by their address {source}; for a NIC of their own: `{}`, where \
             {PLACEHOLDERS}",
            commands(tor, routes)
        )),
        (Some((source, _)), Some(_)) => Finding::ok(STEERING, what)
            .because(format!("they are distinguished by their address {source}")),
        (None, None) => Finding::ok(STEERING, what),
    }
}

/// The commands that make relay connections of this IP version leave by another NIC.
fn commands(tor: &TorFacts, routes: &RelayRoutes) -> String {
    if let Some((interface, _)) = &tor.interface {
        let (ip, nic) = (ip(routes.version), word(interface));
        return format!("{ip} route add default via GATEWAY dev {nic} metric {METRIC}");
    }
    let home = routes.source.as_ref().map(|(_, home)| home);
    let nic = home.filter(|home| Some(*home) != routes.others.as_ref());
    let nic = nic.map_or("NIC".to_owned(), |nic| word(nic));
    let of = match (tor.sockets.fwmark, &routes.source) {
        (0, Some((source, _))) => format!("from {source}"),
        (fwmark, _) => format!("fwmark {fwmark:#x}"),
    };
    rule(routes.version, &of, &nic)
}

/// The commands by which packets that a rule selects leave by a NIC.
fn rule(version: Version, selector: &str, nic: &str) -> String {
    let ip = ip(version);
    // The table may have the route already, for another rule.
    format!(
        "{ip} rule add {selector} lookup {TABLE} && {ip} route replace default via GATEWAY dev {nic} \
         table {TABLE}"
    )
}

const fn ip(version: Version) -> &'static str {
    match version {
        Version::V4 => "ip",
        Version::V6 => "ip -6",
    }
}

const fn name(version: Version) -> &'static str {
    match version {
        Version::V4 => "IPv4",
        Version::V6 => "IPv6",
    }
}
