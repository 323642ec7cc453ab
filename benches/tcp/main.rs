//! TCP between the Tor host and a web server, both with stacks of their own, through exitmark's
//! engines and through a bare wire, on one machine: goodput, connections per second, and the round
//! trip of one byte.
//!
//! The forwarders alternate within every round, each on a fresh site; the result is the median of
//! the rounds. All hosts are network namespaces of this process; no frame leaves them, and no
//! thread is pinned to a core. `cargo bench --bench tcp -- --help` lists the options.

#[path = "../common/mod.rs"]
mod common;
mod connect;
mod connection;
mod forwarders;
mod goodput;
mod mark;
mod report;
mod round_trip;
mod sockets;

use clap::Parser;
use common::{bpf, rounds};
use exitmark_lab::LabError;
use exitmark_lab::site::{Plan, Site};
use forwarders::Forwarder;
use goodput::Direction;
use report::Sample;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

const BENCH: &str = "tcp";

#[derive(Parser)]
#[command(
    name = "tcp",
    about = "TCP through forwarders between network namespaces"
)]
struct Arguments {
    #[command(flatten)]
    options: rounds::Options,
    /// Numbers of connections that send at the same time; each is measured
    #[arg(long, value_delimiter = ',', default_value = "1,4",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    streams: Vec<u16>,
    /// The number of short connections that are opened at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// Only these trials
    #[arg(long, value_delimiter = ',')]
    trials: Vec<TrialKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum TrialKind {
    Bulk,
    Connect,
    RoundTrip,
}

impl Arguments {
    fn trials(&self) -> impl Iterator<Item = Trial> {
        let is_wanted = |kind| self.trials.is_empty() || self.trials.contains(&kind);
        let bulk = self.streams.iter().copied().map(Trial::Bulk);
        let bulk = bulk.filter(move |_| is_wanted(TrialKind::Bulk));
        let connect = is_wanted(TrialKind::Connect).then_some(Trial::Connect(self.parallel));
        let round_trip = is_wanted(TrialKind::RoundTrip).then_some(Trial::RoundTrip);
        bulk.chain(connect).chain(round_trip)
    }
}

fn main() -> ExitCode {
    rounds::exit("tcp", bench(&Arguments::parse()))
}

/// Runs the bench; returns false if a forwarder failed.
fn bench(arguments: &Arguments) -> Result<bool, LabError> {
    let all = forwarders::all();
    let forwarders = arguments.options.chosen(all, Forwarder::name)?;
    rounds::need_root()?;
    let compiled = bpf::compile(bpf::TRAFFIC)?;
    let contestants = arguments.trials().flat_map(|trial| {
        let each = forwarders.iter();
        each.map(move |forwarder| Contestant { forwarder, trial })
    });
    let outcome = rounds::run(BENCH, &arguments.options, contestants, |one, length| {
        one.run(&compiled, length)
    })?;
    let rows = report::rows(&outcome.contests);
    report::print(&rows);
    let files = ["tcp.json", "tcp-machine.json"];
    outcome.write(BENCH, files, &rows, Vec::new())
}

#[derive(Clone, Copy, Debug)]
enum Trial {
    /// This number of connections send at full speed, one way and then the other.
    Bulk(u16),
    /// This number of threads connect repeatedly.
    Connect(u16),
    RoundTrip,
}

impl Trial {
    fn streams(self) -> u16 {
        match self {
            Self::Bulk(streams) | Self::Connect(streams) => streams,
            Self::RoundTrip => 1,
        }
    }
}

struct Contestant<'f> {
    forwarder: &'f Forwarder,
    trial: Trial,
}

impl Contestant<'_> {
    /// Runs the trial on a fresh site, after a check that the forwarder marks as it should.
    fn run(&self, compiled: &[u8], length: Duration) -> Result<Sample, LabError> {
        let site = Site::build(Plan::default())?;
        let running = self.forwarder.start(&site, compiled)?;
        mark::check(&site, self.forwarder.marks())?;
        let goodput = |direction, streams| goodput::measure(&site, direction, streams, length);
        let sample = match self.trial {
            Trial::Bulk(streams) => Sample::Bulk(
                goodput(Direction::Upload, streams)?,
                goodput(Direction::Download, streams)?,
            ),
            Trial::Connect(parallel) => Sample::Connect(connect::measure(&site, parallel, length)?),
            Trial::RoundTrip => Sample::RoundTrip(round_trip::measure(&site, length)?),
        };
        running.stop()?;
        Ok(sample)
    }
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.forwarder.name();
        match self.trial {
            Trial::Bulk(streams) => write!(f, "{name}, streams: {streams}"),
            Trial::Connect(parallel) => write!(f, "{name}, connections, {parallel} at a time"),
            Trial::RoundTrip => write!(f, "{name}, round trip"),
        }
    }
}
