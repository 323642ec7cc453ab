//! Runs millions of generated frames through both engines.

use exitmark_datapath::Counter;
use exitmark_lab::differential::{Plan, run, store};
use exitmark_lab::needs_root;
use exitmark_policy::Class;
use exitmark_policy::packet::Malformed;
use std::io::Write;
use std::path::Path;

const COUNTER_EXAMPLES: &str = "tests/engines/counterexamples.txt";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Two million frames by default, each by the programs for one buffer and for several; FRAMES and
/// SEED override this. `make fuzz-engines` tries a hundred million.
#[test]
fn both_engines_agree_about_every_frame() {
    needs_root!();
    let threads = std::thread::available_parallelism().map_or(1, |number| number.get() as u64);
    let plan = Plan {
        seed: number("SEED").unwrap_or(1),
        frames: number("FRAMES").unwrap_or(2_000_000),
        threads,
    };
    let start = std::time::Instant::now();
    let outcome = run(plan).unwrap();
    // Not by a print macro: the output of a passing test is captured.
    let _ = writeln!(
        std::io::stderr(),
        "SEED={} frames={} differences={} seconds={}: {}",
        plan.seed,
        outcome.frames,
        outcome.differences.len(),
        start.elapsed().as_secs(),
        outcome.tally,
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(COUNTER_EXAMPLES);
    store(&outcome, &file).unwrap();
    let differences = outcome.differences.iter().map(ToString::to_string);
    let differences: Vec<_> = differences.collect();
    assert!(
        differences.is_empty(),
        "SEED={}: {differences:#?}",
        plan.seed
    );
    // The generated frames cover every rule.
    let enough = outcome.frames / 10_000;
    // These two need extension headers, which the kernel does not parse.
    let unread = [Malformed::ShortExtension, Malformed::TooManyExtensions];
    let observed = (Class::ALL.into_iter().map(Counter::Class))
        .chain([Counter::Marked, Counter::Cleared, Counter::Disagreement])
        .chain([Counter::NoUserSpace])
        .chain(
            (Malformed::ALL.into_iter())
                .filter(|reason| !unread.contains(reason))
                .map(Counter::Malformed),
        );
    for counter in observed {
        let count = outcome.tally.of(counter);
        assert!(count > enough, "only {count} of {counter}");
    }
}
