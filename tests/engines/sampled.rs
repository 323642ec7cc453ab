//! The kernel engine with sampling: frames, verdicts and counters are the same as without, and the
//! samples match the decisions.

use crate::rig::{Rig, in_namespace};
use exitmark_box::audit::{Auditor, Mismatch};
use exitmark_datapath::{DecidedBy, KernelSamples, Links, Outcome, Role, SAMPLE_BYTES, contract};
use exitmark_lab::cases::{CaseTable, tables};
use exitmark_lab::differential::{Engines, Generator, Scenario};
use exitmark_lab::{Random, frames, pin_to};
use exitmark_policy::packet::Dscp;
use exitmark_policy::{Rule, Snapshot, image};
use std::mem::offset_of;
use std::sync::Arc;
use std::time::Duration;

/// How many generated scenarios are audited, and how many frames of each.
/// The offset of the first group in an image.
const GROUP: usize = offset_of!(contract::exitmark_policy, groups);
const SCENARIOS: usize = 60;
const FRAMES: usize = 2_000;
/// Frames per read of the samples; well below the room of the ring buffer.
const BATCH: usize = 500;

/// The auditor of a table's rig, with links of its own.
fn auditor_of(table: &CaseTable, snapshot: &Arc<Snapshot>) -> Auditor {
    let links = Arc::new(table.links(&table.settings().unwrap()));
    auditor(&links, Arc::clone(snapshot))
}

fn auditor(links: &Arc<Links>, snapshot: Arc<Snapshot>) -> Auditor {
    let mut auditor = Auditor::new(Arc::clone(links));
    auditor.follow(snapshot);
    auditor
}

fn beginning(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(SAMPLE_BYTES)]
}

#[test]
fn samples_match_the_decision_of_every_case() {
    in_namespace(|| {
        for table in tables() {
            let (mut rig, snapshot) = Rig::sampling(&table);
            let mut samples = rig.kernel.samples().unwrap();
            let mut auditor = auditor_of(&table, &snapshot);
            for case in table.cases.iter().filter(|case| case.before.len() >= 14) {
                let title = format!("{}: {}", table.name, case.name);
                let (ran, counted) = rig.run(Role::Host, &case.before);
                let sampled: Vec<_> = samples.take(10).collect();
                assert_eq!(sampled.len(), 1, "{title}");
                let sample = &sampled[0];
                assert!(*sample.before == *beginning(&case.before), "{title}");
                assert!(*sample.after == *beginning(&ran.frame), "{title}");
                assert_eq!(sample.frame_bytes, case.before.len(), "{title}");
                assert_eq!(sample.generation, snapshot.generation, "{title}");
                assert_eq!(sample.by, DecidedBy::Kernel);
                let rule = sample.rule.unwrap();
                if rule != Rule::NoUserSpace {
                    assert_eq!(rule.class(), case.class, "{title}");
                    assert_eq!(sample.outcome, Outcome::Forward(case.egress), "{title}");
                    // Sampling does not change the frame.
                    assert!(ran.frame == case.after, "{title}");
                }
                counted.assert_forwarded(Role::Host, port_of(sample.outcome), &title);
                let time = sample.latency.unwrap();
                assert!(sample.arrived > time && !time.is_zero(), "{title}");
                assert_eq!(auditor.check(sample), [], "{title}");
            }
            assert_eq!(auditor.skipped(), 0, "{}", table.name);
            rig.links.sample(0);
            rig.run(Role::Host, &table.cases[0].before);
            assert_eq!(samples.take(10).count(), 0);
        }
    });
}

fn port_of(outcome: Outcome) -> Role {
    match outcome {
        Outcome::Forward(role) => role,
        other => panic!("{other:?}"),
    }
}

/// Compares both engines while every frame is sampled; the auditor finds no fault in the samples.
#[test]
fn sampling_changes_no_frame_and_raises_no_alarm() {
    in_namespace(|| {
        let mut random = Random::new(11);
        let mut engines = Engines::new().unwrap();
        let mut samples = engines.kernel.samples().unwrap();
        let (mut sampled, mut skipped) = (0, 0);
        for _ in 0..SCENARIOS {
            let scenario = Scenario::some(&mut random);
            engines.set(&scenario).unwrap();
            let snapshot = Arc::new(scenario.snapshot().unwrap());
            let mut auditor = auditor(engines.links(), snapshot);
            engines.links().sample(1);
            let mut generator = Generator::new(&scenario);
            let mut frame = Vec::new();
            for number in 1..=FRAMES {
                let ingress = generator.next(&mut random, &mut frame);
                let known = engines.lesson(&frame);
                let difference = engines.compare(ingress, &frame).unwrap();
                assert_eq!(difference, None);
                // The auditor would miss a host that moves twice between two reads.
                if number % BATCH == 0 || engines.lesson(&frame) != known {
                    assert_eq!(engines.compare_counters().unwrap(), None);
                    sampled += audit(&mut auditor, &engines, &mut samples);
                    look(engines.links(), sampled);
                }
            }
            let faults: u64 = auditor.report().mismatches.iter().map(|it| it.frames).sum();
            assert_eq!(faults, 0);
            skipped += auditor.skipped();
        }
        assert_eq!(sampled, SCENARIOS * FRAMES);
        // Some fragments, and frames cut within their headers.
        assert!(skipped < 240, "{skipped} of {sampled} could not be judged");
        assert_eq!(samples.lost(), 0);
    });
}

