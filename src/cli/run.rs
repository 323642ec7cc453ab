//! `exitmark run`: the box itself.

use super::{misused, unmet};
use crate::daemon;
use crate::settings::Settings;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Run the box until SIGTERM; SIGUSR1 prints the counters, SIGHUP reloads
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> ExitCode {
    let settings = match Settings::load(&arguments.config) {
        Ok(settings) => settings,
        Err(error) => return misused(format_args!("{}: {error}", arguments.config.display())),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match daemon::run(settings, &arguments.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => unmet(error),
    }
}
