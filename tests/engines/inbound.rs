//! The kernel engine with inbound frames, and its learning of the host's MAC address.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::{Buffers, Counter, DropReason, KnownHost, PerRole, Role};
use exitmark_lab::cases::{HOST4, HOST6, RELAY4, WEB4, WEB6};
use exitmark_lab::differential::Scenario;
use exitmark_lab::frames::{FROM, Frame, TO, extension, tcp};
use exitmark_policy::Class;
use exitmark_policy::packet::MacAddr;
use std::collections::BTreeSet;
use std::net::SocketAddr;

const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 1]);
const NEXT_HOP: MacAddr = MacAddr::new([2, 0, 0, 0, 3, 2]);
const BROADCAST: MacAddr = MacAddr::new([0xff; 6]);
const OR4: &str = "192.0.2.11:9001";

/// A host with addresses of both kinds, and a next hop for relay traffic.
fn rig(host: Option<MacAddr>, port: Role) -> Rig {
    tagged_rig(host, port, "", "")
}

/// The same with the tags of the host's frames, and those of the next hop's network.
fn tagged_rig(host: Option<MacAddr>, port: Role, vlan: &str, steer_vlan: &str) -> Rig {
    rig_of(&scenario(host, port, vlan, steer_vlan))
}

fn scenario(host: Option<MacAddr>, port: Role, vlan: &str, steer_vlan: &str) -> String {
    let host = host.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
    format!(
        "mode=Enforce host_mark=none relays={RELAY4} incoming={port},{OWN},{NEXT_HOP} next_hops= \
         drops_unsteered=false seeks_host=false longest=9014 hand_over= \
         mark=10 at_uplink=Keep steer=Both protocols=Tcp \
         addresses=192.0.2.10/32,192.0.2.77/32,2001:db8:1::10/128 relay_addresses=192.0.2.11/32 \
         resolvers= exempt= listeners= host_mac={host} vlan={vlan} path=0,0,none,{steer_vlan}"
    )
}

fn rig_of(scenario: &str) -> Rig {
    let scenario: Scenario = scenario.parse().unwrap();
    let snapshot = scenario.snapshot().unwrap();
    Rig::new(Buffers::Several, &snapshot, scenario.incoming)
}

/// A frame that a router on `incoming` sends to the box's MAC address.
fn to_box(frame: Frame) -> Frame {
    frame.macs(OWN, NEXT_HOP)
}

const HOST_MAC_UNKNOWN: Counter = Counter::Dropped(DropReason::HostMacUnknown);
const NO_EGRESS: Counter = Counter::Dropped(DropReason::NoEgress);

/// Checks that a frame from this port goes to the host, as this one.
#[track_caller]
fn delivers(rig: &mut Rig, from: Role, sent: &[u8], delivered: &[u8], name: &str) {
    delivers_split(rig, from, (sent, sent.len()), delivered, name);
}

/// The same with this number of bytes in the first buffer.
#[track_caller]
fn delivers_split(rig: &mut Rig, from: Role, sent: (&[u8], usize), delivered: &[u8], name: &str) {
    let (ran, counted) = rig.run_split(from, sent.0, sent.1);
    assert!(ran.redirected && ran.frame == delivered, "{name}");
    counted.assert_forwarded(from, Role::Host, name);
    assert_eq!(counted.to_stack(from), 0, "{name}");
}

#[rustfmt::skip]
fn for_host() -> Vec<(&'static str, Frame)> {
    vec![
        ("IPv4", to_box(tcp(WEB4, HOST4))),
        ("IPv6", to_box(tcp(WEB6, HOST6))),
        ("the relay address", to_box(tcp(RELAY4, OR4))),
        ("four tags", (0..4).fold(to_box(tcp(WEB4, HOST4)), |frame, _| frame.tag(0x8100, 7))),
        ("a later fragment", to_box(tcp(WEB4, HOST4).fragment(7, 100, false))),
        ("extension headers", to_box(tcp(WEB6, HOST6).extensions(&[extension::DESTINATION; 3]))),
        ("jumbo", to_box(tcp(WEB4, HOST4).payload(8000))),
        ("longer than a port takes", to_box(tcp(WEB4, HOST4).payload(9500))),
        ("cut ports", to_box(tcp(WEB4, HOST4).payload(1))),
        ("marked", to_box(tcp(WEB4, HOST4).tos(0x28))),
    ]
}

