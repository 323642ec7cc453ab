//! The real binary audits itself: with enough frames for samples in every direction, none of which
//! differs from the policy.

use crate::craft::{Packet, UDP, answer, exit, families, noise, relay, relay_answer};
use crate::rig::{Config, Rig, Side, both_engines, needs_root};
use exitmark_lab::site::Plan;

/// The number of frames of each kind, enough for a few samples of all.
const ROUNDS: usize = 60_000;
/// The least number of samples, fewer than one in 4096: every CPU and direction counts separately.
const LEAST: u64 = 8;

#[test]
fn sampled_frames_are_as_the_policy_says() {
    needs_root!();
    both_engines(|| {
        // Without spilling, the worker gets all its frames even on a slow machine.
        let rig = Rig::silent(
            Plan::default(),
            &Config::default().datapath("spill = false"),
        );
        let engine = if rig.running.ready.contains("engine=af_xdp") {
            "engine=\"af_xdp\""
        } else {
            "engine=\"xdp\""
        };
        let [host, clearnet, tornet] =
            [Side::Host, Side::Clearnet, Side::Tornet].map(|side| rig.port(side));
        let outbound: Vec<_> = [0, 1]
            .into_iter()
            .flat_map(|family| {
                let (own, server, _) = families()[family];
                let datagram = Packet::new(own, server, UDP, noise(1, 60)).tos(0x28);
                [exit(family, 70), relay(family, 70), datagram]
            })
            .map(|packet| packet.outbound(&[]))
            .collect();
        let back = answer(0, 70).inbound(&[]);
        let delivered = relay_answer(0, 70).incoming(&[]);
        for round in 0..ROUNDS {
            host.send(&outbound[round % outbound.len()]).unwrap();
            if round % 4 == 0 {
                clearnet.send(&back).unwrap();
                tornet.send(&delivered).unwrap();
            }
        }
        rig.wait_for("some samples", |counters| {
            counters.get("audit_checked").is_some_and(|&n| n >= LEAST)
        });
        let last = rig.stop();
        let of = |name: &str| last.counters.get(name).copied();
        assert!(of("audit_checked") >= Some(LEAST), "{:?}", last.counters);
        assert_eq!(of("audit_mismatches"), Some(0), "{}", last.log);
        assert_eq!(of("audit_lost"), Some(0));
        assert!(!last.log.contains("ALARM"), "{}", last.log);
        let measured = "sampled frames were in the box for";
        let mut lines = last.log.lines();
        assert!(
            lines.any(|line| line.contains(measured) && line.contains(engine)),
            "{}",
            last.log
        );
    });
}
