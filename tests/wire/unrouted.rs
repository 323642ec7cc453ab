//! Relay traffic that no next hop routes stays on the wire: it is counted, and raises an alarm.

use crate::craft::{Packet, TCP, VLAN, relay, segment};
use crate::rig::{Case, Config, Rig, Side, arrives, assert_says, both_engines, count};
use crate::stacks::converse;
use exitmark_lab::site::{
    HOST_V4, INCOMING_MAC, OR_PORT, Plan, RELAY_V4, RELAY_V6, Site, TORNET_MAC,
};

const ROUTERS: [&str; 2] = ["203.0.113.1", "2001:db8:3::1"];
const VERSIONS: [&str; 2] = ["IPv4", "IPv6"];

#[test]
fn a_next_hop_by_address_gets_its_own_ip_version_alone() {
    for (own, address) in ROUTERS.into_iter().enumerate() {
        both_engines(|| {
            let config = Config::default().next_hop(address);
            let rig = Rig::lively(Plan::default(), &config);
            let version = VERSIONS[1 - own];
            // Before the first frame.
            let found = rig.warning("unrouted_family");
            assert!(!found.is_alarm);
            let not_steered = format!("relay traffic over {version} is not steered");
            let words = [address, &not_steered, "leaves by the uplink"];
            assert_says(&found.text, &words);

            arrives(&rig.site, &Case::relay(own, 60));
            let other = relay(1 - own, 60).outbound(&[]);
            let other = Case::untouched("the other version", Side::Host, other);
            arrives(&rig.site, &other);
            let alarm = format!("ALARM: relay traffic over {version} is not steered");
            rig.said(&alarm, 1..);
            let found = rig.warning("unrouted_family");
            assert!(found.is_alarm);
            let words = [address, version, "MAC address", "leaves by the uplink"];
            assert_says(&found.text, &words);
            let last = rig.stop();
            assert_eq!(last.counters.get("unrouted_family"), Some(&1));
        });
    }
}

#[test]
fn each_ip_version_has_a_next_hop_of_its_own() {
    both_engines(|| {
        let [v4, v6] = ROUTERS;
        let config = Config::default().next_hops(format!("[{v6:?}, {v4:?}]"));
        let rig = Rig::lively(Plan::default(), &config);
        for family in [0, 1] {
            arrives(&rig.site, &Case::relay(family, 60));
        }
        let kinds = rig
            .status()
            .warnings
            .into_iter()
            .map(|warning| warning.kind);
        let kinds: Vec<_> = kinds.filter(|kind| kind != "configuration").collect();
        assert_eq!(kinds, Vec::<String>::new());
        let last = rig.stop();
        assert_eq!(last.counters.get("unrouted_family"), None);
    });
}

/// A relay that the router on `incoming` routes over IPv4 only: its connections over IPv6 work by
/// the uplink, as without the box.
#[test]
fn connections_by_a_version_without_a_next_hop_work() {
    both_engines(|| {
        for mode in ["audit", "enforce"] {
            let site = Site::build(Plan::default()).unwrap();
            let address = format!("addr add {RELAY_V6}/128 dev eth0");
            site.clearnet.ip(&address).unwrap();
            let config = Config::default().next_hop(ROUTERS[0]);
            let rig = Rig::on(site, &config.top(format_args!("mode = {mode:?}")));
            let [host, clearnet, tornet] = rig.ends();
            converse(host, clearnet, RELAY_V6.into(), OR_PORT, 200_000);
            let is_enforced = mode == "enforce";
            if is_enforced {
                converse(host, tornet, RELAY_V4.into(), OR_PORT, 200_000);
            }
            let counters = rig.stop().counters;
            for name in ["unrouted_family", "incoming_forwarded"] {
                assert_eq!(count(&counters, name) > 100, is_enforced, "{counters:?}");
            }
            assert_eq!(count(&counters, "marked"), 0);
        }
    });
}

/// The frame of a host in VLAN 100 whose next hop was resolved in an untagged network.
#[test]
fn a_tagged_relay_frame_is_steered_only_with_its_tag_in_the_configuration() {
    both_engines(|| {
        let extra = || Config::default().relays("extra = [\"198.51.100.7:9001\"]");
        let relay = [198, 51, 100, 7].into();
        let payload = segment(41_001, OR_PORT, 0);
        let packet = Packet::new(HOST_V4.into(), relay, TCP, payload);
        let mac = "02:02:02:02:02:02";
        let sent = packet.framed(mac, mac, &[(0x8100, 100)]);
        let rig = Rig::silent(Plan::default(), &extra());
        let case = Case::untouched("tagged", Side::Host, sent.clone());
        rig.verify(
            &[case],
            "host_received=1 relay=1 unrouted_vlan=1 unsteered=1 uplink_forwarded=1",
        );
        for (steer, tags) in [("vlan = 30", &[(0x8100, 30)][..]), ("enabled = true", &[])] {
            let rig = Rig::silent(Plan::default(), &extra().host("vlan = 100").steer(steer));
            let leaves = packet.framed(TORNET_MAC, INCOMING_MAC, tags);
            let leaves = Some((Side::Tornet, leaves));
            let case = Case::new(steer, Side::Host, sent.clone(), leaves);
            rig.verify(&[case], "host_received=1 relay=1 incoming_forwarded=1");
        }
    });
}

#[test]
fn a_tagged_relay_frame_stays_on_the_wire_and_is_an_alarm() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        for family in [0, 1] {
            let frame = relay(family, 60).outbound(&[VLAN]);
            arrives(&rig.site, &Case::untouched("tagged", Side::Host, frame));
        }
        let found = rig.warning("unrouted_vlan");
        assert!(found.is_alarm);
        assert_says(&found.text, &["host.vlan", "untagged", "incoming0"]);
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
