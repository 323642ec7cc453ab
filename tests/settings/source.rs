//! `steer.source` of a box: the addresses that steered traffic has in place of the hosts'.

use crate::effective::check;
use exitmark_box::settings::{Settings, SettingsError};
use std::path::Path;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// A box with these lines in `[steer]`, and these in `[host]`.
fn with(steer: &str, host: &str) -> String {
    format!(
        "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n[steer]\n{steer}\n\
         [relays]\nextra = [\"198.18.0.1:9001\"]\n[host]\n{host}\n"
    )
}

const BOTH: &str = "next_hop = \"02:00:5e:10:00:02\"";
const ONE_EACH: &str = "addresses = [\"192.0.2.10\", \"2001:db8:1::10\"]";

/// The translations of all groups, as text.
fn translations(text: &str) -> Vec<String> {
    let settings = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let groups = settings.rules.groups().iter();
    let all = groups.flat_map(|group| &group.translations);
    all.map(|one| format!("{} as {}", one.host(), one.incoming()))
        .collect()
}

#[test]
fn an_address_a_list_or_a_table_names_the_address_in_place_of_each() {
    let v4 = "192.0.2.10/32 as 203.0.113.10/32";
    let v6 = "2001:db8:1::10/128 as 2001:db8:3::10/128";
    let routed_v4 = "next_hop = \"203.0.113.1\"";
    for (steer, host, expected) in [
        (BOTH, "source = \"keep\"", &[][..]),
        (BOTH, "source = [\"keep\"]", &[]),
        (routed_v4, "source = \"203.0.113.10\"", &[v4]),
        (
            BOTH,
            "source = [\"2001:db8:3::10\", \"203.0.113.10\"]",
            &[v6, v4],
        ),
        // An IP version that is not steered is not translated.
        (
            routed_v4,
            "source = [\"203.0.113.10\", \"2001:db8:3::10\"]",
            &[v4],
        ),
        (
            BOTH,
            "source = { \"2001:db8:1::10\" = \"2001:db8:3::10\", \"192.0.2.10\" = \"203.0.113.10\" }",
            &[v4, v6],
        ),
    ] {
        let text = with(&format!("{steer}\n{host}"), ONE_EACH);
        assert_eq!(translations(&text), expected, "{text}");
    }
    let prefixes = with(
        &format!(
            "{BOTH}\nsource = {{ \"192.0.2.64/28\" = \"203.0.113.80/28\", \"192.0.2.10\" = \"203.0.113.9\" }}"
        ),
        "addresses = [\"192.0.2.64/28\"]\nrelay_addresses = [\"192.0.2.10\"]",
    );
    let expected = [
        "192.0.2.10/32 as 203.0.113.9/32",
        "192.0.2.64/28 as 203.0.113.80/28",
    ];
    assert_eq!(translations(&prefixes), expected);
    // Parts of a prefix of the hosts.
    let halves = with(
        "next_hop = \"203.0.113.1\"\nsource = { \"192.0.2.0/31\" = \"203.0.113.8/31\", \"192.0.2.2/31\" = \"203.0.113.6/31\" }",
        "addresses = [\"192.0.2.0/30\"]",
    );
    assert_eq!(translations(&halves).len(), 2);
}

