//! `[[wire]]`: several wires in one box, and `[ports]`, which is one.

use super::GOOD;
use exitmark_box::settings::{LinkLoss, MAX_WIRES, Settings, SettingsError};
use exitmark_nic::LocalNic;
use exitmark_policy::packet::MacAddr;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

const PORTS: &str = "[ports]\nhost = \"eth0\"\nuplink = \"eth1\"\nincoming = \"eth2\"\n";
const TWO: &str = "\
[[wire]]
host = \"h0\"
uplink = \"u0\"
incoming = \"in0\"
[[wire]]
name = \"b\"
host = \"h1\"
uplink = \"u1\"
incoming = \"in0\"
";

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(""))
}

/// The good configuration with these wires in place of `[ports]`.
fn with(wires: &str) -> String {
    assert!(GOOD.contains(PORTS), "the text is out of date");
    GOOD.replacen(PORTS, wires, 1)
}

fn accepted(wires: &str) -> Settings {
    parse(&with(wires)).unwrap_or_else(|error| panic!("{wires}: {error}"))
}

/// The two wires with one text replaced.
fn two(from: &str, to: &str) -> String {
    assert!(TWO.contains(from), "the table is out of date: {from}");
    TWO.replacen(from, to, 1)
}

fn wire(name: &str, nics: [&str; 3]) -> String {
    let [host, uplink, incoming] = nics;
    format!(
        "[[wire]]\nname = \"{name}\"\nhost = \"{host}\"\nuplink = \"{uplink}\"\n\
         incoming = \"{incoming}\"\n"
    )
}

/// This many wires with one `incoming`.
fn several(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let [host, uplink] = ["h", "u"].map(|side| format!("{side}{number}"));
        write!(text, "{}", wire(&host, [&host, &uplink, "in0"])).unwrap();
        text
    })
}

/// Name, NICs, and link loss of each wire.
fn shown(settings: &Settings) -> Vec<String> {
    let wires = settings.wires.iter();
    wires
        .map(|wire| {
            let ports = &wire.ports;
            let incoming = ports.incoming.as_ref().map(|one| &*one.interface);
            let incoming = incoming.unwrap_or("-");
            let link_loss = wire.link_loss.name();
            let name = &wire.name;
            format!(
                "{name} {} {} {incoming} {link_loss}",
                ports.host, ports.uplink
            )
        })
        .collect()
}

#[test]
fn ports_are_one_wire_with_the_name_of_the_hosts_nic() {
    let settings = parse(GOOD).unwrap();
    assert_eq!(shown(&settings), ["eth0 eth0 eth1 eth2 ignore"]);
    assert_eq!(settings.ports, Some(settings.wires[0].ports.clone()));
    let one = accepted(&wire("a", ["eth0", "eth1", "eth2"]));
    assert_eq!(shown(&one), ["a eth0 eth1 eth2 ignore"]);
    assert_eq!(one.ports, settings.ports);
    assert_eq!(one.summary(), settings.summary());
    assert!(parse(super::connect::GOOD).unwrap().wires.is_empty());
}

#[test]
fn several_wires_have_names_link_loss_and_the_next_hops_of_the_file() {
    let settings = accepted(TWO);
    let expected = ["h0 h0 u0 in0 propagate", "b h1 u1 in0 propagate"];
    assert_eq!(shown(&settings), expected);
    assert_eq!(settings.ports, Some(settings.wires[0].ports.clone()));
    for wire in &settings.wires {
        let next_hops = &wire.ports.incoming.as_ref().unwrap().next_hops;
        let next_hops: Vec<_> = next_hops.iter().map(ToString::to_string).collect();
        assert_eq!(next_hops, ["02:00:5e:10:00:02"], "{}", wire.name);
    }
    let summary = settings.summary();
    let expected =
        "2 wires: h0 (h0 and u0), b (h1 and u1), relay traffic by in0 to 02:00:5e:10:00:02";
    assert!(summary.contains(expected), "{summary}");

    let given = two("uplink = \"u1\"", "uplink = \"u1\"\nlink_loss = \"ignore\"");
    assert_eq!(accepted(&given).wires[1].link_loss, LinkLoss::Ignore);
    let one = wire("a", ["h0", "u0", "in0"]) + "link_loss = \"propagate\"\n";
    assert_eq!(accepted(&one).wires[0].link_loss, LinkLoss::Propagate);
    assert_eq!(accepted(&several(MAX_WIRES)).wires.len(), 8);
    let pair = |count| {
        let text = with(&several(count));
        assert!(text.contains("[steer]\n"));
        text.replacen("[steer]\n", "[steer]\nvlan = [200, 30]\n", 1)
    };
    parse(&pair(1)).unwrap();
    assert_refused(&pair(2), &["steer.vlan", "VLAN 200.30", "incoming in0"]);
    // Each its own uplink, by which the box itself sends.
    let own = wire("a", ["h0", "u0", "u0"]) + &wire("b", ["h1", "u1", "u1"]);
    let losses = accepted(&own).wires;
    assert!(losses.iter().all(|wire| wire.link_loss == LinkLoss::Ignore));
    let carried = own + "link_loss = \"propagate\"\n";
    assert_refused(
        &with(&carried),
        &[
            "wire.link_loss = \"propagate\" (wire \"b\")",
            "uplink and incoming",
        ],
    );
}

