//! VLAN trunks: several hosts by tag, and a router for each IP version in another VLAN.
//!
//! ```text
//!  host-a, VLAN 10 ─┐                 ┌─────┐ uplink0 ─── exits-10, VLAN 10
//!  host-b, VLAN 10 ─┼ switch ── host0 │ box │             exits-20, VLAN 20
//!  host-c, VLAN 20 ─┘                 └─────┘ incoming0 ─ router-4, VLAN 30, IPv4
//!                                                         router-6, VLAN 30, IPv6
//! ```

use crate::craft::{AF11, Packet, QINQ, TCP, exit, families, relay, relay_answer, segment};
use crate::rack::{
    Conversation, Machine, Tag, Vlan, add_addresses, has_vlan_interfaces, inspect, inspected,
    make_switch, serve,
};
use crate::rig::{
    Case, Config, PACE, Rig, Side, assert_says, both_engines, count, eventually, needs_root,
    wait_until,
};
use exitmark_box::observe::{ClassCount, SteeringState};
use exitmark_lab::site::{
    BOX_V4, BOX_V6, FAR_END, HOST_MAC, INCOMING_MAC, OR_PORT, Plan, RELAY_V4, RELAY_V6, SERVER_V4,
    SERVER_V6, Site, TORNET_MAC, mac,
};
use exitmark_lab::{Capture, CapturedFrame, Netns, RawPort, is_installed};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// 802.1Q, and 802.1ad of an outer tag.
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;
/// The MTU of links that carry full packets with two tags. A veth pair takes no frames beyond its
/// MTU by redirection.
const TRUNK: Plan = Plan::of_mtu(1508);
const WEB: u16 = 443;

const ROUTER_MACS: [&str; 2] = ["02:00:00:00:03:04", "02:00:00:00:03:06"];
/// The VLAN of the routers for relay traffic.
const STEERED: u16 = 30;
const HOSTS: [(&str, &str, usize, [&str; 2]); 3] = [
    (
        "host-a",
        HOST_MAC,
        0,
        ["192.0.2.10/25", "2001:db8:1::10/64"],
    ),
    (
        "host-b",
        "02:00:00:00:01:77",
        0,
        ["192.0.2.11/25", "2001:db8:1::11/64"],
    ),
    (
        "host-c",
        "02:00:00:00:01:78",
        1,
        ["192.0.2.140/25", "2001:db8:2::10/64"],
    ),
];
/// The networks of the two groups of hosts.
const NETWORKS: [Network; 2] = [
    Network {
        exits: "exits-10",
        mac: "02:00:00:00:02:10",
        vlan: 10,
        mark: "0x0a",
        routers: ["192.0.2.1", "2001:db8:1::1"],
    },
    Network {
        exits: "exits-20",
        mac: "02:00:00:00:02:20",
        vlan: 20,
        mark: "0x01",
        routers: ["192.0.2.129", "2001:db8:2::1"],
    },
];
/// The network of a group of hosts: its VLAN, the router there, which is the web server too, and
/// the required mark (AF11, LE).
struct Network {
    exits: &'static str,
    mac: &'static str,
    vlan: u16,
    mark: &'static str,
    routers: [&'static str; 2],
}

/// How the box gets the MAC addresses of the next hops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Hops {
    Configured,
    /// On its own VLAN interface, which not every kernel has.
    Resolved,
}

impl Hops {
    fn all() -> impl Iterator<Item = Self> {
        let resolved = has_vlan_interfaces().then_some(Self::Resolved);
        [Self::Configured].into_iter().chain(resolved)
    }
}

/// The commands that create the box's VLAN interface.
const VLAN_INTERFACE: [&str; 4] = [
    "link add link incoming0 name incoming0.30 type vlan id 30",
    "link set incoming0.30 up",
    "addr add 203.0.113.2/24 dev incoming0.30",
    "addr add 2001:db8:3::2/64 dev incoming0.30",
];

/// Lets the box be a member of VLAN 30 on `incoming0`, and of no other network there.
fn join_vlan(site: &Site) {
    let flush = "addr flush dev incoming0 scope global";
    for line in [flush].into_iter().chain(VLAN_INTERFACE) {
        site.middle.ip(line).unwrap();
    }
}

