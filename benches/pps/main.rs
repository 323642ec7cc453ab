//! Packet rates of exitmark and of what one would use instead, side by side on one machine.
//!
//! The forwarders take turns within every round, each on a fresh site, and what counts is the
//! median of the rounds. All hosts are network namespaces of this process; no frame leaves
//! them. `cargo bench --bench pps -- --help` tells the commands and options.

#[path = "../common/mod.rs"]
mod common;
mod drops;
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
    /// Forwarders side by side: pps.json. This is done when no command is given.
    Rates(rates::Rates),
    /// What becomes of a rate when there is more of something: growth.json.
    Growth(growth::Growth),
    /// Highest load without loss, times under way, bursts, recovery: latency.json. A trial of the
    /// search lasts a sixteenth of what `--seconds` says, a timed one half of it.
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
