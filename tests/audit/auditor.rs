//! The auditor must find each fault that is planted in samples, as its kind, and no other.

use crate::rig::{Ground, NOON, beginning, ground, on};
use exitmark_box::audit::{Auditor, Mismatch, Sampler};
use exitmark_datapath::{DropReason, Excerpt, Links, Outcome, Role, Sample};
use exitmark_lab::cases::{HOST4, HOST6, RELAY4, WEB4, WEB6, tables};
use exitmark_lab::frames::{FROM, TO, tcp, udp};
use exitmark_policy::Rule;
use exitmark_policy::packet::{Dscp, MacAddr, Version, set_dscp};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 1]);
/// Offsets in an untagged IPv4 frame.
const IP: usize = 14;
const TOS: usize = IP + 1;
const TTL: usize = IP + 8;

fn auditor(ground: &Ground, links: &Arc<Links>) -> Auditor {
    let mut auditor = Auditor::new(Arc::clone(links));
    auditor.follow(Arc::clone(&ground.snapshot));
    auditor
}

/// A change to the frame on departure, or to the recorded decision.
type Plant = fn(&mut Sample);

fn change(sample: &mut Sample, how: impl Fn(&mut [u8])) {
    let mut after = sample.after.to_vec();
    how(&mut after);
    sample.after = Excerpt::of(&after);
}

#[test]
fn audit_finds_no_fault_in_any_case_of_the_tables() {
    let mut skipped = 0;
    for table in tables() {
        let ground = on(table);
        let links = Arc::new(ground.links());
        let cases = &ground.table.cases;
        let frames = cases.iter().map(|case| (Role::Host, case.before.clone()));
        let frames: Vec<_> = frames.collect();
        let sampled = ground.by_worker(&links, &frames);
        let mut auditor = auditor(&ground, &links);
        for (sample, case) in sampled.iter().zip(cases) {
            assert!(*sample.before == *beginning(&case.before), "{}", case.name);
            assert!(*sample.after == *beginning(&case.after), "{}", case.name);
            assert_eq!(sample.outcome, Outcome::Forward(case.egress));
            assert_eq!(sample.rule.unwrap().class(), case.class, "{}", case.name);
            assert_eq!(auditor.check(sample), [], "{}", case.name);
        }
        skipped += auditor.skipped();
        let checked = auditor.report().checked;
        assert_eq!(checked + auditor.skipped(), cases.len() as u64);
    }
    // Later fragments, in two tables.
    assert!((1..30).contains(&skipped), "{skipped}");
}

/// One sample of each kind that the plants below change.
fn samples() -> (Ground, Arc<Links>, Vec<Sample>) {
    let ground = ground();
    let links = Arc::new(ground.links());
    let frames = [
        (Role::Host, tcp(HOST4, WEB4).tos(1).payload(300).build()),
        (Role::Host, tcp(HOST4, RELAY4).build()),
        (Role::Host, udp(HOST6, WEB6).build()),
        (Role::Uplink, tcp(WEB4, HOST4).macs(FROM, TO).build()),
        (Role::Incoming, tcp(RELAY4, HOST4).macs(OWN, TO).build()),
        (Role::Incoming, tcp(RELAY4, HOST4).macs(TO, FROM).build()),
    ];
    let sampled = ground.by_worker(&links, &frames);
    (ground, links, sampled)
}

const EXIT: usize = 0;
const RELAY: usize = 1;
const HOST: usize = 2;
const WIRE_BACK: usize = 3;
const DELIVERED: usize = 4;
const STACK: usize = 5;

/// Marks the frame, whose IP header has this version.
fn mark(sample: &mut Sample, version: Version, dscp: Dscp) {
    change(sample, |frame| set_dscp(frame, IP, version, dscp));
}

/// Changes these bits of a byte of the frame.
fn flip(sample: &mut Sample, at: usize, bits: u8) {
    change(sample, |frame| frame[at] ^= bits);
}

