//! Refused starts: their messages and exit status, and that they change nothing.

use crate::craft::exit;
use crate::leaks::pins;
use crate::rig::{Config, EXITMARK, PATIENCE, Rig, Side, eventually, moved, needs_root, silence};
use exitmark_lab::site::{CLEARNET_MAC, INCOMING_MAC, Plan, Site, TORNET_MAC};
use exitmark_lab::{LabError, Netns};
use std::path::Path;
use std::process::{Command, Output};

fn run(netns: &Netns, mut command: Command, configuration: &Path) -> Output {
    command.args(["run", "--config"]).arg(configuration);
    netns.run(move || command.output().unwrap())
}

#[track_caller]
fn assert_refused(output: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(output.stdout.is_empty(), "the box reported ready");
    assert!(!said.contains("panicked"), "{said}");
}

/// The settings of the box's NICs, from `ip` and `ethtool`, without the carrier, which is not a
/// setting and changes late.
fn state(middle: &Netns) -> String {
    let mut text = middle.ip("-details link show").unwrap();
    for nic in ["host0", "uplink0", "incoming0"] {
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
    let directory = tempfile::tempdir().unwrap();
    let incoming = |nic, hop| Config {
        incoming: Some((nic, hop)),
        ..Config::default()
    };
    let table: [(&str, Config, &str, &str, &[&str]); 11] = [
        (
            "no such NIC",
            incoming("nosuch0", TORNET_MAC),
            "",
            "",
            &["there is no network interface nosuch0", "ip link"],
        ),
        (
            "loopback",
            incoming("lo", TORNET_MAC),
            "",
            "",
            &["lo has no MAC address"],
        ),
        (
            "the next hop is the box",
            incoming("incoming0", INCOMING_MAC),
            "",
            "",
            &["steer.next_hop is the MAC address of incoming0 itself"],
        ),
        (
            "the next hop is the box, by its address",
            incoming("incoming0", "203.0.113.77"),
            "addr add 203.0.113.77/24 dev incoming0",
            "addr del 203.0.113.77/24 dev incoming0",
            &["steer.next_hop = \"203.0.113.77\": is the box itself, on incoming0"],
        ),
        (
            "the host's address is the box's",
            Config::default(),
            "addr add 192.0.2.10/32 dev incoming0",
            "addr del 192.0.2.10/32 dev incoming0",
            &[
                "host.addresses = \"192.0.2.10\": has 192.0.2.10",
                "on incoming0",
            ],
        ),
        (
            "a NIC that is down",
            Config::default(),
            "link set uplink0 down",
            "link set uplink0 up",
            &["uplink0 (uplink) is down; set it up with `ip link set dev uplink0 up`"],
        ),
        (
            "another MTU on incoming",
            Config::default(),
            "link set incoming0 mtu 1400",
            "link set incoming0 mtu 1500",
            &[
                "host0 has MTU 1500 but incoming0 has MTU 1400",
                "`ip link set dev incoming0 mtu 1500`",
            ],
        ),
        (
            "another MTU on the uplink",
            Config::default(),
            "link set uplink0 mtu 9000",
            "link set uplink0 mtu 1500",
            &["host0 has MTU 1500 but uplink0 has MTU 9000"],
        ),
        (
            "an address on the host's side",
            Config::default(),
            "addr add 192.0.2.77/24 dev host0",
            "addr del 192.0.2.77/24 dev host0",
            &[
                "host0 (host) has the address 192.0.2.77/24",
                "`ip addr del 192.0.2.77/24 dev host0`",
            ],
        ),
        (
            "an IPv6 address on the uplink",
            Config::default(),
            "addr add 2001:db8:1::77/64 dev uplink0",
            "addr del 2001:db8:1::77/64 dev uplink0",
            &["`ip addr del 2001:db8:1::77/64 dev uplink0`"],
        ),
        (
            "an address on the host's side, with one NIC in the other two roles",
            incoming("uplink0", TORNET_MAC),
            "addr add 192.0.2.77/24 dev host0",
            "addr del 192.0.2.77/24 dev host0",
            &["`ip addr del 192.0.2.77/24 dev host0`"],
        ),
    ];
    for (what, config, before, after, words) in table {
        let configuration = config.write(directory.path());
        let change = |line: &str| {
            if !line.is_empty() {
                site.middle.ip(line).unwrap();
            }
        };
        change(before);
        let state_before = state(&site.middle);
        let output = run(&site.middle, Command::new(EXITMARK), &configuration);
        assert_refused(&output, 1, words);
        assert_eq!(state(&site.middle), state_before, "{what}");
        assert_eq!(pins(&site), Vec::<String>::new(), "{what}");
        change(after);
    }
    // The same site still works.
    silence(&site);
    let rig = Rig::on(site, &Config::default());
    moved(&rig.running.stop().unwrap());
}

#[test]
fn invalid_configurations_are_refused_with_status_2() {
    needs_root!();
    // An empty namespace: the configuration is checked before the NICs.
    let nowhere = Netns::new("nowhere").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let table: [(Config, &[&str]); 5] = [
        (
            Config {
                incoming: Some(("host0", TORNET_MAC)),
                ..Config::default()
            },
            &["ports.incoming = \"host0\"", "the same NIC as ports.host"],
        ),
        (
            Config {
                top: "speed = 11",
                ..Config::default()
            },
            &["unknown field `speed`"],
        ),
        (
            Config {
                more: "[mark]\ntos = 0x29",
                ..Config::default()
            },
            &["mark.tos"],
        ),
        (
            Config {
                incoming: Some(("incoming0", "ff:ff:ff:ff:ff:ff")),
                ..Config::default()
            },
            &["steer.next_hop", "multicast"],
        ),
        (
            Config {
                relays: String::new(),
                ..Config::default()
            },
            &["relays.consensus = []"],
        ),
    ];
    for (config, words) in table {
        let configuration = config.write(directory.path());
        let output = run(&nowhere, Command::new(EXITMARK), &configuration);
        assert_refused(&output, 2, words);
    }
    let missing = directory.path().join("nosuch.toml");
    let output = run(&nowhere, Command::new(EXITMARK), &missing);
    assert_refused(&output, 2, &["nosuch.toml"]);
}

#[test]
fn without_privilege_the_error_names_the_requirement() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    // Where the user nobody may read: the build directory may be private.
    let directory = tempfile::tempdir().unwrap();
    let configuration = Config::default().write(directory.path());
    let binary = directory.path().join("exitmark");
    std::fs::copy(EXITMARK, &binary).unwrap();
    let public = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), public).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["--inh-caps", "-all", "--"])
        .arg(&binary);
    let before = state(&site.middle);
    let output = run(&site.middle, command, &configuration);
    assert_refused(&output, 1, &["CAP_"]);
    assert_eq!(state(&site.middle), before);
    assert_eq!(pins(&site), Vec::<String>::new());
}

