//! Tier: any machine. The programs in `examples/`, run on files: they must work as documented, and
//! print no address that they were not given.
//!
//! Cargo builds examples only with `--examples` or `--all-targets`, so their sources are modules of
//! this test.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

#[path = "../examples/judge_pcap.rs"]
#[expect(dead_code, reason = "the `main` function of an example is not called")]
mod judge_pcap;
#[path = "../examples/relay_lookup.rs"]
#[expect(dead_code, reason = "the `main` function of an example is not called")]
mod relay_lookup;

use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::{ConsensusBuilder, hours_from};
use exitmark_lab::frames::{tcp, udp};
use exitmark_lab::publish;
use exitmark_policy::Endpoint;
use exitmark_relays::Flavor;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

const RELAY: &str = "203.0.113.9:9001";

/// A document that lists [`RELAY`], signed by these authorities, with their certificates beside it.
fn document(directory: &Path, authorities: &Authorities) -> PathBuf {
    let validity = hours_from(UNIX_EPOCH + Duration::from_secs(1_700_000_000), [0, 1, 3]);
    let order = ConsensusBuilder {
        relays: 4,
        listed: vec![RELAY.parse().unwrap()],
        ..ConsensusBuilder::full_size(Flavor::Microdesc, validity)
    };
    publish(directory, "cached-microdesc-consensus", &order, authorities).unwrap()
}

/// A pcap file with these frames, all at the same time (pcap-savefile(5)).
fn pcap(frames: &[Vec<u8>], link: u32) -> Vec<u8> {
    let words = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, link];
    let mut file: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    for frame in frames {
        let length = u32::try_from(frame.len()).unwrap();
        let record = [1_700_000_000, 0, length, length];
        file.extend(record.map(u32::to_le_bytes).concat());
        file.extend_from_slice(frame);
    }
    file
}

/// Runs `judge_pcap` with a configuration of these authorities; returns the table or the error.
fn judged(directory: &Path, authorities: &str, capture: &[u8]) -> Result<String, String> {
    let configuration = directory.join("exitmark.toml");
    let text = format!(
        "[ports]\nhost = \"no-such-nic0\"\nuplink = \"no-such-nic1\"\n\
         [host]\naddresses = [\"192.0.2.10\"]\nresolvers = [\"9.9.9.9\"]\n\
         [relays]\nconsensus = [\"cached-microdesc-consensus\"]\n{authorities}\n"
    );
    fs::write(&configuration, text).unwrap();
    let path = directory.join("capture.pcap");
    fs::write(&path, capture).unwrap();
    let mut out = Vec::new();
    let done = judge_pcap::run(&configuration, &path, &mut out);
    done.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn judge_pcap_counts_frames_by_class() {
    let directory = TempDir::new().unwrap();
    let authorities = Authorities::new(3);
    document(directory.path(), &authorities);
    let frames = [
        tcp("192.0.2.10:40000", RELAY).build(),
        tcp("192.0.2.10:40001", "198.51.100.7:443").build(),
        tcp("192.0.2.10:40002", "198.51.100.7:9001").build(),
        udp("192.0.2.10:40003", "9.9.9.9:53").build(),
        tcp("198.51.100.7:443", "192.0.2.10:40001").build(),
        vec![0xff; 14],
    ];
    let table = judged(directory.path(), &authorities.toml(), &pcap(&frames, 1)).unwrap();
    let row = |class: &str| -> [u64; 2] {
        let line = table.lines().find(|line| line.starts_with(class)).unwrap();
        let cells: Vec<_> = line.split_whitespace().skip(1).collect();
        [0, 1].map(|column| cells[column].parse().unwrap())
    };
    let bytes = |numbers: &[usize]| numbers.iter().map(|&n| frames[n].len() as u64).sum::<u64>();
    assert_eq!(row("relay"), [1, bytes(&[0])]);
    assert_eq!(row("exit"), [2, bytes(&[1, 2])]);
    assert_eq!(row("resolver"), [1, bytes(&[3])]);
    assert_eq!(row("foreign"), [1, bytes(&[4])]);
    assert_eq!(row("non_ip"), [1, bytes(&[5])]);
    assert_eq!(row("host"), [0, 0]);
    for address in ["192.0.2", "198.51.100", "203.0.113", "9.9.9.9"] {
        assert!(!table.contains(address), "{table}");
    }
}

#[test]
fn judge_pcap_reports_what_it_does_not_check_or_judge() {
    let directory = TempDir::new().unwrap();
    document(directory.path(), &Authorities::new(3));
    let raw_ip = tcp("192.0.2.10:40000", RELAY).build()[14..].to_vec();
    let capture = pcap(&[raw_ip], 101);
    let table = judged(directory.path(), "verify = false", &capture).unwrap();
    assert!(table.starts_with("WARNING: "), "{table}");
    let end = "1 packets are of another link type than Ethernet\n";
    assert!(table.ends_with(end), "{table}");
    // The document is not of the Tor network, whose authorities are the default.
    let error = judged(directory.path(), "", &capture).unwrap_err();
    assert!(error.contains("authorities"), "{error}");
}

#[test]
fn relay_lookup_answers_for_each_endpoint() {
    let directory = TempDir::new().unwrap();
    let lab = Authorities::new(3);
    let consensus = document(directory.path(), &lab);
    let trusted = || {
        let identities = lab.identities();
        let identities = identities.iter().map(|text| text.parse().unwrap());
        exitmark_relays::Authorities::new(identities.collect::<Vec<_>>())
    };
    let looked_up = |endpoints: &[&str], authorities| {
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
        let mut out = Vec::new();
        let found = relay_lookup::run(&consensus, &endpoints, authorities, &mut out);
        let found = found.map_err(|error| error.to_string());
        (found, String::from_utf8(out).unwrap())
    };
    let (found, text) = looked_up(&[RELAY], trusted());
    assert_eq!(found, Ok(true));
    assert!(text.contains("age: stale"), "{text}");
    assert!(text.ends_with("203.0.113.9:9001 is a relay\n"), "{text}");

    let (found, text) = looked_up(&[RELAY, "203.0.113.9:443"], trusted());
    assert_eq!(found, Ok(false));
    assert!(text.ends_with("203.0.113.9:443 is not a relay\n"), "{text}");

    let network = exitmark_relays::Authorities::tor_network();
    let (found, text) = looked_up(&[RELAY], network);
    assert!(found.unwrap_err().contains("authorities"));
    assert_eq!(text, "");
}
