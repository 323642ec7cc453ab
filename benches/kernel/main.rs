//! The time of one decision in the kernel: ns of a run of the XDP program by BPF_PROG_RUN, beside a
//! program that only redirects, one that marks every frame, and one with the same rule and nothing
//! else. Into kernel.json.
//!
//! Every run gets the frame of another flow: a program copies its headers over the frame and calls
//! the timed one. That takes the same time for all of them, so only differences count. All programs
//! alternate within every round.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

#[allow(
    dead_code,
    reason = "this bench starts no process and attaches nothing"
)]
#[path = "../common/mod.rs"]
mod common;
mod feed;
mod kinds;
#[path = "../common/rule.rs"]
mod rule;

use clap::Parser;
use common::results::{Series, rounded};
use common::rounds::{self, Contest, Options};
use exitmark_box::settings::Settings;
use exitmark_datapath::{Buffers, Form, IncomingLink, Role};
use exitmark_lab::bpf::Programs;
use exitmark_lab::kernel::KernelEngine;
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_lab::{LabError, pin_to};
use exitmark_policy::{EndpointSet, Snapshot};
use feed::{FEED, Feed};
use kinds::{HOST_V4, HOST_V6, KINDS, Kind, SCALES, SIZES, Scale};
use rule::RuleSite;
use serde::Serialize;
use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The interface index of loopback: a device map requires an interface. Nothing is sent.
pub(crate) const LOOPBACK: u32 = 1;
/// A run lasts this part of `--seconds`.
const PART: u32 = 20;

#[derive(Parser)]
#[command(name = "kernel", about = "ns of a decision in the kernel")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// The programs that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Redirect,
    Touch,
    Rule,
    Exitmark(Buffers),
}

impl Program {
    const ALL: [Self; 5] = [
        Self::Redirect,
        Self::Touch,
        Self::Rule,
        Self::Exitmark(Buffers::One),
        Self::Exitmark(Buffers::Several),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Touch => "touch",
            Self::Rule => "bare-xdp",
            Self::Exitmark(Buffers::One) => "exitmark-xdp",
            Self::Exitmark(Buffers::Several) => "exitmark-xdp-frags",
        }
    }

    /// Whether this program can be compared with the others on these frames.
    fn treats(self, kind: &Kind) -> bool {
        match self {
            Self::Redirect | Self::Exitmark(_) => true,
            Self::Touch => kind.ingress == Role::Host,
            Self::Rule => kind.is_of_rule,
        }
    }
}

/// The loaded programs, of one scale.
struct Loaded {
    rule: Programs,
    one: KernelEngine,
    several: KernelEngine,
}

impl Loaded {
    fn new(scale: Scale) -> Result<Self, LabError> {
        let text = format!(
            "[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\nincoming = \"incoming0\"\n\
             [host]\naddresses = [\"{HOST_V4}\", \"{HOST_V6}\"]\nlisteners = [22]\n\
             [steer]\nnext_hop = \"{TORNET_MAC}\"\n[relays]\nextra = [\"198.18.0.1:9001\"]\n"
        );
        let settings = Settings::parse(&text, Path::new("")).unwrap();
        let relays = EndpointSet::new(scale.relays().map(Into::into)).unwrap();
        let snapshot = Snapshot::new(1, settings.rules, relays);
        let (own, next_hop) = (INCOMING_MAC.parse().unwrap(), TORNET_MAC.parse().unwrap());
        let engine = |buffers| {
            let form = Form {
                buffers,
                has_siblings: false,
                has_tap: false,
            };
            let incoming = IncomingLink {
                port: Role::Incoming,
                own,
                next_hop: Some(next_hop),
            };
            KernelEngine::of_form(form, &snapshot, Some(incoming))
        };
        let rule = RuleSite {
            host: [HOST_V4, HOST_V6]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            interfaces: [LOOPBACK; 2],
            macs: [next_hop, own],
        };
        let rule = rule.load(scale.relays())?;
        for port in 0..2 {
            rule.store("ports", port, &LOOPBACK.to_ne_bytes())?;
        }
        Ok(Self {
            rule,
            one: engine(Buffers::One)?,
            several: engine(Buffers::Several)?,
        })
    }
}

/// Frames of one kind, size and scale.
struct Case<'l> {
    kind: Kind,
    size: u32,
    scale: Scale,
    feed: Feed,
    loaded: &'l Loaded,
}

#[derive(Clone, Copy)]
struct Contestant<'c> {
    case: &'c Case<'c>,
    program: Program,
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case {
            kind, size, scale, ..
        } = self.case;
        let (kind, scale, program) = (kind.name, scale.name, self.program.name());
        write!(f, "{kind}, {size} B, {scale}: {program}")
    }
}

/// The ns of a run.
struct Nanos(f64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ns", self.0)
    }
}

