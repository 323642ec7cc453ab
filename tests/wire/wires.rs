//! Several wires in one process: each has its own hosts and its own uplink, and all of them can
//! share the NIC for relay traffic.

use crate::craft::{AF11, Packet, TCP, segment};
use crate::rack::{Conversation, add_addresses, complete_frames, serve};
use crate::rig::{
    Config, EXITMARK, Rig, assert_says, both_engines, detach, eventually, needs_root, wait_until,
};
use crate::tap::{Monitor, TAP};
use exitmark_box::observe::Report;
use exitmark_datapath::Role;
use exitmark_lab::site::{
    CLEARNET_MAC, FAR_END, HOST_MAC, HOST_V4, HOST_V6, INCOMING_MAC, OR_PORT, Plan, RELAY_V4,
    RELAY_V6, SERVER_V4, SERVER_V6, Site, TORNET_MAC, connect,
};
use exitmark_lab::{Capture, Netns, RawPort, RunningBox, VethEnd};
use nix::sys::signal::Signal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WEB: u16 = 443;
/// The second host, and its addresses.
const OTHER_MAC: &str = "02:00:00:00:01:77";
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20);
/// An address of one of the hosts, from which no frame is sent.
const SILENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 30);
const PINS: &str = "/sys/fs/bpf/exitmark";

/// A site with a second wire: `host1` and `uplink1`, with a host and a network of its own.
struct Ground {
    site: Site,
    host: Netns,
    clearnet: Netns,
}

impl Ground {
    fn new() -> Self {
        let site = Site::build(Plan::default()).unwrap();
        let (host, clearnet) = ("host-b", "clearnet-b");
        let [host, clearnet] = [host, clearnet].map(|label| Netns::new(label).unwrap());
        for (netns, mac, near) in [
            (&host, OTHER_MAC, ("host1", "02:00:00:00:01:03")),
            (&clearnet, CLEARNET_MAC, ("uplink1", "02:00:00:00:02:03")),
        ] {
            let far = VethEnd::new(netns, FAR_END, mac);
            let near = VethEnd::new(&site.middle, near.0, near.1);
            connect(&far, &near, 1500).unwrap();
            let key = format!("net/ipv6/conf/{}/disable_ipv6", near.name);
            site.middle.sysctl(&key, "1").unwrap();
        }
        let server = [format!("{SERVER_V4}/32"), format!("{SERVER_V6}/128")];
        add_addresses(&clearnet, FAR_END, &["192.0.2.1/24", "2001:db8:1::1/64"]);
        add_addresses(&clearnet, FAR_END, &server.each_ref().map(String::as_str));
        let own = [format!("{OTHER_V4}/24"), format!("{OTHER_V6}/64")];
        add_addresses(&host, FAR_END, &own.each_ref().map(String::as_str));
        for gateway in ["192.0.2.1", "2001:db8:1::1"] {
            host.ip(&format!("route add default via {gateway}"))
                .unwrap();
        }
        for netns in [&site.host, &host] {
            complete_frames(netns, FAR_END);
        }
        Self {
            site,
            host,
            clearnet,
        }
    }

    /// Removes all addresses.
    fn silent() -> Self {
        let ground = Self::new();
        ground.site.silence().unwrap();
        for netns in [&ground.host, &ground.clearnet] {
            netns.silence(FAR_END).unwrap();
        }
        ground
    }
}

fn config() -> Config {
    let addresses: [IpAddr; 5] = [
        HOST_V4.into(),
        HOST_V6.into(),
        OTHER_V4.into(),
        OTHER_V6.into(),
        SILENT.into(),
    ];
    let config = Config::default().addresses(addresses);
    let config = config.host("listeners = [9001]");
    (0..2).fold(config, |config, number| {
        config.wire(format_args!(
            "host = \"host{number}\"\nuplink = \"uplink{number}\"\nincoming = \"incoming0\"\n"
        ))
    })
}

/// A web server or a relay of the IP version of a host's address.
fn peer(host: IpAddr, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
    match host {
        IpAddr::V4(_) => v4.into(),
        IpAddr::V6(_) => v6.into(),
    }
}

