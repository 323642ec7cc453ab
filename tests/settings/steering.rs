//! Next hops, VLAN tags and priorities of relay traffic, and for which groups they hold.

use super::groups::SITE;
use exitmark_box::settings::{Objection, Settings, SettingsError};
use exitmark_policy::packet::{Version, VlanTags};
use exitmark_policy::{Group, Steer};
use std::path::Path;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// The good configuration with these lines as `[steer]`.
fn steered(lines: &str) -> String {
    super::GOOD.replacen("next_hop = \"02:00:5e:10:00:02\"", lines, 1)
}

fn assert_refused(text: &str, words: &[&str]) {
    let Err(error) = parse(text) else {
        panic!("accepted: {text}");
    };
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}\n{text}");
    }
}

/// The next hops of a group for IPv4 and IPv6, as text; `-` for a version that is not steered.
fn next_hops(settings: &Settings, group: &Group) -> [String; 2] {
    let steer = group.actions.intent().steer;
    let incoming = settings.incoming().unwrap();
    [Version::V4, Version::V6].map(|version| match steer.routes(version) {
        false => "-".to_owned(),
        true => {
            let hop = incoming.next_hops[group.path.next_hop(version)];
            assert_eq!(hop.vlan, group.path.vlan);
            hop.to_string()
        }
    })
}

#[test]
fn next_hops_are_read_in_every_form() {
    let mac = "02:00:5e:10:00:02";
    let only_v4 = Steer::Only(Version::V4);
    let only_v6 = Steer::Only(Version::V6);
    for (form, steer, expected, count) in [
        ("\"203.0.113.1\"", only_v4, ["203.0.113.1", "-"], 1),
        ("\"fe80::1\"", only_v6, ["-", "fe80::1"], 1),
        ("\"02:00:5e:10:00:02\"", Steer::Both, [mac, mac], 1),
        ("[\"203.0.113.1\"]", only_v4, ["203.0.113.1", "-"], 1),
        ("[\"02:00:5e:10:00:02\"]", Steer::Both, [mac, mac], 1),
        (
            "[\"2001:db8:3::1\", \"203.0.113.1\"]",
            Steer::Both,
            ["203.0.113.1", "2001:db8:3::1"],
            2,
        ),
        ("{ v4 = \"203.0.113.1\" }", only_v4, ["203.0.113.1", "-"], 1),
        ("{ v4 = \"02:00:5e:10:00:02\" }", only_v4, [mac, "-"], 1),
        ("{ v6 = \"02:00:5e:10:00:02\" }", only_v6, ["-", mac], 1),
        (
            "{ v4 = \"02:00:5e:10:00:02\", v6 = \"fe80::1\" }",
            Steer::Both,
            [mac, "fe80::1"],
            2,
        ),
        (
            "{ v4 = \"02:00:5e:10:00:02\", v6 = \"02:00:5e:10:00:02\" }",
            Steer::Both,
            [mac, mac],
            1,
        ),
    ] {
        let settings = parse(&steered(&format!("next_hop = {form}"))).unwrap();
        let [group] = settings.rules.groups() else {
            panic!("{:?}", settings.rules);
        };
        assert_eq!(group.actions.intent().steer, steer, "{form}");
        assert_eq!(next_hops(&settings, group), expected, "{form}");
        let incoming = settings.incoming().unwrap();
        assert_eq!(incoming.next_hops.len(), count, "{form}");
    }
}

