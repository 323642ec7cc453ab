//! Tier: any machine. The command line, from captured files to a page, and its exit status.

use exitmark_lab::frames::tcp;
use exitmark_monitor::row::{Dimension, Row};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
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

fn words(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

pub(super) fn segment(port: u16, flags: u8, tos: u8) -> Vec<u8> {
    let destination = format!("8.8.8.8:{port}");
    let frame = tcp("192.0.2.10:40000", &destination).tos(tos).payload(20);
    let mut frame = frame.build();
    let header = frame.len() - 20;
    frame[header + 12] = 0x50;
    frame[header + 13] = flags;
    frame
}

fn capture(path: &Path, frames: &[(u64, Vec<u8>)]) {
    let mut writer = PcapWriter::new(File::create(path).unwrap()).unwrap();
    for (at, frame) in frames {
        let length = u32::try_from(frame.len()).unwrap();
        let packet = PcapPacket::new(Duration::from_secs(*at), length, frame);
        writer.write_packet(&packet).unwrap();
    }
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

/// The files of a directory with their content.
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
    // A section, an Ethernet interface, and a Simple Packet Block.
    let block = |kind: u32, body: &[u8]| -> Vec<u8> {
        let total = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
        [&kind.to_le_bytes()[..], &total, body, &total].concat()
    };
    let section = [
        &0x1a2b_3c4d_u32.to_le_bytes()[..],
        &[1, 0, 0, 0],
        &[0xff; 8],
    ]
    .concat();
    let mut frame = segment(443, SYN, 0x28);
    let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
    frame.resize(frame.len().next_multiple_of(4), 0);
    let blocks = [
        block(0x0a0d_0d0a, &section),
        block(1, &[1, 0, 0, 0, 0, 0, 0, 0]),
        block(3, &[&length[..], &frame].concat()),
    ];
    fs::write(directory.join("timeless.pcapng"), blocks.concat()).unwrap();
}

#[test]
fn counts_captured_files_into_periods_and_a_page() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    // The later file first; the directory is created.
    let arguments = [
        "capture",
        "--pcap",
        "b.pcap",
        "a.pcap",
        "--address",
        "192.0.2.10",
        "--out",
        "periods",
    ];
    let captured = run(here, &arguments);
    assert!(captured.status.success(), "{}", words(&captured));
    let said = words(&captured);
    for expected in [
        "4800 packets in 2 files; counted: 3600 packets, 144000 bytes, 1200 connections",
        "unmarked: 1200",
        "periods/exit-20251121T000000Z-1.jsonl",
        "periods/exit-20251122T000000Z-1.jsonl",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }

    let first = rows(&here.join("periods/exit-20251121T000000Z-1.jsonl"));
    let total = &first[0];
    assert_eq!(total.dimension, Dimension::Total);
    // Rounded up to 8 flows, 1 MiB, 1024 packets.
    let numbers = |row: &Row| <[u64; 3]>::from(row.counts);
    assert_eq!(numbers(total), [800, 1 << 20, 3072]);
    let about = total.about.as_ref().unwrap();
    // Whole hours: the times of the first and last packet are not revealed.
    assert_eq!((about.part, about.watched_seconds), (1, 3600));
    assert!(about.countries.contains("tor-geoip"), "{}", about.countries);
    let of = |dimension: Dimension| -> Vec<&Row> {
        let rows = first.iter().filter(|row| row.dimension == dimension);
        rows.collect()
    };
    let ports: Vec<_> = of(Dimension::Port)
        .into_iter()
        .map(|row| (row.port, row.other, numbers(row)))
        .collect();
    let of_each = [400, 1 << 20, 2048];
    assert_eq!(
        ports,
        [(Some(80), false, of_each), (Some(443), false, of_each)]
    );
    let country = of(Dimension::Country)[0].country.unwrap().to_string();
    assert_eq!(country, "US");

    // The same files again would count twice, and so would the second day.
    let before = listed(&here.join("periods"));
    let again = run(here, &arguments);
    assert_eq!(again.status.code(), Some(1), "{}", words(&again));
    let there = "a.pcap, packet 1: its period is published already, in \
                 periods/exit-20251121T000000Z-1.jsonl";
    assert!(words(&again).contains(there), "{}", words(&again));
    assert_eq!(listed(&here.join("periods")), before);
    fs::remove_file(here.join("periods/exit-20251121T000000Z-1.jsonl")).unwrap();
    let again = run(here, &arguments);
    assert_eq!(again.status.code(), Some(1), "{}", words(&again));
    let there = "b.pcap, packet 2201: its period is published already, in \
                 periods/exit-20251122T000000Z-1.jsonl";
    assert!(words(&again).contains(there), "{}", words(&again));
    assert_eq!(listed(&here.join("periods")), before);

    let reported = run(here, &["report", "periods", "--out", "page", "--json"]);
    assert!(reported.status.success(), "{}", words(&reported));
    let json: Value = serde_json::from_slice(&reported.stdout).unwrap();
    let text = json.to_string();
    assert!(text.contains("\"flows\":1200"), "{text}");
    let page = fs::read_to_string(here.join("page/index.html")).unwrap();
    assert!(
        page.contains("443") && page.contains("United States"),
        "{page}"
    );
    assert!(here.join("page/2025-11.html").exists());
    assert!(here.join("page/2025-11.csv").exists());
}

