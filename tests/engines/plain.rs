//! The short way of the ordinary frames of hosts.

use crate::rig::{Rig, in_namespace};
use exitmark_datapath::{Buffers, Counter, Role};
use exitmark_lab::cases::WEB4;
use exitmark_lab::differential::Scenario;
use exitmark_lab::frames::tcp;
use exitmark_policy::{Class, Snapshot};

fn snapshot(addresses: &str) -> Snapshot {
    let scenario = format!(
        "mode=Enforce tap=Off host_mark=none relays= incoming=none next_hops= \
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
