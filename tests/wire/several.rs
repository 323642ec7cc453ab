//! Several hosts behind one box: every frame goes to the host whose address it is for.

use crate::craft::{Packet, TCP, families, segment};
use crate::rack::{
    Conversation, Machine, add_addresses, complete_frames, inspect, inspected, make_switch, serve,
};
use crate::rig::{
    Case, Config, Rig, Side, assert_says, both_engines, eventually, needs_root, passes,
};
use exitmark_box::observe::Warning;
use exitmark_lab::site::{
    CLEARNET_MAC, HOST_MAC, OR_PORT, Plan, RELAY_V4, RELAY_V6, SERVER_V4, SERVER_V6, Site,
    TORNET_MAC,
};
use exitmark_lab::{RawPort, VethEnd, is_installed, veth};
use nix::sys::signal::Signal;
use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;
use std::time::Duration;

const MACS: [&str; 2] = [HOST_MAC, "02:00:00:00:01:77"];
/// Two addresses of each IP version for each host.
const ADDRESSES: [[&str; 4]; 2] = [
    [
        "192.0.2.10",
        "192.0.2.11",
        "2001:db8:1::10",
        "2001:db8:1::11",
    ],
    [
        "192.0.2.20",
        "192.0.2.21",
        "2001:db8:1::20",
        "2001:db8:1::21",
    ],
];
/// Addresses of the second host from which only the first connection is opened.
const QUIET: [&str; 2] = ["192.0.2.22", "2001:db8:1::22"];
/// An address of one of the two hosts, from which no frame is sent.
const SILENT: &str = "192.0.2.30";
/// The MAC address of a machine that is not one of the hosts.
const STRANGER: &str = "02:00:00:00:01:99";
const WEB: u16 = 443;
const CONFLICT: &str = "host_conflict";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The web server and the relay with an address of the same IP version.
fn peers(host: IpAddr) -> [IpAddr; 2] {
    match host {
        IpAddr::V4(_) => [SERVER_V4.into(), RELAY_V4.into()],
        IpAddr::V6(_) => [SERVER_V6.into(), RELAY_V6.into()],
    }
}

fn config() -> Config {
    let all = ADDRESSES.concat();
    let all = all.into_iter().chain(QUIET).chain([SILENT]);
    Config::default().addresses(all).host("listeners = [9001]")
}

/// Two hosts at a switch, and the Internet between the two networks behind the box: answers of the
/// hosts' relays leave by the uplink.
fn ground() -> (Site, [Machine; 2]) {
    let site = Site::build(Plan::default()).unwrap();
    make_switch(&site.host);
    let hosts = [("host-a", 0), ("host-b", 1)].map(|(label, number)| {
        let quiet = if number == 1 { &QUIET[..] } else { &[] };
        let addresses = ADDRESSES[number].iter().chain(quiet);
        let with_length = |text: &&str| match address(text) {
            IpAddr::V4(_) => format!("{text}/24"),
            IpAddr::V6(_) => format!("{text}/64"),
        };
        let addresses: Vec<_> = addresses.map(with_length).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let host = Machine::new(&site.host, label, MACS[number], 1500).with_addresses(&addresses);
        host.ip(&[
            "route add default via 192.0.2.1",
            "route add default via 2001:db8:1::1",
        ]);
        host
    });
    let ends = [
        (&site.clearnet, "02:00:00:00:09:01"),
        (&site.tornet, "02:00:00:00:09:02"),
    ];
    let [one, other] = ends.map(|(netns, mac)| VethEnd::new(netns, "inet0", mac));
    veth(&one, &other, 1500).unwrap();
    for (netns, addresses) in [
        (&site.clearnet, ["198.18.9.1/30", "2001:db8:9::1/64"]),
        (&site.tornet, ["198.18.9.2/30", "2001:db8:9::2/64"]),
    ] {
        complete_frames(netns, "inet0");
        add_addresses(netns, "inet0", &addresses);
        netns.sysctl("net/ipv4/conf/inet0/rp_filter", "0").unwrap();
    }
    let router = &site.clearnet;
    for line in [
        format!("route add {RELAY_V4}/32 via 198.18.9.2"),
        format!("route add {RELAY_V6}/128 via 2001:db8:9::2"),
    ] {
        router.ip(&line).unwrap();
    }
    router.sysctl("net/ipv4/ip_forward", "1").unwrap();
    router.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    (site, hosts)
}

