//! Refused starts: their messages and exit status, and that they change nothing.

use crate::leaks::pins;
use crate::rig::{
    Case, Config, EXITMARK, Rig, assert_says, detach, needs_root, passes, silent, wait_until,
};
use exitmark_datapath::Role;
use exitmark_lab::process::{as_nobody, public_copy};
use exitmark_lab::site::{CLEARNET_MAC, INCOMING_MAC, Plan, Site, TORNET_MAC, nic};
use exitmark_lab::{FinalState, LabError, Netns};
use std::path::Path;
use std::process::Command;

/// Runs a box with this configuration, which must be refused.
#[track_caller]
fn is_refused(netns: &Netns, config: &Config, status: i32, words: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let configuration = config.write(directory.path()).unwrap();
    is_refused_by(netns, Command::new(EXITMARK), &configuration, status, words);
}

#[track_caller]
fn is_refused_by(netns: &Netns, mut command: Command, file: &Path, status: i32, words: &[&str]) {
    command.args(["run", "--config"]).arg(file);
    let output = netns.output(command).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_says(&said, words);
    assert!(output.stdout.is_empty(), "the box reported ready");
    assert!(!said.contains("panicked"), "{said}");
}

/// The settings of the box's NICs, from `ip` and `ethtool`, without the carrier, which is not a
/// setting and changes late.
fn state(middle: &Netns) -> String {
    let mut text = middle.ip("-details link show").unwrap();
    for nic in Role::ALL.map(nic) {
        text += &middle.command("ethtool", &["-k", nic]).unwrap();
    }
    let words = text.split_whitespace();
    let kept = words.filter(|word| !word.starts_with('<') && !["UP", "DOWN"].contains(word));
    kept.collect::<Vec<_>>().join(" ")
}

#[test]
fn nics_that_are_not_as_required_are_refused_with_status_1() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    // A link-local address alone does not cause a refusal.
    let ipv6 = "net/ipv6/conf/uplink0/disable_ipv6";
    site.middle.sysctl(ipv6, "0").unwrap();
    let usual = Config::default;
    let incoming = |nic, hop| Config::default().incoming(nic, hop);
    // The mistake, the configuration, how it is made and undone, and the message.
    #[rustfmt::skip]
    let table: [(&str, Config, &str, &str, &[&str]); 12] = [
        ("no such NIC", incoming("nosuch0", TORNET_MAC), "", "",
         &["there is no network interface nosuch0", "ip link"]),
        ("loopback", incoming("lo", TORNET_MAC), "", "", &["lo has no MAC address"]),
        ("the next hop is the box", incoming("incoming0", INCOMING_MAC), "", "",
         &["steer.next_hop is the MAC address of incoming0 itself"]),
        ("the next hop is the box, by its address", incoming("incoming0", "203.0.113.77"),
         "addr add 203.0.113.77/24 dev incoming0", "addr del 203.0.113.77/24 dev incoming0",
         &["steer.next_hop = \"203.0.113.77\": is the box itself, on incoming0"]),
        ("the next hop is all of the network", incoming("incoming0", "203.0.113.255"),
         "addr add 203.0.113.77/24 dev incoming0", "addr del 203.0.113.77/24 dev incoming0",
         &["steer.next_hop = \"203.0.113.255\": is the first or last address of 203.0.113.0/24"]),
        ("the host's address is the box's", usual(),
         "addr add 192.0.2.10/32 dev incoming0", "addr del 192.0.2.10/32 dev incoming0",
         &["host.addresses = \"192.0.2.10\": has 192.0.2.10", "on incoming0"]),
        ("a NIC that is down", usual(), "link set uplink0 down", "link set uplink0 up",
         &["uplink0 (uplink) is down; set it up with `ip link set dev uplink0 up`"]),
        ("another MTU on incoming", usual(),
         "link set incoming0 mtu 1400", "link set incoming0 mtu 1500",
         &["host0 has MTU 1500 but incoming0 has MTU 1400",
           "`ip link set dev incoming0 mtu 1500`"]),
        ("another MTU on the uplink", usual(),
         "link set uplink0 mtu 9000", "link set uplink0 mtu 1500",
         &["host0 has MTU 1500 but uplink0 has MTU 9000"]),
        ("an address on the host's side", usual(),
         "addr add 192.0.2.77/24 dev host0", "addr del 192.0.2.77/24 dev host0",
         &["host0 (host) has the address 192.0.2.77/24", "`ip addr del 192.0.2.77/24 dev host0`"]),
        ("an IPv6 address on the uplink", usual(),
         "addr add 2001:db8:1::77/64 dev uplink0", "addr del 2001:db8:1::77/64 dev uplink0",
         &["`ip addr del 2001:db8:1::77/64 dev uplink0`"]),
        ("an address on the host's side, with one NIC in the other two roles",
         incoming("uplink0", TORNET_MAC),
         "addr add 192.0.2.77/24 dev host0", "addr del 192.0.2.77/24 dev host0",
         &["`ip addr del 192.0.2.77/24 dev host0`"]),
    ];
    for (what, config, before, after, words) in table {
        println!("{what}");
        let change = |line: &str| {
            if !line.is_empty() {
                site.middle.ip(line).unwrap();
            }
        };
        change(before);
        let state_before = state(&site.middle);
        is_refused(&site.middle, &config, 1, words);
        assert_eq!(state(&site.middle), state_before, "{what}");
        assert_eq!(pins(&site), Vec::<String>::new(), "{what}");
        change(after);
    }
    // The same site still works.
    site.silence().unwrap();
    Rig::on(site, &Config::default()).stop();
}

