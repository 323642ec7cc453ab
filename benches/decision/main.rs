//! The cost of one frame between the rings: headers, look-up in a full relay set, rewrite,
//! checksum. ns per frame, by kind of frame, over as many frames as a ring holds and over more than
//! the cache holds; and ns more than a pass that moves the same frames through the same loop
//! without reading their headers. Into decision.json.
//!
//! Time is as noisy as the machine; `instructions` counts instructions instead.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

#[allow(
    dead_code,
    reason = "this bench starts no process and loads no program"
)]
#[path = "../common/mod.rs"]
mod common;
#[path = "../rig/mod.rs"]
mod rig;

use clap::Parser;
use common::results::{Series, number, rounded};
use common::rounds::{self, Contest, Options};
use exitmark_lab::{LabError, pin_to};
use exitmark_policy::Snapshot;
use rig::{KINDS, Kind, RING, Rig, snapshots};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// As many frames as a ring holds, and more than the headers in any cache.
const SETS: [(&str, u32); 2] = [("ring", RING), ("cold", 65_536)];
/// Passes before the measured ones: the first frames allocate, and teach the host's address.
const UNMEASURED: u32 = 2;

#[derive(Parser)]
#[command(name = "decision", about = "ns of a decision in user space")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// Frames of one kind, as many as a set has.
#[derive(Clone, Copy)]
struct Contestant<'k> {
    kind: &'k Kind,
    set: &'static str,
    frames: u32,
    snapshots: &'k [Arc<Snapshot>; 2],
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.kind.name, self.set)
    }
}

/// The ns of a frame: of its decision, and of a pass that decides nothing.
struct Nanos {
    decided: f64,
    moved: f64,
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = self.decided - self.moved;
        write!(f, "{:.2} ns, {over:+.2}", self.decided)
    }
}

impl Contestant<'_> {
    /// Measures passes of both kinds in turn, for this time.
    fn time(&self, length: Duration) -> Nanos {
        let mut rig = Rig::new(self.snapshots, self.frames, self.kind);
        for _ in 0..UNMEASURED {
            rig.pass();
            rig.pass_undecided();
        }
        let (mut decided, mut moved) = (Duration::ZERO, Duration::ZERO);
        let mut passes = 0;
        while decided + moved < length {
            decided += rig.pass();
            moved += rig.pass_undecided();
            passes += 1;
        }
        let frames = number(passes * u64::from(self.frames));
        let of_frame = |spent: Duration| spent.as_secs_f64() * 1e9 / frames;
        Nanos {
            decided: of_frame(decided),
            moved: of_frame(moved),
        }
    }
}

/// A row of decision.json.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    set: &'static str,
    /// The median of the rounds, in ns.
    ns: f64,
    /// The median of the differences to a pass without decisions within each round, in ns.
    over_nothing: f64,
    rounds: Series,
}

fn row(contest: &Contest<Contestant<'_>, Nanos>) -> Option<Row> {
    let samples = contest.samples.iter();
    let over = Series::new(samples.clone().map(|nanos| nanos.decided - nanos.moved))?;
    let rounds = Series::new(samples.map(|nanos| nanos.decided))?;
    Some(Row {
        kind: contest.contestant.kind.name,
        set: contest.contestant.set,
        ns: rounded(rounds.median()),
        over_nothing: rounded(over.median()),
        rounds,
    })
}

fn bench(options: &Options) -> Result<bool, LabError> {
    pin_to([1])?;
    let snapshots = snapshots();
    let kinds = options.chosen(KINDS.iter().collect(), |kind| kind.name)?;
    let contestants = SETS.into_iter().flat_map(|(set, frames)| {
        let snapshots = &snapshots;
        kinds.iter().map(move |kind| Contestant {
            kind,
            set,
            frames,
            snapshots,
        })
    });
    let outcome = rounds::run("decision", options, contestants, |contestant, length| {
        Ok(contestant.time(length))
    })?;
    let rows: Vec<_> = outcome.contests.iter().filter_map(row).collect();
    println!(
        "\n{:14}{:6}{:>8}{:>16}",
        "kind", "set", "ns", "over nothing"
    );
    for row in &rows {
        let (kind, set, ns, over) = (row.kind, row.set, row.ns, row.over_nothing);
        println!("{kind:14}{set:6}{ns:>8.2}{over:>+16.2}");
    }
    outcome.write(
        "decision",
        ["decision.json", "decision-machine.json"],
        &rows,
        Vec::new(),
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    rounds::exit("decision", bench(&arguments.options))
}