/// Tells a router the box's MAC address, which it cannot resolve without a VLAN interface there.
fn know_the_box(router: &Netns) {
    for address in [IpAddr::from(BOX_V4), BOX_V6.into()] {
        let entry = format!("neigh replace {address} lladdr {INCOMING_MAC} dev eth0");
        router.ip(&entry).unwrap();
    }
}

fn is_strict(machine: &Machine) {
    for conf in ["all", FAR_END] {
        let key = format!("net/ipv4/conf/{conf}/rp_filter");
        machine.netns.sysctl(&key, "1").unwrap();
    }
}

/// The match of unicast frames to other machines.
pub(crate) fn to_others(own: &str) -> String {
    format!("ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 ether daddr != {own}")
}

/// The matches of TCP segments with another mark. Not of RST: a slow host refuses what arrives after
/// the end of a connection, and refusals are not marked.
pub(crate) fn with_other_mark(dscp: &str) -> [String; 2] {
    [
        format!("ip protocol tcp ip dscp != {dscp} tcp flags & rst == 0x0"),
        format!("ip6 nexthdr tcp ip6 dscp != {dscp} tcp flags & rst == 0x0"),
    ]
}

/// The match of TCP segments from other machines.
pub(crate) fn from_others(senders: &[&str]) -> String {
    let senders = senders.join(", ");
    format!("meta l4proto tcp ether saddr != {{ {senders} }}")
}

/// The machines around the box. All of them drop and count what has another tag, MAC address or
/// mark than they require.
pub(crate) struct Trunk {
    pub(crate) hosts: [Machine; 3],
    exits: [Machine; 2],
    pub(crate) routers: [Machine; 2],
    vlans: Vec<Vlan>,
}

impl Trunk {
    pub(crate) fn build() -> (Site, Self) {
        let site = Site::build(TRUNK).unwrap();
        for netns in [&site.host, &site.clearnet, &site.tornet] {
            make_switch(netns);
        }
        let mut vlans = Vec::new();
        let mut enter = |machine: &Machine, id| vlans.push(Vlan::enter(&machine.netns, &[(Q, id)]));
        let hosts = HOSTS.map(|(label, mac, network, addresses)| {
            let host = Machine::new(&site.host, label, mac, TRUNK.mtu).with_addresses(&addresses);
            let network = &NETWORKS[network];
            enter(&host, network.vlan);
            for router in network.routers {
                host.ip(&[&format!("route add default via {router} mtu 1500")]);
            }
            let [v4, v6] = ROUTER_MACS;
            let senders = from_others(&[network.mac, v4, v6]);
            inspect(&host.netns, &[to_others(mac), senders]);
            host
        });
        let exits = [0, 1].map(|number| {
            let exits = exits(&site, number);
            enter(&exits, NETWORKS[number].vlan);
            exits
        });
        let routers = [0, 1].map(|version| {
            let router = router(&site, version);
            enter(&router, STEERED);
            router
        });
        let trunk = Self {
            hosts,
            exits,
            routers,
            vlans,
        };
        (site, trunk)
    }

    /// Lets the routers of relay traffic route the hosts by the box.
    fn route_back(&self, hops: Hops) {
        let [v4, v6] = &self.routers;
        v4.ip(&["route add 192.0.2.0/24 via 203.0.113.2"]);
        v6.ip(&[
            "route add 2001:db8:1::/64 via 2001:db8:3::2",
            "route add 2001:db8:2::/64 via 2001:db8:3::2",
        ]);
        if hops == Hops::Configured {
            self.know_the_box();
        }
    }

    /// Tells the routers the box's MAC address.
    pub(crate) fn know_the_box(&self) {
        for router in &self.routers {
            know_the_box(&router.netns);
        }
    }

    /// Checks connections of each host, by each IP version, to a web server and to a relay.
    pub(crate) fn converse(&self) {
        let (mut all, mut servers) = (Vec::new(), Vec::new());
        for (network, exits) in self.exits.iter().enumerate() {
            let hosts = HOSTS.iter().filter(|host| host.2 == network).count();
            for (_, server, _) in families() {
                servers.push(serve(&exits.netns, server, WEB, hosts));
            }
        }
        for ((_, _, relay), router) in families().into_iter().zip(&self.routers) {
            servers.push(serve(&router.netns, relay, OR_PORT, self.hosts.len()));
        }
        for host in &self.hosts {
            for (_, server, relay) in families() {
                for target in [(server, WEB), (relay, OR_PORT)] {
                    let target = SocketAddr::from(target);
                    all.push(Conversation::start(&host.netns, None, target));
                }
            }
        }
        Conversation::all_go_on(&all, "through the trunk");
        all.into_iter().for_each(Conversation::end);
        for server in servers {
            server.join().unwrap();
        }
    }

