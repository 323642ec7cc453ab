//! The command line: one file per command. Arguments only, no work.

mod capture;
mod check;
mod demo;
mod detach;
mod doctor;
mod explain;
mod load_relays;
mod relays;
mod reload;
mod run;
mod status;
mod target;
mod top;
mod wire;

use crate::settings::Settings;
use clap::{CommandFactory, Parser, Subcommand};
use exitmark_service::process;
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

/// An inline packet box that marks Tor exit traffic with a DSCP value and steers relay traffic to
/// another NIC
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version = exitmark_service::VERSION)]
pub struct Invocation {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Run(run::Arguments),
    Wire(wire::Arguments),
    Detach(detach::Arguments),
    Status(status::Arguments),
    Top(top::Arguments),
    Reload(reload::Arguments),
    Capture(capture::Arguments),
    Doctor(doctor::Arguments),
    Demo(demo::Arguments),
    Explain(explain::Arguments),
    Relays(relays::Arguments),
    #[command(hide = true)]
    LoadRelays(load_relays::Arguments),
}

/// The definition of the command line, to generate manual pages and completions.
pub fn command() -> clap::Command {
    Invocation::command()
}

impl Invocation {
    /// Runs the command. The exit status is 0 on success, 1 on a failure or an unmet precondition,
    /// and 2 for wrong usage or configuration.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Check(arguments) => check::run(&arguments),
            Command::Run(arguments) => run::run(&arguments),
            Command::Wire(arguments) => wire::run(&arguments),
            Command::Detach(arguments) => detach::run(&arguments),
            Command::Status(arguments) => status::run(&arguments),
            Command::Top(arguments) => top::run(&arguments),
            Command::Reload(arguments) => reload::run(&arguments),
            Command::Capture(arguments) => capture::run(&arguments),
            Command::Doctor(arguments) => doctor::run(&arguments),
            Command::Demo(arguments) => demo::run(&arguments),
            Command::Explain(arguments) => explain::run(&arguments),
            Command::Relays(arguments) => relays::run(&arguments),
            Command::LoadRelays(arguments) => load_relays::run(&arguments),
        }
        .unwrap_or_else(|code| code)
    }
}

/// The program's name, in its help, its version and before error messages.
const PROGRAM: &str = "exitmark";

/// Exit status 1: a failure, or an unmet precondition.
fn exit_failure(error: impl Display) -> ExitCode {
    process::exit_failure(PROGRAM, error)
}

/// Exit status 2: wrong usage or configuration.
fn exit_usage_error(error: impl Display) -> ExitCode {
    process::exit_usage_error(PROGRAM, error)
}

/// Reads a configuration; the error is printed.
fn load(path: &Path) -> Result<Settings, ExitCode> {
    Settings::load(path)
        .map_err(|error| exit_usage_error(format_args!("{}: {error}", path.display())))
}

fn print(text: &str) -> ExitCode {
    match process::print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_failure(format_args!("cannot write the output: {error}")),
    }
}
