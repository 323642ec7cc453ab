//! Instructions per frame between the rings, by kind of frame. Unlike time, they do not depend on
//! the machine's load: `make bench-check` compares them with benches/instructions.json, and fails
//! if a kind changed by more than 2 %, also if it improved: the file must be current.
//!
//! Callgrind counts only within `Forwarder::process_batch`. It does not measure cache misses and
//! mispredicted branches: use `decision` on a quiet machine for these. It is called directly,
//! because the crates for it need a separately installed runner.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

mod baseline;
mod callgrind;
#[path = "../rig/mod.rs"]
mod rig;

use baseline::{Baseline, Built};
use callgrind::Unable;
use rig::{KINDS, RING, Rig, snapshots};
use std::process::ExitCode;

/// The counted passes of each frame, one by each of the rig's two snapshots.
const PASSES: u32 = 2;

/// The number of random keys of the relay set's table, of which the median counts: a few keys
/// perform badly on consecutive addresses.
const KEYS: usize = 15;

const COUNTED: &str = "--counted";
const WRITE: &str = "--write-baseline";

fn main() -> ExitCode {
    let has_flag = |what| std::env::args().any(|argument| argument == what);
    if has_flag(COUNTED) {
        let read = snapshots();
        for _ in 0..KEYS {
            let snapshots = read.each_ref().map(rig::with_other_keys);
            for kind in &KINDS {
                let mut rig = Rig::new(&snapshots, RING, kind);
                // Only the first frames allocate, and teach the host's address.
                passes(&mut rig);
                passes(&mut rig);
            }
        }
        return ExitCode::SUCCESS;
    }
    let counts = match callgrind::count(COUNTED, "process_batch", "instructions::passes") {
        Ok(counts) => counts,
        Err(Unable::NotInstalled) => {
            println!("instructions: SKIPPED: there is no valgrind (apt-get install valgrind)");
            return ExitCode::SUCCESS;
        }
        Err(Unable::Failed(why)) => {
            eprintln!("instructions: {why}");
            return ExitCode::FAILURE;
        }
    };
    if counts.len() != 2 * KINDS.len() * KEYS || counts.contains(&0) {
        eprintln!(
            "instructions: callgrind counted {counts:?}, not {} numbers; are \
             `process_batch` and `passes` still functions of their own?",
            2 * KINDS.len() * KEYS
        );
        return ExitCode::FAILURE;
    }
    let now = Baseline::new(
        Built::here(),
        KINDS.iter().enumerate().map(|(at, kind)| {
            let of_kind = counts.iter().skip(2 * at + 1).step_by(2 * KINDS.len());
            let mut of_kind = of_kind.copied().collect::<Vec<_>>();
            of_kind.sort_unstable();
            (kind.name, per_frame(of_kind[KEYS / 2]))
        }),
    );
    if has_flag(WRITE) {
        return now.write();
    }
    now.compare()
}

/// Instructions per frame, rounded to a tenth.
fn per_frame(count: u64) -> f64 {
    let tenths = count * 10 / u64::from(RING * PASSES);
    f64::from(u32::try_from(tenths).unwrap_or(u32::MAX)) / 10.0
}

/// A separate function: callgrind writes its counts when it returns.
#[inline(never)]
fn passes(rig: &mut Rig) {
    for _ in 0..PASSES {
        rig.pass();
    }
}
