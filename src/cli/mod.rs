//! The command line: one file per command. Arguments only, no work.

pub mod demo;
pub mod detach;
pub mod doctor;
pub mod explain;
pub mod load_relays;
pub mod relays;
pub mod run;

use clap::{Parser, Subcommand};
use std::fmt::Display;
use std::process::ExitCode;

/// Mark Tor exit traffic on the wire, and steer relay traffic to another NIC
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Invocation {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Detach(detach::Arguments),
    Doctor(doctor::Arguments),
    Demo(demo::Arguments),
    Explain(explain::Arguments),
    Relays(relays::Arguments),
    #[command(hide = true)]
    LoadRelays(load_relays::Arguments),
}

impl Invocation {
    /// Does it. The status is 0 if all is fine, 1 if the world is not as required, 2 for wrong
    /// usage or configuration.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run(arguments) => run::run(&arguments),
            Command::Detach(arguments) => detach::run(&arguments),
            Command::Doctor(arguments) => doctor::run(&arguments),
            Command::Demo(arguments) => demo::run(&arguments),
            Command::Explain(arguments) => explain::run(&arguments),
            Command::Relays(arguments) => relays::run(&arguments),
            Command::LoadRelays(arguments) => load_relays::run(&arguments),
        }
    }
}

/// Exit status 1: the world is not as required.
fn unmet(error: impl Display) -> ExitCode {
    eprintln!("exitmark: {error}");
    ExitCode::FAILURE
}

/// Exit status 2: wrong usage or configuration.
fn misused(error: impl Display) -> ExitCode {
    eprintln!("exitmark: {error}");
    ExitCode::from(2)
}
