//! What a command says, and with which status it ends.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Exit status 1: the world is not as required.
pub fn unmet(program: &str, error: impl Display) -> ExitCode {
    complain(program, error);
    ExitCode::FAILURE
}

/// Exit status 2: wrong usage or configuration.
pub fn misused(program: &str, error: impl Display) -> ExitCode {
    complain(program, error);
    ExitCode::from(2)
}

/// `eprintln!` would panic where standard error is closed, or a file on a full disk.
fn complain(program: &str, error: impl Display) {
    let _ = writeln!(std::io::stderr(), "{program}: {error}");
}

/// Prints; `print!` would panic where the reader has gone away or the disk is full.
///
/// # Errors
/// It has, or it is.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Begins to log to standard error, as much as `RUST_LOG` asks for.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost: to say so would panic for the same reason.
        .log_internal_errors(false)
        .without_time()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
