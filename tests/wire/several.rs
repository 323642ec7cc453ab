//! Two hosts behind one box: no frame of one goes to the other. Two hosts with one address: an alarm.

use crate::craft::{Packet, TCP, families, segment};
use crate::rig::{Case, Config, Rig, Side, assert_says, both_engines, eventually, passes};
use exitmark_lab::site::{CLEARNET_MAC, Plan, RELAY_V4, TORNET_MAC};
use std::net::IpAddr;

const MACS: [&str; 2] = ["02:00:00:00:01:01", "02:00:00:00:01:77"];
const HOSTS: [&str; 2] = ["192.0.2.10", "192.0.2.20"];
/// An address of one of the two hosts, from which no frame is sent.
const SILENT: &str = "192.0.2.30";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn config() -> Config {
    let mut config = Config::default();
    let others = [HOSTS[1], SILENT].map(str::to_owned);
    config.addresses.extend(others);
    config
}

fn outbound(source: &str, mac: &str) -> Vec<u8> {
    let (_, server, _) = families()[0];
    let packet = Packet::new(address(source), server, TCP, segment(40_000, 443, 20));
    packet.framed(CLEARNET_MAC, mac, &[])
}

/// A relay's answer to a steered segment, as the router on `incoming` sends it.
fn answer(host: &str) -> Packet {
    let relay = RELAY_V4.into();
    Packet::new(relay, address(host), TCP, segment(9001, 40_000, 30))
}

#[track_caller]
fn answered(rig: &Rig, host: &str, mac: &str) {
    let packet = answer(host);
    let arrives = Some((Side::Host, packet.framed(mac, TORNET_MAC, &[])));
    let what = format!("an answer to {host}");
    let case = Case::new(what, Side::Tornet, packet.incoming(&[]), arrives);
    passes(&rig.site, &case);
}

/// Both hosts send alternately, one frame after the other.
fn alternate(rig: &Rig) {
    let mut eye = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    for number in 0..8 {
        let frame = outbound(HOSTS[number % 2], MACS[number % 2]);
        port.send(&frame).unwrap();
        // Each in a batch of its own.
        assert!(eye.counts(number + 1));
    }
}

#[test]
fn answers_go_to_the_host_whose_address_it_is() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &config());
        alternate(&rig);
        for (host, mac) in HOSTS.into_iter().zip(MACS) {
            answered(&rig, host, mac);
        }
        let hosts = rig.status().hosts.into_iter();
        let hosts: Vec<_> = hosts
            .map(|one| (one.address, one.mac, one.changes))
            .collect();
        let expected = HOSTS.into_iter().zip(MACS);
        let expected = expected.map(|(host, mac)| (host.to_owned(), mac.to_owned(), 0));
        assert_eq!(hosts, expected.collect::<Vec<_>>());
        rig.no_warning("host_conflict");
        // The host of this address is unknown.
        let frame = answer(SILENT).incoming(&[]);
        rig.port(Side::Tornet).send(&frame).unwrap();
        rig.counts("dropped_host_mac_unknown", 1);
        rig.stop();
    });
}

/// With a configured MAC address all answers go there.
#[test]
fn a_configured_mac_gets_all_answers_and_another_one_is_a_warning() {
    both_engines(|| {
        let config = config().host("mac = \"02:00:00:00:01:01\"");
        let rig = Rig::silent(Plan::default(), &config);
        alternate(&rig);
        for host in HOSTS {
            answered(&rig, host, MACS[0]);
        }
        let found = rig.warning("host_mac");
        assert!(!found.is_alarm);
        assert_says(&found.text, &["host.mac", MACS[0], HOSTS[1], MACS[1]]);
        rig.stop();
    });
}

#[test]
fn an_address_that_two_hosts_use_is_an_alarm_with_both_mac_addresses() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &config());
        let port = rig.port(Side::Host);
        let mut turn = 0;
        let text = eventually("an alarm with both MAC addresses", || {
            turn += 1;
            port.send(&outbound(HOSTS[0], MACS[turn % 2])).unwrap();
            let warnings = rig.status().warnings.into_iter();
            let mut alarms = warnings.filter(|one| one.is_alarm && one.kind == "host_conflict");
            let text = alarms.next().map_or_else(String::new, |one| one.text);
            let has_both = MACS.iter().all(|mac| text.contains(mac));
            if has_both { Ok(text) } else { Err(text) }
        });
        assert_says(&text, &[HOSTS[0], "two machines"]);
        assert!(!text.contains(HOSTS[1]), "{text}");
        rig.said(
            "ALARM: host addresses are sent from several MAC addresses",
            1..=1,
        );
        rig.stop();
    });
}
