//! What is done with each connection, on the socket and on the wire.

use crate::client::{Client, shown};
use crate::rig::{
    HOST_V4, HOST_V6, Host, MARK, RELAY, RELAY_SOURCE_V4, RELAY_SOURCE_V6, RELAY_V6, RESOLVER, WEB,
    WEB_V6, class, ip, needs_root,
};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use exitmark_lab::Capture;

const BOTH: &str = "source = [\"203.0.113.10\", \"2001:db8:3::10\"]";

/// The ToS or traffic class of each TCP segment of the host to this port, SYN first.
fn tos_on_the_wire(frames: &[exitmark_lab::CapturedFrame], port: u16) -> Vec<(bool, u8)> {
    let of = |frame: &exitmark_lab::CapturedFrame| {
        let packet = SlicedPacket::from_ethernet(&frame.bytes).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
            return None;
        };
        let tos = match packet.net? {
            NetSlice::Ipv4(v4) => v4.header().dcp().value() << 2,
            NetSlice::Ipv6(v6) => v6.header().traffic_class() & 0xfc,
            NetSlice::Arp(_) => return None,
        };
        (tcp.destination_port() == port).then(|| (tcp.syn(), tos))
    };
    frames.iter().filter_map(of).collect()
}

#[test]
fn exit_connections_carry_the_mark_from_the_syn_on_and_relay_connections_are_bound() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(BOTH, ""));
    let mut capture = Capture::start(&host.host, "eth0", "out", "tcp").unwrap();
    let mut client = Client::start(&host.host, host.user);
    for (destination, tos, own) in [
        (WEB, MARK, HOST_V4),
        (WEB_V6, MARK, HOST_V6),
        ("198.18.0.1:80", MARK, HOST_V4),
        (RELAY, 0, RELAY_SOURCE_V4),
        (RELAY_V6, 0, RELAY_SOURCE_V6),
        (RESOLVER, 0, HOST_V4),
    ] {
        let opened = client.open(destination);
        assert_eq!(opened, (tos, ip(own)), "{destination}");
    }
    let is_complete = |frames: &[exitmark_lab::CapturedFrame]| {
        [(80, 6), (9001, 4), (53, 2)]
            .iter()
            .all(|&(port, count)| tos_on_the_wire(frames, port).len() >= count)
    };
    assert!(capture.wait_until(exitmark_lab::TIMEOUT, is_complete));
    let frames = capture.finish().unwrap();
    for (port, tos, connections) in [(80, MARK, 3), (9001, 0, 2), (53, 0, 1)] {
        let segments = tos_on_the_wire(&frames, port);
        let syns = segments.iter().filter(|(is_syn, _)| *is_syn).count();
        assert_eq!(syns, connections, "port {port}");
        assert!(
            segments.iter().all(|(_, of)| *of == tos),
            "port {port}: {segments:?}"
        );
    }
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (3, 0));
    assert_eq!(class(&counts, "relay"), (2, 0));
    assert_eq!(class(&counts, "resolver"), (1, 0));
    assert_eq!((counts.marked, counts.steered), (3, 2));
    assert_eq!((counts.unmarked, counts.unsteered), (0, 0));
    running.end().unwrap();
}

/// Linux before 6.14 or so sets no IP_TOS on such a socket for a program; tor has none.
#[test]
fn ipv4_mapped_sockets_are_judged_as_ipv4() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(BOTH, ""));
    let mut client = Client::start(&host.host, host.user);
    let web = client.open("[::ffff:198.51.100.7]:80");
    let relay = client.open("[::ffff:198.18.0.1]:9001");
    assert_eq!(relay, (0, ip(RELAY_SOURCE_V4)));
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (1, 0));
    assert_eq!(class(&counts, "relay"), (1, 0));
    assert_eq!(counts.marked + counts.unmarked, 1);
    let expected = if counts.marked == 1 { MARK } else { 0 };
    assert_eq!(web, (expected, ip(HOST_V4)));
    assert_eq!(host.status().has_alarm(), counts.unmarked == 1);
    running.end().unwrap();
}

#[test]
fn connections_to_the_machine_itself_and_to_exempt_prefixes_are_left_alone() {
    needs_root!();
    let host = Host::new();
    host.world.ip("addr add 198.18.9.1/32 dev eth0").unwrap();
    let listener = host.host.run(|| std::net::TcpListener::bind("[::]:4444"));
    let _listener = listener.unwrap();
    let running = host.start(&host.text(BOTH, ""));
    let mut client = Client::start(&host.host, host.user);
    for destination in [
        "127.0.0.1:4444",
        "[::1]:4444",
        "192.0.2.10:4444",
        "203.0.113.10:4444",
        "[2001:db8:1::10]:4444",
        "198.18.9.1:80",
    ] {
        assert_eq!(client.open(destination).0, 0, "{destination}");
    }
    assert_eq!(class(&host.connections(), "exempt"), (6, 0));
    assert_eq!(host.connections().marked, 0);
    running.end().unwrap();
}