fn port_of<'r>(report: &'r Report, interface: &str) -> &'r exitmark_box::observe::PortReport {
    let mut ports = report.ports.iter();
    ports.find(|port| port.interface == interface).unwrap()
}

#[test]
fn hosts_with_a_wire_each_share_the_way_of_relay_traffic() {
    needs_root!();
    both_engines(|| {
        let ground = Ground::new();
        let rig = Rig::on(ground.site, &config());
        let hosts: [(&Netns, &Netns, [IpAddr; 2]); 2] = [
            (
                &rig.site.host,
                &rig.site.clearnet,
                [HOST_V4.into(), HOST_V6.into()],
            ),
            (
                &ground.host,
                &ground.clearnet,
                [OTHER_V4.into(), OTHER_V6.into()],
            ),
        ];
        let (mut all, mut servers) = (Vec::new(), Vec::new());
        for relay in [RELAY_V4.into(), RELAY_V6.into()] {
            servers.push(serve(&rig.site.tornet, relay, OR_PORT, 2));
        }
        for (host, clearnet, addresses) in &hosts {
            for own in addresses {
                let server = peer(*own, SERVER_V4, SERVER_V6);
                let relay = peer(*own, RELAY_V4, RELAY_V6);
                servers.push(serve(clearnet, server, WEB, 1));
                for target in [(server, WEB), (relay, OR_PORT)] {
                    all.push(Conversation::start(host, Some(*own), target.into()));
                }
            }
        }
        Conversation::all_go_on(&all, "at the start");
        let site = rig.leave();
        Conversation::all_go_on(&all, "while the process is stopped");
        let mut rig = Rig::on(site, &config());
        Conversation::all_go_on(&all, "after the restart");
        rig.running.signal(Signal::SIGKILL).unwrap();
        rig.running.ended().unwrap();
        Conversation::all_go_on(&all, "while the process is dead");
        let rig = Rig::on(rig.site, &config());
        Conversation::all_go_on(&all, "after the kill");
        all.into_iter().for_each(Conversation::end);
        servers
            .into_iter()
            .for_each(|server| server.join().unwrap());
        let report = rig.status();
        assert!(!report.has_alarm(), "{:?}", report.warnings);
        let macs: Vec<_> = report
            .hosts
            .iter()
            .map(|host| (host.address.parse().unwrap(), host.mac.as_str()))
            .collect();
        let expected: [(IpAddr, _); 4] = [
            (HOST_V4.into(), HOST_MAC),
            (OTHER_V4.into(), OTHER_MAC),
            (HOST_V6.into(), HOST_MAC),
            (OTHER_V6.into(), OTHER_MAC),
        ];
        assert_eq!(macs, expected);
        let interfaces: Vec<_> = report.ports.iter().map(|port| &port.interface).collect();
        let expected = ["host0", "uplink0", "incoming0", "host1", "uplink1"];
        assert_eq!(interfaces, expected);
        for interface in expected {
            let port = port_of(&report, interface);
            assert!(
                port.received_frames > 100 && port.forwarded_frames > 100,
                "{port:?}"
            );
        }
        let last = rig.running.stop_well().unwrap();
        assert_eq!(last.counters.get("dropped_host_mac_unknown"), None);
    });
}

/// Frames of a host with this address, to the web server and to the relay.
fn outbound(source: Ipv4Addr, mac: &str) -> [Vec<u8>; 2] {
    [(SERVER_V4, WEB), (RELAY_V4, OR_PORT)].map(|(to, port)| {
        let packet = Packet::new(source.into(), to.into(), TCP, segment(40_000, port, 20));
        packet.framed(CLEARNET_MAC, mac, &[])
    })
}

fn answer(host: Ipv4Addr) -> Packet {
    Packet::new(
        RELAY_V4.into(),
        host.into(),
        TCP,
        segment(OR_PORT, 40_000, 30),
    )
}

