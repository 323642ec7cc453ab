//! The short way of the ordinary frames of hosts.

use crate::hosts::{FIRST, colliding};
use crate::rig::{Rig, in_namespace};
use exitmark_datapath::memory::HeapMemory;
use exitmark_datapath::{
    Buffers, Counter, Forwarder, FrameMemory, IncomingLink, Links, Outbox, Outcome, PerRole, Role,
};
use exitmark_lab::Random;
use exitmark_lab::cases::{WEB4, WEB6};
use exitmark_lab::differential::{Generator, Scenario};
use exitmark_lab::frames::tcp;
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_policy::packet::{MacAddr, Version};
use exitmark_policy::{Class, PlainHosts, Snapshot};
use std::sync::Arc;
use std::time::Duration;

const RELAY: &str = "198.18.0.1:9001";

fn snapshot(addresses: &str) -> Snapshot {
    let scenario = format!(
        "mode=Enforce tap=Off host_mark=none relays={RELAY} incoming=none next_hops= \
         drops_unsteered=false seeks_host=false longest=9014 hand_over= mark=10 at_uplink=Keep \
         steer=Both protocols=Tcp addresses={addresses} relay_addresses= resolvers= exempt= \
         listeners= host_mac=none vlan= path=0,0,none,"
    );
    let scenario: Scenario = scenario.parse().unwrap();
    scenario.snapshot().unwrap()
}

/// The program knows the MAC address of an address beyond the policy that had it as a host's.
#[test]
fn an_address_that_has_left_the_policy_is_of_no_host() {
    in_namespace(|| {
        let mut rig = Rig::new(Buffers::One, &snapshot("192.0.2.8/30"), None);
        let frame = tcp("192.0.2.10:40000", WEB4).build();
        for _ in 0..2 {
            let (_, counted) = rig.run(Role::Host, &frame);
            assert_eq!(counted.of(Counter::Class(Class::Exit)), 1);
        }
        for others in ["192.0.2.12/30", "192.0.2.4/30", "192.0.2.11/32"] {
            rig.kernel.publish(&snapshot(others)).unwrap();
            let (_, counted) = rig.run(Role::Host, &frame);
            assert_eq!(counted.of(Counter::Class(Class::Exit)), 0, "{others}");
            assert_eq!(counted.of(Counter::Class(Class::Foreign)), 1, "{others}");
        }
    });
}

/// Far behind the packet, and in other buffers, bytes count too.
#[test]
fn a_trailer_is_counted() {
    in_namespace(|| {
        let mut rig = Rig::new(Buffers::Several, &snapshot("192.0.2.10/32"), None);
        let host = tcp("192.0.2.10:40000", WEB4).padding(1900).build();
        let uplink = tcp(WEB4, "192.0.2.10:40000").padding(1900).build();
        for first in [60, 1200] {
            let (_, counted) = rig.run_split(Role::Uplink, &uplink, first);
            let bytes = counted.of(Counter::ReceivedBytes(Role::Uplink));
            assert_eq!((first, bytes), (first, uplink.len() as u64));
        }
        let longer = tcp(WEB4, "192.0.2.10:40000")
            .payload(100)
            .padding(1900)
            .build();
        let (_, counted) = rig.run_split(Role::Uplink, &longer, 1200);
        let bytes = counted.of(Counter::ReceivedBytes(Role::Uplink));
        assert_eq!(bytes, longer.len() as u64);
        for _ in 0..2 {
            let (_, counted) = rig.run_split(Role::Host, &host, 1200);
            let bytes = counted.of(Counter::ClassBytes(Class::Exit));
            assert_eq!(bytes, host.len() as u64);
        }
    });
}

/// The short way does not write an address that is unknown.
#[test]
fn a_relay_frame_without_a_known_next_hop_leaves_by_uplink() {
    in_namespace(|| {
        let link = |next_hop| IncomingLink {
            port: Role::Incoming,
            own: INCOMING_MAC.parse().unwrap(),
            next_hop,
        };
        let frame = tcp("192.0.2.10:40000", RELAY).build();
        let of = |next_hop, port| {
            let link = Some(link(next_hop));
            let mut rig = Rig::new(Buffers::One, &snapshot("192.0.2.10/32"), link);
            rig.run(Role::Host, &frame);
            let (ran, counted) = rig.run(Role::Host, &frame);
            assert_eq!(counted.of(Counter::Class(Class::Relay)), 1);
            assert_eq!(counted.of(Counter::Forwarded(port)), 1);
            (ran.frame == frame, counted.of(Counter::Unsteered))
        };
        assert_eq!(of(None, Role::Uplink), (true, 1));
        let known = Some(TORNET_MAC.parse().unwrap());
        assert_eq!(of(known, Role::Incoming), (false, 0));
    });
}

