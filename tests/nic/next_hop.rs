//! The next hop of steered frames, with a router that moves, goes away and comes back.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use caps::{CapSet, Capability};
use exitmark_lab::{Netns, VethEnd, needs_root, timeout, veth};
use exitmark_nic::{NextHop, NextHopMonitor, NextHopState, Nic, NicError};
use exitmark_policy::packet::MacAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const OWN: &str = "02:00:00:00:03:01";
pub(crate) const FIRST: &str = "02:00:00:00:03:02";
pub(crate) const SECOND: &str = "02:00:00:00:03:99";
pub(crate) const V4: &str = "203.0.113.1";
pub(crate) const V6: &str = "2001:db8:3::1";

fn mac(text: &str) -> Option<MacAddr> {
    Some(text.parse().unwrap())
}

pub(crate) fn open(hop: &str) -> NextHopState {
    NextHopState {
        has_carrier: true,
        mac: mac(hop),
    }
}

pub(crate) const UNKNOWN: NextHopState = NextHopState {
    has_carrier: true,
    mac: None,
};

pub(crate) fn without_carrier(hop: &str) -> NextHopState {
    NextHopState {
        has_carrier: false,
        ..open(hop)
    }
}

/// A box and a router on one network, and the reported states of the next hop.
pub(crate) struct TestNetwork {
    pub(crate) middle: Netns,
    pub(crate) router: Netns,
    states: mpsc::Receiver<NextHopState>,
    reported: Vec<NextHopState>,
    pub(crate) monitor: NextHopMonitor,
}

/// A box and a router; the box has addresses on that network if `has_addresses`.
pub(crate) fn ground(has_addresses: bool) -> (Netns, Netns) {
    let (middle, router) = (Netns::new("box").unwrap(), Netns::new("router").unwrap());
    let near = VethEnd::new(&middle, "incoming0", OWN);
    let far = VethEnd::new(&router, "eth0", FIRST);
    veth(&near, &far, 1500).unwrap();
    let has = |netns: &Netns, nic: &str, [v4, v6]: [&str; 2]| {
        for address in [format!("{v4}/24"), format!("{v6}/64")] {
            netns.ip(&format!("addr add {address} dev {nic}")).unwrap();
        }
    };
    has(&router, "eth0", [V4, V6]);
    if has_addresses {
        has(&middle, "incoming0", ["203.0.113.2", "2001:db8:3::2"]);
    }
    (middle, router)
}

impl TestNetwork {
    fn build(hop: &str) -> Self {
        Self::on(ground(true), hop)
    }

    fn on(namespaces: (Netns, Netns), hop: &str) -> Self {
        Self::on_vlan(namespaces, &[], hop)
    }

    pub(crate) fn on_vlan(
        (middle, router): (Netns, Netns),
        tags: &'static [u16],
        hop: &str,
    ) -> Self {
        let (sender, states) = mpsc::channel();
        let hop: NextHop = hop.parse().unwrap();
        let monitor = middle.run(move || {
            let nic = Nic::look("incoming0").unwrap();
            NextHopMonitor::start_on_vlan(nic.index, tags, hop, move |state| {
                let _ = sender.send(state);
            })
            .unwrap()
        });
        Self {
            middle,
            router,
            states,
            reported: Vec::new(),
            monitor,
        }
    }

    #[track_caller]
    pub(crate) fn wait_for(&mut self, state: NextHopState) {
        let deadline = Instant::now() + timeout();
        while self.reported.last() != Some(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.states.recv_timeout(left) {
                Ok(reported) => self.reported.push(reported),
                Err(_) => panic!(
                    "{state:?} was not reported; reported were {:?}",
                    self.reported
                ),
            }
        }
        assert_eq!(self.monitor.now(), state);
    }

    /// All reports since the beginning; consecutive ones differ.
    pub(crate) fn all(self) -> Vec<NextHopState> {
        let mut reported = self.reported;
        drop(self.monitor);
        reported.extend(self.states.try_iter());
        let differ = reported.windows(2).all(|pair| pair[0] != pair[1]);
        assert!(differ, "reported twice: {reported:?}");
        reported
    }
}

#[test]
fn an_address_of_either_family_is_resolved() {
    needs_root!();
    for address in [V4, V6] {
        let mut network = TestNetwork::build(address);
        assert_eq!(network.monitor.first(timeout()), open(FIRST), "{address}");
        network.wait_for(open(FIRST));
        assert_eq!(network.all(), [UNKNOWN, open(FIRST)]);
    }
}

#[test]
fn a_router_is_found_by_its_link_local_address() {
    needs_root!();
    let mut network = TestNetwork::build("fe80::ff:fe00:302");
    network.wait_for(open(FIRST));
}

#[test]
fn follows_a_router_that_changes_its_address_silently() {
    needs_root!();
    for address in [V4, V6] {
        let mut network = TestNetwork::build(address);
        network.wait_for(open(FIRST));
        for hop in [SECOND, FIRST, SECOND] {
            // The router sends no announcement, and keeps its entry for the box.
            let change = format!("link set dev eth0 address {hop}");
            network.router.ip(&change).unwrap();
            let changed = Instant::now();
            network.wait_for(open(hop));
            println!("{address}: followed after {:?}", changed.elapsed());
        }
        let reported = network.all();
        let hops: Vec<_> = reported.iter().map(|state| state.mac).collect();
        let expected = [FIRST, SECOND, FIRST, SECOND].map(mac);
        // The next hop is never unknown in between, and never another address.
        assert_eq!(hops[1..], expected, "{address}");
    }
}

