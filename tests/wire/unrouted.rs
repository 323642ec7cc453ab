//! Relay traffic that the next hop does not route stays on the wire, and raises an alarm.

use crate::craft::{Packet, VLAN, relay};
use crate::rig::{Config, PATIENCE, Rig, Side, both_engines, eventually, moved, needs_root};
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::Warning;
use exitmark_lab::LabError;
use exitmark_lab::site::{INCOMING_MAC, Plan, TORNET_MAC};

fn alarm(rig: &Rig, kind: &str) -> Warning {
    eventually(kind, || {
        let client = || Client::new(DEFAULT_SOCKET).status().unwrap();
        let warnings = rig.site.middle.run(client).warnings;
        let found = warnings.iter().find(|warning| warning.kind == kind);
        found.cloned().ok_or(LabError(format!("{warnings:?}")))
    })
}

/// Sends a relay frame, which must arrive at this side as these bytes.
fn arrives(rig: &Rig, packet: &Packet, tags: &[(u16, u16)], side: Side, expected: &[u8]) {
    let mut eye = rig.watch(side);
    rig.port(Side::Host).send(&packet.outbound(tags)).unwrap();
    let found = eye.wait_until(PATIENCE, |seen| {
        seen.iter().any(|frame| frame.bytes == expected)
    });
    assert!(found, "not at {side:?}");
}

#[test]
fn a_next_hop_by_address_gets_its_own_ip_version_alone() {
    needs_root!();
    for (address, own) in [("203.0.113.1", 0), ("2001:db8:3::1", 1)] {
        both_engines(|| {
            let config = Config {
                incoming: Some(("incoming0", address)),
                ..Config::default()
            };
            let rig = Rig::lively(Plan::default(), &config);
            let packet = relay(own, 60);
            let steered = packet.framed(TORNET_MAC, INCOMING_MAC, &[]);
            arrives(&rig, &packet, &[], Side::Tornet, &steered);
            let packet = relay(1 - own, 60);
            arrives(&rig, &packet, &[], Side::Clearnet, &packet.outbound(&[]));
            let found = alarm(&rig, "unrouted_family");
            assert!(found.is_alarm);
            for word in [address, "MAC address", "leaves by the uplink"] {
                assert!(found.text.contains(word), "{word}: {}", found.text);
            }
            assert!(
                rig.running
                    .log()
                    .contains("ALARM: relay traffic of the other IP version")
            );
            let last = rig.running.stop().unwrap();
            assert_eq!(last.counters.get("unrouted_family"), Some(&1));
            moved(&last);
        });
    }
}

#[test]
fn a_tagged_relay_frame_stays_on_the_wire() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        for family in [0, 1] {
            let packet = relay(family, 60);
            arrives(
                &rig,
                &packet,
                &[VLAN],
                Side::Clearnet,
                &packet.outbound(&[VLAN]),
            );
        }
        let found = alarm(&rig, "unrouted_vlan");
        assert!(
            found.is_alarm && found.text.contains("incoming0"),
            "{}",
            found.text
        );
        let last = rig.running.stop().unwrap();
        assert_eq!(last.counters.get("unrouted_vlan"), Some(&2));
        moved(&last);
    });
}

/// With `on_unavailable = "drop"` no relay traffic leaves by the uplink.
#[test]
fn unrouted_frames_are_dropped_if_unsteered_ones_are() {
    needs_root!();
    both_engines(|| {
        let config = Config {
            steer: "on_unavailable = \"drop\"",
            ..Config::default()
        };
        let rig = Rig::silent(Plan::default(), &config);
        let frame = relay(0, 60).outbound(&[VLAN]);
        rig.port(Side::Host).send(&frame).unwrap();
        rig.wait_for("dropped", |counters| {
            counters.get("dropped_steer_unavailable") == Some(&1)
        });
        assert!(alarm(&rig, "unrouted_vlan").text.contains("is dropped"));
        moved(&rig.running.stop().unwrap());
    });
}
