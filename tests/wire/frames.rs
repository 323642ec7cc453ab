//! The wire between host and uplink, frame by frame: every byte, both directions.

use crate::craft::{
    AF11, Packet, QINQ, UDP, VLAN, ethernet, exit, families, noise, relay, segment,
};
use crate::rig::{Case, Config, Rig, Side, both_engines};
use exitmark_lab::site::{CLEARNET_MAC, HOST_MAC, Plan};

const TAGGINGS: [(&str, &[(u16, u16)]); 5] = [
    ("untagged", &[]),
    ("VLAN", &[VLAN]),
    ("QinQ", &[QINQ, VLAN]),
    ("priority tag", &[(0x8100, 0xe000)]),
    ("four tags", &[QINQ, (0x9100, 5), VLAN, (0x8100, 9)]),
];

/// A frame of each kind that the box does not parse.
fn strange_frames(to: &str, from: &str) -> Vec<(String, Vec<u8>)> {
    let fixed = [
        ("ARP request", "ff:ff:ff:ff:ff:ff", 0x0806),
        ("LLDP", "01:80:c2:00:00:0e", 0x88cc),
        ("STP", "01:80:c2:00:00:00", 0x0026),
        ("pause", "01:80:c2:00:00:01", 0x8808),
        ("IPv6 multicast", "33:33:00:00:00:01", 0x86dd),
        ("IPv4 multicast", "01:00:5e:00:00:fb", 0x0800),
        ("unknown ethertype", to, 0x88b5),
        ("MPLS", to, 0x8847),
        ("PPPoE", to, 0x8864),
        ("for another MAC", "02:77:77:77:77:77", 0x88b6),
    ];
    let mut frames = Vec::new();
    for (what, to, kind) in fixed {
        // With an IP ethertype this packet has an invalid version.
        let payload = [vec![0x95], noise(kind.into(), 46)].concat();
        frames.push((what.to_owned(), ethernet(to, from, &[], kind, &payload)));
    }
    for bytes in [14, 15, 16, 17, 18, 20, 33, 59, 60, 64, 1514] {
        let frame = ethernet(to, from, &[], 0x0800, &[]);
        let mut frame = [frame, vec![0; bytes - 14]].concat();
        // An invalid version, at every length.
        if let Some(byte) = frame.get_mut(14) {
            *byte = 0x95;
        }
        frames.push((format!("{bytes} bytes, not IP"), frame));
    }
    for (what, tags) in TAGGINGS {
        let frame = ethernet(to, from, tags, 0x88b5, &noise(7, 60));
        frames.push((format!("unknown ethertype, {what}"), frame));
    }
    frames
}

#[test]
fn non_ip_frames_are_forwarded_unchanged_both_ways() {
    both_engines(|| {
        let mut cases = Vec::new();
        for (what, frame) in strange_frames(CLEARNET_MAC, HOST_MAC) {
            cases.push(Case::untouched(what, Side::Host, frame));
        }
        for (what, frame) in strange_frames(HOST_MAC, CLEARNET_MAC) {
            cases.push(Case::untouched(what, Side::Clearnet, frame));
        }
        // Malformed: the two multicast frames of noise, and those of 14 to 1514 bytes.
        Rig::silent(Plan::default(), &Config::default()).verify(
            &cases,
            "host_received=26 uplink_forwarded=26 uplink_received=26 host_forwarded=26 \
             malformed=13 malformed_short_header=7 malformed_wrong_version=6 non_ip=13",
        );
    });
}

/// A relay frame without the mark: steered if untagged, otherwise left on the wire, because the
/// next hop is in the untagged network.
fn relayed(what: &str, packet: &Packet, tags: &[(u16, u16)]) -> Case {
    let what = format!("relay, {what}");
    match tags {
        [] => Case::to_tornet(&what, packet, packet.tos),
        _ => Case::untouched(what, Side::Host, packet.outbound(tags)),
    }
}