#[test]
fn invalid_configurations_are_refused_with_status_2() {
    needs_root!();
    // An empty namespace: the configuration is checked before the NICs.
    let nowhere = Netns::new("nowhere").unwrap();
    let usual = Config::default;
    #[rustfmt::skip]
    let table: [(Config, &[&str]); 5] = [
        (usual().incoming("host0", TORNET_MAC),
         &["ports.incoming = \"host0\"", "the same NIC as ports.host"]),
        (usual().top("speed = 11"), &["unknown field `speed`"]),
        (usual().more("[mark]\ntos = 0x29"), &["mark.tos"]),
        (usual().next_hop("ff:ff:ff:ff:ff:ff"), &["steer.next_hop", "multicast"]),
        (usual().relays(""), &["relays.consensus = []"]),
    ];
    for (config, words) in table {
        is_refused(&nowhere, &config, 2, words);
    }
    let (command, missing) = (Command::new(EXITMARK), Path::new("/nosuch/nosuch.toml"));
    is_refused_by(&nowhere, command, missing, 2, &["nosuch.toml"]);
}

#[test]
fn without_privilege_the_error_names_the_requirement() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    // Where the user nobody may read: the build directory may be private.
    let directory = tempfile::tempdir().unwrap();
    let configuration = Config::default().write(directory.path()).unwrap();
    let command = as_nobody(public_copy(EXITMARK, directory.path()).unwrap());
    let before = state(&site.middle);
    is_refused_by(&site.middle, command, &configuration, 1, &["CAP_"]);
    assert_eq!(state(&site.middle), before);
    assert_eq!(pins(&site), Vec::<String>::new());
}

