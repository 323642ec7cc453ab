//! The short way of the ordinary frames of hosts.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::{Buffers, Counter, IncomingLink, Role};
use exitmark_lab::cases::WEB4;
use exitmark_lab::differential::Scenario;
use exitmark_lab::frames::tcp;
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use exitmark_policy::{Class, Snapshot};
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
