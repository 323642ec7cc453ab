//! The real binary audits itself: with enough frames for samples in every direction, none of which
//! differs from the policy.

use crate::craft::{Packet, UDP, answer, exit, families, noise, relay, relay_answer};
use crate::rig::{Config, Rig, Side, both_engines};
use exitmark_lab::site::Plan;

/// The number of frames of each kind, enough for a few samples of all.
const ROUNDS: usize = 60_000;
/// The least number of samples, fewer than one in 4096: every CPU and direction counts separately.
const LEAST: u64 = 8;

#[test]
fn sampled_frames_are_as_the_policy_says() {
    both_engines(|| {
        // Without spilling, the worker gets all its frames even on a slow machine.
        let config = Config::default().datapath("spill = false");
        let rig = Rig::silent(Plan::default(), &config);
        let engine = match rig.running.ready.contains("engine=af_xdp") {
            true => "engine=\"af_xdp\"",
            false => "engine=\"xdp\"",
        };
        let [host, clearnet, tornet, _] = Side::ALL.map(|side| rig.port(side));
        let mut outbound = Vec::new();
        for family in [0, 1] {
            let (own, server, _) = families()[family];
            let datagram = Packet::new(own, server, UDP, noise(1, 60)).tos(0x28);
            let packets = [exit(family, 70), relay(family, 70), datagram];
            outbound.extend(packets.map(|packet| packet.outbound(&[])));
        }
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
        let measured = "latency of sampled frames: p50";
        let of_engine = |line: &str| line.contains(measured) && line.contains(engine);
        assert!(last.log.lines().any(of_engine), "{}", last.log);
    });
}
