//! State files and directories that were altered.

use super::{Place, at, cell, counts, ledger};
use crate::says;
use exitmark_monitor::cell::{Country, Counts, DEFAULT_CELLS, MAX_CELLS};
use exitmark_monitor::ledger::{Ledger, MAX_JSON_BYTES};
use exitmark_monitor::period::{Disk, Notice, PeriodError, StateError};
use exitmark_policy::packet::Version;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A place with a saved state, and the path of that.
fn saved() -> (Place, PathBuf) {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    periods.save(&ledger(5), at(60));
    let file = place.state().join(&place.states()[0]);
    (place, file)
}

fn put(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn with_digest(text: &str) -> String {
    use sha2::{Digest, Sha256};
    format!("{text}\n{:x}\n", Sha256::digest(text))
}

/// Checks that a state is set aside with this message, and its period begins anew.
fn is_refused(place: &Place, file: &Path, reason: &str) {
    let (periods, restored, notices) = place.open(at(70));
    assert!(restored.is_none(), "{reason}");
    let [notice @ Notice::SetAside { .. }] = &notices[..] else {
        panic!("{reason}: {notices:?}");
    };
    says(notice, reason);
    says(notice, ".unusable");
    let aside = file.with_extension("state.unusable");
    assert!(!file.exists() && aside.symlink_metadata().is_ok());
    assert_eq!(periods.status().running.part, 1);
    drop(periods);
    let (.., notices) = place.open(at(80));
    assert!(notices.is_empty(), "it is put aside once: {notices:?}");
}

#[test]
fn sets_aside_a_state_with_any_bit_flipped() {
    let (place, file) = saved();
    let good = fs::read(&file).unwrap();
    let aside = file.with_extension("state.unusable");
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1 << (byte % 8);
        put(&file, &bad, 0o600);
        let (_, restored, notices) = place.open(at(70));
        assert!(restored.is_none(), "byte {byte}");
        let is_aside = matches!(notices[..], [Notice::SetAside { .. }]);
        assert!(is_aside && aside.exists(), "byte {byte}");
    }
    put(&file, &good, 0o600);
    let (_, restored, _) = place.open(at(70));
    assert_eq!(restored, Some(ledger(5)), "and the good one is taken");
}

#[test]
fn sets_aside_a_truncated_state() {
    let (place, file) = saved();
    let good = fs::read(&file).unwrap();
    for length in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        put(&file, &good[..length], 0o600);
        is_refused(&place, &file, "cut off");
        fs::remove_file(file.with_extension("state.unusable")).unwrap();
    }
}

#[test]
fn continues_a_state_of_the_format_before() {
    let (place, file) = saved();
    let text = fs::read_to_string(&file).unwrap();
    let body = text.lines().next().unwrap();
    let before = body.replace("\"format\":2", "\"format\":1");
    assert_ne!(before, body);
    put(&file, with_digest(&before).as_bytes(), 0o600);
    let (_, restored, notices) = place.open(at(70));
    assert_eq!(restored, Some(ledger(5)));
    assert!(matches!(notices[..], [Notice::Restored(_)]), "{notices:?}");
}

#[test]
fn both_directions_survive_a_restart() {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    let mut ledger = ledger(5);
    ledger.cells[0].1 = [5, 5000, 50, 70_000, 60].into();
    ledger.unattributed = vec![(Version::V4, [0, 0, 0, 900, 1].into())];
    periods.save(&ledger, at(60));
    drop(periods);
    let (_, restored, _) = place.open(at(70));
    assert_eq!(restored, Some(ledger));
}

#[test]
fn sets_aside_an_invalid_state() {
    let (place, file) = saved();
    let text = fs::read_to_string(&file).unwrap();
    let body = text.lines().next().unwrap();
    for (from, to, reason) in [
        ("\"format\":2", "\"format\":3", "another version"),
        ("\"format\":2", "\"format\":0", "another version"),
        ("\"format\":2", "\"format\":2,\"more\":1", "another version"),
        ("[5,5000,50]", "[5,5000,50,7]", "another version"),
        ("2026-11-22T", "2026-11-23T", "another period"),
        ("_seconds\":86400", "_seconds\":0", "no length"),
    ] {
        put(
            &file,
            with_digest(&body.replace(from, to)).as_bytes(),
            0o600,
        );
        is_refused(&place, &file, reason);
    }
    put(&file, b"", 0o600);
    is_refused(&place, &file, "empty");

    let huge = fs::File::create(&file).unwrap();
    huge.set_len(1 << 40).unwrap();
    huge.set_permissions(Permissions::from_mode(0o600)).unwrap();
    is_refused(&place, &file, "larger than any counts");

    put(&file, text.as_bytes(), 0o644);
    is_refused(&place, &file, "accessible to users other");

    let elsewhere = place.settings.directory.join("elsewhere");
    put(&elsewhere, text.as_bytes(), 0o600);
    symlink(&elsewhere, &file).unwrap();
    is_refused(&place, &file, "symbolic links");

    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    is_refused(&place, &file, "not a regular file");
}