#[test]
fn a_group_has_its_own_in_place_of_the_files() {
    let text = format!(
        "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n[steer]\n{BOTH}\n\
         source = {{ \"192.0.2.10\" = \"203.0.113.10\", \"192.0.2.11\" = \"203.0.113.11\" }}\n\
         [relays]\nextra = [\"198.18.0.1:9001\"]\n\
         [[host]]\naddresses = [\"192.0.2.10\"]\n\
         [[host]]\naddresses = [\"192.0.2.11\"]\n[host.steer]\nsource = \"203.0.113.12\"\n\
         [[host]]\naddresses = [\"192.0.2.12\"]\n[host.steer]\nsource = \"keep\"\n\
         [[host]]\naddresses = [\"192.0.2.13\"]\n[host.steer]\nenabled = false\n"
    );
    let expected = [
        "192.0.2.10/32 as 203.0.113.10/32",
        "192.0.2.11/32 as 203.0.113.12/32",
    ];
    assert_eq!(translations(&text), expected);
    let explained = parse(&text).unwrap().effective();
    assert!(
        explained.contains("203.0.113.12 in place of 192.0.2.11"),
        "{explained}"
    );
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let two = "addresses = [\"192.0.2.10\", \"192.0.2.11\"]";
    let all: &[(&str, &str, &[&str])] = &[
        (
            "source = \"203.0.113.10\"",
            ONE_EACH,
            &["2001:db8:1::10", "IPv6", "next hop"],
        ),
        (
            "source = \"203.0.113.10\"",
            two,
            &["203.0.113.10", "table", "192.0.2.11"],
        ),
        (
            "source = \"eth2\"",
            ONE_EACH,
            &["\"eth2\"", "neither an address"],
        ),
        ("source = []", ONE_EACH, &["steer.source = []", "keep"]),
        ("source = {}", ONE_EACH, &["a table of 0", "192.0.2.10"]),
        (
            "source = [\"keep\", \"203.0.113.10\"]",
            ONE_EACH,
            &["keep", "all hosts or none"],
        ),
        (
            "source = \"192.0.2.10\"",
            "addresses = [\"192.0.2.10\"]",
            &["192.0.2.10", "overlaps"],
        ),
        (
            "source = \"127.0.0.1\"",
            "addresses = [\"192.0.2.10\"]",
            &["127.0.0.1", "answer"],
        ),
        (
            "source = \"169.254.0.1\"",
            "addresses = [\"192.0.2.10\"]",
            &["169.254.0.1"],
        ),
        (
            "source = \"fe80::1\"",
            "addresses = [\"2001:db8:1::10\"]",
            &["fe80::1", "answer"],
        ),
        (
            "source = [\"203.0.113.10\", \"203.0.113.11\"]",
            "addresses = [\"192.0.2.10\"]",
            &["203.0.113.11", "second"],
        ),
        (
            "source = \"2001:db8:3::10\"",
            "addresses = [\"192.0.2.10\"]",
            &["2001:db8:3::10", "no address of the hosts"],
        ),
        (
            "source = { \"192.0.2.10\" = \"203.0.113.0/28\" }",
            "addresses = [\"192.0.2.10\"]",
            &["203.0.113.0/28", "same IP version and length"],
        ),
        (
            "source = { \"192.0.2.10\" = \"203.0.113.10\", \"192.0.2.11\" = \"203.0.113.10\" }",
            two,
            &["203.0.113.10", "one of its own"],
        ),
        // Overlapping entries, in either order of their keys.
        (
            "source = { \"192.0.2.10\" = \"203.0.113.10\", \"192.0.2.8/29\" = \"203.0.113.80/29\" }",
            "addresses = [\"192.0.2.8/29\"]",
            &["203.0.113.80/29", "192.0.2.10", "one of its own"],
        ),
        (
            "source = { \"192.0.2.0/28\" = \"203.0.113.80/28\", \"192.0.2.10\" = \"203.0.113.10\" }",
            "addresses = [\"192.0.2.0/28\"]",
            &["203.0.113.10", "192.0.2.0/28", "one of its own"],
        ),
        (
            "source = { \"10.0.0.8/30\" = \"203.0.113.8/30\", \"10.0.0.10\" = \"203.0.113.20\", \
             \"10.0.0.11\" = \"203.0.113.21\", \"10.0.0.12\" = \"203.0.113.22\", \
             \"10.0.0.13\" = \"203.0.113.23\" }",
            "addresses = [\"10.0.0.8/29\"]",
            &["10.0.0.8/30", "one of its own"],
        ),
        (
            "source = { \"192.0.2.10\" = \"203.0.113.10\", \"192.0.2.99\" = \"203.0.113.99\" }",
            "addresses = [\"192.0.2.10\"]",
            &["192.0.2.99", "host.addresses"],
        ),
        (
            "source = { \"192.0.2.0/31\" = \"203.0.113.8/31\" }",
            "addresses = [\"192.0.2.0/30\"]",
            &["192.0.2.0/30", "relay traffic"],
        ),
    ];
    for (source, host, words) in all {
        let text = with(&format!("{BOTH}\n{source}"), host);
        let error = parse(&text).err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| panic!("accepted: {text}"));
        for word in ["source"].iter().chain(*words) {
            assert!(error.contains(word), "no `{word}` in: {error}\n{text}");
        }
    }
    let good = with(
        &format!("{BOTH}\nsource = \"203.0.113.10\""),
        "addresses = [\"192.0.2.10\"]",
    );
    parse(&good).unwrap();
    for (from, to, words) in [
        (
            "[ports]",
            "classify_by = \"host-mark\"\n[ports]",
            ["relay-set", "answers"],
        ),
        (
            "incoming = \"eth2\"",
            "incoming = \"eth1\"",
            ["uplink", "answer"],
        ),
        (
            "incoming = \"eth2\"\n[steer]\nnext_hop = \"02:00:5e:10:00:02\"",
            "[steer]",
            ["ports.incoming", "uplink"],
        ),
    ] {
        assert!(good.contains(from));
        let error = parse(&good.replacen(from, to, 1)).unwrap_err().to_string();
        for word in ["steer.source"].iter().chain(&words) {
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
    }
}

/// The example of docs/return-path.md, with two addresses of the host: `check` names what only the
/// machine shows, and doubts nothing.
#[test]
fn check_names_the_conditions_on_the_machine_and_doubts_nothing() {
    let one = with(
        "next_hop = \"203.0.113.1\"\nsource = \"203.0.113.10\"",
        "addresses = [\"192.0.2.10\"]",
    );
    let tagged = with(
        &format!("{BOTH}\nvlan = 30\nsource = {{ \"192.0.2.0/28\" = \"203.0.113.80/28\" }}"),
        "addresses = [\"192.0.2.0/28\"]",
    );
    let rest = "; no program of the box may listen there or connect from there, and no other machine \
                may use it: `exitmark doctor --config exitmark.toml` checks it\n";
    for (text, condition) in [
        (one, "the box must have 203.0.113.10 on eth2"),
        (
            tagged,
            "the router on eth2 (VLAN 30) must route 203.0.113.80/28 to the box",
        ),
    ] {
        let text = text.replace("extra = ", "consensus = [\"cached-consensus\"]\nextra = ");
        assert!(parse(&text).unwrap().doubts().is_empty(), "{text}");
        let (status, said, warned) = check(&text, &[]);
        assert_eq!((status, warned.as_str()), (Some(0), ""), "{text}");
        let (first, conditions) = said.split_once('\n').unwrap();
        assert!(first.starts_with("exitmark.toml: fine"), "{first}");
        assert_eq!(
            conditions,
            format!("exitmark.toml: steer.source: {condition}{rest}")
        );
    }
    let kept = with(&format!("{BOTH}\nsource = \"keep\""), ONE_EACH);
    assert_eq!(check(&kept, &[]).1.lines().count(), 1);
}
