//! Runs the table of cases through the forwarder, and through a whole worker over memory ports.

use exitmark_datapath::memory::{HeapMemory, MemoryPort};
use exitmark_datapath::{
    Counter, Forwarder, Outcome, PerRole, Role, SpinLimits, Worker, WorkerLimits,
};
use exitmark_lab::cases::translated::{Arrival, arrivals};
use exitmark_lab::cases::{CaseTable, tables, translated};
use exitmark_policy::Class;
use std::sync::Arc;
use std::time::Duration;

fn forwarder(table: &CaseTable) -> Forwarder {
    let settings = table.settings().unwrap();
    Forwarder::new(
        Arc::new(table.snapshot(&settings)),
        Arc::new(table.links(&settings)),
    )
}

#[test]
fn every_case_by_the_forwarder() {
    for table in tables() {
        let mut forwarder = forwarder(&table);
        for case in &table.cases {
            let title = format!("{}: {}", table.name, case.name);
            let mut frame = case.before.clone();
            let length = frame.len();
            let (outcome, verdict) =
                forwarder.forward(Role::Host, &mut frame, length, Duration::ZERO);
            assert_eq!(verdict.unwrap().class(), case.class, "{title}");
            assert_eq!(outcome, Outcome::Forward(case.egress), "{title}");
            assert_eq!(frame, case.after, "{title}");
        }
        let tally = forwarder.tally();
        assert_eq!(tally.classified(), table.cases.len() as u64);
        for class in Class::ALL {
            let expected = table.cases.iter().filter(|case| case.class == class);
            let (expected, found) = (expected.count() as u64, tally.of(Counter::Class(class)));
            assert_eq!(found, expected, "{}: {}", table.name, class.name());
        }
    }
}

#[test]
fn every_answer_to_a_translated_frame_by_the_forwarder() {
    let mut forwarder = after_the_hosts_frames(&translated::table());
    let mut expected = 0;
    for case in arrivals() {
        let outcome = match case.after {
            Some(_) => Outcome::Forward(Role::Host),
            None => Outcome::Stack,
        };
        expected += u64::from(case.after.is_some());
        let after = case.after.as_ref().unwrap_or(&case.before);
        assert_arrives(&mut forwarder, &case, outcome, after);
    }
    assert_eq!(forwarder.tally().of(Counter::TranslatedBack), expected);
}

#[test]
fn in_audit_mode_all_answers_are_the_boxs_own() {
    let mut table = translated::table();
    table.configuration.insert_str(0, "mode = \"audit\"\n");
    let mut forwarder = after_the_hosts_frames(&table);
    for case in arrivals() {
        assert_arrives(&mut forwarder, &case, Outcome::Stack, &case.before);
    }
}

/// A forwarder that has learned the host's MAC address from these frames.
fn after_the_hosts_frames(table: &CaseTable) -> Forwarder {
    let mut forwarder = forwarder(table);
    for case in &table.cases {
        let mut frame = case.before.clone();
        let length = frame.len();
        let _ = forwarder.forward(Role::Host, &mut frame, length, Duration::ZERO);
    }
    forwarder
}

#[track_caller]
fn assert_arrives(forwarder: &mut Forwarder, case: &Arrival, expected: Outcome, after: &[u8]) {
    let mut frame = case.before.clone();
    let length = frame.len();
    let (outcome, _) = forwarder.forward(Role::Incoming, &mut frame, length, Duration::ZERO);
    assert_eq!(outcome, expected, "{}", case.name);
    assert_eq!(frame, after, "{}", case.name);
}

/// The table of cases through rings; a small chunk holds every header but not every frame.
#[test]
fn every_case_by_a_worker() {
    for chunk_bytes in [2048, 128] {
        for table in tables() {
            let (memory, pool) = HeapMemory::new(512, chunk_bytes);
            let ports = PerRole::from_fn(|_| Some(MemoryPort::new(64)));
            let limits = WorkerLimits {
                batch: 16,
                spin: SpinLimits::fixed(Duration::ZERO),
            };
            let mut worker = Worker::new(ports, memory, pool, forwarder(&table), limits);
            let arriving = table.cases.iter().map(|case| case.before.clone());
            worker.port(Role::Host).unwrap().incoming.extend(arriving);
            while worker.turn(Duration::ZERO) {}
            for role in Role::ALL {
                let left = table.cases.iter().filter(|case| case.egress == role);
                let sent = &worker.port(role).unwrap().sent;
                let is_same = sent.iter().eq(left.map(|case| &case.after));
                assert!(is_same, "{} by {role}", table.name);
            }
            assert_eq!(worker.balance().unaccounted(), 0);
            assert!(worker.report().pool_is_sound);
            assert!(worker.counters().read().is_complete(), "{}", table.name);
        }
    }
}

#[test]
fn cross_check_counts_only_with_both_kinds_of_address() {
    for table in tables() {
        let mut forwarder = forwarder(&table);
        for case in &table.cases {
            let mut frame = case.before.clone();
            let length = frame.len();
            forwarder.forward(Role::Host, &mut frame, length, Duration::ZERO);
        }
        let disagreements = forwarder.tally().of(Counter::Disagreement);
        let expected = match table.name {
            // A flow to an unlisted relay over IPv4 and IPv6, and a clearnet flow to a listed one.
            "addresses that carry Tor traffic only" => 3,
            // Each frame of a clearnet address to a listed relay, and one to an unlisted one.
            "steered frames have an address of their network" => 11,
            _ => 0,
        };
        assert_eq!(disagreements, expected, "{}", table.name);
    }
}
