//! The live set on disk: it is loaded as it was saved, and damage is reported.

use crate::site::{LONG, Site, plan};
use crate::{START, assert_names_no_address, at, file, offer, with_value};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_relays::{Flavor, LiveSet, StateError, StateFile};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use tempfile::TempDir;

/// A set with a departed endpoint and a refusal.
fn live() -> LiveSet {
    let mut live = LiveSet::default();
    let with = ConsensusBuilder {
        listed: vec![
            "203.0.113.1:1".parse().unwrap(),
            "[2001:db8:9::9]:25".parse().unwrap(),
        ],
        ..plan(Flavor::Ns)
    };
    let loaded = Site::of(&with).load().unwrap();
    offer(&mut live, loaded, at(START)).unwrap();
    let mut without = Site::new(Flavor::Ns).load().unwrap();
    without.sources[0].path = live.sources()[0].path.clone();
    offer(&mut live, without, at(START + 60)).unwrap();
    live.refuse("\u{e4} \"reason\"\n".to_owned(), at(START + 90));
    assert!(live.counts().1 >= 2);
    live
}

fn state(directory: &TempDir) -> StateFile {
    StateFile::new(directory.path().join("relays.state"))
}

fn unusable(state: &StateFile) -> String {
    let error = state.load().unwrap_err();
    assert_names_no_address(&error);
    match &error {
        StateError::Unusable(path, reason) => {
            assert_eq!(path, state.path());
            reason.clone()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_saved_set_is_loaded_unchanged() {
    let directory = TempDir::new().unwrap();
    let state = state(&directory);
    assert_eq!(state.load().unwrap(), None);
    for live in [LiveSet::default(), live()] {
        state.save(&live).unwrap();
        assert_eq!(state.load().unwrap(), Some(live));
    }
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["relays.state"], "nothing is left beside it");
}

#[test]
fn directories_are_made_and_leftovers_replaced() {
    let directory = TempDir::new().unwrap();
    let victim = file(&directory, "victim", "untouched");
    let state = StateFile::new(directory.path().join("a/b/relays.state"));
    state.save(&live()).unwrap();
    let new = directory.path().join("a/b/relays.state.new");
    // Left behind by an earlier process, or placed there by another user.
    for leave in [
        (|new: &PathBuf, _| fs::write(new, "half").unwrap()) as fn(&PathBuf, &PathBuf),
        |new, victim| symlink(victim, new).unwrap(),
        |new, _| mkfifo(new, Mode::S_IRWXU).unwrap(),
    ] {
        leave(&new, &victim);
        state.save(&live()).unwrap();
        assert!(new.symlink_metadata().is_err(), "it is gone");
        let metadata = state.path().symlink_metadata().unwrap();
        assert!(metadata.is_file());
        let mode = metadata.permissions().mode();
        assert_eq!(mode & 0o022, 0, "others only read it");
    }
    assert_eq!(fs::read_to_string(victim).unwrap(), "untouched");
}

#[test]
fn a_failed_write_keeps_the_old_file() {
    let directory = TempDir::new().unwrap();
    let state = state(&directory);
    let live = live();
    state.save(&live).unwrap();
    fs::create_dir(directory.path().join("relays.state.new")).unwrap();
    let error = state.save(&LiveSet::default()).unwrap_err();
    assert!(matches!(error, StateError::Write { .. }), "{error}");
    assert!(error.to_string().contains("relays.state"), "{error}");
    assert_eq!(state.load().unwrap(), Some(live));

    // Below a file; over a directory; without a name.
    let below = state.path().join("below");
    for path in [below, directory.path().into(), "/".into()] {
        let error = StateFile::new(path).save(&LiveSet::default()).unwrap_err();
        assert!(matches!(error, StateError::Write { .. }), "{error}");
    }
}

#[test]
fn damage_is_reported_or_harmless() {
    let directory = TempDir::new().unwrap();
    let state = state(&directory);
    state.save(&live()).unwrap();
    let good = fs::read(state.path()).unwrap();
    for end in 0..good.len() - 1 {
        fs::write(state.path(), &good[..end]).unwrap();
        unusable(&state);
    }
    for place in 0..good.len() {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        fs::write(state.path(), &bytes).unwrap();
        match state.load() {
            // A changed digit may be another valid number.
            Ok(live) => drop(live.unwrap().endpoints(&[]).unwrap()),
            Err(error) => assert_names_no_address(&error),
        }
    }
    for bytes in [&b"null"[..], b"[]", b"{}", b"\0\0\0", b"\xff\xfe", b"hello"] {
        fs::write(state.path(), bytes).unwrap();
        unusable(&state);
    }
}

#[test]
fn refuses_implausible_states() {
    let directory = TempDir::new().unwrap();
    let state = state(&directory);
    state.save(&live()).unwrap();
    let good: Value = serde_json::from_slice(&fs::read(state.path()).unwrap()).unwrap();
    let many = (1..70_000_u32).map(|n| format!("{}:1", std::net::Ipv4Addr::from(n)));
    for (words, path, value) in [
        ("another version", "/format", json!(1)),
        ("port 0", "/listed/0", json!("0.0.0.1:0")),
        ("port 0", "/departed/0/0", json!("0.0.0.1:0")),
        ("out of order", "/listed/1", json!("0.0.0.1:1")),
        (
            "follow each other",
            "/sources/0/validity/valid_until",
            json!(1),
        ),
        ("time out of range", "/departed/0/1", json!(u64::MAX)),
        ("not a relay state file", "/accepted_at", json!(u64::MAX)),
        ("not a relay state file", "/more", json!(1)),
        ("too many", "/listed", many.collect()),
    ] {
        let bad = with_value(good.clone(), path, value);
        fs::write(state.path(), bad.to_string()).unwrap();
        let reason = unusable(&state);
        assert!(reason.contains(words), "{words}: {reason}");
    }
}

#[test]
fn refuses_irregular_and_large_files() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let zeros = directory.path().join("zeros");
    symlink("/dev/zero", &zeros).unwrap();
    let large = directory.path().join("large");
    let file = fs::File::create(&large).unwrap();
    file.set_len(200 << 20).unwrap();
    let (sender, receiver) = mpsc::channel();
    let paths = [fifo, zeros, large, directory.path().to_owned()];
    std::thread::spawn(move || {
        let _ = sender.send(paths.map(|path| StateFile::new(path).load()));
    });
    for outcome in receiver.recv_timeout(LONG).expect("loading must not block") {
        let error = outcome.unwrap_err();
        assert!(matches!(error, StateError::Unusable { .. }), "{error}");
    }
}

#[test]
fn a_concurrent_reader_finds_a_whole_file() {
    let directory = TempDir::new().unwrap();
    let state = state(&directory);
    let sets = [LiveSet::default(), live()];
    state.save(&sets[0]).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for live in sets.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                state.save(live).unwrap();
            }
        });
        for _ in 0..200 {
            let loaded = state.load().unwrap().unwrap();
            assert!(sets.contains(&loaded));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
