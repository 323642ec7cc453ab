//! NICs that change while the box runs: removed and created again, moved away and back, renamed,
//! with another MAC address, MTU or number of queues; removed pins.

use crate::craft::{AF11, Packet, exit, families, relay, segment};
use crate::rig::{
    Config, EXITMARK, PATIENCE, Rig, Side, UPLINK0_MAC, both_engines, eventually, moved,
    needs_root, silence,
};
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::{Report, Warning};
use exitmark_datapath::xdp_state;
use exitmark_lab::site::{CLEARNET_MAC, HOST_MAC, INCOMING_MAC, Plan, Site, TORNET_MAC};
use exitmark_lab::{LabError, Netns, VethEnd, poll, veth};
use exitmark_nic::Nic;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const OTHER_MAC: &str = "02:00:00:00:03:99";
const SET_UP_AGAIN: &str = "the ports are set up again";
/// The interval of frames that are sent until one arrives.
const PACE: Duration = Duration::from_millis(20);

/// Waits until the log has this number of lines with these words.
#[track_caller]
fn said(rig: &Rig, words: &str, times: usize) {
    eventually(words, || {
        let log = rig.running.log();
        let told = log.lines().filter(|line| line.contains(words)).count();
        (told >= times).then_some(()).ok_or(LabError(log))
    });
}

fn status(site: &Site) -> Report {
    site.middle
        .run(|| Client::new(DEFAULT_SOCKET).status().unwrap())
}

/// Waits for a warning of this kind, or until there is none.
#[track_caller]
fn warned(rig: &Rig, kind: &str, is_wanted: bool) -> Option<Warning> {
    eventually(kind, || {
        let report = status(&rig.site);
        let found = report.warnings.iter().find(|one| one.kind == kind);
        (found.is_some() == is_wanted)
            .then(|| found.cloned())
            .ok_or_else(|| LabError(format!("{:?}\n{}", report.warnings, rig.running.log())))
    })
}

/// Sends a frame repeatedly until one arrives at the other end as these bytes.
#[track_caller]
fn crosses(rig: &Rig, from: Side, sent: &[u8], to: Side, arrives: &[u8]) {
    let mut eye = rig.watch(to);
    let port = rig.port(from);
    let deadline = Instant::now() + PATIENCE;
    while !eye.wait_until(PACE, |seen| seen.iter().any(|one| one.bytes == arrives)) {
        let log = rig.running.log();
        assert!(Instant::now() < deadline, "{from:?} to {to:?}: {log}");
        // A recreated far end may not exist yet.
        let _ = port.send(sent);
    }
    // No other frame has left.
    let seen = eye.finish().unwrap();
    assert!(seen.iter().all(|one| one.bytes == arrives), "{seen:02x?}");
}

/// Checks that exit frames are marked, relay frames are steered, and answers return both ways.
fn forwards(rig: &Rig, own: &str) {
    let out = exit(0, 60);
    let marked = out.clone().tos(AF11).outbound(&[]);
    crosses(rig, Side::Host, &out.outbound(&[]), Side::Clearnet, &marked);
    let relayed = relay(0, 60);
    let steered = relayed.framed(TORNET_MAC, own, &[]);
    crosses(
        rig,
        Side::Host,
        &relayed.outbound(&[]),
        Side::Tornet,
        &steered,
    );
    let back = answer();
    let inbound = back.framed(HOST_MAC, CLEARNET_MAC, &[]);
    crosses(rig, Side::Clearnet, &inbound, Side::Host, &inbound);
    delivered(rig, own);
}

/// A packet of the relay to the host.
fn answer() -> Packet {
    let (host, _, relay) = families()[0];
    Packet::new(relay, host, 6, segment(9001, 40_001, 70))
}

/// Checks that frames for the host to this MAC address of `incoming` arrive.
fn delivered(rig: &Rig, own: &str) {
    let sent = answer().framed(own, TORNET_MAC, &[]);
    let arrives = answer().framed(HOST_MAC, TORNET_MAC, &[]);
    crosses(rig, Side::Tornet, &sent, Side::Host, &arrives);
}

