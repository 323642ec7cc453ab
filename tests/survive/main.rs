//! Tier: root. What the box survives, and what that costs: frames are forwarded while its process
//! is killed, stopped, starved, replaced or given other relay sets, and while its links go down.
//!
//! ```text
//!            paced: 20,000/s            ┌─────┐ uplink0 ──── eth0  sink: exit marked,
//!  host ── eth0 ───────────────── host0 │ box │              clearnet    the rest unmarked
//!          sink: everything inbound     └─────┘ incoming0 ── eth0  sink: relays, new MACs
//!                                               tornet
//! ```
//!
//! 64 flows leave the host: exit traffic, traffic to listed relays and to other ports of theirs,
//! answers of a listener, UDP; IPv4 and IPv6; some carry the mark before. 16 flows come back.
//! Each frame has its flow's number and its own behind its headers. The far ends are sinks: an
//! XDP program on each holds every frame's headers against what they must be, byte for byte,
//! remembers each in a bitmap, and drops it. So every count is exact: lost is what was sent less
//! what was seen, duplicated was seen twice, reordered came behind a later one, missteered came
//! to the wrong sink or with wrong MAC addresses, mismarked has any other wrong byte.
//!
//! Loads: steady (a packet socket, 20,000 frames a second in ticks of a millisecond, late ones
//! made up for), bursts (the same every 10 ms), saturation (BPF_PROG_RUN, from the host only).
//! The sinks are shown every fault by hand, and all loads are sent through a box of the test's own
//! that has none (`faults.rs`): what is counted with exitmark in the middle, exitmark has done.
//!
//! What must hold is a table, in `expect.rs`. All rows are made before the test says which of
//! them do not hold, and are written to `survive.json` in the target directory.
//!
//! `EXITMARK_SURVIVE` selects rows: names of an event, an engine, a load, separated by commas,
//! e.g. `kill -9,xdp`; what is not named is not restricted. A selection writes no file.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod agreement;
mod cgroup;
mod events;
mod expect;
mod faults;
mod flows;
mod load;
mod report;
mod sets;
mod sinks;
mod stage;

use cgroup::MemoryCgroup;
use exitmark_lab::{needs_root, results};
use expect::{ENGINES, Event, Expected, TABLE};
use load::Rhythm;
use report::Row;
use sets::Sets;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// The number of times that a row is played at most if a pause of the machine may have spoilt it.
const TRIES: u32 = 3;

/// Held by each test that measures: beside another one it would measure that one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rows of one line of the table. A paced load leaves room for the other engine's site beside
/// it; at saturation each has the machine for itself.
fn play(
    program: &[u8],
    sets: &Sets,
    expected: &'static Expected,
    engines: impl Iterator<Item = &'static str>,
) -> Vec<(Row, Option<String>)> {
    let play = move |engine| {
        let (mut plays, mut lost_before) = (1, 0);
        let mut played = stage::play(program, sets, expected, engine);
        while plays < TRIES && played.0.may_be_of_machine(expected.lost(engine)) {
            println!("{}", played.0.line());
            println!("    played again: the machine may have paused");
            lost_before = played.0.lost.max(lost_before);
            plays += 1;
            played = stage::play(program, sets, expected, engine);
        }
        (played.0.plays, played.0.lost_before) = (plays, lost_before);
        played
    };
    if expected.rhythm == Rhythm::Saturation {
        return engines.map(play).collect();
    }
    thread::scope(|scope| {
        let rows = engines.map(|engine| scope.spawn(move || play(engine)));
        let rows: Vec<_> = rows.collect();
        rows.into_iter().map(|row| row.join().unwrap()).collect()
    })
}

#[test]
fn frames_go_on_whatever_happens_to_the_box() {
    needs_root!();
    let _alone = alone();
    let selection = std::env::var("EXITMARK_SURVIVE").ok();
    let selected = |name: &str, engine: &str, load: &str| {
        let row = [name, engine, load];
        let mut words = selection.iter().flat_map(|words| words.split(','));
        words.all(|word| row.contains(&word.trim()))
    };
    let no_cgroup = MemoryCgroup::new().err();
    if let Some(error) = &no_cgroup {
        // Not by a print macro: what a passing test prints is swallowed.
        let _ = writeln!(std::io::stderr(), "SKIPPED (OOM kill): {error}");
    }
    let program = sinks::compile().unwrap();
    let sets = Sets::invent();
    let (mut rows, mut complaints) = (Vec::new(), Vec::new());
    for expected in TABLE {
        if expected.event == Event::OutOfMemory && no_cgroup.is_some() {
            continue;
        }
        let engines = ENGINES
            .into_iter()
            .filter(|engine| selected(expected.name, engine, expected.rhythm.name()));
        for (row, complaint) in play(&program, &sets, expected, engines) {
            println!("{}", row.line());
            if let Some(complaint) = complaint {
                println!("    DOES NOT HOLD: {complaint}");
                complaints.push(format!(
                    "{} {} {}: {complaint}",
                    row.event, row.engine, row.load
                ));
            }
            rows.push(row);
        }
    }
    assert!(!rows.is_empty(), "EXITMARK_SURVIVE selects nothing");
    if selection.is_none() {
        let path = results::write_beside(env!("CARGO_TARGET_TMPDIR"), "survive.json", &rows);
        println!("{}", path.unwrap().display());
    }
    assert!(
        complaints.is_empty(),
        "{} of {} rows do not hold:\n{}",
        complaints.len(),
        rows.len(),
        complaints.join("\n")
    );
}
