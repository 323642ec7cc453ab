//! Tier: any machine. An invalid configuration is refused with the key, the value, and the accepted
//! values.

#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

#[path = "settings/together.rs"]
mod together;

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

/// (the fault, the good text, its replacement, words that the refusal must have)
const REFUSALS: [(&str, &str, &str, &[&str]); 55] = [
    (
        "unknown key",
        "ring = 2048",
        "rings = 2048",
        &["rings", "expected", "ring", "batch"],
    ),
    (
        "unknown table",
        "[steer]",
        "[steering]",
        &["steering", "expected"],
    ),
    (
        "missing table",
        "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n",
        "",
        &["ports"],
    ),
    (
        "wrong type",
        "ring = 2048",
        "ring = \"big\"",
        &["ring", "big"],
    ),
    (
        "unknown engine",
        "[ports]",
        "engine = \"dpdk\"\n[ports]",
        &["dpdk", "af_xdp", "xdp", "auto"],
    ),
    (
        "pins in no absolute place",
        "[ports]",
        "pin.directory = \"bpf\"\n[ports]",
        &["pin.directory", "bpf", "/sys/fs/bpf/exitmark"],
    ),
    (
        "pins with a dot",
        "[ports]",
        "pin.directory = \"/sys/fs/bpf/exit.mark\"\n[ports]",
        &["pin.directory", "dots"],
    ),
    (
        "unknown way to stop",
        "[ports]",
        "pin.on_stop = \"halt\"\n[ports]",
        &["halt", "keep", "detach"],
    ),
    (
        "unknown frags",
        "ring = 2048",
        "frags = \"some\"",
        &["some", "auto", "on", "off"],
    ),
    (
        "unknown inbound",
        "ring = 2048",
        "inbound = \"tcp\"",
        &["tcp", "auto", "af_xdp", "xdp"],
    ),
    (
        "unknown mode",
        "[ports]",
        "mode = \"maybe\"\n[ports]",
        &["maybe", "audit", "enforce"],
    ),
    (
        "unknown way to classify",
        "[ports]",
        "classify_by = \"guess\"\n[ports]",
        &["guess", "relay-set", "host-mark"],
    ),
    (
        "a host's mark that is not used",
        "listeners = [22]",
        "listeners = [22]\ndscp = \"cs1\"",
        &["host.dscp", "cs1", "classify_by", "host-mark", "mark.dscp"],
    ),
    (
        "the same by number",
        "listeners = [22]",
        "listeners = [22]\ndscp = 8",
        &["host.dscp", "8", "host-mark"],
    ),
    (
        "the same by ToS byte",
        "listeners = [22]",
        "listeners = [22]\ntos = 0x20",
        &["host.tos", "0x20", "host-mark"],
    ),
    (
        "no name",
        "host = \"eth0\"",
        "host = \"\"",
        &["ports.host", "missing"],
    ),
    (
        "long name",
        "host = \"eth0\"",
        concat!(
            "host = \"",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "\""
        ),
        &["ports.host", "at most 15 bytes", "127"],
    ),
    (
        "host is uplink",
        "uplink = \"eth1\"",
        "uplink = \"eth0\"",
        &["ports.uplink", "two ends"],
    ),
    (
        "incoming is host",
        "incoming = \"eth2\"",
        "incoming = \"eth0\"",
        &["ports.incoming", "ports.host"],
    ),
    (
        "incoming without next hop",
        "next_hop = \"02:00:5e:10:00:02\"",
        "",
        &["ports.incoming", "steer.next_hop"],
    ),
    (
        "next hop without incoming",
        "incoming = \"eth2\"",
        "",
        &["steer.next_hop", "ports.incoming"],
    ),
    (
        "next hop is broadcast",
        "02:00:5e:10:00:02",
        "ff:ff:ff:ff:ff:ff",
        &["steer.next_hop", "broadcast"],
    ),
    (
        "next hop is neither address nor MAC",
        "02:00:5e:10:00:02",
        "router",
        &["steer.next_hop", "02:00:5e", "203.0.113.1"],
    ),
    (
        "no address",
        "[\"192.0.2.10\"]",
        "[]",
        &["host.addresses", "clearnet"],
    ),
    (
        "no such address",
        "192.0.2.10",
        "192.0.2.300",
        &["host.addresses", "192.0.2.300", "2001:db8"],
    ),
    (
        "bits behind the prefix",
        "192.0.2.10",
        "192.0.2.10/24",
        &["host.addresses", "192.0.2.0/24"],
    ),
    (
        "loopback",
        "192.0.2.10",
        "127.0.0.1",
        &["host.addresses", "127.0.0.1"],
    ),
    (
        "relay at every address",
        "198.51.100.1:9001",
        "0.0.0.0:9001",
        &["relays.extra", "0.0.0.0:9001"],
    ),
    (
        "relay at a multicast address",
        "198.51.100.1:9001",
        "[ff02::1]:9001",
        &["relays.extra", "ff02::1"],
    ),
    (
        "relay at a mapped address",
        "198.51.100.1:9001",
        "[::ffff:198.51.100.1]:9001",
        &["relays.extra", "write 198.51.100.1"],
    ),
    (
        "mapped address",
        "192.0.2.10",
        "::ffff:192.0.2.10",
        &["host.addresses", "write 192.0.2.10"],
    ),
    (
        "resolver at every address",
        "listeners = [22]",
        "resolvers = [\"0.0.0.0\"]",
        &["host.resolvers", "0.0.0.0"],
    ),
    (
        "resolver at the broadcast address",
        "listeners = [22]",
        "resolvers = [\"255.255.255.255\"]",
        &["host.resolvers", "255.255.255.255"],
    ),
    (
        "both kinds",
        "listeners = [22]",
        "relay_addresses = [\"192.0.2.0/24\"]",
        &["host.relay_addresses", "host.addresses"],
    ),
    (
        "listener port",
        "listeners = [22]",
        "listeners = [70000]",
        &["host.listeners", "65535"],
    ),
    (
        "listener port 0",
        "listeners = [22]",
        "listeners = [0]",
        &["host.listeners", "0"],
    ),
    (
        "listener endpoint",
        "listeners = [22]",
        "listeners = [\"ssh\"]",
        &["host.listeners", "ssh", "192.0.2.1:9001"],
    ),
    (
        "dscp name",
        "at_uplink",
        "dscp = \"af14\"\nat_uplink",
        &["mark.dscp", "af14", "af13"],
    ),
    (
        "dscp number",
        "at_uplink",
        "dscp = 64\nat_uplink",
        &["mark.dscp", "64", "mark.tos"],
    ),
    (
        "dscp 0",
        "at_uplink",
        "dscp = 0\nat_uplink",
        &["mark.dscp", "unmarked"],
    ),
    (
        "tos with ECN",
        "at_uplink",
        "tos = 0x29\nat_uplink",
        &["mark.tos", "0x29", "0x28"],
    ),
    (
        "two marks",
        "at_uplink",
        "tos = 0x28\ndscp = 10\nat_uplink",
        &["mark.tos", "mark.dscp"],
    ),
    (
        "no relays",
        "extra = [\"198.51.100.1:9001\"]",
        "",
        &["relays.consensus", "cached-microdesc-consensus"],
    ),
    (
        "extra port 0",
        "198.51.100.1:9001",
        "198.51.100.1:0",
        &["relays.extra"],
    ),
    (
        "an unverified consensus",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"/var/lib/tor/unverified-microdesc-consensus\"]",
        &[
            "relays.consensus",
            "unverified-microdesc-consensus",
            "cached-",
        ],
    ),
    (
        "a consensus twice",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\", \"b\", \"a\"]",
        &["relays.consensus", "\"a\"", "twice"],
    ),
    (
        "no authority",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\"]\nauthorities = []",
        &["relays.authorities", "[]", "Tor network"],
    ),
    (
        "an invalid authority",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\"]\nauthorities = [\"moria1\"]",
        &["relays.authorities", "moria1", "40 hexadecimal digits"],
    ),
    (
        "authorities without verification",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\"]\nverify = false\nauthorities = [\"F533C81CEF0BC0267857C99B2F471ADF249FA232\"]",
        &["relays.authorities", "relays.verify = false"],
    ),
    (
        "a time without a unit",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\"]\nretain = \"28\"",
        &["relays.retain", "\"28\"", "28h"],
    ),
    (
        "a time that is too long",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\"]\nretain = \"31days\"",
        &["relays.retain", "30 days"],
    ),
    (
        "unknown treatment when stale",
        "extra = [\"198.51.100.1:9001\"]",
        "consensus = [\"a\"]\nwhen_stale = \"drop\"",
        &["drop", "keep", "pass"],
    ),
    (
        "ring",
        "ring = 2048",
        "ring = 1000",
        &["datapath.ring", "1024"],
    ),
    (
        "batch",
        "ring = 2048",
        "ring = 64\nbatch = 128",
        &["datapath.batch", "datapath.ring"],
    ),
    (
        "spin",
        "ring = 2048",
        "spin = 1001",
        &["datapath.spin", "0 to 1000"],
    ),
];