#[test]
fn no_frame_crosses_from_wire_to_wire() {
    both_engines(|| {
        let ground = Ground::silent();
        let rig = Rig::on(ground.site, &config());
        let ends: [(&Netns, &str); 5] = [
            (&rig.site.host, "host0"),
            (&rig.site.clearnet, "uplink0"),
            (&ground.host, "host1"),
            (&ground.clearnet, "uplink1"),
            (&rig.site.tornet, "incoming0"),
        ];
        let mut eyes = ends.map(|(netns, _)| Capture::start(netns, FAR_END, "in", "").unwrap());
        let mut expected = [0; 5];
        let mut sends = |from: usize, frame: &[u8], to: usize, arrives: &[u8]| {
            RawPort::open(ends[from].0, FAR_END)
                .unwrap()
                .send(frame)
                .unwrap();
            expected[to] += 1;
            let what = format!("{from} to {to}");
            assert!(
                eyes[to].counts(expected[to]),
                "{what}: {:?}",
                rig.running.counters()
            );
            assert_eq!(eyes[to].so_far().last().unwrap().bytes, arrives, "{what}");
        };
        let hosts = [(0, HOST_V4, HOST_MAC), (2, OTHER_V4, OTHER_MAC)];
        for (from, source, mac) in hosts {
            let [exit, relay] = outbound(source, mac);
            let packet = |to: Ipv4Addr, port| {
                Packet::new(source.into(), to.into(), TCP, segment(40_000, port, 20))
            };
            let marked = packet(SERVER_V4, WEB)
                .tos(AF11)
                .framed(CLEARNET_MAC, mac, &[]);
            let steered = packet(RELAY_V4, OR_PORT).framed(TORNET_MAC, INCOMING_MAC, &[]);
            sends(from, &exit, from + 1, &marked);
            sends(from, &relay, 4, &steered);
            // A broadcast reaches the other end of its wire only.
            let broadcast = packet(SERVER_V4, WEB).framed("ff:ff:ff:ff:ff:ff", TORNET_MAC, &[]);
            sends(from + 1, &broadcast, from, &broadcast);
        }
        for (to, address, mac) in hosts {
            let packet = answer(address);
            let delivered = packet.framed(mac, TORNET_MAC, &[]);
            sends(4, &packet.incoming(&[]), to, &delivered);
        }
        // Which of the two hosts has the address is unknown.
        let lost = answer(SILENT).incoming(&[]);
        RawPort::open(&rig.site.tornet, FAR_END)
            .unwrap()
            .send(&lost)
            .unwrap();
        rig.counts("dropped_host_mac_unknown", 1);
        for (eye, expected) in eyes.iter_mut().zip(expected) {
            assert_eq!(eye.so_far().len(), expected);
        }
        rig.stop();
    });
}

/// An address that moves to a host behind another wire is followed, and two members of an aggregate
/// may have one address.
#[test]
fn an_address_is_where_its_frames_come_from() {
    both_engines(|| {
        let ground = Ground::silent();
        let rig = Rig::on(ground.site, &config());
        let hosts = [&rig.site.host, &ground.host];
        let mut eyes = hosts.map(|netns| Capture::start(netns, FAR_END, "in", "").unwrap());
        let mut arrived = [0; 2];
        let tornet = RawPort::open(&rig.site.tornet, FAR_END).unwrap();
        for (round, at) in [0, 1, 0].into_iter().enumerate() {
            let ports = hosts.map(|netns| RawPort::open(netns, FAR_END).unwrap());
            let [exit, _] = outbound(HOST_V4, HOST_MAC);
            let answer = answer(HOST_V4).incoming(&[]);
            wait_until(
                &format!("round {round}"),
                || {
                    ports[at].send(&exit).unwrap();
                    tornet.send(&answer).unwrap();
                    let before = arrived;
                    let both = eyes.iter_mut().map(|eye| {
                        std::thread::sleep(crate::rig::PACE);
                        eye.so_far().len()
                    });
                    arrived = both.collect::<Vec<_>>().try_into().unwrap();
                    arrived[at] > before[at] && arrived[1 - at] == before[1 - at]
                },
                || rig.running.log(),
            );
        }
        rig.no_warning("host_conflict");
        rig.running.stop_well().unwrap();
    });
}

