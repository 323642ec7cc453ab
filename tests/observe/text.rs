//! The text of `exitmark status`.

use crate::sample;
use exitmark_box::observe::{DocumentSignatures, HostReport, Report, SteeringState};

#[test]
fn the_text_fits_eighty_columns() {
    let mut report = sample::report();
    let fits = |report: &Report| {
        for line in report.text().to_string().lines() {
            assert!(line.chars().count() <= 80, "{line}");
            assert_eq!(line, line.trim_end());
        }
    };
    fits(&report);
    fits(&Report::default());
    fits(&sample::of_site());
    // Also with the largest numbers and long names.
    for port in &mut report.ports {
        port.forwarded_frames = u64::MAX;
        port.spilled_frames = u64::MAX;
        port.mtu = 65_535;
        port.driver = Some("a_driver_with_a_long_name".to_owned());
    }
    report.generation = u64::MAX;
    report.relay_set.last_refusal = Some("word ".repeat(60));
    fits(&report);
}

#[test]
fn connections_take_the_place_of_frames() {
    let text = sample::report_of_connect().text().to_string();
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    for part in [
        "engine      connect: the sockets of tor on this machine",
        "exit             9.01 P  100.0 %          12",
        "exit        marked 9.01 P, own tos 1, unmarked 2, earlier marked 10,",
        "relay       steered 4, own source 5, unsteered 6",
        "users       2",
        "relay set",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    for absent in ["\nport ", "\nframes", "\nsteering", "\nunaccounted"] {
        assert!(!text.contains(absent), "`{absent}` in\n{text}");
    }
}

#[test]
fn warnings_are_on_top() {
    let report = sample::report();
    let text = report.text().to_string();
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("exitmark    0.1.0, mode enforce, classify_by relay-set, mark af11")
    );
    assert!(lines[0].ends_with("up 3 d 2 h, generation 17") || lines[1].contains("generation 17"));
    let alarm = text.find("ALARM       relay-set-stale: ").unwrap();
    let warning = text.find("warning     generic-xdp: ").unwrap();
    assert!(alarm < warning && warning < text.find("engine").unwrap());
    assert!(report.has_alarm());
    let mut calm = report;
    calm.warnings.clear();
    assert!(calm.text().to_string().contains("warnings    none\n"));
    assert!(!calm.has_alarm());
}

#[test]
fn every_part_is_there() {
    let text = sample::report().text().to_string();
    for part in [
        "af_xdp (configured: auto): every port is bound zero-copy",
        "xdp decided 250 k frames (25.0 %), af_xdp 750 k frames (75.0 %)",
        "uplink   enp129s0f0np0v1 up   af_xdp generic copy      -",
        "incoming eth2            down af_xdp native  zero-copy igb",
        "uplink      af_xdp: its driver has no native XDP\n",
        "exit            500 k   50.0 %    720 MB",
        "foreign             0    0.0 %       0 B",
        "marked 9.01 P",
        "malformed   bad_length 4\n",
        "drops       tx_full at uplink 12\n",
        "tap         tap0 (down): 9.01 P copies of exit packets, 21 of answers; lost:\n            full 22, refused 23\n",
        "relay traffic leaves by `incoming`",
        "next hop 198.51.100.1 at 02:00:5e:10:00:09, changes: 2",
        "8123 endpoints: 8000 listed, 120 departed, 3 extra; stale, so",
        "in force for 3 d 1 h; 12 accepted, 1 refused",
        "/var/lib/tor/cached-microdesc-consensus: expired 2 d 23 h ago",
        "signed by 6 of 9 known authorities, 5 are needed, and by 3 that",
        "last refusal: older than the document in force",
        "0             4096 =      2000 +         0 +      2048 +        48",
        "unaccounted none: every frame is accounted for",
        "af_xdp: p50 2.5 µs, p99 9.0 µs, p99.9 15.0 µs, of 10 sampled",
        "one frame in 1024: 976 checked, 3 skipped, 1 lost; mismatches: none",
        "reloads     2, and 1 refused",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

/// The lines from the one that begins with this name on, without those of the next item.
fn item<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(name));
    let first = lines
        .next()
        .unwrap_or_else(|| panic!("no {name} in\n{text}"));
    let rest = lines.take_while(|line| line.starts_with(' '));
    std::iter::once(first).chain(rest).collect()
}

#[test]
fn each_of_several_groups_has_a_block() {
    let text = sample::of_site().text().to_string();
    let expected = [
        "group       exits-a: relay 400 k (560 MB), exit 9.01 P (9.00 kB)",
        "            marked 9.01 P, unrouted vlan 8",
    ];
    assert_eq!(item(&text, "group"), expected);
    assert!(
        text.contains("\ngroup       exits-b: no frames\n"),
        "{text}"
    );
    let text = sample::report().text().to_string();
    assert!(!text.contains("\ngroup"), "{text}");
}

