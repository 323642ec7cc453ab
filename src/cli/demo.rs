//! `exitmark demo`: see the box work. Arguments only; the work is done in `demo`.

use super::unmet;
use crate::demo::{self, DemoError};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Show the box at work between namespaces of its own, and prove on the wire what it does
///
/// Takes root and some fifteen seconds; touches no NIC of this machine and leaves nothing behind.
/// The exit status is 0 only if every frame was where it had to be.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print one line of JSON; the table goes to standard error where something is wrong
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> ExitCode {
    // Progress is for people: nobody listening is no reason to stop.
    let say = |text: &str| drop(writeln!(std::io::stderr(), "{text}"));
    let report = match demo::run(&say) {
        Ok(report) => report,
        Err(error @ DemoError::Interrupted(signal)) => {
            let _ = unmet(error);
            return ExitCode::from(signal.saturating_add(128));
        }
        Err(error) => return unmet(error),
    };
    let mut stdout = std::io::stdout();
    if arguments.json && !report.holds() {
        say(&report.table(false));
    }
    let text = if arguments.json {
        format!("{}\n", report.json())
    } else {
        report.table(stdout.is_terminal())
    };
    if stdout.write_all(text.as_bytes()).is_ok() && report.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