#[test]
fn ports_with_different_queues_need_the_kernel_engine() {
    needs_root!();
    let site = silent(Plan::of_queues(2));
    let one = ["-L", "uplink0", "rx", "1"];
    site.middle.command("ethtool", &one).unwrap();
    for config in [Config::default(), Config::default().engine("af_xdp")] {
        let words = [
            "host0 has 2 receive queues but uplink0 has 1",
            "engine = \"xdp\" does not",
            "`ethtool -L uplink0 rx 2`",
        ];
        is_refused(&site.middle, &config, 1, &words);
        assert_eq!(pins(&site), Vec::<String>::new());
    }
    let rig = Rig::on(site, &Config::default().engine("xdp"));
    assert_says(&rig.running.ready, &["workers=1"]);
    let words = [
        "host0 has 2 receive queues and 1 of them have a worker",
        "incoming0 has 2 receive queues and 1 of them have a worker",
        "counted as no_user_space; `ethtool -L uplink0 rx 2`",
    ];
    rig.running.wait_log(&words);
    passes(&rig.site, &Case::exit(0, 10));
    let status = rig.site.middle.command(EXITMARK, &["status", "--json"]);
    let words = "host0 (host) has 2 receive queues and 1 of them have a worker";
    assert_says(&status.unwrap(), &[words]);
    rig.stop();
}

#[test]
fn a_second_box_on_the_same_nics_is_refused_and_the_first_goes_on() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let before = state(&rig.site.middle);
    assert_eq!(before.matches("promiscuity 1").count(), 2, "{before}");
    let words = ["another exitmark", "/sys/fs/bpf/exitmark"];
    is_refused(&rig.site.middle, &Config::default(), 1, &words);
    // Even if it has pins of its own.
    let config = Config::default().more(
        "[pin]\ndirectory = \"/sys/fs/bpf/other\"\n[metrics]\nlisten = \"off\"\n\
         [control]\nsocket = \"/run/other/control.sock\"",
    );
    let words = ["queue 0 of host0", "another program has this queue"];
    is_refused(&rig.site.middle, &config, 1, &words);
    assert_eq!(pins(&rig.site), ["exitmark"]);
    assert_eq!(state(&rig.site.middle), before);
    passes(&rig.site, &Case::exit(0, 10));
    rig.stop();
}

#[test]
fn a_link_local_address_is_a_warning_unless_the_port_is_incoming_too() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let ipv6 = "net/ipv6/conf/uplink0/disable_ipv6";
    site.middle.sysctl(ipv6, "0").unwrap();
    let rig = Rig::on(site, &Config::default());
    let remedy = "`sysctl -w net.ipv6.conf.uplink0.disable_ipv6=1`";
    assert_says(&rig.running.stop().unwrap().log, &[remedy]);
    // The uplink is the incoming port too, and the box may have an address on that network.
    detach(&rig.site);
    let address = "addr add 192.0.2.77/24 dev uplink0";
    rig.site.middle.ip(address).unwrap();
    let config = Config::default().incoming("uplink0", CLEARNET_MAC);
    let rig = Rig::on(rig.site, &config);
    let FinalState { status, log, .. } = rig.running.stop().unwrap();
    assert!(status.success() && !log.contains(remedy), "{log}");
}

/// The VLAN offloads of a NIC, from `ethtool -k`, which a wire on a veth pair turns off.
fn tags_are_stripped(middle: &Netns, nic: &str) -> [bool; 2] {
    let text = middle.command("ethtool", &["-k", nic]).unwrap();
    ["rx-vlan-offload: on", "rx-vlan-stag-hw-parse: on"].map(|line| text.contains(line))
}

#[test]
fn detach_restores_nic_settings() {
    needs_root!();
    let site = silent(Plan::default());
    site.middle.ip("link set host0 promisc on").unwrap();
    let off = ["-K", "uplink0", "rxvlan", "off"];
    site.middle.command("ethtool", &off).unwrap();
    let before = state(&site.middle);
    let stripped = |middle: &Netns| Role::ALL.map(|role| tags_are_stripped(middle, nic(role)));
    let stripped_before = stripped(&site.middle);
    assert_eq!(stripped_before, [[true; 2], [false, true], [true; 2]]);
    let rig = Rig::on(site, &Config::default());
    let during = state(&rig.site.middle);
    assert_eq!(during.matches("promiscuity 1").count(), 2, "{during}");
    assert_eq!(during.matches("prog/xdp").count(), 3, "{during}");
    assert_eq!(stripped(&rig.site.middle), [[false; 2]; 3]);
    // After a stop the box continues in the kernel; after a detach it does not.
    let site = rig.leave();
    assert_eq!(state(&site.middle), during);
    detach(&site);
    assert_eq!(state(&site.middle), before);
    let config = Config::default().more("[pin]\non_stop = \"detach\"");
    let site = Rig::on(site, &config).leave();
    assert_eq!(state(&site.middle), before);
}

