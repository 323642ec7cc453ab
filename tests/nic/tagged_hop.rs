//! The next hop of tagged frames: it is resolved on a VLAN interface, which may be missing, and may
//! be deleted and created again.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use crate::next_hop::{FIRST, SECOND, TestNetwork, UNKNOWN, V4, V6, ground, open, without_carrier};
use crate::vlan::has_vlans;
use caps::{CapSet, Capability};
use exitmark_lab::{Netns, needs_root};
use exitmark_nic::{NextHop, NextHopMonitor, NextHopState, Nic, NicError};

/// The tags of a VLAN interface, and the commands that create it on top of a NIC and set it up.
const SINGLE: (&[u16], &[&str]) = (&[30], &["link add link NIC name tagged0 type vlan id 30"]);
const PAIR: (&[u16], &[&str]) = (
    &[200, 10],
    &[
        "link add link NIC name outer0 type vlan proto 802.1ad id 200",
        "link set outer0 up",
        "link add link outer0 name tagged0 type vlan id 10",
    ],
);

/// Creates the VLAN interface `tagged0`.
fn create(netns: &Netns, nic: &str, commands: &[&str]) {
    for command in commands {
        netns.ip(&command.replace("NIC", nic)).unwrap();
    }
    netns.ip("link set tagged0 up").unwrap();
}

/// A box and a router whose addresses are on a VLAN interface, with the MAC address [`SECOND`]. The
/// box has no VLAN interface yet.
fn tagged_ground(commands: &[&str]) -> (Netns, Netns) {
    let (middle, router) = ground(false);
    router.ip("addr flush dev eth0 scope global").unwrap();
    create(&router, "eth0", commands);
    let address = format!("link set tagged0 address {SECOND}");
    router.ip(&address).unwrap();
    for address in [format!("{V4}/24"), format!("{V6}/64")] {
        router
            .ip(&format!("addr add {address} dev tagged0"))
            .unwrap();
    }
    (middle, router)
}

#[test]
fn follows_a_vlan_interface_that_is_deleted_and_created_again() {
    needs_root!();
    if !has_vlans() {
        return;
    }
    for (tags, commands) in [SINGLE, PAIR] {
        for address in [V4, V6] {
            let mut network = TestNetwork::on_vlan(tagged_ground(commands), tags, address);
            network.wait_for(NextHopState::default());
            // With the outer interface, the inner one is deleted too.
            let lowest = if tags.len() == 2 { "outer0" } else { "tagged0" };
            for _ in 0..2 {
                create(&network.middle, "incoming0", commands);
                network.wait_for(open(SECOND));
                network.middle.ip(&format!("link del {lowest}")).unwrap();
                network.wait_for(NextHopState::default());
            }
            for state in network.all() {
                assert!([None, open(SECOND).mac].contains(&state.mac), "{state:?}");
            }
        }
    }
}

#[test]
fn carrier_of_a_vlan_interface_follows_its_nic() {
    needs_root!();
    if !has_vlans() {
        return;
    }
    let (tags, commands) = SINGLE;
    let (middle, router) = tagged_ground(commands);
    create(&middle, "incoming0", commands);
    let mut network = TestNetwork::on_vlan((middle, router), tags, V4);
    network.wait_for(open(SECOND));
    for _ in 0..2 {
        network.router.ip("link set eth0 down").unwrap();
        network.wait_for(without_carrier(SECOND));
        network.router.ip("link set eth0 up").unwrap();
        network.wait_for(open(SECOND));
        network.middle.ip("link set tagged0 down").unwrap();
        network.wait_for(without_carrier(SECOND));
        network.middle.ip("link set tagged0 up").unwrap();
        network.wait_for(open(SECOND));
    }
}

#[test]
fn turns_to_an_8021q_interface_that_is_created_beside_one_of_8021ad() {
    needs_root!();
    if !has_vlans() {
        return;
    }
    let (tags, commands) = SINGLE;
    let (middle, router) = tagged_ground(commands);
    for line in [
        "link add link incoming0 name service0 type vlan proto 802.1ad id 30",
        "link set service0 up",
    ] {
        middle.ip(line).unwrap();
    }
    let mut network = TestNetwork::on_vlan((middle, router), tags, V4);
    network.wait_for(UNKNOWN);
    create(&network.middle, "incoming0", commands);
    network.wait_for(open(SECOND));
    // And back, when it is deleted.
    network.middle.ip("link del tagged0").unwrap();
    network.wait_for(UNKNOWN);
}

#[test]
fn a_missing_vlan_interface_has_neither_carrier_nor_next_hop() {
    needs_root!();
    let mut network = TestNetwork::on_vlan(ground(true), &[30], V4);
    network.wait_for(NextHopState::default());
    // The NIC itself has both, in another network.
    network.middle.ip("link set incoming0 down").unwrap();
    network.middle.ip("link set incoming0 up").unwrap();
    assert_eq!(network.all(), [NextHopState::default()]);
}

#[test]
fn a_configured_mac_address_needs_no_vlan_interface() {
    needs_root!();
    let mut network = TestNetwork::on_vlan(ground(false), &[30], FIRST);
    network.wait_for(open(FIRST));
    network.router.ip("link set eth0 down").unwrap();
    network.wait_for(without_carrier(FIRST));
}

#[test]
fn start_on_a_vlan_fails_without_the_nic_or_the_capability() {
    needs_root!();
    let (middle, _router) = ground(true);
    let (no_nic, no_right) = middle.run(|| {
        let hop: NextHop = V4.parse().unwrap();
        let missing = NextHopMonitor::start_on_vlan(4_000_000, &[30], hop, |_| ());
        // Drops the capability of this thread only; thread and namespace end with the test.
        let index = Nic::look("incoming0").unwrap().index;
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        let forbidden = NextHopMonitor::start_on_vlan(index, &[30], hop, |_| ());
        caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        (missing.err().unwrap(), forbidden.err().unwrap())
    });
    assert!(matches!(no_nic, NicError::Missing(_)), "{no_nic}");
    let said = no_right.to_string();
    assert!(said.contains("incoming0"), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
}
