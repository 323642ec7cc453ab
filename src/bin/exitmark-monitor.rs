//! The `exitmark-monitor` command: parse, run, exit code.

use clap::Parser;
use exitmark_monitor::cli::Invocation;
use std::process::ExitCode;

fn main() -> ExitCode {
    Invocation::parse().run()
}
