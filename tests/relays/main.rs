//! Tier: any machine; checks that need root are skipped with a message. Relay sets from files:
//! real documents if available, every kind of bad input by both ways of loading, the live set, and
//! `exitmark relays`. This file has the shared parts: documents to work on, and the check that no
//! error names an address.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod certificates;
mod changing;
mod command;
mod confined;
mod diff;
mod documents;
mod files;
mod flipped;
mod forbidden;
mod hostile;
mod lean;
mod live;
mod loader;
mod odd;
mod patterns;
mod real;
mod several;
mod signed;
mod signers;
mod site;
mod spoiled;
mod state;
mod status;
mod tried;
mod watch;

use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_policy::{Endpoint, EndpointSet};
use exitmark_relays::{Flavor, LiveSet, Loaded, LoadedDocument, Refused, Validity};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const FLAVORS: [Flavor; 2] = [Flavor::Ns, Flavor::Microdesc];
/// The `valid-after` of these tests' documents.
const START: u64 = 1_700_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// As tor's authorities choose it: fresh for an hour, and valid for three.
fn valid_from(valid_after: SystemTime) -> Validity {
    Validity {
        valid_after,
        fresh_until: valid_after + HOUR,
        valid_until: valid_after + 3 * HOUR,
    }
}

fn builder(flavor: Flavor, relays: u32) -> ConsensusBuilder {
    ConsensusBuilder {
        relays,
        authorities: 2,
        ..ConsensusBuilder::full_size(flavor, valid_from(at(START)))
    }
}

fn other_than(flavor: Flavor) -> Flavor {
    FLAVORS[usize::from(flavor == Flavor::Ns)]
}

/// The document with the value at this path (RFC 6901) replaced or added.
fn with_value(mut document: Value, path: &str, value: Value) -> Value {
    let (parent, key) = path.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        object => object[key] = value,
    }
    document
}

/// Four relays, two of them with an `a` line, and two authorities.
fn small(flavor: Flavor) -> String {
    builder(flavor, 4).write()
}

fn names_an_address(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':')
        .flat_map(|word| [word, word.rsplit_once(':').map_or(word, |(host, _)| host)])
        .map(|word| word.trim_end_matches(['.', ':']))
        .any(|word| word.parse::<IpAddr>().is_ok())
}

fn assert_names_no_address(error: &(impl Display + Debug)) {
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!names_an_address(&text), "names an address: {text}");
    }
}

#[test]
fn the_privacy_check_finds_addresses() {
    for text in [
        "at 192.0.2.1:9001, twice",
        "\"192.0.2.1\"",
        "[2001:db8::1]:443 is",
        "relay 192.0.2.1.",
    ] {
        assert!(names_an_address(text), "{text}");
    }
    assert!(!names_an_address(
        "line 12, column 3: 10:30 is bad. See 1.2.3"
    ));
}

fn file(directory: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn elements(set: &EndpointSet) -> BTreeSet<Endpoint> {
    set.iter().collect()
}

fn listed(loaded: &Loaded) -> BTreeSet<Endpoint> {
    loaded.listed.iter().copied().collect()
}

/// Offers a loaded document to the live set.
fn offer(live: &mut LiveSet, loaded: Loaded, now: SystemTime) -> Result<(), Refused> {
    let [report] = <[_; 1]>::try_from(loaded.sources).unwrap();
    let listed = loaded.listed;
    let offered = live.offer(vec![LoadedDocument { report, listed }], &[], now);
    assert_eq!(offered.accepted + offered.refused.len(), 1);
    offered.refused.into_iter().next().map_or(Ok(()), Err)
}
