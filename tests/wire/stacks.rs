//! Real network stacks on both sides of the box: TCP, ping, ARP and neighbour discovery.

use crate::craft::{AF11, families, mac};
use crate::rig::{
    Config, Counters, Rig, UPLINK0_MAC, assert_says, both_engines, count, moved, timeout,
};
use etherparse::{SlicedPacket, TcpSlice, TransportSlice};
use exitmark_lab::site::{
    BOX_V4, BOX_V6, CLEARNET_MAC, FAR_END, HOST_MAC, HOST_V4, HOST_V6, INCOMING_MAC, OR_PORT, Plan,
    RELAY_V4, RELAY_V6, SERVER_V4, SERVER_V6, Site, TORNET_MAC,
};
use exitmark_lab::{Capture, CapturedFrame, LabError, Netns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::Duration;

const JUMBO: Plan = Plan::of_mtu(9000);

/// Accepts one connection and echoes its data.
fn serve(netns: &Netns, address: IpAddr, port: u16) -> JoinHandle<()> {
    let listener = netns.run(move || TcpListener::bind(SocketAddr::new(address, port)).unwrap());
    let echo = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut answer = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut answer).unwrap();
        answer.shutdown(Shutdown::Write).unwrap();
    };
    netns.spawn("server", echo).unwrap()
}

/// Connects a socket with this ToS byte from its first packet on.
pub(crate) fn connect(target: SocketAddr, tos: u8) -> nix::Result<TcpStream> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, SockProtocol::Tcp).unwrap();
    match target {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Tos, &tos.into()).unwrap(),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6TClass, &tos.into()).unwrap(),
    }
    // This limits connecting too.
    let timeout = TimeVal::seconds(timeout().as_secs().try_into().unwrap());
    setsockopt(&socket, sockopt::SendTimeout, &timeout).unwrap();
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(socket.into())
}

/// Sends `bytes` bytes from `from` to an echo server in `to`, and receives them at the same time.
pub(crate) fn converse(from: &Netns, to: &Netns, address: IpAddr, port: u16, bytes: usize) {
    converse_with_tos(0, from, to, address, port, bytes);
}

/// Like [`converse`], with a socket with this ToS byte.
pub(crate) fn converse_with_tos(
    tos: u8,
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    port: u16,
    bytes: usize,
) {
    let server = serve(to, address, port);
    from.run(move || {
        let target = SocketAddr::new(address, port);
        let mut stream = connect(target, tos).unwrap();
        stream.set_read_timeout(Some(timeout())).unwrap();
        let said = crate::craft::noise(port.into(), bytes);
        let mut writer = stream.try_clone().unwrap();
        let sent = said.clone();
        let sending = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        let (received_bytes, said_bytes) = (received.len(), said.len());
        assert!(
            received == said,
            "{received_bytes} of {said_bytes} came back"
        );
    });
    server.join().unwrap();
}

fn ping(netns: &Netns, address: IpAddr, bytes: u32) -> Result<String, LabError> {
    ping_with(&[], netns, address, bytes)
}

pub(crate) fn ping_with(
    options: &[&str],
    netns: &Netns,
    address: IpAddr,
    bytes: u32,
) -> Result<String, LabError> {
    let (address, bytes) = (address.to_string(), bytes.to_string());
    let usual = ["-n", "-c", "1", "-W", "2", "-s", &bytes, &address];
    netns.command("ping", &[options, &usual].concat())
}

/// The ToS or traffic-class byte of an untagged frame.
pub(crate) fn tos(frame: &[u8]) -> u8 {
    match frame[14] >> 4 {
        4 => frame[15],
        _ => frame[14] << 4 | frame[15] >> 4,
    }
}

fn hops(frame: &[u8]) -> u8 {
    match frame[14] >> 4 {
        4 => frame[22],
        _ => frame[21],
    }
}

/// After an end, how long no frame arrives.
const QUIET: Duration = Duration::from_millis(300);

/// What one end of an echo connection has sent and acknowledged: sequence numbers of RFC 9293.
#[derive(Debug, Default)]
struct Spoken {
    from: Option<u32>,
    until: Option<u32>,
    acknowledged: Option<(u32, u32)>,
}