/// The far end and the MAC address of each of the box's NICs.
fn far_end<'a>(site: &'a Site, nic: &str) -> (&'a Netns, &'static str, &'static str) {
    match nic {
        "host0" => (&site.host, HOST_MAC, "02:00:00:00:01:02"),
        "uplink0" => (&site.clearnet, CLEARNET_MAC, UPLINK0_MAC),
        _ => (&site.tornet, TORNET_MAC, INCOMING_MAC),
    }
}

/// Recreates a NIC of the box, with its far end.
fn create(site: &Site, nic: &str, mac: &str, plan: Plan) {
    let (netns, far_mac, _) = far_end(site, nic);
    let end = |netns, name, mac| VethEnd {
        netns,
        name,
        mac,
        queues: plan.queues,
    };
    for netns in [netns, &site.middle] {
        netns
            .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            .unwrap();
    }
    let (far, near) = (end(netns, "eth0", far_mac), end(&site.middle, nic, mac));
    veth(&far, &near, plan.mtu).unwrap();
    netns
        .command("ethtool", &["-K", "eth0", "tx", "off"])
        .unwrap();
    poll(netns, "eth0").unwrap();
}

#[test]
fn a_port_that_is_removed_and_created_again_forwards_again() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        forwards(&rig, INCOMING_MAC);
        for (times, nic) in [(1, "uplink0"), (2, "host0"), (3, "incoming0")] {
            rig.site.middle.ip(&format!("link del {nic}")).unwrap();
            said(&rig, &format!("ALARM: {nic}"), 1);
            let warning = warned(&rig, "port_lost", true).unwrap();
            assert!(
                warning.is_alarm && warning.text.contains(nic),
                "{warning:?}"
            );
            if nic == "uplink0" {
                // The program alone still serves the other ports.
                let relayed = relay(0, 60);
                let steered = relayed.framed(TORNET_MAC, INCOMING_MAC, &[]);
                crosses(
                    &rig,
                    Side::Host,
                    &relayed.outbound(&[]),
                    Side::Tornet,
                    &steered,
                );
                // Frames that would leave by it are dropped, with a named reason.
                let before = rig.running.counters().unwrap();
                rig.port(Side::Host)
                    .send(&exit(0, 60).outbound(&[]))
                    .unwrap();
                rig.wait_for("no_egress", |now| {
                    now.get("dropped_no_egress") > before.get("dropped_no_egress")
                });
            }
            let (_, _, mac) = far_end(&rig.site, nic);
            create(&rig.site, nic, mac, Plan::default());
            said(&rig, SET_UP_AGAIN, times);
            forwards(&rig, INCOMING_MAC);
            warned(&rig, "port_lost", false);
            assert!(status(&rig.site).ports.iter().all(|port| port.has_carrier));
        }
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn a_port_that_is_moved_to_another_namespace_and_back_forwards_again() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let away = Netns::new("away").unwrap();
        // A stack with an address would send by the NIC when it returns.
        let ipv6 = "net/ipv6/conf/default/disable_ipv6";
        rig.site.middle.sysctl(ipv6, "1").unwrap();
        for (times, nic) in [(1, "uplink0"), (2, "host0"), (3, "incoming0")] {
            let middle = &rig.site.middle;
            middle
                .ip(&format!("link set {nic} netns {}", away.path()))
                .unwrap();
            if nic == "uplink0" {
                // In the other namespace, no program is attached to it.
                eventually("no program", || {
                    let state = away.run(|| {
                        let nic = Nic::look("uplink0").unwrap();
                        xdp_state(nic.index).unwrap()
                    });
                    let is_off = state.program == 0;
                    is_off.then_some(()).ok_or(LabError(rig.running.log()))
                });
            }
            away.ip(&format!("link set {nic} netns {}", middle.path()))
                .unwrap();
            middle.ip(&format!("link set {nic} up")).unwrap();
            said(&rig, SET_UP_AGAIN, times);
            forwards(&rig, INCOMING_MAC);
        }
        warned(&rig, "port_lost", false);
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn a_port_that_returns_down_is_set_up_and_one_with_another_mac_is_used() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    rig.site.middle.ip("link del incoming0").unwrap();
    said(&rig, "ALARM: incoming0", 1);
    // Neighbour discovery on it takes a link-local address.
    created_without_configuration(&rig, "incoming0", "addrgenmode eui64");
    create(&rig.site, "incoming0", OTHER_MAC, Plan::default());
    warned(&rig, "port_lost", false);
    forwards(&rig, OTHER_MAC);

    rig.site.middle.ip("link del uplink0").unwrap();
    said(&rig, "ALARM: uplink0", 1);
    created_without_configuration(&rig, "uplink0", "addrgenmode none");
    create(&rig.site, "uplink0", UPLINK0_MAC, Plan::default());
    warned(&rig, "port_lost", false);
    forwards(&rig, OTHER_MAC);
    moved(&rig.running.stop().unwrap());
}

