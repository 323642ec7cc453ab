//! The output and exit status of `exitmark relays`.

use crate::site::{Site, authorities, checked};
use crate::{START, at, builder, file, names_an_address, offer, small};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_relays::{Flavor, LiveSet, StateFile, load};
use std::fs;
use std::process::{Command, Output};
use tempfile::TempDir;

pub(crate) fn exitmark(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .arg("relays")
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn assert_fails(output: Output, words: &str) {
    assert_eq!(code(&output), 1, "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(words), "{error}");
    assert!(!names_an_address(&error), "{error}");
}

#[test]
fn prints_the_contents_of_a_file() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "consensus", small(Flavor::Microdesc));
    let path = path.to_str().unwrap();
    let output = exitmark(&["--no-verify", path]);
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
    let output = exitmark(&["--no-verify", "--json", path]);
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
fn exits_by_whether_an_endpoint_is_contained() {
    let directory = TempDir::new().unwrap();
    let builder = ConsensusBuilder {
        listed: vec![
            "203.0.113.9:22".parse().unwrap(),
            "[2001:db8:9::9]:25".parse().unwrap(),
        ],
        ..builder(Flavor::Ns, 4)
    };
    let path = file(&directory, "consensus", builder.write());
    let path = path.to_str().unwrap();
    for (endpoint, expected) in [
        ("203.0.113.9:22", 0),
        ("203.0.113.9:23", 1),
        ("203.0.113.8:22", 1),
        ("[2001:db8:9::9]:25", 0),
        ("[2001:db8:9::9]:26", 1),
    ] {
        let output = exitmark(&["--no-verify", path, "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let text = String::from_utf8(output.stdout).unwrap();
        let begin = ["Yes, ", "No, "][usize::from(expected != 0)];
        assert!(text.starts_with(begin), "{text}");
        assert_eq!(text.lines().count(), 1);

        let output = exitmark(&["--no-verify", path, "--json", "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["contains"], expected == 0);
    }
}

#[test]
fn distinguishes_wrong_usage_from_bad_files() {
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
        &[good, "--authority", "ABCD"],
        &[good, "--no-verify", "--certificates", bad],
        &[good, "--no-verify", "--authority", &"AB".repeat(20)],
        &[good, "--config", bad],
        &[good, "--diff", good, good],
        &["--diff", good],
        &["--diff", good, good, "--contains", "203.0.113.9:22"],
        &["--config", bad, "--no-verify"],
        &["--config", bad, "--certificates", good],
        // Not a configuration, which is wrong usage too.
        &["--config", bad],
        &["--config", "/nonexistent/exitmark.toml"],
    ] {
        assert_eq!(code(&exitmark(arguments)), 2, "{arguments:?}");
    }
    for arguments in [
        &[bad][..],
        &[good],
        &["--no-verify", bad],
        &["--no-verify", good, bad],
        &["--no-verify", "/nonexistent/consensus"],
        &["--no-verify", bad, "--contains", "203.0.113.9:22"],
        &["--no-verify", "--diff", good, bad],
        &["--no-verify", "--diff", bad, good],
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

/// Runs the command with `--authority` for each of the three authorities.
fn trusting_exitmark(arguments: &[&str]) -> Output {
    let identities = authorities().identities();
    let trusting = identities.iter().flat_map(|one| ["--authority", one]);
    let all: Vec<_> = trusting.chain(arguments.iter().copied()).collect();
    exitmark(&all)
}

#[test]
fn checks_signatures_unless_disabled() {
    let site = Site::new(Flavor::Microdesc);
    let path = site.consensus.to_str().unwrap();
    let output = trusting_exitmark(&[path]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(text.contains("3 good, 2 needed"), "{text}");
    let output = trusting_exitmark(&[path, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["sources"][0]["signatures_checked"], true);
    assert_eq!(json["sources"][0]["signatures_good"], 3);
    assert_eq!(json["sources"][0]["signatures_needed"], 2);

    // The authorities of the Tor network have not signed it; one of two strangers is not enough.
    let stranger = "AB".repeat(20);
    let one = &authorities().identities()[0];
    for arguments in [
        &[path][..],
        &["--authority", one, "--authority", &stranger, path],
    ] {
        assert_fails(exitmark(arguments), "are needed");
    }

    // A changed byte.
    let text = fs::read_to_string(&site.consensus).unwrap();
    site.write(text.replacen("circwindow=1000", "circwindow=1001", 1));
    assert_fails(trusting_exitmark(&[path]), "signature 1");
    assert_eq!(code(&exitmark(&["--no-verify", path])), 0);
}

#[test]
fn the_command_takes_certificates_from_another_place() {
    let site = Site::new(Flavor::Ns);
    let elsewhere = site.directory.path().join("elsewhere");
    fs::rename(&site.certificates, &elsewhere).unwrap();
    let path = site.consensus.to_str().unwrap();
    let elsewhere = elsewhere.to_str().unwrap();
    assert_fails(trusting_exitmark(&[path]), "--certificates");
    let output = trusting_exitmark(&[path, "--certificates", elsewhere]);
    assert_eq!(code(&output), 0, "{output:?}");
}

#[test]
fn the_command_shows_the_live_set_of_a_box() {
    let site = Site::new(Flavor::Microdesc);
    let config = file(
        &site.directory,
        "exitmark.toml",
        "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\n[host]\naddresses = [\"192.0.2.10\"]\n\
         listeners = [22]\n[relays]\nconsensus = [\"cached-consensus\"]\nstate = \"live/state\"\n\
         extra = [\"203.0.113.7:22\"]\n",
    );
    let config = config.to_str().unwrap();
    // There is no state before a box has run.
    let output = exitmark(&["--config", config]);
    assert_fails(output, "has had no relay set yet");

    let loaded = load(&checked([&site.consensus])).unwrap();
    let (count, relay) = (loaded.listed.len(), loaded.listed[0].to_string());
    let mut live = LiveSet::default();
    offer(&mut live, loaded, at(START)).unwrap();
    let state = StateFile::new(site.directory.path().join("live/state"));
    state.save(&live).unwrap();
    let output = exitmark(&["--config", config]);
    assert_eq!(code(&output), 0, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let last = format!("The relay set in force has {} endpoints.", count + 1);
    assert!(text.contains(&last), "{text}");
    assert!(!names_an_address(&text), "{text}");
    for (endpoint, expected) in [(&*relay, 0), ("203.0.113.7:22", 0), ("203.0.113.7:23", 1)] {
        let output = exitmark(&["--config", config, "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let output = exitmark(&["--config", config, "--json", "--contains", endpoint]);
        assert_eq!(code(&output), expected, "{endpoint}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["contains"], expected == 0);
        assert_eq!(json["listed"], count);
    }

    fs::write(state.path(), "{}").unwrap();
    assert_fails(exitmark(&["--config", config]), "remove it");
}
