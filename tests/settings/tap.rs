//! The tap: `ports.tap`, `wire.tap` and `tap.directions`.

use super::GOOD;
use exitmark_box::settings::{Settings, SettingsError};
use exitmark_policy::Tap;
use std::path::Path;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// The good configuration with a tap and these tables.
fn with(tables: &str) -> String {
    let text = GOOD.replacen(
        "incoming = \"eth2\"\n",
        "incoming = \"eth2\"\ntap = \"eth3\"\n",
        1,
    );
    assert_ne!(text, GOOD, "the text is out of date");
    text + tables
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = parse(text).map(drop).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

#[test]
fn both_directions_are_copied_unless_the_file_says_otherwise() {
    let of = |text: &str| parse(text).unwrap().rules.tap();
    assert_eq!(of(GOOD), Tap::Off);
    assert_eq!(of(&with("")), Tap::Both);
    assert_eq!(of(&with("[tap]\ndirections = \"both\"\n")), Tap::Both);
    assert_eq!(of(&with("[tap]\ndirections = \"out\"\n")), Tap::Out);
    let settings = parse(&with("")).unwrap();
    assert_eq!(settings.tap(), Some("eth3"));
    assert!(
        settings
            .summary()
            .contains("exit packets are copied to eth3")
    );
    let effective = settings.effective();
    assert!(effective.contains("incoming eth2, tap eth3"), "{effective}");
    assert!(effective.contains("exit packets of the hosts, and answers to them"));
    // A box that cannot classify frames copies none, and a larger exempt set changes nothing.
    assert_eq!(settings.rules.passing().tap(), Tap::Off);
    assert_eq!(settings.rules.exempting(&[]).tap(), Tap::Both);
}

#[test]
fn by_the_hosts_mark_only_their_frames_are_copied() {
    let by_mark = |tables: &str| {
        let host = "listeners = [22]\n";
        let text = with(tables).replacen(host, "listeners = [22]\ntos = 0x08\n", 1);
        format!("classify_by = \"host-mark\"\n{text}")
    };
    assert_eq!(parse(&by_mark("")).unwrap().rules.tap(), Tap::Out);
    let both = by_mark("[tap]\ndirections = \"both\"\n");
    refused(
        &both,
        &["tap.directions = \"both\"", "host-mark", "\"out\""],
    );
}

#[test]
fn a_tap_is_no_port_and_directions_need_a_tap() {
    for (nic, role) in [("eth0", "host"), ("eth1", "uplink"), ("eth2", "incoming")] {
        let text = with("").replacen("\"eth3\"", &format!("{nic:?}"), 1);
        let tap = format!("ports.tap = {nic:?}");
        refused(&text, &[&tap, &format!("ports.{role}"), "a NIC of its own"]);
    }
    refused(&with("").replacen("eth3", "", 1), &["ports.tap"]);
    let alone = format!("{GOOD}[tap]\ndirections = \"out\"\n");
    refused(&alone, &["tap.directions = \"out\"", "set ports.tap"]);
    refused(
        &with("[tap]\ndirections = \"in\"\n"),
        &["in", "out", "both"],
    );
}

#[test]
fn several_wires_may_share_a_tap_which_is_no_port_of_any() {
    let two = |taps: [&str; 2]| {
        let wires: String = (0..2)
            .map(|number| {
                let tap = taps[number];
                format!(
                    "[[wire]]\nhost = \"h{number}\"\nuplink = \"u{number}\"\n\
                     incoming = \"in0\"\n{tap}"
                )
            })
            .collect();
        let ports = "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n";
        GOOD.replacen(ports, &wires, 1)
    };
    let both = parse(&two(["tap = \"t0\"\n"; 2])).unwrap();
    assert_eq!(
        [0, 1].map(|wire| both.of_wire(wire).tap().map(str::to_owned)),
        [Some("t0".to_owned()), Some("t0".to_owned())]
    );
    let one = parse(&two(["", "tap = \"t0\"\n"])).unwrap();
    assert_eq!(
        (one.of_wire(0).tap(), one.of_wire(1).tap()),
        (None, Some("t0"))
    );
    assert_eq!(one.rules.tap(), Tap::Both);
    refused(
        &two(["", "tap = \"u0\"\n"]),
        &["wire.tap = \"u0\"", "wire.uplink"],
    );
}

#[test]
fn engine_connect_has_no_tap() {
    let text = "engine = \"connect\"\n[tor]\nusers = [1]\n[tap]\ndirections = \"out\"\n";
    refused(text, &["tap", "engine = \"connect\"", "remove [tap]"]);
}

/// The NIC is chosen at the start; what is copied changes with a reload.
#[test]
fn only_the_nic_of_the_tap_needs_a_restart() {
    let parsed = |text: &str| parse(text).unwrap();
    let (none, both) = (parsed(GOOD), parsed(&with("")));
    assert_eq!(none.change_to(&both).fixed, ["ports.tap"]);
    let out = parsed(&with("[tap]\ndirections = \"out\"\n"));
    let change = both.change_to(&out);
    assert_eq!(
        (change.keys, change.fixed),
        (vec!["tap.directions".to_owned()], Vec::new())
    );
}