/// Unmounting the BPF file system removes all pins.
#[test]
fn detach_restores_nic_settings_without_pins() {
    needs_root!();
    let site = silent(Plan::default());
    let before = state(&site.middle);
    let config = Config::default().more("[pin]\ndirectory = \"/run/bpf/box\"");
    let mount = |site: &Site| {
        site.middle.command("mkdir", &["-p", "/run/bpf"]).unwrap();
        let words = ["-t", "bpf", "bpf", "/run/bpf"];
        site.middle.command("mount", &words).unwrap();
    };
    let programs_are_off = |site: &Site| {
        let links = || site.middle.ip("-details link show").unwrap();
        let are_off = || !links().contains("prog/xdp");
        wait_until("the programs are off", are_off, links);
    };
    let unmount = |site: &Site| {
        let words = ["--lazy", "/run/bpf"];
        site.middle.command("umount", &words).unwrap();
    };
    mount(&site);
    let rig = Rig::on(site, &config);
    let directory = tempfile::tempdir().unwrap();
    let file = config.write(directory.path()).unwrap();
    let detach = |site: &Site| -> Result<String, LabError> {
        let words = ["detach", "--config", file.to_str().unwrap()];
        site.middle.command(EXITMARK, &words)
    };
    // A running box is not detached.
    unmount(&rig.site);
    let refused = detach(&rig.site).unwrap_err().to_string();
    assert_says(&refused, &["an exitmark answers"]);
    let site = rig.leave();
    programs_are_off(&site);
    assert_ne!(state(&site.middle), before);
    let said = detach(&site).unwrap();
    assert_eq!(said, "detached: the NIC settings are restored\n");
    assert_eq!(state(&site.middle), before);
    assert!(detach(&site).unwrap().starts_with("nothing to detach"));

    // The same with a box in between, which finds the settings of the first one.
    mount(&site);
    let site = Rig::on(site, &config).leave();
    unmount(&site);
    programs_are_off(&site);
    mount(&site);
    let site = Rig::on(site, &config).leave();
    let words = ["detach", "--pins", "/run/bpf/box"];
    site.middle.command(EXITMARK, &words).unwrap();
    assert_eq!(state(&site.middle), before);
}

#[test]
fn detach_from_another_network_namespace_says_what_stays() {
    needs_root!();
    let site = Rig::silent(Plan::default(), &Config::default()).leave();
    let elsewhere = ["--net", EXITMARK, "detach"];
    let said = site.middle.command("unshare", &elsewhere).unwrap_err();
    assert_says(&said.to_string(), &["another network namespace"]);
    let links = site.middle.ip("-details link show").unwrap();
    assert!(!links.contains("prog/xdp"), "{links}");
    assert!(links.contains("promiscuity 1"), "{links}");
}

#[test]
fn a_nic_without_a_role_is_restored() {
    needs_root!();
    let site = silent(Plan::default());
    let before = state(&site.middle);
    let rig = Rig::on(site, &Config::default());
    let rig = rig.restart(&Config::default().without_incoming());
    assert_eq!(tags_are_stripped(&rig.site.middle, "incoming0"), [true; 2]);
    assert_eq!(tags_are_stripped(&rig.site.middle, "uplink0"), [false; 2]);
    // The changes of the first box are still recorded.
    let site = rig.leave();
    detach(&site);
    assert_eq!(state(&site.middle), before);
}