#[test]
fn other_users_are_left_alone_and_not_counted() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text(BOTH, ""));
    // One with a bit of its own in the filter of users, and one that shares tor's.
    for more in [0x80, 0x1000] {
        let mut other = Client::start(&host.host, host.user + more);
        assert_eq!(other.open(WEB), (0, ip(HOST_V4)));
        assert_eq!(other.open(RELAY), (0, ip(HOST_V4)));
    }
    let counts = host.connections();
    assert!(
        counts.classes.iter().all(|class| class.opened == 0),
        "{counts:?}"
    );
    running.end().unwrap();
}

#[test]
fn what_tor_sets_itself_stays_unless_the_configuration_says_otherwise() {
    needs_root!();
    let host = Host::new();
    let text = host.text(BOTH, "");
    let running = host.start(&text);
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(shown(&client.ask(&format!("open {WEB} tos=16"))).0, 16);
    assert_eq!(shown(&client.ask(&format!("open {WEB_V6} tos=16"))).0, 16);
    let own = client.ask(&format!("open {RELAY} source={HOST_V4}"));
    assert_eq!(shown(&own).1, ip(HOST_V4));
    let own = client.ask(&format!("open {RELAY_V6} source={HOST_V6}"));
    assert_eq!(shown(&own).1, ip(HOST_V6));
    let counts = host.connections();
    assert_eq!((counts.own_tos, counts.own_source), (2, 2));
    assert_eq!((counts.marked, counts.steered), (0, 0));

    host.write(&text.replace("[mark]", "[mark]\noverwrite = true"));
    host.exitmark(&["reload"]).unwrap();
    assert_eq!(shown(&client.ask(&format!("open {WEB} tos=16"))).0, MARK);
    assert_eq!(host.connections().own_tos, 2);
    running.end().unwrap();
}

#[test]
fn a_fwmark_and_a_nic_steer_too() {
    needs_root!();
    let host = Host::new();
    // A second network, by which only marked packets leave.
    host.host
        .ip_batch(&[
            "link add other0 type veth peer name other1".to_owned(),
            "addr add 203.0.113.77/24 dev other0".to_owned(),
            "link set other0 up".to_owned(),
            "link set other1 up".to_owned(),
            "neigh add 198.18.0.1 lladdr 02:00:00:00:07:07 dev other0".to_owned(),
            "route add default dev other0 table 77".to_owned(),
            "rule add fwmark 0x77 lookup 77".to_owned(),
        ])
        .unwrap();
    let running = host.start(&host.text("fwmark = 0x77", ""));
    let mut capture = Capture::start(&host.host, "other0", "out", "tcp").unwrap();
    let mut client = Client::start(&host.host, host.user);
    client.ask(&format!("try {RELAY}"));
    assert_eq!(client.open(WEB), (MARK, ip(HOST_V4)));
    let has_syn =
        |frames: &[exitmark_lab::CapturedFrame]| !tos_on_the_wire(frames, 9001).is_empty();
    assert!(capture.wait_until(exitmark_lab::TIMEOUT, has_syn));
    let text = host.text("interface = \"other0\"", "");
    host.write(&text);
    host.exitmark(&["reload"]).unwrap();
    client.ask(&format!("try {RELAY}"));
    let has_two = |frames: &[exitmark_lab::CapturedFrame]| tos_on_the_wire(frames, 9001).len() >= 2;
    assert!(capture.wait_until(exitmark_lab::TIMEOUT, has_two));
    let counts = host.connections();
    assert_eq!((counts.steered, counts.unsteered), (2, 0));
    running.end().unwrap();
}

#[test]
fn without_the_nic_relay_connections_count_as_unsteered() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text("interface = \"other0\"", ""));
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(RELAY), (0, ip(HOST_V4)));
    let counts = host.connections();
    assert_eq!((counts.steered, counts.unsteered), (0, 1));
    running.end().unwrap();
}

#[test]
fn audit_mode_counts_and_changes_nothing() {
    needs_root!();
    let host = Host::new();
    let text = host.text(BOTH, "");
    let running = host.start(&text.replacen('\n', "\nmode = \"audit\"\n", 1));
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(WEB), (0, ip(HOST_V4)));
    assert_eq!(client.open(RELAY), (0, ip(HOST_V4)));
    let counts = host.connections();
    assert_eq!(class(&counts, "exit"), (1, 0));
    assert_eq!(class(&counts, "relay"), (1, 0));
    assert_eq!((counts.marked, counts.steered), (0, 0));
    running.end().unwrap();
}

/// A fwmark applies to both IP versions, also beside a source address of one.
#[test]
fn a_source_address_of_one_ip_version_leaves_the_other_to_the_fwmark() {
    needs_root!();
    let host = Host::new();
    let lines = "source = [\"203.0.113.10\"]\nfwmark = 0x77";
    let running = host.start(&host.text(lines, ""));
    let mut client = Client::start(&host.host, host.user);
    assert_eq!(client.open(RELAY), (0, ip(RELAY_SOURCE_V4)));
    assert_eq!(client.open(RELAY_V6), (0, ip(HOST_V6)));
    // tor's own address stays, and the mark is set.
    let own = client.ask(&format!("open {RELAY} source={HOST_V4}"));
    assert_eq!(shown(&own).1, ip(HOST_V4));
    let counts = host.connections();
    assert_eq!(
        (counts.steered, counts.own_source, counts.unsteered),
        (3, 0, 0)
    );
    running.end().unwrap();
}
