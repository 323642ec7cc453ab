//! `exitmark explain --connect` and `exitmark doctor` on a Tor host.

use crate::rig::{Host, OWN, needs_root};
use exitmark_lab::process::without_perfmon;
use exitmark_lab::{RunningBox, contained};
use serde_json::Value;
use std::path::Path;

/// The table of connections has all other explanations.
#[test]
fn explain_names_an_address_of_this_machine() {
    needs_root!();
    let host = Host::new();
    let path = host.write(&host.text("", ""));
    let path = path.to_str().unwrap();
    let explained = host.exitmark(&["explain", "--config", path, "--connect", OWN]);
    let expected = "192.0.2.10:4444  exempt    to an address of this machine → unchanged\n";
    assert_eq!(explained.unwrap(), expected);
}

/// A finding: severity, problem, and the command.
type Finding = (String, String, Option<String>);

/// The findings on a subject. No finding contains the address of a relay.
fn doctor(host: &Host, path: &Path, subject: &str) -> Vec<Finding> {
    let mut command = contained(crate::rig::EXITMARK);
    command.args(["doctor", "--json", "--config"]).arg(path);
    let output = host.host.output(command).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for relay in ["198.18.0.1", "2001:db8:18::1"] {
        assert!(!text.contains(relay), "{text}");
    }
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().map(str::to_owned);
    let of_subject = findings.iter().filter(|one| one["subject"] == subject);
    let finding = |one| {
        let [severity, what] = ["severity", "what"].map(|key| word(one, key).unwrap());
        (severity, what, word(one, "fix"))
    };
    of_subject.map(finding).collect()
}

fn is(finding: &Finding, severity: &str, words: &str) -> bool {
    finding.0 == severity && finding.1.contains(words)
}

/// Runs the printed commands with the router and the NIC of the second network in place.
fn repair(host: &Host, findings: &[Finding]) {
    for (_, what, fix) in findings {
        let router = match what.contains("IPv6") {
            true => "2001:db8:7::1",
            false => "203.0.113.1",
        };
        let fix = fix.as_ref().unwrap_or_else(|| panic!("no command: {what}"));
        let fix = fix
            .replace("GATEWAY", router)
            .replace("dev NIC", "dev other0");
        host.host.command("sh", &["-c", &fix]).unwrap();
    }
}

/// A second network, by which nothing is routed yet.
fn with_second_network() -> Host {
    let host = Host::new();
    host.host
        .ip_batch(&[
            "link add other0 type veth peer name other1".to_owned(),
            "addr add 203.0.113.77/24 dev other0".to_owned(),
            "addr add 2001:db8:7::77/64 dev other0".to_owned(),
            "link set other0 up".to_owned(),
            "link set other1 up".to_owned(),
        ])
        .unwrap();
    for nic in ["all", "eth0", "other0"] {
        let key = format!("net/ipv4/conf/{nic}/rp_filter");
        host.host.sysctl(&key, "0").unwrap();
    }
    host
}

#[test]
fn the_doctors_commands_route_relay_connections_by_another_nic() {
    needs_root!();
    for (steering, severity, problem) in [
        (
            "fwmark = 0x77",
            "warning",
            "leave by eth0, as tor's others do",
        ),
        (
            "source = [\"203.0.113.77\", \"2001:db8:7::77\"]",
            "warning",
            "leave by eth0, as tor's others do",
        ),
        ("interface = \"other0\"", "fault", "have no route"),
    ] {
        let host = with_second_network();
        let path = host.write(&host.text(steering, ""));
        let found = doctor(&host, &path, "steering");
        assert_eq!(found.len(), 2, "{steering}: {found:?}");
        for (finding, version) in found.iter().zip(["IPv4", "IPv6"]) {
            assert!(is(finding, severity, problem), "{steering}: {finding:?}");
            assert!(finding.1.contains(version), "{steering}: {finding:?}");
        }
        // The doctor changes nothing.
        assert_eq!(doctor(&host, &path, "steering"), found);
        repair(&host, &found);
        let found = doctor(&host, &path, "steering");
        assert_eq!(found.len(), 2, "{steering}: {found:?}");
        for finding in &found {
            let words = "leave by other0, tor's others by eth0";
            assert!(is(finding, "ok", words), "{steering}: {finding:?}");
        }

        // A strict filter drops answers to connections that only the fwmark or the NIC routes.
        host.host
            .sysctl("net/ipv4/conf/other0/rp_filter", "1")
            .unwrap();
        let found = doctor(&host, &path, "steering");
        if steering.starts_with("source") {
            assert_eq!(found.len(), 2, "{steering}: {found:?}");
            continue;
        }
        let words = "answers to relay connections over IPv4 are dropped at other0";
        assert!(is(&found[1], "fault", words), "{steering}: {found:?}");
        repair(&host, &found[1..2]);
        let found = doctor(&host, &path, "steering");
        assert!(found.iter().all(|finding| finding.0 == "ok"), "{found:?}");
    }
}

