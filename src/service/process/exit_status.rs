//! Exit status, output and logging of a command.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Prints an error; exit status 1: a failure, or an unmet precondition.
pub fn exit_failure(program: &str, error: impl Display) -> ExitCode {
    print_error(program, error);
    ExitCode::FAILURE
}

/// Prints an error; exit status 2: wrong usage or configuration.
pub fn exit_usage_error(program: &str, error: impl Display) -> ExitCode {
    print_error(program, error);
    ExitCode::from(2)
}

/// Prints an error; `eprintln!` would panic if stderr is closed or the disk is full.
fn print_error(program: &str, error: impl Display) {
    let _ = writeln!(std::io::stderr(), "{program}: {error}");
}

/// Prints and flushes; `print!` would panic on an error.
///
/// # Errors
/// Stdout is closed, or the disk is full.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Starts logging to stderr, filtered by `RUST_LOG`; by default at level info.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost: reporting that would panic for the same reason.
        .log_internal_errors(false)
        .without_time()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
