//! The demo's results as text and as JSON. Formats numbers only: `evidence` decides whether the
//! frames were right.

use super::evidence::{Answers, Evidence, Row};
use super::plan::{Kind, MARK};
use super::{Ending, Speed};
use exitmark_service::grouped;
use serde::Serialize;

const DRAWING: &str = "
                           ┌────── exitmark ──────┐
   Tor host ────── host0 ──┤ exit    marked       ├── uplink0 ────── clearnet
                           │ other   untouched    ├── uplink0
                           │ relay   new MACs     ├── incoming0 ──── Tor network
                           └──────────────────────┘
";

/// The results of a demo.
#[derive(Debug)]
pub struct Report {
    pub(super) evidence: Evidence,
    /// Why a connection failed.
    pub(super) trouble: Option<String>,
    /// `None` if a connection failed.
    pub(super) speed: Option<Speed>,
    pub(super) ending: Ending,
}

#[derive(Serialize)]
struct Numbers {
    exit: Exit,
    relay: Relay,
    other: Other,
    lost: u64,
    gbit_per_s: Option<f64>,
    rtt_us: Option<RoundTrips>,
    holds: bool,
}

#[derive(Serialize)]
struct Exit {
    sent: u64,
    marked: u64,
    unmarked: u64,
}

#[derive(Serialize)]
struct Relay {
    sent: u64,
    steered: u64,
    leaked: u64,
    marked: u64,
}

#[derive(Serialize)]
struct Other {
    sent: u64,
    changed: u64,
}

#[derive(Serialize)]
struct RoundTrips {
    p50: u64,
    p99: u64,
}

impl Report {
    /// Whether every frame was treated as expected and the box ended well.
    pub fn holds(&self) -> bool {
        self.evidence.holds() && self.trouble.is_none() && self.ending.holds()
    }

    /// The results as one JSON object on one line.
    pub fn json(&self) -> String {
        let evidence = &self.evidence;
        let sent = |kind| evidence.sum(kind, |row| row.sent);
        let right = |kind| evidence.sum(kind, |row| row.right);
        let wrong = |kind| evidence.sum(kind, |row| row.sent - row.lost() - row.right);
        let numbers = Numbers {
            exit: Exit {
                sent: sent(Kind::Exit),
                marked: right(Kind::Exit),
                unmarked: wrong(Kind::Exit),
            },
            relay: Relay {
                sent: sent(Kind::Relay),
                steered: right(Kind::Relay),
                leaked: evidence.sum(Kind::Relay, |row| row.uplink),
                marked: evidence.sum(Kind::Relay, |row| row.marked),
            },
            other: Other {
                sent: sent(Kind::Other),
                changed: wrong(Kind::Other),
            },
            lost: evidence.lost(),
            gbit_per_s: (self.speed.as_ref())
                .map(|speed| (speed.gbit_per_s * 1000.0).round() / 1000.0),
            rtt_us: self.speed.as_ref().map(|speed| {
                let mut trips = speed.exit.clone();
                // Both have the same bounds, so this cannot fail.
                let _ = trips.add(&speed.relay);
                RoundTrips {
                    p50: trips.value_at_quantile(0.5),
                    p99: trips.value_at_quantile(0.99),
                }
            }),
            holds: self.holds(),
        };
        serde_json::to_string(&numbers).unwrap_or_default()
    }

