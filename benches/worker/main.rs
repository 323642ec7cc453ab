//! The cost of a packet in a worker without a NIC: ns and cycles a packet of whole turns over ports
//! in memory, beside DPDK's testpmd between two ports of that kind, on the same core with the same
//! burst and as many buffers. A NIC with zero-copy would leave that to the software. Into
//! worker.json.
//!
//! Cycles are those of the time stamp counter. testpmd counts them itself; those of a worker are
//! its ns times the counter's frequency, as testpmd states it.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

#[allow(
    dead_code,
    reason = "this bench starts no exitmark and loads no program"
)]
#[path = "../common/mod.rs"]
mod common;
mod null_port;
#[allow(
    dead_code,
    reason = "the passes are those of a forwarder without a worker"
)]
#[path = "../rig/mod.rs"]
mod rig;
mod testpmd;

use clap::Parser;
use common::results::{Missing, Series, ratio, rounded};
use common::rounds::{self, Contest, Options};
use exitmark_datapath::memory::HeapMemory;
use exitmark_datapath::{
    Forwarder, FrameMemory, IncomingLink, Links, PerRole, Role, SpinLimits, Worker, WorkerLimits,
};
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_lab::{LabError, pin_to};
use exitmark_policy::Snapshot;
use null_port::NullPort;
use rig::{KINDS, Kind, snapshots};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The core of the worker, and of testpmd's forwarding thread.
pub(crate) const CPU: usize = 1;
/// The most frames of a turn, and the entries of a ring: exitmark's defaults.
pub(crate) const BATCH: u16 = 256;
pub(crate) const RING: usize = 2_048;
/// The buffers: those of the rings, and those in hand.
pub(crate) const FRAMES: u32 = 8_192;
const CHUNK_BYTES: u16 = 2_048;
/// Turns between two looks at the clock.
const TURNS: u32 = 64;
/// The length of testpmd's frames.
const BYTES: usize = 74;

#[derive(Parser)]
#[command(
    name = "worker",
    about = "cycles a packet in a worker over ports in memory"
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Contestant<'k> {
    /// A worker that forwards frames of this kind, which it rewrites in every turn.
    Worker(&'k Kind, &'k [Arc<Snapshot>; 2]),
    Testpmd,
}

impl Contestant<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Worker(kind, _) => kind.name,
            Self::Testpmd => "testpmd-io",
        }
    }

    fn measure(self, length: Duration) -> Result<Sample, LabError> {
        match self {
            Self::Worker(kind, snapshots) => Ok(Sample {
                ns: time(kind, snapshots, length),
                cycles: None,
            }),
            Self::Testpmd => {
                let testpmd::Measured { cycles, mhz } = testpmd::measure(BYTES, length)?;
                Ok(Sample {
                    ns: cycles / mhz * 1e3,
                    cycles: Some(cycles),
                })
            }
        }
    }
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The cost of a packet.
struct Sample {
    ns: f64,
    /// `None` if it was not counted but follows from the ns.
    cycles: Option<f64>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ns", self.ns)
    }
}

/// The ns of a packet of this kind in whole turns, for this time.
fn time(kind: &Kind, snapshots: &[Arc<Snapshot>; 2], length: Duration) -> f64 {
    let links = Links::new(Some(IncomingLink {
        port: Role::Incoming,
        own: INCOMING_MAC.parse().unwrap(),
        next_hop: Some(TORNET_MAC.parse().unwrap()),
    }));
    let (mut memory, mut pool) = HeapMemory::new(FRAMES, CHUNK_BYTES);
    let loaded: Vec<_> = (0..FRAMES)
        .flat_map(|number| memory.load(&(kind.make)(number), &mut pool))
        .collect();
    let has_bytes = |frame| !memory.view(frame).is_empty();
    assert!(loaded.iter().all(has_bytes), "no frames");
    loaded.into_iter().for_each(|frame| pool.put(frame));
    let ports = PerRole::from_fn(|role| Some(NullPort::new(RING, role == Role::Host)));
    let forwarder = Forwarder::new(Arc::clone(&snapshots[0]), Arc::new(links));
    let limits = WorkerLimits::new(BATCH.into(), SpinLimits::fixed(Duration::ZERO));
    let mut worker = Worker::new(ports, memory, pool, forwarder, limits);
    let begun = Instant::now();
    let mut turns = 0_u32;
    while begun.elapsed() < length {
        for turn in 0..TURNS {
            if !kind.settled {
                // Another mark: every frame is rewritten.
                let other = &snapshots[usize::from(turn % 2 == 0)];
                worker.forwarder().follow(Arc::clone(other));
            }
            worker.turn(Duration::ZERO);
        }
        turns += TURNS;
    }
    let packets = f64::from(turns) * f64::from(BATCH);
    let spent = begun.elapsed();
    assert_eq!(worker.balance().unaccounted(), 0);
    spent.as_secs_f64() * 1e9 / packets
}

