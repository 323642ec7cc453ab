//! The packets of marked and steered connections on the wire.

use crate::client::Client;
use crate::rig::{HOST_V4, Host, MARK, RELAY, RELAY_V6, RESOLVER, WEB, WEB_V6, ip, needs_root};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use exitmark_lab::Capture;

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
fn only_exit_connections_carry_the_mark_from_the_syn_on() {
    needs_root!();
    let host = Host::new();
    let running = host.start(&host.text("source = [\"203.0.113.10\", \"2001:db8:3::10\"]", ""));
    let mut capture = Capture::start(&host.host, "eth0", "out", "tcp").unwrap();
    let mut client = Client::start(&host.host, host.user);
    for destination in [WEB, WEB_V6, "198.18.0.1:80", RELAY, RELAY_V6, RESOLVER] {
        client.open(destination);
    }
    let is_complete = |frames: &[exitmark_lab::CapturedFrame]| {
        [(80, 6), (9001, 4), (53, 2)]
            .iter()
            .all(|&(port, count)| tos_on_the_wire(frames, port).len() >= count)
    };
    assert!(capture.wait_until(exitmark_lab::timeout(), is_complete));
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
    running.end().unwrap();
}

#[test]
fn a_fwmark_and_a_nic_route_relay_connections() {
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
    assert!(capture.wait_until(exitmark_lab::timeout(), has_syn));
    let text = host.text("interface = \"other0\"", "");
    host.write(&text);
    host.exitmark(&["reload"]).unwrap();
    client.ask(&format!("try {RELAY}"));
    let has_two = |frames: &[exitmark_lab::CapturedFrame]| tos_on_the_wire(frames, 9001).len() >= 2;
    assert!(capture.wait_until(exitmark_lab::timeout(), has_two));
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
