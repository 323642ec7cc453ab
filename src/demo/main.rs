//! The `exitmark-demo` command: parse, run, exit code.

use clap::Parser;
use exitmark_demo::DemoError;
use exitmark_service::process::exit_failure;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// The prefix of error messages.
const PROGRAM: &str = "exitmark";

/// Run the box between network namespaces, and verify its output on the wire
///
/// Needs root and about fifteen seconds; uses no NIC of this machine and removes all that it
/// creates. The exit status is 0 only if every frame left by the expected port with the expected
/// bytes.
#[derive(Debug, Parser)]
#[command(version = exitmark_service::VERSION)]
struct Arguments {
    /// Print one line of JSON; on failure the table goes to standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Progress messages are optional: a closed standard error does not stop the demo.
    let say = |text: &str| drop(writeln!(std::io::stderr(), "{text}"));
    let report = match exitmark_demo::run(&say) {
        Ok(report) => report,
        Err(error @ DemoError::Interrupted(signal)) => {
            let _ = exit_failure(PROGRAM, error);
            return ExitCode::from(signal.saturating_add(128));
        }
        Err(error) => return exit_failure(PROGRAM, error),
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
