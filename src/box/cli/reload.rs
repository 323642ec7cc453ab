//! `exitmark reload`: makes a running box reload its configuration.

use super::asking::Asked;
use super::{print, unmet};
use std::process::ExitCode;

/// Reload the configuration of a running box; a refused one changes nothing, exit status 1
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    of: Asked,
}

/// Runs the command, and prints the changed keys.
pub fn run(arguments: &Arguments) -> ExitCode {
    let reloaded = match arguments.of.client().map(|client| client.reload()) {
        Ok(Ok(reloaded)) => reloaded,
        Ok(Err(error)) => return unmet(error),
        Err(code) => return code,
    };
    let generation = reloaded.generation;
    if reloaded.changed.is_empty() {
        return print(&format!("nothing changed: generation {generation}\n"));
    }
    let changed = reloaded.changed.join("\n  ");
    print(&format!("generation {generation}, changed:\n  {changed}\n"))
}
