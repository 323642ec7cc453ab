//! The monitor's command line: arguments only, no work.

mod capture;
mod report;

use super::settings::{Overrides, Settings};
use crate::config::ConfigError;
use crate::process;
use clap::{CommandFactory, Parser, Subcommand};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// As whom a command speaks.
const PROGRAM: &str = "exitmark-monitor";

/// Count what exitmark has marked, and publish statistics that name nobody
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version = env!("EXITMARK_VERSION"))]
pub struct Invocation {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
    Capture(capture::Arguments),
    Report(report::Arguments),
}

/// Say whether a configuration can be used; looks at nothing else
#[derive(Debug, clap::Args)]
struct Check {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// What the command line accepts, for whoever writes its manual.
pub fn command() -> clap::Command {
    Invocation::command()
}

impl Invocation {
    /// Does it. The status is 0 if all is fine, 1 if the world is not as required, 2 for wrong
    /// usage or configuration.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Check(arguments) => check(&arguments),
            Command::Capture(arguments) => capture::run(&arguments),
            Command::Report(arguments) => report::run(&arguments),
        }
    }
}

fn check(arguments: &Check) -> ExitCode {
    match Settings::load(Some(&arguments.config), &Overrides::default()) {
        Ok(settings) => print(&format!("{}\n", settings.summary())),
        Err(error) => faulty(Some(&arguments.config), &error),
    }
}

/// Exit status 1: the world is not as required.
fn unmet(error: impl Display) -> ExitCode {
    process::unmet(PROGRAM, error)
}

/// Exit status 2: wrong usage or configuration.
fn misused(error: impl Display) -> ExitCode {
    process::misused(PROGRAM, error)
}

/// The same, where the configuration is at fault, or what the command line says in its place.
fn faulty(path: Option<&Path>, error: &ConfigError) -> ExitCode {
    match path {
        Some(path) => misused(format_args!("{}: {error}", path.display())),
        None => misused(error),
    }
}

/// Prints what was asked for.
fn print(text: &str) -> ExitCode {
    match process::print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => unmet(format_args!("cannot write the answer: {error}")),
    }
}
