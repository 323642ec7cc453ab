//! Interfaces that cannot be ports, NICs with interfaces on top of them, and NICs with several
//! names.

use crate::rig::{
    Case, Config, EXITMARK, Rig, arrives, assert_says, moved, needs_root, silent, wait_until,
};
use exitmark_lab::site::Plan;
use std::path::{Path, PathBuf};

/// A name longer than the limit of a NIC's own name.
const LONG_NAME: &str = "the-uplink-of-the-box";

/// Writes the configuration with `name` replaced.
fn write(directory: &Path, name: &str, by: &str) -> PathBuf {
    let path = Config::default().write(directory).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(name), "{text}");
    std::fs::write(&path, text.replace(name, by)).unwrap();
    path
}

#[test]
fn bridges_macvlans_and_their_ports_are_refused_by_any_name() {
    needs_root!();
    let site = silent(Plan::default());
    let directory = tempfile::tempdir().unwrap();
    let ip = |line: &str| site.middle.ip(line).unwrap();
    ip("link add br0 type bridge");
    ip("link set br0 up");
    let names = format!("altname {LONG_NAME} altname wan");
    ip(&format!("link property add dev uplink0 {names}"));
    type Words<'a> = &'a [&'a str];
    let two_names =
        "ports.host = \"wan\" and ports.uplink = \"uplink0\" are two names of one NIC, uplink0";
    // What is done before and after, the name in the configuration, another one in its place, and
    // the message.
    #[rustfmt::skip]
    let table: [(Words<'_>, Words<'_>, &str, &str, Words<'_>); 9] = [
        (&[], &[], "host0", "br0", &["br0 is a bridge", "`ip link show master br0`", "nomaster"]),
        // A bridge loses its MAC address with its last port.
        (&["link set incoming0 master br0", "link set incoming0 nomaster"], &[], "host0", "br0",
         &["br0 is a bridge"]),
        (&["link set uplink0 master br0"], &["link set uplink0 nomaster"], "uplink0", "uplink0",
         &["uplink0 is a port of the bridge br0", "`ip link set dev uplink0 nomaster`"]),
        (&["link set uplink0 master br0"], &["link set uplink0 nomaster"], "uplink0", LONG_NAME,
         &["uplink0 is a port of the bridge br0"]),
        (&["link set incoming0 master br0"], &["link set incoming0 nomaster"], "incoming0",
         "incoming0", &["incoming0 is a port of the bridge br0"]),
        (&["link add link incoming0 name mv0 type macvlan", "link set mv0 up"], &["link del mv0"],
         "incoming0", "mv0", &["mv0 is a macvlan", "`ip link show dev mv0`"]),
        (&["link add link uplink0 name mv0 type macvlan", "link set mv0 up"], &["link del mv0"],
         "uplink0", "uplink0",
         &["uplink0 has the macvlan mv0 on top of it", "`ip link set dev mv0 down`"]),
        (&[], &[], "\"host0\"", "\"wan\"", &[two_names]),
        (&[], &[], "\"incoming0\"", "\"wan\"",
         &["are two names of one NIC, uplink0", "both keys have the same name"]),
    ];
    for (before, after, name, by, words) in table {
        let path = write(directory.path(), name, by);
        before.iter().for_each(|line| drop(ip(line)));
        let refused = site.run(EXITMARK, &path).err().unwrap().to_string();
        assert_says(&refused, words);
        after.iter().for_each(|line| drop(ip(line)));
    }
    // On the network of the next hop the box may have interfaces of its own.
    ip("link add link incoming0 name mv0 type macvlan");
    ip("link set mv0 up");
    let path = write(directory.path(), "uplink0", LONG_NAME);
    let running = site.run(EXITMARK, &path).unwrap();
    assert_says(&running.ready, &[" uplink=uplink0 "]);
    let report = site.status().unwrap();
    // The rig lists its relays by hand.
    let warnings = report.warnings;
    let is_expected = warnings.iter().all(|one| one.kind == "configuration");
    assert!(is_expected, "{warnings:?}");
    moved(&running.stop().unwrap());
}

#[test]
fn a_port_that_joins_a_bridge_or_gets_an_upper_interface_is_an_alarm() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let ip = |line: &str| rig.ip(line);
    let warned = |kind: &str, mend: &str, is_wanted: bool| {
        let is_right = || {
            let warnings = rig.status().warnings;
            let mut texts = warnings.iter().filter(|one| one.kind == kind);
            texts.any(|one| one.text.contains(mend)) == is_wanted
        };
        wait_until("the warning", is_right, || format!("{:?}", rig.status()));
    };
    ip("link add br0 type bridge");
    let upper = [
        "link add link uplink0 name mv0 type macvlan",
        "addr add 198.18.0.1/24 dev mv0",
        "link set mv0 up",
    ];
    #[rustfmt::skip]
    let table: [(&str, &[&str], &str, &str); 3] = [
        ("member", &["link set uplink0 master br0"],
         "ALARM: uplink0 (uplink) was made a port of br0 (bridge)",
         "link set dev uplink0 nomaster"),
        ("upper", &upper, "ALARM: uplink0 (uplink) has mv0 (macvlan) on top of it",
         "link set dev mv0 down"),
        ("address", &["address add 198.18.0.2/24 dev uplink0"],
         "ALARM: uplink0 (uplink) was given the address 198.18.0.2/24",
         "address del 198.18.0.2/24 dev uplink0"),
    ];
    for (kind, begin, alarm, mend) in table {
        begin.iter().for_each(|line| drop(ip(line)));
        warned(kind, &format!("`ip {mend}`"), true);
        rig.running.wait_log(&[alarm]);
        ip(mend);
        warned(kind, mend, false);
    }
    // On the network of the next hop the box may have interfaces of its own.
    ip("address add 198.18.1.2/24 dev incoming0");
    ip("link add link incoming0 name mv1 type macvlan");
    ip("link set mv1 up");
    ip("link set mv0 up");
    warned("upper", "mv0", true);
    ip("link del mv0");
    warned("upper", "", false);
    warned("address", "", false);
    arrives(&rig.site, &Case::exit(0, 60));
    rig.stop();
}
