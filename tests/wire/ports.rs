//! NICs that change while the box runs: removed and created again, moved away and back, renamed,
//! with another MAC address, MTU or number of queues; removed pins.

use crate::craft::{exit, relay, relay_answer};
use crate::rig::{
    Case, Config, Counters, EXITMARK, PACE, Rig, Side, UPLINK0_MAC, assert_says, both_engines,
    eventually, needs_root, passes, silent, timeout, wait_until,
};
use exitmark_datapath::{Role, xdp_state};
use exitmark_lab::Netns;
use exitmark_lab::site::{
    CLEARNET_MAC, FAR_END, INCOMING_MAC, Plan, Site, TORNET_MAC, nic, nic_mac,
};
use exitmark_nic::Nic;
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Instant;

const OTHER_MAC: &str = "02:00:00:00:03:99";
const SET_UP_AGAIN: &str = "the ports are set up again";
/// The ports in the order in which tests change them.
const PORTS: [(usize, Role); 3] = [(1, Role::Uplink), (2, Role::Host), (3, Role::Incoming)];

/// Checks that exit frames are marked, relay frames are steered, and answers return both ways.
/// `own` is the MAC address of `incoming`.
#[track_caller]
fn forwards(rig: &Rig, own: &str) {
    let (relayed, back) = (relay(0, 60), relay_answer(0, 70));
    let steered = Some((Side::Tornet, relayed.framed(TORNET_MAC, own, &[])));
    let delivered = Some((Side::Host, back.delivered(&[])));
    let sent = back.framed(own, TORNET_MAC, &[]);
    for case in [
        Case::exit(0, 60),
        Case::new("relay", Side::Host, relayed.outbound(&[]), steered),
        Case::untouched("answer by the uplink", Side::Clearnet, back.inbound(&[])),
        Case::new("answer by incoming", Side::Tornet, sent, delivered),
    ] {
        rig.assert_forwarded(&case);
    }
}

/// Recreates a NIC of the box, with its far end.
fn create(site: &Site, role: Role, mac: &str) {
    for netns in [site.far_end(role).0, &site.middle] {
        netns.disable_ipv6().unwrap();
    }
    site.connect(role, mac, Plan::default()).unwrap();
}

#[track_caller]
fn remove(rig: &Rig, name: &str) {
    rig.ip(format!("link del {name}"));
    rig.said(&format!("ALARM: {name}"), 1..);
}

#[test]
fn a_port_that_is_removed_and_created_again_forwards_again() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        forwards(&rig, INCOMING_MAC);
        for (times, role) in PORTS {
            remove(&rig, nic(role));
            let warning = rig.warning("port_lost");
            assert!(warning.is_alarm);
            assert_says(&warning.text, &[nic(role)]);
            if role == Role::Uplink {
                // The program alone still serves the other ports.
                rig.assert_forwarded(&Case::relay(0, 60));
                // Frames that would leave by it are dropped, with a named reason.
                let before = rig.count("dropped_no_egress");
                let frame = exit(0, 60).outbound(&[]);
                rig.port(Side::Host).send(&frame).unwrap();
                let is_dropped = |now: &Counters| now.get("dropped_no_egress") > Some(&before);
                rig.wait_for("no_egress", is_dropped);
            }
            create(&rig.site, role, nic_mac(role));
            rig.said(SET_UP_AGAIN, times..);
            forwards(&rig, INCOMING_MAC);
            rig.no_warning("port_lost");
            assert!(rig.status().ports.iter().all(|port| port.has_carrier));
        }
        rig.stop();
    });
}

#[test]
fn a_port_that_is_moved_to_another_namespace_and_back_forwards_again() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let away = Netns::new("away").unwrap();
        // A stack with an address would send by the NIC when it returns.
        rig.site.middle.disable_ipv6().unwrap();
        for (times, role) in PORTS {
            let (middle, nic) = (&rig.site.middle, nic(role));
            rig.ip(format!("link set {nic} netns {}", away.path()));
            if role == Role::Uplink {
                // In the other namespace, no program is attached to it.
                let state = || xdp_state(Nic::look("uplink0").unwrap().index).unwrap();
                let is_off = || away.run(state).program == 0;
                wait_until("no program", is_off, || rig.running.log());
            }
            away.ip(&format!("link set {nic} netns {}", middle.path()))
                .unwrap();
            rig.ip(format!("link set {nic} up"));
            rig.said(SET_UP_AGAIN, times..);
            forwards(&rig, INCOMING_MAC);
        }
        rig.no_warning("port_lost");
        rig.stop();
    });
}

#[test]
fn a_port_that_returns_down_is_set_up_and_one_with_another_mac_is_used() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    remove(&rig, "incoming0");
    // Neighbour discovery on it takes a link-local address.
    created_without_configuration(&rig, "incoming0", "addrgenmode eui64");
    create(&rig.site, Role::Incoming, OTHER_MAC);
    rig.no_warning("port_lost");
    forwards(&rig, OTHER_MAC);

    remove(&rig, "uplink0");
    created_without_configuration(&rig, "uplink0", "addrgenmode none");
    create(&rig.site, Role::Uplink, UPLINK0_MAC);
    rig.no_warning("port_lost");
    forwards(&rig, OTHER_MAC);
    rig.stop();
}