    /// Checks that every machine has received segments, and none with a wrong tag, MAC address or
    /// mark.
    #[track_caller]
    pub(crate) fn is_right(&self) {
        let machines = self.hosts.iter().chain(&self.exits).chain(&self.routers);
        for machine in machines {
            let counts = ["right", "wrong"].map(|name| inspected(&machine.netns, name));
            let label = machine.netns.label();
            println!("{label}: right and wrong: {counts:?}");
            assert!(counts[0] > 50 && counts[1] == 0, "{label}: {counts:?}");
        }
        let refused = self.vlans.iter().map(Vlan::refused);
        assert_eq!(refused.sum::<u64>(), 0, "frames with another tag");
    }
}

/// The router and the web server of a group.
fn exits(site: &Site, number: usize) -> Machine {
    let network = &NETWORKS[number];
    let mac = network.mac;
    let exits = Machine::new(&site.clearnet, network.exits, mac, TRUNK.mtu);
    let own = network.routers;
    let addresses = [
        format!("{}/25", own[0]),
        format!("{}/64", own[1]),
        format!("{SERVER_V4}/32"),
        format!("{SERVER_V6}/128"),
    ];
    let addresses = addresses.each_ref().map(String::as_str);
    let exits = exits.with_addresses(&addresses);
    is_strict(&exits);
    let hosts = HOSTS.iter().filter(|host| host.2 == number);
    let hosts: Vec<_> = hosts.map(|host| host.1).collect();
    let mut wrong = vec![to_others(mac), from_others(&hosts)];
    wrong.extend(with_other_mark(network.mark));
    inspect(&exits.netns, &wrong);
    exits
}

/// The router and the relay of an IP version.
fn router(site: &Site, version: usize) -> Machine {
    let mac = ROUTER_MACS[version];
    let label = ["router-4", "router-6"][version];
    let router = Machine::new(&site.tornet, label, mac, TRUNK.mtu);
    let relays = [format!("{RELAY_V4}/32"), format!("{RELAY_V6}/128")];
    let own = ["203.0.113.1/24", "2001:db8:3::1/64"][version];
    let router = router.with_addresses(&[own, &relays[version]]);
    is_strict(&router);
    let other_version = [
        "meta protocol ip6 meta l4proto tcp",
        "meta protocol ip meta l4proto tcp",
    ];
    let mut wrong = vec![
        to_others(mac),
        from_others(&[INCOMING_MAC]),
        other_version[version].to_owned(),
    ];
    wrong.extend(with_other_mark("0x00"));
    inspect(&router.netns, &wrong);
    router
}

/// The configuration of the two groups. The marks are AF11 and LE.
fn config() -> Config {
    let second = "name = \"exits-20\"\naddresses = [\"192.0.2.140\", \"2001:db8:2::10\"]\n\
                  vlan = 20\nmark = { dscp = \"le\" }\nsteer = { pcp = 5 }";
    let addresses = [
        "192.0.2.10",
        "192.0.2.11",
        "2001:db8:1::10",
        "2001:db8:1::11",
    ];
    Config::default()
        .addresses(addresses)
        .host("name = \"exits-10\"\nvlan = 10")
        .group(second)
        .steer("vlan = 30")
}

/// A box in this site.
fn start(hops: Hops) -> (Rig, Trunk) {
    let (site, trunk) = Trunk::build();
    trunk.route_back(hops);
    let [v4, v6] = match hops {
        Hops::Configured => ROUTER_MACS,
        Hops::Resolved => {
            join_vlan(&site);
            ["203.0.113.1", "2001:db8:3::1"]
        }
    };
    let config = config().next_hops(format!("{{ v4 = {v4:?}, v6 = {v6:?} }}"));
    (Rig::on(site, &config), trunk)
}