#[test]
fn each_of_several_next_hops_has_its_state_and_groups() {
    let mut report = sample::of_site();
    let text = report.text().to_string();
    let expected = [
        "steering    unresolved: the MAC address of a next hop is not known",
        "            changes: 4; on_unavailable: uplink",
    ];
    assert_eq!(item(&text, "steering"), expected);
    for line in [
        "next hop    198.51.100.1 at 02:00:5e:10:00:09, IPv4 of exits-a, exits-b\n",
        "next hop    2001:db8:3::1 (VLAN 200.30) unresolved, IPv6 of exits-a\n",
        "next hop    02:00:5e:10:00:09 (VLAN 30), IPv6 of exits-b\n",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    report.steering.next_hops.truncate(1);
    report.steering.next_hops[0].vlan = "VLAN 30".to_owned();
    let text = report.text().to_string();
    let line = "next hop 198.51.100.1 (VLAN 30) at 02:00:5e:10:00:09, changes: 4;";
    assert!(text.contains(line), "{text}");
}

#[test]
fn host_addresses_are_shown_by_their_mac_address() {
    let mut report = sample::of_site();
    let text = report.text().to_string();
    let expected = [
        "hosts       4 addresses",
        "            02:00:00:00:00:01: 192.0.2.10, 192.0.2.12 (3 changes), 2001:db8::10",
        "            02:00:00:00:00:02: 192.0.2.11 (1 change)",
    ];
    assert_eq!(item(&text, "hosts"), expected);
    report.hosts = (0..300)
        .map(|number| HostReport {
            address: format!("2001:db8::{number:x}"),
            ..report.hosts[0].clone()
        })
        .collect();
    let text = report.text().to_string();
    let hosts = item(&text, "hosts").join("\n");
    assert_eq!(hosts.matches("2001:db8::").count(), 256, "{text}");
    assert!(
        hosts.ends_with("and 44 more: `exitmark status --json`"),
        "{text}"
    );
    report.hosts.clear();
    let text = report.text().to_string();
    assert_eq!(
        item(&text, "hosts"),
        ["hosts       no host has sent a frame yet"]
    );
}

#[test]
fn each_of_several_sources_has_its_state() {
    let text = sample::with_several_sources().text().to_string();
    let words: Vec<_> = text.split_whitespace().collect();
    let text = words.join(" ");
    for part in [
        "/var/lib/tor/cached-microdesc-consensus: expired 2 d 23 h ago",
        "/var/lib/tor-instances/a/cached-consensus: older, expired 2 d 23 h",
        "refused: /var/lib/tor-instances/b/cached-consensus: the file is empty",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    // The last refusal says it already, if there is one source.
    let mut report = sample::with_several_sources();
    report.relay_set.sources.drain(..2);
    assert!(!report.text().to_string().contains("the file is empty"));
}

/// At most one more signature than needed, and not all listed authorities have signed.
#[test]
fn signatures_are_scarce_at_a_margin_of_one() {
    for (good, needed, known, is_scarce) in [
        (9, 5, 9, false),
        (7, 5, 9, false),
        (6, 5, 9, true),
        (5, 5, 9, true),
        // A small network has no further authorities.
        (3, 2, 3, false),
        (2, 2, 3, true),
        (1, 1, 1, false),
    ] {
        let signatures = DocumentSignatures {
            good,
            needed,
            unknown: 0,
            known,
        };
        assert_eq!(signatures.is_scarce(), is_scarce, "{signatures}");
    }
}

#[test]
fn the_engines_reason_is_shown_once() {
    let text = sample::report().text().to_string();
    let reasons = text.matches("every port is bound zero-copy");
    assert_eq!(reasons.count(), 1, "{text}");
}

#[test]
fn absent_counts_and_states_are_shown_as_such() {
    let mut report = sample::report();
    report.drops[0].frames = 0;
    report.steering.state = SteeringState::NoCarrier;
    report.unaccounted_frames = 3;
    report.audit.one_in = 0;
    let text = report.text().to_string();
    assert!(text.contains("drops       none\n"), "{text}");
    assert!(text.contains("no-carrier: the NIC has no link"), "{text}");
    assert!(text.contains("3 frames are not accounted for"), "{text}");
    assert!(text.contains("audit       off\n"), "{text}");
    report.steering.state = SteeringState::Off;
    let text = report.text().to_string();
    assert!(!text.contains("next hop"), "{text}");
    assert!(
        text.contains("steering    off: incoming is not set\n"),
        "{text}"
    );
}

#[test]
fn control_characters_are_replaced() {
    let mut report = sample::report();
    report.version = "\x1b[31m".to_owned();
    report.ports[0].interface = "\x1b]0;x\x07".to_owned();
    report.warnings[0].text = "\x1b[2J".to_owned();
    report.classes[0].class = "\r\n\x1b".to_owned();
    let text = report.text().to_string();
    let is_plain = |c: char| c == '\n' || !c.is_control();
    assert!(text.chars().all(is_plain), "{text:?}");
}

#[test]
fn json_is_exact_and_round_trips() {
    let report = sample::report();
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains(&format!("\"marked\":{}", sample::EXACT)));
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(back, report);
    // A box of another version may have fewer or more fields.
    let other: Report = serde_json::from_str("{\"generation\":3,\"novelty\":[]}").unwrap();
    assert_eq!(other.generation, 3);
}