impl Spoken {
    fn hear(&mut self, segment: &TcpSlice) {
        let number = segment.sequence_number();
        if segment.syn() {
            self.from = Some(number);
        }
        if segment.fin() {
            let length = u32::try_from(segment.payload().len()).unwrap();
            self.until = Some(number.wrapping_add(length));
        }
        if segment.ack() {
            let number = segment.acknowledgment_number();
            let (first, last) = self.acknowledged.unwrap_or((number, number));
            // A worker and the kernel's program may forward frames of a flow out of order.
            let is_later = number.wrapping_sub(first) > last.wrapping_sub(first);
            self.acknowledged = Some((first, if is_later { number } else { last }));
        }
    }

    /// The other end sends back what this one has sent; so the last acknowledgement, of its FIN, is
    /// as far from the first one, of its SYN, as the FIN of this end from its SYN.
    fn is_over(&self) -> bool {
        match (self.from, self.until, self.acknowledged) {
            (Some(from), Some(until), Some((first, last))) => {
                last.wrapping_sub(first) == until.wrapping_sub(from)
            }
            _ => false,
        }
    }
}

/// What each connection's end has said in these frames, by its ports.
fn spoken_in(captured: &[CapturedFrame]) -> HashMap<(u16, u16), Spoken> {
    let mut spoken = HashMap::<_, Spoken>::new();
    for frame in captured {
        let packet = SlicedPacket::from_ethernet(&frame.bytes).unwrap();
        let Some(TransportSlice::Tcp(segment)) = packet.transport else {
            panic!("a frame without TCP was captured");
        };
        let ports = (segment.source_port(), segment.destination_port());
        spoken.entry(ports).or_default().hear(&segment);
    }
    spoken
}

/// Ends a capture of one direction of echo connections with the last acknowledgement.
#[track_caller]
pub(crate) fn all_of(mut capture: Capture, connections: usize) -> Vec<CapturedFrame> {
    let are_over = |captured: &[CapturedFrame]| {
        let spoken = spoken_in(captured);
        spoken.values().filter(|one| one.is_over()).count() >= connections
    };
    let ended = capture.wait_until(timeout(), are_over);
    assert!(ended, "{:?}", spoken_in(capture.so_far()));
    // What was forwarded out of order comes after the end.
    let mut known = capture.so_far().len();
    while capture.wait_until(QUIET, |captured| captured.len() > known) {
        known = capture.so_far().len();
    }
    capture.finish().unwrap()
}

pub(crate) const TCP_FILTER: &str = "tcp or ip6 proto 6";

/// Captures the TCP that arrives at a host.
pub(crate) fn tcp_at(netns: &Netns) -> Capture {
    Capture::start(netns, FAR_END, "in", TCP_FILTER).unwrap()
}

#[track_caller]
pub(crate) fn counters(rig: Rig) -> Counters {
    moved(&rig.running.stop().unwrap())
}

#[track_caller]
pub(crate) fn assert_none(counters: &Counters, names: &[&str]) {
    for name in names {
        assert_eq!(count(counters, name), 0, "{name}");
    }
}

#[test]
fn tcp_of_the_host_is_marked_or_steered_by_its_destination() {
    both_engines(|| {
        let rig = Rig::lively(Plan::default(), &Config::default());
        let [host, clearnet, tornet] = rig.ends();
        let (exits, relays) = (tcp_at(clearnet), tcp_at(tornet));
        for (_, server, relay) in families() {
            converse(host, clearnet, server, 80, 500_000);
            converse(host, tornet, relay, OR_PORT, 500_000);
        }
        let (exits, relays) = (all_of(exits, 2), all_of(relays, 2));
        for frame in exits.iter().map(|frame| &frame.bytes) {
            assert_eq!(frame[..6], mac(CLEARNET_MAC));
            assert_eq!(frame[6..12], mac(HOST_MAC));
            assert_eq!((tos(frame) & 0xfc, hops(frame)), (AF11, 64));
        }
        for frame in relays.iter().map(|frame| &frame.bytes) {
            assert_eq!(frame[..6], mac(TORNET_MAC));
            assert_eq!(frame[6..12], mac(INCOMING_MAC));
            assert_eq!((tos(frame) & 0xfc, hops(frame)), (0, 64));
        }
        let counters = counters(rig);
        assert_eq!(count(&counters, "exit"), exits.len() as u64);
        assert_eq!(count(&counters, "marked"), exits.len() as u64);
        assert_eq!(count(&counters, "relay"), relays.len() as u64);
        assert_eq!(count(&counters, "incoming_forwarded"), relays.len() as u64);
        assert!(count(&counters, "incoming_received") >= 2 * 500_000 / 1448);
        let others = ["reply", "malformed", "cleared", "disagreement"];
        assert_none(&counters, &others);
    });
}