/// Frames that only the stack may get, with a name.
#[rustfmt::skip]
fn for_stack() -> Vec<(&'static str, Vec<u8>)> {
    let mut arp = to_box(tcp(WEB4, HOST4)).build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut version = to_box(tcp(WEB4, HOST4)).build();
    version[14] = 0x65;
    let mut cut = to_box(tcp(WEB4, HOST4)).build();
    cut.truncate(33);
    let five_tags = (0..5).fold(to_box(tcp(WEB4, HOST4)), |frame, _| frame.tag(0x8100, 7));
    vec![
        ("another MAC address", tcp(WEB4, HOST4).macs(TO, NEXT_HOP).build()),
        ("broadcast", tcp(WEB4, HOST4).macs(BROADCAST, NEXT_HOP).build()),
        ("another IPv4 address", to_box(tcp(WEB4, "192.0.2.9:40000")).build()),
        ("another IPv6 address", to_box(tcp(WEB6, "[2001:db8:1::11]:40000")).build()),
        ("arp", arp),
        ("wrong version", version),
        ("cut header", cut),
        ("five tags", five_tags.build()),
    ]
}

#[test]
fn incoming_forwards_frames_sent_to_the_box_for_the_host() {
    in_namespace(|| {
        let mut rig = rig(Some(FROM), Role::Incoming);
        for (name, frame) in for_host() {
            let delivered = frame.clone().macs(FROM, NEXT_HOP).build();
            delivers(&mut rig, Role::Incoming, &frame.build(), &delivered, name);
        }
        for (name, frame) in for_stack() {
            let (ran, counted) = rig.run(Role::Incoming, &frame);
            assert!(ran.passed && ran.frame == frame, "{name}");
            assert_eq!(counted.to_stack(Role::Incoming), 1, "{name}");
            assert_eq!(counted.of(Counter::Received(Role::Incoming)), 0, "{name}");
        }
    });
}

#[test]
fn incoming_reads_headers_beyond_the_first_buffer() {
    in_namespace(|| {
        let mut rig = rig(Some(FROM), Role::Incoming);
        for first in [14, 16, 20, 34, 40, 54] {
            for (name, frame) in for_host() {
                let name = format!("{name}, {first} bytes in reach");
                let built = frame.build();
                let sent = (&built[..], first.min(built.len()));
                let delivered = frame.macs(FROM, NEXT_HOP).build();
                delivers_split(&mut rig, Role::Incoming, sent, &delivered, &name);
            }
            for (name, frame) in for_stack() {
                let split = first.min(frame.len());
                let (ran, counted) = rig.run_split(Role::Incoming, &frame, split);
                assert!(ran.passed && ran.frame == frame, "{name}, {first}");
                assert_eq!(counted.to_stack(Role::Incoming), 1, "{name}, {first}");
            }
        }
    });
}

#[test]
fn uplink_forwards_frames_unchanged() {
    in_namespace(|| {
        let mut rig = rig(Some(FROM), Role::Incoming);
        let frames = for_host().into_iter();
        let built = frames.map(|(name, frame)| (name, frame.build()));
        for (name, frame) in built.chain(for_stack()) {
            delivers(&mut rig, Role::Uplink, &frame, &frame, name);
        }
    });
}

#[test]
fn one_nic_can_be_uplink_and_incoming() {
    in_namespace(|| {
        let mut rig = rig(Some(FROM), Role::Uplink);
        for (name, frame) in for_host() {
            let delivered = frame.clone().macs(FROM, NEXT_HOP).build();
            delivers(&mut rig, Role::Uplink, &frame.build(), &delivered, name);
        }
        for (name, frame) in for_stack() {
            delivers(&mut rig, Role::Uplink, &frame, &frame, name);
        }
        let relay = tcp(HOST4, RELAY4);
        let (ran, counted) = rig.run(Role::Host, &relay.build());
        assert!(ran.frame == relay.macs(NEXT_HOP, OWN).build());
        counted.assert_forwarded(Role::Host, Role::Uplink, "relay");
        assert_eq!(counted.of(Counter::Class(Class::Relay)), 1);
    });
}

