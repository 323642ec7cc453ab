//! Tier: any machine; root for a full disk. Periods across restarts, crashes and clock changes:
//! every flow is in exactly one published file.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod clocks;
mod crashes;
mod disks;
mod states;

use super::published::{cell, counts, of_cells, origin};
use crate::says;
use exitmark_monitor::cell::Counts;
use exitmark_monitor::clock::{Length, Now};
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::period::{Disk, Notice, Opened, PeriodError, PeriodSettings, Periods};
use exitmark_monitor::publish::PublishSettings;
use exitmark_monitor::row::{Dimension, Row};
use exitmark_policy::packet::Version;
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A monitor's files and settings.
struct Place {
    /// Removed together with this.
    _directory: Option<tempfile::TempDir>,
    settings: PeriodSettings,
    publish: PublishSettings,
}

impl Place {
    fn new() -> Self {
        // On a tmpfs if possible: syncing to a disk takes time.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.unwrap();
        let mut place = Self::in_directory(directory.path());
        place._directory = Some(directory);
        place
    }

    fn in_directory(directory: &Path) -> Self {
        let published = directory.join("published");
        fs::create_dir_all(&published).unwrap();
        Self {
            _directory: None,
            settings: PeriodSettings {
                length: Length::DAY,
                directory: published,
                state: Some(directory.join("state")),
            },
            publish: PublishSettings {
                threshold_flows: 0,
                bins: Counts {
                    flows: NonZeroU64::MIN,
                    ..PublishSettings::default().bins
                },
                ..PublishSettings::default()
            },
        }
    }

    fn try_open(&self, disk: Disk, now: Now) -> Result<Opened, PeriodError> {
        let (settings, publish) = (self.settings.clone(), self.publish.clone());
        Periods::open(disk, settings, publish, origin(), now)
    }

    fn open(&self, now: Now) -> Opened {
        self.try_open(Disk::default(), now).unwrap()
    }

    fn state(&self) -> &Path {
        self.settings.state.as_deref().unwrap()
    }

    /// The names of the files in the state directory, except the lock.
    fn states(&self) -> Vec<String> {
        let mut names = names(self.state());
        names.retain(|name| name != "lock");
        names
    }

    fn published(&self) -> Vec<String> {
        names(&self.settings.directory)
    }

    fn rows(&self, name: &str) -> Vec<Row> {
        let text = fs::read_to_string(self.settings.directory.join(name)).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
        rows.collect()
    }

    fn flows(&self, name: &str) -> u64 {
        let total = &self.rows(name)[0];
        assert_eq!(total.dimension, Dimension::Total);
        total.counts.flows
    }

    fn all_flows(&self) -> u64 {
        self.published().iter().map(|name| self.flows(name)).sum()
    }

