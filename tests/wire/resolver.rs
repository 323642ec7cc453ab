//! A recursive resolver on the host: detected by its queries, and reported by status and doctor.

use crate::craft::{Packet, UDP, families};
use crate::rig::{Config, Rig, Side, both_engines, exitmark, needs_root, timeout};
use exitmark_box::observe::OWN_RESOLVER;
use exitmark_lab::site::Plan;

fn sampled() -> Config {
    Config::default().datapath("sample = 1")
}

/// Sends queries to this number of servers, one each.
fn ask(rig: &Rig, servers: u8) {
    let mut eye = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    let (host, _, _) = families()[0];
    for number in 1..=servers {
        let server = format!("198.51.100.{number}").parse().unwrap();
        // Ports 40000 and 53, length 28, no checksum.
        let mut query = vec![0x9c, 0x40, 0, 53, 0, 28, 0, 0];
        query.resize(28, number);
        let packet = Packet::new(host, server, UDP, query);
        port.send(&packet.outbound(&[])).unwrap();
    }
    assert!(eye.wait_until(timeout(), |captured| captured.len() == usize::from(servers)));
}

#[test]
fn a_recursive_resolver_is_a_warning_and_a_finding() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &sampled());
        ask(&rig, 100);
        let warning = rig.warning(OWN_RESOLVER);
        assert!(!warning.is_alarm);
        assert!(warning.text.contains("host.resolvers = \"any\""));
        assert!(!warning.text.contains("198.51.100"), "{}", warning.text);
        let path = rig.configuration.to_str().unwrap();
        let doctor = exitmark(&rig.site, &["doctor", "--config", path]);
        let doctor = String::from_utf8(doctor.stdout).unwrap();
        assert!(doctor.contains("recursive resolver"), "{doctor}");
        rig.stop();
    });
}

#[test]
fn with_resolvers_any_there_is_no_warning() {
    needs_root!();
    let config = sampled().host("resolvers = \"any\"");
    let rig = Rig::silent(Plan::default(), &config);
    ask(&rig, 100);
    let report = rig.status();
    assert!(report.warnings.iter().all(|one| one.kind != OWN_RESOLVER));
    let count = report.classes.iter().find(|one| one.class == "resolver");
    assert_eq!(count.unwrap().frames, 100);
    rig.stop();
}