#[test]
fn the_loss_of_a_link_is_carried_forward_and_back() {
    needs_root!();
    let ground = Ground::new();
    let mut rig = Rig::on(ground.site, &config());
    let carriers = |rig: &Rig| {
        let ends = [
            &rig.site.clearnet,
            &ground.clearnet,
            &rig.site.host,
            &ground.host,
        ];
        ends.map(|netns| {
            netns
                .ip("-o link show dev eth0")
                .unwrap()
                .contains("LOWER_UP")
        })
    };
    let are = |rig: &Rig, expected: [bool; 4], when: &str| {
        eventually(when, || match carriers(rig) {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?}\n{}", rig.running.log())),
        });
    };
    are(&rig, [true; 4], "at the start");
    ground.host.ip("link set eth0 down").unwrap();
    are(
        &rig,
        [true, false, true, false],
        "behind the wire whose host is lost",
    );
    let held = rig.warning("link_loss");
    assert_says(&held.text, &["uplink1", "wire.link_loss"]);
    assert!(
        !rig.status()
            .warnings
            .iter()
            .any(|one| one.text.contains("uplink0"))
    );
    // A process that is killed leaves it down, and the next one sets it up.
    rig.running.signal(Signal::SIGKILL).unwrap();
    rig.running.ended().unwrap();
    let rig = Rig::on(rig.site, &config());
    rig.warning("no_carrier");
    ground.host.ip("link set eth0 up").unwrap();
    are(&rig, [true; 4], "when the host is back");
    rig.no_warning("link_loss");
    ground.clearnet.ip("link set eth0 down").unwrap();
    are(
        &rig,
        [true, false, true, false],
        "before the wire whose network is lost",
    );
    // Without the process, nothing would set it up again.
    let site = rig.leave();
    let there = |netns: &Netns| {
        netns
            .ip("-o link show dev eth0")
            .unwrap()
            .contains("LOWER_UP")
    };
    assert!(
        there(&ground.host),
        "a stopped box holds the link of the host down"
    );
    ground.clearnet.ip("link set eth0 up").unwrap();
    detach(&site);
    assert!(there(&ground.host) && there(&ground.clearnet));
}

#[test]
fn a_wire_that_cannot_be_set_up_is_an_alarm_and_the_others_work() {
    needs_root!();
    let ground = Ground::silent();
    // Linux 6.1 renames no NIC that is up.
    for change in ["uplink1 down", "uplink1 name away1", "away1 up"] {
        let line = format!("link set {change}");
        ground.site.middle.ip(&line).unwrap();
    }
    let rig = Rig::on(ground.site, &config());
    let alarm = rig.warning("wire_down");
    assert!(alarm.is_alarm);
    assert_says(&alarm.text, &["host1", "uplink1"]);
    let mut eye = Capture::start(&rig.site.clearnet, FAR_END, "in", "").unwrap();
    let [exit, _] = outbound(HOST_V4, HOST_MAC);
    RawPort::open(&rig.site.host, FAR_END)
        .unwrap()
        .send(&exit)
        .unwrap();
    assert!(eye.counts(1));
    // The process ends, for its service manager to start it again.
    rig.ip("link set away1 down");
    rig.ip("link set away1 name uplink1");
    rig.ip("link set uplink1 up");
    let mut running = rig.running;
    let ended = running.ended().unwrap();
    assert_eq!(ended.code(), Some(1), "{}", running.log());
    assert_says(&running.log(), &["host1", "can be set up now"]);
    let directory = tempfile::tempdir().unwrap();
    let path = config().write(directory.path()).unwrap();
    let running = rig.site.run(EXITMARK, &path).unwrap();
    let report = rig.site.status().unwrap();
    assert_eq!(report.ports.len(), 5, "{:?}", report.warnings);
    running.stop_well().unwrap();
}

fn pinned(site: &Site) -> Vec<String> {
    site.middle.run(|| {
        let entries = std::fs::read_dir(PINS).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("maps-")).collect();
        names.sort();
        names
    })
}

