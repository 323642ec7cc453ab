//! Explains connections of tor by their destination: class, rule, and what is set on the socket.

use super::{ExplainError, load};
use crate::machine::Machine;
use crate::settings::{Engine, Settings, WhenStale};
use exitmark_policy::{
    Class, ConnectionVerdict, Mode, Rules, Snapshot, SocketRules, Steer, judge_connection,
};
use exitmark_relays::{Age, Loaded};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

/// The most destinations at once: the command explains a few, and does not sort many.
pub(crate) const MAX_CONNECTIONS: usize = 64;

/// What would happen to the connections, one on each line.
#[derive(Debug)]
pub(crate) struct ExplainedConnections {
    lines: Vec<Line>,
    /// Why there is no relay set, if there is none.
    pub(crate) fault: Option<ExplainError>,
}

#[derive(Debug)]
struct Line {
    destination: SocketAddr,
    class: Class,
    rule: &'static str,
    treatment: String,
}

/// Explains a connection to each of these destinations, as one of tor on this machine.
///
/// # Errors
/// The configuration is of a box, or this machine's addresses cannot be read.
pub(crate) fn explain_connections(
    destinations: &[SocketAddr],
    settings: &Settings,
    now: SystemTime,
) -> Result<ExplainedConnections, ExplainError> {
    let (Engine::Connect, Some(tor)) = (settings.engine, &settings.tor) else {
        return Err(ExplainError::Frames(settings.engine.name()));
    };
    let mut machine = Machine::default();
    machine.follow(tor)?;
    let extra = &settings.relays.sources.extra;
    let (loaded, fault) = match load(settings) {
        Ok(loaded) => (loaded, None),
        Err(error) => (Loaded::default(), Some(error.into())),
    };
    let relays = loaded.with(extra)?;
    let passes = match fault {
        Some(_) => Some("there is no relay set"),
        None if passes_stale(&loaded, settings, now) => {
            Some("the relay set is stale, and relays.when_stale = \"pass\"")
        }
        None => None,
    };
    let rules = machine.rules(settings);
    let effective = match passes {
        Some(_) => rules.passing(),
        None => rules.clone(),
    };
    let site = Site {
        interface: tor.interface.as_deref(),
        machine,
        rules,
        passes,
    };
    let snapshot = Snapshot::new(1, Arc::new(effective), relays);
    let line = |&destination: &SocketAddr| {
        let verdict = judge_connection(destination, &snapshot);
        let address = destination.ip().to_canonical();
        Line {
            destination,
            class: verdict.class(),
            rule: site.describe(&verdict, address),
            treatment: site.treatment(&verdict, address),
        }
    };
    Ok(ExplainedConnections {
        lines: destinations.iter().map(line).collect(),
        fault,
    })
}

/// Whether sockets are left alone because the newest document is stale.
fn passes_stale(loaded: &Loaded, settings: &Settings, now: SystemTime) -> bool {
    let ages = loaded.sources.iter().map(|source| source.validity.age(now));
    settings.relays.when_stale == WhenStale::Pass && ages.min() == Some(Age::Stale)
}

/// What an explanation depends on besides the verdict.
struct Site<'s> {
    machine: Machine,
    /// The rules without regard to `passes`.
    rules: Rules,
    /// Why all sockets are left alone, if they are.
    passes: Option<&'static str>,
    /// The name of the NIC `steer.interface`.
    interface: Option<&'s str>,
}

impl Site<'_> {
    fn describe(&self, verdict: &ConnectionVerdict, address: IpAddr) -> &'static str {
        match verdict.class() {
            Class::Exempt if Machine::is_near(address) => "to a loopback or link-local address",
            Class::Exempt if self.machine.has(address) => "to an address of this machine",
            _ => verdict.describe(),
        }
    }

    /// What is set on the socket, or why nothing is.
    fn treatment(&self, verdict: &ConnectionVerdict, address: IpAddr) -> String {
        if let Some(mark) = verdict.mark {
            return format!("DSCP {mark}");
        }
        if verdict.is_steered {
            return self.steering(address);
        }
        if !matches!(verdict.class(), Class::Exit | Class::Relay) {
            return "unchanged".to_owned();
        }
        let groups = self.rules.groups();
        let Some(intent) = groups.first().map(|tor| tor.actions.intent()) else {
            return "unchanged".to_owned();
        };
        let reason = match (intent.mode, self.passes) {
            (Mode::Audit, _) => "mode = \"audit\"",
            (Mode::Enforce, Some(reason)) => reason,
            _ if intent.steer == Steer::Off => "[steer] names no source, fwmark or interface",
            _ if address.is_ipv4() => "steer.source has no IPv4 address",
            _ => "steer.source has no IPv6 address",
        };
        format!("unchanged: {reason}")
    }

    fn steering(&self, address: IpAddr) -> String {
        let SocketRules {
            source_v4,
            source_v6,
            fwmark,
            ..
        } = self.rules.sockets;
        let source = match address {
            IpAddr::V4(_) => source_v4.map(IpAddr::from),
            IpAddr::V6(_) => source_v6.map(IpAddr::from),
        };
        let source = source.map(|source| match self.machine.has(source) {
            true => format!("source {source}"),
            false => format!("source {source} (refused: it is not an address of this machine)"),
        });
        let fwmark = (fwmark != 0).then(|| format!("fwmark {fwmark:#x}"));
        let interface = self.interface.map(|name| match self.machine.interface() {
            Some(_) => format!("NIC {name}"),
            None => format!("NIC {name} (not set: it does not exist)"),
        });
        let all: Vec<_> = [source, fwmark, interface].into_iter().flatten().collect();
        all.join(", ")
    }
}

impl fmt::Display for ExplainedConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = self.lines.iter().map(|line| line.destination.to_string());
        let width = lengths.map(|text| text.len()).max().unwrap_or(0);
        for line in &self.lines {
            let (destination, class) = (line.destination, line.class.name());
            let (rule, treatment) = (line.rule, &line.treatment);
            writeln!(f, "{destination:<width$}  {class:<8}  {rule} → {treatment}")?;
        }
        Ok(())
    }
}
