//! A port that accepts connections and is not in `host.listeners`.

use crate::craft::{Packet, TCP, families, segment};
use crate::reload::{REPLACED, Tor, listing};
use crate::rig::{Case, Config, Rig, Side, arrives, both_engines, needs_root};
use exitmark_lab::site::{HOST_V4, Plan};
use exitmark_policy::Endpoint;
use std::fs;
use std::time::Duration;

/// The offset of the control bits in a TCP header, and SYN with ACK.
const CONTROL: usize = 13;
const SYN_ACK: u8 = 0x12;
const PACE: Duration = Duration::from_millis(100);

#[test]
fn an_unnamed_listener_is_a_warning() {
    both_engines(|| {
        let config = Config::default().host("listeners = [22]");
        let rig = Rig::silent(Plan::default(), &config);
        for port in [22, 8080] {
            accept(&rig, port);
        }
        let warning = rig.warning(UNNAMED);
        assert!(!warning.is_alarm);
        assert!(warning.text.contains("host.listeners"), "{}", warning.text);
        let last = rig.stop();
        assert_eq!(last.counters.get("reply"), Some(&2));
        assert_eq!(last.counters.get(UNNAMED), Some(&1));
    });
}

/// Seconds within which a warning would appear: the counters are polled once a second.
const LOOKS: f64 = 3.0;
const ORPORT: u16 = 9001;

/// The name of the warning and of the counter.
const UNNAMED: &str = "unnamed_listener";

/// Sends the host's SYN with ACK from this port.
#[track_caller]
fn accept(rig: &Rig, port: u16) {
    let mut bytes = segment(port, 50_000, 20);
    bytes[CONTROL] = SYN_ACK;
    let (host, server, _) = families()[0];
    let frame = Packet::new(host, server, TCP, bytes).outbound(&[]);
    let what = format!("from port {port}");
    arrives(&rig.site, &Case::untouched(what, Side::Host, frame));
}

/// Checks that frames that were counted for seconds raise no warning.
#[track_caller]
fn stays_silent(rig: &Rig, counted: u64) {
    rig.counts(UNNAMED, counted);
    let until = rig.status().uptime_seconds + LOOKS;
    loop {
        let report = rig.status();
        let is_silent = report.warnings.iter().all(|one| one.kind != UNNAMED);
        assert!(is_silent, "{:?}", report.warnings);
        if report.uptime_seconds > until {
            return;
        }
        std::thread::sleep(PACE);
    }
}

/// Only the relay set names the host's own ORPort.
#[test]
fn without_a_relay_set_no_listener_is_unnamed() {
    needs_root!();
    let relays = listing(Endpoint::new(HOST_V4.into(), ORPORT));
    let tor = Tor::with(&relays);
    fs::remove_file(tor.consensus()).unwrap();
    let rig = Rig::silent(Plan::default(), &tor.config(""));
    accept(&rig, ORPORT);
    stays_silent(&rig, 1);
    tor.publish(&relays);
    rig.said(REPLACED, 1..=1);
    accept(&rig, ORPORT);
    stays_silent(&rig, 1);
    accept(&rig, 8080);
    rig.warning(UNNAMED);
    rig.stop();
}
