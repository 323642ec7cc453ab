//! Tests of the sinks: every fault increments exactly its counter, and a faultless box none.

use crate::alone;
use crate::flows::{FLOWS, SEQUENCES, Sink, flows, place, sign};
use crate::load::{Load, Rhythm};
use crate::report::Row;
use crate::sinks::{Sinks, Tally, compile};
use crate::stage::{drain, fill, site_with_sinks};
use exitmark_lab::{RawPort, needs_root, wait_until};
use std::time::Duration;

/// Sends crafted frames to a sink, as a box would send them.
struct Bench {
    sinks: Sinks,
    ports: [(Sink, RawPort); 2],
    expected: [Tally; 2],
}

type Counter = fn(&mut Tally) -> &mut u64;
const ARRIVED: Counter = |tally| &mut tally.arrived;
const MISMARKED: Counter = |tally| &mut tally.mismarked;
const MISSTEERED: Counter = |tally| &mut tally.missteered;
const DUPLICATED: Counter = |tally| &mut tally.duplicated;
const REORDERED: Counter = |tally| &mut tally.reordered;
const GARBLED: Counter = |tally| &mut tally.garbled;
const FOREIGN: Counter = |tally| &mut tally.foreign;

impl Bench {
    /// Sends a frame to a sink and waits until these counters have counted it there.
    fn send(&mut self, to: usize, frame: &[u8], counters: &[Counter]) {
        let ((sink, port), expected) = (&self.ports[to], &mut self.expected[to]);
        assert!(port.offer(frame));
        for counter in counters {
            *counter(expected) += 1;
        }
        let tally = || self.sinks.tally(*sink).unwrap();
        let is_counted = || tally() == *expected;
        let state = || format!("{sink:?} has counted {:?}, not {expected:?}", tally());
        wait_until("the frame is counted", is_counted, state);
    }
}

const UPLINK: usize = 0;
const INCOMING: usize = 1;

#[test]
fn the_sinks_detect_every_fault() {
    needs_root!();
    let _alone = alone();
    let (site, sinks) = site_with_sinks(&compile().unwrap()).unwrap();
    let port = |interface| RawPort::open(&site.middle, interface).unwrap();
    let mut bench = Bench {
        ports: [
            (Sink::Uplink, port("uplink0")),
            (Sink::Incoming, port("incoming0")),
        ],
        // The baseline includes frames that the site itself has sent.
        expected: [Sink::Uplink, Sink::Incoming].map(|sink| sinks.tally(sink).unwrap()),
        sinks,
    };
    let flows = flows();
    let of_sink = |sink| (0..).zip(&flows).find(|(_, flow)| flow.sink == sink);
    let first = |sink| of_sink(sink).unwrap();
    let (exit, exit_flow) = first(Sink::Uplink);
    let (relay, relay_flow) = first(Sink::Incoming);
    let frame = |bytes: &[u8], flow, sequence| {
        let mut frame = bytes.to_vec();
        sign(&mut frame, flow, sequence);
        frame
    };
    let exit_frame = |sequence| frame(&exit_flow.after, exit, sequence);
    let relay_frame = |sequence| frame(&relay_flow.after, relay, sequence);

    bench.send(UPLINK, &exit_frame(0), &[ARRIVED]);
    bench.send(INCOMING, &relay_frame(0), &[ARRIVED]);
    // An exit frame without its mark.
    let unmarked = frame(&exit_flow.before, exit, 1);
    bench.send(UPLINK, &unmarked, &[ARRIVED, MISMARKED]);
    // The right mark with the old checksum.
    let mut stale = exit_frame(2);
    stale[24..26].copy_from_slice(&exit_flow.before[24..26]);
    bench.send(UPLINK, &stale, &[ARRIVED, MISMARKED]);
    // A relay frame that left by the uplink, unchanged; and with the new MAC addresses.
    let unchanged = frame(&relay_flow.before, relay, 1);
    bench.send(UPLINK, &unchanged, &[ARRIVED, MISSTEERED]);
    bench.send(UPLINK, &relay_frame(2), &[ARRIVED, MISSTEERED]);
    // A relay frame by the right NIC with the old MAC addresses, and an exit frame there.
    let unchanged = frame(&relay_flow.before, relay, 3);
    bench.send(INCOMING, &unchanged, &[ARRIVED, MISSTEERED]);
    bench.send(INCOMING, &exit_frame(3), &[ARRIVED, MISSTEERED]);
    // A duplicate, at its own sink and at another one.
    bench.send(UPLINK, &exit_frame(0), &[ARRIVED, DUPLICATED]);
    let both = [ARRIVED, DUPLICATED, MISSTEERED];
    bench.send(INCOMING, &exit_frame(0), &both);
    // A reordered frame; the order of other flows is independent.
    bench.send(UPLINK, &exit_frame(70_000), &[ARRIVED]);
    bench.send(UPLINK, &exit_frame(69_999), &[ARRIVED, REORDERED]);
    bench.send(INCOMING, &relay_frame(4), &[ARRIVED]);
    // Invalid flows and sequence numbers, and a foreign frame.
    for (flow, sequence) in [(FLOWS, 0), (exit, SEQUENCES)] {
        let garbled = frame(&exit_flow.after, flow, sequence);
        bench.send(UPLINK, &garbled, &[ARRIVED, GARBLED]);
    }
    bench.send(UPLINK, &exit_flow.after, &[FOREIGN]);
    assert_eq!(bench.sinks.distinct().unwrap(), 11);

    // Of frames 0 to 159 of a load of all flows, two per flow, those of these two flows have
    // arrived (the relay's number 1 at the wrong sink); all others are missing.
    let missing = bench.sinks.missing(160, FLOWS).unwrap();
    assert_eq!(missing.len(), 160 - 4);
    let mut places = missing.iter().map(|&number| place(number, FLOWS));
    assert!(places.all(|(flow, _)| flow != exit && flow != relay));
}

#[test]
fn without_a_fault_in_the_box_the_cables_account_for_every_frame() {
    needs_root!();
    let _alone = alone();
    let program = compile().unwrap();
    for rhythm in [Rhythm::Steady, Rhythm::Bursts, Rhythm::Saturation] {
        let (site, sinks) = site_with_sinks(&program).unwrap();
        sinks.attach_faultless(&site.middle).unwrap();
        let before = site.dropped().unwrap();
        let load = Load::start(&site, &sinks, rhythm).unwrap();
        load.go_on(Duration::from_millis(500)).unwrap();
        let sent = load.finish().unwrap();
        drain(&sinks, &sent).unwrap();
        let dropped = site.dropped().unwrap().since(&before);
        let mut row = Row {
            event: "no box",
            engine: "none",
            load: rhythm.name(),
            ..Row::default()
        };
        fill(&mut row, &sinks, rhythm, &sent, &dropped, None).unwrap();
        println!("{}", row.line());
        assert!(row.sent > 0);
        let wrong = [row.mismarked, row.missteered, row.duplicated, row.garbled];
        assert_eq!(wrong, [0; 4]);
        assert_eq!(row.reordered, 0);
        let by_cables = match rhythm {
            Rhythm::Saturation => row.dropped_before_box + row.dropped_behind_box,
            Rhythm::Steady | Rhythm::Bursts => 0,
        };
        assert_eq!(row.lost, by_cables);
    }
}