#[test]
fn learns_the_host_only_from_its_own_frames() {
    in_namespace(|| {
        let mut rig = rig(None, Role::Incoming);
        let inbound = to_box(tcp(WEB4, HOST4));
        let dropped = |rig: &mut Rig, why: &str| {
            let (ran, counted) = rig.run(Role::Incoming, &inbound.build());
            assert!(!ran.redirected && !ran.passed, "{why}");
            assert_eq!(counted.of(HOST_MAC_UNKNOWN), 1, "{why}");
            assert_eq!(rig.links.hosts(), [], "{why}");
        };
        dropped(&mut rig, "nothing was sent");
        let mut arp = tcp(HOST4, WEB4).build();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let multicast = MacAddr::new([3, 0, 0, 0, 0, 1]);
        #[rustfmt::skip]
        let table = [
            ("not IP", arp),
            ("foreign", tcp("192.0.2.12:1", WEB4).build()),
            ("malformed", tcp(HOST4, WEB4).payload(0).build()),
            ("multicast", tcp(HOST4, WEB4).macs(TO, multicast).build()),
            ("none", tcp(HOST4, WEB4).macs(TO, MacAddr::new([0; 6])).build()),
            ("foreign fragment", tcp("192.0.2.12:1", WEB4).fragment(7, 0, true).build()),
        ];
        for (why, frame) in table {
            rig.run(Role::Host, &frame);
            dropped(&mut rig, why);
        }
        let other = MacAddr::new([2, 0, 0, 0, 1, 7]);
        for (why, from, source) in [
            ("learned", FROM, HOST4),
            ("of another address", other, OR4),
            ("learned anew", other, HOST4),
        ] {
            rig.run(Role::Host, &tcp(source, WEB4).macs(TO, from).build());
            // Sent to the learned address: another address may belong to another host.
            let inbound = to_box(tcp(WEB4, source));
            let (ran, _) = rig.run(Role::Incoming, &inbound.build());
            assert!(ran.frame == inbound.macs(from, NEXT_HOP).build(), "{why}");
        }
    });
}

#[test]
fn each_of_several_hosts_gets_only_its_own_frames() {
    in_namespace(|| {
        let mut rig = rig(None, Role::Incoming);
        let [one, other] = [1, 2].map(|last| MacAddr::new([2, 0, 0, 0, 1, last]));
        let hosts = [(HOST4, one, WEB4), (OR4, other, WEB4), (HOST6, other, WEB6)];
        for _ in 0..2 {
            for (host, mac, web) in hosts {
                rig.run(Role::Host, &tcp(host, web).macs(TO, mac).build());
            }
            for (host, mac, web) in hosts {
                let inbound = to_box(tcp(web, host));
                let (ran, _) = rig.run(Role::Incoming, &inbound.build());
                assert!(ran.frame == inbound.macs(mac, NEXT_HOP).build(), "{host}");
            }
        }
        let known = rig.links.hosts().into_iter();
        let known: BTreeSet<_> = known
            .map(|host| (host.address, host.mac.to_u64(), host.changes))
            .collect();
        let address = |endpoint: &str| endpoint.parse::<SocketAddr>().unwrap().ip();
        let expected = hosts.map(|(host, mac, _)| (address(host), mac.to_u64(), 0));
        assert_eq!(known, expected.into());
        // An address that has sent nothing may belong to any of several hosts.
        assert!(rig.links.has_several_macs());
        let unseen = to_box(tcp(WEB4, "192.0.2.77:40000")).build();
        let (ran, counted) = rig.run(Role::Incoming, &unseen);
        assert!(!ran.redirected && !ran.passed);
        assert_eq!(counted.of(HOST_MAC_UNKNOWN), 1);
        // Until all of them have the same MAC address.
        for (host, web) in [(HOST4, WEB4), (OR4, WEB4), (HOST6, WEB6)] {
            rig.run(Role::Host, &tcp(host, web).macs(TO, one).build());
        }
        rig.links.settle_hosts(Some(&[]));
        let (ran, _) = rig.run(Role::Incoming, &unseen);
        assert!(ran.redirected);
    });
}

