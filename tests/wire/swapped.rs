//! A Tor host that is not behind `host`: the wire forwards all frames, and none is marked.

use crate::craft::{Packet, UDP, answer, exit, families, noise};
use crate::rig::{Config, Rig, Side, assert_says, both_engines, needs_root};
use exitmark_lab::site::Plan;

const KIND: &str = "wrong_side";

fn arrive(rig: &Rig, from: Side, to: Side, frame: &[u8], number: usize) {
    let mut eye = rig.watch(to);
    let port = rig.port(from);
    for _ in 0..number {
        port.send(frame).unwrap();
    }
    assert!(eye.counts(number));
}

#[test]
fn a_host_behind_the_uplink_is_an_alarm_that_names_the_swap() {
    needs_root!();
    for family in [0, 1] {
        both_engines(|| {
            let rig = Rig::silent(Plan::default(), &Config::default());
            rig.no_warning(KIND);
            // The cables are swapped: the host is where the clearnet should be.
            let out = exit(family, 60).outbound(&[]);
            let inbound = answer(family, 60).inbound(&[]);
            arrive(&rig, Side::Host, Side::Clearnet, &inbound, 3);
            arrive(&rig, Side::Clearnet, Side::Host, &out, 3);
            let found = rig.warning(KIND);
            assert!(found.is_alarm);
            let words = ["swapped", "host0", "uplink0", "ports.host and ports.uplink"];
            assert_says(&found.text, &words);
            assert_eq!(rig.status().frames.host_by_uplink, 3);
            rig.running
                .wait_log(&["ALARM: host and uplink are swapped"]);
            // The correct cabling.
            arrive(&rig, Side::Host, Side::Clearnet, &out, 1);
            rig.no_warning(KIND);
            rig.stop();
        });
    }
}

/// A worker decides every frame that arrives by the uplink.
#[test]
fn a_worker_sees_the_host_behind_the_uplink_too() {
    needs_root!();
    let config = Config::default().engine("af_xdp");
    let config = config.datapath("inbound = \"af_xdp\"");
    let rig = Rig::silent(Plan::default(), &config);
    let inbound = answer(0, 60).inbound(&[]);
    arrive(&rig, Side::Host, Side::Clearnet, &inbound, 1);
    let out = exit(0, 60).outbound(&[(0x8100, 7)]);
    arrive(&rig, Side::Clearnet, Side::Host, &out, 3);
    assert!(rig.warning(KIND).text.contains("swapped"));
    rig.stop();
}

#[test]
fn a_host_whose_addresses_are_not_named_is_an_alarm() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let source = "192.0.2.99".parse().unwrap();
    let (_, server, _) = families()[0];
    let foreign = Packet::new(source, server, UDP, noise(7, 60)).outbound(&[]);
    arrive(&rig, Side::Host, Side::Clearnet, &foreign, 100);
    let found = rig.warning(KIND);
    assert!(found.is_alarm && found.text.contains("host.addresses"));
    assert!(!found.text.contains("192.0.2.99"), "{}", found.text);
    rig.stop();
}