#[test]
fn impossible_steering_is_refused_by_key() {
    for (lines, words) in [
        (
            "next_hop = [\"203.0.113.1\", \"203.0.113.2\"]",
            &[
                "steer.next_hop = \"203.0.113.2\"",
                "second",
                "IPv4",
                "203.0.113.1",
                "v4 = ",
            ][..],
        ),
        (
            "next_hop = [\"fe80::1\", \"2001:db8::1\"]",
            &["steer.next_hop = \"2001:db8::1\"", "IPv6", "fe80::1"],
        ),
        (
            "next_hop = [\"02:00:5e:10:00:02\", \"203.0.113.1\"]",
            &["steer.next_hop = \"203.0.113.1\"", "second", "for both"],
        ),
        (
            "next_hop = [\"fe80::1\", \"02:00:5e:10:00:02\"]",
            &["steer.next_hop = \"02:00:5e:10:00:02\"", "IPv6"],
        ),
        (
            "next_hop = []",
            &["steer.next_hop = []", "no router", "enabled = false"],
        ),
        (
            "next_hop = {}",
            &["steer.next_hop = {}", "v4 = ", "enabled = false"],
        ),
        (
            "next_hop = [\"router\"]",
            &["steer.next_hop = \"router\"", "203.0.113.1"],
        ),
        (
            "next_hop = { v4 = \"router\" }",
            &["steer.next_hop = \"router\"", "fe80::1"],
        ),
        (
            "next_hop = { v4 = \"fe80::1\" }",
            &[
                "steer.next_hop = \"fe80::1\"",
                "not an IPv4 address",
                "(v4)",
                "MAC",
            ],
        ),
        (
            "next_hop = { v6 = \"203.0.113.1\" }",
            &[
                "steer.next_hop = \"203.0.113.1\"",
                "not an IPv6 address",
                "(v6)",
            ],
        ),
        (
            "next_hop = { v5 = \"203.0.113.1\" }",
            &["v5", "`v4` or `v6`"],
        ),
        ("next_hop = { v4 = 1 }", &["v4 = 1", "expected a string"]),
        (
            "next_hop = 1",
            &[
                "next_hop = 1",
                "or MAC address of",
                "{ v4 = \"203.0.113.1\"",
            ],
        ),
        ("next_hop = [1]", &["next_hop = [1]", "expected a string"]),
        (
            "next_hop = [\"02:00:5e:10:00:02\"]\nvlan = 0",
            &["steer.vlan = 0", "1 to 4094", "[outer, inner]"],
        ),
        (
            "next_hop = \"fe80::1\"\nvlan = [1, 4095]",
            &["steer.vlan = [1, 4095]", "1 to 4094"],
        ),
        (
            "next_hop = \"fe80::1\"\nvlan = [1, 2, 3]",
            &["steer.vlan = [1, 2, 3]", "two tags"],
        ),
        (
            "next_hop = \"fe80::1\"\nvlan = \"30\"",
            &["vlan = \"30\"", "the ID of a VLAN"],
        ),
        (
            "next_hop = \"fe80::1\"\npcp = 5",
            &["steer.pcp = 5", "steer.vlan", "remove the key"],
        ),
        (
            "next_hop = \"fe80::1\"\nvlan = []\npcp = 5",
            &["steer.pcp = 5", "steer.vlan"],
        ),
        (
            "next_hop = \"fe80::1\"\nvlan = 30\npcp = 8",
            &["steer.pcp = 8", "0 to 7", "kept"],
        ),
        (
            "next_hop = \"fe80::1\"\nvlan = 30\npcp = -1",
            &["steer.pcp = -1", "0 to 7"],
        ),
        (
            "vlan = 30",
            &["ports.incoming = \"eth2\"", "steer.next_hop"],
        ),
        (
            "enabled = true",
            &["ports.incoming = \"eth2\"", "steer.next_hop"],
        ),
        (
            "next_hop = [\"fe80::1\", \"192.0.2.10\"]",
            &[
                "steer.next_hop = \"192.0.2.10\"",
                "is the Tor host",
                "router",
            ],
        ),
    ] {
        assert_refused(&steered(lines), words);
    }
    // Without `incoming` nothing is steered.
    for (lines, words) in [
        (
            "next_hop = [\"fe80::1\"]",
            &["steer.next_hop = [\"fe80::1\"]", "ports.incoming"][..],
        ),
        ("vlan = 30", &["steer.vlan = 30", "ports.incoming"]),
        ("pcp = 3", &["steer.pcp = 3", "ports.incoming"]),
        (
            "enabled = true",
            &["steer.enabled = true", "ports.incoming"],
        ),
        (
            "[host.steer]\nvlan = 7",
            &["host.steer.vlan = 7", "ports.incoming"],
        ),
        (
            "[host.steer]\nnext_hop = { v4 = \"203.0.113.1\" }",
            &[
                "host.steer.next_hop = { v4 = \"203.0.113.1\" }",
                "ports.incoming",
            ],
        ),
    ] {
        assert_refused(
            &steered(lines).replacen("incoming = \"eth2\"\n", "", 1),
            words,
        );
    }
    let off = steered("enabled = false").replacen("incoming = \"eth2\"\n", "", 1);
    parse(&off).unwrap();
}

