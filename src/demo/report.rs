//! What the demo found, for a person and for a program. Shows numbers, judges none: what holds
//! is decided by `evidence`.

use super::evidence::{Answers, Evidence, Row};
use super::plan::{Kind, MARK};
use super::{Ending, Speed};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::fmt::Write;

const DRAWING: &str = "
                           ┌────── exitmark ──────┐
   Tor host ────── host0 ──┤ exit    marked       ├── uplink0 ────── clearnet
                           │ other   untouched    ├── uplink0
                           │ relay   new MACs     ├── incoming0 ──── Tor network
                           └──────────────────────┘
";

/// What the demo found.
#[derive(Debug)]
pub struct Report {
    evidence: Evidence,
    speed: Speed,
    ending: Ending,
}

impl Report {
    pub(super) fn new(evidence: Evidence, speed: Speed, ending: Ending) -> Self {
        Self {
            evidence,
            speed,
            ending,
        }
    }

    /// Whether the box did all that it had to, and nothing else.
    pub fn holds(&self) -> bool {
        self.evidence.holds() && self.ending.holds()
    }

    /// One object, as one line.
    pub fn json(&self) -> Value {
        let evidence = &self.evidence;
        let sent = |kind| evidence.sum(kind, |row| row.sent);
        let seen = |row: &Row| row.uplink + row.incoming;
        let mut trips = self.speed.exit.clone();
        // Both have the same bounds.
        let _ = trips.add(&self.speed.relay);
        json!({
            "exit": {
                "sent": sent(Kind::Exit),
                "marked": evidence.sum(Kind::Exit, |row| row.right),
                "unmarked": evidence.sum(Kind::Exit, |row| seen(row) - row.right),
            },
            "relay": {
                "sent": sent(Kind::Relay),
                "steered": evidence.sum(Kind::Relay, |row| row.right),
                "leaked": evidence.sum(Kind::Relay, |row| row.uplink),
                "marked": evidence.sum(Kind::Relay, |row| row.marked),
            },
            "other": {
                "sent": sent(Kind::Other),
                "changed": evidence.sum(Kind::Other, |row| seen(row) - row.right),
            },
            "lost": evidence.lost(),
            "gbit_per_s": (self.speed.gbit_per_s * 1000.0).round() / 1000.0,
            "rtt_us": {
                "p50": trips.value_at_quantile(0.5),
                "p99": trips.value_at_quantile(0.99),
            },
            "holds": self.holds(),
        })
    }

    /// One screen, with colours or without.
    pub fn table(&self, colours: bool) -> String {
        let ink = Ink(colours);
        let mut out = DRAWING.to_owned();
        out.push('\n');
        let mut line = |text: &str| {
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&columns([
            "flow", "kind", "frames", "bytes", "left by", "DSCP", "MACs", "",
        ]));
        line(&format!(" {}", "─".repeat(WIDTH)));
        let mut kind = Kind::Exit;
        for row in &self.evidence.rows {
            if row.flow.kind != kind {
                kind = row.flow.kind;
                line("");
            }
            line(&show(row, ink));
        }
        line(&format!(" {}", "─".repeat(WIDTH)));
        let answers = [
            ("from the clearnet", &self.evidence.from_clearnet),
            ("from the Tor network", &self.evidence.from_tornet),
        ];
        for (title, answers) in answers {
            line(&show_answers(title, answers, ink));
        }
        line(&format!(
            " {:<26} {:>14}   sent and never seen again; {} that nobody sent   {}",
            "lost",
            self.evidence.lost(),
            self.evidence.strays,
            ink.tick(self.evidence.lost() + self.evidence.strays == 0),
        ));
        line("");
        line(&format!(
            " {:<26} {:>9} {:>9} {:>9} {:>9}",
            "round trip, µs", "p50", "p90", "p99", "max"
        ));
        let trips = [("exit", &self.speed.exit), ("relay", &self.speed.relay)];
        for (title, trips) in trips {
            line(&show_trips(title, trips));
        }
        line(&format!(
            " {:<26} {:>9.2} Gbit/s over one marked connection, in this machine",
            "throughput", self.speed.gbit_per_s
        ));
        line("");
        line(&self.ending.show(ink));
        line("");
        line(if self.holds() {
            " Every exit frame was marked, every relay frame steered, nothing else touched."
        } else {
            " The box did not do what it had to: see the lines with ✗."
        });
        out
    }
}