/// The MAC address of a host is not that of another address with the same entry, or one that the
/// policy had before.
#[test]
fn a_frame_from_incoming_gets_the_mac_address_of_its_own_host() {
    in_namespace(|| {
        let own: MacAddr = INCOMING_MAC.parse().unwrap();
        let router: MacAddr = TORNET_MAC.parse().unwrap();
        let link = IncomingLink {
            port: Role::Incoming,
            own,
            next_hop: Some(router),
        };
        let host = |number| MacAddr::new([2, 0, 0, 0, 1, number]);
        let to = |address: &str| {
            let source = if address.contains('[') { WEB6 } else { WEB4 };
            tcp(source, &format!("{address}:40000"))
                .macs(own, router)
                .build()
        };
        let sends = |rig: &mut Rig, address: &str, mac| {
            let web = if address.contains('[') { WEB6 } else { WEB4 };
            let frame = tcp(&format!("{address}:40000"), web)
                .macs(router, mac)
                .build();
            rig.run(Role::Host, &frame);
        };
        let mut rig = Rig::new(Buffers::One, &snapshot("10.0.0.0/8"), Some(link));
        let second = colliding().next().unwrap();
        sends(&mut rig, FIRST, host(1));
        sends(&mut rig, &second, host(2));
        for (address, mac) in [(FIRST, host(1)), (&second, host(2))] {
            let (ran, counted) = rig.run(Role::Incoming, &to(address));
            assert_eq!(MacAddr::destination_of(&ran.frame), Some(mac), "{address}");
            assert_eq!(counted.of(Counter::Forwarded(Role::Host)), 1);
        }
        let before = "[2001:db8:1::10]";
        rig.kernel.publish(&snapshot("2001:db8:1::10/128")).unwrap();
        sends(&mut rig, before, host(3));
        rig.kernel.publish(&snapshot("2001:db8:2::10/128")).unwrap();
        let (ran, _) = rig.run(Role::Incoming, &to(before));
        assert!(ran.passed, "it is of no host now");
    });
}

/// A frame by the short way shows that its host is active, as every other frame does.
#[test]
fn a_host_whose_frames_are_ordinary_is_active() {
    in_namespace(|| {
        let mut rig = Rig::new(Buffers::One, &snapshot("192.0.2.10/32"), None);
        let frame = tcp("192.0.2.10:40000", WEB4).build();
        let is_active = |rig: &Rig, second| {
            let activity = rig.links.take_activity(Duration::from_secs(second));
            activity
                .iter()
                .map(|host| host.is_active)
                .collect::<Vec<_>>()
        };
        for second in [10, 20] {
            rig.run(Role::Host, &frame);
            assert_eq!(is_active(&rig, second), [true]);
            assert_eq!(is_active(&rig, second + 1), [false]);
        }
    });
}

#[test]
fn a_frame_from_uplink_is_counted_with_all_its_buffers() {
    in_namespace(|| {
        let mut rig = Rig::new(Buffers::Several, &snapshot("192.0.2.10/32"), None);
        let frame = tcp(WEB4, "192.0.2.10:40000").payload(1900).build();
        for first in [14, 60, 1200] {
            let (ran, counted) = rig.run_split(Role::Uplink, &frame, first);
            assert!(ran.redirected, "{first}");
            let bytes = counted.of(Counter::ReceivedBytes(Role::Uplink));
            assert_eq!(bytes, frame.len() as u64, "{first}");
        }
    });
}

/// A batch has a short way; a frame alone, which `explain` and the fuzzer decide, has not.
#[test]
fn a_batch_is_decided_as_its_frames_one_by_one() {
    const FRAMES: u32 = 64;
    let mut random = Random::new(5);
    let mut short = 0;
    for _ in 0..400 {
        let scenario = Scenario::some(&mut random);
        let snapshot = Arc::new(scenario.snapshot().unwrap());
        let forwarder = || {
            let links = Arc::new(Links::new(scenario.incoming));
            links.drop_unsteered(scenario.drops_unsteered);
            for (number, mac) in (1..).zip(&scenario.next_hops) {
                links.steer_to(number, *mac);
            }
            Forwarder::new(Arc::clone(&snapshot), links)
        };
        let [mut one_by_one, mut batch] = [forwarder(), forwarder()];
        let (mut memory, mut pool) = HeapMemory::new(FRAMES, 16_384);
        let mut generator = Generator::new(&scenario);
        let mut expected: PerRole<Vec<Vec<u8>>> = PerRole::from_fn(|_| Vec::new());
        let (mut arrived, mut frame) = (Vec::new(), Vec::new());
        while arrived.len() < FRAMES as usize {
            // Twice each: the host of the second one is known.
            if arrived.len() % 2 == 0 {
                while generator.next(&mut random, &mut frame) != Role::Host {}
            }
            arrived.extend(memory.load(&frame, &mut pool));
            let (mut after, bytes) = (frame.clone(), frame.len());
            let (outcome, _) = one_by_one.forward(Role::Host, &mut after, bytes, Duration::ZERO);
            if let Outcome::Forward(role) = outcome {
                expected[role].push(after);
            }
        }
        let mut outbox = Outbox::default();
        let now = Duration::ZERO;
        batch.process_batch(Role::Host, &mut arrived, &mut memory, &mut outbox, now);
        for (role, leaving) in outbox.leaving.iter() {
            let bytes = leaving.iter().map(|frame| memory.view(frame).to_vec());
            assert_eq!(bytes.collect::<Vec<_>>(), expected[role], "{scenario}");
        }
        let counted = [one_by_one.tally(), batch.tally()].map(|tally| {
            let classes = Class::ALL.map(|class| {
                [Counter::Class(class), Counter::ClassBytes(class)].map(|what| tally.of(what))
            });
            (
                classes,
                [Counter::Marked, Counter::Cleared, Counter::Unsteered].map(|what| tally.of(what)),
            )
        });
        assert_eq!(counted[0], counted[1], "{scenario}");
        let plain = snapshot.plain();
        short += u32::from(*plain.hosts(Version::V4) != PlainHosts::default());
    }
    assert!(short > 20, "{short} scenarios with plain hosts");
}
