//! Compares with tshark, if it is installed.

use super::captured::{counted, of_link, pcap};
use super::written::anything;
use super::{ACK, HOST, HOST_V6, MARKED, SYN, counts, many, segment};
use exitmark_lab::frames::{tcp, udp};
use exitmark_lab::{Random, is_installed};
use exitmark_monitor::cell::Counts;
use exitmark_pcap::{ReadError, Reader};
use exitmark_policy::packet::Version;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A command that prints fields of a capture's packets.
fn tshark(path: &Path) -> Command {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(path);
    command.args(["-T", "fields", "-E", "separator=,"]);
    command
}

/// Sums by port and IP version, as tshark reads the file.
fn by_tshark(path: &Path) -> BTreeMap<(Version, u16), Counts> {
    let output = tshark(path)
        .args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"])
        .args(["-Y", "(ip.dsfield.dscp == 10 && ip.src == 192.0.2.10) || (ipv6.tclass.dscp == 10 && ipv6.src == 2001:db8:10::1)"])
        .args(["-e", "ip.len", "-e", "ipv6.plen", "-e", "tcp.dstport", "-e", "udp.dstport"])
        .args(["-e", "tcp.flags.syn", "-e", "tcp.flags.ack"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut sums = BTreeMap::<_, Counts>::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let fields: Vec<_> = line.split(',').collect();
        let number = |index: usize| fields[index].parse::<u64>().ok();
        let is = |index: usize| matches!(fields[index], "1" | "True");
        let (version, bytes) = match (number(0), number(1)) {
            (Some(total), None) => (Version::V4, total),
            (None, Some(payload)) => (Version::V6, payload + 40),
            other => panic!("{line}: {other:?}"),
        };
        let port = number(2).or(number(3)).unwrap_or(0);
        let key = (version, u16::try_from(port).unwrap());
        *sums.entry(key).or_default() += counts(1, bytes, u64::from(is(4) && !is(5)));
    }
    sums
}

#[test]
fn counts_the_same_as_tshark() {
    if !is_installed("tshark") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("traffic.pcap");
    let mut random = Random::new(23);
    // A connection to every destination of the packets, so that all of them count.
    let openings = (0..20).chain([80, 443, 53]).flat_map(|port| {
        let v4 = ["1.2.3.4", "1.2.4.4", "198.51.100.9", "10.0.0.1"];
        let all = v4.into_iter().chain(["[2001:db8:1::5]", "[2001:db8:2::9]"]);
        all.map(move |to| segment(&format!("{to}:{port}"), SYN).build())
    });
    let mixed = many(20).into_iter().enumerate().map(|(index, frame)| {
        let other = match index % 8 {
            0 => udp(HOST, "1.2.3.4:443").tos(MARKED | 2).payload(50),
            1 => udp(HOST_V6, "[2001:db8:2::9]:53").tos(MARKED).payload(50),
            2 => tcp(HOST, "1.2.3.4:9").tos(random.byte()),
            3 => tcp("192.0.2.99:1", "1.2.3.4:9").tos(MARKED),
            4 => segment("1.2.3.4:9", ACK).fragment(7, 5, false),
            5 => segment("1.2.3.4:80", SYN).tag(0x8100, 5),
            _ => return frame,
        };
        other.build()
    });
    let frames: Vec<_> = openings.chain(mixed).collect();
    pcap(&path, &[], &frames, of_link(1), usize::MAX);
    let ledger = counted(&path);
    assert!(ledger.unattributed.is_empty());
    let mut ours = BTreeMap::<_, Counts>::new();
    for (cell, counts) in &ledger.cells {
        *ours.entry((cell.version, cell.port)).or_default() += *counts;
    }
    assert!(ours.len() > 20);
    assert_eq!(ours, by_tshark(&path));
}

/// A packet as read: captured bytes, length, and time if there is one.
type ReadPacket = (usize, usize, Option<u64>);

/// Every packet as tshark reads it, and whether it read the file to its end.
fn packets_by_tshark(path: &Path) -> (Vec<ReadPacket>, bool) {
    let output = tshark(path)
        .args(["-e", "frame.cap_len", "-e", "frame.len"])
        .args(["-e", "frame.time_epoch"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = text.lines().map(|line| {
        let fields: Vec<_> = line.split(',').collect();
        let time = fields[2].split_once('.').map(|(seconds, nanos)| {
            assert_eq!(nanos.len(), 9, "{line}");
            seconds.parse::<u64>().unwrap() * 1_000_000_000 + nanos.parse::<u64>().unwrap()
        });
        (fields[0].parse().unwrap(), fields[1].parse().unwrap(), time)
    });
    (said.collect(), output.status.success())
}

fn packets_by_us(path: &Path) -> (Vec<ReadPacket>, bool) {
    let mut said = Vec::new();
    let mut capture = match Reader::open(path) {
        Ok(capture) => capture,
        Err(ReadError::LinkType { .. }) => panic!("of no known link type"),
        Err(_) => return (said, false),
    };
    loop {
        match capture.read_packet() {
            Ok(Some(packet)) => said.push((packet.bytes.len(), packet.whole, packet.time)),
            // Only the link type was unsupported.
            Ok(None) | Err(ReadError::LinkType { .. }) => return (said, true),
            Err(_) => return (said, false),
        }
    }
}

/// Files with every feature of the formats, some truncated.
#[test]
fn finds_the_same_packets_as_tshark() {
    if !is_installed("tshark") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("generated");
    let frames: Vec<_> = many(50).into_iter().take(40).collect();
    let mut packets = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut file = anything(&mut random, &frames);
        let is_cut = random.percent(15);
        if is_cut {
            file.truncate(file.len() - 1 - random.below(200));
        }
        fs::write(&path, &file).unwrap();
        let (theirs, they_finished) = packets_by_tshark(&path);
        let (ours, we_finished) = packets_by_us(&path);
        assert_eq!(ours, theirs, "seed {seed}");
        assert_eq!(we_finished, they_finished, "seed {seed}, cut: {is_cut}");
        packets += ours.len();
    }
    assert!(packets > 1_500, "{packets}");
}
