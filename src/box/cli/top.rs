//! `exitmark top`: shows a running box live.

use super::exit_failure;
use super::target::ConnectionTarget;
use crate::observe::watch;
use std::process::ExitCode;
use std::time::Duration;

/// Watch a running box on a terminal; q, Esc or Ctrl-C ends it
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: ConnectionTarget,
    /// Seconds between two updates
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

/// Runs the command, until the user ends it. The exit status is 1 if standard input or output is
/// not a terminal, 2 for a faulty configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let client = arguments.of.client()?;
    let ask = move || client.status().map_err(|error| error.to_string());
    watch(Duration::from_secs(arguments.interval), ask)
        .map_err(|error| exit_failure(format_args!("top: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