    /// The results as one screen of text, with colours or without.
    pub fn table(&self, colours: bool) -> String {
        let ink = Ink(colours);
        let mut out = DRAWING.to_owned();
        out.push('\n');
        let mut line = |text: &str| {
            out.push_str(text.trim_end());
            out.push('\n');
        };
        let rule = format!(" {}", "─".repeat(WIDTH));
        line(&columns([
            "flow", "kind", "frames", "bytes", "left by", "DSCP", "MACs", "",
        ]));
        let mut kind = None;
        for row in &self.evidence.rows {
            if kind.replace(row.flow.kind) != Some(row.flow.kind) {
                line(&rule);
            }
            line(&show(row, ink));
        }
        line(&rule);
        let from_clearnet = &self.evidence.from_clearnet;
        line(&show_answers(
            "answers, clearnet",
            from_clearnet,
            "kept",
            ink,
        ));
        let (title, answers) = ("answers, Tor network", &self.evidence.from_tornet);
        line(&show_answers(title, answers, "replaced", ink));
        line(&rule);
        let ledger = [
            ("sent, never received", self.evidence.lost()),
            ("received, never sent", self.evidence.strays),
            ("markers not received", self.evidence.missed_markers),
        ];
        for (title, frames) in ledger {
            let (count, tick) = (&grouped(frames), ink.tick(frames == 0));
            line(&columns([title, "", count, "", "", "", "", tick]));
        }
        if let Some(trouble) = &self.trouble {
            line(&format!("\n a connection failed: {trouble}"));
        }
        if let Some(speed) = &self.speed {
            line("");
            speed.show(&mut line);
        }
        line("");
        line(&self.ending.show(ink));
        line("");
        line(if self.holds() {
            " Every exit frame was marked, every relay frame steered, and no other frame changed."
        } else {
            " The box did not behave as expected: see the lines with ✗."
        });
        out
    }
}

impl Speed {
    fn show(&self, line: &mut impl FnMut(&str)) {
        let columns = |title: &str, numbers: [String; 4]| {
            let [a, b, c, d] = numbers;
            format!(" {title:<24} {a:>12} {b:>9} {c:>9} {d:>9}")
        };
        let heads = ["p50", "p90", "p99", "max"].map(str::to_owned);
        line(&columns("round trip, µs", heads));
        for (title, trips) in [("  exit", &self.exit), ("  relay", &self.relay)] {
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| trips.value_at_quantile(q));
            line(&columns(title, [p50, p90, p99, trips.max()].map(grouped)));
        }
        line(&format!(
            " {:<24} {:>12.2} Gbit/s, one marked connection",
            "throughput", self.gbit_per_s
        ));
    }
}

/// The table fits in 80 columns.
const WIDTH: usize = 78;

fn columns(cells: [&str; 8]) -> String {
    let [flow, kind, frames, bytes, left_by, dscp, macs, tick] = cells;
    format!(
        " {flow:<24} {kind:<5} {frames:>6} {bytes:>9}  {left_by:<8}  {dscp:<8}  {macs:<8} {tick}"
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
    let or_none = |text: String| match text.is_empty() {
        true => "–".to_owned(),
        false => text,
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
        let (marks, lost) = (row.marked, row.lost());
        let wrong = row.sent - lost - row.right;
        text += &format!("\n   {marks} marked, {wrong} not as expected, {lost} lost");
    }
    text
}

fn show_answers(title: &str, answers: &Answers, macs: &str, ink: Ink) -> String {
    let holds = answers.holds();
    let unless_wrong = |text| if holds { text } else { "?" };
    let mut text = columns([
        title,
        "",
        &grouped(answers.sent),
        &grouped(answers.bytes),
        "host",
        unless_wrong("same"),
        unless_wrong(macs),
        ink.tick(holds),
    ]);
    if !holds {
        let wrong = answers.sent - answers.lost - answers.right;
        text += &format!("\n   {wrong} not as expected, {} lost", answers.lost);
    }
    text
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
        let tick = ink.tick(self.holds());
        let mut text = format!(" the box ended {ended}, {frames} {tick}");
        let counters = (self.counters.iter()).map(|(name, number)| format!("{name}={number}"));
        text += &wrapped(self.ready.split_whitespace().map(str::to_owned));
        text += &wrapped(["counters:".to_owned()].into_iter().chain(counters));
        text
    }
}

/// Wraps words into indented lines.
fn wrapped(words: impl Iterator<Item = String>) -> String {
    const INDENT: &str = "\n  ";
    let mut text = INDENT.to_owned();
    let mut width = INDENT.len();
    for word in words {
        if width + word.len() > WIDTH {
            text += INDENT;
            width = INDENT.len();
        }
        width += word.len() + 1;
        text = text + " " + &word;
    }
    text
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
