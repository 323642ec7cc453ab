//! `exitmark relays`: what a relay set holds. Arguments only; the work is done in `relays`.
//!
//! Never prints an endpoint but the one that the user typed.

use crate::policy::Endpoint;
use crate::relays::{Survey, load};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

/// Read consensus documents and show the relay set they make
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// tor's cached-consensus or cached-microdesc-consensus; several are united
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Answer whether this endpoint is in the set: exit status 0 if it is, 1 if not
    #[arg(long, value_name = "ADDR:PORT", value_parser = endpoint)]
    contains: Option<Endpoint>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what was asked for. The status is 1 for a file that cannot be used, and for an
/// endpoint that is not in the set.
pub fn run(arguments: &Arguments) -> ExitCode {
    let loaded = match load(&arguments.files, &[]) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("exitmark: {error}");
            return ExitCode::FAILURE;
        }
    };
    let survey = Survey::new(&loaded, SystemTime::now());
    let text = match arguments.contains {
        _ if arguments.json => format!("{:#}\n", survey.json(arguments.contains)),
        Some(endpoint) => survey.answer(endpoint) + "\n",
        None => survey.to_string(),
    };
    // `print!` would panic where the reader has gone away or the disk is full.
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        eprintln!("exitmark: cannot write the answer: {error}");
        return ExitCode::FAILURE;
    }
    let contained = arguments
        .contains
        .is_none_or(|endpoint| survey.contains(endpoint));
    if contained {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn endpoint(text: &str) -> Result<Endpoint, &'static str> {
    match text.parse() {
        Ok(Endpoint { port: 0, .. }) => Err("no relay listens on port 0"),
        Ok(endpoint) => Ok(endpoint),
        Err(_) => Err("give an address and a port, such as 192.0.2.1:9001 or [2001:db8::1]:9001"),
    }
}