/// The configured next hops by their MAC addresses, for a kernel without VLAN interfaces.
pub(crate) fn by_mac(configuration: &str) -> String {
    let [v4, v6] = ROUTER_MACS;
    let by_address = "next_hop = [\"203.0.113.1\", \"2001:db8:3::1\"]";
    assert!(configuration.contains(by_address), "{configuration}");
    let by_mac = format!("next_hop = {{ v4 = {v4:?}, v6 = {v6:?} }}");
    configuration.replace(by_address, &by_mac)
}

#[test]
fn every_flow_leaves_with_its_tag_its_router_and_its_mark() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    for hops in Hops::all() {
        both_engines(|| {
            println!("next hops {hops:?}");
            let (rig, trunk) = start(hops);
            trunk.converse();
            trunk.is_right();
            check_report(&rig);
            check_strictness(&rig, &trunk);
            let counters = rig.stop().counters;
            let steered = count(&counters, "incoming_forwarded");
            assert_eq!(steered, count(&counters, "relay"));
        });
    }
}

/// The report tells the groups and the next hops apart.
fn check_report(rig: &Rig) {
    let report = rig.status();
    assert!(!report.has_alarm(), "{:?}", report.warnings);
    let names = report.groups.iter().map(|group| group.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["exits-10", "exits-20"]);
    for group in &report.groups {
        let frames = |name: &str| {
            let class = group.classes.iter().find(|class| class.class == name);
            class.unwrap().frames
        };
        assert!(frames("exit") > 20 && frames("relay") > 20, "{group:?}");
        assert_eq!(group.marked, frames("exit"), "{group:?}");
        assert_eq!(group.unsteered, 0, "{group:?}");
    }
    for name in ["exit", "relay"] {
        let frames = |classes: &[ClassCount]| -> u64 {
            let of_class = classes.iter().filter(|one| one.class == name);
            of_class.map(|one| one.frames).sum()
        };
        let of_groups = report.groups.iter().map(|group| frames(&group.classes));
        assert_eq!(of_groups.sum::<u64>(), frames(&report.classes), "{name}");
    }
    let seen = report.steering.next_hops.iter().map(|hop| {
        let families: Vec<_> = hop.families.iter().map(String::as_str).collect();
        (hop.vlan.as_str(), families, hop.mac.as_deref())
    });
    let expected = [
        ("VLAN 30", vec!["IPv4"], Some(ROUTER_MACS[0])),
        ("VLAN 30", vec!["IPv6"], Some(ROUTER_MACS[1])),
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
}

/// The routers find what they must: frames of the box with another tag, mark or version.
fn check_strictness(rig: &Rig, trunk: &Trunk) {
    let port = RawPort::open(&rig.site.middle, "incoming0").unwrap();
    let router = &trunk.routers[0];
    let packet = relay(0, 60);
    let send = |packet: &Packet, id: u16| {
        let frame = packet.framed(router.mac, INCOMING_MAC, &[(Q, id)]);
        port.send(&frame).unwrap();
    };
    send(&packet, STEERED + 1);
    send(&packet.clone().tos(AF11), STEERED);
    send(&relay(1, 60), STEERED);
    port.send(&packet.framed(router.mac, INCOMING_MAC, &[]))
        .unwrap();
    // The last two machines are the routers.
    let vlans = &trunk.vlans[trunk.vlans.len() - 2];
    eventually("the router has refused what it must", || {
        match (vlans.refused(), inspected(&router.netns, "wrong")) {
            (2, 2) => Ok(()),
            counts => Err(format!("by its tag and by its addresses: {counts:?}")),
        }
    });
}

/// One host, a site with other tags on the wire than behind the next hop.
struct Variant {
    host: &'static [Tag],
    steered: &'static [Tag],
    mtu: u32,
}

const VARIANTS: [Variant; 6] = [
    Variant {
        host: &[(AD, 200), (Q, 10)],
        steered: &[(Q, 30)],
        mtu: 1508,
    },
    Variant {
        host: &[(Q, 10)],
        steered: &[(AD, 300), (Q, 30)],
        mtu: 1508,
    },
    Variant {
        host: &[(AD, 200), (Q, 10)],
        steered: &[(AD, 300), (Q, 30)],
        mtu: 1508,
    },
    Variant {
        host: &[(Q, 10)],
        steered: &[],
        mtu: 1508,
    },
    Variant {
        host: &[],
        steered: &[(Q, 30)],
        mtu: 1508,
    },
    // A full packet gets a tag, and is longer than what a veth pair takes by redirection.
    Variant {
        host: &[],
        steered: &[(Q, 30)],
        mtu: 1500,
    },
];

/// The IDs as a value of the configuration.
fn ids(tags: &[Tag]) -> String {
    let ids: Vec<_> = tags.iter().map(|(_, id)| id).collect();
    match ids.as_slice() {
        [id] => id.to_string(),
        ids => format!("{ids:?}"),
    }
}

impl Variant {
    fn config(&self) -> Config {
        let mut config = Config::default();
        if !self.host.is_empty() {
            config = config.host(format_args!("vlan = {}", ids(self.host)));
        }
        match self.steered {
            // Untagged, so the box resolves the routers on `incoming0` itself.
            [] => config.next_hops("[\"203.0.113.1\", \"2001:db8:3::1\"]"),
            tags => config.steer(format_args!("vlan = {}", ids(tags))),
        }
    }

    fn site(&self) -> (Site, [Vlan; 3]) {
        let site = Site::build(Plan::of_mtu(self.mtu)).unwrap();
        for line in [
            "route replace default via 192.0.2.1 mtu 1500",
            "route replace default via 2001:db8:1::1 mtu 1500",
        ] {
            site.host.ip(line).unwrap();
        }
        if !self.steered.is_empty() {
            know_the_box(&site.tornet);
        }
        let vlans = [
            Vlan::enter(&site.host, self.host),
            Vlan::enter(&site.clearnet, self.host),
            Vlan::enter(&site.tornet, self.steered),
        ];
        (site, vlans)
    }
}

#[test]
fn tags_are_replaced_pushed_and_popped_and_back_for_answers() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    for variant in &VARIANTS {
        both_engines(|| {
            let (hosts, steered) = (ids(variant.host), ids(variant.steered));
            let what = format!("{hosts} to {steered}, MTU {}", variant.mtu);
            println!("{what}");
            let (site, vlans) = variant.site();
            inspect(&site.clearnet, &with_other_mark("0x0a"));
            let mut wrong = with_other_mark("0x00").to_vec();
            wrong.extend([to_others(TORNET_MAC), from_others(&[INCOMING_MAC])]);
            inspect(&site.tornet, &wrong);
            inspect(&site.host, &[to_others(HOST_MAC)]);
            let rig = Rig::on(site, &variant.config());
            let (mut all, mut servers) = (Vec::new(), Vec::new());
            for (_, server, relay) in families() {
                servers.push(serve(&rig.site.clearnet, server, WEB, 1));
                servers.push(serve(&rig.site.tornet, relay, OR_PORT, 1));
                for target in [(server, WEB), (relay, OR_PORT)] {
                    let target = SocketAddr::from(target);
                    all.push(Conversation::start(&rig.site.host, None, target));
                }
            }
            Conversation::all_go_on(&all, &what);
            all.into_iter().for_each(Conversation::end);
            servers
                .into_iter()
                .for_each(|server| server.join().unwrap());
            let counts = rig.ends().map(|netns| {
                let counted = ["right", "wrong"].map(|name| inspected(netns, name));
                (netns.label().to_owned(), counted)
            });
            assert_eq!(vlans.each_ref().map(Vlan::refused), [0; 3], "{what}");
            let counters = rig.stop().counters;
            for (at, [right, wrong]) in counts {
                assert!(right > 50, "{what}, {at}: {right} right");
                assert_eq!(wrong, 0, "{what}, {at}: {counters:?}");
            }
            assert_eq!(count(&counters, "unsteered"), 0, "{what}");
            assert!(count(&counters, "incoming_forwarded") > 50, "{what}");
        });
    }
}