#[test]
fn other_wires_leave_nothing_of_the_earlier_ones() {
    needs_root!();
    let ground = Ground::silent();
    let one = Config::default().without_incoming();
    let rig = Rig::on(ground.site, &one);
    let rig = rig.restart(&config());
    assert_eq!(pinned(&rig.site), ["undo", "wire-host0", "wire-host1"]);
    // The second process waits for the first one's pins, and names them.
    let other = rig.site.run(EXITMARK, &rig.configuration);
    assert_says(&other.err().unwrap().to_string(), &[PINS]);
    let rig = rig.restart(&one);
    let names = pinned(&rig.site);
    assert!(names.contains(&"link_host".to_owned()) && !names.contains(&"wire-host1".to_owned()));
    let rig = rig.restart(&config());
    let site = rig.leave();
    assert_says(&detach(&site), &["detached"]);
    assert!(!site.middle.run(|| Path::new(PINS).exists()));
    let promiscuous = site.middle.ip("-d link show dev host1").unwrap();
    assert_says(&promiscuous, &["promiscuity 0"]);
}

#[test]
fn one_nic_of_two_wires_by_two_names_is_refused() {
    let ground = Ground::silent();
    let altname = "link property add dev uplink0 altname another0";
    ground.site.middle.ip(altname).unwrap();
    let config = Config::default()
        .without_incoming()
        .wire("host = \"host0\"\nuplink = \"uplink0\"")
        .wire("host = \"host1\"\nuplink = \"another0\"");
    let rig = Rig::on(ground.site, &config);
    let alarm = rig.warning("wire_down");
    assert_says(&alarm.text, &["host1", "uplink0", "two names"]);
    rig.stop();
}

#[test]
fn a_tap_that_is_a_port_of_another_wire_by_another_name_is_refused() {
    needs_root!();
    let ground = Ground::silent();
    let altname = "link property add dev uplink1 altname another0";
    ground.site.middle.ip(altname).unwrap();
    let config = Config::default()
        .without_incoming()
        .wire("host = \"host0\"\nuplink = \"uplink0\"\ntap = \"another0\"")
        .wire("host = \"host1\"\nuplink = \"uplink1\"");
    let rig = Rig::on(ground.site, &config);
    let alarm = rig.warning("wire_down");
    let reason = "wire.tap = \"another0\" is the NIC uplink1, which is uplink of the wire host1";
    assert_says(&alarm.text, &["the wire host0 is not set up", reason]);
    rig.stop();
}

/// Before the policy is loaded and after the box is gone, each host keeps its wire.
#[test]
fn plain_wires_come_before_the_box_and_stay_after_it() {
    needs_root!();
    let ground = Ground::silent();
    let directory = tempfile::tempdir().unwrap();
    let path = config().write(directory.path()).unwrap();
    let file = path.to_str().unwrap();
    let site = &ground.site;
    let are_plain = |site: &Site| {
        let ends = [
            (&site.host, &site.clearnet, HOST_V4, HOST_MAC),
            (&ground.host, &ground.clearnet, OTHER_V4, OTHER_MAC),
        ];
        for (host, clearnet, source, mac) in ends {
            let mut eye = Capture::start(clearnet, FAR_END, "in", "").unwrap();
            let frames = outbound(source, mac);
            for (number, frame) in frames.iter().enumerate() {
                RawPort::open(host, FAR_END).unwrap().send(frame).unwrap();
                assert!(eye.counts(number + 1));
            }
            let captured = eye.finish().unwrap();
            assert!(captured.iter().map(|one| &one.bytes).eq(&frames));
        }
    };
    let run = |site: &Site, command: &[&str]| {
        let arguments = [command, &["--config", file]].concat();
        site.middle.command(EXITMARK, &arguments).unwrap()
    };
    let lines = [
        "host0 and uplink0 are a plain wire\n",
        "host1 and uplink1 are a plain wire\n",
    ];
    assert_eq!(run(site, &["wire"]), lines.concat());
    are_plain(site);
    let rig = Rig::on(ground.site, &config());
    let mut eye = Capture::start(&rig.site.tornet, FAR_END, "in", "").unwrap();
    let [_, relay] = outbound(OTHER_V4, OTHER_MAC);
    RawPort::open(&ground.host, FAR_END)
        .unwrap()
        .send(&relay)
        .unwrap();
    assert!(eye.counts(1), "the box steers");
    let site = &rig.leave();
    assert_eq!(
        run(site, &["wire"]),
        "a box is attached, and stays as it is\n"
    );
    let detached = run(site, &["detach", "--keep-wire"]);
    assert_eq!(
        detached,
        lines.map(|line| format!("detached: {line}")).concat()
    );
    are_plain(site);
    detach(site);
    assert!(!site.middle.run(|| Path::new(PINS).exists()));
}

