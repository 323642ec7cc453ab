//! A crash before every single step loses at most a minute, and publishes nothing twice.

use super::{DAY, Place, at, ledger};
use exitmark_monitor::period::disk::Step;
use exitmark_monitor::period::{Disk, Notice};
use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The interrupted process.
type Life = fn(&Place, Disk);

/// A disk that fails at this step, counted from 0.
fn broken_at(
    step: usize,
    happen: impl Fn() -> io::Result<()> + Send + 'static,
) -> (Disk, Arc<Mutex<Vec<Step>>>) {
    let (done, recorded) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let recorder = recorded.clone();
    let disk = Disk::with_hook(move |what, _| {
        recorder.lock().unwrap().push(what);
        if done.fetch_add(1, Ordering::Relaxed) == step {
            happen()
        } else {
            Ok(())
        }
    });
    (disk, recorded)
}

/// Interrupts `life` before each of its steps in turn, and checks what a restart makes of the
/// files.
fn crash_everywhere(life: Life, check: impl Fn(&Place, usize)) -> BTreeSet<Step> {
    let mut steps = BTreeSet::new();
    for step in 0.. {
        let place = Place::new();
        // Without printing a panic message for each step.
        let (disk, recorded) = broken_at(step, || std::panic::resume_unwind(Box::new("crash")));
        let crashed = catch_unwind(AssertUnwindSafe(|| life(&place, disk)));
        check(&place, step);
        steps.extend(recorded.lock().unwrap().iter().copied());
        if crashed.is_ok() {
            assert!(step > 5, "there are steps");
            return steps;
        }
    }
    unreachable!()
}

#[test]
fn a_crash_while_saving_leaves_the_last_or_the_new_counts() {
    let life: Life = |place, disk| {
        let (mut periods, ..) = place.try_open(disk, at(0)).unwrap();
        periods.save(&ledger(5), at(60));
        periods.save(&ledger(9), at(120));
    };
    crash_everywhere(life, |place, step| {
        let (_, restored, _) = place.open(at(130));
        let flows = restored.map(|ledger| ledger.cells[0].1.flows);
        let may: &[_] = if step < 5 {
            &[None, Some(5)]
        } else {
            &[Some(5), Some(9)]
        };
        assert!(may.contains(&flows), "step {step}: {flows:?}");
        assert!(!place.states().iter().any(|name| name.ends_with(".new")));
    });
}

#[test]
fn a_crash_while_closing_publishes_once() {
    let life: Life = |place, disk| {
        let (mut periods, ..) = place.try_open(Disk::default(), at(0)).unwrap();
        periods.save(&ledger(5), at(DAY - 10));
        drop(periods);
        let (mut periods, ..) = place.try_open(disk, at(DAY - 9)).unwrap();
        periods.close(ledger(6), at(DAY));
    };
    let steps = crash_everywhere(life, |place, step| {
        // However often it is started.
        for _ in 0..2 {
            let (_, restored, _) = place.open(at(DAY + 20));
            assert!(restored.is_none(), "step {step}");
        }
        let flows = place.all_flows();
        let saved = step < 4;
        assert!(flows == 6 || saved && flows == 5, "step {step}: {flows}");
        let mut published = place.published();
        published.retain(|name| name.ends_with(".jsonl"));
        assert_eq!(published.len(), 1, "step {step}");
        assert_eq!(place.states(), [""; 0], "step {step}");
    });
    assert_eq!(steps.len(), 6, "every kind of step: {steps:?}");
}

#[test]
fn a_crash_while_an_old_period_is_published_at_the_start_publishes_once() {
    let life: Life = |place, disk| {
        let (mut periods, ..) = place.try_open(Disk::default(), at(0)).unwrap();
        periods.save(&ledger(5), at(60));
        drop(periods);
        place.try_open(disk, at(DAY)).unwrap();
    };
    crash_everywhere(life, |place, step| {
        place.open(at(DAY + 20));
        let published = (place.all_flows(), place.published().len());
        assert_eq!(published, (5, 1), "step {step}");
    });
}

#[test]
fn a_crash_after_a_name_was_taken_publishes_once() {
    let life: Life = |place, disk| {
        let (mut periods, ..) = place.try_open(disk, at(0)).unwrap();
        // Another process with the same name is faster.
        let mut other = Place::new();
        other.settings.directory = place.settings.directory.clone();
        let (mut faster, ..) = other.open(at(0));
        faster.close(ledger(100), at(DAY));
        periods.save(&ledger(5), at(DAY - 1));
        periods.close(ledger(5), at(DAY));
    };
    crash_everywhere(life, |place, step| {
        place.open(at(DAY + 20));
        let flows = place.all_flows();
        // In the first steps nothing was saved yet.
        let expected: &[u64] = if step < 4 { &[100, 105] } else { &[105] };
        assert!(expected.contains(&flows), "step {step}: {flows}");
    });
}

/// Every step fails once; no process ends.
#[test]
fn a_step_that_fails_once_neither_loses_nor_doubles() {
    for step in 0.. {
        let place = Place::new();
        let (disk, recorded) = broken_at(step, || Err(io::Error::other("made to fail")));
        let (mut periods, ..) = place.try_open(disk, at(0)).unwrap();
        let mut notices = periods.save(&ledger(5), at(60));
        notices.extend(periods.close(ledger(6), at(DAY)));
        let late = at(DAY + 60);
        if periods.is_retry_due(late) {
            notices.extend(periods.retry(late));
        }
        let steps = recorded.lock().unwrap().len();
        let published = (place.all_flows(), place.published().len());
        assert_eq!(published, (6, 1), "step {step}");
        assert_eq!(periods.status().waiting, 0);
        let was_reported = notices.iter().any(Notice::is_trouble);
        assert_eq!(was_reported, step < steps, "step {step}: {notices:?}");
        drop(periods);
        // The file that could not be removed is recognised as published.
        place.open(at(DAY + 120));
        place.has_published(1, 6, &format!("step {step}"));
        if step >= steps {
            break;
        }
    }
}
