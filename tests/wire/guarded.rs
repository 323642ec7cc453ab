//! Who decides when a worker is alive, stopped, behind, and well again.

use crate::craft::{AF11, exit};
use crate::rig::{Config, PATIENCE, Rig, Side, eventually, moved, needs_root};
use exitmark::lab::site::Plan;
use exitmark::lab::{Capture, LabError, RawPort};
use nix::sys::signal::Signal;

fn guarded(more: &'static str) -> Rig {
    let config = Config {
        top: "engine = \"af_xdp\"",
        more,
        ..Config::default()
    };
    Rig::silent(Plan::default(), &config)
}

/// Frames that user space decided, and frames that the kernel took on.
fn decided(rig: &Rig) -> (u64, u64) {
    let counters = rig.running.counters().unwrap();
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    (count("af_xdp_decided"), count("host_spilled"))
}

/// One exit frame, which arrives marked, whoever decides it.
fn cross(port: &RawPort, uplink: &mut Capture, number: usize) {
    port.send(&exit(0, 60).outbound(&[])).unwrap();
    assert!(
        uplink.wait_until(PATIENCE, |seen| seen.len() == number),
        "frame {number}"
    );
}

/// Waits until a worker decides, which shows when a frame is counted by it.
fn worker_is_back(rig: &Rig, port: &RawPort, uplink: &mut Capture, sent: &mut usize) {
    eventually("user space decides again", || {
        let (before, _) = decided(rig);
        *sent += 1;
        cross(port, uplink, *sent);
        match decided(rig).0 > before {
            true => Ok(()),
            false => Err(LabError("the kernel still does".to_owned())),
        }
    });
}

#[test]
fn a_stopped_worker_is_stood_in_for_and_gets_its_frames_back() {
    needs_root!();
    let rig = guarded("");
    let mut uplink = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    let mut sent = 0;
    worker_is_back(&rig, &port, &mut uplink, &mut sent);

    rig.running.signal(Signal::SIGSTOP).unwrap();
    let waiting = sent;
    // The first ones wait for the stopped worker, until it counts as hung; the others cross.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !uplink.wait_until(std::time::Duration::from_millis(1), |seen| {
        seen.len() >= waiting + 50
    }) {
        assert!(std::time::Instant::now() < deadline, "nobody stands in");
        port.send(&exit(0, 60).outbound(&[])).unwrap();
        sent += 1;
    }
    // A frame a millisecond: far fewer than would use the credit up.
    let stuck = sent - waiting - 50;
    assert!(stuck < 500, "{stuck} frames waited for a stopped worker");
    rig.running.signal(Signal::SIGCONT).unwrap();
    assert!(
        uplink.wait_until(PATIENCE, |seen| seen.len() == sent),
        "what waited arrives"
    );
    // On a busy machine the worker may have had a few of them before it stopped.
    assert!(decided(&rig).1 > 0, "the kernel stood in");
    worker_is_back(&rig, &port, &mut uplink, &mut sent);
    moved(&rig.running.stop().unwrap());
    let marked = exit(0, 60).tos(AF11).outbound(&[]);
    let seen = uplink.finish().unwrap();
    assert!(seen.iter().all(|frame| frame.bytes == marked));
    assert_eq!(seen.len(), sent);
}

#[test]
fn a_worker_that_keeps_up_gets_its_frames() {
    needs_root!();
    let rig = guarded("");
    let mut uplink = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    // More than the credit: a frame that is done must give it back.
    const FRAMES: usize = 3000;
    for number in 1..=FRAMES {
        cross(&port, &mut uplink, number);
    }
    let (by_worker, _) = decided(&rig);
    // Where other work holds the worker up, the kernel stands in for a moment.
    assert!(by_worker > FRAMES as u64 / 2, "{by_worker}");
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_worker_that_was_behind_gets_its_frames_back() {
    needs_root!();
    // Rings this small are full as soon as the worker is late at all.
    let rig = guarded("[datapath]\nring = 64\nbatch = 1");
    let mut uplink = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    let mut sent = 0;
    let frame = exit(0, 60).outbound(&[]);
    eventually("the worker falls behind", || {
        for _ in 0..2000 {
            port.send(&frame).unwrap();
            sent += 1;
        }
        match decided(&rig).1 > 0 {
            true => Ok(()),
            false => Err(LabError("it keeps up".to_owned())),
        }
    });
    rig.wait_for("all of them decided", |counters| {
        counters.get("host_received").copied() == Some(sent as u64)
    });
    // A pcap may miss some at this rate; those that follow are counted from here.
    drop(uplink);
    uplink = rig.watch(Side::Clearnet);
    sent = 0;
    worker_is_back(&rig, &port, &mut uplink, &mut sent);
    moved(&rig.running.stop().unwrap());
}

#[test]
fn without_spill_a_worker_that_is_behind_is_left_alone() {
    needs_root!();
    let rig = guarded("[datapath]\nring = 64\nbatch = 1\nspill = false");
    let port = rig.port(Side::Host);
    let frame = exit(0, 60).outbound(&[]);
    for _ in 0..2000 {
        port.send(&frame).unwrap();
    }
    rig.wait_for("all of them decided or missed", |counters| {
        let count = |name: &str| counters.get(name).copied().unwrap_or(0);
        count("host_received") + count("host_missed") == 2000
    });
    moved(&rig.running.stop().unwrap());
}

#[test]
fn inbound_frames_stay_in_the_kernel_unless_asked_for() {
    needs_root!();
    for (more, in_kernel) in [
        ("", true),
        ("[datapath]\ninbound = \"xdp\"", true),
        ("[datapath]\ninbound = \"af_xdp\"", false),
    ] {
        let rig = guarded(more);
        let mut host = rig.watch(Side::Host);
        let port = rig.port(Side::Clearnet);
        let frame = crate::craft::ethernet(
            exitmark::lab::site::HOST_MAC,
            exitmark::lab::site::CLEARNET_MAC,
            &[],
            0x88b5,
            &[7; 60],
        );
        port.send(&frame).unwrap();
        assert!(host.wait_until(PATIENCE, |seen| seen.len() == 1 && seen[0].bytes == frame));
        let counters = rig.running.stop().unwrap().counters;
        assert_eq!(
            counters["xdp_decided"] == 1,
            in_kernel,
            "{more}: {counters:?}"
        );
        assert_eq!(counters["af_xdp_decided"] == 1, !in_kernel, "{counters:?}");
    }
}
