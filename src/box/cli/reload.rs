//! `exitmark reload`: makes a running box reload its configuration.

use super::target::ConnectionTarget;
use super::{exit_failure, print};
use std::process::ExitCode;

/// Reload the configuration of a running box; a refused one changes nothing, exit status 1
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: ConnectionTarget,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let reloaded = arguments.of.client()?.reload().map_err(exit_failure)?;
    let generation = reloaded.generation;
    Ok(print(&match reloaded.changed.as_slice() {
        [] => format!("nothing changed: generation {generation}\n"),
        changed => format!(
            "generation {generation}, changed:\n  {}\n",
            changed.join("\n  ")
        ),
    }))
}
