//! `exitmark load-relays`: the confined loader process of the daemon. Not a user command.

use exitmark_relays::{Confinement, serve};
use std::process::ExitCode;

/// Read documents on the standard input for the daemon, confined
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Become this user
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// Become a member of only this group
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
}

/// Serves one request. The exit status is 0 if an answer was written, also if it is a refusal.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let confinement = Confinement {
        user: arguments.uid.zip(arguments.gid),
    };
    serve(&confinement).map_err(super::exit_failure)?;
    Ok(ExitCode::SUCCESS)
}
