//! `exitmark reload`: another configuration for a running box.

use super::asking::Asked;
use super::{print, unmet};
use std::process::ExitCode;

/// Have a running box read its configuration anew; a refused one changes nothing, exit status 1
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    of: Asked,
}

/// Reloads, and prints what changed.
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
