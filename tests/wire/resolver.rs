//! A recursive resolver on the host: detected by its queries, and reported by status and doctor.

use crate::craft::{Packet, UDP, families};
use crate::rig::{
    Config, EXITMARK, PATIENCE, Rig, Side, both_engines, eventually, moved, needs_root,
};
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::OWN_RESOLVER;
use exitmark_lab::LabError;
use exitmark_lab::site::Plan;

const SAMPLED: &str = "[datapath]\nsample = 1";

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
    assert!(eye.wait_until(PATIENCE, |seen| seen.len() == usize::from(servers)));
}

#[test]
fn a_recursive_resolver_is_a_warning_and_a_finding() {
    needs_root!();
    both_engines(|| {
        let config = Config {
            more: SAMPLED,
            ..Config::default()
        };
        let rig = Rig::silent(Plan::default(), &config);
        ask(&rig, 100);
        let warning = eventually(OWN_RESOLVER, || {
            let client = || Client::new(DEFAULT_SOCKET).status().unwrap();
            let warnings = rig.site.middle.run(client).warnings;
            let found = warnings.iter().find(|one| one.kind == OWN_RESOLVER);
            found.cloned().ok_or(LabError(format!("{warnings:?}")))
        });
        assert!(!warning.is_alarm);
        assert!(warning.text.contains("host.resolvers = \"any\""));
        assert!(!warning.text.contains("198.51.100"), "{}", warning.text);
        let path = rig.configuration.to_str().unwrap().to_owned();
        let doctor = rig.site.middle.run(move || {
            let output = std::process::Command::new(EXITMARK)
                .args(["doctor", "--config", &path])
                .output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        });
        assert!(doctor.contains("recursive resolver"), "{doctor}");
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn with_resolvers_any_there_is_no_warning() {
    needs_root!();
    let config = Config {
        host: "resolvers = \"any\"",
        more: SAMPLED,
        ..Config::default()
    };
    let rig = Rig::silent(Plan::default(), &config);
    ask(&rig, 100);
    let client = || Client::new(DEFAULT_SOCKET).status().unwrap();
    let report = rig.site.middle.run(client);
    assert!(report.warnings.iter().all(|one| one.kind != OWN_RESOLVER));
    let count = report.classes.iter().find(|one| one.class == "resolver");
    assert_eq!(count.unwrap().frames, 100);
    moved(&rig.running.stop().unwrap());
}