impl Contestant<'_> {
    fn time(&self, length: Duration) -> Result<Nanos, LabError> {
        let Case {
            kind, feed, loaded, ..
        } = self.case;
        let least = length / PART;
        let of_rule = |name| {
            let program = loaded.rule.program(name)?;
            feed.time(program.as_fd(), Buffers::One, least)
        };
        let nanos = match self.program {
            Program::Redirect => feed.time_redirect(least)?,
            Program::Touch => of_rule("touch_xdp")?,
            Program::Rule => of_rule("rule_xdp")?,
            Program::Exitmark(buffers) => {
                let engine = match buffers {
                    Buffers::One => &loaded.one,
                    Buffers::Several => &loaded.several,
                };
                // The host's MAC address is learned from its own frames.
                let first = KINDS[0].frame(0, 64, self.case.scale);
                engine
                    .kernel
                    .run(Role::Host, &first)
                    .map_err(|error| LabError(error.to_string()))?;
                feed.time(engine.kernel.program(kind.ingress), buffers, least)?
            }
        };
        Ok(Nanos(nanos))
    }
}

/// A row of kernel.json.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    frame_bytes: u32,
    set: &'static str,
    program: &'static str,
    /// The median of the rounds, in ns; with the time of the feeding program.
    ns: f64,
    /// The median of the differences to `redirect` within each round, in ns.
    over_redirect: f64,
    runs: usize,
    rounds: Series,
}

fn series(contest: &Contest<Contestant<'_>, Nanos>) -> Option<Series> {
    Series::new(contest.samples.iter().map(|nanos| nanos.0))
}

fn rows(contests: &[Contest<Contestant<'_>, Nanos>]) -> Vec<Row> {
    let row = |contest: &Contest<Contestant<'_>, Nanos>| {
        let Contestant { case, program } = contest.contestant;
        let is_base = |other: &&Contest<Contestant<'_>, Nanos>| {
            std::ptr::eq(other.contestant.case, case)
                && other.contestant.program == Program::Redirect
        };
        let base = contests.iter().find(is_base)?;
        let pairs = contest.samples.iter().zip(&base.samples);
        let over = Series::new(pairs.map(|(mine, its)| mine.0 - its.0))?;
        let rounds = series(contest)?;
        Some(Row {
            kind: case.kind.name,
            frame_bytes: case.size,
            set: case.scale.name,
            program: program.name(),
            ns: rounded(rounds.median()),
            over_redirect: rounded(over.median()),
            runs: rounds.runs(),
            rounds,
        })
    };
    contests.iter().filter_map(row).collect()
}

/// Prints a line for each kind, with the ns over `redirect` of every other program.
fn print(rows: &[Row]) {
    let programs = &Program::ALL[1..];
    let names = programs
        .iter()
        .map(|program| format!("{:>19}", program.name()));
    println!("\nns over redirect{:28}{}", "", names.collect::<String>());
    for base in rows
        .iter()
        .filter(|row| row.program == Program::Redirect.name())
    {
        let figure = |program: &Program| {
            let mut same = rows.iter().filter(|row| {
                (row.kind, row.frame_bytes, row.set) == (base.kind, base.frame_bytes, base.set)
            });
            let row = same.find(|row| row.program == program.name());
            let text = row.map_or_else(
                || "-".to_owned(),
                |row| format!("{:+.1}", row.over_redirect),
            );
            format!("{text:>19}")
        };
        let figures: String = programs.iter().map(figure).collect();
        let (kind, bytes, set) = (base.kind, base.frame_bytes, base.set);
        println!("{kind:27}{bytes:>6} B  {set:7}{figures}");
    }
}

fn bench(options: &Options) -> Result<bool, LabError> {
    rounds::need_root()?;
    pin_to([0])?;
    let compiled = common::bpf::compile(FEED)?;
    let mut loaded = Vec::new();
    for scale in SCALES {
        loaded.push((scale, Loaded::new(scale)?));
    }
    let mut cases = Vec::new();
    for (scale, loaded) in &loaded {
        for kind in KINDS {
            for size in SIZES {
                let frames = (0..scale.flows).map(|flow| kind.frame(flow, size, *scale));
                let frames: Vec<_> = frames.collect();
                cases.push(Case {
                    kind,
                    size,
                    scale: *scale,
                    feed: Feed::new(&compiled, &frames)?,
                    loaded,
                });
            }
        }
    }
    let programs = options.chosen(Program::ALL.to_vec(), |program| program.name())?;
    let contestants = cases.iter().flat_map(|case| {
        let programs = programs.iter().filter(|program| program.treats(&case.kind));
        programs.map(move |program| Contestant {
            case,
            program: *program,
        })
    });
    let outcome = rounds::run("kernel", options, contestants, |contestant, length| {
        contestant.time(length)
    })?;
    let rows = rows(&outcome.contests);
    print(&rows);
    outcome.write(
        "kernel",
        ["kernel.json", "kernel-machine.json"],
        &rows,
        Vec::new(),
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    rounds::exit("kernel", bench(&arguments.options))
}
