//! `exitmark top`: shows a running box live.

use super::asking::Asked;
use super::unmet;
use crate::observe::watch;
use std::process::ExitCode;
use std::time::Duration;

/// Watch a running box on a terminal; q, Esc or Ctrl-C ends it
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    of: Asked,
    /// Seconds between two updates
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

/// Runs the command, until the user ends it. The exit status is 1 if standard input or output is
/// not a terminal, 2 for a faulty configuration.
pub fn run(arguments: &Arguments) -> ExitCode {
    let client = match arguments.of.client() {
        Ok(client) => client,
        Err(code) => return code,
    };
    let ask = move || client.status().map_err(|error| error.to_string());
    match watch(Duration::from_secs(arguments.interval), ask) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => unmet(format_args!("top: {error}")),
    }
}
