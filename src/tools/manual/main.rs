//! Writes the man pages and the shells' completions of both programs into a directory:
//! `cargo run --bin manual -- DIRECTORY`. `make deb` packages them.

#![forbid(unsafe_code)]

mod pages;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("manual: name a directory: `cargo run --example manual -- target/manual`");
        return ExitCode::from(2);
    };
    match pages::write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: cannot write into {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
