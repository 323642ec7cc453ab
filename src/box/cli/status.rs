//! `exitmark status`: shows the state of a running box.

use super::asking::Asked;
use super::{print, unmet};
use std::process::ExitCode;

/// Show the state of a running box; exit status 1 if no box answers, or if it has an alarm
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    of: Asked,
    /// Print JSON, with every number exact
    #[arg(long)]
    json: bool,
}

/// Runs the command. The exit status is 1 if no box answers, or if it has an alarm; 2 for a faulty
/// configuration.
pub fn run(arguments: &Arguments) -> ExitCode {
    let client = match arguments.of.client() {
        Ok(client) => client,
        Err(code) => return code,
    };
    let report = match client.status() {
        Ok(report) => report,
        Err(error) => return unmet(error),
    };
    let text = if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(json) => json + "\n",
            Err(error) => return unmet(error),
        }
    } else {
        report.text().to_string()
    };
    match print(&text) {
        ExitCode::SUCCESS if report.has_alarm() => ExitCode::FAILURE,
        code => code,
    }
}