#[test]
fn exit_frames_are_marked_under_any_tags_and_relay_frames_steered_under_none() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for (what, tags) in TAGGINGS {
                for ecn in 0..4 {
                    let what = format!("family {family}, {what}, ECN {ecn}");
                    let packet = exit(family, 100).tos(ecn);
                    let exit = format!("exit, {what}");
                    cases.push(Case::to_uplink(&exit, &packet, AF11 | ecn, tags));
                    // Any DSCP other than the mark is kept.
                    cases.push(relayed(&what, &relay(family, 100).tos(0xb8 | ecn), tags));
                }
            }
        }
        Rig::silent(Plan::default(), &Config::default()).verify(
            &cases,
            "host_received=80 exit=40 marked=40 relay=40 unsteered=32 unrouted_vlan=32 \
             uplink_forwarded=72 incoming_forwarded=8",
        );
    });
}

#[test]
fn only_exit_frames_keep_the_mark() {
    both_engines(|| {
        let mut cases = Vec::new();
        let mut case = |what: &str, sent: &Packet, tos: u8| {
            cases.push(Case::to_uplink(what, sent, tos, &[]));
        };
        for family in [0, 1] {
            let (host, server, relay_host) = families()[family];
            let tcp = |to, sport, dport| Packet::new(host, to, 6, segment(sport, dport, 33));
            let udp = Packet::new(host, server, UDP, noise(1, 60));
            // A look-up by address alone would steer this frame.
            let web = tcp(relay_host, 40_000, 443);
            case("relay host's web page", &web, AF11);
            case("relay port elsewhere", &tcp(server, 40_000, 9001), AF11);
            case("marked exit", &exit(family, 1).tos(AF11), AF11);
            case("reply", &tcp(server, 22, 50_000).tos(AF11 | 1), 1);
            case("other protocol", &udp.clone().tos(AF11), 0);
            case("other DSCP", &udp.tos(0xb9), 0xb9);
            let mut foreign = exit(family, 5);
            foreign.source = server;
            case("foreign", &foreign, 0);
            case("foreign with mark", &foreign.tos(AF11), 0);
        }
        let config = Config::default().host("listeners = [22]");
        Rig::silent(Plan::default(), &config).verify(
            &cases,
            "host_received=16 uplink_forwarded=16 exit=6 marked=4 reply=2 host=4 foreign=4 \
             cleared=6",
        );
    });
}

#[test]
fn inbound_frames_are_not_changed() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for (what, tags) in TAGGINGS {
                for packet in [exit(family, 64), relay(family, 64).tos(AF11)] {
                    let mut back = packet;
                    std::mem::swap(&mut back.source, &mut back.destination);
                    let frame = back.inbound(tags);
                    cases.push(Case::untouched(what, Side::Clearnet, frame));
                }
            }
        }
        Rig::silent(Plan::default(), &Config::default())
            .verify(&cases, "uplink_received=20 host_forwarded=20");
    });
}

#[test]
fn later_fragments_follow_the_first() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            let part = |packet: &Packet, id, offset, more| {
                let mut packet = packet.clone().part(id, offset, more);
                if offset > 0 {
                    packet.payload = noise(id.into(), 40);
                }
                packet
            };
            let (exit, relay) = (exit(family, 60), relay(family, 60));
            for (offset, more) in [(0, true), (10, true), (15, false)] {
                let what = format!("fragment at {offset}, family {family}");
                let fragment = part(&exit, 1, offset, more);
                let title = format!("exit, {what}");
                cases.push(Case::to_uplink(&title, &fragment, AF11, &[]));
                let fragment = part(&relay, 2, offset, more);
                for tags in [&[][..], &[VLAN]] {
                    cases.push(relayed(&what, &fragment, tags));
                }
            }
            let stray = part(&exit, 3, 10, false);
            cases.push(Case::to_uplink("stray fragment", &stray, 0, &[]));
        }
        Rig::silent(Plan::default(), &Config::default()).verify(
            &cases,
            "host_received=20 exit=6 marked=6 relay=12 unsteered=6 unrouted_vlan=6 host=2 \
             unseen_fragment=2 uplink_forwarded=14 incoming_forwarded=6",
        );
    });
}

