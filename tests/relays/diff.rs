//! The difference of two sets: counted by hand for generated documents, and between two real ones.

use crate::command::{code, exitmark};
use crate::real::{EARLIER, MICRODESC, RealSite};
use crate::{FLAVORS, HOUR, START, at, builder, file, names_an_address, valid_from};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_relays::{Churn, Flow, Loaded, load};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

/// A document with four relays and these endpoints, valid from this hour on.
fn listing(flavor: exitmark_relays::Flavor, hour: u32, endpoints: &[&str]) -> ConsensusBuilder {
    ConsensusBuilder {
        listed: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
        validity: valid_from(at(START) + hour * HOUR),
        ..builder(flavor, 4)
    }
}

fn diff(old: &Path, new: &Path, more: &[&str]) -> Value {
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let mut arguments = vec!["--json", "--diff", old, new];
    arguments.extend(more);
    let output = exitmark(&arguments);
    assert_eq!(code(&output), 0, "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The counts of stayed, left and joined endpoints.
fn flow(json: &Value, family: &str) -> [u64; 3] {
    ["stayed", "left", "joined"].map(|name| json[family][name].as_u64().unwrap())
}

#[test]
fn a_difference_matches_a_count_by_hand() {
    let directory = TempDir::new().unwrap();
    for flavor in FLAVORS {
        let old = [
            "203.0.113.1:1",
            "203.0.113.2:2",
            "203.0.113.3:3",
            "203.0.113.4:4",
        ];
        // One stays, one changes its port, two leave, and one is new.
        let new = ["203.0.113.1:1", "203.0.113.2:3", "203.0.113.9:9"];
        let old = file(&directory, "old", listing(flavor, 0, &old).write());
        let new = file(&directory, "new", listing(flavor, 30, &new).write());
        // The generated document: four ORPorts, two `a` lines, and two ports of two authorities.
        let base = file(&directory, "base", listing(flavor, 0, &[]).write());
        let base = load(&crate::site::unchecked([&base])).unwrap();
        let v6 = base.listed.iter().filter(|one| one.address.is_ipv6());
        let v6 = u64::try_from(v6.count()).unwrap();
        assert_eq!(v6, 2);
        let v4 = u64::try_from(base.listed.len()).unwrap() - v6;

        let json = diff(&old, &new, &["--no-verify"]);
        assert_eq!(flow(&json, "ipv4"), [v4 + 1, 3, 2]);
        assert_eq!(flow(&json, "ipv6"), [2, 0, 0]);
        assert_eq!(flow(&json, "all"), [v4 + 3, 3, 2]);
        assert_eq!(json["hours"], 30.0);
        assert_eq!(json["old_valid_after"], "2023-11-14 22:13:20");
        assert_eq!(json["new_valid_after"], "2023-11-16 04:13:20");

        // In the other direction, and with itself.
        let json = diff(&new, &old, &["--no-verify"]);
        assert_eq!(flow(&json, "all"), [v4 + 3, 2, 3]);
        assert_eq!(json["hours"], -30.0);
        let json = diff(&old, &old, &["--no-verify"]);
        assert_eq!(flow(&json, "all"), [v4 + 6, 0, 0]);
        assert_eq!(json["hours"], 0.0);

        let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
        let output = exitmark(&["--no-verify", "--diff", old, new]);
        let text = String::from_utf8(output.stdout).unwrap();
        let times = "from 2023-11-14 22:13:20 UTC to 2023-11-16 04:13:20 UTC: 30.0 hours\n";
        assert!(text.starts_with(times));
        assert!(text.contains("3 left"), "{text}");
        assert!(text.contains("2 joined"), "{text}");
        assert!(!names_an_address(&text), "{text}");
    }
}

#[test]
fn percentages_are_of_the_old_and_the_new_set() {
    let flow = Flow {
        stayed: 6,
        left: 2,
        joined: 18,
    };
    assert_eq!((flow.left_percent(), flow.joined_percent()), (25.0, 75.0));
    let none = Churn::between(&Loaded::default(), &Loaded::default());
    assert_eq!((none.all(), none.hours()), (Flow::default(), None));
    assert_eq!(none.all().left_percent(), 0.0);
}

#[test]
fn three_days_of_the_real_network() {
    let Some(site) = RealSite::new(&[EARLIER, MICRODESC]) else {
        return;
    };
    let json = diff(&site.paths[0], &site.paths[1], &[]);
    // Not by a print macro: the output of a passing test is captured.
    let _ = writeln!(std::io::stderr(), "three days of the real network: {json}");
    assert_eq!(json["hours"], 72.0);
    let [stayed, left, joined] = flow(&json, "all");
    // Counted independently: the endpoints of each document, and nine authorities' DirPorts.
    assert_eq!(stayed + left, 6_768 + 2_411 + 9);
    assert_eq!(stayed + joined, 6_727 + 2_404 + 9);
    assert!(left > 0 && joined > 0);
}