/// A NIC of this name appears without a network configuration: the box sets it up, with this mode of
/// IPv6 link-local addresses. Then the NIC is removed.
fn created_without_configuration(rig: &Rig, name: &str, mode: &str) {
    let middle = &rig.site.middle;
    middle
        .ip(&format!("link add {name} type veth peer name peer0"))
        .unwrap();
    eventually("the new NIC is up", || {
        let link = middle.ip(&format!("-details link show {name}")).unwrap();
        let is_up = link.contains(",UP") && link.contains(mode);
        is_up
            .then_some(())
            .ok_or(LabError(format!("{link}{}", rig.running.log())))
    });
    middle.ip(&format!("link del {name}")).unwrap();
}

/// The veth driver determines whether one end accepts redirected frames when that end is set up,
/// which the box does as soon as it exists.
#[test]
fn a_port_whose_far_end_polls_later_forwards_again() {
    needs_root!();
    // With auto a worker forwards meanwhile.
    for (engine, said_before) in [
        ("engine = \"xdp\"", "the ports are not set up again yet"),
        ("engine = \"auto\"", "by this process alone"),
    ] {
        polls_later(engine, said_before);
    }
}

fn polls_later(engine: &'static str, said_before: &str) {
    let config = Config {
        top: engine,
        ..Config::default()
    };
    let rig = Rig::silent(Plan::default(), &config);
    let (middle, clearnet) = (&rig.site.middle, &rig.site.clearnet);
    middle.ip("link del uplink0").unwrap();
    said(&rig, "ALARM: uplink0", 1);
    for netns in [middle, clearnet] {
        let ipv6 = "net/ipv6/conf/default/disable_ipv6";
        netns.sysctl(ipv6, "1").unwrap();
    }
    middle
        .ip(&format!(
            "link add uplink0 address {UPLINK0_MAC} type veth peer name eth0 address \
             {CLEARNET_MAC} netns {}",
            clearnet.path()
        ))
        .unwrap();
    said(&rig, said_before, 1);
    let offloads = ["-K", "eth0", "tx", "off", "gro", "on"];
    clearnet.command("ethtool", &offloads).unwrap();
    clearnet.ip("link set eth0 up").unwrap();
    said(&rig, SET_UP_AGAIN, 1);
    warned(&rig, "needs_process", false);
    forwards(&rig, INCOMING_MAC);
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_renamed_port_forwards_and_is_an_alarm_until_it_has_its_name_again() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let rename = |from: &str, to: &str| {
            // Kernels before 6.2 rename a NIC only while it is down.
            for change in [format!("{from} down"), format!("{from} name {to}")] {
                rig.site.middle.ip(&format!("link set {change}")).unwrap();
            }
            rig.site.middle.ip(&format!("link set {to} up")).unwrap();
        };
        rename("uplink0", "wan0");
        let warning = warned(&rig, "renamed", true).unwrap();
        for words in ["wan0", "ip link set dev wan0 name uplink0", "ports.uplink"] {
            assert!(warning.text.contains(words), "{warning:?}");
        }
        said(&rig, "ALARM: uplink0 (uplink) is called wan0 now", 1);
        forwards(&rig, INCOMING_MAC);
        // Meanwhile another NIC may have the name in the configuration, and another port may be
        // lost.
        let another = "link add uplink0 type veth peer name nobody0";
        rig.site.middle.ip(another).unwrap();
        rig.site.middle.ip("link del host0").unwrap();
        said(&rig, "ALARM: host0", 1);
        create(&rig.site, "host0", "02:00:00:00:01:02", Plan::default());
        said(&rig, SET_UP_AGAIN, 1);
        forwards(&rig, INCOMING_MAC);
        rig.site.middle.ip("link del uplink0").unwrap();
        rename("wan0", "uplink0");
        warned(&rig, "renamed", false);
        forwards(&rig, INCOMING_MAC);
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn another_mac_address_of_incoming_is_taken_over() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        forwards(&rig, INCOMING_MAC);
        rig.site
            .middle
            .ip(&format!("link set incoming0 address {OTHER_MAC}"))
            .unwrap();
        said(&rig, &format!("has the MAC address {OTHER_MAC} now"), 1);
        forwards(&rig, OTHER_MAC);
        let audit = status(&rig.site).audit;
        assert!(
            audit.mismatches.iter().all(|one| one.frames == 0),
            "{audit:?}"
        );
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn another_mtu_is_an_alarm_at_one_port_and_is_adopted_at_all() {
    needs_root!();
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let set = |nic: &str, mtu: u32| {
            let change = format!("link set {nic} mtu {mtu}");
            rig.site.middle.ip(&change).unwrap();
        };
        set("uplink0", 1400);
        let warning = warned(&rig, "mtu", true).unwrap();
        assert!(
            warning.text.contains("`ip link set dev uplink0 mtu 1500`"),
            "{warning:?}"
        );
        set("uplink0", 1500);
        warned(&rig, "mtu", false);
        for nic in ["uplink0", "host0", "incoming0"] {
            set(nic, 1400);
        }
        said(&rig, SET_UP_AGAIN, 1);
        warned(&rig, "mtu", false);
        forwards(&rig, INCOMING_MAC);
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn another_number_of_queues_is_served() {
    needs_root!();
    let plan = Plan {
        queues: 2,
        ..Plan::default()
    };
    both_engines(|| {
        let site = Site::build(plan).unwrap();
        let set = |netns: &Netns, change: [&str; 4]| netns.command("ethtool", &change).unwrap();
        // A NIC with fewer queues than its far end's gets XDP in generic mode.
        for netns in [&site.host, &site.clearnet, &site.tornet] {
            set(netns, ["-L", "eth0", "tx", "1"]);
        }
        let ports = ["host0", "uplink0", "incoming0"];
        for nic in ports {
            set(&site.middle, ["-L", nic, "rx", "1"]);
        }
        silence(&site);
        let rig = Rig::on(site, &Config::default());
        assert!(rig.running.ready.contains("workers=1"));
        for nic in ports {
            set(&rig.site.middle, ["-L", nic, "rx", "2"]);
        }
        eventually("two workers", || {
            let report = status(&rig.site);
            let are_served = report.workers.len() == 2
                && report.ports.iter().all(|port| port.queues == 2)
                && report
                    .warnings
                    .iter()
                    .all(|one| one.kind != "queues_changed");
            are_served
                .then_some(())
                .ok_or_else(|| LabError(rig.running.log()))
        });
        forwards(&rig, INCOMING_MAC);
        moved(&rig.running.stop().unwrap());
    });
}

#[test]
fn promiscuous_mode_is_turned_on_again() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    for times in 1..=2 {
        rig.site.middle.ip("link set uplink0 promisc off").unwrap();
        said(
            &rig,
            "ALARM: promiscuous mode was turned off at uplink0",
            times,
        );
        eventually("promiscuous mode", || {
            let nic = rig.site.middle.run(|| Nic::look("uplink0").unwrap());
            let is_on = nic.is_promiscuous;
            is_on.then_some(()).ok_or(LabError("it is off".to_owned()))
        });
        warned(&rig, "promiscuous", false);
    }
    forwards(&rig, INCOMING_MAC);
    moved(&rig.running.stop().unwrap());
}

#[test]
fn removed_pins_are_recreated_and_the_box_outlives_its_process() {
    needs_root!();
    let mut rig = Rig::silent(Plan::default(), &Config::default());
    for (times, removed) in [
        (1, "link_uplink"),
        (2, "program_host"),
        (3, "watch_unsent"),
        (4, "maps-/links"),
        (5, "maps-"),
        (6, ""),
    ] {
        rig.site.middle.run(move || {
            let pins = std::path::Path::new("/sys/fs/bpf/exitmark");
            let (of_pins, of_maps) = match removed.split_once('/') {
                Some((of_pins, of_maps)) => (of_pins, of_maps),
                None => (removed, ""),
            };
            let entries = std::fs::read_dir(pins).unwrap();
            let mut entries = entries.map(|entry| entry.unwrap().path());
            // The name of the maps' directory contains the layout version.
            let begins = |path: &std::path::PathBuf| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with(of_pins)
            };
            let pins = match of_pins {
                "" => pins.to_owned(),
                _ => entries.find(begins).unwrap(),
            };
            let pins = match of_maps {
                "" => pins,
                _ => pins.join(of_maps),
            };
            match pins.is_dir() {
                true => std::fs::remove_dir_all(pins).unwrap(),
                false => std::fs::remove_file(pins).unwrap(),
            }
        });
        said(&rig, "everything is pinned again", times);
        forwards(&rig, INCOMING_MAC);
    }
    warned(&rig, "unpinned", false);
    rig.running.signal(Signal::SIGKILL).unwrap();
    rig.running.ended().unwrap();
    // The pinned objects stay in use.
    let mut eye = rig.watch(Side::Clearnet);
    let frame = exit(0, 60);
    rig.port(Side::Host).send(&frame.outbound(&[])).unwrap();
    assert!(eye.wait_until(PATIENCE, |seen| !seen.is_empty()));
    assert_eq!(
        eye.finish().unwrap()[0].bytes,
        frame.tos(AF11).outbound(&[])
    );
    rig.running = rig
        .site
        .run(std::path::Path::new(EXITMARK), &rig.configuration)
        .unwrap();
    said(&rig, "the attached box is taken over", 1);
    forwards(&rig, INCOMING_MAC);
    moved(&rig.running.stop().unwrap());
}