/// Counts frames to a wrong host, behind the box and at each host.
fn inspect_all(site: &Site, hosts: &[Machine; 2]) {
    let sets = |number: usize| {
        let quiet = if number == 1 { &QUIET[..] } else { &[] };
        let all = ADDRESSES[number]
            .iter()
            .chain(quiet)
            .map(|text| address(text));
        let (v4, v6): (Vec<_>, Vec<_>) = all.partition(IpAddr::is_ipv4);
        let list = |of: Vec<IpAddr>| {
            let texts: Vec<_> = of.iter().map(IpAddr::to_string).collect();
            texts.join(", ")
        };
        [
            format!("ip daddr {{ {} }}", list(v4)),
            format!("ip6 daddr {{ {} }}", list(v6)),
        ]
    };
    let to_others = (0..2).flat_map(|number| {
        let mac = MACS[number];
        sets(number).map(|set| format!("{set} ether daddr != {mac}"))
    });
    inspect(&site.host, &to_others.collect::<Vec<_>>());
    for (number, host) in hosts.iter().enumerate() {
        let unicast = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00";
        let not_own = format!("{unicast} ether daddr != {}", host.mac);
        let [v4, v6] = sets(1 - number);
        inspect(&host.netns, &[not_own, v4, v6]);
    }
}

/// Connections from each address to a web server and to a relay, and from a relay to each address.
fn converse(site: &Site, hosts: &[Machine; 2]) -> (Vec<Conversation>, Vec<JoinHandle<()>>) {
    let (mut all, mut servers) = (Vec::new(), Vec::new());
    let connections = ADDRESSES.as_flattened().len() / 2;
    for [server, relay] in [SERVER_V4.into(), SERVER_V6.into()].map(peers) {
        servers.push(serve(&site.clearnet, server, WEB, connections));
        servers.push(serve(&site.tornet, relay, OR_PORT, connections));
    }
    let owned = || {
        let pairs = hosts.iter().zip(ADDRESSES);
        pairs.flat_map(|(host, all)| all.map(|own| (host, address(own))))
    };
    for (host, own) in owned() {
        let [server, relay] = peers(own);
        for target in [(server, WEB), (relay, OR_PORT)] {
            let target = SocketAddr::from(target);
            all.push(Conversation::start(&host.netns, Some(own), target));
        }
    }
    // From here on the MAC address of each address is known.
    Conversation::all_go_on(&all, "from the hosts");
    for (host, own) in owned() {
        let [_, relay] = peers(own);
        servers.push(serve(&host.netns, own, OR_PORT, 1));
        let target = SocketAddr::new(own, OR_PORT);
        all.push(Conversation::start(&site.tornet, Some(relay), target));
    }
    Conversation::all_go_on(&all, "both ways");
    (all, servers)
}