#[test]
fn next_hop_is_unknown_while_the_router_is_away() {
    needs_root!();
    for address in [V4, V6] {
        let mut network = TestNetwork::build(address);
        network.wait_for(open(FIRST));
        // The router's NIC still has carrier, but the address is gone.
        let flush = "addr flush dev eth0 scope global";
        network.router.ip(flush).unwrap();
        network.wait_for(UNKNOWN);
        let prefix = if address == V4 { 24 } else { 64 };
        let back = format!("addr add {address}/{prefix} dev eth0");
        network.router.ip(&back).unwrap();
        network.wait_for(open(FIRST));
        assert_eq!(network.all().len(), 4);
    }
}

#[test]
fn resolves_a_router_without_an_own_address() {
    needs_root!();
    let mut network = TestNetwork::on(ground(false), V4);
    network.wait_for(open(FIRST));
}

#[test]
fn a_permanent_entry_is_used_and_not_changed() {
    needs_root!();
    let (middle, router) = ground(true);
    let fixed = format!("neigh replace {V4} lladdr {SECOND} nud permanent dev incoming0");
    middle.ip(&fixed).unwrap();
    let mut network = TestNetwork::on((middle, router), V4);
    network.wait_for(open(SECOND));
    // No station has that MAC address, and the box does not check it.
    std::thread::sleep(Duration::from_secs(1));
    let entry = network.middle.ip(&format!("neigh show {V4}")).unwrap();
    assert!(entry.contains("PERMANENT"), "{entry}");
    assert!(entry.contains(SECOND), "{entry}");
    let moved = fixed.replace(SECOND, "02:00:00:00:03:77");
    network.middle.ip(&moved).unwrap();
    network.wait_for(open("02:00:00:00:03:77"));
    // After the entry is deleted, the router is resolved.
    let delete = format!("neigh del {V4} dev incoming0");
    network.middle.ip(&delete).unwrap();
    network.wait_for(open(FIRST));
    let hops = network.all().len();
    assert!(hops == 3 || hops == 4, "the first may be unknown");
}

#[test]
fn a_deleted_or_forged_entry_is_resolved_again() {
    needs_root!();
    let mut network = TestNetwork::build(V4);
    network.wait_for(open(FIRST));
    network.middle.ip("neigh flush dev incoming0").unwrap();
    // A forged STALE entry is not used until its owner confirms it.
    let false_one = format!("neigh replace {V4} lladdr {SECOND} nud stale dev incoming0");
    network.middle.ip(&false_one).unwrap();
    // The box's own address and a multicast address are never a next hop.
    for wrong in [OWN, "01:00:5e:00:00:01"] {
        let set = format!("neigh replace {V4} lladdr {wrong} nud reachable dev incoming0");
        network.middle.ip(&set).unwrap();
    }
    let moved = format!("link set dev eth0 address {SECOND}");
    network.router.ip(&moved).unwrap();
    network.wait_for(open(SECOND));
    for state in network.all() {
        let expected = [None, mac(FIRST), mac(SECOND)];
        assert!(expected.contains(&state.mac), "{state:?}");
    }
}

#[test]
fn reports_loss_and_return_of_carrier() {
    needs_root!();
    for hop in [V4, FIRST] {
        let mut network = TestNetwork::build(hop);
        network.wait_for(open(FIRST));
        for _ in 0..2 {
            network.router.ip("link set eth0 down").unwrap();
            network.wait_for(without_carrier(FIRST));
            network.router.ip("link set eth0 up").unwrap();
            network.wait_for(open(FIRST));
        }
        // Also if the box's own end is set down.
        network.middle.ip("link set incoming0 down").unwrap();
        network.wait_for(without_carrier(FIRST));
        network.all();
    }
}

#[test]
fn a_deleted_nic_has_no_next_hop() {
    needs_root!();
    for hop in [V4, FIRST] {
        let mut network = TestNetwork::build(hop);
        network.wait_for(open(FIRST));
        network.middle.ip("link del incoming0").unwrap();
        network.wait_for(NextHopState::default());
        // A new NIC with the same name is another NIC.
        network.middle.ip("link add incoming0 type veth").unwrap();
        network.middle.ip("link set incoming0 up").unwrap();
        assert_eq!(network.monitor.now(), NextHopState::default());
        network.all();
    }
}

#[test]
fn start_fails_without_the_nic_or_the_capability() {
    needs_root!();
    let (middle, _router) = ground(true);
    let (no_nic, no_right) = middle.run(|| {
        let hop: NextHop = V4.parse().unwrap();
        let missing = NextHopMonitor::start(4_000_000, hop, |_| ());
        // Drops the capability of this thread only; thread and namespace end with the test.
        let index = Nic::look("incoming0").unwrap().index;
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        let forbidden = NextHopMonitor::start(index, hop, |_| ());
        // A configured MAC address needs no capability.
        let given = FIRST.parse().unwrap();
        let monitor = NextHopMonitor::start(index, given, |_| ()).unwrap();
        assert_eq!(monitor.first(timeout()), open(FIRST));
        caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        (missing.err().unwrap(), forbidden.err().unwrap())
    });
    assert!(matches!(no_nic, NicError::Missing(_)), "{no_nic}");
    let said = no_right.to_string();
    assert!(said.contains("incoming0"), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
}