#[test]
fn counts_a_broken_capture_up_to_its_fault() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    fs::create_dir(here.join("periods")).unwrap();
    let whole = fs::read(here.join("a.pcap")).unwrap();
    fs::write(here.join("cut.pcap"), &whole[..whole.len() - 7]).unwrap();
    let cut = run(
        here,
        &[
            "capture",
            "--pcap",
            "cut.pcap",
            "--address",
            "192.0.2.10",
            "--out",
            "periods",
        ],
    );
    assert_eq!(cut.status.code(), Some(1), "{}", words(&cut));
    assert!(words(&cut).contains("cut.pcap"), "{}", words(&cut));
    let rows = rows(&here.join("periods/exit-20251121T000000Z-1.jsonl"));
    assert_eq!(
        rows[0].counts.flows, 256,
        "250 whole connections, rounded up"
    );
}

#[test]
fn exits_with_2_for_wrong_usage_and_1_for_unmet_preconditions() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    files(here);
    odd_files(here);
    fs::write(
        here.join("bad.toml"),
        "addresses = [\"192.0.2.10\"]\nport = 1\n",
    )
    .unwrap();
    fs::write(here.join("good.toml"), "addresses = [\"192.0.2.10\"]\n").unwrap();
    fs::write(here.join("rows.jsonl"), "{\"dimension\":\"total\"}\n").unwrap();
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
        let said = words(&output);
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
        let said = words(&output);
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
    let count = |files: &[&str]| {
        let start = ["capture", "--address", "192.0.2.10", "--out", "periods"];
        let output = run(here, &[&start[..], &["--pcap"], files].concat());
        (output.status.code(), words(&output))
    };
    let refused = |files: &[&str], expected: &str| {
        let (status, said) = count(files);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert_eq!(fs::read_dir(here.join("periods")).unwrap().count(), 0);
    };
    refused(
        &["a.pcap", "b.pcap", "a.pcap"],
        "a.pcap is the same file as a.pcap",
    );
    refused(
        &["a.pcap", "b.pcap", "c.pcap"],
        "c.pcap is the same file as b.pcap",
    );
    let other = File::open(here.join("periods")).unwrap();
    other.lock().unwrap();
    refused(&["a.pcap"], "periods: another exitmark-monitor counts");
    drop(other);
    let (status, said) = count(&["a.pcap", "b.pcap"]);
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn counts_many_captures_at_once() {
    const FILES: u64 = 60;
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    let names: Vec<_> = (0..FILES).map(|number| format!("{number}.pcap")).collect();
    for (name, number) in names.iter().zip(0..) {
        capture(
            &here.join(name),
            &[(MIDNIGHT + number, segment(443, SYN, 0x28))],
        );
    }
    // The soft limit of open files is lower than the number of files.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 24 && exec \"$@\"", "sh", MONITOR]);
    command.args(["capture", "--address", "192.0.2.10", "--out", "periods"]);
    let output = command
        .arg("--pcap")
        .args(&names)
        .current_dir(here)
        .output()
        .unwrap();
    let said = words(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("60 packets in 60 files; counted: 60"),
        "{said}"
    );
}