#[test]
fn a_router_on_the_uplink_is_a_mac_address_and_may_have_another_vlan() {
    let on_uplink = |lines: &str| {
        steered(lines)
            .replacen("incoming = \"eth2\"", "incoming = \"eth1\"", 1)
            .replacen("[host]", "[host]\nvlan = 10", 1)
    };
    for (lines, vlan) in [("", VlanTags::UNTAGGED), ("vlan = 30", VlanTags::one(30))] {
        let lines = format!("next_hop = \"02:00:5e:10:00:02\"\n{lines}");
        let settings = parse(&on_uplink(&lines)).unwrap();
        let group = &settings.rules.groups()[0];
        assert_eq!((group.vlan, group.path.vlan), (VlanTags::one(10), vlan));
    }
    for (lines, words) in [
        (
            "next_hop = { v4 = \"02:00:5e:10:00:02\", v6 = \"fe80::1\" }\nvlan = 30",
            ["steer.next_hop = \"fe80::1\"", "is the uplink", "MAC"],
        ),
        (
            "next_hop = \"02:00:5e:10:00:02\"\n[host.steer]\nnext_hop = \"fe80::1\"",
            ["host.steer.next_hop = \"fe80::1\"", "is the uplink", "MAC"],
        ),
    ] {
        assert_refused(&on_uplink(lines), &words);
    }
}

/// The site with other lines for the steering of each of its groups, and for all.
fn site(of_groups: [&str; 3], of_all: &str) -> String {
    let [guards, exits, third] = of_groups;
    let all = "next_hop = [\"203.0.113.1\", \"fe80::1\"]\nvlan = 30";
    SITE.replacen("enabled = false", third, 1)
        .replacen(
            "[host.steer]\nvlan = 31",
            &format!("[host.steer]\n{exits}"),
            1,
        )
        .replacen(
            "vlan = 10\n",
            &format!("vlan = 10\n[host.steer]\n{guards}\n"),
            1,
        )
        .replacen(all, of_all, 1)
}

#[test]
fn groups_inherit_steering_key_by_key_and_share_next_hops() {
    let both = "next_hop = [\"203.0.113.1\", \"fe80::1\"]";
    let tagged = format!("{both}\nvlan = 30\npcp = 5");
    let not = ["-", "-"];
    type Row<'r> = ([&'r str; 3], &'r str, [[&'r str; 2]; 3], usize);
    let table: [Row<'_>; 8] = [
        // Every group has the same two.
        (["", "", ""], both, [["203.0.113.1", "fe80::1"]; 3], 2),
        (
            ["", "vlan = 31", "vlan = []"],
            &tagged,
            [
                ["203.0.113.1 (VLAN 30)", "fe80::1 (VLAN 30)"],
                ["203.0.113.1 (VLAN 31)", "fe80::1 (VLAN 31)"],
                ["203.0.113.1", "fe80::1"],
            ],
            6,
        ),
        (
            ["enabled = false", "", "next_hop = \"203.0.113.1\""],
            both,
            [not, ["203.0.113.1", "fe80::1"], ["203.0.113.1", "-"]],
            2,
        ),
        (
            ["", "next_hop = { v6 = \"fe80::2\" }", ""],
            &tagged,
            [
                ["203.0.113.1 (VLAN 30)", "fe80::1 (VLAN 30)"],
                ["-", "fe80::2 (VLAN 30)"],
                ["203.0.113.1 (VLAN 30)", "fe80::1 (VLAN 30)"],
            ],
            3,
        ),
        // A group has next hops, the others have none.
        (
            ["", "next_hop = \"203.0.113.9\"\nvlan = [200, 9]", ""],
            "",
            [not, ["203.0.113.9 (VLAN 200.9)", "-"], not],
            1,
        ),
        // All are switched off, and one on again.
        (
            ["", "enabled = true", ""],
            &format!("enabled = false\n{both}"),
            [not, ["203.0.113.1", "fe80::1"], not],
            2,
        ),
        (
            ["", "", ""],
            &format!("enabled = false\n{both}"),
            [not; 3],
            0,
        ),
        (["enabled = false"; 3], "", [not; 3], 0),
    ];
    for (of_groups, of_all, expected, count) in table {
        let text = site(of_groups, of_all);
        let settings = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let groups = settings.rules.groups().iter();
        let found: Vec<_> = groups.map(|group| next_hops(&settings, group)).collect();
        assert_eq!(found, expected, "{text}");
        let next_hops = &settings.incoming().unwrap().next_hops;
        assert_eq!(next_hops.len(), count, "{text}");
    }
    let settings = parse(&site(["pcp = 0", "", "vlan = []"], &tagged)).unwrap();
    let priorities: Vec<_> = settings
        .rules
        .groups()
        .iter()
        .map(|one| one.path.priority)
        .collect();
    assert_eq!(priorities, [Some(0), Some(5), Some(5)]);
}

