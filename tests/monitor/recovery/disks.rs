//! Full, missing and read-only disks.

use super::{DAY, Place, at, ledger};
use crate::says;
use exitmark_lab::Netns;
use exitmark_monitor::period::{MAX_WAITING, Notice};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::io::Write;
use std::path::Path;

#[test]
fn waits_for_a_missing_directory() {
    let mut place = Place::new();
    let there = place.settings.directory.clone();
    place.settings.directory = there.join("mounted-later");
    let (mut periods, _, notices) = place.open(at(0));
    let is_missing = matches!(notices[..], [Notice::NoDirectory { .. }]);
    assert!(is_missing, "{notices:?}");
    let notices = periods.close(ledger(3), at(DAY));
    says(&notices[0], "kept and retried");
    says(&notices[0], "periods that wait: 1;");
    assert_eq!(periods.status().waiting, 1);
    // The next period is counted, and a restart keeps both.
    periods.save(&ledger(4), at(DAY + 60));
    drop(periods);
    let (mut periods, restored, _) = place.open(at(DAY + 70));
    assert_eq!(restored, Some(ledger(4)));
    assert!(!periods.is_retry_due(at(DAY + 129)) && periods.is_retry_due(at(DAY + 130)));

    fs::create_dir(&place.settings.directory).unwrap();
    let notices = periods.retry(at(DAY + 130));
    let is_published = matches!(notices[..], [Notice::Published { .. }]);
    assert!(is_published, "{notices:?}");
    periods.close(ledger(5), at(2 * DAY));
    place.has_published(2, 8, "both");
}

#[test]
fn bounds_the_number_of_waiting_periods() {
    for with_state in [true, false] {
        let mut place = Place::new();
        let there = place.settings.directory.clone();
        place.settings.directory = there.join("never");
        if !with_state {
            place.settings.state = None;
        }
        let (mut periods, ..) = place.open(at(0));
        let days = i64::try_from(MAX_WAITING).unwrap() + 3;
        let notices = (1..=days).flat_map(|day| periods.close(ledger(1), at(day * DAY)));
        let given_up = notices.filter_map(|notice| match notice {
            Notice::GivenUp(period) => Some(period.start),
            _ => None,
        });
        let given_up: Vec<_> = given_up.collect();
        let oldest: Vec<_> = (0..3).map(|day| at(day * DAY).wall).collect();
        assert_eq!(given_up, oldest);
        let status = periods.status();
        assert_eq!((status.waiting, status.given_up), (MAX_WAITING, 3));
        if with_state {
            assert_eq!(place.states().len(), MAX_WAITING);
        }
        fs::create_dir(&place.settings.directory).unwrap();
        periods.retry(at(days * DAY + 60));
        assert_eq!(place.published().len(), MAX_WAITING);
    }
}

/// Runs a test in a mount namespace with a small tmpfs; prints a note if that is not possible.
fn on_tmpfs(options: &'static str, test: impl FnOnce(&Path) + Send + 'static) {
    if !exitmark_lab::is_root() {
        return;
    }
    let namespace = Netns::new("disk").unwrap();
    namespace.run(move || {
        // The namespace has its own /run.
        let small = Path::new("/run/small");
        fs::create_dir(small).unwrap();
        let none = Some("tmpfs");
        mount(none, small, none, MsFlags::empty(), Some(options)).unwrap();
        test(small);
    });
}

fn fill(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path
}

#[test]
fn a_full_disk_loses_nothing() {
    on_tmpfs("size=64k", |small| {
        let mut place = Place::new();
        place.settings.directory = small.to_owned();
        let (mut periods, ..) = place.open(at(0));
        let filler = fill(small);
        let notices = periods.close(ledger(3), at(DAY));
        says(&notices[0], "No space left");
        assert_eq!(super::names(small), ["filler"], "nothing half done");
        let notices = periods.retry(at(DAY + 60));
        assert!(matches!(notices[..], [Notice::Unpublished { .. }]));
        fs::remove_file(filler).unwrap();
        periods.retry(at(DAY + 120));
        assert_eq!((place.published().len(), place.all_flows()), (1, 3));
    });
}

#[test]
fn reports_a_full_state_directory_and_counts_on() {
    on_tmpfs("size=64k,mode=0700", |small| {
        let mut place = Place::new();
        place.settings.state = Some(small.join("state"));
        let (mut periods, ..) = place.open(at(0));
        // The last counts that fitted.
        periods.save(&ledger(3), at(60));
        let filler = fill(small);
        let notices = periods.save(&ledger(4), at(120));
        says(&notices[0], "No space left");
        says(&notices[0], "counting goes on");
        assert!(!periods.status().is_saved);
        assert_eq!(place.states().len(), 1, "{:?}", place.states());
        let notices = periods.close(ledger(9), at(DAY));
        let published = |notice: &Notice| matches!(notice, Notice::Published { .. });
        assert!(notices.iter().any(published), "{notices:?}");
        // The old state is not published in addition.
        drop(periods);
        place.open(at(DAY + 1));
        assert_eq!((place.published().len(), place.all_flows()), (1, 9));
        fs::remove_file(filler).unwrap();
    });
}

#[test]
fn waits_for_a_writable_directory() {
    on_tmpfs("size=64k", |small| {
        let remount = |flags| {
            let none = None::<&str>;
            mount(none, small, none, MsFlags::MS_REMOUNT | flags, none).unwrap();
        };
        let mut place = Place::new();
        place.settings.directory = small.to_owned();
        let (mut periods, ..) = place.open(at(0));
        remount(MsFlags::MS_RDONLY);
        let notices = periods.close(ledger(3), at(DAY));
        says(&notices[0], "Read-only");
        remount(MsFlags::empty());
        periods.retry(at(DAY + 60));
        assert_eq!(place.all_flows(), 3);
    });
}
