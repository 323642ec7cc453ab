//! `[[host]]`: several groups of hosts, each with its own policy.

use exitmark_box::settings::{Settings, SettingsError};
use exitmark_policy::packet::{Dscp, VlanTags};
use exitmark_policy::{
    AtUplink, ClassifyBy, Endpoint, EndpointSet, ExitProtocols, Group, IMAGE_BYTES, Listener,
    MAX_ENDPOINTS, Mode, Snapshot, image,
};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

/// Two groups with names, and one without.
pub(super) const SITE: &str = "\
mode = \"audit\"
[ports]
host = \"eth0\"
uplink = \"eth1\"
incoming = \"eth2\"
[[host]]
name = \"guards\"
addresses = [\"192.0.2.10\", \"2001:db8:1::10\"]
listeners = [22, 443]
exempt = [\"203.0.113.0/24\"]
vlan = 10
[[host]]
name = \"exits\"
addresses = [\"192.0.2.64/27\"]
relay_addresses = [\"2001:db8:1::20\"]
listeners = [22, \"[2001:db8:1::20]:9001\"]
resolvers = [\"9.9.9.9\"]
mac = \"02:00:5e:10:00:01\"
vlan = [200, 11]
mark = { dscp = \"le\", protocols = \"tcp+udp\" }
[host.steer]
vlan = 31
[[host]]
addresses = [\"192.0.2.128\"]
resolvers = \"any\"
[host.mark]
tos = 0x20
at_uplink = \"strip\"
[host.steer]
enabled = false
[mark]
dscp = \"af12\"
[steer]
next_hop = [\"203.0.113.1\", \"fe80::1\"]
vlan = 30
[relays]
consensus = [\"cached-consensus\"]
";

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// The site with one text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(SITE.contains(from), "the table is out of date: {from}");
    SITE.replacen(from, to, 1)
}

fn assert_refused(text: &str, words: &[&str], of: &str) {
    let Err(error) = parse(text) else {
        panic!("`{of}` was accepted");
    };
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{of}: no `{word}` in: {error}");
    }
}

#[test]
fn each_group_has_its_keys_and_inherits_the_others() {
    let settings = parse(SITE).unwrap();
    let rules = &settings.rules;
    let names: Vec<_> = rules.groups().iter().map(|group| &*group.name).collect();
    assert_eq!(names, ["guards", "exits", "host-3"]);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for (text, group, is_of_relay) in [
        ("192.0.2.10", 0, false),
        ("2001:db8:1::10", 0, false),
        ("192.0.2.95", 1, false),
        ("2001:db8:1::20", 1, true),
        ("192.0.2.128", 2, false),
    ] {
        let owner = rules.owner(address(text)).unwrap();
        let found = (owner.group().index(), owner.is_of_relay());
        assert_eq!(found, (Some(group), is_of_relay), "{text}");
        let nets = settings.host_prefixes.iter();
        assert_eq!(nets.filter(|net| net.contains(&address(text))).count(), 1);
    }
    assert_eq!(settings.host_prefixes.len(), 5);

    let of_each = |read: fn(&Group) -> String| -> Vec<_> {
        let groups = rules.groups().iter();
        groups.map(read).collect()
    };
    assert_eq!(
        of_each(|group| group.actions.mark().to_string()),
        ["af12 (12)", "le (1)", "cs1 (8)"]
    );
    assert_eq!(
        of_each(|group| group.vlan.to_string()),
        ["VLAN 10", "VLAN 200.11", "untagged"]
    );
    let [guards, exits, third] = rules.groups() else {
        panic!("{rules:?}");
    };
    let protocols = [guards, exits, third].map(|group| group.exit_protocols);
    assert_eq!(
        protocols,
        [
            ExitProtocols::Tcp,
            ExitProtocols::TcpUdp,
            ExitProtocols::Tcp
        ]
    );
    let at_uplink = [guards, exits, third].map(|group| group.actions.intent().at_uplink);
    assert_eq!(at_uplink, [AtUplink::Keep, AtUplink::Keep, AtUplink::Strip]);
    assert!([guards, exits, third].map(|group| group.actions.mode()) == [Mode::Audit; 3]);
    let macs = [guards, exits, third].map(|group| group.mac.map(|mac| mac.to_string()));
    assert_eq!(macs, [None, Some("02:00:5e:10:00:01".to_owned()), None]);
    let endpoint = Listener::Endpoint("[2001:db8:1::20]:9001".parse().unwrap());
    assert_eq!(*guards.listeners, [Listener::Port(22), Listener::Port(443)]);
    assert_eq!(*exits.listeners, [Listener::Port(22), endpoint]);
    assert_eq!(*third.listeners, []);
    let resolvers = [guards, exits, third].map(|group| {
        ["9.9.9.9", "2001:db8::53"].map(|server| group.resolvers.contains(address(server)))
    });
    assert_eq!(resolvers, [[false, false], [true, false], [true, true]]);
    let exempt = [guards, exits, third].map(|group| group.exempt.contains(address("203.0.113.7")));
    assert_eq!(exempt, [true, false, false]);
    assert_eq!(exits.vlan, VlanTags::pair(200, 11));
}

#[test]
fn one_group_is_called_host_and_several_by_their_numbers() {
    let names = |text: &str| -> Vec<String> {
        let settings = parse(text).unwrap();
        let groups = settings.rules.groups().iter();
        groups.map(|group| group.name.clone()).collect()
    };
    assert_eq!(names(super::GOOD), ["host"]);
    let named = super::GOOD.replace("[host]", "[host]\nname = \"a-1\"");
    assert_eq!(names(&named), ["a-1"]);
    assert_eq!(
        names(&super::GOOD.replace("[host]", "[[host]]")),
        ["host-1"]
    );
    let unnamed = with("name = \"guards\"\n", "").replace("name = \"exits\"\n", "");
    assert_eq!(names(&unnamed), ["host-1", "host-2", "host-3"]);
}

/// Texts of the site, each with replacements that are refused, and words of the refusal.
const REFUSALS: &[(&str, &[super::Refusal])] = &[
    (
        "name = \"exits\"",
        &[
            (
                "name = \"\"",
                &["host.name = \"\"", "group 2", "at most 32"],
            ),
            (
                "name = \"Exits\"",
                &["host.name = \"Exits\"", "group 2", "a to z"],
            ),
            ("name = \"a b\"", &["host.name = \"a b\"", "a to z"]),
            ("name = \"a.b\"", &["host.name = \"a.b\"", "a to z"]),
            (
                "name = \"0123456789-0123456789-0123456789a\"",
                &["host.name", "at most 32"],
            ),
            (
                "name = \"guards\"",
                &["host.name = \"guards\"", "group 1 and of group 2"],
            ),
            (
                "name = \"host-3\"",
                &["host.name = \"host-3\"", "group 2 and of group 3", "number"],
            ),
            ("name = 2", &["name = 2", "expected a string"]),
            // An unknown key: with its line, and the keys of that table.
            (
                "names = \"exits\"",
                &["names = \"exits\"", "`relay_addresses`", "`vlan`"],
            ),
        ],
    ),
    (
        "addresses = [\"192.0.2.64/27\"]",
        &[
            (
                "addresses = [\"192.0.2.64/24\"]",
                &[
                    "host.addresses = \"192.0.2.64/24\" (group \"exits\")",
                    "192.0.2.0/24",
                ],
            ),
            (
                "addresses = [\"127.0.0.1\"]",
                &["host.addresses", "127.0.0.1", "(group \"exits\")"],
            ),
            (
                "addresses = [\"2001:db8:1::/64\"]",
                &[
                    "host.relay_addresses",
                    "(group \"exits\")",
                    "overlaps host.addresses",
                ],
            ),
            (
                "addresses = [\"192.0.2.10\"]",
                &[
                    "host.addresses = \"192.0.2.10/32\" (group \"exits\")",
                    "overlaps 192.0.2.10/32 of group \"guards\"",
                    "one group",
                ],
            ),
            (
                "addresses = [\"192.0.2.0/27\"]",
                &[
                    "\"192.0.2.0/27\" (group \"exits\")",
                    "192.0.2.10/32 of group \"guards\"",
                ],
            ),
            (
                "addresses = [\"192.0.2.128/30\", \"192.0.2.64\"]",
                &[
                    "\"192.0.2.128/32\" (group \"host-3\")",
                    "192.0.2.128/30 of group \"exits\"",
                ],
            ),
        ],
    ),
    (
        "relay_addresses = [\"2001:db8:1::20\"]",
        &[(
            "relay_addresses = [\"2001:db8:1::/64\"]",
            &[
                "host.relay_addresses = \"2001:db8:1::/64\" (group \"exits\")",
                "2001:db8:1::10/128 of group \"guards\"",
            ],
        )],
    ),
    (
        "\"[2001:db8:1::20]:9001\"",
        &[
            // An address of another group.
            (
                "\"192.0.2.10:9001\"",
                &["host.listeners", "192.0.2.10:9001", "(group \"exits\")"],
            ),
            (
                "70000",
                &["host.listeners = 70000 (group \"exits\")", "65535"],
            ),
        ],
    ),
    (
        "resolvers = [\"9.9.9.9\"]",
        &[
            (
                "resolvers = [\"::1\"]",
                &["host.resolvers = \"::1\" (group \"exits\")", "\"any\""],
            ),
            (
                "exempt = [\"0.0.0.0/1\"]",
                &["host.exempt", "(group \"exits\")", "% of the Internet"],
            ),
        ],
    ),
    (
        "mac = \"02:00:5e:10:00:01\"",
        &[("mac = \"host\"", &["host.mac = \"host\" (group \"exits\")"])],
    ),
    (
        "vlan = [200, 11]",
        &[
            (
                "vlan = 0",
                &[
                    "host.vlan = 0 (group \"exits\")",
                    "1 to 4094",
                    "[outer, inner]",
                ],
            ),
            (
                "vlan = 4095",
                &["host.vlan = 4095", "1 to 4094", "untagged"],
            ),
            ("vlan = -1", &["host.vlan = -1", "1 to 4094"]),
            (
                "vlan = [200, 4095]",
                &["host.vlan = [200, 4095]", "1 to 4094"],
            ),
            ("vlan = [1, 2, 3]", &["host.vlan = [1, 2, 3]", "two tags"]),
            (
                "vlan = \"11\"",
                &["vlan = \"11\"", "the ID of a VLAN such as 30"],
            ),
            ("vlan = [\"11\"]", &["vlan = [\"11\"]", "expected i64"]),
            (
                "vlan = [200, 11]\nuplink.vlan = 11",
                &[
                    "host.uplink.vlan = 11 (group \"exits\")",
                    "host.vlan, VLAN 200.11,",
                    "changes no tags",
                    "steered",
                    "trunk or access port",
                ],
            ),
            (
                "vlan = [200, 11]\nuplink.vlan = []",
                &["host.uplink.vlan = [] (group \"exits\")", "VLAN 200.11"],
            ),
            (
                "uplink.vlan = 11",
                &["host.uplink.vlan = 11", "host.vlan, untagged,"],
            ),
            (
                "uplink.vlan = 4095",
                &["host.uplink.vlan = 4095 (group", "1 to 4094"],
            ),
            ("uplink.tag = 11", &["tag", "expected `vlan`"]),
        ],
    ),
    (
        "dscp = \"le\"",
        &[
            (
                "dscp = \"af14\"",
                &["host.mark.dscp = \"af14\" (group \"exits\")", "af13"],
            ),
            ("dscp = 64", &["host.mark.dscp = 64", "host.mark.tos"]),
            ("dscp = 0", &["host.mark.dscp = 0", "unmarked"]),
            (
                "dscp = 1, tos = 4",
                &[
                    "host.mark.tos = 0x04 (group \"exits\")",
                    "host.mark.dscp says the same",
                ],
            ),
            (
                "overwrite = true",
                &["overwrite", "`dscp`, `tos`, `protocols`, `at_uplink`"],
            ),
        ],
    ),
    (
        "protocols = \"tcp+udp\"",
        &[("protocols = \"udp\"", &["udp", "`tcp`, `tcp+udp`, `all`"])],
    ),
    (
        "enabled = false",
        &[
            (
                "enabled = \"no\"",
                &["enabled = \"no\"", "expected a boolean"],
            ),
            (
                "on_unavailable = \"drop\"",
                &["on_unavailable = ", "`enabled`, `next_hop`, `vlan`, `pcp`"],
            ),
        ],
    ),
    // The top level's mark is checked although each group may have its own.
    (
        "dscp = \"af12\"",
        &[("dscp = \"af14\"", &["mark.dscp = \"af14\"", "af13"])],
    ),
];

#[test]
fn every_refusal_names_key_group_value_and_remedy() {
    for (from, refusals) in REFUSALS {
        for (to, words) in *refusals {
            assert_refused(&with(from, to), words, to);
        }
    }
}

#[test]
fn what_is_neither_a_table_nor_tables_is_refused() {
    let (before, _) = SITE.split_once("[ports]").unwrap();
    let (_, after) = SITE.split_once("[mark]").unwrap();
    let with = |host: &str| {
        let ports = "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n";
        format!("{before}{host}\n{ports}[mark]{after}")
    };
    for (host, words) in [
        ("", &["host.addresses = []", "clearnet"][..]),
        ("host = []", &["host = []", "[host]", "[[host]]"]),
        (
            "host = 3",
            &["host = 3", "expected the table [host], or [[host]]"],
        ),
        (
            "host = \"a\"",
            &["host = \"a\"", "expected the table [host], or [[host]]"],
        ),
        ("host = [3]", &["host = [3]", "expected struct Host"]),
        (
            "host = [{}]",
            &["host.addresses = [] (group \"host-1\")", "clearnet"],
        ),
        (
            "host = { addres = [] }",
            &["addres", "`addresses`, `relay_addresses`"],
        ),
    ] {
        assert_refused(&with(host), words, host);
    }
}

/// With `classify_by = "host-mark"` one mark is of all hosts.
#[test]
fn the_host_mark_is_the_same_for_all_groups() {
    let with_marks = |guards: &str, exits: &str| {
        let text = with("mode = ", "classify_by = \"host-mark\"\nmode = ");
        text.replace("name = \"guards\"", &format!("name = \"guards\"\n{guards}"))
            .replace("name = \"exits\"", &format!("name = \"exits\"\n{exits}"))
    };
    for (guards, exits, tos) in [
        ("", "", 0x28),
        ("dscp = \"cs1\"", "", 0x20),
        ("", "tos = 0x04", 0x04),
        ("dscp = 8", "tos = 0x20", 0x20),
    ] {
        let settings = parse(&with_marks(guards, exits)).unwrap();
        let mark = Dscp::from_tos(tos).unwrap();
        assert_eq!(settings.rules.classify_by, ClassifyBy::HostMark(mark));
    }
    for (guards, exits, words) in [
        (
            "dscp = 8",
            "tos = 0x04",
            &[
                "host.dscp = le (1) (group \"exits\")",
                "cs1 (8)",
                "group \"guards\"",
            ][..],
        ),
        (
            "",
            "dscp = 64",
            &["host.dscp = 64 (group \"exits\")", "host.tos"],
        ),
    ] {
        assert_refused(&with_marks(guards, exits), words, exits);
    }
    let by_relays = with("name = \"exits\"", "name = \"exits\"\ntos = 0x20");
    let words = &[
        "host.tos = 0x20 (group \"exits\")",
        "host-mark",
        "mark.dscp",
    ];
    assert_refused(&by_relays, words, "tos");
}

/// A site of groups with an address each, and what further lines the function gives for each.
fn many(count: usize, lines: impl Fn(usize) -> String) -> String {
    let mut hosts = String::new();
    for number in 0..count {
        let more = lines(number);
        writeln!(hosts, "[[host]]\naddresses = [\"10.1.0.{number}\"]\n{more}").unwrap();
    }
    super::GOOD.replacen(
        "[host]\naddresses = [\"192.0.2.10\"]\nlisteners = [22]\n",
        &hosts,
        1,
    )
}

#[test]
fn the_limits_are_of_all_groups_together() {
    let v4 = |number: usize| Ipv4Addr::from(0x0a02_0000 + u32::try_from(number).unwrap());
    let v6 = |number: usize| Ipv6Addr::from((0x2001_0db8_u128 << 96) + number as u128);
    // Each group has an equal part of the entries; the last one has one more.
    let split = |key: &str, all: usize, entry: &dyn Fn(usize, usize) -> String| {
        many(4, |group| {
            let entries = (0..all).filter(|at| at % 4 == group);
            let entries: Vec<_> = entries.map(|at| entry(group, at)).collect();
            format!("{key} = [{}]", entries.join(", "))
        })
    };
    let listener = |group: usize, at: usize| format!("\"10.1.0.{group}:{}\"", at + 1);
    let net = |_, at: usize| format!("\"{}\"", v4(at));
    let wide = |_, at: usize| format!("\"{}\"", v6(at));
    // Ports on which not every group listens.
    let port = |_, at: usize| (at + 1).to_string();
    type Entry<'e> = &'e dyn Fn(usize, usize) -> String;
    let table: [(&str, usize, Entry<'_>, &[&str]); 7] = [
        // The group of the address itself has the other four.
        (
            "relay_addresses",
            1020,
            &net,
            &["host.addresses = 1025 entries", "1024", "prefixes"],
        ),
        (
            "relay_addresses",
            1024,
            &wide,
            &["host.addresses = 1025 entries", "one family"],
        ),
        (
            "resolvers",
            256,
            &net,
            &["host.resolvers = 257 entries", "256 of one family"],
        ),
        (
            "exempt",
            1024,
            &net,
            &["host.exempt = 1025 entries", "of all groups"],
        ),
        (
            "exempt",
            1024,
            &wide,
            &["host.exempt = 1025 entries", "of all groups"],
        ),
        (
            "listeners",
            1024,
            &listener,
            &["host.listeners = 1025 entries", "with an address"],
        ),
        (
            "listeners",
            1024,
            &port,
            &["host.listeners = 1025 ports", "every group"],
        ),
    ];
    for (key, limit, entry, words) in table {
        parse(&split(key, limit, entry)).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_refused(&split(key, limit + 1, entry), words, key);
    }
    // The last group is at fault.
    let error = parse(&split("exempt", 1028, &net)).unwrap_err().to_string();
    assert!(error.contains("(group \"host-4\")"), "{error}");
    // Equal lists count for each group.
    let exempt = |count: usize| -> String {
        let nets: Vec<_> = (0..count).map(|at| format!("\"{}\"", v4(at))).collect();
        format!("exempt = [{}]", nets.join(", "))
    };
    parse(&many(64, |_| exempt(16))).unwrap();
    let words = &["host.exempt = 1025 entries (group \"host-64\")"];
    let one_more = many(64, |group| exempt(16 + usize::from(group == 63)));
    assert_refused(&one_more, words, "equal lists");
    // Ports on which every group listens do not count.
    let ports: Vec<_> = (1..=2000).map(|port| port.to_string()).collect();
    let everywhere = |_| format!("listeners = [{}]", ports.join(", "));
    parse(&many(64, everywhere)).unwrap();

    let error = parse(&many(65, |_| String::new())).unwrap_err().to_string();
    for word in ["host = 65 groups", "more than 64"] {
        assert!(error.contains(word), "{error}");
    }
}

/// The largest settings, with the largest relay set, fit the kernel's map.
#[test]
fn the_largest_settings_fit_the_kernels_image() {
    let list = |count: usize, entry: &dyn Fn(usize) -> String| {
        let entries: Vec<_> = (0..count).map(|at| format!("\"{}\"", entry(at))).collect();
        entries.join(", ")
    };
    // Every second address, so that no two are one range.
    let v4 = |base: u32, at: usize| Ipv4Addr::from(base + 2 * u32::try_from(at).unwrap());
    let v6 = |base: u128, at: usize| Ipv6Addr::from((base << 64) + 2 * at as u128);
    let lines = |group: usize| {
        let wide = 0x2001_0db8_0000_0000 + group as u128;
        let base = 0x0a10_0000 + 0x100 * u32::try_from(group).unwrap();
        let both = |count: usize| {
            format!(
                "{}, {}",
                list(count, &|at| v4(base, at).to_string()),
                list(count, &|at| v6(wide, at).to_string())
            )
        };
        let listener = |at: usize| format!("[{}]:{}", v6(wide + (1 << 32), 0), at + 1);
        let ports: Vec<_> = (0..16)
            .map(|at| (100 * group + at + 1).to_string())
            .collect();
        let relay_addresses = format!(
            "{}, {}",
            list(15, &|at| v4(base + 0x80, at).to_string()),
            list(16, &|at| v6(wide + (1 << 32), at).to_string())
        );
        format!(
            "relay_addresses = [{relay_addresses}]\nresolvers = [{}]\nexempt = [{}]\n\
             listeners = [{}, {}]",
            both(4),
            both(16),
            list(16, &listener),
            ports.join(", "),
        )
    };
    let settings = parse(&many(64, lines)).unwrap();
    assert_eq!(settings.host_prefixes.len(), 2048);
    for of_v6 in [0, MAX_ENDPOINTS / 2, MAX_ENDPOINTS] {
        let relays = (0..MAX_ENDPOINTS).map(|at| {
            let address: IpAddr = match at < of_v6 {
                true => v6(0x2001_0db9 << 32, at).into(),
                false => v4(0x0b00_0000, at).into(),
            };
            Endpoint::new(address, 9001)
        });
        let relays = EndpointSet::new(relays).unwrap();
        let image = image(&Snapshot::new(1, Arc::clone(&settings.rules), relays)).unwrap();
        assert_eq!(image.len(), IMAGE_BYTES, "{of_v6} of IPv6");
    }
}

/// The tags at the uplink are those of the hosts: of a group, or of all groups without tags of their
/// own.
#[test]
fn the_tags_at_the_uplink_are_those_of_the_hosts() {
    let own = with(
        "vlan = [200, 11]",
        "vlan = [200, 11]\nuplink.vlan = [200, 11]",
    );
    for (of_all, refused) in [
        ("", None),
        ("[uplink]\n", None),
        // The first group has a tag.
        (
            "[uplink]\nvlan = []\n",
            Some("uplink.vlan = [] (group \"guards\")"),
        ),
        // The third group has none.
        (
            "[uplink]\nvlan = 10\n",
            Some("uplink.vlan = 10 (group \"host-3\")"),
        ),
        (
            "[uplink]\nvlan = 0\n",
            Some("uplink.vlan = 0 (group \"guards\")"),
        ),
    ] {
        match refused {
            None => drop(parse(&format!("{own}{of_all}")).unwrap()),
            Some(words) => assert_refused(&format!("{own}{of_all}"), &[words], of_all),
        }
    }
    let all = own.replace("resolvers = \"any\"", "resolvers = \"any\"\nvlan = 10");
    let settings = parse(&format!("{all}[uplink]\nvlan = 10\n")).unwrap();
    let vlans: Vec<_> = settings
        .rules
        .groups()
        .iter()
        .map(|group| group.vlan)
        .collect();
    assert_eq!(
        vlans,
        [
            VlanTags::one(10),
            VlanTags::pair(200, 11),
            VlanTags::one(10)
        ]
    );
    assert_eq!(
        parse(&all).unwrap().change_to(&settings).keys,
        ["uplink.vlan"]
    );
}

#[test]
fn everything_of_groups_and_steering_changes_by_a_reload() {
    let third = "[[host]]\naddresses = [\"192.0.2.128\"]";
    let all = SITE.find("[[host]]").unwrap()..SITE.find("[mark]").unwrap();
    let one = SITE.replace(&SITE[all], "[host]\naddresses = [\"192.0.2.10\"]\n");
    let table: &[(&str, &str, &[&str])] = &[
        (SITE, SITE, &[]),
        (
            SITE,
            &with("listeners = [22, 443]", "listeners = [22]"),
            &["host.guards.listeners"],
        ),
        (SITE, &with("vlan = 10\n", ""), &["host.guards.vlan"]),
        (
            SITE,
            &with("vlan = [200, 11]", "vlan = [11]"),
            &["host.exits.vlan"],
        ),
        (
            SITE,
            &with("vlan = 10\n", "vlan = 10\nuplink = { vlan = 10 }\n"),
            &["host.guards.uplink.vlan"],
        ),
        // One tag, given as a list.
        (SITE, &with("vlan = 10\n", "vlan = [10]\n"), &[]),
        (
            SITE,
            &with("dscp = \"le\"", "dscp = \"af13\""),
            &["host.exits.mark.dscp"],
        ),
        (
            SITE,
            &with("vlan = 31", "vlan = 32\npcp = 1"),
            &["host.exits.steer.pcp", "host.exits.steer.vlan"],
        ),
        (
            SITE,
            &with("enabled = false", "next_hop = { v4 = \"203.0.113.9\" }"),
            &["host.host-3.steer.enabled", "host.host-3.steer.next_hop"],
        ),
        (
            SITE,
            &with("mac = \"02:00:5e:10:00:01\"\n", ""),
            &["host.exits.mac"],
        ),
        // Another name is another group.
        (
            SITE,
            &with("\"exits\"", "\"fast\""),
            &["host.exits", "host.fast"],
        ),
        (
            SITE,
            &with(
                third,
                &format!("name = \"third\"\n{third}")
                    .replace("name = \"third\"\n[[host]]", "[[host]]\nname = \"third\""),
            ),
            &["host.host-3", "host.third"],
        ),
        (
            SITE,
            &with("[mark]", "[[host]]\naddresses = [\"192.0.2.200\"]\n[mark]"),
            &["host.host-4"],
        ),
        (
            &one,
            &one.replace("[host]", "[host]\nvlan = 5"),
            &["host.vlan"],
        ),
        (&one, &one.replace("[host]", "[[host]]"), &["host"]),
        (&one, SITE, &["host"]),
        (
            SITE,
            &with(
                "next_hop = [\"203.0.113.1\", \"fe80::1\"]\nvlan = 30",
                "next_hop = \"02:00:5e:10:00:02\"\npcp = 7",
            ),
            &["steer.next_hop", "steer.pcp", "steer.vlan"],
        ),
        (
            SITE,
            &with("[steer]", "[steer]\nenabled = false"),
            &["steer.enabled"],
        ),
    ];
    for (before, after, keys) in table {
        let change = parse(before).unwrap().change_to(&parse(after).unwrap());
        assert_eq!(change.keys, *keys, "{after}");
        assert_eq!(change.fixed, [""; 0], "{after}");
    }
    // The order of groups is their numbers.
    let swapped = SITE
        .replace("guards", "x")
        .replace("exits", "guards")
        .replace("\"x\"", "\"exits\"");
    let keys = parse(SITE)
        .unwrap()
        .change_to(&parse(&swapped).unwrap())
        .keys;
    assert!(keys.contains(&"host.guards.vlan".to_owned()), "{keys:?}");
    let (start, rest) = SITE.split_at(SITE.find("[[host]]").unwrap());
    let (guards, rest) = rest.split_at(rest.find("[[host]]\nname = \"exits\"").unwrap());
    let (exits, rest) = rest.split_at(rest.find("[[host]]\naddresses").unwrap());
    let moved = format!("{start}{exits}{guards}{rest}");
    let keys = parse(SITE).unwrap().change_to(&parse(&moved).unwrap()).keys;
    assert_eq!(keys, ["host"]);
    // The names of NICs do not change.
    let change = with("\"eth2\"", "\"eth3\"");
    let change = parse(SITE).unwrap().change_to(&parse(&change).unwrap());
    assert_eq!(
        (change.keys, change.fixed),
        (
            vec!["ports.incoming".to_owned()],
            vec!["ports.incoming".to_owned()]
        )
    );
}

#[test]
fn a_summary_has_the_number_of_groups_and_their_marks() {
    let summary = parse(SITE).unwrap().summary();
    assert_eq!(
        summary,
        "mode audit, eth0 and eth1 are a wire, relay traffic by eth2 to 4 next hops, 3 groups, \
         marks le (1), cs1 (8), af12 (12)"
    );
    // Two groups have the same mark.
    let summary = parse(&with("tos = 0x20\n", "")).unwrap().summary();
    assert!(summary.ends_with(" marks le (1), af12 (12)"), "{summary}");
    let summary = |from: &str, to: &str| {
        let text = super::GOOD.replacen(from, to, 1);
        parse(&text).unwrap().summary()
    };
    for (to, words) in [
        (
            "\"02:00:5e:10:00:02\"",
            "to 02:00:5e:10:00:02, mark af11 (10)",
        ),
        (
            "\"203.0.113.1\"\nvlan = 30",
            "to 203.0.113.1 (VLAN 30), mark",
        ),
        (
            "[\"203.0.113.1\", \"fe80::1\"]",
            "to 203.0.113.1 and fe80::1, mark",
        ),
        (
            "\"203.0.113.1\"\nenabled = false",
            "by eth2 to no next hop, mark",
        ),
    ] {
        let text = summary("\"02:00:5e:10:00:02\"", to);
        assert!(text.contains(words), "{text}");
    }
}
