//! Builds the report of engine connect.

use super::super::counters::print_line;
use super::super::report::marks;
use super::TorHostDaemon;
use crate::observe::{ConnectionClass, ConnectionsReport, EngineReport, Report, Warning};
use exitmark_datapath::Connections;
use exitmark_policy::{Class, Rule};
use std::net::IpAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long an alarm stays after the last connection that it is about.
const ALARM_TIME: Duration = Duration::from_secs(60);
/// The classes that connections of tor have.
const CLASSES: [(Class, Rule); 4] = [
    (Class::Exit, Rule::ExitProtocol),
    (Class::Relay, Rule::ToListedRelay),
    (Class::Resolver, Rule::ToResolver),
    (Class::Exempt, Rule::ToExemptPrefix),
];

/// When sockets were last left as they should not be.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    unmarked: Option<Instant>,
    unsteered: Option<Instant>,
}

impl Trouble {
    /// Compares the counters with those of a second before.
    pub(super) fn look(&mut self, before: &Connections, now: &Connections) {
        let of_mark = |counts: &Connections| counts.unmarked + counts.no_policy;
        for (last, is_new, what) in [
            (
                &mut self.unmarked,
                of_mark(now) > of_mark(before),
                "ALARM: exit connections are not marked",
            ),
            (
                &mut self.unsteered,
                now.unsteered > before.unsteered,
                "ALARM: relay connections are not steered",
            ),
        ] {
            if is_new {
                if !is_recent(*last) {
                    tracing::error!("{what}; `exitmark status` says why");
                }
                *last = Some(Instant::now());
            }
        }
    }
}

fn is_recent(last: Option<Instant>) -> bool {
    last.is_some_and(|last| last.elapsed() < ALARM_TIME)
}

impl TorHostDaemon {
    pub(super) fn report(&mut self) -> Report {
        self.look_at_counters();
        let (since, started) = self.started;
        let settings = &self.in_force.settings;
        let mut report = Report {
            version: exitmark_service::VERSION.to_owned(),
            started_at: since
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            uptime_seconds: started.elapsed().as_secs_f64(),
            mode: settings.rules.mode().name().to_owned(),
            classify_by: settings.rules.classify_by.name().to_owned(),
            mark: marks(&settings.rules),
            generation: self.in_force.snapshot.generation,
            engine: EngineReport {
                asked: settings.engine.name().to_owned(),
                chosen: settings.engine.name().to_owned(),
                reason: "the sockets of tor on this machine".to_owned(),
                ..EngineReport::default()
            },
            connections: Some(self.connections()),
            relay_set: self.in_force.relay_set(),
            reloads: self.in_force.reloads.0,
            reloads_refused: self.in_force.reloads.1,
            ..Report::default()
        };
        report.warnings = self.warnings(&report);
        report
    }

    fn connections(&self) -> ConnectionsReport {
        let counts = &self.counts;
        ConnectionsReport {
            users: self.sockets.users.ids().len() as u64,
            classes: CLASSES
                .map(|(class, rule)| ConnectionClass {
                    class: class.name().to_owned(),
                    opened: counts.opened(rule),
                    earlier: counts.earlier(rule),
                })
                .into(),
            marked: counts.marked,
            own_tos: counts.own_tos,
            unmarked: counts.unmarked,
            steered: counts.steered,
            own_source: counts.own_source,
            unsteered: counts.unsteered,
            earlier_marked: counts.earlier_marked,
            earlier_unmarked: counts.earlier_unmarked,
            no_policy: counts.no_policy,
        }
    }

