//! The report as text: aligned, in 80 columns, warnings first.

mod site;

use super::human::{bytes, count, latency, share, span};
use super::metrics::{SocketCount, frame_counts, socket_counts};
use super::{ConnectionsReport, Report, SourceState};
use std::fmt;
use std::time::Duration;

/// The width of the text, in columns of a terminal.
const WIDTH: usize = 80;
/// Columns of an item's name.
const INDENT: usize = 12;

/// A view of a report as text.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(&'a Report);

impl Report {
    /// The report as text, as `exitmark status` prints it.
    pub fn text(&self) -> Text<'_> {
        Text(self)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        if let Some(connections) = &self.0.connections {
            self.connections(f, connections)?;
            self.relay_set(f)?;
            return self.reloads(f);
        }
        self.engine(f)?;
        self.ports(f)?;
        self.classes(f)?;
        self.frames(f)?;
        self.groups(f)?;
        self.steering(f)?;
        self.hosts(f)?;
        self.relay_set(f)?;
        self.conservation(f)?;
        self.latency(f)?;
        self.audit(f)
    }
}

impl Text<'_> {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let mark = &report.mark;
        let line = format!(
            "{}, mode {}, classify_by {}, mark {mark}, up {}, generation {}",
            report.version,
            report.mode,
            report.classify_by,
            span(report.uptime()),
            report.generation
        );
        item(f, "exitmark", &line)?;
        for warning in &report.warnings {
            let grave = if warning.is_alarm { "ALARM" } else { "warning" };
            item(f, grave, &format!("{}: {}", warning.kind, warning.text))?;
        }
        if report.warnings.is_empty() {
            item(f, "warnings", "none")?;
        }
        writeln!(f)
    }

    fn engine(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.0.engine;
        let (chosen, asked, reason) = (&engine.chosen, &engine.asked, &engine.reason);
        let line = format!("{chosen} (configured: {asked}): {reason}");
        item(f, "engine", &line)?;
        let frames = [engine.xdp_frames, engine.af_xdp_frames];
        let all = frames[0].saturating_add(frames[1]);
        let of = |frames| format!("{} frames ({})", count(frames), share(frames, all));
        let [xdp, af_xdp] = frames.map(of);
        item(f, "", &format!("xdp decided {xdp}, af_xdp {af_xdp}"))?;
        writeln!(f)
    }

    fn connections(
        &self,
        f: &mut fmt::Formatter<'_>,
        connections: &ConnectionsReport,
    ) -> fmt::Result {
        let engine = &self.0.engine;
        item(
            f,
            "engine",
            &format!("{}: {}", engine.chosen, engine.reason),
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "{:11} {:>11} {:>8} {:>11}",
            "class", "connections", "share", "earlier"
        )?;
        let classes = &connections.classes;
        let all = classes
            .iter()
            .fold(0_u64, |sum, class| sum.saturating_add(class.opened));
        for class in classes {
            writeln!(
                f,
                "{:11.11} {:>11} {:>8} {:>11}",
                clean(&class.class),
                count(class.opened),
                share(class.opened, all),
                count(class.earlier)
            )?;
        }
        writeln!(f)?;
        for (name, what) in [("exit", SocketCount::Exit), ("relay", SocketCount::Relay)] {
            let shown = socket_counts(connections)
                .into_iter()
                .filter(|count| count.of == what)
                .map(|one| format!("{} {}", one.name.replace('_', " "), count(one.connections)));
            item(f, name, &shown.collect::<Vec<_>>().join(", "))?;
        }
        let mut warnings = self.0.warnings.iter();
        let users = match connections.users {
            0 if warnings.any(|one| one.kind == "users") => "none".to_owned(),
            0 => "all of the cgroups in tor.cgroups".to_owned(),
            users => count(users),
        };
        item(f, "users", &users)
    }

    fn ports(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:8} {:15} {:4} {:6} {:7} {:9} {:12} {:>5} {:>6}",
            "port", "NIC", "link", "engine", "XDP", "sockets", "driver", "MTU", "queues"
        )?;
        for port in &self.0.ports {
            writeln!(
                f,
                "{:8.8} {:15.15} {:4} {:6.6} {:7.7} {:9.9} {:12.12} {:>5} {:>6}",
                clean(&port.role),
                clean(&port.interface),
                if port.has_carrier { "up" } else { "down" },
                clean(&port.engine),
                clean(&port.xdp),
                clean(&port.sockets),
                clean(port.driver.as_deref().unwrap_or("-")),
                port.mtu,
                port.queues
            )?;
        }
        // Only reasons that differ from the engine's.
        let known = ["", self.0.engine.reason.as_str()];
        let shown = self.0.ports.iter();
        for port in shown.filter(|port| !known.contains(&port.reason.as_str())) {
            let name = self.0.port_name(port);
            item(f, name, &format!("{}: {}", port.engine, port.reason))?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:8} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7}",
            "port",
            "received",
            "bytes",
            "forwarded",
            "to stack",
            "handed",
            "spilled",
            "missed",
            "invalid"
        )?;
        for port in &self.0.ports {
            writeln!(
                f,
                "{:8.8} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7}",
                clean(self.0.port_name(port)),
                count(port.received_frames),
                bytes(port.received_bytes),
                count(port.forwarded_frames),
                count(port.to_stack_frames),
                count(port.handed_frames),
                count(port.spilled_frames),
                count(port.missed_frames),
                count(port.tx_invalid_frames)
            )?;
        }
        writeln!(f)
    }

    fn classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = &self.0.classes;
        let all = classes
            .iter()
            .fold(0u64, |sum, class| sum.saturating_add(class.frames));
        writeln!(
            f,
            "{:11} {:>9} {:>8} {:>9}",
            "class", "frames", "share", "bytes"
        )?;
        for class in classes {
            writeln!(
                f,
                "{:11.11} {:>9} {:>8} {:>9}",
                clean(&class.class),
                count(class.frames),
                share(class.frames, all),
                bytes(class.bytes)
            )?;
        }
        writeln!(f)
    }

    fn frames(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = frame_counts(&self.0.frames)
            .map(|(name, _, frames)| format!("{} {}", name.replace('_', " "), count(frames)));
        item(f, "frames", &shown.join(", "))?;
        let malformed = self.0.malformed.iter();
        let malformed = malformed.map(|kind| (kind.reason.clone(), kind.frames));
        item(f, "malformed", &those_there_are(malformed))?;
        let drops = self.0.drops.iter().map(|drop| {
            let name = match &drop.port {
                Some(port) => format!("{} at {port}", drop.reason),
                None => drop.reason.clone(),
            };
            (name, drop.frames)
        });
        item(f, "drops", &those_there_are(drops))?;
        let mut taps = self.0.taps.iter();
        taps.try_for_each(|tap| item(f, "tap", &tap.text()))
    }

    fn relay_set(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = &self.0.relay_set;
        let mut line = format!(
            "{} endpoints: {} listed, {} departed, {} extra",
            set.endpoints, set.listed, set.departed, set.extra
        );
        if let Some(age) = &set.age {
            line += &format!("; {age}");
        }
        if set.is_missing {
            line += "; no document is in force yet";
        }
        if set.is_passing {
            line += ", so nothing is marked or steered";
        }
        item(f, "relay set", &line)?;
        if let Some(at) = set.accepted_at {
            let (age, accepted, refused) = (span(self.0.since(at)), set.accepted, set.refused);
            let line = format!("in force for {age}; {accepted} accepted, {refused} refused");
            item(f, "", &line)?;
        }
        for source in &set.sources {
            let state = match source.state {
                SourceState::InForce => "",
                SourceState::Older => "older, ",
                // The last refusal, below, is that of the only source.
                SourceState::Refused if set.sources.len() == 1 => continue,
                SourceState::Refused => {
                    let refusal = source.refusal.as_deref().unwrap_or_default();
                    item(f, "", &format!("refused: {refusal}"))?;
                    continue;
                }
            };
            let now = self.0.started_at.saturating_add(self.0.uptime().as_secs());
            let until = match source.valid_until.checked_sub(now) {
                Some(left) => format!("valid for {}", span(Duration::from_secs(left))),
                None => format!("expired {} ago", span(self.0.since(source.valid_until))),
            };
            let signed = match source.signatures {
                Some(signatures) => signatures.to_string(),
                None => "signatures not checked".to_owned(),
            };
            item(f, "", &format!("{}: {state}{until}", source.path))?;
            item(f, "", &signed)?;
        }
        match &set.last_refusal {
            Some(reason) => item(f, "", &format!("last refusal: {reason}")),
            None => Ok(()),
        }
    }

    fn conservation(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        let workers = &self.0.workers;
        if !workers.is_empty() {
            writeln!(
                f,
                "{:8} {:>9} = {:>9} + {:>9} + {:>9} + {:>9}",
                "queue", "buffers", "pool", "in hand", "receiving", "sending"
            )?;
        }
        for worker in workers {
            writeln!(
                f,
                "{:<8} {:>9} = {:>9} + {:>9} + {:>9} + {:>9}",
                worker.queue,
                count(worker.total),
                count(worker.pool),
                count(worker.in_hand),
                count(worker.receiving),
                count(worker.sending)
            )?;
        }
        let line = match self.0.unaccounted_frames {
            0 => "none: every frame is accounted for".to_owned(),
            frames => format!(
                "{frames} frames are not accounted for, a fault of exitmark: report it with \
                 `exitmark status --json`"
            ),
        };
        item(f, "unaccounted", &line)
    }

    fn latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in &self.0.residence {
            let mut line = format!("{}: ", report.engine);
            for (quantile, seconds) in &report.quantiles {
                let name = match *quantile < 1.0 {
                    true => format!("p{}", (quantile * 1e4).round() / 1e2),
                    false => "max".to_owned(),
                };
                line += &format!("{name} {}, ", latency(*seconds));
            }
            line += &format!("of {} sampled", count(report.samples));
            item(f, "latency", &line)?;
        }
        Ok(())
    }

    fn audit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let audit = &self.0.audit;
        let line = match audit.one_in {
            0 => "off".to_owned(),
            one_in => {
                let amiss = audit.mismatches.iter();
                let amiss = amiss.map(|audit| (audit.kind.clone(), audit.frames));
                format!(
                    "one frame in {one_in}: {} checked, {} skipped, {} lost; mismatches: {}",
                    count(audit.checked),
                    count(audit.skipped),
                    count(audit.lost),
                    those_there_are(amiss)
                )
            }
        };
        item(f, "audit", &line)?;
        self.reloads(f)
    }

    fn reloads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reloads, refused) = (self.0.reloads, self.0.reloads_refused);
        item(f, "reloads", &format!("{reloads}, and {refused} refused"))
    }
}

/// The counts that are not 0.
fn those_there_are(counts: impl Iterator<Item = (String, u64)>) -> String {
    let there = counts.filter(|(_, frames)| *frames > 0);
    let there = there.map(|(name, frames)| format!("{name} {}", count(frames)));
    match there.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none".to_owned(),
        some => some,
    }
}

/// Replaces control characters, because the text may come from an untrusted peer.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Writes a name and its text, wrapped between words at [`WIDTH`].
fn item(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    let text = clean(text);
    let mut line = format!("{:INDENT$.11}", clean(name));
    let mut width = INDENT;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > INDENT && width + 1 + length > WIDTH {
            writeln!(f, "{}", line.trim_end())?;
            line = " ".repeat(INDENT);
            width = INDENT;
        }
        if width > INDENT {
            line.push(' ');
            width += 1;
        }
        line.push_str(word);
        width += length;
    }
    writeln!(f, "{}", line.trim_end())
}