#[test]
fn ports_with_different_queues_need_the_kernel_engine() {
    needs_root!();
    let plan = Plan {
        queues: 2,
        ..Plan::default()
    };
    let site = Site::build(plan).unwrap();
    silence(&site);
    let one = ["-L", "uplink0", "rx", "1"];
    site.middle.command("ethtool", &one).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for engine in ["", "engine = \"af_xdp\""] {
        let config = Config {
            top: engine,
            ..Config::default()
        };
        let configuration = config.write(directory.path());
        let output = run(&site.middle, Command::new(EXITMARK), &configuration);
        let words = [
            "host0 has 2 receive queues but uplink0 has 1",
            "engine = \"xdp\" does not",
            "`ethtool -L uplink0 rx 2`",
        ];
        assert_refused(&output, 1, &words);
        assert_eq!(pins(&site), Vec::<String>::new());
    }
    let config = Config {
        top: "engine = \"xdp\"",
        ..Config::default()
    };
    let rig = Rig::on(site, &config);
    assert!(
        rig.running.ready.contains("workers=1"),
        "{}",
        rig.running.ready
    );
    let log = rig.running.log();
    for nic in ["host0", "incoming0"] {
        let words = format!("{nic} has 2 receive queues and 1 of them have a worker");
        assert!(log.contains(&words), "{log}");
    }
    assert!(
        log.contains("counted as no_user_space; `ethtool -L uplink0 rx 2`"),
        "{log}"
    );
    let mut eye = rig.watch(Side::Clearnet);
    let frame = exit(0, 10);
    rig.port(Side::Host).send(&frame.outbound(&[])).unwrap();
    assert!(eye.wait_until(PATIENCE, |seen| seen.len() == 1));
    let status = rig.site.middle.command(EXITMARK, &["status", "--json"]);
    let status = status.unwrap();
    let words = "host0 (host) has 2 receive queues and 1 of them have a worker";
    assert!(status.contains(words), "{status}");
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_second_box_on_the_same_nics_is_refused_and_the_first_goes_on() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let before = state(&rig.site.middle);
    assert_eq!(before.matches("promiscuity 1").count(), 2, "{before}");
    let output = run(&rig.site.middle, Command::new(EXITMARK), &rig.configuration);
    assert_refused(&output, 1, &["another exitmark", "/sys/fs/bpf/exitmark"]);
    // Even if it has pins of its own.
    let config = Config {
        more: "[pin]\ndirectory = \"/sys/fs/bpf/other\"\n[metrics]\nlisten = \"off\"\n\
               [control]\nsocket = \"/run/other/control.sock\"",
        ..Config::default()
    };
    let other = tempfile::tempdir().unwrap();
    let configuration = config.write(other.path());
    let output = run(&rig.site.middle, Command::new(EXITMARK), &configuration);
    assert_refused(
        &output,
        1,
        &["queue 0 of host0", "another program has this queue"],
    );
    assert_eq!(pins(&rig.site), ["exitmark"]);
    assert_eq!(state(&rig.site.middle), before);
    let mut eye = rig.watch(Side::Clearnet);
    let port = rig.port(Side::Host);
    port.send(&exit(0, 10).outbound(&[])).unwrap();
    assert!(eye.wait_until(PATIENCE, |seen| seen.len() == 1));
    moved(&rig.running.stop().unwrap());
}