#[test]
fn jumbo_frames_are_forwarded_in_several_buffers() {
    both_engines(|| {
        let mut cases = Vec::new();
        let mut bytes_sent = 0;
        // 20 and 40 bytes of headers; one buffer holds 3,840 bytes of a frame.
        for bytes in [1460, 3700, 3786, 3787, 3800, 7600, 7627, 8000, 8960] {
            for (what, tags) in &TAGGINGS[..3] {
                // The sender permits exactly one VLAN tag beyond the MTU.
                let bytes = match tags.len() {
                    0 | 1 => bytes,
                    several => bytes - 4 * several,
                };
                for family in [0, 1] {
                    let bytes = bytes - 20 * family;
                    let what = format!("{bytes} bytes, {what}, family {family}");
                    let packet = exit(family, bytes);
                    bytes_sent = bytes_sent.max(packet.outbound(tags).len());
                    let title = format!("exit, {what}");
                    cases.push(Case::to_uplink(&title, &packet, AF11, tags));
                    let packet = relay(family, bytes);
                    cases.push(relayed(&what, &packet, tags));
                    cases.push(Case::untouched(what, Side::Clearnet, packet.inbound(tags)));
                }
            }
        }
        assert_eq!(bytes_sent, 14 + 9000 + 4);
        Rig::silent(Plan::of_mtu(9000), &Config::default()).verify(
            &cases,
            "host_received=108 exit=54 marked=54 relay=54 unsteered=36 unrouted_vlan=36 \
             uplink_forwarded=90 incoming_forwarded=18 uplink_received=54 host_forwarded=54",
        );
    });
}

#[test]
fn audit_mode_changes_and_steers_no_frame() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for packet in [exit(family, 9), exit(family, 9).tos(AF11), relay(family, 9)] {
                cases.push(Case::untouched("audit", Side::Host, packet.outbound(&[])));
            }
        }
        let config = Config::default().top("mode = \"audit\"");
        Rig::silent(Plan::default(), &config)
            .verify(&cases, "host_received=6 uplink_forwarded=6 exit=4 relay=2");
    });
}

#[test]
fn no_frame_leaves_marked_with_strip() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for tos in [0, 1, AF11 | 2] {
                let sent = exit(family, 9).tos(tos);
                cases.push(Case::to_uplink("exit", &sent, tos & 3, &[]));
            }
        }
        let config = Config::default().more("[mark]\nat_uplink = \"strip\"");
        Rig::silent(Plan::default(), &config).verify(
            &cases,
            "host_received=6 uplink_forwarded=6 exit=6 cleared=2",
        );
    });
}

#[test]
fn full_frames_are_forwarded_at_every_size_where_buffers_change() {
    both_engines(|| {
        // The largest MTU of a small buffer, of a linear frame in the driver, and of one buffer;
        // each with the next larger one.
        for mtu in [1762, 1763, 3498, 3499, 3810, 3811] {
            let mut cases = Vec::new();
            for tags in [&[][..], &[VLAN]] {
                let what = format!("exit, MTU {mtu}");
                cases.push(Case::to_uplink(&what, &exit(0, mtu - 40), AF11, tags));
                cases.push(relayed(&format!("MTU {mtu}"), &relay(1, mtu - 60), tags));
            }
            let plan = Plan::of_mtu(u32::try_from(mtu).unwrap());
            Rig::silent(plan, &Config::default()).verify(
                &cases,
                "host_received=4 exit=2 marked=2 relay=2 unsteered=1 unrouted_vlan=1 \
                 uplink_forwarded=3 incoming_forwarded=1",
            );
        }
    });
}
