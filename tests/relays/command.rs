//! `exitmark relays` from outside: what it prints and how it exits.

use crate::{file, names_an_address, order, small};
use exitmark::lab::consensus::Order;
use exitmark::relays::Flavor;
use std::process::{Command, Output};
use tempfile::TempDir;

fn exitmark(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .arg("relays")
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn the_command_shows_what_a_file_holds() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "consensus", small(Flavor::Microdesc));
    let path = path.to_str().unwrap();
    let output = exitmark(&[path]);
    assert_eq!(code(&output), 0, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        path,
        "microdesc",
        "2023-11-14 22:13:20 UTC",
        "2023-11-14 23:13:20 UTC",
        "2023-11-15 01:13:20 UTC",
        "stale",
        "not checked",
        "The relay set of 1 file has",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!names_an_address(&text), "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn the_command_writes_json() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "consensus", small(Flavor::Ns));
    let path = path.to_str().unwrap();
    let output = exitmark(&["--json", path]);
    assert_eq!(code(&output), 0);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["contains"], serde_json::Value::Null);
    let source = &json["sources"][0];
    assert_eq!(source["flavor"], "ns");
    assert_eq!(source["orports"], 4);
    assert_eq!(source["further_orports"], 2);
    assert_eq!(source["authority_ports"], 4);
    assert_eq!(source["valid_after"], "2023-11-14 22:13:20");
    assert_eq!(source["signatures_checked"], false);
    assert_eq!(source["distinct"], json["distinct"]);
}

#[test]
fn the_command_answers_whether_an_endpoint_is_contained() {
    let directory = TempDir::new().unwrap();
    let order = Order {
        listed: vec![
            "203.0.113.9:22".parse().unwrap(),
            "[2001:db8:9::9]:25".parse().unwrap(),
        ],
        ..order(Flavor::Ns, 4)
    };
    let path = file(&directory, "consensus", order.write());
    let path = path.to_str().unwrap();
    for (endpoint, expected) in [
        ("203.0.113.9:22", 0),
        ("203.0.113.9:23", 1),
        ("203.0.113.8:22", 1),
        ("[2001:db8:9::9]:25", 0),
        ("[2001:db8:9::9]:26", 1),
    ] {
        let output = exitmark(&[path, "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.starts_with(["Yes, ", "No, "][usize::from(expected != 0)]),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);

        let output = exitmark(&[path, "--json", "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["contains"], expected == 0);
    }
}

#[test]
fn the_command_tells_wrong_usage_from_bad_files() {
    let directory = TempDir::new().unwrap();
    let good = file(&directory, "good", small(Flavor::Ns));
    let bad = file(&directory, "bad", "hello\n");
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for arguments in [
        &[][..],
        &["--contains", "203.0.113.9:22"],
        &[good, "--contains", "203.0.113.9"],
        &[good, "--contains", "203.0.113.9:0"],
        &[good, "--contains", "203.0.113.9:65536"],
        &[good, "--contains", "relay.example:9001"],
        &[good, "--contains"],
        &[good, "--verify"],
    ] {
        assert_eq!(code(&exitmark(arguments)), 2, "{arguments:?}");
    }
    for arguments in [
        &[bad][..],
        &[good, bad],
        &["/nonexistent/consensus"],
        &[bad, "--contains", "203.0.113.9:22"],
    ] {
        let output = exitmark(arguments);
        assert_eq!(code(&output), 1, "{arguments:?}");
        assert!(output.stdout.is_empty());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("exitmark: "), "{error}");
        assert!(!names_an_address(&error), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
