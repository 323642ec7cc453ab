//! `exitmark run`: runs the box.

use super::{exit_failure, load};
use crate::daemon;
use exitmark_service::process;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run the box until SIGTERM; SIGUSR1 prints the counters, SIGHUP reloads
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command, until the box is stopped. The exit status is 0 after SIGTERM, 1 for a failure
/// or an unmet precondition, 2 for a faulty configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let settings = load(&arguments.config)?;
    process::log_to_stderr();
    daemon::run(settings, &arguments.config).map_err(exit_failure)?;
    Ok(ExitCode::SUCCESS)
}
