//! Tier: any machine. An invalid configuration is refused with the key, the value, and the accepted
//! values.

#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

#[path = "settings/connect.rs"]
mod connect;
#[path = "settings/effective.rs"]
mod effective;
#[path = "settings/groups.rs"]
mod groups;
#[path = "settings/source.rs"]
mod source;
#[path = "settings/steering.rs"]
mod steering;
#[path = "settings/tap.rs"]
mod tap;
#[path = "settings/together.rs"]
mod together;
#[path = "settings/wires.rs"]
mod wires;

use exitmark_box::settings::{Settings, WhenStale};
use exitmark_policy::ClassifyBy;
use exitmark_policy::packet::Dscp;
use exitmark_relays::{Authorities, Trust};
use std::path::Path;
use std::time::Duration;

const GOOD: &str = "\
[ports]
host = \"eth0\"
uplink = \"eth1\"
incoming = \"eth2\"
[host]
addresses = [\"192.0.2.10\"]
listeners = [22]
[mark]
at_uplink = \"keep\"
[steer]
next_hop = \"02:00:5e:10:00:02\"
[relays]
extra = [\"198.51.100.1:9001\"]
[datapath]
ring = 2048
";

/// A text, and words that the refusal of the configuration must have.
type Refusal = (&'static str, &'static [&'static str]);

/// Texts of the good configuration, each with replacements that are refused.
const REPLACEMENTS: &[(&str, &[Refusal])] = &[
    (
        "ring = 2048",
        &[
            ("rings = 2048", &["rings", "expected", "ring", "batch"]),
            ("ring = \"big\"", &["ring", "big"]),
            ("frags = \"some\"", &["some", "auto", "on", "off"]),
            ("inbound = \"tcp\"", &["tcp", "auto", "af_xdp", "xdp"]),
            ("ring = 1000", &["datapath.ring", "1024"]),
            (
                "ring = 64\nbatch = 128",
                &["datapath.batch", "datapath.ring"],
            ),
            ("spin = 1001", &["datapath.spin", "0 to 1000"]),
        ],
    ),
    ("[steer]", &[("[steering]", &["steering", "expected"])]),
    (
        "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n",
        &[("", &["ports"])],
    ),
    (
        "listeners = [22]",
        &[
            ("resolvers = [\"0.0.0.0\"]", &["host.resolvers", "0.0.0.0"]),
            (
                "resolvers = [\"255.255.255.255\"]",
                &["host.resolvers", "255.255.255.255"],
            ),
            (
                "relay_addresses = [\"192.0.2.0/24\"]",
                &["host.relay_addresses", "host.addresses"],
            ),
            ("listeners = [70000]", &["host.listeners", "65535"]),
            ("listeners = [0]", &["host.listeners", "0"]),
            (
                "listeners = [\"ssh\"]",
                &["host.listeners", "ssh", "192.0.2.1:9001"],
            ),
        ],
    ),
    (
        "host = \"eth0\"",
        &[
            ("host = \"\"", &["ports.host", "missing"]),
            (
                concat!(
                    "host = \"",
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                    "\""
                ),
                &["ports.host", "at most 15 bytes", "127"],
            ),
        ],
    ),
    (
        "uplink = \"eth1\"",
        &[("uplink = \"eth0\"", &["ports.uplink", "two ends"])],
    ),
    (
        "incoming = \"eth2\"",
        &[
            ("incoming = \"eth0\"", &["ports.incoming", "ports.host"]),
            ("", &["steer.next_hop", "ports.incoming"]),
        ],
    ),
    (
        "next_hop = \"02:00:5e:10:00:02\"",
        &[("", &["ports.incoming", "steer.next_hop"])],
    ),
    (
        "02:00:5e:10:00:02",
        &[
            ("ff:ff:ff:ff:ff:ff", &["steer.next_hop", "broadcast"]),
            ("router", &["steer.next_hop", "02:00:5e", "203.0.113.1"]),
        ],
    ),
    (
        "[\"192.0.2.10\"]",
        &[("[]", &["host.addresses", "clearnet"])],
    ),
    (
        "192.0.2.10",
        &[
            (
                "192.0.2.300",
                &["host.addresses", "192.0.2.300", "2001:db8"],
            ),
            ("192.0.2.10/24", &["host.addresses", "192.0.2.0/24"]),
            ("127.0.0.1", &["host.addresses", "127.0.0.1"]),
            ("::ffff:192.0.2.10", &["host.addresses", "write 192.0.2.10"]),
        ],
    ),
    (
        "198.51.100.1:9001",
        &[
            ("0.0.0.0:9001", &["relays.extra", "0.0.0.0:9001"]),
            ("[ff02::1]:9001", &["relays.extra", "ff02::1"]),
            (
                "[::ffff:198.51.100.1]:9001",
                &["relays.extra", "write 198.51.100.1"],
            ),
            ("198.51.100.1:0", &["relays.extra"]),
        ],
    ),
    (
        "extra = [\"198.51.100.1:9001\"]",
        &[
            ("", &["relays.consensus", "cached-microdesc-consensus"]),
            (
                "consensus = [\"/var/lib/tor/unverified-microdesc-consensus\"]",
                &[
                    "relays.consensus",
                    "unverified-microdesc-consensus",
                    "cached-",
                ],
            ),
            (
                "consensus = [\"a\", \"b\", \"a\"]",
                &["relays.consensus", "\"a\"", "twice"],
            ),
            (
                "consensus = [\"*/a\", \"*/b\", \"*/a\"]",
                &["relays.consensus", "\"*/a\"", "twice"],
            ),
            (
                "consensus = [\"/srv/**/cached-consensus\"]",
                &["relays.consensus", "/srv/**/", "within one name"],
            ),
            (
                "consensus = [\"/srv/[a/cached-consensus\"]",
                &["relays.consensus", "/srv/[a/", "`[[]`"],
            ),
            (
                "consensus = [\"/srv/*/unverified-consensus\"]",
                &["relays.consensus", "unverified-consensus", "cached-"],
            ),
            (
                "consensus = [\"/srv/*/relays.*\"]\nstate = \"/srv/a/relays.state\"",
                &["relays.state", "/srv/a/relays.state", "own file"],
            ),
            (
                "consensus = [\"*/a\"]\ncertificates = \"c\"\nstate = \"c\"",
                &["relays.state", "own file"],
            ),
            (
                "consensus = [\"a\"]\nauthorities = []",
                &["relays.authorities", "[]", "Tor network"],
            ),
            (
                "consensus = [\"a\"]\nauthorities = [\"moria1\"]",
                &["relays.authorities", "moria1", "40 hexadecimal digits"],
            ),
            (
                "consensus = [\"a\"]\nverify = false\nauthorities = [\"F533C81CEF0BC0267857C99B2F471ADF249FA232\"]",
                &["relays.authorities", "relays.verify = false"],
            ),
            (
                "consensus = [\"a\"]\nretain = \"28\"",
                &["relays.retain", "\"28\"", "28h"],
            ),
            (
                "consensus = [\"a\"]\nretain = \"31days\"",
                &["relays.retain", "30 days"],
            ),
            (
                "consensus = [\"a\"]\nwhen_stale = \"drop\"",
                &["drop", "keep", "pass"],
            ),
        ],
    ),
];

/// Texts of the good configuration, each with lines before it that are refused.
const ADDITIONS: &[(&str, &[Refusal])] = &[
    (
        "[ports]",
        &[
            ("engine = \"dpdk\"", &["dpdk", "af_xdp", "xdp", "auto"]),
            (
                "pin.directory = \"bpf\"",
                &["pin.directory", "bpf", "/sys/fs/bpf/exitmark"],
            ),
            (
                "pin.directory = \"/sys/fs/bpf/exit.mark\"",
                &["pin.directory", "dots"],
            ),
            ("pin.on_stop = \"halt\"", &["halt", "keep", "detach"]),
            ("mode = \"maybe\"", &["maybe", "audit", "enforce"]),
            (
                "classify_by = \"guess\"",
                &["guess", "relay-set", "host-mark"],
            ),
        ],
    ),
    (
        "listeners = [22]",
        &[
            (
                "dscp = \"cs1\"",
                &["host.dscp", "cs1", "classify_by", "host-mark", "mark.dscp"],
            ),
            ("dscp = 8", &["host.dscp", "8", "host-mark"]),
            ("tos = 0x20", &["host.tos", "0x20", "host-mark"]),
        ],
    ),
    (
        "at_uplink",
        &[
            ("dscp = \"af14\"", &["mark.dscp", "af14", "af13"]),
            ("dscp = 64", &["mark.dscp", "64", "mark.tos"]),
            ("dscp = 0", &["mark.dscp", "unmarked"]),
            ("tos = 0x29", &["mark.tos", "0x29", "0x28"]),
            ("tos = 0x28\ndscp = 10", &["mark.tos", "mark.dscp"]),
        ],
    ),
];

#[test]
fn the_good_configuration_is_accepted() {
    Settings::parse(GOOD, Path::new("")).unwrap();
}

fn assert_refused(from: &str, to: &str, words: &[&str]) {
    assert!(GOOD.contains(from), "the table is out of date: {from}");
    let Err(error) = Settings::parse(&GOOD.replacen(from, to, 1), Path::new("")) else {
        panic!("`{to}` for `{from}` was accepted");
    };
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{to}: no `{word}` in: {error}");
    }
}

#[test]
fn every_refusal_names_key_and_remedy() {
    for (from, refusals) in REPLACEMENTS {
        for (to, words) in *refusals {
            assert_refused(from, to, words);
        }
    }
    for (before, refusals) in ADDITIONS {
        for (lines, words) in *refusals {
            assert_refused(before, &format!("{lines}\n{before}"), words);
        }
    }
}

/// With `classify_by = "host-mark"` no relay set is needed, and the mark is parsed like the box's.
#[test]
fn the_hosts_mark_is_read_and_refused_like_the_boxs() {
    let read = |lines: &str| {
        let text = GOOD
            .replace("[ports]", "classify_by = \"host-mark\"\n[ports]")
            .replace("listeners = [22]", lines)
            .replace("extra = [\"198.51.100.1:9001\"]", "");
        Settings::parse(&text, Path::new("")).map(|settings| settings.rules.classify_by)
    };
    for (lines, tos) in [
        ("", 0x28),
        ("dscp = \"cs1\"", 0x20),
        ("dscp = 63", 0xfc),
        ("tos = 0x04", 0x04),
    ] {
        let mark = Dscp::from_tos(tos).unwrap();
        assert_eq!(read(lines).unwrap(), ClassifyBy::HostMark(mark), "{lines}");
    }
    for (lines, words) in [
        ("dscp = \"af14\"", &["host.dscp", "af14", "af13"][..]),
        ("dscp = 64", &["host.dscp", "64", "host.tos"]),
        ("dscp = -1", &["host.dscp", "-1", "host.tos"]),
        ("dscp = 0", &["host.dscp", "unmarked"]),
        ("dscp = \"cs0\"", &["host.dscp", "unmarked"]),
        ("tos = 0", &["host.tos", "unmarked"]),
        ("tos = 256", &["host.tos", "256"]),
        ("tos = 0x29", &["host.tos", "0x29", "0x28"]),
        (
            "tos = 0x28\ndscp = 10",
            &["host.tos", "0x28", "host.dscp says the same"],
        ),
    ] {
        let error = read(lines).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{lines}: no `{word}` in: {error}");
        }
    }
}

/// Lists that exceed the size of a BPF map are refused with their key.
#[test]
fn lists_that_are_too_long_are_refused_by_key() {
    let list = |count: usize, entry: &dyn Fn(usize) -> String| {
        let entries: Vec<_> = (0..count).map(|n| format!("\"{}\"", entry(n))).collect();
        entries.join(", ")
    };
    let address = |n: usize| format!("10.0.{}.{}", n / 256, n % 256);
    let listener = |n: usize| format!("192.0.2.10:{}", n + 1);
    for (key, limit, entry) in [
        ("resolvers", 256, &address as &dyn Fn(usize) -> String),
        ("exempt", 1024, &address),
        ("listeners", 1024, &listener),
    ] {
        let with = |count| {
            let text = format!("listeners = [{}]", list(count, entry));
            let line = text.replacen("listeners", key, 1);
            let text = match key {
                "listeners" => GOOD.replacen("listeners = [22]", &line, 1),
                _ => GOOD.replacen("listeners = [22]", &format!("listeners = [22]\n{line}"), 1),
            };
            Settings::parse(&text, Path::new(""))
        };
        with(limit).unwrap_or_else(|error| panic!("{key}: {error}"));
        let error = with(limit + 1).unwrap_err().to_string();
        let words = [
            format!("host.{key}"),
            (limit + 1).to_string(),
            limit.to_string(),
        ];
        for word in words {
            assert!(error.contains(&word), "{error}");
        }
    }
}

#[test]
fn relative_paths_start_from_the_file() {
    let text = GOOD.replace(
        "extra",
        "consensus = [\"cached-consensus\", \"/abs\"]\nextra",
    );
    let settings = Settings::parse(&text, Path::new("/etc/exitmark")).unwrap();
    let files: Vec<_> = settings
        .relays
        .sources
        .files
        .iter()
        .map(|source| [&source.consensus, &source.certificates])
        .collect();
    assert_eq!(
        files,
        [
            [
                Path::new("/etc/exitmark/cached-consensus"),
                Path::new("/etc/exitmark/cached-certs")
            ],
            [Path::new("/abs"), Path::new("/cached-certs")]
        ]
    );
    let text = text.replace("extra", "certificates = \"certs\"\nstate = \"s\"\nextra");
    let relays = Settings::parse(&text, Path::new("/etc/exitmark"))
        .unwrap()
        .relays;
    assert_eq!(relays.state, Path::new("/etc/exitmark/s"));
    for source in relays.sources.files {
        assert_eq!(source.certificates, Path::new("/etc/exitmark/certs"));
    }
}

#[test]
fn documents_can_be_named_by_patterns() {
    let with = |lines: &str| {
        let text = GOOD.replace("extra", &format!("{lines}extra"));
        Settings::parse(&text, Path::new("/etc/exit[mark]"))
    };
    let names = "consensus = [\"cached-consensus\", \"*/cached-c*\", \"/srv/?/x\"]\n";
    let sources = with(names).unwrap().relays.sources;
    assert_eq!(sources.files.len(), 1);
    let paths: Vec<_> = sources.patterns.iter().map(|one| one.path()).collect();
    assert_eq!(
        paths,
        [
            Path::new("/etc/exit[mark]/*/cached-c*"),
            Path::new("/srv/?/x")
        ]
    );
    for (path, expected) in [
        ("/etc/exit[mark]/cached-consensus", true),
        ("/etc/exit[mark]/a/cached-consensus", true),
        ("/etc/exitm/a/cached-consensus", false),
        ("/srv/a/x", true),
        ("/srv/ab/x", false),
    ] {
        assert_eq!(sources.names(Path::new(path)), expected, "{path}");
    }
    let many: String = (0..65).map(|number| format!("\"{number}\", ")).collect();
    let error = with(&format!("consensus = [{many}]\n"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("65 entries") && error.contains("64"),
        "{error}"
    );
}

#[test]
fn relay_sets_are_verified_by_default() {
    let relays = |lines: &str| {
        let text = GOOD.replace("extra", &format!("{lines}extra"));
        Settings::parse(&text, Path::new("/etc/exitmark"))
            .unwrap()
            .relays
    };
    let by_default = relays("");
    assert_eq!(
        by_default.sources.trust,
        Trust::Majority(Authorities::tor_network())
    );
    assert_eq!(by_default.retain, Duration::from_secs(28 * 3600));
    assert_eq!(by_default.when_stale, WhenStale::Pass);
    assert_eq!(
        by_default.state,
        Path::new("/var/lib/exitmark/relays.state")
    );
    assert_eq!(by_default.user, "nobody");
    let otherwise = relays("verify = false\nretain = \"90min\"\nwhen_stale = \"keep\"\n");
    assert_eq!(otherwise.sources.trust, Trust::Unverified);
    assert_eq!(otherwise.retain, Duration::from_secs(90 * 60));
    assert_eq!(otherwise.when_stale, WhenStale::Keep);
}

#[test]
fn rings_are_small_by_default_if_few_frames_go_through_them() {
    for (given, serves_all, expected) in [
        ("", true, (2048, 256)),
        ("", false, (512, 64)),
        ("ring = 64", true, (64, 64)),
        ("ring = 64", false, (64, 64)),
        ("ring = 4096", false, (4096, 64)),
        ("batch = 200", false, (512, 200)),
        ("ring = 128\nbatch = 1", true, (128, 1)),
    ] {
        let text = GOOD.replace("ring = 2048", given);
        let settings = Settings::parse(&text, Path::new("")).unwrap();
        let sizes = settings.datapath.rings(serves_all);
        assert_eq!((sizes.ring, sizes.batch), expected, "{given} {serves_all}");
    }
}
