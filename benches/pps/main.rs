//! Packet rates of exitmark and of what one would use instead, side by side on one machine.
//!
//! The forwarders take turns within every round, each on a fresh site, and what counts is the
//! median of the rounds. All hosts are network namespaces of this process; no frame leaves
//! them. `cargo bench --bench pps -- --help` tells the options.

#[path = "../common/mod.rs"]
mod common;
mod drops;
mod measure;
mod peers;
mod report;
mod site;
mod traffic;

use clap::Parser;
use common::machine::Machine;
use common::{bpf, results, rounds};
use exitmark::lab::LabError;
use peers::Forwarder;
use report::Row;
use std::fmt;
use std::process::ExitCode;
use traffic::Load;

#[derive(Parser)]
#[command(
    name = "pps",
    about = "Packet rates of forwarders between network namespaces"
)]
struct Arguments {
    #[command(flatten)]
    options: rounds::Options,
    /// Frame sizes in bytes, without the FCS.
    #[arg(long, value_delimiter = ',', default_value = "64,1514",
          value_parser = clap::value_parser!(u16).range(60..=1514))]
    sizes: Vec<u16>,
    /// How many of 100 flows go to relays.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    relay_percent: u8,
}

fn main() -> ExitCode {
    rounds::exit("pps", bench(&Arguments::parse()))
}

/// Runs everything; false when a forwarder failed.
fn bench(arguments: &Arguments) -> Result<bool, LabError> {
    let forwarders = arguments.options.chosen(peers::all(), |one| one.name())?;
    rounds::need_root()?;
    let forwarders = available(forwarders);
    let compiled = bpf::compile()?;
    let contestants = arguments.sizes.iter().flat_map(|&size| {
        let load = Load {
            frame_bytes: size.into(),
            relay_percent: arguments.relay_percent,
        };
        forwarders.iter().map(move |forwarder| Contestant {
            forwarder: forwarder.as_ref(),
            load,
        })
    });
    let mut machine = Machine::new();
    let (contests, whole) = rounds::run(
        &arguments.options,
        &mut machine,
        contestants,
        |contestant, length| measure::run(&compiled, contestant.forwarder, contestant.load, length),
    )?;
    let rows: Vec<_> = contests.iter().filter_map(Row::new).collect();
    report::print(&rows);
    results::write("pps.json", &rows)?;
    let directory = results::write("machine.json", &machine)?;
    println!("\nwritten to {}", directory.display());
    Ok(whole)
}

/// One forwarder with one load.
struct Contestant<'f> {
    forwarder: &'f dyn Forwarder,
    load: Load,
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} B", self.forwarder.name(), self.load.frame_bytes)
    }
}

/// Without those for which something is missing here.
fn available(mut forwarders: Vec<Box<dyn Forwarder>>) -> Vec<Box<dyn Forwarder>> {
    forwarders.retain(|forwarder| {
        let missing = forwarder.missing();
        if let Some(missing) = &missing {
            let name = forwarder.name();
            eprintln!("{name} is left out; this machine lacks {missing}");
        }
        missing.is_none()
    });
    forwarders
}