/// A tag with priority 5 and the drop-eligible bit.
const fn with_priority(id: u16) -> Tag {
    (Q, 0xb000 | id)
}

#[test]
fn the_priority_of_a_tag_is_kept_or_set() {
    needs_root!();
    let config = || Config::default().host("mac = \"02:00:00:00:01:01\"");
    let sent = with_priority(10);
    // `host.vlan`, `steer.vlan` and `steer.pcp`; the tags as sent and as steered.
    #[rustfmt::skip]
    let cases: [(&str, &str, &[Tag], &[Tag]); 7] = [
        ("10", "vlan = 30", &[sent], &[(Q, 0xb01e)]),
        ("10", "vlan = 30\npcp = 3", &[sent], &[(Q, 0x701e)]),
        ("10", "vlan = 30\npcp = 0", &[sent], &[(Q, 0x101e)]),
        ("10", "vlan = [300, 30]", &[sent], &[(AD, 0xb12c), (Q, 0xb01e)]),
        ("[7, 100]", "vlan = 30\npcp = 7", &[QINQ, (Q, 0xb064)], &[(Q, 0xf01e)]),
        ("[7, 100]", "vlan = 30", &[QINQ, (Q, 0xb064)], &[(Q, 0x701e)]),
        ("[7, 100]", "vlan = [8, 30]", &[QINQ, (Q, 0xb064)], &[(AD, 0x7008), (Q, 0xb01e)]),
    ];
    for (vlan, steer, tags, steered) in cases {
        both_engines(|| {
            let config = config().host(format_args!("vlan = {vlan}")).steer(steer);
            let mut cases = Vec::new();
            for family in [0, 1] {
                let packet = relay(family, 60);
                let leaves = packet.framed(TORNET_MAC, INCOMING_MAC, steered);
                let leaves = Some((Side::Tornet, leaves));
                let what = format!("relay, {vlan} to {steer}");
                cases.push(Case::new(what, Side::Host, packet.outbound(tags), leaves));
                cases.push(Case::to_uplink("exit", &exit(family, 60), AF11, tags));
                // An answer keeps the priority that the router gave it.
                let packet = relay_answer(family, 70);
                let received: Vec<Tag> = steered
                    .iter()
                    .map(|(tpid, tci)| (*tpid, tci | 0xe000))
                    .collect();
                let priority = |number: usize| match received.len() == tags.len() {
                    true => received[number].1 & 0xf000,
                    // That of the outermost tag.
                    false => received[0].1 & 0xf000,
                };
                let delivered: Vec<Tag> = (0..tags.len())
                    .map(|number| (tags[number].0, priority(number) | tags[number].1 & 0x0fff))
                    .collect();
                cases.push(Case::new(
                    format!("answer, {steer} to {vlan}"),
                    Side::Tornet,
                    packet.incoming(&received),
                    Some((Side::Host, packet.delivered(&delivered))),
                ));
            }
            Rig::silent(TRUNK, &config).verify(
                &cases,
                "host_received=4 relay=2 incoming_forwarded=2 exit=2 marked=2 uplink_forwarded=2 \
                 incoming_received=2 host_forwarded=2",
            );
        });
    }
}

