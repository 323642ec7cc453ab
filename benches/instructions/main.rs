//! How many instructions one frame costs between the rings, by kind of frame. Unlike time, this
//! is the same on a busy machine: `make bench-check` holds it against benches/instructions.json,
//! and a kind that changed by more than 2 % fails, be it to the better: the file says what is so.
//!
//! Callgrind counts, and only within `Forwarder::process_batch`. What a processor makes of the
//! instructions (misses, mispredicted branches) is not seen: that takes `decision`, and quiet.
//! Callgrind itself is all that this needs; the crates around it take a runner that is installed
//! apart.

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

/// How often each frame passes while callgrind counts: by both of the rig's snapshots alike.
const PASSES: u32 = 2;

/// The relay set's table has a random key, and a few keys do badly by addresses that are in a row:
/// what counts is the median of so many.
const KEYS: usize = 15;

/// What this program is told: to be counted, or what to do with the counts.
const COUNTED: &str = "--counted";
const WRITE: &str = "--write-baseline";

fn main() -> ExitCode {
    let told = |what| std::env::args().any(|argument| argument == what);
    if told(COUNTED) {
        let read = snapshots();
        for _ in 0..KEYS {
            let snapshots = read.each_ref().map(rig::with_other_keys);
            for kind in &KINDS {
                let mut rig = Rig::new(&snapshots, RING, kind);
                // The first frames alone allocate, and teach the host's address.
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
    if told(WRITE) {
        return now.write();
    }
    now.compare()
}

/// To a tenth.
fn per_frame(count: u64) -> f64 {
    let tenths = count * 10 / u64::from(RING * PASSES);
    f64::from(u32::try_from(tenths).unwrap_or(u32::MAX)) / 10.0
}

/// A function of its own: callgrind writes its counts where this ends.
#[inline(never)]
fn passes(rig: &mut Rig) {
    for _ in 0..PASSES {
        rig.pass();
    }
}
