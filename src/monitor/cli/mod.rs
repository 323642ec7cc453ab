//! The monitor's command line: arguments only.

mod capture;
mod report;

use super::settings::{Overrides, Settings};
use clap::{CommandFactory, Parser, Subcommand};
use exitmark_service::config::ConfigError;
use exitmark_service::process;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const PROGRAM: &str = "exitmark-monitor";

/// Count the packets that exitmark has marked, and publish anonymised statistics
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version = exitmark_service::VERSION)]
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

/// Check a configuration without accessing the machine
#[derive(Debug, clap::Args)]
struct Check {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// The command-line definition, for generating the manual.
pub fn command() -> clap::Command {
    Invocation::command()
}

impl Invocation {
    /// Runs the command. The exit status is 0 for success, 1 if a precondition is not met, 2 for
    /// wrong usage or configuration.
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

/// Exit status 1: a precondition is not met.
fn exit_failure(error: impl Display) -> ExitCode {
    process::exit_failure(PROGRAM, error)
}

/// Exit status 2: wrong usage or configuration.
fn exit_usage_error(error: impl Display) -> ExitCode {
    process::exit_usage_error(PROGRAM, error)
}

/// Exit status 2 for a fault in the configuration or in the options that replace it.
fn faulty(path: Option<&Path>, error: &ConfigError) -> ExitCode {
    match path {
        Some(path) => exit_usage_error(format_args!("{}: {error}", path.display())),
        None => exit_usage_error(error),
    }
}

fn print(text: &str) -> ExitCode {
    match process::print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_failure(format_args!("cannot write the output: {error}")),
    }
}
