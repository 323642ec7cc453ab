//! What the box refuses, with which words and status, and that it leaves nothing changed.

use crate::craft::exit;
use crate::leaks::pins;
use crate::rig::{Config, EXITMARK, PATIENCE, Rig, Side, moved, needs_root, silence};
use exitmark::lab::Netns;
use exitmark::lab::site::{INCOMING_MAC, Plan, Site, TORNET_MAC};
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
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    assert!(output.stdout.is_empty(), "it said that it is ready");
    assert!(!said.contains("panicked"), "{said}");
}

/// How the box's NICs are set, as `ip` tells it. Carrier, which is nobody's setting and comes
/// late, is left out.
fn state(middle: &Netns) -> String {
    let text = middle.ip("-details link show").unwrap();
    let words = text.split_whitespace();
    let kept = words.filter(|word| !word.starts_with('<') && !["UP", "DOWN"].contains(word));
    kept.collect::<Vec<_>>().join(" ")
}

#[test]
fn nics_that_are_not_as_required_are_refused_with_status_1() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let incoming = |nic, hop| Config {
        incoming: Some((nic, hop)),
        ..Config::default()
    };
    let table: [(&str, Config, &str, &str, &[&str]); 7] = [
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
            "a NIC that is down",
            Config::default(),
            "link set uplink0 down",
            "link set uplink0 up",
            &["uplink0 (uplink) is down; `ip link set dev uplink0 up`"],
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
            "no relay file",
            Config {
                relays: "consensus = [\"nosuch-consensus\"]".to_owned(),
                ..Config::default()
            },
            "",
            "",
            &["nosuch-consensus"],
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
        change(after);
    }
    // The same site is as good as new.
    silence(&site);
    let rig = Rig::on(site, &Config::default());
    moved(&rig.running.stop().unwrap());
}

#[test]
fn configurations_that_cannot_be_are_refused_with_status_2() {
    needs_root!();
    // An empty namespace: no NIC is looked at before the configuration is sound.
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
fn without_privilege_it_says_what_it_takes() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    // Where nobody may read: the build directory may be private.
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
}

#[test]
fn a_second_box_on_the_same_nics_is_refused_and_the_first_goes_on() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let before = state(&rig.site.middle);
    assert_eq!(before.matches("promiscuity 1").count(), 2, "{before}");
    let output = run(&rig.site.middle, Command::new(EXITMARK), &rig.configuration);
    assert_refused(&output, 1, &["another exitmark", "/sys/fs/bpf/exitmark"]);
    // Not even with pins of its own.
    let config = Config {
        more: "[pin]\ndirectory = \"/sys/fs/bpf/other\"",
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
fn promiscuous_mode_is_put_back_as_it_was() {
    needs_root!();
    let site = Site::build(Plan::default()).unwrap();
    silence(&site);
    site.middle.ip("link set host0 promisc on").unwrap();
    let before = state(&site.middle);
    let rig = Rig::on(site, &Config::default());
    let during = state(&rig.site.middle);
    assert_eq!(during.matches("promiscuity 1").count(), 2, "{during}");
    assert_eq!(during.matches("prog/xdp").count(), 3, "{during}");
    // Told to stop, it goes on in the kernel; told to detach, it does not.
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