#[test]
fn impossible_steering_of_a_group_is_refused_by_key_and_group() {
    let mac = "next_hop = \"02:00:5e:10:00:02\"";
    for (of_groups, of_all, words) in [
        (
            ["", "next_hop = [\"fe80::1\", \"fe80::2\"]", ""],
            mac,
            &[
                "host.steer.next_hop = \"fe80::2\" (group \"exits\")",
                "second",
                "IPv6",
            ][..],
        ),
        (
            ["", "next_hop = \"router\"", ""],
            mac,
            &["host.steer.next_hop = \"router\" (group \"exits\")"],
        ),
        (
            ["vlan = 4095", "", ""],
            mac,
            &["host.steer.vlan = 4095 (group \"guards\")", "1 to 4094"],
        ),
        (
            ["", "", "pcp = 8"],
            mac,
            &["host.steer.pcp = 8 (group \"host-3\")", "0 to 7"],
        ),
        (
            ["", "", "pcp = 1"],
            mac,
            &["host.steer.pcp = 1 (group \"host-3\")", "steer.vlan"],
        ),
        (
            ["", "", "vlan = []\npcp = 1"],
            &format!("{mac}\nvlan = 30"),
            &["host.steer.pcp = 1 (group \"host-3\")", "steer.vlan"],
        ),
        (
            ["", "", ""],
            &format!("{mac}\npcp = 1"),
            &["steer.pcp = 1: ", "steer.vlan"],
        ),
        (
            ["", "", ""],
            "",
            &["ports.incoming = \"eth2\"", "steer.next_hop"],
        ),
        // Addresses of another group.
        (
            ["next_hop = \"192.0.2.128\"", "", ""],
            mac,
            &[
                "host.steer.next_hop = \"192.0.2.128\" (group \"guards\")",
                "is the Tor host",
            ],
        ),
        (
            ["", "", ""],
            "next_hop = \"2001:db8:1::20\"",
            &["steer.next_hop = \"2001:db8:1::20\": ", "is the Tor host"],
        ),
        (
            ["next_hop = { v6 = \"02:00:5e:10:00:01\" }", "", ""],
            mac,
            &[
                "host.steer.next_hop = \"02:00:5e:10:00:01\" (group \"guards\")",
                "is the Tor host",
            ],
        ),
        (
            ["", "", "vlan = 4\nvlans = 3"],
            mac,
            &["vlans", "`enabled`, `next_hop`, `vlan`, `pcp`"],
        ),
        // A group without next hops would send by the uplink what is to be dropped.
        (
            ["next_hop = \"203.0.113.1\"", "enabled = false", ""],
            "on_unavailable = \"drop\"",
            &[
                "steer.on_unavailable = \"drop\" (group \"host-3\")",
                "no next hop",
                "enabled",
            ],
        ),
    ] {
        assert_refused(&site(of_groups, of_all), words);
    }
    let without = SITE.replacen("incoming = \"eth2\"\n", "", 1);
    let steer = "next_hop = [\"203.0.113.1\", \"fe80::1\"]\nvlan = 30\n";
    let words = &["host.steer.vlan = 31 (group \"exits\")", "ports.incoming"];
    assert_refused(&without.replacen(steer, "", 1), words);
}