#[test]
fn frames_with_other_tags_are_not_steered_and_not_delivered() {
    both_engines(|| {
        let mut cases = Vec::new();
        for family in [0, 1] {
            for tags in [&[][..], &[(Q, 11)], &[QINQ, (Q, 10)], &[(Q, 30)]] {
                let frame = relay(family, 60).outbound(tags);
                let what = format!("relay with {tags:x?}");
                cases.push(Case::untouched(what, Side::Host, frame));
                // Exit traffic is marked with any tags.
                cases.push(Case::to_uplink("exit", &exit(family, 60), AF11, tags));
            }
            for tags in [&[][..], &[(Q, 10)], &[(Q, 31)], &[QINQ, (Q, 30)]] {
                let frame = relay_answer(family, 70).incoming(tags);
                let what = format!("answer with {tags:x?}");
                let stack = Some((Side::Stack, frame.clone()));
                cases.push(Case::new(what, Side::Tornet, frame, stack));
            }
        }
        let config = Config::default()
            .host("mac = \"02:00:00:00:01:01\"\nvlan = 10")
            .steer("vlan = 30");
        Rig::silent(TRUNK, &config).verify(
            &cases,
            "host_received=16 relay=8 unsteered=8 unrouted_vlan=8 exit=8 marked=8 \
             uplink_forwarded=16 incoming_to_stack=8",
        );
    });
}

