//! Whether worker or kernel decides while a worker is alive, stopped, behind, and recovered.

use crate::craft::{ethernet, exit};
use crate::rig::{Case, Config, Rig, Side, count, needs_root, passes, timeout, wait_until};
use exitmark_lab::site::{CLEARNET_MAC, HOST_MAC, Plan};
use exitmark_lab::{Capture, RawPort};
use nix::sys::signal::Signal;
use std::time::Duration;

/// A box with these lines of `[datapath]`.
fn guarded(datapath: &str) -> Rig {
    let config = Config::default().engine("af_xdp").datapath(datapath);
    Rig::silent(Plan::default(), &config)
}

/// The frames decided by user space, and those that the kernel took over.
fn decided(rig: &Rig) -> (u64, u64) {
    let counters = rig.running.counters().unwrap();
    let [by_worker, spilled] = ["af_xdp_decided", "host_spilled"];
    (count(&counters, by_worker), count(&counters, spilled))
}

/// Sends an exit frame, which arrives marked with either engine.
fn forward_one(port: &RawPort, uplink: &mut Capture, number: usize) {
    port.send(&exit(0, 60).outbound(&[])).unwrap();
    let arrived = uplink.wait_until(timeout(), |captured| captured.len() == number);
    assert!(arrived, "frame {number}");
}

/// Sends frames until a worker has counted one.
fn worker_is_back(rig: &Rig, port: &RawPort, uplink: &mut Capture, sent: &mut usize) {
    let is_back = || {
        let (before, _) = decided(rig);
        *sent += 1;
        forward_one(port, uplink, *sent);
        decided(rig).0 > before
    };
    let state = || "the kernel still does";
    wait_until("user space decides again", is_back, state);
}

#[test]
fn the_kernel_replaces_a_stopped_worker_until_it_continues() {
    needs_root!();
    let rig = guarded("");
    let mut uplink = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    let mut sent = 0;
    worker_is_back(&rig, &port, &mut uplink, &mut sent);

    rig.running.signal(Signal::SIGSTOP).unwrap();
    let waiting = sent;
    // The first ones wait for the stopped worker until it counts as hung; the others are forwarded.
    let takes_over = || {
        port.send(&exit(0, 60).outbound(&[])).unwrap();
        sent += 1;
        uplink.wait_until(Duration::from_millis(1), |captured| {
            captured.len() >= waiting + 50
        })
    };
    wait_until("the kernel takes over", takes_over, || "it does not");
    // A frame per millisecond: far fewer than the backlog watermark.
    let stuck = sent - waiting - 50;
    assert!(stuck < 500, "{stuck} frames waited for a stopped worker");
    rig.running.signal(Signal::SIGCONT).unwrap();
    let arrived = uplink.wait_until(timeout(), |captured| captured.len() == sent);
    assert!(arrived, "the waiting frames arrive");
    // On a busy machine the worker may have decided a few of them before it stopped.
    assert!(decided(&rig).1 > 0, "the kernel took over");
    worker_is_back(&rig, &port, &mut uplink, &mut sent);
    rig.stop();
    let marked = exit(0, 60).marked();
    let captured = uplink.finish().unwrap();
    assert!(captured.iter().all(|frame| frame.bytes == marked));
    assert_eq!(captured.len(), sent);
}

#[test]
fn a_worker_that_keeps_up_gets_its_frames() {
    needs_root!();
    let rig = guarded("");
    let mut uplink = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    // More than the backlog watermark: completed frames must lower the backlog.
    const FRAMES: usize = 3000;
    for number in 1..=FRAMES {
        forward_one(&port, &mut uplink, number);
    }
    let (by_worker, _) = decided(&rig);
    // If other load delays the worker, the kernel takes over for a moment.
    assert!(by_worker > FRAMES as u64 / 2, "{by_worker}");
    rig.stop();
}

#[test]
fn a_worker_that_was_behind_gets_its_frames_back() {
    needs_root!();
    // Rings this small are full on the slightest delay of the worker.
    let rig = guarded("ring = 64\nbatch = 1");
    let mut uplink = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    let mut sent = 0;
    let frame = exit(0, 60).outbound(&[]);
    let is_behind = || {
        for _ in 0..2000 {
            port.send(&frame).unwrap();
            sent += 1;
        }
        decided(&rig).1 > 0
    };
    wait_until("the worker falls behind", is_behind, || "it keeps up");
    rig.counts("host_received", sent as u64);
    // The capture may miss frames at this rate; count later ones with a new capture.
    drop(uplink);
    uplink = rig.watch(Side::Clearnet);
    sent = 0;
    worker_is_back(&rig, &port, &mut uplink, &mut sent);
    rig.stop();
}

#[test]
fn without_spill_the_kernel_does_not_replace_a_slow_worker() {
    needs_root!();
    let rig = guarded("ring = 64\nbatch = 1\nspill = false");
    let port = rig.port(Side::Host);
    let frame = exit(0, 60).outbound(&[]);
    for _ in 0..2000 {
        port.send(&frame).unwrap();
    }
    rig.wait_for("all of them decided or missed", |counters| {
        count(counters, "host_received") + count(counters, "host_missed") == 2000
    });
    rig.stop();
}

#[test]
fn inbound_frames_stay_in_the_kernel_by_default() {
    needs_root!();
    for (more, in_kernel) in [
        ("", true),
        ("inbound = \"xdp\"", true),
        ("inbound = \"af_xdp\"", false),
    ] {
        let rig = guarded(more);
        let frame = ethernet(HOST_MAC, CLEARNET_MAC, &[], 0x88b5, &[7; 60]);
        passes(&rig.site, &Case::untouched(more, Side::Clearnet, frame));
        let counters = rig.running.stop().unwrap().counters;
        let decided = ["xdp", "af_xdp"].map(|by| counters[&format!("{by}_decided")] == 1);
        assert_eq!(decided, [in_kernel, !in_kernel], "{more}: {counters:?}");
    }
}
