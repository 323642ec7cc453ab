//! What a restart restores.

use super::{HOST_V4, Stage, connection, wait_for};
use crate::published::counts;
use crate::says;
use exitmark_lab::needs_root;
use exitmark_lab::tap::state_file;
use nix::sys::signal::Signal;
use std::fs;

#[test]
fn a_period_goes_on_over_a_stop_and_a_kill_and_a_change_of_databases() {
    needs_root!();
    let stage = Stage::new();
    let frames = connection(&format!("{HOST_V4}:40000"), "8.8.8.8:443");

    let running = stage.start("", "").unwrap();
    stage.send(&frames);
    wait_for(&running, 2);
    assert!(running.end().unwrap().status.success());
    let before = stage.kept();
    assert_eq!(before.cells.len(), 1);

    // Killed, it has the counts of the last save.
    let mut running = stage.start("", "").unwrap();
    // Counts of an earlier process are not reported again.
    assert_eq!(running.counters().unwrap()["packets"], 0);
    running.wait_log(&["continues with the counts"]);
    stage.send(&frames);
    wait_for(&running, 2);
    running.signal(Signal::SIGKILL).unwrap();
    running.ended().unwrap();
    assert_eq!(stage.kept().cells, before.cells);
    let link = stage.site.link().unwrap();
    assert!(!link.contains("xdp"), "a program is left: {link}");

    // Another database lacks the first one's places; their names are kept.
    let csv = stage.directory.path().join("other.csv");
    fs::write(&csv, "134744072,134744072,XX,64500\n").unwrap();
    let other = "[places]\ncountries = \"other.csv\"\n";
    let running = stage.start("", other).unwrap();
    stage.send(&frames);
    wait_for(&running, 2);
    assert!(running.end().unwrap().status.success());
    let after = stage.kept();
    let two = counts(1, 80, 2);
    let cells = after.cells.iter();
    let cells =
        cells.map(|(cell, counts)| (cell.place.country.to_string(), cell.place.asn, *counts));
    let expected = [("US".to_owned(), 0, two), ("XX".to_owned(), 64500, two)];
    assert_eq!(cells.collect::<Vec<_>>(), expected);
}

#[test]
fn counts_waiting_packets_at_a_stop() {
    needs_root!();
    let stage = Stage::new();
    let running = stage.start("", "").unwrap();
    running.signal(Signal::SIGSTOP).unwrap();
    let frames = connection(&format!("{HOST_V4}:40000"), "8.8.8.8:443");
    for _ in 0..500 {
        stage.send(&frames);
    }
    running.signal(Signal::SIGTERM).unwrap();
    running.signal(Signal::SIGCONT).unwrap();
    assert!(running.end().unwrap().status.success());
    let counted: u64 = stage.kept().cells.iter().map(|(_, one)| one.packets).sum();
    assert_eq!(counted, 1000);
}

#[test]
fn a_damaged_state_is_set_aside_and_another_monitor_is_refused() {
    needs_root!();
    let stage = Stage::new();
    let running = stage.start("", "").unwrap();
    stage.send(&connection(&format!("{HOST_V4}:40000"), "8.8.8.8:443"));
    wait_for(&running, 2);
    let off = "[metrics]\nlisten = \"off\"\n";
    let second = stage.start("", off).err().unwrap();
    says(&second, "another exitmark-monitor");
    assert!(running.end().unwrap().status.success());

    let file = state_file(&stage.state()).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, bytes).unwrap();
    let running = stage.start("", "").unwrap();
    running.wait_log(&["put aside"]);
    assert_eq!(running.counters().unwrap()["packets"], 0);
    assert!(running.end().unwrap().status.success());
}
