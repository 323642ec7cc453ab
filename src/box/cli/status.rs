//! `exitmark status`: shows the state of a running box.

use super::target::ConnectionTarget;
use super::{exit_failure, print};
use std::process::ExitCode;

/// Show the state of a running box; exit status 1 if no box answers, or if it has an alarm
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: ConnectionTarget,
    /// Print JSON, with every number exact
    #[arg(long)]
    json: bool,
}

/// Runs the command. The exit status is 1 if no box answers, or if it has an alarm; 2 for a faulty
/// configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let report = arguments.of.client()?.status().map_err(exit_failure)?;
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report).map_err(exit_failure)? + "\n",
        false => report.text().to_string(),
    };
    Ok(match print(&text) {
        ExitCode::SUCCESS if report.has_alarm() => ExitCode::FAILURE,
        code => code,
    })
}
