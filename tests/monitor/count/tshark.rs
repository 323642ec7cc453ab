//! Against tshark, where it is installed.

use super::captured::{counted, of_link, pcap};
use super::{HOST, HOST_V6, MARKED, SYN, counts, flagged, many};
use exitmark::lab::frames::{tcp, udp};
use exitmark::lab::{Random, is_installed};
use exitmark::monitor::cell::Counts;
use exitmark::packet::Version;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Sums by port and IP version, as tshark reads the same file.
fn by_tshark(path: &Path) -> BTreeMap<(Version, u16), Counts> {
    let output = Command::new("tshark")
        .args(["-n", "-r"])
        .arg(path)
        .args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"])
        .args(["-Y", "(ip.dsfield.dscp == 10 && ip.src == 192.0.2.10) || (ipv6.tclass.dscp == 10 && ipv6.src == 2001:db8:10::1)"])
        .args(["-T", "fields", "-E", "separator=,"])
        .args(["-e", "ip.len", "-e", "ipv6.plen", "-e", "tcp.dstport", "-e", "udp.dstport"])
        .args(["-e", "tcp.flags.syn", "-e", "tcp.flags.ack"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
fn tshark_counts_the_same() {
    if !is_installed("tshark") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("traffic.pcap");
    let mut random = Random::new(23);
    // A connection to wherever packets go to, so that all of them count there.
    let openings = (0..20).chain([80, 443, 53]).flat_map(|port| {
        let v4 = ["1.2.3.4", "1.2.4.4", "198.51.100.9", "10.0.0.1"].map(|to| (HOST, to));
        let v6 = ["[2001:db8:1::5]", "[2001:db8:2::9]"].map(|to| (HOST_V6, to));
        v4.into_iter().chain(v6).map(move |(host, to)| {
            flagged(&tcp(host, &format!("{to}:{port}")).tos(MARKED), 40, SYN)
        })
    });
    let mixed = many(20)
        .into_iter()
        .enumerate()
        .map(|(index, frame)| match index % 8 {
            0 => udp(HOST, "1.2.3.4:443").tos(MARKED | 2).payload(50).build(),
            1 => udp(HOST_V6, "[2001:db8:2::9]:53")
                .tos(MARKED)
                .payload(50)
                .build(),
            2 => tcp(HOST, "1.2.3.4:9").tos(random.byte()).build(),
            3 => tcp("192.0.2.99:1", "1.2.3.4:9").tos(MARKED).build(),
            4 => tcp(HOST, "1.2.3.4:9")
                .tos(MARKED)
                .fragment(7, 5, false)
                .build(),
            5 => flagged(&tcp(HOST, "1.2.3.4:80").tos(MARKED).tag(0x8100, 5), 40, SYN),
            _ => frame,
        });
    let frames: Vec<_> = openings.chain(mixed).collect();
    pcap(&path, &[], &frames, of_link(1), usize::MAX);
    let ledger = counted(&path);
    assert_eq!(ledger.unattributed, []);
    let mut ours = BTreeMap::<_, Counts>::new();
    for (cell, counts) in &ledger.cells {
        *ours.entry((cell.version, cell.port)).or_default() += *counts;
    }
    assert!(ours.len() > 20);
    assert_eq!(ours, by_tshark(&path));
}