#[test]
fn one_wire_is_a_configuration_of_its_own() {
    let names = two("name = \"b\"", "name = \"enP2p1s0.30\"");
    let settings = accepted(&two("h0", "eth0.1").replace("name = \"b\"", "name = \"B:1\""));
    let pins = settings.pin.directory.clone();
    for (index, name, directory) in [(0, "eth0.1", "wire-eth0+1"), (1, "B:1", "wire-B:1")] {
        let of_wire = settings.of_wire(index);
        assert_eq!(of_wire.wires, [settings.wires[index].clone()]);
        assert_eq!(of_wire.wires[0].name, name);
        assert_eq!(of_wire.ports, Some(settings.wires[index].ports.clone()));
        assert_eq!(of_wire.pin.directory, pins.join(directory));
        assert_eq!(of_wire.pin.on_stop, settings.pin.on_stop);
        assert!(Arc::ptr_eq(&of_wire.rules, &settings.rules));
        let again = of_wire.of_wire(0);
        assert_eq!(again.pin.directory, of_wire.pin.directory);
        assert_eq!(again.ports, of_wire.ports);
        let host = &settings.wires[index].ports.host;
        let expected = format!("{host} and u{index} are a wire, relay traffic by in0");
        assert!(of_wire.summary().contains(&expected), "{expected}");
    }
    let directory = accepted(&names).of_wire(1).pin.directory;
    assert_eq!(directory, pins.join("wire-enP2p1s0+30"));
    for alone in [parse(GOOD).unwrap(), accepted(&several(1))] {
        assert_eq!(alone.of_wire(0).pin, alone.pin);
        assert_eq!(alone.of_wire(0).wires, alone.wires);
    }
    let connect = parse(super::connect::GOOD).unwrap();
    assert_eq!(connect.of_wire(0).summary(), connect.summary());
    assert!(connect.of_wire(0).ports.is_none());
}

#[test]
fn the_first_wire_with_an_incoming_owns_it() {
    let wires = wire("a", ["h0", "u0", "in0"])
        + &wire("b", ["h1", "u1", "in1"])
        + &wire("c", ["h2", "u2", "in1"])
        + &wire("d", ["h3", "u3", "in0"]);
    let settings = accepted(&wires);
    let owners: Vec<_> = (0..5).map(|n| settings.owner_of_incoming(n)).collect();
    assert_eq!(owners, [Some(0), Some(1), Some(1), Some(0), None]);
    let summary = settings.summary();
    assert!(
        summary.contains("relay traffic by in0, in1 to "),
        "{summary}"
    );
    let without = with(&two("incoming = \"in0\"\n", "").replace("incoming = \"in0\"\n", ""))
        .replacen("next_hop = \"02:00:5e:10:00:02\"", "", 1);
    let settings = parse(&without).unwrap();
    assert_eq!(settings.owner_of_incoming(0), None);
    assert_eq!(settings.owner_of_incoming(1), None);
    let summary = settings.summary();
    assert!(
        summary.contains("relay traffic is not steered"),
        "{summary}"
    );
}

