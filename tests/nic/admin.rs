//! Interfaces that are set up and down.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use caps::{CapSet, Capability};
use exitmark_lab::{Netns, needs_root};
use exitmark_nic::{LinkState, Nic, NicError, set_admin};

/// A machine with a NIC that is up, and the index of that NIC.
fn machine() -> (Netns, u32) {
    let netns = Netns::new("admin").unwrap();
    netns.ip("link add host0 type veth peer name far0").unwrap();
    netns.ip("link set far0 up").unwrap();
    netns.ip("link set host0 up").unwrap();
    let index = netns.run(|| Nic::look("host0").unwrap().index);
    (netns, index)
}

#[test]
fn an_interface_is_set_down_and_up_and_stays_silent() {
    needs_root!();
    let (netns, index) = machine();
    let state = |netns: &Netns| {
        let state = netns.run(move || LinkState::of_index(index)).unwrap();
        state.map(|state| (state.is_up, state.has_carrier)).unwrap()
    };
    assert_eq!(state(&netns), (true, true));
    for _ in 0..2 {
        netns.run(move || set_admin(index, false)).unwrap();
        assert_eq!(state(&netns), (false, false));
        netns.run(move || set_admin(index, true)).unwrap();
        assert_eq!(state(&netns), (true, true));
    }
    // The other end makes a link-local address by itself.
    let addresses = |nic: &str| netns.ip(&format!("-6 addr show dev {nic}")).unwrap();
    assert!(addresses("far0").contains("fe80::"));
    assert!(!addresses("host0").contains("fe80::"));
}

#[test]
fn a_failed_change_names_the_interface_and_the_reason() {
    needs_root!();
    let (netns, index) = machine();
    let failures = netns.run(move || {
        let no_nic = set_admin(4_000_000, true).unwrap_err();
        // Drops the capability of this thread only; thread and namespace end with the test.
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        let no_right = set_admin(index, false).unwrap_err();
        caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        [no_nic, no_right]
    });
    let [no_nic, no_right] = failures.map(|error| (error.to_string(), error));
    assert!(matches!(no_nic.1, NicError::Up(..)), "{}", no_nic.0);
    assert!(no_nic.0.contains("interface 4000000"), "{}", no_nic.0);
    assert!(matches!(no_right.1, NicError::Down(..)), "{}", no_right.0);
    for words in ["host0 down", "not permitted"] {
        assert!(no_right.0.contains(words), "{}", no_right.0);
    }
}