#[test]
fn leaves_foreign_files_alone() {
    let (place, _) = saved();
    let strange = [
        "notes",
        "1-2.closed",
        "-1.state",
        "01-1.state",
        "9.state",
        "5-1-xyz.closed",
    ];
    for name in strange {
        fs::write(place.state().join(name), "").unwrap();
    }
    let (_, restored, notices) = place.open(at(70));
    assert!(restored.is_some() && notices.len() == 1, "{notices:?}");
    for name in strange {
        assert!(place.state().join(name).exists(), "{name}");
    }
}

#[test]
fn refuses_a_directory_that_other_users_can_access() {
    let exposed = |place: &Place| {
        let refused = place.try_open(Disk::default(), at(70)).unwrap_err();
        let is_exposed = matches!(refused, PeriodError::State(StateError::Exposed { .. }));
        assert!(is_exposed, "{refused}");
        says(&refused, "mode 0700; remove it");
        refused.to_string()
    };
    let (place, _) = saved();
    for mode in [0o701, 0o710, 0o750, 0o777] {
        fs::set_permissions(place.state(), Permissions::from_mode(mode)).unwrap();
        assert!(exposed(&place).contains("accessible to users other"));
    }
    fs::set_permissions(place.state(), Permissions::from_mode(0o700)).unwrap();

    let mut linked = Place::new();
    let link = linked.settings.directory.join("link");
    symlink(place.state(), &link).unwrap();
    linked.settings.state = Some(link);
    assert!(exposed(&linked).contains("is not a directory"));

    let mut file = Place::new();
    let path = file.settings.directory.join("file");
    fs::write(&path, "").unwrap();
    file.settings.state = Some(path);
    assert!(exposed(&file).contains("is not a directory"));

    if nix::unistd::Uid::effective().is_root() {
        std::os::unix::fs::chown(place.state(), Some(65_534), None).unwrap();
        assert!(exposed(&place).contains("another user"));
    }
}

#[test]
fn a_full_table_is_the_same_after_a_restart() {
    let cell = |number: u32| {
        let port = u16::try_from(number % 65_536).unwrap();
        let country = ["DE", "??", "A1"][number as usize % 3];
        let version = [Version::V4, Version::V6][number as usize % 2];
        let bytes = u64::MAX - u64::from(number);
        (
            cell(port, number, country, version),
            counts(number.into(), bytes, 1 << (number % 64)),
        )
    };
    let mut full = Ledger {
        cells: (0..u32::try_from(DEFAULT_CELLS).unwrap())
            .map(cell)
            .collect(),
        lost: 7,
        watched_seconds: 3600,
        ..Ledger::default()
    };
    let (_, counts) = cell(5);
    full.spilled.ports = (0..=u16::MAX).map(|port| (port, counts)).collect();
    full.spilled.systems = vec![(64_500, counts)];
    full.spilled.countries = vec![(Country::UNKNOWN, counts)];
    full.spilled.versions = vec![(Version::V6, counts)];
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    let notices = periods.save(&full, at(60));
    assert!(notices.is_empty(), "{notices:?}");
    drop(periods);
    let (_, restored, _) = place.open(at(70));
    assert!(restored == Some(full), "the ledgers differ");
}

#[test]
fn the_largest_ledger_is_no_larger_than_a_state_may_be() {
    let counts = Counts::from([u64::MAX; 5]);
    let cell = cell(u16::MAX, u32::MAX, "??", Version::V6);
    // Each with a comma.
    let bytes = |text: String| text.len() + 1;
    let json = bytes(serde_json::to_string(&(cell, counts)).unwrap());
    let port = bytes(serde_json::to_string(&(u16::MAX, counts)).unwrap());
    // There are far fewer than two million systems, with or without countries.
    let system = bytes(serde_json::to_string(&(u32::MAX, counts)).unwrap());
    let all = MAX_CELLS * json + 65_536 * port + 2_000_000 * system;
    assert!(all < MAX_JSON_BYTES, "{all} {MAX_JSON_BYTES}");
}

#[test]
fn a_state_names_no_fields_of_cells() {
    let (_place, file) = saved();
    let text = fs::read_to_string(&file).unwrap();
    let cells = "\"cells\":[[[443,\"US\",1,\"4\"],[5,5000,50]]]";
    says(&text, cells);
}