/// A group whose frames have the tag of another group; the alarm and the counters name it.
#[test]
fn the_alarm_of_other_tags_names_the_group() {
    both_engines(|| {
        let rig = Rig::silent(TRUNK, &config());
        let host = [192, 0, 2, 140].into();
        let packet = Packet::new(host, RELAY_V4.into(), TCP, segment(40_001, OR_PORT, 60));
        let send = |id: u16| {
            let frame = packet.outbound(&[(Q, id)]);
            let is_own = id == NETWORKS[1].vlan;
            let mut eye = rig.watch(if is_own { Side::Tornet } else { Side::Clearnet });
            rig.port(Side::Host).send(&frame).unwrap();
            assert!(eye.counts(1), "VLAN {id}");
        };
        send(NETWORKS[1].vlan);
        rig.no_warning("unrouted_vlan");
        send(NETWORKS[0].vlan);
        let found = rig.warning("unrouted_vlan");
        assert!(found.is_alarm);
        assert_says(&found.text, &["exits-20", "host.vlan", "incoming0"]);
        assert!(!found.text.contains("exits-10"), "{}", found.text);
        let groups = rig.status().groups;
        let counts = groups
            .iter()
            .map(|group| (group.unrouted_vlan, group.unsteered));
        assert_eq!(counts.collect::<Vec<_>>(), [(0, 0), (1, 1)]);
        rig.stop();
    });
}

/// Two routers at one switch, and a host whose relay frames are sent by hand. The network of the
/// routers has a tag, or none.
struct Pair {
    rig: Rig,
    routers: [Machine; 2],
    tags: &'static [Tag],
    _vlans: Vec<Vlan>,
}

impl Pair {
    const TAGGED: &'static [Tag] = &[(Q, STEERED)];

    /// Calls `test` with routers in an untagged network, and in a VLAN if the kernel has VLAN
    /// interfaces. The first router has these addresses.
    fn each(next_hops: &str, addresses: &[&str], test: impl Fn(&Self)) {
        needs_root!();
        let tagged = has_vlan_interfaces().then_some(Self::TAGGED);
        for tags in [&[][..]].into_iter().chain(tagged) {
            both_engines(|| {
                println!("tags {tags:?}");
                test(&Self::start(tags, next_hops, addresses));
            });
        }
    }

    fn start(tags: &'static [Tag], next_hops: &str, addresses: &[&str]) -> Self {
        let site = Site::build(TRUNK).unwrap();
        make_switch(&site.tornet);
        let labels = ["router-1", "router-2"];
        let routers = [0, 1].map(|number| {
            let mac = ROUTER_MACS[number];
            Machine::new(&site.tornet, labels[number], mac, TRUNK.mtu)
        });
        let vlans = routers
            .iter()
            .map(|router| Vlan::enter(&router.netns, tags));
        let vlans = vlans.collect();
        add_addresses(&routers[0].netns, FAR_END, addresses);
        let mut config = Config::default().next_hops(next_hops);
        if !tags.is_empty() {
            join_vlan(&site);
            config = config.steer(format_args!("vlan = {}", ids(tags)));
        }
        Self {
            rig: Rig::on(site, &config),
            routers,
            tags,
            _vlans: vlans,
        }
    }

    /// Sends relay frames until one arrives at this router.
    #[track_caller]
    fn is_steered(&self, family: usize, to: usize, when: &str) {
        let router = &self.routers[to];
        let port = self.rig.port(Side::Host);
        let mut eye = Capture::start(&router.netns, FAR_END, "in", "").unwrap();
        let sent = relay(family, 60).outbound(&[]);
        let expected = relay(family, 60).framed(router.mac, INCOMING_MAC, self.tags);
        let is_steered = || {
            port.send(&sent).unwrap();
            eye.wait_until(PACE, |captured| {
                captured.iter().any(|one| one.bytes == expected)
            })
        };
        wait_until(when, is_steered, || self.rig.running.log());
    }

    /// Moves an address from the first router to the second one, which announces it.
    fn move_address(&self, address: &str, length: u8) {
        let [from, to] = &self.routers;
        from.ip(&[&format!("addr del {address}/{length} dev eth0")]);
        add_addresses(&to.netns, FAR_END, &[&format!("{address}/{length}")]);
        let frame = announcement(address.parse().unwrap(), to.mac);
        let port = RawPort::open(&to.netns, FAR_END).unwrap();
        port.send(&frame).unwrap();
    }
}