#[test]
fn the_good_configuration_is_accepted() {
    Settings::parse(GOOD, Path::new("")).unwrap();
}

#[test]
fn every_refusal_names_key_and_remedy() {
    for (wrong, from, to, words) in REFUSALS {
        assert!(GOOD.contains(from), "{wrong}: the table is out of date");
        let text = GOOD.replacen(from, to, 1);
        let Err(error) = Settings::parse(&text, Path::new("")) else {
            panic!("{wrong} was accepted");
        };
        let error = error.to_string();
        for word in words {
            assert!(error.contains(word), "{wrong}: no `{word}` in: {error}");
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
        ("resolvers", 64, &address as &dyn Fn(usize) -> String),
        ("exempt", 1024, &address),
        ("listeners", 256, &listener),
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
        Trust::MostOf(Authorities::tor_network())
    );
    assert_eq!(by_default.retain, Duration::from_secs(28 * 3600));
    assert_eq!(by_default.when_stale, WhenStale::Pass);
    assert_eq!(
        by_default.state,
        Path::new("/var/lib/exitmark/relays.state")
    );
    assert_eq!(by_default.user, "nobody");
    let otherwise = relays("verify = false\nretain = \"90min\"\nwhen_stale = \"keep\"\n");
    assert_eq!(otherwise.sources.trust, Trust::Anybody);
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