#[test]
fn no_frame_goes_to_another_host_also_after_a_restart_and_a_kill() {
    needs_root!();
    if !is_installed("nft") {
        return;
    }
    both_engines(|| {
        let (site, hosts) = ground();
        inspect_all(&site, &hosts);
        let rig = Rig::on(site, &config());
        let (all, servers) = converse(&rig.site, &hosts);
        for own in QUIET.map(address) {
            let [server, _] = peers(own);
            let echo = serve(&rig.site.clearnet, server, 80, 1);
            let target = SocketAddr::new(server, 80);
            let once = Conversation::start(&hosts[1].netns, Some(own), target);
            Conversation::all_go_on([&once], "from an address that is quiet afterwards");
            once.end();
            echo.join().unwrap();
        }

        let site = rig.leave();
        Conversation::all_go_on(&all, "while the process is stopped");
        let mut rig = Rig::on(site, &config());
        Conversation::all_go_on(&all, "after the restart");
        rig.running.signal(Signal::SIGKILL).unwrap();
        rig.running.ended().unwrap();
        Conversation::all_go_on(&all, "while the process is dead");
        let rig = Rig::on(rig.site, &config());
        Conversation::all_go_on(&all, "after the kill");
        for own in QUIET.map(address) {
            let [_, relay] = peers(own);
            let echo = serve(&hosts[1].netns, own, OR_PORT, 1);
            let target = SocketAddr::new(own, OR_PORT);
            let first = Conversation::start(&rig.site.tornet, Some(relay), target);
            Conversation::all_go_on([&first], "to an address that is quiet");
            first.end();
            echo.join().unwrap();
        }
        all.into_iter().for_each(Conversation::end);
        servers
            .into_iter()
            .for_each(|server| server.join().unwrap());

        let report = rig.status();
        let known = report
            .hosts
            .iter()
            .map(|host| (host.address.as_str(), host.mac.as_str()));
        let quiet = QUIET.map(|text| (text, MACS[1]));
        let expected = (0..2).flat_map(|number| ADDRESSES[number].map(|text| (text, MACS[number])));
        let mut expected: Vec<_> = expected.chain(quiet).collect();
        expected.sort_by_key(|(text, _)| address(text));
        assert_eq!(known.collect::<Vec<_>>(), expected);
        assert!(!report.has_alarm(), "{:?}", report.warnings);
        let last = rig.running.stop_well().unwrap();
        assert_eq!(last.counters.get("dropped_host_mac_unknown"), None);

        let site = &rig.site;
        let all = [&site.host, &hosts[0].netns, &hosts[1].netns];
        for netns in all {
            let counts = ["right", "wrong"].map(|name| inspected(netns, name));
            println!("{}: right and wrong: {counts:?}", netns.label());
            assert!(counts[0] > 500 && counts[1] == 0, "{}", netns.label());
        }
        // The counters find what they must.
        let astray = answer(ADDRESSES[0][0]).framed(MACS[1], TORNET_MAC, &[]);
        for (netns, port) in [(&site.middle, "host0"), (&site.host, "host-b")] {
            RawPort::open(netns, port).unwrap().send(&astray).unwrap();
        }
        for netns in [&site.host, &hosts[1].netns] {
            assert_eq!(inspected(netns, "wrong"), 1, "{}", netns.label());
        }
    });
}

fn outbound(source: &str, mac: &str) -> Vec<u8> {
    let (_, server, _) = families()[0];
    let packet = Packet::new(address(source), server, TCP, segment(40_000, WEB, 20));
    packet.framed(CLEARNET_MAC, mac, &[])
}

/// A relay's answer to a steered segment, as the router on `incoming` sends it.
fn answer(host: &str) -> Packet {
    let relay = RELAY_V4.into();
    Packet::new(relay, address(host), TCP, segment(OR_PORT, 40_000, 30))
}

#[track_caller]
fn answered(rig: &Rig, host: &str, mac: &str) {
    let packet = answer(host);
    let arrives = Some((Side::Host, packet.framed(mac, TORNET_MAC, &[])));
    let what = format!("an answer to {host}");
    let case = Case::new(what, Side::Tornet, packet.incoming(&[]), arrives);
    passes(&rig.site, &case);
}

/// Sends a frame from an address with each of these MAC addresses, each in a batch of its own.
fn speak(rig: &Rig, frames: &[(&str, &str)]) {
    let mut eye = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    for (number, (source, mac)) in frames.iter().enumerate() {
        port.send(&outbound(source, mac)).unwrap();
        assert!(eye.counts(number + 1));
    }
}