/// A row of worker.json.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    /// The median of the rounds, in ns a packet.
    ns: f64,
    /// The same in cycles of the time stamp counter; `None` without testpmd.
    cycles: Option<f64>,
    /// The median of the ratios to testpmd within each round.
    to_testpmd: Option<f64>,
    /// In ns.
    rounds: Series,
}

type Measured<'k> = Contest<Contestant<'k>, Sample>;

fn rows(contests: &[Measured<'_>]) -> Vec<Row> {
    let series = |contest: &Measured<'_>| Series::new(contest.samples.iter().map(|one| one.ns));
    let is_base = |one: &&Measured<'_>| matches!(one.contestant, Contestant::Testpmd);
    let base = contests.iter().find(is_base);
    let mhz = base.and_then(|base| {
        let of_round = |one: &Sample| Some(one.cycles? / one.ns * 1e3);
        Some(Series::new(base.samples.iter().filter_map(of_round))?.median())
    });
    let base = base.and_then(series);
    let row = |contest: &Measured<'_>| {
        let rounds = series(contest)?;
        let to_testpmd = base.as_ref().and_then(|base| rounds.ratio_to(base));
        Some(Row {
            kind: contest.contestant.name(),
            ns: rounded(rounds.median()),
            cycles: mhz.map(|mhz| rounded(rounds.median() * mhz / 1e3)),
            to_testpmd: to_testpmd.map(rounded),
            rounds,
        })
    };
    contests.iter().filter_map(row).collect()
}

fn bench(options: &Options) -> Result<bool, LabError> {
    pin_to([CPU])?;
    let snapshots = snapshots();
    let mut contestants: Vec<_> = KINDS
        .iter()
        .map(|kind| Contestant::Worker(kind, &snapshots))
        .collect();
    let mut missing = Vec::new();
    match testpmd::missing() {
        None => contestants.insert(0, Contestant::Testpmd),
        Some(what) => {
            eprintln!("testpmd-io is left out; this machine lacks {what}");
            missing.push(Missing {
                bench: "worker",
                forwarder: "testpmd-io".to_owned(),
                reason: format!("this machine lacks {what}"),
            });
        }
    }
    let contestants = options.chosen(contestants, |one| one.name())?;
    let contestants = contestants.into_iter();
    let outcome = rounds::run("worker", options, contestants, |contestant, length| {
        contestant.measure(length)
    })?;
    let rows = rows(&outcome.contests);
    println!(
        "\n{:16}{:>10}{:>10}{:>12}",
        "kind", "ns", "cycles", "× testpmd"
    );
    for row in &rows {
        let cycles = row
            .cycles
            .map_or_else(|| "-".to_owned(), |cycles| format!("{cycles:.1}"));
        let (kind, ns, ratio) = (row.kind, row.ns, ratio(row.to_testpmd));
        println!("{kind:16}{ns:>10.2}{cycles:>10}{ratio:>12}");
    }
    outcome.write(
        "worker",
        ["worker.json", "worker-machine.json"],
        &rows,
        missing,
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    rounds::exit("worker", bench(&arguments.options))
}
