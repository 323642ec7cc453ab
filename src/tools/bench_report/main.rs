//! Generates a page with plots from the benches' results: `cargo run --bin bench-report`. With
//! `--publish` it writes the page, the plots and the results into `docs/` too, and a short table
//! into the README.

#![forbid(unsafe_code)]

mod report;

use clap::Parser;
use report::{Report, publish};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "bench_report",
    about = "Generates a page and plots from the benches' results"
)]
struct Arguments {
    /// Write them into docs/ and the README's table too
    #[arg(long)]
    publish: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let project = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project.join("target"), PathBuf::from);
    let results = target.join("bench");
    let report = Report::of(&results)?;
    for name in &report.missing {
        eprintln!("bench-report: {} has no {name}", results.display());
    }
    report.write(&results, "report.md")?;
    println!("written to {}", results.join("report.md").display());
    if arguments.publish {
        publish::publish(&report, project)?;
        println!("published in README.md, docs/benchmarks.md and docs/benchmarks");
    }
    Ok(())
}
