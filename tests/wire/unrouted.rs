//! Relay traffic that the next hop does not route stays on the wire, and raises an alarm.

use crate::craft::{VLAN, relay};
use crate::rig::{Case, Config, Rig, Side, arrives, assert_says, both_engines};
use exitmark_lab::site::Plan;

#[test]
fn a_next_hop_by_address_gets_its_own_ip_version_alone() {
    for (address, own) in [("203.0.113.1", 0), ("2001:db8:3::1", 1)] {
        both_engines(|| {
            let config = Config::default().next_hop(address);
            let rig = Rig::lively(Plan::default(), &config);
            let version = ["IPv4", "IPv6"][1 - own];
            let words = format!("relay traffic over {version} is not steered");
            // Before the first packet.
            let known = rig.warning("unrouted_family");
            assert!(!known.is_alarm);
            assert_says(&known.text, &[&words, address]);
            arrives(&rig.site, &Case::relay(own, 60));
            let other = relay(1 - own, 60).outbound(&[]);
            let other = Case::untouched("the other version", Side::Host, other);
            arrives(&rig.site, &other);
            rig.said("ALARM: relay traffic over", 1..=1);
            let found = rig.warning("unrouted_family");
            assert!(found.is_alarm);
            let parts = [&words, address, "MAC address", "leaves by the uplink"];
            assert_says(&found.text, &parts);
            assert_says(&rig.running.log(), &[&format!("ALARM: {words}")]);
            let last = rig.stop();
            assert_eq!(last.counters.get("unrouted_family"), Some(&1));
        });
    }
}

#[test]
fn a_tagged_relay_frame_stays_on_the_wire() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        for family in [0, 1] {
            let frame = relay(family, 60).outbound(&[VLAN]);
            arrives(&rig.site, &Case::untouched("tagged", Side::Host, frame));
        }
        let found = rig.warning("unrouted_vlan");
        assert!(found.is_alarm);
        assert_says(
            &found.text,
            &["incoming0", "host.vlan (untagged)", "steer.vlan"],
        );
        let last = rig.stop();
        assert_eq!(last.counters.get("unrouted_vlan"), Some(&2));
    });
}

/// With `on_unavailable = "drop"` no relay traffic leaves by the uplink.
#[test]
fn unrouted_frames_are_dropped_if_unsteered_ones_are() {
    both_engines(|| {
        let config = Config::default().steer("on_unavailable = \"drop\"");
        let rig = Rig::silent(Plan::default(), &config);
        let frame = relay(0, 60).outbound(&[VLAN]);
        rig.port(Side::Host).send(&frame).unwrap();
        rig.counts("dropped_steer_unavailable", 1);
        assert!(rig.warning("unrouted_vlan").text.contains("is dropped"));
        rig.stop();
    });
}