#[test]
fn finds_planted_faults_by_kind() {
    use Mismatch::{Bytes, Class, Egress, Mac, Mark};
    #[rustfmt::skip]
    let plants: [(&str, usize, Plant, &[Mismatch]); 27] = [
        ("nothing", EXIT, |_| (), &[]),
        ("nothing", RELAY, |_| (), &[]),
        ("nothing", HOST, |_| (), &[]),
        ("nothing", WIRE_BACK, |_| (), &[]),
        ("nothing", DELIVERED, |_| (), &[]),
        ("nothing", STACK, |_| (), &[]),
        ("no mark", EXIT, |it| it.after = it.before, &[Mark]),
        ("another mark", EXIT, |it| mark(it, Version::V4, Dscp::new(46).unwrap()), &[Mark]),
        ("a bit of the DSCP, and a wrong checksum", EXIT, |it| flip(it, TOS, 0x80), &[Mark, Bytes]),
        ("a mark on a frame of the host's", HOST, |it| mark(it, Version::V6, Dscp::AF11), &[Mark]),
        ("a mark on incoming", RELAY, |it| mark(it, Version::V4, Dscp::AF11), &[Mark]),
        (
            "a mark on the way back", WIRE_BACK, |it| mark(it, Version::V4, Dscp::AF11),
            &[Mark, Bytes],
        ),
        ("ECN", EXIT, |it| flip(it, TOS, 1), &[Bytes]),
        ("time to live", EXIT, |it| change(it, |frame| frame[TTL] -= 1), &[Bytes]),
        ("a payload byte", EXIT, |it| flip(it, 150, 4), &[Bytes]),
        ("a payload byte", RELAY, |it| flip(it, 60, 4), &[Bytes]),
        ("a payload byte", WIRE_BACK, |it| flip(it, 60, 4), &[Bytes]),
        ("its end", HOST, |it| it.after = Excerpt::of(&it.before[..70]), &[Bytes]),
        ("exit by incoming", EXIT, |it| it.outcome = Outcome::Forward(Role::Incoming), &[Egress]),
        ("relay by uplink", RELAY, |it| it.outcome = Outcome::Forward(Role::Uplink), &[Egress]),
        (
            "relay dropped, though it could be steered", RELAY,
            |it| it.outcome = Outcome::Drop(DropReason::SteerUnavailable), &[Egress],
        ),
        ("to the stack", HOST, |it| it.outcome = Outcome::Stack, &[Egress]),
        ("across", STACK, |it| it.outcome = Outcome::Forward(Role::Host), &[Egress]),
        ("another next hop", RELAY, |it| flip(it, 5, 8), &[Mac]),
        ("another source", RELAY, |it| flip(it, 8, 8), &[Mac]),
        ("another host", DELIVERED, |it| flip(it, 3, 8), &[Mac]),
        ("a MAC address on the wire", EXIT, |it| flip(it, 9, 8), &[Mac]),
    ];
    let (ground, links, sampled) = samples();
    for (what, which, plant, expected) in plants {
        let mut auditor = auditor(&ground, &links);
        let mut sample = sampled[which];
        plant(&mut sample);
        assert_eq!(auditor.check(&sample), expected, "{what}: {sample:?}");
        let report = auditor.report();
        assert_eq!(report.checked, 1, "{what}");
        for count in report.mismatches {
            let is_found = expected.iter().any(|fault| fault.name() == count.kind);
            assert_eq!(count.frames, u64::from(is_found), "{what}: {}", count.kind);
        }
    }
    // Counted as another class; the frame may or may not be right for that class.
    let mut auditor = auditor(&ground, &links);
    let mut sample = sampled[HOST];
    sample.rule = Some(Rule::ToExemptPrefix);
    assert_eq!(auditor.check(&sample), [Class]);
    sample.rule = Some(Rule::ExitProtocol);
    assert_eq!(auditor.check(&sample), [Class, Mark]);
}

