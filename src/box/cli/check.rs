//! `exitmark check`: checks a configuration without the machine.

use super::{exit_failure, print};
use crate::settings::Settings;
use std::path::PathBuf;
use std::process::ExitCode;

/// Check a configuration without accessing the machine: exit status 0 if it can be used, 1 if not
///
/// Doubtful combinations of values give a warning. Conditions on the machine are named, not checked:
/// `exitmark doctor --config FILE` checks the configuration against the machine.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print the effective policy too: a block for each group of hosts, with the keys that it
    /// inherits, then what all groups share. The output contains the addresses of the hosts.
    #[arg(long)]
    explain: bool,
}

/// Runs the command. The exit status is 0 if the configuration can be used, 1 if not.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let path = arguments.config.display();
    let settings = Settings::load(&arguments.config)
        .map_err(|error| exit_failure(format_args!("{path}: {error}")))?;
    for doubt in settings.doubts() {
        eprintln!("exitmark: {path}: warning: {}", doubt.what);
    }
    let mut text = format!("{path}: fine ({})\n", settings.summary());
    for condition in settings.conditions_of_sources() {
        text += &format!("{path}: {condition}: `exitmark doctor --config {path}` checks it\n");
    }
    if arguments.explain {
        text += &format!("\n{}", settings.effective());
    }
    Ok(print(&text))
}