#[test]
fn a_link_local_address_is_a_warning_unless_the_port_is_incoming_too() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let ipv6 = "net/ipv6/conf/uplink0/disable_ipv6";
    site.middle.sysctl(ipv6, "0").unwrap();
    let rig = Rig::on(site, &Config::default());
    let last = rig.running.stop().unwrap();
    let remedy = "`sysctl -w net.ipv6.conf.uplink0.disable_ipv6=1`";
    assert!(last.log.contains(remedy), "{}", last.log);
    // The uplink is the incoming port too, and the box may have an address on that network.
    rig.site.middle.command(EXITMARK, &["detach"]).unwrap();
    rig.site
        .middle
        .ip("addr add 192.0.2.77/24 dev uplink0")
        .unwrap();
    let config = Config {
        incoming: Some(("uplink0", CLEARNET_MAC)),
        ..Config::default()
    };
    let rig = Rig::on(rig.site, &config);
    let last = rig.running.stop().unwrap();
    assert!(
        last.status.success() && !last.log.contains(remedy),
        "{}",
        last.log
    );
}

/// The VLAN offloads of a NIC, from `ethtool -k`, which a wire on a veth pair turns off.
fn tags_are_stripped(middle: &Netns, nic: &str) -> [bool; 2] {
    let text = middle.command("ethtool", &["-k", nic]).unwrap();
    ["rx-vlan-offload: on", "rx-vlan-stag-hw-parse: on"].map(|line| text.contains(line))
}

#[test]
fn detach_restores_nic_settings() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    silence(&site);
    site.middle.ip("link set host0 promisc on").unwrap();
    let off = ["-K", "uplink0", "rxvlan", "off"];
    site.middle.command("ethtool", &off).unwrap();
    let before = state(&site.middle);
    let stripped = |middle: &Netns| {
        ["host0", "uplink0", "incoming0"].map(|nic| tags_are_stripped(middle, nic))
    };
    let stripped_before = stripped(&site.middle);
    assert_eq!(stripped_before, [[true; 2], [false, true], [true; 2]]);
    let rig = Rig::on(site, &Config::default());
    let during = state(&rig.site.middle);
    assert_eq!(during.matches("promiscuity 1").count(), 2, "{during}");
    assert_eq!(during.matches("prog/xdp").count(), 3, "{during}");
    assert_eq!(stripped(&rig.site.middle), [[false; 2]; 3]);
    // After a stop the box continues in the kernel; after a detach it does not.
    moved(&rig.running.stop().unwrap());
    assert_eq!(state(&rig.site.middle), during);
    rig.site.middle.command(EXITMARK, &["detach"]).unwrap();
    assert_eq!(state(&rig.site.middle), before);
    let config = Config {
        more: "[pin]\non_stop = \"detach\"",
        ..Config::default()
    };
    let rig = Rig::on(rig.site, &config);
    moved(&rig.running.stop().unwrap());
    assert_eq!(state(&rig.site.middle), before);
}