#[test]
fn tcp_to_a_listener_of_the_host_is_answered_unmarked() {
    both_engines(|| {
        let config = Config::default().host("listeners = [22]");
        let rig = Rig::lively(Plan::default(), &config);
        let capture = tcp_at(&rig.site.clearnet);
        for address in [IpAddr::from(HOST_V4), HOST_V6.into()] {
            converse(&rig.site.clearnet, &rig.site.host, address, 22, 300_000);
        }
        let answers = all_of(capture, 2);
        assert!(answers.iter().all(|frame| tos(&frame.bytes) & 0xfc == 0));
        let counters = counters(rig);
        assert_eq!(count(&counters, "reply"), answers.len() as u64);
        let others = ["exit", "relay", "marked", "cleared", "incoming_forwarded"];
        assert_none(&counters, &others);
    });
}

#[test]
fn jumbo_tcp_both_ways() {
    both_engines(|| {
        let rig = Rig::lively(JUMBO, &Config::default());
        let [host, clearnet, tornet] = rig.ends();
        let full = |netns| Capture::start(netns, FAR_END, "in", "greater 9014").unwrap();
        let long = [(clearnet, "exits"), (tornet, "relays"), (host, "answers")];
        let long = long.map(|(netns, what)| (full(netns), what));
        for (_, server, relay) in families() {
            converse(host, clearnet, server, 80, 2_000_000);
            converse(host, tornet, relay, OR_PORT, 2_000_000);
        }
        for (mut capture, what) in long {
            assert!(capture.counts(1), "no full jumbo frame among the {what}");
        }
        let counters = counters(rig);
        assert!(count(&counters, "exit") > 0 && count(&counters, "relay") > 0);
        assert_eq!(count(&counters, "malformed"), 0);
    });
}

#[test]
fn neighbours_are_resolved_and_pings_answered_through_the_wire() {
    both_engines(|| {
        let rig = Rig::lively(Plan::default(), &Config::default());
        let [host, clearnet, _] = rig.ends();
        for netns in [host, clearnet] {
            netns.ip("neigh flush all").unwrap();
        }
        for (from, to) in [
            (host, IpAddr::from(SERVER_V4)),
            (host, SERVER_V6.into()),
            (clearnet, HOST_V4.into()),
            (clearnet, HOST_V6.into()),
        ] {
            // The larger ones are fragmented.
            for bytes in [56, 4000] {
                ping(from, to, bytes).unwrap();
            }
        }
        for (netns, address, mac) in [
            (host, "192.0.2.1", CLEARNET_MAC),
            (host, "2001:db8:1::1", CLEARNET_MAC),
            (clearnet, "192.0.2.10", HOST_MAC),
            (clearnet, "2001:db8:1::10", HOST_MAC),
        ] {
            let known = netns.ip(&format!("neigh show {address} dev eth0")).unwrap();
            assert_says(&known, &[&format!("lladdr {mac}")]);
        }
        let counters = counters(rig);
        assert!(count(&counters, "non_ip") > 0, "ARP went past the box");
        assert!(count(&counters, "host") >= 16, "{counters:?}");
        assert_none(&counters, &["exit", "relay", "marked"]);
        assert_none(&counters, &["incoming_forwarded", "unseen_fragment"]);
    });
}

#[test]
fn the_box_itself_answers_only_on_incoming() {
    both_engines(|| {
        let rig = Rig::lively(Plan::default(), &Config::default());
        let [host, clearnet, tornet] = rig.ends();
        tornet.ip("neigh flush all").unwrap();
        for address in [IpAddr::from(BOX_V4), BOX_V6.into()] {
            ping(tornet, address, 56).unwrap();
            let known = tornet.ip(&format!("neigh show {address} dev eth0"));
            assert_says(&known.unwrap(), &[INCOMING_MAC]);
        }
        // On the wire the box does not answer, not even for an address that it has on those NICs.
        for port in ["host0", "uplink0"] {
            rig.ip(format!("addr add 192.0.2.77/24 dev {port}"));
        }
        for netns in [host, clearnet] {
            assert!(ping(netns, IpAddr::from([192, 0, 2, 77]), 56).is_err());
        }
        let counters = counters(rig);
        assert!(count(&counters, "incoming_to_stack") >= 4);
        assert_eq!(count(&counters, "incoming_received"), 0);
    });
}