/// The text of a rig's second group of hosts.
const SECOND_GROUP: &str = " mark=12 at_uplink=Keep steer=Both protocols=Tcp \
    addresses=192.0.2.99/32 relay_addresses= resolvers= exempt= listeners= host_mac=none vlan= \
    path=0,0,none,";

/// The host of another group may be another machine, which has sent nothing so far.
#[test]
fn the_only_known_host_is_not_that_of_another_group() {
    in_namespace(|| {
        let second = |text: &str| text.to_owned() + SECOND_GROUP;
        for (groups, is_known) in [(1, true), (2, false)] {
            let mut rig = match groups {
                1 => rig(None, Role::Incoming),
                _ => rig_of(&second(&scenario(None, Role::Incoming, "", ""))),
            };
            rig.run(Role::Host, &tcp(HOST4, WEB4).macs(TO, FROM).build());
            let unseen = to_box(tcp(WEB4, "192.0.2.77:40000")).build();
            let (ran, counted) = rig.run(Role::Incoming, &unseen);
            assert_eq!(ran.redirected, is_known, "{groups}");
            assert_eq!(
                counted.of(HOST_MAC_UNKNOWN),
                u64::from(!is_known),
                "{groups}"
            );
        }
    });
}

/// In another VLAN, another machine can have the address of a host.
#[test]
fn a_host_is_learned_from_its_own_vlan_only() {
    in_namespace(|| {
        let other = MacAddr::new([2, 0, 0, 0, 1, 9]);
        for (vlan, own, foreign) in [("10", Some(10), Some(20)), ("", None, None)] {
            let steer_vlan = if vlan.is_empty() { "" } else { "30" };
            let mut rig = tagged_rig(None, Role::Incoming, vlan, steer_vlan);
            let tagged = |frame: Frame, tag: Option<u16>| match tag {
                Some(tag) => frame.tag(0x8100, tag),
                None => frame,
            };
            let sent = tagged(tcp(HOST4, WEB4).macs(TO, FROM), own);
            rig.run(Role::Host, &sent.build());
            let stranger = tagged(tcp(HOST4, WEB4).macs(TO, other), foreign);
            rig.run(Role::Host, &stranger.build());
            let expected = if vlan.is_empty() { other } else { FROM };
            let known: Vec<_> = rig.links.hosts().iter().map(|host| host.mac).collect();
            assert_eq!(known, [expected], "{vlan}");
        }
    });
}

#[test]
fn a_host_whose_mac_address_changes_is_one_host() {
    in_namespace(|| {
        let mut rig = rig(None, Role::Incoming);
        for last in 1..9 {
            let mac = MacAddr::new([2, 0, 0, 0, 1, last]);
            rig.run(Role::Host, &tcp(HOST4, WEB4).macs(TO, mac).build());
            assert!(!rig.links.has_several_macs());
            let unseen = to_box(tcp(WEB4, "192.0.2.77:40000"));
            let (ran, _) = rig.run(Role::Incoming, &unseen.build());
            assert!(ran.frame == unseen.macs(mac, NEXT_HOP).build());
        }
        assert_eq!(rig.links.hosts()[0].changes, 7);
    });
}

#[test]
fn more_addresses_than_the_table_holds_are_counted() {
    in_namespace(|| {
        let mut rig = rig(None, Role::Incoming);
        let (mut taken, mut number) = (0, 0_u32);
        while rig.links.hosts_full() == 0 {
            let source = std::net::Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number));
            number += 1;
            assert!(number < 20_000, "the table has no end");
            // Learned as if it had sent a frame.
            let host = KnownHost {
                address: source.into(),
                mac: FROM,
                changes: 0,
            };
            rig.links.remember_hosts([host]);
            taken = rig.links.hosts().len();
        }
        assert!(taken >= 1024, "{taken}");
        // Until every entry is taken.
        for number in number..200_000 {
            let source = std::net::Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number));
            rig.links.remember_hosts([KnownHost {
                address: source.into(),
                mac: FROM,
                changes: 0,
            }]);
        }
        let full = rig.links.hosts_full();
        rig.run(Role::Host, &tcp(HOST6, WEB6).build());
        assert_eq!(rig.links.hosts_full(), full + 1);
    });
}

