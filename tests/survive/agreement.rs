//! After three million frames, `status`, the metrics and the wire agree to the frame and to the
//! byte.

use crate::alone;
use crate::expect::Event;
use crate::flows::{FRAME_BYTES, OUTBOUND, Sink, flows};
use crate::sets::Sets;
use crate::sinks::{self, Sinks};
use crate::stage::{EXITMARK, configure, site_with_sinks};
use exitmark_lab::site::FAR_END;
use exitmark_lab::{needs_root, timeout};
use std::collections::BTreeMap;
use std::time::Instant;

const FRAMES: u64 = 3_000_000;
/// Frames sent at a time: a number in transit that cables and rings can hold.
const AT_ONCE: u32 = 1 << 16;

/// Every sample of the metrics, by its name and labels as written.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, number)| (name.to_owned(), number.parse().unwrap()))
        .collect()
}

#[track_caller]
fn assert_served(samples: &BTreeMap<String, f64>, parts: &[&str], expected: u64) {
    let is_it = |name: &str| parts.iter().all(|part| name.contains(part));
    let found: Vec<_> = samples.iter().filter(|(name, _)| is_it(name)).collect();
    // Below 2^53 both types are exact.
    #[allow(clippy::cast_precision_loss, reason = "so few are exact")]
    let expected = expected as f64;
    match found.as_slice() {
        [(_, number)] => assert_eq!(**number, expected, "{parts:?}"),
        several => panic!("{parts:?} is not one sample: {several:?}"),
    }
}

/// The number of received frames of each class, from the test's flows.
fn by_class(sinks: &Sinks) -> BTreeMap<&'static str, u64> {
    let mut classes = BTreeMap::new();
    let arrived = sinks.arrived().unwrap();
    for (flow, arrived) in flows().iter().zip(arrived).take(OUTBOUND as usize) {
        *classes.entry(flow.class).or_default() += arrived;
    }
    classes
}

#[test]
fn status_metrics_and_the_wire_agree_to_the_frame() {
    needs_root!();
    let _alone = alone();
    let program = sinks::compile().unwrap();
    let sets = Sets::invent();
    for engine in ["xdp", "af_xdp"] {
        let (site, sinks) = site_with_sinks(&program).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let configuration = configure(directory.path(), engine, &sets, Event::Nothing).unwrap();
        let running = site.run(EXITMARK, &configuration).unwrap();
        sinks.aim(&site.host, FAR_END).unwrap();
        let before = site.dropped().unwrap();
        let mut lost = 0;
        while sinks.generated().unwrap() < FRAMES {
            let generator = sinks.clone();
            let made = site.host.run(move || generator.generate(AT_ONCE));
            made.unwrap();
            let sent = sinks.generated().unwrap();
            // All but the known losses.
            let is_all = |arrived| Ok(arrived + lost >= sent);
            lost = sent - sinks.settle(is_all).unwrap();
        }
        // Frames dropped by a full cable are not the box's losses; its neighbours' counters show
        // them.
        let full = site.dropped().unwrap().since(&before);
        let sent = sinks.generated().unwrap() - full.before_box;

        // A worker publishes its counters at the end of its turn, possibly after the frame has
        // arrived.
        let begin = Instant::now();
        let report = loop {
            let report = site.status().unwrap();
            let is_all = report.ports[0].received_frames == sent;
            if is_all || begin.elapsed() > timeout() {
                break report;
            }
        };
        let metrics = samples(&site.metrics().unwrap());

        let port = |role: &str| report.ports.iter().find(|port| port.role == role).unwrap();
        let bytes = FRAME_BYTES as u64;
        assert_eq!(port("host").received_frames, sent, "{engine}");
        assert_eq!(port("host").received_bytes, sent * bytes);
        let mut not_sent = 0;
        for (role, sink) in [("uplink", Sink::Uplink), ("incoming", Sink::Incoming)] {
            let tally = sinks.tally(sink).unwrap();
            assert_eq!(tally.mismarked + tally.missteered + tally.duplicated, 0);
            let forwarded = port(role).forwarded_frames;
            not_sent += forwarded - tally.arrived;
            let role = format!("port=\"{role}\"");
            let parts = ["exitmark_port_forwarded_frames_total", &role];
            assert_served(&metrics, &parts, forwarded);
        }
        let dropped: u64 = report.drops.iter().map(|drop| drop.frames).sum();
        // Of the drops behind the box, the box counts redirected frames; those sent by a socket are
        // only in the NIC's counter.
        let beyond = not_sent..=not_sent + dropped;
        assert!(beyond.contains(&full.behind_box), "{engine}: {full:?}");
        let host = ["exitmark_port_received_frames_total", "port=\"host\""];
        assert_served(&metrics, &host, sent);
        let wire = by_class(&sinks);
        let mut not_on_wire = 0;
        for class in &report.classes {
            let on_wire = wire.get(class.class.as_str()).copied().unwrap_or(0);
            not_on_wire += class.frames - on_wire;
            let (name, class_bytes) = (&class.class, class.frames * bytes);
            assert_eq!(class.bytes, class_bytes, "{engine} {name}");
            let label = format!("class=\"{}\"", class.class);
            for (name, count) in [("frames", class.frames), ("bytes", class.bytes)] {
                let name = format!("exitmark_class_{name}_total");
                assert_served(&metrics, &[&name, &label], count);
            }
        }
        // Nearly always 0: each class is then exactly what the wire received.
        assert_eq!(not_on_wire, not_sent + dropped, "{engine}");
        assert_eq!(lost, full.before_box + not_on_wire, "{engine}");
        assert_eq!(report.unaccounted_frames, 0);
        let mismatches: u64 = report.audit.mismatches.iter().map(|one| one.frames).sum();
        assert_eq!(mismatches, 0, "{:?}", report.audit);
        println!(
            "{engine}: {sent} frames, {} by xdp, {} by af_xdp; not on the wire, by the counters: \
             {not_on_wire}; held against the policy: {}",
            report.engine.xdp_frames, report.engine.af_xdp_frames, report.audit.checked
        );
        running.stop_well().unwrap();
    }
}