#[test]
fn an_address_that_has_not_sent_gets_frames_only_with_one_host() {
    both_engines(|| {
        let [a, b] = [ADDRESSES[0][0], ADDRESSES[1][0]];
        let rig = Rig::silent(Plan::default(), &config());
        speak(&rig, &[(a, MACS[0])]);
        answered(&rig, SILENT, MACS[0]);
        speak(&rig, &[(b, MACS[1]), (a, MACS[0]), (b, MACS[1])]);
        answered(&rig, a, MACS[0]);
        answered(&rig, b, MACS[1]);
        // Which of the two hosts has the address is unknown.
        let frame = answer(SILENT).incoming(&[]);
        rig.port(Side::Tornet).send(&frame).unwrap();
        rig.counts("dropped_host_mac_unknown", 1);
        rig.no_warning(CONFLICT);
        rig.stop();
    });
}

/// The MAC address of a group gets all frames for its addresses, from the first one on.
#[test]
fn each_group_has_its_configured_mac() {
    both_engines(|| {
        let [a, b] = [ADDRESSES[0][0], ADDRESSES[1][0]];
        let config = Config::default()
            .addresses([a])
            .host(format_args!("mac = {:?}", MACS[0]))
            .group(format_args!("addresses = [{b:?}]\nmac = {:?}", MACS[1]));
        let rig = Rig::silent(Plan::default(), &config);
        for _ in 0..2 {
            answered(&rig, a, MACS[0]);
            answered(&rig, b, MACS[1]);
            // Another machine with the address of a host.
            speak(&rig, &[(a, STRANGER)]);
        }
        let found = rig.warning("host_mac");
        assert!(!found.is_alarm);
        assert_says(&found.text, &["host.mac", MACS[0], a, STRANGER]);
        rig.stop();
    });
}

#[test]
fn an_address_of_two_machines_is_an_alarm() {
    both_engines(|| {
        let [a, b] = [ADDRESSES[0][0], ADDRESSES[1][0]];
        let rig = Rig::silent(Plan::default(), &config());
        // Several addresses of each host, in turn.
        let hosts = [(a, MACS[0]), (b, MACS[1]), (ADDRESSES[0][1], MACS[0])];
        speak(&rig, &hosts.repeat(4));
        rig.no_warning(CONFLICT);
        let found = eventually("an alarm with both MAC addresses", || {
            speak(&rig, &[(a, MACS[0]), (a, MACS[1])].repeat(3));
            speak(&rig, &[(a, MACS[0])]);
            let warnings = rig.status().warnings;
            let found = warnings.iter().find(|one| one.kind == CONFLICT);
            let names_both = |one: &&Warning| MACS.iter().all(|mac| one.text.contains(mac));
            found
                .filter(names_both)
                .cloned()
                .ok_or(format!("{warnings:?}"))
        });
        assert!(found.is_alarm);
        assert_says(&found.text, &[a]);
        assert!(!found.text.contains(b), "{}", found.text);
        rig.running.wait_log(&["ALARM: host addresses"]);
        rig.stop();
    });
}

/// A backup of VRRP replaces a silent master after 3 s at the earliest, with the default timers.
#[test]
fn a_moved_address_and_vrrp_are_no_alarm() {
    needs_root!();
    let watch = |engine: &'static str| {
        let [moved, virtual_address] = [ADDRESSES[0][0], ADDRESSES[1][0]];
        let rig = Rig::silent(Plan::default(), &config().engine(engine));
        speak(&rig, &[(moved, MACS[0]), (moved, MACS[1])]);
        for number in 0..6 {
            speak(&rig, &[(virtual_address, MACS[number % 2])]);
            std::thread::sleep(Duration::from_secs(3));
            let report = rig.status();
            assert!(!report.has_alarm(), "{engine}: {:?}", report.warnings);
        }
        let changes = rig.status().hosts;
        let changes: Vec<_> = changes.iter().map(|host| host.changes).collect();
        assert_eq!(changes, [1, 5], "{engine}");
        answered(&rig, moved, MACS[1]);
        rig.stop();
    };
    std::thread::scope(|scope| {
        for engine in ["xdp", "af_xdp"] {
            scope.spawn(move || watch(engine));
        }
    });
}
