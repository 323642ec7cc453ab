//! The configuration of engine `connect`, on the Tor host itself.

use super::GOOD as BOX;
use exitmark_box::settings::{Engine, Settings, SettingsError, TorHost, UserPattern};
use exitmark_nic::LocalNic;
use exitmark_policy::packet::{Dscp, Version};
use exitmark_policy::{ClassifyBy, ExitProtocols, Mode, SocketRules, Steer};
use proptest::prelude::*;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) const GOOD: &str = "\
engine = \"connect\"
mode = \"enforce\"
[tor]
users = [\"debian-tor\"]
[host]
exempt = [\"203.0.113.0/24\"]
[mark]
dscp = \"af11\"
[steer]
source = [\"203.0.113.10\", \"2001:db8:3::10\"]
[relays]
consensus = [\"/var/lib/tor/cached-microdesc-consensus\"]
";

const USERS: &str = "users = [\"debian-tor\"]";
const SOURCE: &str = "source = [\"203.0.113.10\", \"2001:db8:3::10\"]";
const CONSENSUS: &str = "consensus = [\"/var/lib/tor/cached-microdesc-consensus\"]";

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// The good configuration with one text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "the table is out of date: {from}");
    GOOD.replacen(from, to, 1)
}

fn accepted(from: &str, to: &str) -> Settings {
    parse(&with(from, to)).unwrap_or_else(|error| panic!("{to}: {error}"))
}

fn assert_has(text: &str, words: &[&str], of: &str) {
    for word in words {
        assert!(text.contains(word), "{of}: no `{word}` in: {text}");
    }
}

fn assert_refused(text: &str, words: &[&str], of: &str) {
    let Err(error) = parse(text) else {
        panic!("`{of}` was accepted");
    };
    assert_has(&error.to_string(), words, of);
}

#[test]
fn the_good_configuration_is_of_a_tor_host_without_ports() {
    let settings = parse(GOOD).unwrap();
    assert_eq!(settings.engine, Engine::Connect);
    assert_eq!(settings.engine.name(), "connect");
    assert!(settings.ports.is_none() && settings.incoming().is_none());
    assert!(settings.host_prefixes.is_empty());
    let tor = TorHost {
        users: vec![UserPattern::Name("debian-tor".to_owned())],
        cgroups: Vec::new(),
        interface: None,
    };
    assert_eq!(settings.tor, Some(tor));
    let rules = &settings.rules;
    let sockets = SocketRules {
        source_v4: Some("203.0.113.10".parse().unwrap()),
        source_v6: Some("2001:db8:3::10".parse().unwrap()),
        ..SocketRules::default()
    };
    assert_eq!(rules.sockets, sockets);
    assert_eq!(rules.classify_by, ClassifyBy::RelaySet);
    let [group] = rules.groups() else {
        panic!("{rules:?}");
    };
    assert_eq!(group.name, "tor");
    assert!(group.addresses.is_empty() && group.relay_addresses.is_empty());
    assert_eq!(group.actions.mark(), Dscp::AF11);
    assert_eq!(group.actions.intent().steer, Steer::Both);
    assert_eq!(group.exit_protocols, ExitProtocols::Tcp);
    assert!(group.exempt.contains("203.0.113.7".parse().unwrap()));
    assert!(settings.decides_by_relays());
    assert_eq!(settings.doubts().len(), 0);
    // A box has the other half.
    let settings = parse(BOX).unwrap();
    assert!(settings.ports.is_some() && settings.incoming().is_some() && settings.tor.is_none());
    assert_eq!(settings.rules.sockets, SocketRules::default());
}

#[test]
fn the_values_of_users_and_cgroups_are_read() {
    let tor = |line: &str| accepted(USERS, line).tor.unwrap();
    let read = tor("users = [\"debian-tor\", 107, \"108\", \"_tor-*\", \"tor?\"]");
    let name = |text: &str| UserPattern::Name(text.to_owned());
    let glob = |text: &str| UserPattern::Glob(text.to_owned());
    let expected = [
        name("debian-tor"),
        UserPattern::Id(107),
        UserPattern::Id(108),
        glob("_tor-*"),
        glob("tor?"),
    ];
    assert_eq!(read.users, expected);
    let shown: Vec<_> = read.users.iter().map(UserPattern::to_string).collect();
    assert_eq!(shown, ["debian-tor", "107", "108", "_tor-*", "tor?"]);
    for (user, matched) in [
        ("debian-tor", [true, false, false, false, false]),
        ("debian-tor2", [false; 5]),
        ("_tor-a", [false, false, false, true, false]),
        ("_tor-", [false, false, false, true, false]),
        ("x_tor-a", [false; 5]),
        ("tor7", [false, false, false, false, true]),
        ("tor", [false; 5]),
        ("tor77", [false; 5]),
        // A user ID is no name.
        ("107", [false; 5]),
        ("root", [false; 5]),
        ("", [false; 5]),
    ] {
        let found: Vec<_> = read.users.iter().map(|one| one.matches(user)).collect();
        assert_eq!(found, matched, "{user}");
    }
    let read = tor("cgroups = [\"/system.slice/./tor@default.service/\", \"//docker/a..b\"]");
    let expected = ["/system.slice/tor@default.service", "/docker/a..b"];
    assert_eq!(read.cgroups, expected.map(PathBuf::from));
    assert_eq!(read.users, []);
}

#[test]
fn steering_follows_from_sources_fwmark_and_interface() {
    let v4 = "source = [\"203.0.113.10\"]";
    let v6 = "source = [\"2001:db8:3::10\"]";
    for (lines, steer, fwmark, interface) in [
        (String::new(), Steer::Off, 0, None),
        ("source = []".to_owned(), Steer::Off, 0, None),
        (v4.to_owned(), Steer::Only(Version::V4), 0, None),
        (v6.to_owned(), Steer::Only(Version::V6), 0, None),
        (SOURCE.to_owned(), Steer::Both, 0, None),
        ("fwmark = 0x2a".to_owned(), Steer::Both, 42, None),
        (
            "fwmark = 0xffffffff".to_owned(),
            Steer::Both,
            u32::MAX,
            None,
        ),
        (format!("{v4}\nfwmark = 1"), Steer::Both, 1, None),
        (
            "interface = \"eth1\"".to_owned(),
            Steer::Both,
            0,
            Some("eth1"),
        ),
        (
            format!("{v6}\ninterface = \"eth1\""),
            Steer::Both,
            0,
            Some("eth1"),
        ),
    ] {
        let settings = accepted(SOURCE, &lines);
        let sockets = settings.rules.sockets;
        let group = &settings.rules.groups()[0];
        assert_eq!(group.actions.intent().steer, steer, "{lines}");
        assert_eq!(sockets.fwmark, fwmark, "{lines}");
        // The index of the NIC is not known to the settings.
        assert_eq!(sockets.interface, 0, "{lines}");
        let tor = settings.tor.unwrap();
        assert_eq!(tor.interface.as_deref(), interface, "{lines}");
        let has = [lines.contains("203.0.113.10"), lines.contains("2001:db8")];
        let found = [sockets.source_v4.is_some(), sockets.source_v6.is_some()];
        assert_eq!(found, has, "{lines}");
    }
    for (line, overwrites) in [
        ("dscp = \"af11\"", false),
        ("overwrite = false", false),
        ("overwrite = true", true),
    ] {
        let settings = accepted("dscp = \"af11\"", line);
        assert_eq!(settings.rules.sockets.overwrites, overwrites, "{line}");
    }
}

/// Texts of the good configuration, each with replacements that are refused, and words of the
/// refusal.
const REFUSALS: &[(&str, &[super::Refusal])] = &[
    (
        USERS,
        &[
            ("", &["tor.users = []", "debian-tor", "tor.cgroups"]),
            ("users = []", &["tor.users = []", "ps -C tor"]),
            ("users = []\ncgroups = []", &["tor.users = []"]),
            (
                "users = [\"debian-tor\"]\ncgroups = [\"/system.slice/tor.service\"]",
                &["tor.cgroups = \"/system", "tor.users", "keep one"],
            ),
            ("users = \"debian-tor\"", &["users", "sequence"]),
            ("users = [1.5]", &["\"debian-tor\"", "user ID"]),
            ("user = [\"debian-tor\"]", &["user", "users", "cgroups"]),
            (
                "users = [0]",
                &["tor.users = 0", "is root", "whole machine", "ps -C tor"],
            ),
            ("users = [\"0\"]", &["tor.users = \"0\"", "is root"]),
            (
                "users = [\"root\"]",
                &["tor.users = \"root\"", "whole machine", "ps -C tor"],
            ),
            (
                "users = [\"ro*\"]",
                &["tor.users = \"ro*\"", "matches root"],
            ),
            (
                "users = [\"r??t\"]",
                &["tor.users = \"r??t\"", "matches root"],
            ),
            (
                "users = [\"*\"]",
                &["tor.users = \"*\"", "whole machine", "_tor-*"],
            ),
            ("users = [\"?*\"]", &["tor.users = \"?*\"", "_tor-*"]),
            ("users = [\"????\"]", &["tor.users = \"????\"", "_tor-*"]),
            ("users = [-1]", &["tor.users = -1", "1 to 4294967294"]),
            (
                "users = [4294967295]",
                &["tor.users = 4294967295", "4294967294"],
            ),
            (
                "users = [\"\"]",
                &["tor.users = \"\"", "debian-tor", "_tor-*"],
            ),
            ("users = [\"a b\"]", &["tor.users = \"a b\"", "user ID"]),
            (
                "users = [\"tor:x\"]",
                &["tor.users = \"tor:x\"", "debian-tor"],
            ),
            (
                "users = [\"_tor-[ab]\"]",
                &["tor.users = \"_tor-[ab]\"", "glob with `*` and `?`"],
            ),
            (
                "users = [\"a\", \"b\", \"a\"]",
                &["tor.users = \"a\"", "twice"],
            ),
            ("users = [107, \"107\"]", &["tor.users = \"107\"", "twice"]),
            (
                "cgroups = [\"tor.service\"]",
                &[
                    "tor.cgroups = \"tor.service\"",
                    "absolute",
                    "/proc/PID/cgroup",
                ],
            ),
            (
                "cgroups = [\"/system.slice/../tor.service\"]",
                &[
                    "tor.cgroups",
                    "`..`",
                    "/system-tor.slice/tor@default.service",
                ],
            ),
            ("cgroups = [\"\"]", &["tor.cgroups = \"\"", "absolute"]),
            (
                "cgroups = [\"/a\\u0000b\"]",
                &["tor.cgroups = \"/a\\0b\"", "absolute"],
            ),
            (
                "cgroups = [\"/\"]",
                &["tor.cgroups = \"/\"", "every process", "/proc/PID/cgroup"],
            ),
            (
                "cgroups = [\"/.\"]",
                &["tor.cgroups = \"/.\"", "every process"],
            ),
            (
                "cgroups = [\"/sys/fs/cgroup/system.slice/tor.service\"]",
                &["tor.cgroups", "mount", "\"/system.slice/tor.service\""],
            ),
            (
                "cgroups = [\"/sys/fs/cgroup/unified/tor\"]",
                &["tor.cgroups", "mount", "\"/tor\""],
            ),
            (
                "cgroups = [\"/a\", \"/a/\"]",
                &["tor.cgroups = \"/a/\"", "same as \"/a\"", "twice"],
            ),
            (
                "cgroups = [\"/a\", \"/b/c\", \"/b\"]",
                &["tor.cgroups = \"/b\"", "\"/b/c\"", "keep one"],
            ),
            (
                "cgroups = [\"/b\", \"/b/c\"]",
                &["tor.cgroups = \"/b/c\"", "\"/b\""],
            ),
        ],
    ),
    (
        SOURCE,
        &[
            (
                "source = 203",
                &["source", "203", "\"keep\", an address, a list"],
            ),
            (
                "source = { \"192.0.2.10\" = \"203.0.113.10\" }",
                &["steer.source = a table of 1 addresses", "behind a box"],
            ),
            (
                "source = \"keep\"",
                &["steer.source = \"keep\"", "an address such as"],
            ),
            (
                "source = [\"eth1\"]",
                &["steer.source = \"eth1\"", "203.0.113.10", "2001:db8:3::10"],
            ),
            (
                "source = [\"203.0.113.0/24\"]",
                &["steer.source", "an address such as"],
            ),
            (
                "source = [\"203.0.113.10\", \"203.0.113.11\"]",
                &["steer.source = \"203.0.113.11\"", "second", "one of each"],
            ),
            (
                "source = [\"2001:db8::1\", \"2001:db8::1\"]",
                &["steer.source = \"2001:db8::1\"", "second"],
            ),
            (
                "source = [\"127.0.0.1\"]",
                &["steer.source = \"127.0.0.1\"", "reached"],
            ),
            (
                "source = [\"::1\"]",
                &["steer.source = \"::1\"", "this machine"],
            ),
            (
                "source = [\"0.0.0.0\"]",
                &["steer.source = \"0.0.0.0\"", "reached"],
            ),
            ("source = [\"::\"]", &["steer.source = \"::\"", "reached"]),
            (
                "source = [\"224.0.0.1\"]",
                &["steer.source = \"224.0.0.1\""],
            ),
            ("source = [\"ff02::1\"]", &["steer.source = \"ff02::1\""]),
            (
                "source = [\"255.255.255.255\"]",
                &["steer.source", "reached"],
            ),
            (
                "source = [\"fe80::1\"]",
                &["steer.source = \"fe80::1\"", "reached"],
            ),
            ("source = [\"169.254.1.1\"]", &["steer.source", "reached"]),
            (
                "source = [\"::ffff:203.0.113.10\"]",
                &["steer.source", "IPv4-mapped", "write 203.0.113.10"],
            ),
            (
                "fwmark = 0",
                &["steer.fwmark = 0", "1 to 0xffffffff", "ip rule"],
            ),
            ("fwmark = -1", &["steer.fwmark = -1", "0xffffffff"]),
            (
                "fwmark = 0x100000000",
                &["steer.fwmark = 4294967296", "0xffffffff"],
            ),
            ("fwmark = \"1\"", &["fwmark", "expected i64"]),
            ("interface = \"\"", &["steer.interface = \"\"", "ip link"]),
            (
                "interface = \"a b\"",
                &["steer.interface = \"a b\"", "spaces"],
            ),
        ],
    ),
    (
        "dscp = \"af11\"",
        &[
            ("overwrite = 1", &["overwrite", "boolean"]),
            ("dscp = 0", &["mark.dscp", "unmarked"]),
            ("tos = 0x29", &["mark.tos", "0x29", "0x28"]),
        ],
    ),
    (
        CONSENSUS,
        &[
            ("", &["relays.consensus = []", "exit traffic", "cached-"]),
            (
                "consensus = [\"unverified-consensus\"]",
                &["relays.consensus", "unverified", "cached-"],
            ),
        ],
    ),
    (
        "exempt = [\"203.0.113.0/24\"]",
        &[
            (
                "exempt = [\"0.0.0.0/1\"]",
                &["host.exempt", "% of the Internet"],
            ),
            (
                "exempt = [\"203.0.113.1/24\"]",
                &["host.exempt", "203.0.113.0/24"],
            ),
            (
                "resolvers = [\"127.0.0.53\"]",
                &["host.resolvers", "never marked", "\"any\""],
            ),
            ("resolvers = \"all\"", &["host.resolvers", "\"any\""]),
        ],
    ),
];

#[test]
fn every_refusal_names_key_value_reason_and_remedy() {
    for (from, refusals) in REFUSALS {
        for (to, words) in *refusals {
            assert_refused(&with(from, to), words, to);
        }
    }
}

/// Keys and tables of a box, with words of the refusal on a Tor host. A key replaces its table.
#[test]
fn a_tor_host_refuses_the_keys_of_a_box() {
    let table: &[(&str, &str, &[&str])] = &[
        (
            "",
            "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\n",
            &["ports = ", "eth0", "no NIC", "remove [ports]"],
        ),
        (
            "[host]",
            "addresses = [\"192.0.2.10\"]",
            &["host.addresses = [\"192.0.2.10\"]", "tor.users", "remove"],
        ),
        (
            "[host]",
            "addresses = []",
            &["host.addresses = []", "remove"],
        ),
        (
            "[host]",
            "relay_addresses = [\"192.0.2.11\"]",
            &["host.relay_addresses", "192.0.2.11", "steer.source"],
        ),
        (
            "[host]",
            "listeners = [22]",
            &["host.listeners = [22]", "opens", "remove"],
        ),
        (
            "[host]",
            "mac = \"02:00:5e:10:00:01\"",
            &["host.mac = \"02:00:5e:10:00:01\"", "no frames", "remove"],
        ),
        ("[host]", "name = \"a\"", &["host.name = \"a\"", "remove"]),
        (
            "[host]",
            "vlan = 10",
            &["host.vlan = 10", "no frames", "remove"],
        ),
        (
            "[host]",
            "uplink.vlan = 10",
            &["host.uplink = ", "no frames", "remove"],
        ),
        (
            "[host]",
            "mark.dscp = \"le\"",
            &["host.mark = ", "\"le\"", "[mark]"],
        ),
        (
            "[host]",
            "steer.enabled = false",
            &["host.steer = ", "steer.source"],
        ),
        (
            "[host]",
            "dscp = 8",
            &["host.dscp = 8", "mark.dscp", "remove"],
        ),
        (
            "[host]",
            "tos = 0x20",
            &["host.tos = 32", "mark.tos", "remove"],
        ),
        (
            "mode = \"enforce\"",
            "classify_by = \"host-mark\"",
            &["classify_by = \"host-mark\"", "relay set", "remove"],
        ),
        (
            "[mark]",
            "protocols = \"tcp+udp\"",
            &["mark.protocols = \"tcp+udp\"", "TCP", "remove"],
        ),
        (
            "[mark]",
            "protocols = \"all\"",
            &["mark.protocols = \"all\""],
        ),
        (
            "[mark]",
            "at_uplink = \"strip\"",
            &["mark.at_uplink = \"strip\"", "audit", "remove"],
        ),
        (
            "[mark]",
            "at_uplink = \"keep\"",
            &["mark.at_uplink = \"keep\""],
        ),
        (
            "[steer]",
            "next_hop = \"203.0.113.1\"",
            &[
                "steer.next_hop = \"203.0.113.1\"",
                "steer.source",
                "steer.fwmark",
            ],
        ),
        (
            "[steer]",
            "enabled = false",
            &["steer.enabled = false", "steer.source", "remove"],
        ),
        (
            "[steer]",
            "vlan = [200, 30]",
            &["steer.vlan = [200, 30]", "no frames", "steer.interface"],
        ),
        (
            "[steer]",
            "pcp = 5",
            &["steer.pcp = 5", "no frames", "remove"],
        ),
        (
            "[steer]",
            "on_unavailable = \"drop\"",
            &["steer.on_unavailable = \"drop\"", "never refuses", "remove"],
        ),
        (
            "",
            "[datapath]\nring = 2048\n",
            &["datapath = ", "2048", "forwards none", "remove [datapath]"],
        ),
        ("", "[datapath]\n", &["datapath = ", "remove [datapath]"]),
        (
            "",
            "[uplink]\nvlan = 10\n",
            &["uplink = ", "no frames", "remove [uplink]"],
        ),
    ];
    for (after, lines, words) in table {
        let text = match *after {
            "" => format!("{GOOD}{lines}"),
            after => with(after, &format!("{after}\n{lines}")),
        };
        assert_refused(&text, words, lines);
    }
    let groups = with("[host]", "[[host]]");
    let words = &["host = 1 groups", "write [host]", "another engine"];
    assert_refused(&groups, words, "[[host]]");
    for (after, lines) in [
        ("mode = \"enforce\"", "classify_by = \"relay-set\""),
        ("[mark]", "protocols = \"tcp\""),
        ("[host]", "resolvers = \"any\""),
        ("[host]", "resolvers = [\"9.9.9.9\"]"),
        (
            "mode = \"enforce\"",
            "user = \"exitmark\"\nmetrics.listen = \"off\"",
        ),
        (
            "mode = \"enforce\"",
            "pin.directory = \"/sys/fs/bpf/other\"",
        ),
    ] {
        let settings = accepted(after, &format!("{after}\n{lines}"));
        assert_eq!(settings.rules.mode(), Mode::Enforce, "{lines}");
    }
}

#[test]
fn a_box_refuses_the_keys_of_a_tor_host() {
    for engine in [
        "",
        "engine = \"auto\"\n",
        "engine = \"af_xdp\"\n",
        "engine = \"xdp\"\n",
    ] {
        let with_engine = format!("{engine}{BOX}");
        parse(&with_engine).unwrap();
        let table: &[(&str, &str, &[&str])] = &[
            (
                "[ports]",
                "[tor]\nusers = [\"debian-tor\"]\n[ports]",
                &[
                    "tor = ",
                    "debian-tor",
                    "host.addresses",
                    "engine = \"connect\"",
                ],
            ),
            ("[ports]", "[tor]\n[ports]", &["tor = ", "remove [tor]"]),
            (
                "[steer]",
                "[steer]\nfwmark = 0x2a",
                &[
                    "steer.fwmark = 42",
                    "ports.incoming",
                    "engine = \"connect\"",
                ],
            ),
            (
                "[steer]",
                "[steer]\ninterface = \"eth1\"",
                &["steer.interface = \"eth1\"", "ports.incoming"],
            ),
            (
                "[mark]",
                "[mark]\noverwrite = false",
                &["mark.overwrite = false", "always", "remove the key"],
            ),
        ];
        for (from, to, words) in table {
            assert_refused(&with_engine.replacen(from, to, 1), words, to);
        }
        let ports = "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n";
        assert!(BOX.contains(ports));
        let words = &[
            "ports = {}",
            "ports.host",
            "ports.uplink",
            "engine = \"connect\"",
        ];
        assert_refused(&with_engine.replacen(ports, "", 1), words, "no [ports]");
        let inbound = with_engine.replace("[datapath]", "[datapath]\ninbound = \"connect\"");
        let words = &["datapath.inbound = \"connect\"", "no frames", "\"auto\""];
        assert_refused(&inbound, words, "inbound");
    }
}

#[test]
fn only_engine_and_cgroups_need_a_restart() {
    let by_cgroup = with(USERS, "cgroups = [\"/system.slice/tor.service\"]");
    let table: &[(&str, &str, &[&str], &[&str])] = &[
        (GOOD, GOOD, &[], &[]),
        (
            GOOD,
            &with(USERS, "users = [\"_tor-*\"]"),
            &["tor.users"],
            &[],
        ),
        (
            GOOD,
            &by_cgroup,
            &["tor.cgroups", "tor.users"],
            &["tor.cgroups"],
        ),
        (
            &by_cgroup,
            &by_cgroup.replace("tor.service", "tor@default.service"),
            &["tor.cgroups"],
            &["tor.cgroups"],
        ),
        (
            GOOD,
            &with(SOURCE, "fwmark = 1\ninterface = \"eth1\""),
            &["steer.fwmark", "steer.interface", "steer.source"],
            &[],
        ),
        (
            GOOD,
            &with("dscp = \"af11\"", "dscp = \"af12\"\noverwrite = true"),
            &["mark.dscp", "mark.overwrite"],
            &[],
        ),
        (
            GOOD,
            &with(
                "exempt = [",
                "resolvers = \"any\"\nexempt = [\"198.51.100.9\", ",
            ),
            &["host.exempt", "host.resolvers"],
            &[],
        ),
    ];
    for (before, after, keys, fixed) in table {
        let change = parse(before).unwrap().change_to(&parse(after).unwrap());
        assert_eq!(change.keys, *keys, "{after}");
        assert_eq!(change.fixed, *fixed, "{after}");
    }
    let change = parse(BOX).unwrap().change_to(&parse(GOOD).unwrap());
    for key in ["engine", "ports", "datapath.ring"] {
        assert!(
            change.fixed.iter().any(|one| one == key),
            "{key}: {change:?}"
        );
    }
}

#[test]
fn a_summary_names_whose_connections_and_how_they_are_steered() {
    for (from, to, words) in [
        (
            "",
            "",
            "mode enforce, connections of debian-tor, relay connections are steered by \
             steer.source, mark af11 (10)",
        ),
        (
            SOURCE,
            "",
            "mode enforce, connections of debian-tor, relay connections are not steered, mark af11 (10)",
        ),
        (
            SOURCE,
            "source = [\"203.0.113.10\"]\nfwmark = 42\ninterface = \"eth1\"",
            "mode enforce, connections of debian-tor, relay connections are steered by \
             steer.source and fwmark 0x2a and eth1, mark af11 (10)",
        ),
        (
            USERS,
            "cgroups = [\"/docker/a\", \"/docker/b\"]",
            "mode enforce, connections of /docker/a, /docker/b, relay connections are steered by \
             steer.source, mark af11 (10)",
        ),
    ] {
        let summary = accepted(from, to).summary();
        assert_eq!(summary, words);
    }
}

fn nic(name: &str, networks: &[&str]) -> LocalNic {
    LocalNic {
        name: name.to_owned(),
        alt_names: Vec::new(),
        mac: None,
        networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

#[test]
fn doubtful_sources_give_a_warning() {
    let nics = [
        nic("lo", &["127.0.0.1/8", "::1/128"]),
        nic("eth0", &["192.0.2.10/24", "203.0.113.10/24"]),
        nic("eth1", &["2001:db8:3::10/64", "fe80::1/64"]),
    ];
    let only = |source: &str| with(SOURCE, &format!("source = [\"{source}\"]"));
    let marked = |source: &str| with(SOURCE, &format!("fwmark = 1\nsource = [\"{source}\"]"));
    let extra = with(CONSENSUS, "extra = [\"198.51.100.1:9001\"]");
    let table: [(String, &[&str], &[&str]); 9] = [
        (GOOD.to_owned(), &[], &[]),
        (with(SOURCE, ""), &[], &[]),
        (marked("203.0.113.10"), &[], &[]),
        (with(SOURCE, "interface = \"eth9\""), &[], &[]),
        (
            only("203.0.113.10"),
            &[
                "steer.source = \"203.0.113.10\"",
                "over IPv6",
                "steer.fwmark",
            ],
            &[],
        ),
        (
            only("2001:db8:3::10"),
            &["steer.source = \"2001:db8:3::10\"", "over IPv4"],
            &[],
        ),
        (
            marked("203.0.113.11"),
            &[],
            &[
                "steer.source = \"203.0.113.11\"",
                "not an address of this machine",
                "ip addr",
            ],
        ),
        (
            marked("2001:db8:3::11"),
            &[],
            &["steer.source = \"2001:db8:3::11\"", "unsteered"],
        ),
        (
            extra,
            &["relays.consensus = []", "1 endpoints", "exit traffic"],
            &[],
        ),
    ];
    for (text, on_any, here) in table {
        let settings = parse(&text).unwrap();
        let shown = |objections: Vec<exitmark_box::settings::Objection>| -> Vec<String> {
            assert!(objections.iter().all(|one| !one.is_fatal));
            objections.iter().map(|one| one.what.to_string()).collect()
        };
        let doubts = shown(settings.doubts());
        assert_eq!(doubts.len(), usize::from(!on_any.is_empty()), "{doubts:?}");
        assert_has(&doubts.concat(), on_any, &text);
        let mut objections = shown(settings.objections(&nics));
        objections.retain(|one| !doubts.contains(one));
        assert_eq!(
            objections.len(),
            usize::from(!here.is_empty()),
            "{objections:?}"
        );
        assert_has(&objections.concat(), here, &text);
        // A machine that could not be read.
        assert_eq!(shown(settings.objections(&[])), doubts, "{text}");
    }
}

/// Whether a glob matches, by recursion.
fn is_match(glob: &[u8], name: &[u8]) -> bool {
    match (glob, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| is_match(rest, &name[skipped..])),
        ([b'?', glob @ ..], [_, name @ ..]) => is_match(glob, name),
        ([one, glob @ ..], [other, name @ ..]) => one == other && is_match(glob, name),
        _ => false,
    }
}

/// The keys of a configuration, from what was read of it.
fn written(settings: &Settings) -> String {
    let tor = settings.tor.as_ref().unwrap();
    let sockets = settings.rules.sockets;
    let users = tor.users.iter().map(UserPattern::to_string);
    let cgroups = tor.cgroups.iter().map(|path| path.display().to_string());
    let sources = [
        sockets.source_v4.map(|source| source.to_string()),
        sockets.source_v6.map(|source| source.to_string()),
    ];
    let list = |texts: Vec<String>| toml::Value::from(texts).to_string();
    let mut text = format!(
        "engine = \"connect\"\nmode = \"{}\"\n[tor]\nusers = {}\ncgroups = {}\n\
         [relays]\nextra = [\"198.51.100.1:9001\"]\n\
         [mark]\noverwrite = {}\n[steer]\nsource = {}\n",
        settings.rules.mode().name(),
        list(users.collect()),
        list(cgroups.collect()),
        sockets.overwrites,
        list(sources.into_iter().flatten().collect()),
    );
    if sockets.fwmark != 0 {
        writeln!(text, "fwmark = {}", sockets.fwmark).unwrap();
    }
    if let Some(interface) = &tor.interface {
        writeln!(text, "interface = \"{interface}\"").unwrap();
    }
    text
}

/// Lines of `[tor]` and of `[steer]`, most of them valid, in unusual spellings too.
fn some_lines() -> impl Strategy<Value = (String, String)> {
    let user = prop_oneof![
        6 => "[a-z_?*][a-z0-9_*?.-]{1,6}".prop_map(|name| format!("\"{name}\"")),
        2 => (1..5000_i64).prop_map(|id| id.to_string()),
        1 => (1..5000_i64).prop_map(|id| format!("\"{id}\"")),
        1 => "[ -!#-\\[\\]-~]{0,4}".prop_map(|name| format!("\"{name}\"")),
    ];
    let cgroup = "(/{1,2}\\.?[a-z.@]{1,4}){1,3}/?".prop_map(|path| format!("\"{path}\""));
    let users = proptest::collection::vec(user, 1..4).prop_map(|of| ("users", of));
    let cgroups = proptest::collection::vec(cgroup, 1..3).prop_map(|of| ("cgroups", of));
    let tor = prop_oneof![2 => users, 1 => cgroups]
        .prop_map(|(key, list)| format!("{key} = [{}]", list.join(", ")));
    let source = prop_oneof![
        4 => any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
        4 => any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
        1 => any::<std::net::Ipv4Addr>().prop_map(|address| format!("::ffff:{address}")),
        1 => Just("2001:DB8:0:0::0A".to_owned()),
    ];
    let steer = (
        proptest::collection::vec(source, 0..3),
        proptest::option::of(prop_oneof![9 => 1..=0xffff_ffff_i64, 1 => any::<i64>()]),
        proptest::option::of("[a-z0-9.]{1,15}"),
    )
        .prop_map(|(sources, fwmark, interface)| {
            let mut text = format!("source = {sources:?}\n");
            if let Some(fwmark) = fwmark {
                writeln!(text, "fwmark = {fwmark}").unwrap();
            }
            if let Some(interface) = interface {
                writeln!(text, "interface = \"{interface}\"").unwrap();
            }
            text
        });
    (tor, steer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_glob_matches_as_by_recursion(glob in "[ab*?]{0,6}", name in "[ab]{0,6}") {
        let expected = is_match(glob.as_bytes(), name.as_bytes());
        prop_assert_eq!(UserPattern::Glob(glob).matches(&name), expected);
    }
}

/// What is read of an accepted configuration, written as a configuration again, is accepted and
/// read as the same. No accepted one judges root's connections.
#[test]
fn an_accepted_configuration_is_read_back_as_the_same() {
    let config = ProptestConfig {
        cases: 4096,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let (tried, accepted) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&some_lines(), |(tor, steer)| {
        tried.set(tried.get() + 1);
        let text = format!(
            "engine = \"connect\"\nmode = \"audit\"\n[tor]\n{tor}\n[mark]\noverwrite = true\n\
             [relays]\nextra = [\"198.51.100.1:9001\"]\n[steer]\n{steer}"
        );
        let Ok(first) = parse(&text) else {
            return Ok(());
        };
        accepted.set(accepted.get() + 1);
        let again = written(&first);
        let second = parse(&again).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&second.tor, &first.tor);
        prop_assert_eq!(second.rules.sockets, first.rules.sockets);
        let steer = |settings: &Settings| settings.rules.groups()[0].actions.intent().steer;
        prop_assert_eq!(steer(&second), steer(&first));
        prop_assert_eq!(second.summary(), first.summary());
        prop_assert_eq!(written(&second), again);
        let tor = first.tor.unwrap();
        prop_assert_ne!(tor.users.is_empty(), tor.cgroups.is_empty());
        for user in &tor.users {
            prop_assert!(!user.matches("root") && *user != UserPattern::Id(0));
        }
        for cgroup in &tor.cgroups {
            let others = tor.cgroups.iter().filter(|other| cgroup.starts_with(other));
            prop_assert_eq!(others.count(), 1);
        }
        Ok(())
    });
    result.unwrap();
    let (tried, accepted) = (tried.get(), accepted.get());
    assert!(
        accepted > tried / 4 && accepted < tried,
        "{accepted} of {tried}"
    );
}

#[test]
fn commands_for_frames_refuse_a_tor_host() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exitmark.toml");
    let pins = "pin.directory = \"/sys/fs/bpf/of-no-box\"\n";
    std::fs::write(&path, format!("{pins}{GOOD}")).unwrap();
    for (arguments, status, words) in [
        (&["check"][..], 0, &[][..]),
        (
            &["explain", "00"],
            2,
            &["engine = \"connect\"", "no frames", "of a box"],
        ),
        (
            &["wire"],
            1,
            &["engine = \"connect\"", "no NIC", "disable exitmark-wire"],
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_exitmark"));
        command.args(arguments).arg("--config").arg(&path);
        let output = command.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert_has(&error, words, arguments[0]);
    }
}
