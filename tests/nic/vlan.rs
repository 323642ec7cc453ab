//! VLAN interfaces on top of a NIC, made by the commands that the box prints.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_lab::{Netns, needs_root};
use exitmark_nic::{Nic, NicError, VlanInterface, vlan_interface};
use std::io::Write;

const OWN: &str = "02:00:00:00:03:01";

/// Whether this kernel has VLAN interfaces (CONFIG_VLAN_8021Q). If not, prints a line with SKIPPED.
pub(crate) fn has_vlans() -> bool {
    let netns = Netns::new("probe").unwrap();
    netns.ip("link add probe0 type veth").unwrap();
    let made = netns.ip("link add link probe0 name probe0.1 type vlan id 1");
    if let Err(error) = &made {
        // Not by a print macro: the test harness captures the output of passing tests.
        let _ = writeln!(std::io::stderr(), "SKIPPED (VLAN interfaces): {error}");
    }
    made.is_ok()
}

/// A machine with a NIC, whose name is of the longest kind, and a second NIC.
fn machine() -> Netns {
    let netns = Netns::new("vlan").unwrap();
    for (nic, peer) in [("enp3s0f0np0", "peer0"), ("other0", "peer1")] {
        let add = format!("link add {nic} address {OWN} type veth peer name {peer}");
        netns.ip(&add).unwrap();
        for end in [nic, peer] {
            netns.ip(&format!("link set {end} up")).unwrap();
        }
    }
    netns
}

fn look(netns: &Netns, tags: &[u16]) -> Result<VlanInterface, NicError> {
    let tags = tags.to_vec();
    netns.run(move || Nic::look("enp3s0f0np0").unwrap().vlan_interface(&tags))
}

/// The commands in backquotes, run as the message has them.
fn obey(netns: &Netns, message: &str) {
    let commands: Vec<_> = message.split('`').skip(1).step_by(2).collect();
    assert!(!commands.is_empty(), "{message}");
    for command in commands {
        let command = command.replace("ADDRESS/PREFIX", "203.0.113.2/24");
        netns.ip(command.strip_prefix("ip ").unwrap()).unwrap();
    }
}

#[test]
fn the_printed_commands_create_what_is_missing() {
    needs_root!();
    if !has_vlans() {
        return;
    }
    let netns = machine();
    for (tags, tpids) in [
        (&[30][..], &[0x8100][..]),
        // Without the outer interface, and with it.
        (&[200, 10], &[0x88a8, 0x8100]),
        (&[200, 11], &[0x88a8, 0x8100]),
    ] {
        let missing = look(&netns, tags).unwrap_err();
        assert!(matches!(missing, NicError::NoVlan { .. }), "{missing}");
        obey(&netns, &missing.to_string());
        let made = look(&netns, tags).unwrap();
        assert_eq!(made.tpids, tpids);
        assert_eq!(made.mac, OWN.parse().unwrap());
        assert_eq!((made.is_up, made.mtu), (true, 1500));
        let shown = netns.ip(&format!("addr show dev {}", made.name)).unwrap();
        assert!(shown.contains("203.0.113.2/24"), "{shown}");
    }
    // An interface with these tags on another NIC is not one.
    netns
        .ip("link add link other0 name other0.31 type vlan id 31")
        .unwrap();
    assert!(look(&netns, &[31]).is_err());
}

#[test]
fn an_interface_is_found_by_its_tags_and_not_by_its_name() {
    needs_root!();
    if !has_vlans() {
        return;
    }
    let netns = machine();
    for line in [
        "link add link enp3s0f0np0 name enp3s0f0np0.31 type vlan id 30",
        "link add link enp3s0f0np0 name service type vlan proto 802.1ad id 31",
    ] {
        netns.ip(line).unwrap();
    }
    assert_eq!(look(&netns, &[30]).unwrap().name, "enp3s0f0np0.31");
    let service = look(&netns, &[31]).unwrap();
    assert_eq!(service.name, "service");
    assert_eq!(service.tpids, [0x88a8]);
    // 802.1Q is preferred.
    netns
        .ip("link add link enp3s0f0np0 name customer type vlan id 31")
        .unwrap();
    assert_eq!(look(&netns, &[31]).unwrap().name, "customer");
    let none = netns.run(|| vlan_interface(4_000_000, &[30]));
    assert_eq!(none.unwrap(), None);
}

#[test]
fn the_printed_commands_mend_an_interface() {
    needs_root!();
    if !has_vlans() {
        return;
    }
    let netns = machine();
    netns
        .ip("link add link enp3s0f0np0 name v30 address 02:00:00:00:03:09 type vlan id 30")
        .unwrap();
    let nic = netns.run(|| Nic::look("enp3s0f0np0").unwrap());
    let made = look(&netns, &[30]).unwrap();
    for refused in [made.refuse_down(), made.refuse_other_mac(&nic)] {
        obey(&netns, &refused.unwrap_err().to_string());
    }
    let mended = look(&netns, &[30]).unwrap();
    assert!(mended.refuse_down().is_ok());
    assert!(mended.refuse_other_mac(&nic).is_ok());
}
