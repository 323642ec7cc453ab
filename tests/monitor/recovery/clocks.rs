//! Clock changes, and packets from files with their own times.

use super::{DAY, Place, at, ledger, set};
use exitmark_lab::Random;
use exitmark_monitor::clock::{Length, Now, Period};
use exitmark_monitor::ledger::Ledger;
use std::time::Duration;

#[test]
fn a_period_ends_when_the_clock_shows_it_or_its_length_has_gone_by() {
    // What happens, wall clock, monotonic clock, whether the period is over.
    #[rustfmt::skip]
    let table = [
        ("nothing", 12 * 3600, 12 * 3600, false),
        ("the last second", DAY - 1, DAY - 1, false),
        ("its end", DAY, DAY, true),
        ("forward, within it", 20 * 3600, 3600, false),
        ("forward, past its end", DAY + 5, 3600, true),
        ("forward by a year", 365 * DAY, 3600, true),
        ("back, within it", 60, 3600, false),
        ("back, before it", -3600, 3600, false),
        ("back by a year", -365 * DAY, 3600, false),
        ("clocks that differ by a second", DAY - 1, DAY, false),
        ("back an hour, and a length has gone by", DAY - 3600, DAY + 900, true),
        ("back by a year, and a length has gone by", -364 * DAY, DAY + 900, true),
    ];
    for (what, wall, monotonic, is_over) in table {
        let place = Place::new();
        let (periods, ..) = place.open(at(0));
        let now = set(wall, monotonic.try_into().unwrap());
        assert_eq!(periods.is_over(now), is_over, "{what}");
    }
}

#[test]
fn after_a_step_back_the_same_period_has_another_part() {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    // An hour before the end the clock is set back by two hours; an hour later the period is over.
    let now = set(DAY - 2 * 3600, (DAY + 900).try_into().unwrap());
    assert!(periods.is_over(now));
    periods.close(ledger(10), now);
    assert_eq!(periods.status().running.to_string(), "20261122T000000Z-2");
    let end = set(DAY, (DAY + 900 + 7200).try_into().unwrap());
    assert!(periods.is_over(end));
    periods.close(ledger(1), end);
    let names = place.published();
    let parts = [1, 2].map(|part| format!("berlin-1-20261122T000000Z-{part}.jsonl"));
    assert_eq!(names, parts);
    let flows: Vec<_> = names.iter().map(|name| place.flows(name)).collect();
    assert_eq!(flows, [10, 1]);
}

#[test]
fn a_restart_does_not_make_a_set_back_period_longer() {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(0));
    // The wall clock is set back every hour; only the monotonic one goes on.
    periods.save(&ledger(1), set(3600, 20 * 3600));
    drop(periods);
    let (periods, restored, _) = place.open(set(3600, 0));
    assert!(restored.is_some());
    assert!(!periods.is_over(set(3600, 4 * 3600)));
    assert!(periods.is_over(set(3600, 4 * 3600 + 900)));
}

#[test]
fn a_clock_set_back_between_runs_loses_nothing() {
    let place = Place::new();
    let (mut periods, ..) = place.open(at(DAY));
    periods.save(&ledger(5), at(DAY + 60));
    drop(periods);
    let (mut periods, restored, _) = place.open(at(60));
    assert!(restored.is_none());
    periods.close(ledger(1), at(DAY));
    assert_eq!(periods.status().running.to_string(), "20261123T000000Z-2");
    periods.close(ledger(1), at(2 * DAY));
    assert_eq!((place.published().len(), place.all_flows()), (3, 7));
}

#[test]
fn each_flow_counts_once_however_the_clock_is_set() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut place = Place::new();
        place.settings.length = Length::brief(100);
        let (mut wall, mut monotonic) = (0_i64, 0_u64);
        let (mut periods, ..) = place.open(set(wall, monotonic));
        let (mut counted, mut all) = (0, 0);
        for _ in 0..200 {
            let step = random.below(30);
            wall += i64::try_from(step).unwrap();
            monotonic += step as u64;
            if random.percent(10) {
                let by = i64::try_from(random.below(600)).unwrap() - 300;
                wall += by;
            }
            let now = set(wall, monotonic);
            if periods.is_over(now) {
                periods.close(ledger(counted), now);
                counted = 0;
                assert!(!periods.is_over(now), "seed {seed}");
            }
            let more = random.below(5) as u64;
            (counted, all) = (counted + more, all + more);
            if random.percent(10) {
                periods.save(&ledger(counted), now);
                drop(periods);
                let (opened, restored, _) = place.open(now);
                periods = opened;
                counted = restored.map_or(0, |ledger| ledger.cells[0].1.flows);
            }
        }
        periods.close(ledger(counted), set(wall, monotonic));
        assert_eq!(place.all_flows(), all, "seed {seed}");
    }
}

#[test]
fn packets_from_files_have_their_own_time() {
    let mut place = Place::new();
    place.settings.state = None;
    let packet = |seconds| Now::of_packet(at(seconds).wall);
    let (mut periods, restored, notices) = place.open(packet(3 * DAY + 50));
    assert!(restored.is_none() && notices.is_empty());
    // A late packet belongs to the running period.
    assert!(!periods.is_over(packet(3 * DAY - 1)) && !periods.is_save_due(packet(4 * DAY - 1)));
    assert!(periods.is_over(packet(9 * DAY + 7)));
    periods.close(ledger(2), packet(9 * DAY + 7));
    periods.close(ledger(3), packet(9 * DAY + 8));
    // Days without a packet lie between them; none comes afterwards.
    periods.close(Ledger::default(), packet(9 * DAY + 8));
    let days = ["20261125", "20261201"].map(|day| format!("berlin-1-{day}T000000Z-1.jsonl"));
    assert_eq!(place.published(), days);
    assert_eq!(place.all_flows(), 5);
}

#[test]
fn periods_are_stretches_of_utc() {
    let hours = |hours: u64| Length::new(Duration::from_secs(3600 * hours));
    for good in [1, 2, 3, 4, 6, 8, 12, 24, 48, 7 * 24] {
        let length = hours(good).unwrap();
        for seconds in [0, 1, 3599, 3600, 86_399, 86_400] {
            let period = Period::at(at(seconds).wall, length);
            assert!(period.contains(at(seconds).wall));
            assert_eq!(period.start.as_second() % length.seconds(), 0);
            assert!(!period.contains(period.end()));
        }
    }
    for bad in [0, 5, 7, 25, 400 * 24] {
        assert!(hours(bad).is_err(), "{bad}");
    }
    assert!(Length::new(Duration::from_millis(3_600_001)).is_err());
    // Too few people.
    assert!(Length::new(Duration::from_secs(1800)).is_err());
}
