//! Tier: any machine. The command line, from captured files to a page, and its exit status.

use crate::count::Written;
use crate::says;
use exitmark_lab::frames::tcp;
use exitmark_monitor::row::{Dimension, Row};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

pub(super) const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");
/// 2025-11-21T00:00:00Z.
pub(super) const MIDNIGHT: u64 = 1_763_683_200;
const DAY: u64 = 24 * 60 * 60;
pub(super) const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn run(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(MONITOR);
    command.args(arguments).current_dir(directory);
    command.env_remove("RUST_LOG").output().unwrap()
}

/// Counts captured files into `periods`; returns the exit status and the output.
fn counted(directory: &Path, files: &[&str]) -> (Option<i32>, String) {
    let start = ["capture", "--address", "192.0.2.10", "--out", "periods"];
    let output = run(directory, &[&start[..], &["--pcap"], files].concat());
    (output.status.code(), output_text(&output))
}

fn output_text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

pub(super) fn segment(port: u16, flags: u8, tos: u8) -> Vec<u8> {
    let destination = format!("8.8.8.8:{port}");
    let frame = tcp("192.0.2.10:40000", &destination).tos(tos).payload(20);
    frame.control(flags).build()
}

/// Writes a pcap file with these frames, each at its second.
pub(super) fn write_frames(file: impl Write, frames: &[(u64, Vec<u8>)]) {
    let mut writer = PcapWriter::new(file).unwrap();
    for (at, frame) in frames {
        let length = u32::try_from(frame.len()).unwrap();
        let packet = PcapPacket::new(Duration::from_secs(*at), length, frame);
        writer.write_packet(&packet).unwrap();
    }
}

fn capture(path: &Path, frames: &[(u64, Vec<u8>)]) {
    write_frames(File::create(path).unwrap(), frames);
}

/// Two files: `each` connections of three 40-byte packets to each port on the first day, and half
/// of them on the second. The second file begins on the first day.
fn files(directory: &Path) {
    let day = |start: u64, each: u64| -> Vec<(u64, Vec<u8>)> {
        let mut frames = Vec::new();
        for number in 0..each {
            for port in [443, 80] {
                let at = start + number;
                frames.push((at, segment(port, SYN, 0x28)));
                frames.push((at, segment(port, ACK, 0x28)));
                frames.push((at, segment(port, ACK, 0x2a)));
                // For example traffic to a relay.
                frames.push((at, segment(9001, SYN, 0)));
            }
        }
        frames
    };
    let first = day(MIDNIGHT + 3600, 400);
    let second = day(MIDNIGHT + DAY + 60, 200);
    let (early, late) = first.split_at(1000);
    capture(&directory.join("a.pcap"), early);
    capture(&directory.join("b.pcap"), &[late, &second].concat());
}

fn rows(path: &Path) -> Vec<Row> {
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    rows.collect()
}

fn listed(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// Captures that cannot be counted as they are.
fn odd_files(directory: &Path) {
    let write = |name: &str, times: &[u64]| {
        let frame = |at: &u64| (*at, segment(443, SYN, 0x28));
        let frames: Vec<_> = times.iter().map(frame).collect();
        capture(&directory.join(name), &frames);
    };
    write("1970.pcap", &[0]);
    write("1999.pcap", &[MIDNIGHT, 946_684_799]);
    write("2106.pcap", &[MIDNIGHT, u32::MAX.into(), MIDNIGHT]);
    // Two files that overlap, both across midnight.
    write("left.pcap", &[MIDNIGHT, MIDNIGHT + DAY]);
    write("right.pcap", &[MIDNIGHT + 1, MIDNIGHT + 2]);
    write("slow.pcap", &[MIDNIGHT + DAY, MIDNIGHT + DAY - 60]);
    fs::write(directory.join("empty.pcap"), b"").unwrap();
    let mut timeless = Written::new(true, &[]);
    timeless.interface(1, 0, &[]);
    timeless.simple(&segment(443, SYN, 0x28));
    fs::write(directory.join("timeless.pcapng"), timeless.bytes).unwrap();
}

#[test]
fn counts_captured_files_into_periods_and_a_page() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    // The later file first; the directory is created.
    let count = || counted(here, &["b.pcap", "a.pcap"]);
    let (status, said) = count();
    assert_eq!(status, Some(0), "{said}");
    for expected in [
        "4800 packets in 2 files; counted: 3600 packets, 144000 bytes, 1200 connections",
        "unmarked: 1200",
        "periods/exit-20251121T000000Z-1.jsonl",
        "periods/exit-20251122T000000Z-1.jsonl",
    ] {
        says(&said, expected);
    }

    let first = rows(&here.join("periods/exit-20251121T000000Z-1.jsonl"));
    let total = &first[0];
    assert_eq!(total.dimension, Dimension::Total);
    // Rounded up to 8 flows, 1 MiB, 1024 packets.
    let numbers = |row: &Row| {
        let counts = row.counts;
        [counts.flows, counts.bytes, counts.packets]
    };
    assert_eq!(numbers(total), [800, 1 << 20, 3072]);
    let about = total.about.as_ref().unwrap();
    // Whole hours: the times of the first and last packet are not revealed.
    assert_eq!((about.part, about.watched_seconds), (1, 3600));
    says(&about.countries, "tor-geoip");
    let of = |dimension: Dimension| -> Vec<&Row> {
        let rows = first.iter().filter(|row| row.dimension == dimension);
        rows.collect()
    };
    let ports = of(Dimension::Port).into_iter();
    let ports: Vec<_> = ports
        .map(|row| (row.port, row.other, numbers(row)))
        .collect();
    let expected = [80, 443].map(|port| (Some(port), false, [400, 1 << 20, 2048]));
    assert_eq!(ports, expected);
    let country = of(Dimension::Country)[0].country.unwrap().to_string();
    assert_eq!(country, "US");

    // The same files again would count twice, and so would the second day.
    let before = listed(&here.join("periods"));
    let refused = |packet: &str, file: &str| {
        let (status, said) = count();
        assert_eq!(status, Some(1), "{said}");
        let expected = format!("{packet}: its period is published already, in periods/{file}");
        says(&said, &expected);
        assert_eq!(listed(&here.join("periods")), before);
    };
    refused("a.pcap, packet 1", "exit-20251121T000000Z-1.jsonl");
    fs::remove_file(here.join("periods/exit-20251121T000000Z-1.jsonl")).unwrap();
    refused("b.pcap, packet 2201", "exit-20251122T000000Z-1.jsonl");

    let reported = run(here, &["report", "periods", "--out", "page", "--json"]);
    assert!(reported.status.success(), "{}", output_text(&reported));
    let json: Value = serde_json::from_slice(&reported.stdout).unwrap();
    let text = json.to_string();
    says(&text, "\"flows\":1200");
    let page = fs::read_to_string(here.join("page/index.html")).unwrap();
    says(&page, "443");
    says(&page, "United States");
    assert!(here.join("page/2025-11.html").exists());
    assert!(here.join("page/2025-11.csv").exists());
}

