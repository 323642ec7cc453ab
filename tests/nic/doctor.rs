//! `exitmark doctor` on a box with every fault that a command can fix: the printed commands fix
//! them, and then the box runs.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use exitmark_lab::process::{as_nobody, public_copy};
use exitmark_lab::site::{Plan, Site};
use exitmark_lab::{Config, Netns, needs_root, poll};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");

fn doctor(netns: &Netns, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXITMARK);
    command.arg("doctor").args(arguments);
    netns.output(command).unwrap()
}

/// The findings: severity, subject, problem, and the command that fixes it.
fn amiss(output: &Output) -> Vec<(String, String, String, Option<String>)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().map(str::to_owned);
    let reported = findings.iter().map(|finding| {
        assert_eq!(finding.as_object().unwrap().len(), 5, "{finding}");
        (
            word(finding, "severity").unwrap(),
            word(finding, "subject").unwrap(),
            word(finding, "what").unwrap(),
            word(finding, "fix"),
        )
    });
    reported.filter(|(severity, ..)| severity != "ok").collect()
}

/// A site, and a configuration for it whose next hop is resolved.
fn ground(directory: &Path) -> (Site, PathBuf) {
    let site = Site::build(Plan::of_queues(2)).unwrap();
    let config = Config::default().next_hop("203.0.113.1");
    let config = config.relays("extra = [\"198.18.0.1:9001\"]");
    (site, config.write(directory).unwrap())
}

#[test]
fn finds_each_fault_and_its_command_fixes_it() {
    needs_root!();
    let directory = tempfile::tempdir().unwrap();
    let (site, path) = ground(directory.path());
    let middle = &site.middle;
    for line in [
        "addr add 192.0.2.77/24 dev host0",
        "addr add 192.0.2.78/24 dev host0",
        "link set host0 down",
        "link set uplink0 mtu 1400",
        "link add br0 type bridge",
        "link set incoming0 master br0",
        "link add link host0 name mv0 type macvlan",
    ] {
        middle.ip(line).unwrap();
    }
    let ipv6_off = "net/ipv6/conf/uplink0/disable_ipv6";
    middle.sysctl(ipv6_off, "0").unwrap();
    middle.ip("addr add 2001:db8:1::77/64 dev uplink0").unwrap();
    let one_queue = ["-L", "uplink0", "rx", "1"];
    middle.command("ethtool", &one_queue).unwrap();
    // Mounted over, not unmounted: another mount, of the machine, may be below.
    let cover = ["-t", "tmpfs", "none", "/sys/fs/bpf"];
    middle.command("mount", &cover).unwrap();
    poll(middle, "incoming0").unwrap();

    let arguments = ["--json", "--config", path.to_str().unwrap()];
    let first = doctor(middle, &arguments);
    assert_eq!(first.status.code(), Some(1));
    let found = amiss(&first);
    #[rustfmt::skip]
    let table = [
        ("fault", "pins", "not in a BPF file system"),
        ("fault", "host0", "host: down"),
        ("fault", "incoming0", "is a port of the bridge br0"),
        ("fault", "host0", "192.0.2.77/24"),
        ("fault", "host0", "192.0.2.78/24"),
        ("fault", "uplink0", "MTU 1400, not 1500"),
        ("fault", "uplink0", "1 receive queue, not 2"),
        ("fault", "uplink0", "2001:db8:1::77/64"),
        ("warning", "uplink0", "link-local"),
        ("fault", "incoming0", "another XDP program"),
        ("warning", "incoming0", "203.0.113.1 is not in the neighbour table"),
    ];
    for (severity, subject, words) in table {
        let is_it = |(a, b, what, fix): &&(String, String, String, Option<String>)| {
            a == severity && b == subject && what.contains(words) && fix.is_some()
        };
        assert_eq!(found.iter().filter(is_it).count(), 1, "{words}: {found:?}");
    }
    // The doctor changes nothing.
    assert_eq!(amiss(&doctor(middle, &arguments)), found);
    for fix in found.iter().filter_map(|(.., fix)| fix.as_ref()) {
        middle.command("sh", &["-c", fix]).unwrap();
    }
    let second = doctor(middle, &arguments);
    let left = amiss(&second);
    assert!(left.iter().all(|(.., fix)| fix.is_none()), "{left:?}");
    assert_eq!(second.status.code(), Some(0), "{left:?}");
    // A box without findings runs, and the doctor recognises the running box.
    let running = site.run(EXITMARK, &path).unwrap();
    let third = doctor(middle, &arguments);
    assert_eq!(third.status.code(), Some(0), "{:?}", amiss(&third));
    let text = String::from_utf8_lossy(&third.stdout).into_owned();
    let attached = text.matches("exitmark's XDP program is attached");
    assert_eq!(attached.count(), 3, "{text}");
    assert!(running.stop().unwrap().status.success());
}

