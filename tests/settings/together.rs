//! Values that are valid alone, but impossible or doubtful together.

use super::{GOOD, assert_refused};
use exitmark_box::settings::{Settings, SettingsError};
use exitmark_nic::LocalNic;
use std::path::Path;
use std::process::Command;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// The good configuration with one text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "the table is out of date: {from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn impossible_combinations_are_refused() {
    let listeners = "listeners = [22]";
    let no_port = "incoming = \"eth2\"\n";
    let table: [(&str, &str, &[&str]); 26] = [
        (
            listeners,
            "listeners = [\"0.0.0.0:9001\"]",
            &["host.listeners", "0.0.0.0:9001", ": 9001"],
        ),
        (
            listeners,
            "listeners = [\"[::]:9001\"]",
            &["host.listeners", "[::]:9001", ": 9001"],
        ),
        (
            listeners,
            "listeners = [22, \"192.0.2.11:22\"]",
            &["192.0.2.11:22", "host.addresses"],
        ),
        (
            listeners,
            "listeners = [\"[2001:db8::1]:22\"]",
            &["[2001:db8::1]:22", "host.addresses"],
        ),
        (
            listeners,
            "listeners = [\"127.0.0.1:22\"]",
            &["127.0.0.1:22", "host.addresses"],
        ),
        (
            listeners,
            "exempt = [\"0.0.0.0/0\"]",
            &["host.exempt", "0.0.0.0/0", "100 %", "audit"],
        ),
        (
            listeners,
            "exempt = [\"::/0\"]",
            &["host.exempt", "::/0", "100 %"],
        ),
        (
            listeners,
            "exempt = [\"0.0.0.0/1\", \"128.0.0.0/1\"]",
            &["host.exempt", "100 %"],
        ),
        (
            listeners,
            "exempt = [\"2000::/3\", \"192.0.2.1\"]",
            &["host.exempt", "2000::/3"],
        ),
        (
            listeners,
            "exempt = [\"64.0.0.0/4\"]",
            &["host.exempt", "64.0.0.0/4", "7 %"],
        ),
        (
            "\"192.0.2.10\"",
            "\"192.0.0.0/8\"",
            &["host.addresses", "192.0.0.0/8", "many sites"],
        ),
        (
            "\"192.0.2.10\"",
            "\"0.1.2.3\"",
            &["host.addresses", "0.1.2.3", "sends from"],
        ),
        (
            "\"192.0.2.10\"",
            "\"128.0.0.0/1\"",
            &["host.addresses", "128.0.0.0/1"],
        ),
        (
            "\"192.0.2.10\"",
            "\"2001::/16\"",
            &["host.addresses", "2001::/16"],
        ),
        (
            listeners,
            "relay_addresses = [\"198.0.0.0/8\"]",
            &["host.relay_addresses", "198.0.0.0/8"],
        ),
        (
            listeners,
            "resolvers = [\"127.0.0.53\"]",
            &["host.resolvers", "127.0.0.53", "\"any\""],
        ),
        (
            listeners,
            "resolvers = [\"::1\"]",
            &["host.resolvers", "::1"],
        ),
        (
            listeners,
            "resolvers = [\"9.9.9.9\", \"192.0.2.10\"]",
            &["host.resolvers", "192.0.2.10"],
        ),
        (
            "\"02:00:5e:10:00:02\"",
            "\"192.0.2.10\"",
            &["steer.next_hop", "192.0.2.10", "router"],
        ),
        (
            listeners,
            "mac = \"02:00:5e:10:00:02\"",
            &["steer.next_hop", "02:00:5e:10:00:02", "router"],
        ),
        (
            "extra = ",
            "certificates = \"certs\"\nextra = ",
            &["relays.certificates", "relays.consensus"],
        ),
        (
            "extra = ",
            "state = \"/run/exitmark/control.sock\"\nextra = ",
            &["relays.state", "control.socket"],
        ),
        (
            "[mark]",
            "[control]\nsocket = \"/sys/fs/bpf/exitmark/socket\"\n[mark]",
            &["control.socket", "pin.directory"],
        ),
        (
            "extra = ",
            "state = \"/sys/fs/bpf/exitmark/state\"\nextra = ",
            &["relays.state", "pin.directory"],
        ),
        (no_port, "", &["steer.next_hop", "ports.incoming"]),
        (
            "next_hop = \"02:00:5e:10:00:02\"",
            "",
            &["ports.incoming", "steer.next_hop"],
        ),
    ];
    for (from, to, words) in table {
        assert_refused(from, to, words);
    }
    let dropping = with(no_port, "").replace(
        "next_hop = \"02:00:5e:10:00:02\"",
        "on_unavailable = \"drop\"",
    );
    let error = parse(&dropping).unwrap_err().to_string();
    assert!(error.contains("steer.on_unavailable = \"drop\""), "{error}");
}