#[test]
fn counts_both_directions_of_a_capture_on_request() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    // Cut behind its transport header, as at the tap port of exitmark.
    let down = tcp("8.8.8.8:443", "192.0.2.10:40000")
        .tos(0x28)
        .payload(1420);
    let down = down.build()[..54].to_vec();
    let frames = [segment(443, SYN, 0x28), down.clone(), down];
    capture(&here.join("a.pcap"), &frames.map(|frame| (MIDNIGHT, frame)));
    let (status, said) = counted(here, &["a.pcap"]);
    assert_eq!(status, Some(0), "{said}");
    says(&said, "counted: 1 packets, 40 bytes, 1 connections\n");
    says(&said, "not counted, inbound: 2\n");
    says(&said, "set `tap.directions = \"both\"`");
    fs::write(here.join("both.toml"), "[tap]\ndirections = \"both\"\n").unwrap();
    let prefix = [
        "capture",
        "--config",
        "both.toml",
        "--address",
        "192.0.2.0/28",
    ];
    let rest = ["--out", "both", "--pcap", "a.pcap"];
    let output = run(here, &[&prefix[..], &rest].concat());
    let said = output_text(&output);
    assert!(output.status.success(), "{said}");
    says(&said, "counted: 1 packets, 40 bytes, 1 connections\n");
    says(&said, "counted down: 2 packets, 2880 bytes\n");
    assert!(!said.contains("inbound"), "{said}");
}

#[test]
fn counts_a_broken_capture_up_to_its_fault() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    fs::create_dir(here.join("periods")).unwrap();
    let whole = fs::read(here.join("a.pcap")).unwrap();
    fs::write(here.join("cut.pcap"), &whole[..whole.len() - 7]).unwrap();
    let (status, said) = counted(here, &["cut.pcap"]);
    assert_eq!(status, Some(1), "{said}");
    says(&said, "cut.pcap");
    let rows = rows(&here.join("periods/exit-20251121T000000Z-1.jsonl"));
    // 250 whole connections, rounded up.
    assert_eq!(rows[0].counts.flows, 256);
}

#[test]
fn exits_with_2_for_wrong_usage_and_1_for_unmet_preconditions() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    odd_files(here);
    let addresses = "addresses = [\"192.0.2.10\"]\n";
    for (name, text) in [
        ("bad.toml", &*format!("{addresses}port = 1\n")),
        ("good.toml", addresses),
        ("rows.jsonl", "{\"dimension\":\"total\"}\n"),
    ] {
        fs::write(here.join(name), text).unwrap();
    }
    #[rustfmt::skip]
    let table: [(&[&str], i32, &str); 10] = [
        (&["capture"], 2, "addresses = []"),
        (&["capture", "--address", "192.0.2.10"], 2, "--pcap"),
        (&["capture", "--address", "example.org"], 2, "--address"),
        (&["capture", "--interface", "a", "--pcap", "a.pcap"], 2, "cannot be used with"),
        (&["capture", "--config", "bad.toml"], 2, "unknown field `port`"),
        (&["capture", "--config", "none.toml"], 2,
         "exitmark-monitor.example.toml documents every key"),
        (&["check", "--config", "good.toml"], 0, "from 1 address "),
        (&["report"], 2, "--out DIR"),
        (&["report", "--json", "nowhere"], 1, "nowhere"),
        (&["report", "--json", "rows.jsonl"], 1, "rows.jsonl"),
    ];
    for (arguments, status, expected) in table {
        let output = run(here, arguments);
        let said = output_text(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {expected}\n{said}");
    }
}

