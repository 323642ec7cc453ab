//! Sends generated frames through both engines and compares the results: `make fuzz-engines`.
//! Requires root. Reads FRAMES and SEED from the environment; fails if anything differs.

#![forbid(unsafe_code)]

use exitmark_lab::LabError;
use exitmark_lab::differential::{Plan, run, store};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const COUNTER_EXAMPLES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/engines/counterexamples.txt"
);

fn number(name: &str) -> Result<Option<u64>, LabError> {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.replace('_', "").parse().map(Some);
    number.map_err(|_| LabError(format!("{name}={text} is not a number")))
}

fn compared() -> Result<bool, LabError> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let by_clock = clock.map_or(1, |time| time.as_secs());
    let threads = std::thread::available_parallelism().map_or(1, |number| number.get() as u64);
    let plan = Plan {
        seed: number("SEED")?.unwrap_or(by_clock),
        frames: number("FRAMES")?.unwrap_or(100_000_000),
        threads,
    };
    println!("SEED={} threads={threads}", plan.seed);
    let start = Instant::now();
    let outcome = run(plan)?;
    for difference in &outcome.differences {
        println!("DIFFERENCE {difference}");
    }
    store(&outcome, Path::new(COUNTER_EXAMPLES))?;
    println!("{}", outcome.tally);
    println!(
        "frames={} differences={} seconds={}",
        outcome.frames,
        outcome.differences.len(),
        start.elapsed().as_secs()
    );
    Ok(outcome.differences.is_empty())
}

fn main() -> ExitCode {
    match compared() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