/// Simulates read number `number` of the samples: each CPU may then make new ones.
fn look(links: &Links, number: usize) {
    let later = Duration::from_secs(10_000_000_000);
    links.sample_until(later + Duration::from_nanos(number as u64));
}

fn audit(auditor: &mut Auditor, engines: &Engines, samples: &mut KernelSamples) -> usize {
    let sampled: Vec<_> = samples.take(2 * BATCH).collect();
    auditor.look(Duration::from_secs(1));
    for sample in &sampled {
        let faults = auditor.check(sample);
        assert_eq!(
            faults,
            [],
            "{sample:?} hosts {auditor:?}\n{:02x?}\n{:02x?}\nlinks {:?}",
            &*sample.before,
            &*sample.after,
            engines.links()
        );
    }
    sampled.len()
}

/// The kernel's policy has another mark than the auditor's.
#[test]
fn audit_detects_another_policy_in_the_kernel() {
    in_namespace(|| {
        let table = &tables()[0];
        let (mut rig, snapshot) = Rig::sampling(table);
        let mut samples = rig.kernel.samples().unwrap();
        let mut auditor = auditor_of(table, &snapshot);
        let exit = frames::tcp("192.0.2.10:40000", "198.51.100.7:443").build();
        let mut found = |rig: &mut Rig, auditor: &mut Auditor| {
            rig.run(Role::Host, &exit);
            let sample = samples.take(1).next().unwrap();
            auditor.check(&sample)
        };
        assert_eq!(found(&mut rig, &mut auditor), []);
        let mut other = image(&snapshot).unwrap();
        other[GROUP + offset_of!(contract::exitmark_group, mark)] =
            Dscp::new(46).unwrap().bits() << 2;
        rig.kernel.publish_image(&other).unwrap();
        assert_eq!(found(&mut rig, &mut auditor), [Mismatch::Mark]);
        let report = auditor.report();
        assert_eq!(report.checked, 2);
        let of = |kind: &str| report.mismatches.iter().find(|it| it.kind == kind);
        assert_eq!(of("mark").unwrap().frames, 1);
        // The same with actions that do not mark at all.
        let mut unmarked = image(&snapshot).unwrap();
        let actions = GROUP + offset_of!(contract::exitmark_group, actions);
        unmarked[actions + Rule::ExitProtocol as usize] = 0;
        rig.kernel.publish_image(&unmarked).unwrap();
        assert_eq!(found(&mut rig, &mut auditor), [Mismatch::Mark]);
    });
}

/// A capture of every frame makes a bounded number of samples per read. Further ones are counted as
/// lost, and their frames are forwarded as usual.
#[test]
fn samples_per_read_are_bounded() {
    const MOST: usize = contract::SAMPLES_A_LOOK as usize;
    in_namespace(|| {
        let table = &tables()[0];
        let (rig, _) = Rig::sampling(table);
        let mut samples = rig.kernel.samples().unwrap();
        let case = &table.cases[0];
        pin_to([nix::sched::sched_getcpu().unwrap()]).unwrap();
        for number in 1..=3 {
            look(&rig.links, number);
            let mut sampled = 0;
            for _ in 0..MOST + 100 {
                let ran = rig.kernel.run(Role::Host, &case.before).unwrap();
                assert!(ran.frame == case.after);
                // Read often, so that the ring buffer always has room.
                sampled += samples.take(10).count();
            }
            assert_eq!(sampled, MOST, "look {number}");
            assert_eq!(samples.lost(), 100 * number as u64);
        }
    });
}

/// Without a reader, samples that do not fit are lost and counted; frames are forwarded as usual.
#[test]
fn samples_without_a_reader_are_lost_and_counted() {
    in_namespace(|| {
        let table = &tables()[0];
        let (rig, _) = Rig::sampling(table);
        let case = table.cases.iter().find(|case| case.before.len() > 60);
        let case = case.unwrap();
        for _ in 0..4_000 {
            let ran = rig.kernel.run(Role::Host, &case.before).unwrap();
            assert!(ran.frame == case.after);
        }
        let lost = rig.kernel.counts().unwrap().samples_lost;
        let mut samples = rig.kernel.samples().unwrap();
        assert_eq!(samples.lost(), lost);
        let kept = samples.take(10_000).count() as u64;
        assert_eq!((lost > 0, kept > 1_000, kept + lost), (true, true, 4_000));
    });
}
