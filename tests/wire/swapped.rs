//! A Tor host that is not behind `host`: the wire forwards all frames, and none is marked.

use crate::craft::{Packet, TCP, UDP, noise};
use crate::craft::{exit, families, segment};
use crate::rig::{Config, PATIENCE, Rig, Side, both_engines, eventually, moved, needs_root};
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::{Report, Warning};
use exitmark_lab::LabError;
use exitmark_lab::site::{CLEARNET_MAC, HOST_MAC, Plan};

const KIND: &str = "wrong_side";

fn report(rig: &Rig) -> Report {
    rig.site
        .middle
        .run(|| Client::new(DEFAULT_SOCKET).status().unwrap())
}

/// Waits until there is a warning, or none, and returns it.
fn warning(rig: &Rig, is_wanted: bool) -> Option<Warning> {
    let what = format!("a warning {KIND}: {is_wanted}");
    eventually(&what, || {
        let warnings = report(rig).warnings;
        let found = warnings.into_iter().find(|warning| warning.kind == KIND);
        match found.is_some() == is_wanted {
            true => Ok(found),
            false => Err(LabError(format!("{found:?}"))),
        }
    })
}

/// A frame of the server to the host.
fn answer(family: usize) -> Vec<u8> {
    let (host, server, _) = families()[family];
    let packet = Packet::new(server, host, TCP, segment(443, 40_000, 60));
    packet.framed(HOST_MAC, CLEARNET_MAC, &[])
}

fn arrive(rig: &Rig, from: Side, to: Side, frame: &[u8], number: usize) {
    let mut eye = rig.watch(to);
    let port = rig.port(from);
    for _ in 0..number {
        port.send(frame).unwrap();
    }
    assert!(eye.wait_until(PATIENCE, |seen| seen.len() >= number));
}

#[test]
fn a_host_behind_the_uplink_is_an_alarm_that_names_the_swap() {
    needs_root!();
    for family in [0, 1] {
        both_engines(|| {
            let rig = Rig::silent(Plan::default(), &Config::default());
            assert_eq!(warning(&rig, false), None);
            // The cables are swapped: the host is where the clearnet should be.
            let out = exit(family, 60).outbound(&[]);
            arrive(&rig, Side::Host, Side::Clearnet, &answer(family), 3);
            arrive(&rig, Side::Clearnet, Side::Host, &out, 3);
            let found = warning(&rig, true).unwrap();
            assert!(found.is_alarm);
            for word in ["swapped", "host0", "uplink0", "ports.host and ports.uplink"] {
                assert!(found.text.contains(word), "{word}: {}", found.text);
            }
            assert_eq!(report(&rig).frames.host_by_uplink, 3);
            assert!(
                rig.running
                    .log()
                    .contains("ALARM: host and uplink are swapped")
            );
            // The correct cabling.
            arrive(&rig, Side::Host, Side::Clearnet, &out, 1);
            assert_eq!(warning(&rig, false), None);
            moved(&rig.running.stop().unwrap());
        });
    }
}

/// A worker decides every frame that arrives by the uplink.
#[test]
fn a_worker_sees_the_host_behind_the_uplink_too() {
    needs_root!();
    let config = Config {
        top: "engine = \"af_xdp\"",
        more: "[datapath]\ninbound = \"af_xdp\"",
        ..Config::default()
    };
    let rig = Rig::silent(Plan::default(), &config);
    arrive(&rig, Side::Host, Side::Clearnet, &answer(0), 1);
    let out = exit(0, 60).outbound(&[(0x8100, 7)]);
    arrive(&rig, Side::Clearnet, Side::Host, &out, 3);
    assert!(warning(&rig, true).unwrap().text.contains("swapped"));
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_host_whose_addresses_are_not_named_is_an_alarm() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let source = "192.0.2.99".parse().unwrap();
    let (_, server, _) = families()[0];
    let foreign = Packet::new(source, server, UDP, noise(7, 60)).outbound(&[]);
    arrive(&rig, Side::Host, Side::Clearnet, &foreign, 100);
    let found = warning(&rig, true).unwrap();
    assert!(found.is_alarm && found.text.contains("host.addresses"));
    assert!(!found.text.contains("192.0.2.99"), "{}", found.text);
    moved(&rig.running.stop().unwrap());
}
