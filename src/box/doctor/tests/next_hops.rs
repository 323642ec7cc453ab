//! Several next hops, on VLAN interfaces of the box.

use super::super::next_hops::{VlanFacts, added_tags};
use super::*;
use exitmark_nic::VlanInterface;
use exitmark_policy::packet::Dscp;
use exitmark_policy::{Actions, AtUplink, Group, Intent, Mode, Steer, SteeredPath};

/// A sound machine with a second next hop, of IPv6, in VLAN 30.
fn tagged() -> Facts {
    let mut facts = sound();
    let interface = VlanInterface {
        index: 7,
        name: "relays".to_owned(),
        mac: nic(&mut facts, 2).mac,
        is_up: true,
        mtu: 1500,
        tpids: vec![0x8100],
    };
    facts.next_hops.push(HopFacts {
        hop: Hop {
            next_hop: "2001:db8:3::1".parse().unwrap(),
            vlan: VlanTags::one(30),
        },
        vlan: Some(Ok(VlanFacts {
            interface,
            addresses: vec!["fe80::7/64".parse().unwrap()],
        })),
        mac: Some("02:00:00:00:00:98".parse().unwrap()),
    });
    facts
}

fn vlan(facts: &mut Facts) -> &mut VlanFacts {
    facts.next_hops[1].vlan.as_mut().unwrap().as_mut().unwrap()
}

#[track_caller]
fn finds(expected: &str, spoil: impl Fn(&mut Facts)) {
    super::finds_in(tagged(), expected, spoil);
}

#[test]
fn each_next_hop_has_a_finding() {
    let said = render(&all_ok(&tagged()));
    for line in [
        "incoming0  the next hop 203.0.113.1 is 02:00:00:00:00:99\n",
        "relays     the box's interface of VLAN 30 on incoming0\n",
        "relays     the next hop 2001:db8:3::1 (VLAN 30) is 02:00:00:00:00:98\n",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
    // Two next hops in one VLAN: one finding on the interface.
    let mut facts = tagged();
    let mut other = facts.next_hops[1].clone();
    other.hop.next_hop = "2001:db8:3::2".parse().unwrap();
    facts.next_hops.push(other);
    let said = render(&all_ok(&facts));
    assert_eq!(said.matches("interface of VLAN 30").count(), 1, "{said}");
    assert!(said.contains("2001:db8:3::2 (VLAN 30) is"), "{said}");
}

#[test]
fn each_fault_of_a_vlan_interface_is_found_alone_with_its_command() {
    finds("fault incoming0: no interface for VLAN 30", |f| {
        f.next_hops[1].vlan = Some(Err("there is no interface for VLAN 30".to_owned()));
        f.next_hops[1].mac = None;
    });
    finds("fault relays: down => ip link set dev relays up", |f| {
        vlan(f).interface.is_up = false
    });
    finds(
        "fault relays: MAC address 02:00:00:00:00:77, not that of incoming0 => ip link set dev relays address 02:00:00:00:00:03",
        |f| vlan(f).interface.mac = "02:00:00:00:00:77".parse().unwrap(),
    );
    // An address of the other IP version does not help.
    finds("warning relays: no IPv6 address", |f| {
        vlan(f).addresses = vec!["203.0.113.2/24".parse().unwrap()];
    });
    finds(
        "warning relays: 2001:db8:3::1 (VLAN 30) is not in the neighbour table => \
         ping -c 1 -I relays 2001:db8:3::1",
        |f| f.next_hops[1].mac = None,
    );
    finds("fault incoming0: own MAC address", |f| {
        let own = nic(f, 2).mac;
        f.next_hops[1].hop.next_hop = NextHop::Mac(own);
    });
}

/// The box's own stack does not resolve it.
#[test]
fn a_configured_mac_address_needs_no_vlan_interface() {
    let mut facts = tagged();
    facts.next_hops[1] = HopFacts::look(
        Hop {
            next_hop: "02:00:00:00:00:98".parse().unwrap(),
            vlan: VlanTags::pair(200, 30),
        },
        None,
    );
    let said = render(&all_ok(&facts));
    let line = "the next hop is 02:00:00:00:00:98 (VLAN 200.30)\n";
    assert!(said.contains(line), "{said}");
}

/// The limits are those of the kernel: veth has no room for a tag, other NICs for one.
#[test]
fn tags_that_steering_adds_need_room() {
    for (added, is_veth, mtu, fits) in [
        (0, true, 1500, true),
        (4, false, 1500, true),
        (8, false, 1500, false),
        (8, false, 1503, false),
        (8, false, 1504, true),
        (4, true, 1500, false),
        (4, true, 1504, true),
        (8, true, 1504, false),
        (8, true, 1508, true),
        (8, false, 9000, false),
        (8, false, 9004, true),
        (8, false, 1499, true),
    ] {
        let mut facts = tagged();
        facts.scope.added_tags = added;
        nic(&mut facts, 2).is_veth = is_veth;
        for port in 0..3 {
            nic(&mut facts, port).mtu = mtu;
        }
        let found = amiss(&facts);
        assert_eq!(found.is_empty(), fits, "{added} {is_veth} {mtu}: {found:?}");
        if let [finding] = &found[..] {
            assert_eq!(finding.severity, Severity::Warning);
            assert_eq!(finding.subject, "incoming0");
        }
    }
    let mut facts = tagged();
    facts.scope.added_tags = 8;
    let found = amiss(&facts).remove(0);
    let why = "relay frames of the hosts 8 bytes longer, so that full frames are lost: set the MTU of \
               every port to 1504, and leave that of the hosts at 1500";
    assert!(found.why.contains(why), "{}", found.why);
}

#[test]
fn only_tags_of_steered_groups_are_added() {
    let group = |steer, host: VlanTags, hops: VlanTags| {
        let actions = Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer,
        });
        Group {
            vlan: host,
            path: SteeredPath {
                vlan: hops,
                ..SteeredPath::default()
            },
            ..Group::new("x", actions)
        }
    };
    let (none, one, two) = (VlanTags::UNTAGGED, VlanTags::one(1), VlanTags::pair(1, 2));
    for (steer, host, hops, added) in [
        (Steer::Both, none, none, 0),
        (Steer::Both, none, one, 4),
        (Steer::Both, none, two, 8),
        (Steer::Both, one, two, 4),
        (Steer::Both, two, one, 0),
        (Steer::Off, none, two, 0),
    ] {
        let all = [group(Steer::Both, none, none), group(steer, host, hops)];
        assert_eq!(added_tags(&all), added, "{steer:?} {host} {hops}");
    }
    assert_eq!(added_tags(&[]), 0);
}