#[test]
fn every_refusal_names_key_and_remedy() {
    let both = format!("{PORTS}{}", wire("a", ["h0", "u0", "in0"]));
    let pin = |name: &str| two("name = \"b\"", &format!("name = \"{name}\""));
    let long = "0123456789abcdef0123456789abcdef0";
    let hosts = |name: &str| two("host = \"h0\"", &format!("host = \"{name}\""));
    for (wires, words) in [
        (both, &["wire = 1 wire", "[ports]", "remove [ports]"][..]),
        (
            "wire = []\n".to_owned(),
            &["wire = []", "[ports]", "[[wire]]"],
        ),
        (
            several(9),
            &["wire = 9 wires", "more than 8", "box of their own"],
        ),
        (
            "[wire]\nhost = \"a\"\n".to_owned(),
            &["[[wire]]", "once for each"],
        ),
        (
            "[[wire]]\nhost = \"a\"\n".to_owned(),
            &["missing field", "uplink"],
        ),
        (
            two("host = \"h0\"", "hosts = \"h0\""),
            &["hosts", "expected", "link_loss"],
        ),
        (
            two("name = \"b\"", "link_loss = \"drop\""),
            &["drop", "ignore", "propagate"],
        ),
        (
            hosts(""),
            &["wire.host = \"\" (wire \"\")", "missing", "ip link"],
        ),
        (
            hosts("h+"),
            &["wire.name = \"h+\"", "wire 1", "-.@:_", "set wire.name"],
        ),
        (
            two("host = \"h1\"", "host = \"\""),
            &["wire.host = \"\" (wire \"b\")", "ip link"],
        ),
        (
            two("uplink = \"u1\"", "uplink = \"a b\""),
            &["wire.uplink = \"a b\" (wire \"b\")", "ip link"],
        ),
        (
            two("uplink = \"u0\"", "uplink = \"h0\""),
            &[
                "wire.uplink = \"h0\" (wire \"h0\")",
                "wire.host",
                "two ends",
            ],
        ),
        (
            two("incoming = \"in0\"", "incoming = \"h0\""),
            &[
                "wire.incoming = \"h0\" (wire \"h0\")",
                "wire.host",
                "back to the host",
            ],
        ),
        (
            two("host = \"h1\"", "host = \"h0\""),
            &[
                "wire.host = \"h0\" (wire \"b\")",
                "wire.host of wire \"h0\"",
                "of its own",
            ],
        ),
        (
            two("host = \"h1\"", "host = \"u0\""),
            &[
                "wire.host = \"u0\" (wire \"b\")",
                "wire.uplink of wire \"h0\"",
            ],
        ),
        (
            two("uplink = \"u1\"", "uplink = \"u0\""),
            &[
                "wire.uplink = \"u0\" (wire \"b\")",
                "wire.uplink of wire \"h0\"",
            ],
        ),
        (
            two("uplink = \"u1\"", "uplink = \"h0\""),
            &[
                "wire.uplink = \"h0\" (wire \"b\")",
                "wire.host of wire \"h0\"",
            ],
        ),
        // Either wire is the first one.
        (
            two("incoming = \"in0\"", "incoming = \"u1\""),
            &[
                "wire.incoming = \"u1\" (wire \"h0\")",
                "wire.uplink of wire \"b\"",
            ],
        ),
        (
            two("incoming = \"in0\"\n[[", "incoming = \"u0\"\n[[").replace("in0", "u0"),
            &[
                "wire.incoming = \"u0\" (wire \"b\")",
                "wire.uplink of wire \"h0\"",
            ],
        ),
        (
            two("incoming = \"in0\"", "incoming = \"h1\""),
            &[
                "wire.incoming = \"h1\" (wire \"h0\")",
                "wire.host of wire \"b\"",
            ],
        ),
        (
            two("incoming = \"in0\"", ""),
            &[
                "wire.incoming = \"in0\" (wire \"b\")",
                "missing in wire \"h0\"",
                "or in none",
            ],
        ),
        (
            TWO.strip_suffix("incoming = \"in0\"\n").unwrap().to_owned(),
            &[
                "wire.incoming = \"in0\" (wire \"h0\")",
                "missing in wire \"b\"",
            ],
        ),
        (pin("h0"), &["wire.name = \"h0\"", "wire 1 and of wire 2"]),
        (
            two(
                "name = \"b\"\nhost = \"h1\"",
                "name = \"h1\"\nhost = \"h2\"",
            ) + &wire("x", ["h1", "u2", "in0"]).replace("name = \"x\"\n", ""),
            &[
                "wire.name = \"h1\"",
                "wire 2 and of wire 3",
                "set wire.name",
            ],
        ),
        (pin(""), &["wire.name = \"\"", "wire 2", "at most 32"]),
        (pin(long), &["wire.name", long, "at most 32"]),
        (pin("a/b"), &["wire.name = \"a/b\"", "wire 2", "-.@:_"]),
        (pin("a+b"), &["wire.name = \"a+b\"", "-.@:_"]),
    ] {
        assert_refused(&with(&wires), words);
    }
}

