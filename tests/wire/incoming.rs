//! From `incoming` only frames for the host are forwarded, and to it only relay frames.

use crate::craft::{
    AF11, Packet, QINQ, UDP, VLAN, ethernet, exit, families, noise, relay, relay_answer, segment,
};
use crate::rig::{Case, Config, Rig, Side, UPLINK0_MAC, both_engines};
use exitmark_lab::site::{
    BOX_V4, BOX_V6, CLEARNET_MAC, HOST_MAC, HOST_V4, INCOMING_MAC, Plan, TORNET_MAC,
};

const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

fn known() -> Config {
    Config::default().host("mac = \"02:00:00:00:01:01\"")
}

fn inbound(family: usize) -> Packet {
    relay_answer(family, 70).tos(0x2a)
}

#[test]
fn incoming_forwards_only_frames_for_the_host() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
                for protocol in [6, UDP, 1, 132] {
                    let mut packet = inbound(family);
                    packet.protocol = protocol;
                    let tagged = tags.len();
                    let what = format!("protocol {protocol}, family {family}, {tagged} tags");
                    cases.push(Case::to_host(what, &packet, tags));
                }
            }
        }
        let delivered = cases.len();
        for (what, frame) in strangers() {
            let stack = Some((Side::Stack, frame.clone()));
            cases.push(Case::new(what, Side::Tornet, frame, stack));
        }
        let kept = cases.len() - delivered;
        let counters = format!(
            "incoming_received={delivered} host_forwarded={delivered} incoming_to_stack={kept}"
        );
        Rig::silent(Plan::default(), &known()).verify(&cases, counters);
    });
}

/// Frames on the network of `incoming` that are not for the host.
fn strangers() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    for family in [0, 1] {
        let ours = inbound(family);
        for to in [
            BROADCAST,
            "33:33:00:00:00:01",
            "01:00:5e:00:00:01",
            HOST_MAC,
            CLEARNET_MAC,
            "02:00:00:00:03:77",
        ] {
            let frame = ours.framed(to, TORNET_MAC, &[]);
            frames.push((format!("the host's address for {to}"), frame));
        }
        for (what, destination) in [
            (
                "the box's own address",
                [BOX_V4.into(), BOX_V6.into()][family],
            ),
            ("an unused address", families()[family].1),
        ] {
            let mut elsewhere = ours.clone();
            elsewhere.destination = destination;
            frames.push((what.to_owned(), elsewhere.incoming(&[])));
        }
    }
    for (what, to, kind) in [
        ("ARP broadcast", BROADCAST, 0x0806),
        ("ARP for the box", INCOMING_MAC, 0x0806),
        ("LLDP", "01:80:c2:00:00:0e", 0x88cc),
        ("STP", "01:80:c2:00:00:00", 0x0026),
        ("unknown ethertype", INCOMING_MAC, 0x88b5),
    ] {
        let frame = ethernet(to, TORNET_MAC, &[], kind, &noise(3, 46));
        frames.push((what.to_owned(), frame));
    }
    // An IPv4 header without its destination, and one of version 9.
    let whole = inbound(0).incoming(&[]);
    frames.push(("cut".to_owned(), whole[..33].to_vec()));
    let mut wrong = whole;
    wrong[14] = 0x95;
    frames.push(("no version".to_owned(), wrong));
    frames
}

#[test]
fn broadcast_from_the_wire_never_reaches_incoming() {
    both_engines(|| {
        let mut cases = Vec::new();
        for to in [BROADCAST, "01:00:5e:00:00:01", "33:33:00:00:00:01"] {
            for kind in [0x0806, 0x88b5] {
                for (side, from) in [(Side::Host, HOST_MAC), (Side::Clearnet, CLEARNET_MAC)] {
                    let frame = ethernet(to, from, &[], kind, &noise(9, 50));
                    cases.push(Case::untouched(to, side, frame));
                }
            }
            // A broadcast or multicast frame of the relay to the host, by the uplink.
            let frame = inbound(0).framed(to, CLEARNET_MAC, &[]);
            cases.push(Case::untouched(to, Side::Clearnet, frame));
        }
        // A frame on the uplink for incoming's own MAC does not go to incoming.
        let frame = inbound(0).framed(INCOMING_MAC, CLEARNET_MAC, &[]);
        cases.push(Case::untouched("incoming's MAC", Side::Clearnet, frame));
        Rig::silent(Plan::default(), &known()).verify(
            &cases,
            "host_received=6 uplink_forwarded=6 non_ip=6 uplink_received=10 host_forwarded=10",
        );
    });
}

