//! `exitmark demo`: becomes the program `exitmark-demo`, which is installed beside this one.

use super::exit_failure;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The program that has the demo, and with it the laboratory of namespaces.
const PROGRAM: &str = "exitmark-demo";

/// Run the box between network namespaces, and verify its output on the wire
///
/// Needs root and about fifteen seconds; uses no NIC of this machine and removes all that it
/// creates. The exit status is 0 only if every frame left by the expected port with the expected
/// bytes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one line of JSON; on failure the table goes to standard error
    #[arg(long)]
    json: bool,
}

/// Runs the command: replaces this process by the demo's program. Returns only if that program
/// cannot be run, with exit status 1.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let program = std::env::current_exe()
        .map_err(|error| exit_failure(format_args!("cannot find the demo's program: {error}")))?
        .with_file_name(PROGRAM);
    let mut command = Command::new(&program);
    if arguments.json {
        command.arg("--json");
    }
    let error = command.exec();
    Err(exit_failure(format_args!(
        "cannot run {}: {error}; the demo is a program of its own: install the package, or run \
         `cargo build --package exitmark-demo`",
        program.display()
    )))
}