#[test]
fn skips_frames_that_cannot_be_judged_alone() {
    let (ground, links, sampled) = samples();
    let mut auditor = auditor(&ground, &links);
    let mut unknown = sampled[EXIT];
    unknown.generation = 77;
    let mut cut = sampled[EXIT];
    cut.before = Excerpt::of(&cut.before[..30]);
    let later = tcp(HOST4, WEB4).fragment(7, 100, false).build();
    let later = ground.by_worker(&links, &[(Role::Host, later)]);
    for sample in [unknown, cut, later[0]] {
        assert_eq!(auditor.check(&sample), []);
    }
    assert_eq!((auditor.report().checked, auditor.skipped()), (0, 3));
}

#[test]
fn frames_the_kernel_did_not_parse_must_not_carry_the_mark() {
    let (ground, links, sampled) = samples();
    let mut auditor = auditor(&ground, &links);
    let mut slow = sampled[EXIT];
    slow.rule = Some(Rule::NoUserSpace);
    assert_eq!(auditor.check(&slow), [Mismatch::Mark]);
    slow.after = slow.before;
    assert_eq!(auditor.check(&slow), []);
    slow.outcome = Outcome::Forward(Role::Incoming);
    assert_eq!(auditor.check(&slow), [Mismatch::Egress]);
}

/// The previous next hop is accepted for a while, but not for long.
#[test]
fn previous_next_hops_are_accepted_for_a_while() {
    let (ground, links, sampled) = samples();
    let mut auditor = auditor(&ground, &links);
    let other = MacAddr::new([2, 0, 0, 0, 3, 9]);
    let mut sent_there = sampled[RELAY];
    let to_other = |frame: &mut [u8]| frame[..6].copy_from_slice(&other.bytes());
    change(&mut sent_there, to_other);
    assert_eq!(auditor.check(&sent_there), [Mismatch::Mac]);
    auditor.expect_next_hop(0, Some(other), Duration::from_secs(1));
    assert_eq!(auditor.check(&sent_there), []);
    links.steer_to(0, Some(other));
    auditor.look(Duration::from_secs(2));
    assert_eq!(auditor.check(&sampled[RELAY]), []);
    auditor.look(Duration::from_secs(30));
    assert_eq!(auditor.check(&sent_there), []);
    assert_eq!(auditor.check(&sampled[RELAY]), [Mismatch::Mac]);
    // Without a next hop the frame may leave by the uplink, unchanged.
    let mut spared = sampled[RELAY];
    spared.outcome = Outcome::Forward(Role::Uplink);
    spared.after = spared.before;
    assert_eq!(auditor.check(&spared), [Mismatch::Egress]);
    links.steer_to(0, None);
    auditor.look(Duration::from_secs(31));
    assert_eq!(auditor.check(&spared), []);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn alarms_once_a_minute_without_an_address() {
    let (ground, links, sampled) = samples();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut auditor = auditor(&ground, &links);
        let mut sample = sampled[EXIT];
        sample.after = sample.before;
        for seconds in [0, 1, 59, 61] {
            sample.arrived = NOON + Duration::from_secs(seconds);
            assert_eq!(auditor.check(&sample), [Mismatch::Mark]);
        }
    });
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.lines().count(), 2, "{log}");
    let words = "ERROR ALARM kind=\"mark\" class=\"exit\" engine=\"af_xdp\" generation=1";
    for word in words.split(' ') {
        assert!(log.contains(word), "{word}: {log}");
    }
    for address in ["198.51.100.7", "192.0.2"] {
        assert!(!log.contains(address), "{log}");
    }
}

#[test]
fn a_sampler_counts_samples_and_latencies() {
    let (ground, links, sampled) = samples();
    let mut sampler = Sampler::new(Arc::clone(&links), Arc::clone(&ground.snapshot), 64);
    assert_eq!(links.one_in(), 64);
    sampler.look(NOON);
    for sample in &sampled {
        sampler.add(sample);
    }
    sampler.tick(NOON, 3);
    let report = sampler.audit();
    assert_eq!((report.one_in, report.checked, report.lost), (64, 6, 3));
    assert!(report.mismatches.iter().all(|count| count.frames == 0));
    // A worker's samples contain no latency.
    let times = sampler.latencies();
    assert_eq!([times[0].samples, times[1].samples], [0, 0]);
    sampler.end();
    assert_eq!(links.one_in(), 0);
}