#[test]
fn an_ip_version_without_a_next_hop_gives_a_warning() {
    let doubts = |text: &str| -> Vec<String> {
        let doubts = parse(text).unwrap().doubts();
        let is_warning = |doubt: &Objection| !doubt.is_fatal && doubt.kind == "unrouted_family";
        assert!(doubts.iter().all(is_warning));
        doubts.iter().map(|doubt| doubt.what.to_string()).collect()
    };
    let plain = |of_groups, of_all| doubts(&site(of_groups, of_all).replace("tcp+udp", "tcp"));
    let v4 = "next_hop = \"203.0.113.1\"";
    let v6 = "next_hop = \"fe80::1\"";
    let both = "next_hop = [\"203.0.113.1\", \"fe80::1\"]";
    type Row<'r> = ([&'r str; 3], &'r str, &'r [&'r [&'r str]]);
    // The groups have addresses of both versions, of both, and of IPv4.
    let table: [Row<'_>; 7] = [
        (["", "", ""], both, &[]),
        (
            ["", "", ""],
            v4,
            &[&[
                "steer.next_hop = \"203.0.113.1\" (groups \"guards\", \"exits\")",
                "is an IPv4 address",
                "over IPv6 is not steered and leaves by the uplink, unmarked",
                "dev eth2`",
            ]],
        ),
        (["enabled = false", "enabled = false", ""], v4, &[]),
        (
            ["", "", ""],
            v6,
            &[&[
                "(groups \"guards\", \"exits\", \"host-3\")",
                "over IPv4 is not steered",
            ]],
        ),
        (
            ["", "next_hop = { v4 = \"02:00:5e:10:00:02\" }", ""],
            both,
            &[&[
                "host.steer.next_hop = \"02:00:5e:10:00:02\" (group \"exits\")",
                "is for IPv4 only",
                "over IPv6",
            ]],
        ),
        (
            ["", "", "next_hop = \"203.0.113.1\""],
            "",
            &[
                &[
                    "steer.next_hop = [] (groups \"guards\", \"exits\")",
                    "over IPv4",
                ],
                &[
                    "steer.next_hop = [] (groups \"guards\", \"exits\")",
                    "over IPv6",
                ],
            ],
        ),
        (
            ["", "", ""],
            "next_hop = \"203.0.113.1\"\non_unavailable = \"drop\"",
            &[&["over IPv6 is not steered and is dropped"]],
        ),
    ];
    for (of_groups, of_all, expected) in table {
        let found = plain(of_groups, of_all);
        assert_eq!(
            found.len(),
            expected.len(),
            "{of_groups:?} {of_all}: {found:?}"
        );
        for (text, words) in found.iter().zip(expected) {
            for word in *words {
                assert!(text.contains(word), "no `{word}` in: {text}");
            }
        }
    }
    // Of many groups, a few are named.
    let mut hosts = String::new();
    for number in 1..=6 {
        hosts += &format!("[[host]]\naddresses = [\"2001:db8::{number}\"]\n");
    }
    let all = SITE.find("[[host]]").unwrap()..SITE.find("[mark]").unwrap();
    let many = SITE.replace(&SITE[all], &hosts);
    let found = doubts(&many.replacen(both, v4, 1));
    let named = "(groups \"host-1\", \"host-2\", \"host-3\", \"host-4\" and 2 more)";
    assert!(found.len() == 1 && found[0].contains(named), "{found:?}");
}

#[test]
fn warnings_name_their_groups() {
    let doubts = |text: &str| -> Vec<String> {
        let doubts = parse(text).unwrap().doubts();
        doubts.iter().map(|doubt| doubt.what.to_string()).collect()
    };
    let found = doubts(SITE);
    let words = "host.mark.protocols = \"tcp+udp\" (group \"exits\"): ";
    assert!(found.len() == 1 && found[0].starts_with(words), "{found:?}");
    // One group that is only counted is not the box.
    let strip = SITE.replace("audit", "enforce").replace("tcp+udp", "tcp");
    assert_eq!(doubts(&strip), [""; 0]);
    let all = strip
        .replace("dscp = \"af12\"", "at_uplink = \"strip\"")
        .replace("[steer]", "[steer]\nenabled = false");
    let found = doubts(&all.replace("[host.steer]\nvlan = 31\n", ""));
    let words = "mark.at_uplink = \"strip\": no frame leaves marked, and none is steered";
    assert!(found.len() == 1 && found[0].starts_with(words), "{found:?}");
}