/// Two wires with one `incoming`.
#[test]
fn examines_the_nics_of_each_wire_and_a_shared_one_once() {
    needs_root!();
    let directory = tempfile::tempdir().unwrap();
    let (site, path) = ground(directory.path());
    let middle = &site.middle;
    let queues = "numtxqueues 2 numrxqueues 2";
    let pair = format!("link add host1 {queues} type veth peer name uplink1 {queues}");
    middle.ip(&pair).unwrap();
    for nic in ["host1", "uplink1"] {
        let ipv6_off = format!("net/ipv6/conf/{nic}/disable_ipv6");
        middle.sysctl(&ipv6_off, "1").unwrap();
        middle.ip(&format!("link set {nic} up")).unwrap();
    }
    let second = "[[wire]]\nhost = \"host1\"\nuplink = \"uplink1\"\nincoming = \"incoming0\"\n";
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, ports) = text.split_once("[ports]\n").unwrap();
    let text = format!("{before}{second}[[wire]]\n{ports}");
    std::fs::write(&path, text).unwrap();
    let examined = || {
        let output = doctor(middle, &["--config", path.to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    };
    let text = examined();
    for nic in ["host1", "uplink1", "incoming0", "host0", "uplink0"] {
        for what in ["MTU 1500", "2 receive queues", "driver veth"] {
            let is_it = |line: &&str| line.contains(nic) && line.contains(what);
            assert_eq!(
                text.lines().filter(is_it).count(),
                1,
                "{nic} {what}:\n{text}"
            );
        }
    }
    assert!(!text.contains("fault"), "{text}");
    for nic in ["uplink0", "uplink1"] {
        middle.ip(&format!("link set {nic} mtu 1400")).unwrap();
        let text = examined();
        let is_it = |line: &&str| {
            line.starts_with("fault") && line.contains(nic) && line.contains("MTU 1400, not 1500")
        };
        assert_eq!(text.lines().filter(is_it).count(), 1, "{nic}:\n{text}");
        middle.ip(&format!("link set {nic} mtu 1500")).unwrap();
    }
}

#[test]
fn prints_text_and_exits_2_on_wrong_usage() {
    needs_root!();
    let directory = tempfile::tempdir().unwrap();
    let (site, _) = ground(directory.path());
    let middle = &site.middle;
    let ports = ["--port", "host=host0", "--port", "uplink=uplink0"];
    let sound = doctor(middle, &ports);
    let text = String::from_utf8_lossy(&sound.stdout).into_owned();
    assert_eq!(sound.status.code(), Some(0), "{text}");
    // Linux before 6.3 does not report that its XDP is native.
    assert!(text.contains("driver veth: "), "{text}");
    assert!(!text.contains("incoming0"), "{text}");
    assert!(!text.contains("fix:"), "{text}");
    // All NICs, even if none is a port.
    middle.ip("link set uplink0 down").unwrap();
    let all = doctor(middle, &[]);
    let text = String::from_utf8_lossy(&all.stdout).into_owned();
    assert_eq!(all.status.code(), Some(0), "{text}");
    for nic in ["host0", "uplink0", "incoming0"] {
        assert!(text.contains(nic), "{text}");
    }
    assert!(text.contains("fix: ip link set dev uplink0 up"), "{text}");
    let missing = doctor(middle, &["--port", "host=nosuch0"]);
    assert_eq!(missing.status.code(), Some(1));
    let config = directory.path().join("nosuch.toml");
    let config = config.to_str().unwrap();
    for wrong in [
        ["--port", "hots=host0"],
        ["--port", "host0"],
        ["--port", "host="],
        ["--config", config],
    ] {
        let output = doctor(middle, &wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn names_missing_rights() {
    needs_root!();
    let directory = tempfile::tempdir().unwrap();
    let (site, _) = ground(directory.path());
    // The build directory may be private.
    let mut command = as_nobody(public_copy(EXITMARK, directory.path()).unwrap());
    command.args(["doctor", "--json", "--port", "host=host0"]);
    let output = site.middle.output(command).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found = amiss(&output);
    for capability in ["CAP_NET_ADMIN", "CAP_BPF", "CAP_NET_RAW", "CAP_PERFMON"] {
        let mut rights = found.iter().filter(|(_, subject, ..)| subject == "rights");
        let is_named = rights.any(|(_, _, what, _)| what.contains(capability));
        assert!(is_named, "{capability}: {found:?}");
    }
}