/// A NIC of this name appears without a network configuration: the box sets it up, with this mode of
/// IPv6 link-local addresses. Then the NIC is removed.
fn created_without_configuration(rig: &Rig, name: &str, mode: &str) {
    rig.ip(format!("link add {name} type veth peer name peer0"));
    let link = || rig.ip(format!("-details link show {name}"));
    let is_up = || [",UP", mode].iter().all(|words| link().contains(words));
    wait_until("the new NIC is up", is_up, || link() + &rig.running.log());
    rig.ip(format!("link del {name}"));
}

/// The veth driver determines whether one end accepts redirected frames when that end is set up,
/// which the box does as soon as it exists.
#[test]
fn a_port_whose_far_end_polls_later_forwards_again() {
    needs_root!();
    polls_later("xdp", "the ports are not set up again yet");
    // A worker forwards meanwhile.
    polls_later("auto", "by this process alone");
}

fn polls_later(engine: &str, said_before: &str) {
    let config = Config::default().engine(engine);
    let rig = Rig::silent(Plan::default(), &config);
    let (middle, clearnet) = (&rig.site.middle, &rig.site.clearnet);
    remove(&rig, "uplink0");
    for netns in [middle, clearnet] {
        netns.disable_ipv6().unwrap();
    }
    rig.ip(format!(
        "link add uplink0 address {UPLINK0_MAC} type veth peer name eth0 address {CLEARNET_MAC} \
         netns {}",
        clearnet.path()
    ));
    rig.said(said_before, 1..);
    let offloads = ["-K", "eth0", "tx", "off", "gro", "on"];
    clearnet.command("ethtool", &offloads).unwrap();
    clearnet.ip("link set eth0 up").unwrap();
    rig.said(SET_UP_AGAIN, 1..);
    rig.no_warning("needs_process");
    forwards(&rig, INCOMING_MAC);
    rig.stop();
}

#[test]
fn a_renamed_port_forwards_and_is_an_alarm_until_it_has_its_name_again() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let rename = |from: &str, to: &str| {
            // Kernels before 6.2 rename a NIC only while it is down.
            rig.ip(format!("link set {from} down"));
            rig.ip(format!("link set {from} name {to}"));
            rig.ip(format!("link set {to} up"));
        };
        rename("uplink0", "wan0");
        let words = ["wan0", "ip link set dev wan0 name uplink0", "ports.uplink"];
        assert_says(&rig.warning("renamed").text, &words);
        rig.said("ALARM: uplink0 (uplink) is called wan0 now", 1..);
        forwards(&rig, INCOMING_MAC);
        // Meanwhile another NIC may have the name in the configuration, and another port may be
        // lost.
        rig.ip("link add uplink0 type veth peer name nobody0");
        remove(&rig, "host0");
        create(&rig.site, Role::Host, nic_mac(Role::Host));
        rig.said(SET_UP_AGAIN, 1..);
        forwards(&rig, INCOMING_MAC);
        rig.ip("link del uplink0");
        rename("wan0", "uplink0");
        rig.no_warning("renamed");
        forwards(&rig, INCOMING_MAC);
        rig.stop();
    });
}

#[test]
fn another_mac_address_of_incoming_is_taken_over() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        forwards(&rig, INCOMING_MAC);
        rig.ip(format!("link set incoming0 address {OTHER_MAC}"));
        rig.said(&format!("has the MAC address {OTHER_MAC} now"), 1..);
        forwards(&rig, OTHER_MAC);
        let mismatches = rig.status().audit.mismatches;
        let is_right = mismatches.iter().all(|one| one.frames == 0);
        assert!(is_right, "{mismatches:?}");
        rig.stop();
    });
}

#[test]
fn another_mtu_is_an_alarm_at_one_port_and_is_adopted_at_all() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let set = |nic: &str, mtu: u32| rig.ip(format!("link set {nic} mtu {mtu}"));
        set("uplink0", 1400);
        let remedy = "`ip link set dev uplink0 mtu 1500`";
        assert_says(&rig.warning("mtu").text, &[remedy]);
        set("uplink0", 1500);
        rig.no_warning("mtu");
        for nic in ["uplink0", "host0", "incoming0"] {
            set(nic, 1400);
        }
        rig.said(SET_UP_AGAIN, 1..);
        rig.no_warning("mtu");
        forwards(&rig, INCOMING_MAC);
        rig.stop();
    });
}