/// Unmounting the BPF file system removes all pins.
#[test]
fn detach_restores_nic_settings_without_pins() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    silence(&site);
    let before = state(&site.middle);
    let config = Config {
        more: "[pin]\ndirectory = \"/run/bpf/box\"",
        ..Config::default()
    };
    let mount = |site: &Site| {
        site.middle.command("mkdir", &["-p", "/run/bpf"]).unwrap();
        let words = ["-t", "bpf", "bpf", "/run/bpf"];
        site.middle.command("mount", &words).unwrap();
    };
    let programs_are_off = |site: &Site| {
        eventually("the programs are off", || {
            match site.middle.ip("-details link show")?.contains("prog/xdp") {
                true => Err(LabError("not yet".to_owned())),
                false => Ok(()),
            }
        });
    };
    let unmount = |site: &Site| {
        site.middle
            .command("umount", &["--lazy", "/run/bpf"])
            .unwrap();
    };
    mount(&site);
    let rig = Rig::on(site, &config);
    let file = rig.configuration.to_str().unwrap().to_owned();
    let detach = |site: &Site| {
        let words = ["detach", "--config", &file];
        site.middle.command(EXITMARK, &words)
    };
    // A running box is not detached.
    unmount(&rig.site);
    let refused = detach(&rig.site).unwrap_err().to_string();
    assert!(refused.contains("an exitmark answers"), "{refused}");
    moved(&rig.running.stop().unwrap());
    programs_are_off(&rig.site);
    assert_ne!(state(&rig.site.middle), before);
    let said = detach(&rig.site).unwrap();
    assert_eq!(said, "detached: the NIC settings are restored\n");
    assert_eq!(state(&rig.site.middle), before);
    assert!(detach(&rig.site).unwrap().starts_with("nothing to detach"));

    // The same with a box in between, which finds the settings of the first one.
    mount(&rig.site);
    let rig = Rig::on(rig.site, &config);
    moved(&rig.running.stop().unwrap());
    unmount(&rig.site);
    programs_are_off(&rig.site);
    mount(&rig.site);
    let rig = Rig::on(rig.site, &config);
    moved(&rig.running.stop().unwrap());
    let words = ["detach", "--pins", "/run/bpf/box"];
    rig.site.middle.command(EXITMARK, &words).unwrap();
    assert_eq!(state(&rig.site.middle), before);
}

#[test]
fn detach_from_another_network_namespace_says_what_stays() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    moved(&rig.running.stop().unwrap());
    let elsewhere = ["--net", EXITMARK, "detach"];
    let said = rig.site.middle.command("unshare", &elsewhere).unwrap_err();
    let said = said.to_string();
    assert!(said.contains("another network namespace"), "{said}");
    let links = rig.site.middle.ip("-details link show").unwrap();
    assert!(!links.contains("prog/xdp"), "{links}");
    assert!(links.contains("promiscuity 1"), "{links}");
}

#[test]
fn a_nic_without_a_role_is_restored() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    silence(&site);
    let before = state(&site.middle);
    let rig = Rig::on(site, &Config::default());
    let none = Config {
        incoming: None,
        ..Config::default()
    };
    let rig = rig.restart(&none);
    assert_eq!(tags_are_stripped(&rig.site.middle, "incoming0"), [true; 2]);
    assert_eq!(tags_are_stripped(&rig.site.middle, "uplink0"), [false; 2]);
    // The changes of the first box are still recorded.
    moved(&rig.running.stop().unwrap());
    rig.site.middle.command(EXITMARK, &["detach"]).unwrap();
    assert_eq!(state(&rig.site.middle), before);
}