#[test]
fn reports_why_captures_cannot_be_counted() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    odd_files(here);
    // Even for root, which has dropped CAP_DAC_OVERRIDE.
    fs::create_dir(here.join("closed")).unwrap();
    fs::set_permissions(here.join("closed"), PermissionsExt::from_mode(0o555)).unwrap();
    // Files, directory, expected message, number of periods that are written nevertheless.
    #[rustfmt::skip]
    let table: [(&[&str], &str, &str, usize); 11] = [
        (&["a.pcap", "none.pcap"], "1", "none.pcap: No such file", 0),
        (&["a.pcap", "empty.pcap"], "2", "empty.pcap is empty", 0),
        (&["a.pcap", "timeless.pcapng"], "3",
         "timeless.pcapng begins with a packet that has no time", 0),
        (&["a.pcap", "1970.pcap"], "4", "1970.pcap, packet 1: its date is 1970-01-01", 0),
        (&["1999.pcap"], "5", "1999.pcap, packet 2: its date is 1999-12-31", 1),
        (&["2106.pcap"], "6", "editcap 2106.pcap NEW.pcapng 2`", 1),
        (
            &["right.pcap", "left.pcap"],
            "7",
            "right.pcap, packet 1: it belongs to the period that began 2025-11-21T00:00:00Z, which \
             was closed when that of 2025-11-22T00:00:00Z began",
            2,
        ),
        (&["a.pcap"], "a.pcap/periods", "a.pcap/periods: periods cannot be written there", 0),
        (&["a.pcap"], "closed", "closed: periods cannot be written there", 0),
        (&["a.pcap"], "9/of/them", "1000 packets in 1 files", 1),
        (&["slow.pcap"], "10", "1 packets are up to a minute older", 1),
    ];
    for (number, (files, out, expected, periods)) in table.into_iter().enumerate() {
        let start = ["capture", "--address", "192.0.2.10", "--out", out, "--pcap"];
        let output = run(here, &[&start, files].concat());
        let said = output_text(&output);
        let status = if number < 9 { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(status), "{files:?}: {said}");
        assert!(said.contains(expected), "{files:?}: {expected}\n{said}");
        let written = fs::read_dir(here.join(out)).map_or(0, Iterator::count);
        assert_eq!(written, periods, "{files:?}: {said}");
    }
}

#[test]
fn refuses_captures_that_would_count_twice() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    capture(&here.join("a.pcap"), &[(MIDNIGHT, segment(443, SYN, 0x28))]);
    capture(&here.join("b.pcap"), &[(MIDNIGHT, segment(443, SYN, 0x28))]);
    fs::hard_link(here.join("b.pcap"), here.join("c.pcap")).unwrap();
    fs::create_dir(here.join("periods")).unwrap();
    let refused = |files: &[&str], expected: &str| {
        let (status, said) = counted(here, files);
        assert_eq!(status, Some(1), "{said}");
        says(&said, expected);
        assert_eq!(fs::read_dir(here.join("periods")).unwrap().count(), 0);
    };
    for (third, first) in [("a.pcap", "a.pcap"), ("c.pcap", "b.pcap")] {
        let expected = format!("{third} is the same file as {first}");
        refused(&["a.pcap", "b.pcap", third], &expected);
    }
    let other = File::open(here.join("periods")).unwrap();
    other.lock().unwrap();
    refused(&["a.pcap"], "periods: another exitmark-monitor counts");
    drop(other);
    let (status, said) = counted(here, &["a.pcap", "b.pcap"]);
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn counts_many_captures_at_once() {
    const FILES: u64 = 60;
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    let names: Vec<_> = (0..FILES).map(|number| format!("{number}.pcap")).collect();
    for (name, second) in names.iter().zip(MIDNIGHT..) {
        capture(&here.join(name), &[(second, segment(443, SYN, 0x28))]);
    }
    // The soft limit of open files is lower than the number of files.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 24 && exec \"$@\"", "sh", MONITOR]);
    command.args(["capture", "--address", "192.0.2.10", "--out", "periods"]);
    command.arg("--pcap").args(&names).current_dir(here);
    let output = command.output().unwrap();
    let said = output_text(&output);
    assert!(output.status.success(), "{said}");
    says(&said, "60 packets in 60 files; counted: 60");
}
