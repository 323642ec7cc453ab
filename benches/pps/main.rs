//! Packet rates of exitmark and its alternatives on one machine.
//!
//! The forwarders alternate within every round, each on a fresh site; the result is the median of
//! the rounds. All hosts are network namespaces of this process; no frame leaves them. `cargo bench
//! --bench pps -- --help` lists the commands and options.

#[path = "../common/mod.rs"]
mod common;
mod growth;
mod latency;
mod load;
mod measure;
mod peers;
mod plan;
mod rates;
mod report;
mod sample;
mod site;
mod traffic;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "pps",
    about = "Packet rates of forwarders between network namespaces",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    rates: rates::Rates,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Rates of all forwarders, into pps.json (the default command)
    Rates(rates::Rates),
    /// Rates while one parameter grows, into growth.json
    Growth(growth::Growth),
    /// Highest load without loss, latency, bursts, recovery, into latency.json. A trial of the
    /// search lasts a sixteenth of `--seconds`, a timed one half of it
    Latency(latency::Latency),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        None => rates::bench(&arguments.rates),
        Some(Command::Rates(arguments)) => rates::bench(arguments),
        Some(Command::Growth(arguments)) => growth::bench(arguments),
        Some(Command::Latency(arguments)) => latency::bench(arguments),
    };
    common::rounds::exit("pps", outcome)
}
