//! A port that accepts connections and is not in `host.listeners`.

use crate::craft::{Packet, TCP, families, segment};
use crate::reload::{Tor, listing, said};
use crate::rig::{Config, PATIENCE, Rig, Side, both_engines, eventually, moved, needs_root};
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::{Report, Warning};
use exitmark_lab::LabError;
use exitmark_lab::site::{HOST_V4, Plan};
use exitmark_policy::Endpoint;
use std::fs;
use std::time::Duration;

/// The offset of the control bits in a TCP header, and SYN with ACK.
const CONTROL: usize = 13;
const SYN_ACK: u8 = 0x12;
/// The interval of status queries.
const PACE: Duration = Duration::from_millis(100);

#[test]
fn an_unnamed_listener_is_a_warning() {
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

/// Seconds within which a warning would appear: the counters are polled once a second.
const LOOKS: f64 = 3.0;
const ORPORT: u16 = 9001;

fn status(rig: &Rig) -> Report {
    let client = || Client::new(DEFAULT_SOCKET).status().unwrap();
    rig.site.middle.run(client)
}

fn unnamed(report: &Report) -> Option<&Warning> {
    let mut warnings = report.warnings.iter();
    warnings.find(|one| one.kind == "unnamed_listener")
}

/// Sends the host's SYN with ACK from this port.
#[track_caller]
fn accept(rig: &Rig, port: u16) {
    let mut eye = rig.watch(Side::Clearnet);
    let mut bytes = segment(port, 50_000, 20);
    bytes[CONTROL] = SYN_ACK;
    let (host, server, _) = families()[0];
    let frame = Packet::new(host, server, TCP, bytes).outbound(&[]);
    rig.port(Side::Host).send(&frame).unwrap();
    assert!(eye.wait_until(PATIENCE, |seen| seen.iter().any(|one| one.bytes == frame)));
}

/// Checks that frames that were counted for seconds raise no warning.
#[track_caller]
fn stays_silent(rig: &Rig, counted: u64) {
    rig.wait_for("unnamed_listener", |now| {
        now.get("unnamed_listener") == Some(&counted)
    });
    let until = status(rig).uptime_seconds + LOOKS;
    loop {
        let report = status(rig);
        assert!(unnamed(&report).is_none(), "{:?}", report.warnings);
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
    said(&rig, "relay set replaced", 1);
    accept(&rig, ORPORT);
    stays_silent(&rig, 1);
    accept(&rig, 8080);
    eventually("a warning", || {
        let report = status(&rig);
        let found = unnamed(&report).map(drop);
        found.ok_or(LabError(format!("{:?}", report.warnings)))
    });
    moved(&rig.running.stop().unwrap());
}
