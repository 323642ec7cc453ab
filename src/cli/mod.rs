//! The command line: one file per command. Arguments only, no work.

pub mod relays;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What `exitmark` was asked to do.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Invocation {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Relays(relays::Arguments),
}

impl Invocation {
    /// Does it.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Relays(arguments) => relays::run(&arguments),
        }
    }
}
