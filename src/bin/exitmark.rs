//! The `exitmark` command: parse, run, exit code.

use clap::Parser;
use exitmark_box::cli::Invocation;
use std::process::ExitCode;

fn main() -> ExitCode {
    Invocation::parse().run()
}