/// Two queues on every NIC, two workers.
#[test]
fn tcp_over_several_queues() {
    both_engines(|| {
        let rig = Rig::lively(Plan::of_queues(2), &Config::default());
        assert_says(&rig.running.ready, &["workers=2"]);
        let [host, clearnet, tornet] = rig.ends();
        for port in 0..4 {
            for (_, server, relay) in families() {
                converse(host, clearnet, server, 80 + port, 100_000);
                converse(host, tornet, relay, OR_PORT, 100_000);
            }
        }
        let counters = counters(rig);
        assert!(count(&counters, "exit") > 100 && count(&counters, "relay") > 100);
        let forwarded = count(&counters, "incoming_forwarded");
        assert_eq!(forwarded, count(&counters, "relay"));
    });
}

/// One NIC and one network, two gateways: the relay listens behind the second one.
#[test]
fn tcp_where_uplink_is_incoming_too() {
    both_engines(|| {
        let site = Site::build(Plan::default()).unwrap();
        let second = &site.clearnet;
        for line in [
            "link add link eth0 name second type macvlan mode bridge".to_owned(),
            format!("link set second address {TORNET_MAC} up"),
            format!("addr add {RELAY_V4}/32 dev second"),
            format!("addr add {RELAY_V6}/128 dev second"),
            // Over IPv4 the relay answers to the box, over IPv6 directly to the host.
            "addr add 203.0.113.1/24 dev second".to_owned(),
            format!("neigh add {BOX_V4} lladdr {UPLINK0_MAC} dev second"),
            format!("rule add from {RELAY_V4} table 7"),
            format!("route add default via {BOX_V4} dev second table 7"),
        ] {
            second.ip(&line).unwrap();
        }
        for interface in ["all", "eth0", "second"] {
            let key = format!("net/ipv4/conf/{interface}/rp_filter");
            second.sysctl(&key, "0").unwrap();
        }
        let config = Config::default().incoming("uplink0", TORNET_MAC);
        let rig = Rig::on(site, &config);
        let [host, clearnet, _] = rig.ends();
        let steered = Capture::start(clearnet, "second", "in", TCP_FILTER).unwrap();
        let mut answers = Capture::start(clearnet, "second", "out", "tcp").unwrap();
        for (_, server, relay) in families() {
            converse(host, clearnet, relay, OR_PORT, 300_000);
            converse(host, clearnet, server, 80, 300_000);
        }
        for frame in all_of(steered, 2) {
            assert_eq!(frame.bytes[..6], mac(TORNET_MAC));
            assert_eq!(frame.bytes[6..12], mac(UPLINK0_MAC));
        }
        // Up to 64 KiB are one frame here, before segmentation.
        assert!(answers.wait_until(timeout(), |captured| captured.len() > 300_000 / 65_536));
        for frame in answers.finish().unwrap() {
            assert_eq!(frame.bytes[..6], mac(UPLINK0_MAC));
        }
        let counters = counters(rig);
        assert!(count(&counters, "relay") > 200 && count(&counters, "exit") > 200);
        assert_eq!(count(&counters, "incoming_forwarded"), 0);
    });
}

#[test]
fn without_incoming_relay_traffic_leaves_by_the_uplink_unmarked() {
    both_engines(|| {
        let site = Site::build(Plan::default()).unwrap();
        for address in [format!("{RELAY_V4}/32"), format!("{RELAY_V6}/128")] {
            let line = format!("addr add {address} dev eth0");
            site.clearnet.ip(&line).unwrap();
        }
        let rig = Rig::on(site, &Config::default().without_incoming());
        let [host, clearnet, _] = rig.ends();
        let capture = tcp_at(clearnet);
        for (_, _, relay) in families() {
            converse(host, clearnet, relay, OR_PORT, 100_000);
        }
        for frame in all_of(capture, 2) {
            assert_eq!(tos(&frame.bytes) & 0xfc, 0);
            assert_eq!(frame.bytes[..6], mac(CLEARNET_MAC));
        }
        let counters = counters(rig);
        assert!(count(&counters, "relay") > 100);
        let received = count(&counters, "host_received");
        assert_eq!(received, count(&counters, "uplink_forwarded"));
        assert_eq!(count(&counters, "marked"), 0);
    });
}