#[test]
fn valid_combinations_are_accepted() {
    for (from, to) in [
        ("listeners = [22]", "listeners = [22, \"192.0.2.10:9001\"]"),
        (
            "listeners = [22]",
            "relay_addresses = [\"192.0.2.11\"]\nlisteners = [\"192.0.2.11:9001\"]",
        ),
        (
            "listeners = [22]",
            "exempt = [\"10.0.0.0/8\", \"172.16.0.0/12\", \"192.168.0.0/16\", \"fc00::/7\"]",
        ),
        ("\"192.0.2.10\"", "\"192.0.0.0/16\", \"2001:db8::/29\""),
        ("listeners = [22]", "resolvers = [\"192.0.2.53\"]"),
    ] {
        parse(&with(from, to)).unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}

fn doubts(text: &str) -> Vec<String> {
    let doubts = parse(text).unwrap().doubts();
    assert!(doubts.iter().all(|doubt| !doubt.is_fatal));
    doubts.iter().map(|doubt| doubt.what.to_string()).collect()
}

/// Configurations, and words of the warning on each, if any.
fn doubted() -> Vec<(String, Option<[&'static str; 3]>)> {
    let listed = with("extra = ", "consensus = [\"cached-consensus\"]\nextra = ");
    let wire = listed
        .replace("incoming = \"eth2\"\n", "")
        .replace("next_hop = \"02:00:5e:10:00:02\"\n", "");
    let mark = |text: &str, line: &str| text.replace("at_uplink = \"keep\"", line);
    vec![
        (listed.clone(), None),
        (wire.clone(), None),
        (
            GOOD.to_owned(),
            Some(["relays.consensus = []", "1 endpoints", "marked as exit"]),
        ),
        (format!("classify_by = \"host-mark\"\n{GOOD}"), None),
        (GOOD.replace("addresses = ", "relay_addresses = "), None),
        (mark(&listed, "at_uplink = \"strip\""), None),
        (
            mark(&wire, "at_uplink = \"strip\""),
            Some(["mark.at_uplink = \"strip\"", "ports.incoming", "audit"]),
        ),
        (
            format!("mode = \"audit\"\n{}", mark(&wire, "at_uplink = \"strip\"")),
            None,
        ),
        (
            mark(&listed, "protocols = \"tcp+udp\""),
            Some(["mark.protocols = \"tcp+udp\"", "DNS", "host.resolvers"]),
        ),
        (
            mark(&listed, "protocols = \"all\""),
            Some(["mark.protocols = \"all\"", "DNS", "host.resolvers"]),
        ),
        (
            mark(&listed, "protocols = \"all\"")
                .replace("listeners", "resolvers = [\"9.9.9.9\"]\nlisteners"),
            Some(["mark.protocols = \"all\"", "echo replies", "host.listeners"]),
        ),
    ]
}

#[test]
fn doubtful_combinations_give_one_warning() {
    for (text, words) in doubted() {
        let reported = doubts(&text);
        match words {
            None => assert_eq!(reported, [""; 0], "{text}"),
            Some(words) => {
                assert_eq!(reported.len(), 1, "{text}: {reported:?}");
                for word in words {
                    assert!(reported[0].contains(word), "no `{word}` in: {reported:?}");
                }
            }
        }
    }
}

#[test]
fn check_warns_and_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exitmark.toml");
    for (text, words) in doubted() {
        std::fs::write(&path, &text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_exitmark"));
        let output = command
            .args(["check", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let warned = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{warned}");
        match words {
            None => assert_eq!(warned, ""),
            Some(words) => assert!(
                warned.contains("warning: ") && warned.contains(words[0]),
                "{warned}"
            ),
        }
    }
}

fn nic(name: &str, mac: u8, networks: &[&str]) -> LocalNic {
    LocalNic {
        name: name.to_owned(),
        alt_names: vec![format!("{name}-alt")],
        mac: Some(exitmark_policy::packet::MacAddr::new([2, 0, 0, 0, 9, mac])),
        networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

/// The objection on this machine, if any: whether it is fatal, and words of it.
#[test]
fn a_configuration_that_conflicts_with_the_machine_is_objected_to() {
    let nics = [
        nic("lo", 0, &["127.0.0.1/8", "::1/128"]),
        nic(
            "eth2",
            2,
            &["203.0.113.2/24", "2001:db8:113::2/64", "fe80::2/64"],
        ),
        nic("eth3", 3, &["10.0.0.5/24"]),
    ];
    let listed = with("extra = ", "consensus = [\"cached-consensus\"]\nextra = ");
    let hop = |to: &str| listed.replace("02:00:5e:10:00:02", to);
    let host = |to: &str| listed.replace("192.0.2.10", to);
    let two_hops = |v6: &str| {
        let both = format!("[\"203.0.113.1\", \"{v6}\"]");
        listed.replace("\"02:00:5e:10:00:02\"", &both)
    };
    let tagged = |text: String| text.replace("[steer]", "[steer]\nvlan = 30");
    let v6 = |to: &str| hop(to).replace("192.0.2.10", "2001:db8:1::10");
    let both = |text: &str| text.replace("\"192.0.2.10\"", "\"192.0.2.10\", \"2001:db8:1::10\"");
    let unlisted = |to: &str| with("02:00:5e:10:00:02", to);
    let groups = super::groups::SITE.replace("tcp+udp", "tcp");
    for (text, expected) in [
        (listed.clone(), None),
        (hop("203.0.113.1"), None),
        (hop("203.0.113.1").replace("\"eth2\"", "\"eth2-alt\""), None),
        (v6("2001:db8:113::1"), None),
        (v6("fe80::1"), None),
        // Relay traffic of the other IP version.
        (both(&listed), None),
        (
            both(&hop("203.0.113.1")),
            Some((false, ["is an IPv4 address", "over IPv6", "dev eth2`"])),
        ),
        (
            both(&hop("fe80::1")),
            Some((false, ["is an IPv6 address", "over IPv4", "dev eth2`"])),
        ),
        (
            hop("fe80::1").replace("[relays]", "on_unavailable = \"drop\"\n[relays]"),
            Some((false, ["over IPv4", "is not steered", "is dropped"])),
        ),
        (
            hop("203.0.113.2"),
            Some((true, ["steer.next_hop", "203.0.113.2", "eth2"])),
        ),
        (
            hop("10.0.0.5"),
            Some((true, ["steer.next_hop", "the box itself", "eth3"])),
        ),
        (
            hop("02:00:00:00:09:02"),
            Some((true, ["steer.next_hop", "the box itself", "eth2"])),
        ),
        (
            hop("02:00:00:00:09:03"),
            Some((true, ["steer.next_hop", "the box itself", "eth3"])),
        ),
        (
            hop("198.51.100.1"),
            Some((false, ["steer.next_hop", "198.51.100.1", "203.0.113.0/24"])),
        ),
        (
            hop("198.51.100.1").replace("\"eth2\"", "\"eth2-alt\""),
            Some((
                false,
                ["steer.next_hop", "network of eth2-alt", "203.0.113.0/24"],
            )),
        ),
        (
            v6("2001:db8:114::1"),
            Some((
                false,
                ["steer.next_hop", "network of eth2", "2001:db8:113::/64"],
            )),
        ),
        (
            host("10.0.0.5"),
            Some((
                true,
                ["host.addresses = \"10.0.0.5\"", "box itself", "eth3"],
            )),
        ),
        (
            host("10.0.0.0/28"),
            Some((
                false,
                ["host.addresses = \"10.0.0.0/28\"", "10.0.0.5", "eth3"],
            )),
        ),
        (
            listed.replace("listeners", "mac = \"02:00:00:00:09:03\"\nlisteners"),
            Some((true, ["host.mac", "02:00:00:00:09:03", "eth3"])),
        ),
    ] {
        let objections = parse(&text).unwrap().objections(&nics);
        match expected {
            None => assert!(objections.is_empty(), "{text}: {objections:?}"),
            Some((is_fatal, words)) => {
                assert_eq!(objections.len(), 1, "{text}: {objections:?}");
                assert_eq!(objections[0].is_fatal, is_fatal, "{objections:?}");
                let reported = objections[0].what.to_string();
                for word in words {
                    assert!(reported.contains(word), "no `{word}` in: {reported}");
                }
            }
        }
    }
    for (text, expected) in [
        // Each next hop is looked at. That of a VLAN is not on this NIC's network.
        (tagged(hop("203.0.113.1")), None),
        (tagged(hop("198.51.100.1")), None),
        (
            tagged(hop("10.0.0.5")),
            Some((
                true,
                "steer.next_hop = \"10.0.0.5\": is the box itself, on eth3",
            )),
        ),
        (
            two_hops("fe80::2"),
            Some((
                true,
                "steer.next_hop = \"fe80::2\": is the box itself, on eth2",
            )),
        ),
        (
            two_hops("2001:db8:9::1"),
            Some((
                false,
                "steer.next_hop = \"2001:db8:9::1\": is not on the network of eth2",
            )),
        ),
        (
            groups.replacen(
                "mac = \"02:00:5e:10:00:01\"",
                "mac = \"02:00:00:00:09:03\"",
                1,
            ),
            Some((true, "host.mac = \"02:00:00:00:09:03\" (group \"exits\"): ")),
        ),
        (
            groups.replacen("\"192.0.2.128\"", "\"10.0.0.5\"", 1),
            Some((true, "host.addresses = \"10.0.0.5\" (group \"host-3\"): ")),
        ),
        (
            groups.replacen("192.0.2.64/27", "10.0.0.0/27", 1),
            Some((
                false,
                "host.addresses = \"10.0.0.0/27\" (group \"exits\"): ",
            )),
        ),
        (
            groups.replacen("vlan = 31", "next_hop = \"02:00:00:00:09:02\"", 1),
            Some((
                true,
                "host.steer.next_hop = \"02:00:00:00:09:02\" (group \"exits\"): ",
            )),
        ),
        (groups.clone(), None),
    ] {
        let objections = parse(&text).unwrap().objections(&nics);
        let reported: Vec<_> = objections
            .iter()
            .map(|one| (one.is_fatal, one.what.to_string()))
            .collect();
        match expected {
            None => assert_eq!(reported, [], "{text}"),
            Some((is_fatal, begins)) => {
                assert_eq!(reported.len(), 1, "{text}: {reported:?}");
                let is_expected = reported[0].0 == is_fatal && reported[0].1.starts_with(begins);
                assert!(is_expected, "{begins}: {reported:?}");
            }
        }
    }
    // Without a consensus, only the relays of relays.extra count.
    for (text, expected) in [
        (both(&unlisted("203.0.113.1")), false),
        (both(&unlisted("fe80::1")), true),
        (
            unlisted("fe80::1").replace("addresses = ", "relay_addresses = "),
            true,
        ),
    ] {
        let objections = parse(&text).unwrap().objections(&nics);
        let reported: Vec<_> = objections.iter().map(|one| one.what.to_string()).collect();
        let found = reported.iter().any(|text| text.contains("is not steered"));
        assert_eq!(found, expected, "{text}: {reported:?}");
    }
    let unaddressed = [nic("eth2", 2, &["fe80::2/64"])];
    let objections = parse(&hop("203.0.113.1")).unwrap().objections(&unaddressed);
    let reported = objections[0].what.to_string();
    assert!(
        !objections[0].is_fatal && reported.contains("eth2 has no IPv4 address"),
        "{reported}"
    );
}
