//! The `exitmark` command: parse, run, exit code.

use clap::Parser;
use exitmark::cli::Invocation;
use std::process::ExitCode;

fn main() -> ExitCode {
    Invocation::parse().run()
}