#[test]
fn the_doctor_shows_programs_users_cgroups_and_pins() {
    needs_root!();
    let host = Host::new();
    let text = host.text("source = [\"203.0.113.10\"]", "");
    let path = host.write(&text);
    let kernel = doctor(&host, &path, "kernel");
    assert!(
        is(&kernel[1], "ok", "the programs of engine connect load"),
        "{kernel:?}"
    );
    let users = doctor(&host, &path, "users");
    let words = format!("has the user ID {}", host.user);
    assert!(is(&users[0], "ok", &words), "{users:?}");
    let mount = exitmark_datapath::cgroup_mount().unwrap();
    let words = format!("cgroup2 is mounted at {}", mount.display());
    let cgroups = doctor(&host, &path, "cgroups");
    assert!(is(&cgroups[0], "ok", &words), "{cgroups:?}");
    // One NIC has all addresses.
    let steering = doctor(&host, &path, "steering");
    let words = "over IPv4 leave by eth0, as tor's others do";
    assert_eq!(steering.len(), 1, "{steering:?}");
    assert!(is(&steering[0], "ok", words), "{steering:?}");

    let running = host.start(&text);
    let pins = doctor(&host, &path, "pins");
    assert!(is(&pins[0], "ok", "attached to a cgroup"), "{pins:?}");
    running.stop_well().unwrap();

    let users = format!("users = [{}]", host.user);
    let path = host.write(&text.replace(&users, "cgroups = [\"/no-such.slice\"]"));
    let cgroups = doctor(&host, &path, "cgroups");
    let words = "no-such.slice does not exist";
    assert!(is(&cgroups[1], "fault", words), "{cgroups:?}");
    let path = host.write(&text.replace(&users, "users = [\"_exitmark-no-such-*\"]"));
    let users = doctor(&host, &path, "users");
    assert!(is(&users[0], "fault", "matches no user"), "{users:?}");
}

/// The verifier refuses the programs then, except from Linux 6.8 on if the kernel has no mitigations
/// of speculative execution (`bypass_spec_v1` in the kernel's include/linux/bpf.h).
#[test]
fn a_missing_cap_perfmon_is_named_with_the_remedy() {
    needs_root!();
    let host = Host::new();
    let path = host.write(&host.text("", ""));
    let by = |command: &str| {
        let mut exitmark = without_perfmon(crate::rig::EXITMARK);
        exitmark.args([command, "--config"]).arg(&path);
        exitmark
    };
    let output = host.host.output(by("doctor")).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let doctor = String::from_utf8(output.stdout).unwrap();
    let rights = "fault    rights    this user lacks CAP_PERFMON: ";
    assert!(doctor.contains(rights), "{doctor}");
    assert!(doctor.contains("run it as root, or grant"), "{doctor}");

    let refusal = match RunningBox::start_by(&host.host, by("run")) {
        Ok(running) => {
            running.stop_well().unwrap();
            let options = std::fs::read_to_string("/proc/cmdline").unwrap();
            assert!(options.contains("mitigations=off"), "{options}");
            println!("SKIPPED the refusal: this kernel has no mitigations");
            return;
        }
        Err(error) => error.to_string(),
    };
    assert!(refusal.contains("refuses the program"), "{refusal}");
    let output = host.host.output(by("run")).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let run = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!run.contains(rights), "{run}");
    for said in [doctor, run] {
        for words in [
            "the verifier of Linux ",
            "refuses the program exitmark_connect4: ",
            "this process lacks CAP_PERFMON",
            "run it as root, or grant that in its service",
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