fn assert_refused(text: &str, words: &[&str]) {
    let Err(error) = parse(text) else {
        panic!("accepted, without {words:?}:\n{text}");
    };
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}\n{text}");
    }
}

#[test]
fn messages_about_steering_name_the_key_of_a_wire() {
    let hop = "next_hop = \"02:00:5e:10:00:02\"";
    let two = with(TWO);
    let none = two.replace("incoming = \"in0\"\n", "");
    let own = with(&(wire("a", ["h0", "u0", "in0"]) + &wire("b", ["h1", "u1", "u1"])));
    for (text, words) in [
        (
            two.replacen(hop, "", 1),
            &["wire.incoming = \"in0\"", "steer.next_hop"][..],
        ),
        (
            none.clone(),
            &["steer.next_hop", "steering needs wire.incoming"],
        ),
        (
            none.replacen(hop, "on_unavailable = \"drop\"", 1),
            &["steer.on_unavailable", "or set wire.incoming"],
        ),
        (
            two.replacen("02:00:5e:10:00:02", "192.0.2.10", 1),
            &["steer.next_hop", "the network of wire.incoming"],
        ),
        (
            own.replacen("02:00:5e:10:00:02", "203.0.113.1", 1),
            &["steer.next_hop", "where wire.incoming is the uplink"],
        ),
    ] {
        assert_refused(&text, words);
    }
    let strip =
        none.replacen(hop, "", 1)
            .replacen("at_uplink = \"keep\"", "at_uplink = \"strip\"", 1);
    let doubts = parse(&strip).unwrap().doubts();
    let texts: Vec<_> = doubts.iter().map(|doubt| doubt.what.to_string()).collect();
    let expected = "without wire.incoming none is steered";
    assert!(
        texts.iter().any(|text| text.contains(expected)),
        "{texts:?}"
    );
    assert_refused(
        &format!("{TWO}{}", super::connect::GOOD).replacen(
            TWO,
            "wire = [{ host = \"h0\", uplink = \"u0\" }]\n",
            1,
        ),
        &["wire = ", "connect", "remove [[wire]]"],
    );
}

/// A NIC with an address.
fn nic(name: &str, network: &str) -> LocalNic {
    LocalNic {
        name: name.to_owned(),
        alt_names: Vec::new(),
        mac: Some(MacAddr::new([2, 0, 0x5e, 0x10, 0, 0x77])),
        networks: vec![network.parse().unwrap()],
    }
}

#[test]
fn a_next_hop_is_compared_with_the_network_of_each_incoming() {
    let wires = wire("a", ["h0", "u0", "in0"])
        + &wire("b", ["h1", "u1", "in1"])
        + &wire("c", ["h2", "u2", "in1"]);
    let objections = |hop: &str| -> Vec<String> {
        let text = with(&wires).replacen("02:00:5e:10:00:02", hop, 1);
        let nics = [nic("in0", "203.0.113.2/24"), nic("in1", "198.51.100.2/24")];
        let objections = parse(&text).unwrap().objections(&nics);
        let texts = objections.iter().map(|one| one.what.to_string());
        texts.filter(|text| text.contains(hop)).collect()
    };
    let found = objections("203.0.113.1");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("not on the network of in1"), "{found:?}");
    let found = objections("203.0.113.2");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("the network of wire.incoming"),
        "{found:?}"
    );
}

#[test]
fn wires_change_only_with_a_restart() {
    let old = accepted(TWO);
    for (wires, keys) in [
        (
            two("uplink = \"u1\"", "uplink = \"u2\""),
            &["wire.b.uplink"][..],
        ),
        (
            two("uplink = \"u1\"", "uplink = \"u1\"\nlink_loss = \"ignore\""),
            &["wire.b.link_loss"],
        ),
        (two("name = \"b\"", "name = \"c\""), &["wire.b", "wire.c"]),
        (PORTS.to_owned(), &["ports", "wire"]),
        (
            two(
                "uplink = \"u1\"",
                "link_loss = \"propagate\"\nuplink = \"u1\"",
            ),
            &[],
        ),
    ] {
        let change = old.change_to(&accepted(&wires));
        assert_eq!(change.keys, keys, "{wires}");
        assert_eq!(change.fixed, keys, "{wires}");
    }
}

#[test]
fn every_wire_is_explained() {
    let text = accepted(TWO).effective();
    let expected = "  \
        wire h0          host h0, uplink u0, incoming in0, link_loss propagate\n  \
        wire b           host h1, uplink u1, incoming in0, link_loss propagate\n  \
        on_unavailable   uplink\n";
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("  ports "), "{text}");
}