#[test]
fn another_number_of_queues_is_served() {
    both_engines(|| {
        let site = silent(Plan::of_queues(2));
        let set = |netns: &Netns, change: [&str; 4]| netns.command("ethtool", &change).unwrap();
        // A NIC with fewer queues than its far end's gets XDP in generic mode.
        for netns in [&site.host, &site.clearnet, &site.tornet] {
            set(netns, ["-L", FAR_END, "tx", "1"]);
        }
        for role in Role::ALL {
            set(&site.middle, ["-L", nic(role), "rx", "1"]);
        }
        let rig = Rig::on(site, &Config::default());
        assert!(rig.running.ready.contains("workers=1"));
        for role in Role::ALL {
            set(&rig.site.middle, ["-L", nic(role), "rx", "2"]);
        }
        let are_served = || {
            let report = rig.status();
            let mut warnings = report.warnings.iter();
            report.workers.len() == 2
                && report.ports.iter().all(|port| port.queues == 2)
                && warnings.all(|one| one.kind != "queues_changed")
        };
        wait_until("two workers", are_served, || rig.running.log());
        forwards(&rig, INCOMING_MAC);
        rig.stop();
    });
}

#[test]
fn promiscuous_mode_is_turned_on_again() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    for times in 1..=2 {
        rig.ip("link set uplink0 promisc off");
        rig.said("ALARM: promiscuous mode was turned off at uplink0", times..);
        let uplink = || rig.site.middle.run(|| Nic::look("uplink0").unwrap());
        let is_on = || uplink().is_promiscuous;
        wait_until("promiscuous mode", is_on, || "it is off");
        rig.no_warning("promiscuous");
    }
    forwards(&rig, INCOMING_MAC);
    rig.stop();
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
            let pins = Path::new("/sys/fs/bpf/exitmark");
            let (of_pins, of_maps) = removed.split_once('/').unwrap_or((removed, ""));
            let entries = std::fs::read_dir(pins).unwrap();
            let mut entries = entries.map(|entry| entry.unwrap().path());
            // The name of the maps' directory contains the layout version.
            let begins = |path: &PathBuf| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with(of_pins)
            };
            let mut pins = match of_pins {
                "" => pins.to_owned(),
                _ => entries.find(begins).unwrap(),
            };
            if !of_maps.is_empty() {
                pins.push(of_maps);
            }
            match pins.is_dir() {
                true => std::fs::remove_dir_all(pins).unwrap(),
                false => std::fs::remove_file(pins).unwrap(),
            }
        });
        rig.said("everything is pinned again", times..);
        forwards(&rig, INCOMING_MAC);
    }
    rig.no_warning("unpinned");
    rig.running.signal(Signal::SIGKILL).unwrap();
    rig.running.ended().unwrap();
    // The pinned objects stay in use.
    passes(&rig.site, &Case::exit(0, 60));
    rig.running = rig.site.run(EXITMARK, &rig.configuration).unwrap();
    rig.said("the attached box is taken over", 1..);
    forwards(&rig, INCOMING_MAC);
    rig.stop();
}

#[test]
fn persistent_drops_are_a_warning_with_a_remedy() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let port = rig.port(Side::Tornet);
    let sent = relay_answer(0, 70).incoming(&[]);
    // The host has not sent a frame yet.
    let warning = eventually("a warning", || {
        port.send(&sent).unwrap();
        std::thread::sleep(PACE);
        let warnings = rig.status().warnings;
        let found = warnings.into_iter().find(|one| one.kind == "drops");
        found.ok_or_else(|| rig.running.log())
    });
    assert_says(&warning.text, &["host_mac_unknown", "host.mac"]);
    rig.said("frames are dropped continuously (host_mac_unknown)", 1..);
    rig.stop();
}

/// A start refuses the state of the returned NIC too, so the service's log contains the reason.
#[test]
fn a_port_that_is_back_and_cannot_be_set_up_ends_the_box_with_status_1() {
    needs_root!();
    let mut rig = Rig::silent(Plan::default(), &Config::default());
    remove(&rig, "uplink0");
    for line in [
        // It gets its name only once it is in the wrong state.
        "link add spare0 type veth peer name nobody0",
        "addr add 192.0.2.77/24 dev spare0",
        "link set nobody0 up",
        "link set spare0 name uplink0",
        "link set uplink0 up",
    ] {
        rig.ip(line);
    }
    // 30 tries, a second apart.
    let deadline = Instant::now() + 3 * timeout();
    while !rig.running.has_ended() {
        assert!(Instant::now() < deadline, "{}", rig.running.log());
        std::thread::sleep(PACE);
    }
    let status = rig.running.ended().unwrap();
    let log = rig.running.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let words = ["could not be set up again in 30 tries", "192.0.2.77/24"];
    assert_says(&log, &words);
    // The program still serves the other ports.
    let relayed = relay(0, 60);
    let mut eye = rig.watch(Side::Tornet);
    rig.port(Side::Host).send(&relayed.outbound(&[])).unwrap();
    assert!(eye.counts(1));
    rig.ip("link del uplink0");
    create(&rig.site, Role::Uplink, UPLINK0_MAC);
    rig.running = rig.site.run(EXITMARK, &rig.configuration).unwrap();
    forwards(&rig, INCOMING_MAC);
    rig.stop();
}