#[test]
fn a_configured_mac_address_serves_every_address() {
    in_namespace(|| {
        let mut rig = rig(Some(FROM), Role::Incoming);
        let other = MacAddr::new([2, 0, 0, 0, 1, 7]);
        rig.run(Role::Host, &tcp(HOST4, WEB4).macs(TO, other).build());
        let inbound = to_box(tcp(WEB4, HOST4));
        let (ran, _) = rig.run(Role::Incoming, &inbound.build());
        assert!(ran.frame == inbound.macs(FROM, NEXT_HOP).build());
    });
}

/// What comes back from the next hop's network gets the tags of the host's.
#[test]
fn tags_of_the_next_hop_are_replaced_by_those_of_the_host() {
    in_namespace(|| {
        type Tags = &'static [(u16, u16)];
        let tagged = |frame: Frame, tags: Tags| {
            let tags = tags.iter();
            tags.fold(frame, |frame, &(kind, control)| frame.tag(kind, control))
        };
        let cases: [(&str, &str, Tags, Tags); 6] = [
            ("10", "30", &[(0x8100, 0xa01e)], &[(0x8100, 0xa00a)]),
            ("", "30", &[(0x8100, 0xa01e)], &[]),
            ("10", "", &[], &[(0x8100, 10)]),
            ("200+10", "", &[], &[(0x88a8, 200), (0x8100, 10)]),
            ("", "200+30", &[(0x88a8, 200), (0x8100, 30)], &[]),
            (
                "200+10",
                "30",
                &[(0x8100, 0x601e)],
                &[(0x88a8, 0x60c8), (0x8100, 0x600a)],
            ),
        ];
        for port in [Role::Incoming, Role::Uplink] {
            for (vlan, steer_vlan, sent, delivered) in cases {
                let name = format!("{vlan:?} from {steer_vlan:?} by {port}");
                let mut rig = tagged_rig(Some(FROM), port, vlan, steer_vlan);
                for packet in [tcp(WEB4, HOST4), tcp(WEB6, HOST6).payload(1300)] {
                    let frame = tagged(to_box(packet.clone()), sent).build();
                    let expected = tagged(to_box(packet), delivered).macs(FROM, NEXT_HOP);
                    delivers(&mut rig, port, &frame, &expected.build(), &name);
                }
                // By another network it is not for the host.
                let other = to_box(tcp(WEB4, HOST4)).tag(0x8100, 77).build();
                let (ran, _) = rig.run(port, &other);
                assert_eq!(ran.passed, port == Role::Incoming, "{name}");
                assert!(ran.frame == other, "{name}");
            }
        }
    });
}

#[test]
fn frames_without_an_egress_are_dropped_and_counted() {
    in_namespace(|| {
        let mut rig = rig(Some(FROM), Role::Incoming);
        let outbound = tcp(HOST4, WEB4).build();
        let inbound = to_box(tcp(WEB4, HOST4)).build();
        let nowhere = |rig: &mut Rig, why: &str| {
            for (role, frame) in [
                (Role::Host, &outbound),
                (Role::Uplink, &inbound),
                (Role::Incoming, &inbound),
            ] {
                let (ran, counted) = rig.run(role, frame);
                assert!(!ran.redirected && !ran.passed, "{why}: {role}");
                assert_eq!(counted.of(NO_EGRESS), 1, "{why}");
                assert_eq!(counted.of(Counter::Received(role)), 1, "{why}");
            }
        };
        rig.links.allow_redirects(PerRole::from_fn(|_| false), 9014);
        nowhere(&mut rig, "no port takes redirected frames");
        rig.links.allow_redirects(PerRole::from_fn(|_| true), 9014);
        for role in Role::ALL {
            rig.kernel.set_port(role, None).unwrap();
        }
        nowhere(&mut rig, "there is no NIC");
    });
}
