//! `exitmark wire`: attaches a plain wire, before a policy is loaded.

use super::{exit_failure, load, print};
use crate::daemon::{self, Existing};
use exitmark_service::process;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Attach a plain wire and exit: forward everything between host and uplink, unmarked, until `run`
/// takes over
///
/// For early boot. It needs neither a relay set nor a running process. If a box is already attached
/// it changes nothing; `detach --keep-wire` replaces a box by a plain wire.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration; only its NICs and pins are used
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How long to wait for missing NICs, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=3600))]
    wait: u16,
}

/// A line for each wire.
pub(super) fn plain_wires(beginning: &str, wires: &[[String; 2]]) -> String {
    let lines = wires.iter();
    lines
        .map(|[host, uplink]| format!("{beginning}{host} and {uplink} are a plain wire\n"))
        .collect()
}

/// Runs the command. The exit status is 0 also if a box was attached already, 1 for an unmet
/// precondition, 2 for a faulty configuration.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let settings = load(&arguments.config)?;
    process::log_to_stderr();
    let timeout = Duration::from_secs(arguments.wait.into());
    let wires = daemon::wires(&settings, timeout, Existing::Keep).map_err(exit_failure)?;
    let is_kept = wires.len() < settings.wires.len();
    let kept = if is_kept {
        "a box is attached, and stays as it is\n"
    } else {
        ""
    };
    Ok(print(&format!("{}{kept}", plain_wires("", &wires))))
}