    /// Checks that this many files with these flows are published, and nothing else is kept.
    #[track_caller]
    fn has_published(&self, files: usize, flows: u64, what: &str) {
        let published = (self.published().len(), self.all_flows());
        assert_eq!(published, (files, flows), "{what}");
        assert_eq!(self.states(), [""; 0], "{what}");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Both clocks this many seconds after midnight, if the clock was not set.
fn at(seconds: i64) -> Now {
    set(seconds, u64::try_from(seconds).unwrap())
}

/// Both clocks after the wall clock was set.
fn set(wall: i64, monotonic: u64) -> Now {
    let midnight: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
    Now {
        wall: midnight + SignedDuration::from_secs(wall),
        monotonic: Duration::from_secs(1000 + monotonic),
    }
}

const DAY: i64 = 24 * 3600;

fn ledger(flows: u64) -> Ledger {
    let counts = counts(flows, 1000 * flows, 10 * flows);
    Ledger {
        watched_seconds: 60,
        ..of_cells([(cell(443, 1, "US", Version::V4), counts)])
    }
}

fn path_of(notice: &Notice) -> PathBuf {
    match notice {
        Notice::Published(_, path) => path.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_restart_goes_on_with_what_was_saved() {
    let place = Place::new();
    let (mut periods, restored, notices) = place.open(at(100));
    assert!(restored.is_none() && notices.is_empty(), "{notices:?}");
    assert!(!periods.is_save_due(at(159)));
    assert!(periods.is_save_due(at(160)));
    assert!(periods.save(&ledger(5), at(160)).is_empty());
    assert!(!periods.is_save_due(at(219)) && periods.is_save_due(at(220)));
    assert!(place.published().is_empty());
    // Counts from now on are lost: less than a minute.
    drop(periods);

    let (mut periods, restored, notices) = place.open(at(300));
    assert_eq!(restored, Some(ledger(5)));
    assert!(matches!(notices[..], [Notice::Restored(_)]), "{notices:?}");
    assert!(!periods.is_over(at(DAY - 1)) && periods.is_over(at(DAY)));
    let notices = periods.close(ledger(7), at(DAY));
    let path = path_of(&notices[0]);
    assert_eq!(notices.len(), 1);
    assert!(path.ends_with("published/berlin-1-20261122T000000Z-1.jsonl"));
    place.has_published(1, 7, "the counts at the end");
    let status = periods.status();
    let numbers = (status.waiting, status.published, status.given_up);
    assert_eq!(numbers, (0, 1, 0));
    assert_eq!(status.last_published, Some(at(DAY).wall));
    assert_eq!(status.running.to_string(), "20261123T000000Z-1");
}

#[test]
fn publishes_a_finished_period_at_the_start() {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(100));
    periods.save(&ledger(5), at(160));
    drop(periods);
    let (periods, restored, notices) = place.open(at(DAY + 5));
    assert!(restored.is_none());
    path_of(&notices[0]);
    place.has_published(1, 5, "what was saved");
    assert_eq!(periods.status().running.part, 1);
}

#[test]
fn files_have_the_right_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    periods.save(&ledger(5), at(60));
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(place.state().to_owned()), 0o700);
    assert_eq!(mode(place.state().join(&place.states()[0])), 0o600);
    let notices = periods.close(ledger(5), at(DAY));
    assert_eq!(mode(path_of(&notices[0])), 0o644);
    let names = place.published();
    assert_eq!(names.len(), 1, "no half of one is left: {names:?}");
}

#[test]
fn two_monitors_do_not_share_a_state_directory() {
    let place = Place::new();
    let (periods, ..) = place.open(at(0));
    let second = place.try_open(Disk::default(), at(1)).unwrap_err();
    says(&second, "another exitmark-monitor; stop that one");
    drop(periods);
    place.open(at(2));
}

#[test]
fn two_monitors_with_the_same_name_lose_nothing() {
    let (one, mut two) = (Place::new(), Place::new());
    two.settings.directory.clone_from(&one.settings.directory);
    let (mut first, ..) = one.open(at(0));
    let (mut second, ..) = two.open(at(0));
    first.close(ledger(3), at(DAY));
    second.close(ledger(4), at(DAY));
    let names = one.published();
    let flows: Vec<_> = names.iter().map(|name| one.flows(name)).collect();
    assert_eq!(flows, [3, 4], "{names:?}");
    let part = one.rows(&names[1])[0].about.as_ref().unwrap().part;
    assert_eq!(part, 2, "as its name says");
}

#[test]
fn only_a_watched_period_has_a_file() {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    assert!(periods.close(Ledger::default(), at(DAY)).is_empty());
    assert!(place.published().is_empty() && place.states().is_empty());
    let silent = Ledger {
        watched_seconds: 1,
        ..Ledger::default()
    };
    periods.close(silent, at(2 * DAY));
    assert_eq!(place.published(), ["berlin-1-20261123T000000Z-1.jsonl"]);
}

#[test]
fn refuses_a_name_with_a_path_and_a_seed_at_a_tap() {
    let place = Place::new();
    for exit in ["", "../x", ".x", "a/b", "a b", "ü"] {
        let mut origin = origin();
        origin.exit = exit.to_owned();
        let (settings, publish) = (place.settings.clone(), place.publish.clone());
        let opened = Periods::open(Disk::default(), settings, publish, origin, at(0));
        let refused = opened.unwrap_err();
        assert!(matches!(refused, PeriodError::Exit(_)), "{exit}: {refused}");
    }
    let mut seeded = Place::new();
    seeded.publish.threshold_flows = 100;
    seeded.publish.noise = Some(exitmark_monitor::publish::NoiseSettings {
        epsilon: 1.0.try_into().unwrap(),
        user: counts(1, 1, 1),
        seed: Some(1),
    });
    let refused = seeded.try_open(Disk::default(), at(0)).unwrap_err();
    assert!(matches!(refused, PeriodError::Seed), "{refused}");
    seeded.settings.state = None;
    let (.., notices) = seeded.open(at(0));
    assert!(matches!(notices[..], [Notice::Seeded]), "{notices:?}");
}
