//! `exitmark run`: runs the box.

use super::{misused, unmet};
use crate::daemon;
use crate::settings::Settings;
use exitmark_service::process;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run the box until SIGTERM; SIGUSR1 prints the counters, SIGHUP reloads
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command, until the box is stopped. The exit status is 0 after SIGTERM, 1 for a failure
/// or an unmet precondition, 2 for a faulty configuration.
pub fn run(arguments: &Arguments) -> ExitCode {
    let settings = match Settings::load(&arguments.config) {
        Ok(settings) => settings,
        Err(error) => return misused(format_args!("{}: {error}", arguments.config.display())),
    };
    process::log_to_stderr();
    match daemon::run(settings, &arguments.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => unmet(error),
    }
}