const WIDTH: usize = 96;

fn columns(cells: [&str; 8]) -> String {
    let [flow, kind, frames, bytes, left_by, dscp, macs, tick] = cells;
    format!(
        " {flow:<26} {kind:<6} {frames:>7} {bytes:>11}   {left_by:<10} {dscp:<13} {macs:<11} {tick}"
    )
}

fn show(row: &Row, ink: Ink) -> String {
    let left_by = match (row.uplink, row.incoming) {
        (0, 0) => "nowhere".to_owned(),
        (_, 0) => "uplink".to_owned(),
        (0, _) => "incoming".to_owned(),
        (uplink, incoming) => format!("both {uplink}:{incoming}"),
    };
    let dscps: Vec<String> = (row.dscps.iter())
        .map(|&(before, after)| match before == after {
            true => dscp(after),
            false => format!("{} → {}", dscp(before), dscp(after)),
        })
        .collect();
    let macs: Vec<&str> = (row.new_macs.iter())
        .map(|new| if *new { "replaced" } else { "kept" })
        .collect();
    let or_none = |text: String| {
        if text.is_empty() {
            "–".to_owned()
        } else {
            text
        }
    };
    let mut text = columns([
        row.flow.title,
        row.flow.kind.name(),
        &grouped(row.sent),
        &grouped(row.bytes),
        &left_by,
        &or_none(dscps.join(", ")),
        &or_none(macs.join(", ")),
        ink.tick(row.holds()),
    ]);
    if !row.holds() {
        let wrong = row.sent - row.lost() - row.right;
        let _ = write!(text, " {} lost, {wrong} wrong", row.lost());
    }
    text
}

fn show_answers(title: &str, answers: &Answers, ink: Ink) -> String {
    format!(
        " {title:<26} {:>14}   to the host, {} arrived as they had to   {}",
        grouped(answers.sent),
        grouped(answers.right),
        ink.tick(answers.sent > 0 && answers.right == answers.sent),
    )
}

fn show_trips(title: &str, trips: &Histogram<u64>) -> String {
    format!(
        "   {title:<24} {:>9} {:>9} {:>9} {:>9}",
        trips.value_at_quantile(0.5),
        trips.value_at_quantile(0.9),
        trips.value_at_quantile(0.99),
        trips.max(),
    )
}

impl Ending {
    fn holds(&self) -> bool {
        self.ended_well && self.unaccounted == Some(0)
    }

    fn show(&self, ink: Ink) -> String {
        let frames = match self.unaccounted {
            Some(frames) => format!("unaccounted={frames}"),
            None => "unaccounted unknown".to_owned(),
        };
        let ended = if self.ended_well { "well" } else { "badly" };
        let mut text = format!(
            " the box ended {ended}, {frames}   {}\n  ",
            ink.tick(self.holds())
        );
        let mut width = 2;
        for (name, number) in &self.counters {
            let word = format!(" {name}={number}");
            if width + word.len() > WIDTH {
                text.push_str("\n  ");
                width = 2;
            }
            width += word.len();
            text += &word;
        }
        text
    }
}

#[derive(Clone, Copy)]
struct Ink(bool);

impl Ink {
    fn tick(self, good: bool) -> &'static str {
        match (good, self.0) {
            (true, true) => "\x1b[32m✓\x1b[0m",
            (true, false) => "✓",
            (false, true) => "\x1b[1;31m✗\x1b[0m",
            (false, false) => "✗",
        }
    }
}

fn dscp(code_point: u8) -> String {
    match code_point {
        0 => "0".to_owned(),
        MARK => "af11".to_owned(),
        other => other.to_string(),
    }
}

/// A number with its thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
