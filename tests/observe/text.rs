//! The text of `exitmark status`.

use crate::sample;
use exitmark_box::observe::{DocumentSignatures, Report, SteeringState};

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