#[test]
fn persistent_drops_are_a_warning_with_a_remedy() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let port = rig.port(Side::Tornet);
    let sent = answer().framed(INCOMING_MAC, TORNET_MAC, &[]);
    let deadline = Instant::now() + PATIENCE;
    // The host has not sent a frame yet.
    let warning = loop {
        port.send(&sent).unwrap();
        let warnings = status(&rig.site).warnings;
        if let Some(warning) = warnings.into_iter().find(|one| one.kind == "drops") {
            break warning;
        }
        assert!(Instant::now() < deadline, "{}", rig.running.log());
        std::thread::sleep(PACE);
    };
    for words in ["host_mac_unknown", "host.mac"] {
        assert!(warning.text.contains(words), "{warning:?}");
    }
    said(
        &rig,
        "frames are dropped continuously (host_mac_unknown)",
        1,
    );
    moved(&rig.running.stop().unwrap());
}

/// A start refuses the state of the returned NIC too, so the service's log contains the reason.
#[test]
fn a_port_that_is_back_and_cannot_be_set_up_ends_the_box_with_status_1() {
    needs_root!();
    let mut rig = Rig::silent(Plan::default(), &Config::default());
    rig.site.middle.ip("link del uplink0").unwrap();
    said(&rig, "ALARM: uplink0", 1);
    for line in [
        // It gets its name only once it is in the wrong state.
        "link add spare0 type veth peer name nobody0",
        "addr add 192.0.2.77/24 dev spare0",
        "link set nobody0 up",
        "link set spare0 name uplink0",
        "link set uplink0 up",
    ] {
        rig.site.middle.ip(line).unwrap();
    }
    // 30 tries, a second apart.
    let deadline = Instant::now() + 3 * PATIENCE;
    while !rig.running.has_ended() {
        assert!(Instant::now() < deadline, "{}", rig.running.log());
        std::thread::sleep(PACE);
    }
    let status = rig.running.ended().unwrap();
    let log = rig.running.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for words in ["could not be set up again in 30 tries", "192.0.2.77/24"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    // The program still serves the other ports.
    let relayed = relay(0, 60);
    let mut eye = rig.watch(Side::Tornet);
    rig.port(Side::Host).send(&relayed.outbound(&[])).unwrap();
    assert!(eye.wait_until(PATIENCE, |seen| !seen.is_empty()));
    rig.site.middle.ip("link del uplink0").unwrap();
    create(&rig.site, "uplink0", UPLINK0_MAC, Plan::default());
    rig.running = rig
        .site
        .run(std::path::Path::new(EXITMARK), &rig.configuration)
        .unwrap();
    forwards(&rig, INCOMING_MAC);
    moved(&rig.running.stop().unwrap());
}
