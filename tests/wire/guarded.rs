//! Whether worker or kernel decides while a worker is alive, stopped, behind, and recovered.

use crate::craft::{AF11, exit};
use crate::rig::{Config, PATIENCE, Rig, Side, eventually, moved, needs_root};
use exitmark_lab::site::Plan;
use exitmark_lab::{Capture, LabError, RawPort};
use nix::sys::signal::Signal;

fn guarded(more: &'static str) -> Rig {
    let config = Config {
        top: "engine = \"af_xdp\"",
        more,
        ..Config::default()
    };
    Rig::silent(Plan::default(), &config)
}

/// The frames decided by user space, and those that the kernel took over.
fn decided(rig: &Rig) -> (u64, u64) {
    let counters = rig.running.counters().unwrap();
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    (count("af_xdp_decided"), count("host_spilled"))
}

/// Sends an exit frame, which arrives marked with either engine.
fn cross(port: &RawPort, uplink: &mut Capture, number: usize) {
    port.send(&exit(0, 60).outbound(&[])).unwrap();
    assert!(
        uplink.wait_until(PATIENCE, |seen| seen.len() == number),
        "frame {number}"
    );
}

/// Sends frames until a worker has counted one.
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
    let deadline = std::time::Instant::now() + PATIENCE;
    while !uplink.wait_until(std::time::Duration::from_millis(1), |seen| {
        seen.len() >= waiting + 50
    }) {
        assert!(
            std::time::Instant::now() < deadline,
            "no takeover by the kernel"
        );
        port.send(&exit(0, 60).outbound(&[])).unwrap();
        sent += 1;
    }
    // A frame per millisecond: far fewer than the backlog watermark.
    let stuck = sent - waiting - 50;
    assert!(stuck < 500, "{stuck} frames waited for a stopped worker");
    rig.running.signal(Signal::SIGCONT).unwrap();
    assert!(
        uplink.wait_until(PATIENCE, |seen| seen.len() == sent),
        "the waiting frames arrive"
    );
    // On a busy machine the worker may have decided a few of them before it stopped.
    assert!(decided(&rig).1 > 0, "the kernel took over");
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
    // More than the backlog watermark: completed frames must lower the backlog.
    const FRAMES: usize = 3000;
    for number in 1..=FRAMES {
        cross(&port, &mut uplink, number);
    }
    let (by_worker, _) = decided(&rig);
    // If other load delays the worker, the kernel takes over for a moment.
    assert!(by_worker > FRAMES as u64 / 2, "{by_worker}");
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_worker_that_was_behind_gets_its_frames_back() {
    needs_root!();
    // Rings this small are full on the slightest delay of the worker.
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
    // The capture may miss frames at this rate; count later ones with a new capture.
    drop(uplink);
    uplink = rig.watch(Side::Clearnet);
    sent = 0;
    worker_is_back(&rig, &port, &mut uplink, &mut sent);
    moved(&rig.running.stop().unwrap());
}

#[test]
fn without_spill_the_kernel_does_not_replace_a_slow_worker() {
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
fn inbound_frames_stay_in_the_kernel_by_default() {
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
            exitmark_lab::site::HOST_MAC,
            exitmark_lab::site::CLEARNET_MAC,
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