#[test]
fn learns_the_host_mac_only_from_the_host() {
    both_engines(|| {
        let unknown = |what| Case::new(what, Side::Tornet, inbound(0).incoming(&[]), None);
        let impostor = "02:66:66:66:66:66";
        let mut foreign = exit(0, 10);
        foreign.source = families()[0].1;
        let foreign = foreign.framed(CLEARNET_MAC, impostor, &[]);
        let arp = ethernet(BROADCAST, impostor, &[], 0x0806, &noise(1, 46));
        let cases = [
            unknown("before"),
            Case::untouched("foreign source", Side::Host, foreign),
            Case::untouched("no IP", Side::Host, arp),
            unknown("still unknown"),
            Case::exit(0, 10),
            Case::to_host("after the host has sent", &inbound(0), &[]),
        ];
        Rig::silent(Plan::default(), &Config::default()).verify(
            &cases,
            "incoming_received=3 dropped_host_mac_unknown=2 host_received=3 foreign=1 non_ip=1 \
             exit=1 marked=1 uplink_forwarded=3 host_forwarded=1",
        );
    });
}

#[test]
fn a_configured_mac_is_never_replaced() {
    both_engines(|| {
        let other = "02:66:66:66:66:66";
        let spoken = exit(1, 10).framed(CLEARNET_MAC, other, &[]);
        let marked = exit(1, 10).tos(AF11).framed(CLEARNET_MAC, other, &[]);
        let marked = Some((Side::Clearnet, marked));
        let cases = [
            Case::new("another MAC sends", Side::Host, spoken, marked),
            Case::to_host("inbound", &inbound(1), &[]),
        ];
        Rig::silent(Plan::default(), &known()).verify(
            &cases,
            "host_received=1 exit=1 marked=1 uplink_forwarded=1 incoming_received=1 \
             host_forwarded=1",
        );
    });
}

#[test]
fn one_nic_can_be_uplink_and_incoming() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for tags in [&[][..], &[QINQ, VLAN]] {
                let packet = relay(family, 99);
                let leaves = match tags {
                    [] => packet.framed(TORNET_MAC, UPLINK0_MAC, tags),
                    // The next hop is in the untagged network.
                    _ => packet.outbound(tags),
                };
                let leaves = Some((Side::Clearnet, leaves));
                cases.push(Case::new(
                    "relay",
                    Side::Host,
                    packet.outbound(tags),
                    leaves,
                ));
                cases.push(Case::to_uplink("exit", &exit(family, 99), AF11, tags));
                let packet = inbound(family);
                let to_nic = packet.framed(UPLINK0_MAC, TORNET_MAC, tags);
                let delivered = Some((Side::Host, packet.delivered(tags)));
                let what = "to the NIC's own MAC for the host";
                cases.push(Case::new(what, Side::Clearnet, to_nic, delivered));
                // All other frames stay on the wire, with any MAC address.
                for to in [HOST_MAC, BROADCAST, "02:00:00:00:03:77"] {
                    let frame = packet.framed(to, TORNET_MAC, tags);
                    cases.push(Case::untouched(to, Side::Clearnet, frame));
                }
            }
        }
        let mut unused = inbound(0);
        unused.destination = [198, 51, 100, 99].into();
        let frame = unused.framed(UPLINK0_MAC, TORNET_MAC, &[]);
        let what = "to the NIC's own MAC for an unused address";
        cases.push(Case::untouched(what, Side::Clearnet, frame));
        let config = known().incoming("uplink0", TORNET_MAC);
        Rig::silent(Plan::default(), &config).verify(
            &cases,
            "host_received=8 relay=4 unsteered=2 unrouted_vlan=2 exit=4 marked=4 \
             uplink_forwarded=8 uplink_received=17 host_forwarded=17",
        );
    });
}

#[test]
fn without_incoming_no_frame_is_steered() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            let packet = relay(family, 50);
            cases.push(Case::to_uplink("relay", &packet, 0, &[VLAN]));
            let marked = packet.tos(AF11);
            cases.push(Case::to_uplink("relay with the mark", &marked, 0, &[]));
            // incoming0 is then not a port: its frames go to the stack.
            let frame = inbound(family).incoming(&[]);
            let stack = Some((Side::Stack, frame.clone()));
            cases.push(Case::new("not a port", Side::Tornet, frame, stack));
        }
        Rig::silent(Plan::default(), &known().without_incoming()).verify(
            &cases,
            "host_received=4 relay=4 cleared=2 uplink_forwarded=4",
        );
    });
}

#[test]
fn addresses_that_carry_tor_only_are_steered_and_reached() {
    both_engines(|| {
        let address = [192, 0, 2, 11];
        let mut cases = Vec::new();
        // To any destination, listed or not, because of the source address.
        for to in [families()[0].1, families()[0].2] {
            let packet = Packet::new(address.into(), to, 6, segment(40_000, 9001, 20));
            cases.push(Case::to_tornet("from the relay address", &packet, 0));
        }
        let mut back = inbound(0);
        back.destination = address.into();
        cases.push(Case::to_host("to the relay address", &back, &[]));
        assert_ne!(HOST_V4.octets(), address);
        let config = Config::default().host("relay_addresses = [\"192.0.2.11\"]");
        // An unlisted endpoint contradicts the source address.
        Rig::silent(Plan::default(), &config).verify(
            &cases,
            "host_received=2 relay=2 disagreement=1 incoming_forwarded=2 incoming_received=1 \
             host_forwarded=1",
        );
    });
}