/// As many wires as there can be.
#[test]
fn eight_wires_forward_each_its_own() {
    needs_root!();
    let [middle, hosts, clearnet] = ["box", "hosts", "clearnet"].map(|label| {
        let netns = Netns::new(label).unwrap();
        netns.disable_ipv6().unwrap();
        netns
    });
    let mut config = Config::default()
        .without_incoming()
        .addresses(["192.0.2.0/28"]);
    for number in 0..8 {
        let mac = |end: u8| format!("02:00:00:00:0{end}:0{number}");
        let names = [("host", &hosts), ("uplink", &clearnet)];
        for (end, (name, far)) in (1..).zip(names) {
            let (near_name, far_name) = (format!("{name}{number}"), format!("eth{number}"));
            let (near_mac, far_mac) = (mac(end), mac(end + 2));
            let near = VethEnd::new(&middle, &near_name, &near_mac);
            connect(&VethEnd::new(far, &far_name, &far_mac), &near, 1500).unwrap();
        }
        config = config.wire(format_args!(
            "host = \"host{number}\"\nuplink = \"uplink{number}\""
        ));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = config.write(directory.path()).unwrap();
    let running = RunningBox::start(&middle, EXITMARK, &path).unwrap();
    let mut eyes: Vec<_> = (0..8)
        .map(|number| Capture::start(&clearnet, &format!("eth{number}"), "in", "").unwrap())
        .collect();
    for (number, eye) in (0..8_u8).zip(&mut eyes) {
        let source = Ipv4Addr::new(192, 0, 2, 8 + number);
        let [exit, _] = outbound(source, "02:00:00:00:03:09");
        let port = RawPort::open(&hosts, &format!("eth{number}")).unwrap();
        port.send(&exit).unwrap();
        assert!(eye.counts(1), "wire {number}");
    }
    for eye in eyes {
        assert_eq!(eye.finish().unwrap().len(), 1);
    }
    let last = running.stop_well().unwrap();
    assert_eq!(last.counters.get("marked"), Some(&8));
}

/// Sends a relay's answers to both hosts until both arrive, and checks that none goes astray.
#[track_caller]
fn both_are_answered(ground: [&Netns; 2], rig: &Rig, when: &str) {
    let mut eyes = ground.map(|netns| Capture::start(netns, FAR_END, "in", "").unwrap());
    let tornet = RawPort::open(&rig.site.tornet, FAR_END).unwrap();
    let answers = [HOST_V4, OTHER_V4].map(answer);
    for answer in &answers {
        tornet.send(&answer.incoming(&[])).unwrap();
    }
    let delivered = [HOST_MAC, OTHER_MAC];
    let delivered = answers.iter().zip(delivered);
    let delivered = delivered.map(|(answer, mac)| answer.framed(mac, TORNET_MAC, &[]));
    for (eye, expected) in eyes.iter_mut().zip(delivered) {
        assert!(eye.counts(1), "{when}\n{}", rig.running.log());
        assert_eq!(eye.so_far()[0].bytes, expected, "{when}");
    }
}

fn speak(host: &Netns, source: Ipv4Addr, mac: &str) {
    let [exit, _] = outbound(source, mac);
    RawPort::open(host, FAR_END).unwrap().send(&exit).unwrap();
}

/// The program on the shared NIC is that of the first wire, which may be another one after a restart.
#[test]
fn the_shared_nic_goes_to_another_wire() {
    needs_root!();
    let ground = Ground::silent();
    let wires = |order: [usize; 2]| {
        let addresses = [HOST_V4, OTHER_V4, SILENT];
        let config = Config::default().addresses(addresses);
        order.into_iter().fold(config, |config, number| {
            config.wire(format_args!(
                "host = \"host{number}\"\nuplink = \"uplink{number}\"\nincoming = \"incoming0\"\n"
            ))
        })
    };
    let rig = Rig::on(ground.site, &wires([0, 1]));
    speak(&rig.site.host, HOST_V4, HOST_MAC);
    speak(&ground.host, OTHER_V4, OTHER_MAC);
    both_are_answered([&rig.site.host, &ground.host], &rig, "at the start");
    let rig = rig.restart(&wires([1, 0]));
    assert!(!rig.status().has_alarm(), "{:?}", rig.status().warnings);
    both_are_answered([&rig.site.host, &ground.host], &rig, "in another order");
    // The wire that had it fails: its hosts are still behind the program that it has left.
    let site = rig.leave();
    site.middle.ip("link set uplink1 mtu 1400").unwrap();
    let rig = Rig::on(site, &wires([1, 0]));
    assert_says(&rig.warning("wire_down").text, &["host1"]);
    both_are_answered(
        [&rig.site.host, &ground.host],
        &rig,
        "without the first wire",
    );
    // An address of none of the known hosts may be behind the wire that is down.
    let lost = answer(SILENT).incoming(&[]);
    let tornet = RawPort::open(&rig.site.tornet, FAR_END).unwrap();
    tornet.send(&lost).unwrap();
    let mut eye = Capture::start(&rig.site.host, FAR_END, "in", "").unwrap();
    tornet.send(&answer(HOST_V4).incoming(&[])).unwrap();
    assert!(eye.counts(1));
    rig.ip("link set uplink1 mtu 1500");
    let mut running = rig.running;
    assert_eq!(running.ended().unwrap().code(), Some(1));
    let rig = Rig::on(rig.site, &wires([1, 0]));
    assert!(!rig.status().has_alarm(), "{:?}", rig.status().warnings);
    both_are_answered([&rig.site.host, &ground.host], &rig, "with both again");
    rig.running.stop_well().unwrap();
}

/// From the first frame on, also while a restart sets up one wire after the other.
#[test]
fn no_frame_goes_to_the_host_of_another_wire_during_a_restart() {
    needs_root!();
    let ground = Ground::silent();
    let rig = Rig::on(ground.site, &config());
    speak(&rig.site.host, HOST_V4, HOST_MAC);
    speak(&ground.host, OTHER_V4, OTHER_MAC);
    let hosts = [&rig.site.host, &ground.host];
    both_are_answered(hosts, &rig, "at the start");
    let mut eyes = hosts.map(|netns| Capture::start(netns, FAR_END, "in", "").unwrap());
    let tornet = RawPort::open(&rig.site.tornet, FAR_END).unwrap();
    let answers = [HOST_V4, OTHER_V4].map(|host| answer(host).incoming(&[]));
    let ends = Arc::new(AtomicBool::new(false));
    let ending = Arc::clone(&ends);
    let sender = std::thread::spawn(move || {
        let mut sent = 0;
        while !ending.load(Ordering::Relaxed) {
            for frame in &answers {
                tornet.send(frame).unwrap();
            }
            sent += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    });
    let rig = rig.restart(&config());
    ends.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    for (eye, (host, mac)) in eyes
        .iter_mut()
        .zip([(HOST_V4, HOST_MAC), (OTHER_V4, OTHER_MAC)])
    {
        assert!(eye.counts(sent), "{} of {sent}", eye.so_far().len());
        let expected = answer(host).framed(mac, TORNET_MAC, &[]);
        let wrong = eye.so_far().iter().filter(|one| one.bytes != expected);
        assert_eq!(wrong.count(), 0, "{host}");
    }
    rig.running.stop_well().unwrap();
}

/// The NIC of all wires is created anew while a cable is cut: the box holds the other side down.
#[test]
fn a_shared_nic_comes_back_while_a_side_is_held() {
    needs_root!();
    let ground = Ground::silent();
    let rig = Rig::on(ground.site, &config());
    rig.site.clearnet.ip("link set eth0 down").unwrap();
    rig.warning("link_loss");
    rig.ip("link del incoming0");
    rig.warning("port_lost");
    rig.site
        .connect(Role::Incoming, INCOMING_MAC, Plan::default())
        .unwrap();
    rig.site.middle.silence("incoming0").unwrap();
    rig.site.tornet.silence(FAR_END).unwrap();
    rig.no_warning("port_lost");
    speak(&ground.host, OTHER_V4, OTHER_MAC);
    let mut eye = Capture::start(&ground.host, FAR_END, "in", "").unwrap();
    let tornet = RawPort::open(&rig.site.tornet, FAR_END).unwrap();
    tornet.send(&answer(OTHER_V4).incoming(&[])).unwrap();
    assert!(eye.counts(1), "{}", rig.running.log());
    rig.running.stop().unwrap();
}

#[test]
fn a_capture_of_all_wires_has_their_frames_and_ends_with_the_last_one() {
    needs_root!();
    let ground = Ground::silent();
    let rig = Rig::on(ground.site, &config());
    let arguments = ["--frames", "6", "--one-in", "1"];
    // The second wire is idle, and does not make the capture longer.
    let path = crate::rig::capture(&rig, &arguments, || {
        speak(&rig.site.host, HOST_V4, HOST_MAC);
        std::thread::sleep(crate::rig::PACE);
    });
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    assert_eq!(text.matches("; wire host0").count(), 6, "{text}");
    assert_says(&text, &["6 frames, one in 1"]);
    assert_eq!(text.matches("frames, one in").count(), 1);
    rig.running.stop_well().unwrap();
}

/// Pins, records and sockets of several wires need no more than those of one.
#[test]
fn several_wires_run_as_another_user_and_detach() {
    needs_root!();
    let ground = Ground::silent();
    let detaching = "[pin]\non_stop = \"detach\"";
    let config = config().top("user = \"nobody\"").more(detaching);
    let rig = Rig::on(ground.site, &config);
    let alarms: Vec<_> = rig.status().warnings;
    assert!(!alarms.iter().any(|one| one.is_alarm), "{alarms:?}");
    let mut eye = Capture::start(&rig.site.tornet, FAR_END, "in", "").unwrap();
    let [_, relay] = outbound(OTHER_V4, OTHER_MAC);
    let port = RawPort::open(&ground.host, FAR_END).unwrap();
    port.send(&relay).unwrap();
    assert!(eye.counts(1));
    let site = rig.leave();
    assert_eq!(pinned(&site), Vec::<String>::new());
    let link = site.middle.ip("-d link show dev host1").unwrap();
    assert_says(&link, &["promiscuity 0"]);
}

#[test]
fn two_wires_share_a_tap() {
    needs_root!();
    both_engines(|| {
        let ground = Ground::silent();
        let monitor = Monitor::connect(&ground.site);
        let wires = [0, 1].map(|number| {
            format!(
                "host = \"host{number}\"\nuplink = \"uplink{number}\"\nincoming = \
                 \"incoming0\"\ntap = \"{TAP}\"\n"
            )
        });
        let addresses: [IpAddr; 2] = [HOST_V4.into(), OTHER_V4.into()];
        let config = Config::default().addresses(addresses);
        let config = wires.into_iter().fold(config, Config::wire);
        let rig = Rig::on(ground.site, &config);
        let mut eye = monitor.watch();
        let mut expected = Vec::new();
        for (netns, address) in [(&rig.site.host, HOST_V4), (&ground.host, OTHER_V4)] {
            let exit = segment(40_000, WEB, 300);
            let packet = Packet::new(address.into(), SERVER_V4.into(), TCP, exit);
            let port = RawPort::open(netns, FAR_END).unwrap();
            port.send(&packet.outbound(&[])).unwrap();
            let mut copy = packet.marked();
            copy.truncate(14 + 20 + 20);
            expected.push(copy);
        }
        assert!(eye.counts(2), "{:02x?}", eye.so_far());
        let mut captured: Vec<_> = eye.finish().unwrap().into_iter().collect();
        captured.sort_by(|one, other| one.bytes.cmp(&other.bytes));
        let captured: Vec<_> = captured.into_iter().map(|one| one.bytes).collect();
        expected.sort();
        assert_eq!(captured, expected);
        eventually("the copies of both wires", || {
            let taps = rig.status().taps;
            match taps.as_slice() {
                [one] if one.interface == TAP && one.copied_out == 2 => Ok(()),
                _ => Err(format!("{taps:?}")),
            }
        });
        rig.stop();
    });
}