/// A gratuitous ARP request (RFC 5227, section 3), or an unsolicited neighbour advertisement (RFC
/// 4861, section 7.2.6), as VRRP's new master sends it.
pub(crate) fn announcement(address: IpAddr, own: &str) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
            arp.extend(mac(own));
            arp.extend(address.octets());
            arp.extend([0; 6]);
            arp.extend(address.octets());
            crate::craft::ethernet("ff:ff:ff:ff:ff:ff", own, &[], 0x0806, &arp)
        }
        IpAddr::V6(address) => {
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            // A router's, which overrides.
            let mut message = vec![136, 0, 0, 0, 0xa0, 0, 0, 0];
            message.extend(address.octets());
            message.extend([2, 1]);
            message.extend(mac(own));
            let sum = icmpv6_checksum(address, all_nodes, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut packet = Packet::new(address.into(), all_nodes.into(), 58, message);
            packet.hops = 255;
            packet.framed("33:33:00:00:00:01", own, &[])
        }
    }
}

fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap();
    let covered = [
        &from.octets()[..],
        &to.octets(),
        &length.to_be_bytes(),
        &[0, 0, 0, 58],
        message,
    ]
    .concat();
    let (words, _) = covered.as_chunks::<2>();
    let sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

#[test]
fn a_next_hop_address_that_moves_to_another_router_is_followed() {
    let addresses = ["203.0.113.1/24", "2001:db8:3::1/64"];
    Pair::each("[\"203.0.113.1\", \"2001:db8:3::1\"]", &addresses, |pair| {
        let moves = [("203.0.113.1", 24), ("2001:db8:3::1", 64)];
        for (family, (address, length)) in moves.into_iter().enumerate() {
            pair.is_steered(family, 0, "to the first router");
            pair.move_address(address, length);
            pair.is_steered(family, 1, "to the second router");
            // No more frames to the first one.
            let mut eye = Capture::start(&pair.routers[0].netns, FAR_END, "in", "").unwrap();
            pair.is_steered(family, 1, "to the second router alone");
            let is_relay = |frame: &CapturedFrame| frame.bytes[6..12] == mac(INCOMING_MAC);
            let length = relay(family, 60)
                .framed(ROUTER_MACS[0], INCOMING_MAC, pair.tags)
                .len();
            let late = eye
                .so_far()
                .iter()
                .filter(|one| is_relay(one) && one.bytes.len() == length);
            assert_eq!(late.count(), 0);
        }
    });
}

#[test]
fn a_link_local_next_hop_is_resolved_in_its_network() {
    let next_hops = "{ v4 = \"203.0.113.1\", v6 = \"fe80::1\" }";
    let addresses = ["203.0.113.1/24", "fe80::1/64"];
    Pair::each(next_hops, &addresses, |pair| {
        for family in [0, 1] {
            pair.is_steered(family, 0, "by both versions");
        }
        pair.move_address("fe80::1", 64);
        pair.is_steered(1, 1, "IPv6 to the second router");
        pair.is_steered(0, 0, "IPv4 to the first one");
    });
}

#[test]
fn without_its_vlan_interface_nothing_is_steered_and_it_resumes() {
    needs_root!();
    if !has_vlan_interfaces() {
        return;
    }
    both_engines(|| {
        let next_hops = "[\"203.0.113.1\", \"2001:db8:3::1\"]";
        let addresses = ["203.0.113.1/24", "2001:db8:3::1/64"];
        let pair = Pair::start(Pair::TAGGED, next_hops, &addresses);
        let rig = &pair.rig;
        pair.is_steered(0, 0, "at first");
        pair.is_steered(1, 0, "at first");
        rig.ip("link del incoming0.30");
        let found = rig.warning("steering");
        assert!(found.is_alarm);
        rig.running.wait_log(&["ALARM"]);
        let hops = rig.status().steering.next_hops;
        let states: Vec<_> = hops.iter().map(|hop| hop.state).collect();
        assert_eq!(states, [SteeringState::NoCarrier; 2]);
        for family in [0, 1] {
            let before = rig.count("unsteered");
            let frame = relay(family, 60).outbound(&[]);
            let mut eye = rig.watch(Side::Clearnet);
            rig.port(Side::Host).send(&frame).unwrap();
            assert!(eye.sees(&frame), "by the uplink, unmarked");
            rig.counts("unsteered", before + 1);
        }
        for line in VLAN_INTERFACE {
            rig.ip(line);
        }
        pair.is_steered(0, 0, "again");
        pair.is_steered(1, 0, "again");
        rig.no_warning("steering");
    });
}