    /// The warnings, the most severe first.
    fn warnings(&self, report: &Report) -> Vec<Warning> {
        let mut warnings = self.in_force.warnings(&report.relay_set);
        let mut warn = |kind: &str, is_alarm: bool, text: String| {
            warnings.push(Warning::new(kind, is_alarm, text));
        };
        let settings = &self.in_force.settings;
        let users = &self.sockets.users;
        let by_user = settings
            .tor
            .as_ref()
            .is_some_and(|tor| tor.cgroups.is_empty());
        let unmatched = users.unmatched();
        if let Some(reason) = &self.unset_users {
            let text = format!("new users of tor are not judged: {reason}");
            warn("users", true, text);
        } else if by_user && users.ids().is_empty() {
            let text = "tor.users matches no user, so no connection is marked: compare it with `ps \
                        -C tor -o user=`";
            warn("users", true, text.to_owned());
        } else if !unmatched.is_empty() {
            let text = format!("tor.users: no user matches {}", unmatched.join(", "));
            warn("users", false, text);
        }
        if let Some(reason) = users.trouble() {
            let text = format!("users that come and go are not followed: {reason}");
            warn("users", false, text);
        }
        if let Some(reason) = &self.unattached {
            let text = format!("connections of a cgroup are neither marked nor steered: {reason}");
            warn("cgroup", true, text);
        }
        if let Some(reason) = &self.unpinned {
            warn("unpinned", true, reason.clone());
        }
        if is_recent(self.trouble.unmarked) {
            let text = "exit connections are not marked: the kernel refuses to set the DSCP. On \
                        IPv4-mapped IPv6 sockets, which tor does not use, older kernels do";
            warn("unmarked", true, text.to_owned());
        }
        let sockets = &settings.rules.sockets;
        let sources = [
            sockets.source_v4.map(IpAddr::from),
            sockets.source_v6.map(IpAddr::from),
        ];
        for source in sources.into_iter().flatten() {
            if !self.sockets.machine.has(source) {
                let text = format!(
                    "steer.source {source} is not an address of this machine, so relay connections \
                     cannot be bound to it: `ip address add {source} dev NIC`"
                );
                warn("steering", true, text);
            }
        }
        let interface = settings.tor.as_ref().and_then(|tor| tor.interface.as_ref());
        if let Some(name) = interface
            && self.sockets.machine.interface().is_none()
        {
            let text = format!(
                "steer.interface \"{name}\" does not exist, so relay connections leave by any NIC: \
                 compare it with `ip link`"
            );
            warn("steering", true, text);
        }
        if is_recent(self.trouble.unsteered) {
            let text = "relay connections leave unsteered: the kernel refuses to bind them, or \
                        steer.source has no address of their IP version";
            warn("unsteered", true, text.to_owned());
        }
        if self.misses_earlier {
            let text = "connections that were open before exitmark are neither counted nor marked: \
                        `systemctl restart tor` opens new ones";
            warn("earlier", false, text.to_owned());
        } else if self.counts.earlier_unmarked > 0 {
            let text = format!(
                "{} exit connections that were open before exitmark are not marked: the kernel \
                 refuses to set the DSCP; `systemctl restart tor` opens new ones",
                self.counts.earlier_unmarked
            );
            warn("earlier", false, text);
        }
        warnings.sort_by_key(|warning| !warning.is_alarm);
        warnings
    }

    /// Prints the counters on a line.
    pub(super) fn print_counters(&self) {
        let counts = &self.counts;
        let mut line = "counters:".to_owned();
        for (class, rule) in CLASSES {
            let name = class.name();
            line += &format!(" {name}={}", counts.opened(rule));
            line += &format!(" earlier_{name}={}", counts.earlier(rule));
        }
        for (name, number) in [
            ("marked", counts.marked),
            ("own_tos", counts.own_tos),
            ("unmarked", counts.unmarked),
            ("steered", counts.steered),
            ("own_source", counts.own_source),
            ("unsteered", counts.unsteered),
            ("earlier_marked", counts.earlier_marked),
            ("earlier_unmarked", counts.earlier_unmarked),
            ("no_policy", counts.no_policy),
        ]
        .into_iter()
        .chain(self.in_force.relay_service.numbers())
        {
            line += &format!(" {name}={number}");
        }
        print_line(&line);
    }
}
