//! Goodput of TCP between the Tor host and a web server, both with stacks of their own, through
//! exitmark in its engines and through a bare wire, side by side on one machine.
//!
//! The forwarders take turns within every round, each on a fresh site, and what counts is the
//! median of the rounds. All hosts are network namespaces of this process; no frame leaves
//! them, and nobody is bound to a core. `cargo bench --bench tcp -- --help` tells the options.

#[path = "../common/mod.rs"]
mod common;
mod forwarders;
mod goodput;
mod mark;
mod report;

use clap::Parser;
use common::machine::Machine;
use common::{bpf, results, rounds};
use exitmark::lab::LabError;
use exitmark::lab::site::{Plan, Site};
use forwarders::Forwarder;
use goodput::Direction;
use report::Sample;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "tcp", about = "TCP goodput between network namespaces")]
struct Arguments {
    #[command(flatten)]
    options: rounds::Options,
    /// How many connections send at the same time; each number is measured.
    #[arg(long, value_delimiter = ',', default_value = "1,4",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    streams: Vec<u16>,
}

fn main() -> ExitCode {
    rounds::exit("tcp", bench(&Arguments::parse()))
}

/// Runs everything; false when a forwarder failed.
fn bench(arguments: &Arguments) -> Result<bool, LabError> {
    let all = forwarders::all();
    let forwarders = arguments.options.chosen(all, Forwarder::name)?;
    rounds::need_root()?;
    let compiled = bpf::compile(bpf::TRAFFIC)?;
    let contestants = arguments.streams.iter().flat_map(|&streams| {
        let each = forwarders.iter();
        each.map(move |forwarder| Contestant { forwarder, streams })
    });
    let mut machine = Machine::new();
    let (contests, whole) = rounds::run(
        &arguments.options,
        &mut machine,
        contestants,
        |contestant, length| contestant.run(&compiled, length),
    )?;
    let rows = report::rows(&contests);
    report::print(&rows);
    results::write("tcp.json", &rows)?;
    let directory = results::write("tcp-machine.json", &machine)?;
    println!("\nwritten to {}", directory.display());
    Ok(whole)
}

/// One forwarder with so many connections at a time.
struct Contestant<'f> {
    forwarder: &'f Forwarder,
    streams: u16,
}

impl Contestant<'_> {
    /// A fresh site, the forwarder, the proof that it marks what it should, and both directions
    /// after each other.
    fn run(&self, compiled: &[u8], length: Duration) -> Result<Sample, LabError> {
        let site = Site::build(Plan::default())?;
        let running = self.forwarder.start(&site, compiled)?;
        mark::check(&site, self.forwarder.marks())?;
        let measure = |direction| goodput::measure(&site, direction, self.streams, length);
        let sample = Sample {
            upload: measure(Direction::Upload)?,
            download: measure(Direction::Download)?,
        };
        running.stop()?;
        Ok(sample)
    }
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, streams: {}", self.forwarder.name(), self.streams)
    }
}
