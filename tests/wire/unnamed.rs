//! A port that accepts connections and that no listener names.

use crate::craft::{Packet, TCP, families, segment};
use crate::rig::{Config, PATIENCE, Rig, Side, both_engines, eventually, moved, needs_root};
use exitmark::control::{Client, DEFAULT_SOCKET};
use exitmark::lab::LabError;
use exitmark::lab::site::Plan;

/// Where a TCP header has its control bits, and SYN with ACK.
const CONTROL: usize = 13;
const SYN_ACK: u8 = 0x12;

#[test]
fn a_listener_that_is_not_named_is_a_warning() {
    needs_root!();
    both_engines(|| {
        let config = Config {
            host: "listeners = [22]",
            ..Config::default()
        };
        let rig = Rig::silent(Plan::default(), &config);
        let mut eye = rig.watch(Side::Clearnet);
        let (host, server, _) = families()[0];
        for port in [22, 8080] {
            let mut bytes = segment(port, 50_000, 20);
            bytes[CONTROL] = SYN_ACK;
            let frame = Packet::new(host, server, TCP, bytes).outbound(&[]);
            rig.port(Side::Host).send(&frame).unwrap();
            let arrived =
                eye.wait_until(PATIENCE, |seen| seen.iter().any(|one| one.bytes == frame));
            assert!(arrived, "from port {port}");
        }
        let warning = eventually("a warning", || {
            let client = || Client::new(DEFAULT_SOCKET).status().unwrap();
            let warnings = rig.site.middle.run(client).warnings;
            let found = warnings.iter().find(|one| one.kind == "unnamed_listener");
            found.cloned().ok_or(LabError(format!("{warnings:?}")))
        });
        assert!(!warning.is_alarm);
        assert!(warning.text.contains("host.listeners"), "{}", warning.text);
        let last = rig.running.stop().unwrap();
        assert_eq!(last.counters.get("reply"), Some(&2));
        assert_eq!(last.counters.get("unnamed_listener"), Some(&1));
        moved(&last);
    });
}
