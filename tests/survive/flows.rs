//! The flows of the test: each frame as sent, its expected sink and its expected form there.
//!
//! The number of a frame determines its flow and its sequence number: frame `n` of a load of `f`
//! flows is number `n / f` of flow `n * STRIDE mod f`.

use exitmark_lab::frames::{FROM, Frame, TO, tcp, udp};
use exitmark_lab::site::{HOST_V4, HOST_V6, INCOMING_MAC, RELAY_V4, RELAY_V6, TORNET_MAC};
use exitmark_policy::Endpoint;
use exitmark_policy::packet::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

// Interface to tests/bpf/survive.bpf.c.
pub(crate) const FLOWS: u32 = 80;
pub(crate) const OUTBOUND: u32 = 64;
pub(crate) const SEQUENCES: u32 = 1 << 20;
const STRIDE: u64 = 37;
pub(crate) const FRAME_BYTES: usize = 96;
pub(crate) const HEADER_BYTES: usize = 76;
const MAGIC: u32 = 0x7375_7276;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    Uplink,
    Incoming,
    Host,
}

impl Sink {
    pub(crate) const ALL: [Self; 3] = [Self::Uplink, Self::Incoming, Self::Host];

    /// The number of the sink in the BPF program.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Uplink => 0,
            Self::Incoming => 1,
            Self::Host => 2,
        }
    }
}

/// One flow: its frame as sent and as expected.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
    pub(crate) sink: Sink,
    /// The class, for flows from the host.
    pub(crate) class: &'static str,
}

impl Flow {
    /// Whether the flow comes from the clearnet.
    pub(crate) fn is_inbound(&self) -> bool {
        self.sink == Sink::Host
    }
}

/// The mark of exit traffic, AF11.
const MARK: u8 = 0x28;
/// A port on which the host accepts connections.
pub(crate) const LISTENER: u16 = 22;
/// The number of listed endpoints of each family.
const LISTED: u16 = 8;

/// The relay endpoints that every set lists.
pub(crate) fn listed() -> Vec<Endpoint> {
    let at = |base: IpAddr, number| match base {
        IpAddr::V4(base) => {
            IpAddr::from(Ipv4Addr::from(u32::from(base) + u32::from(number) * 0x101))
        }
        IpAddr::V6(base) => IpAddr::from(Ipv6Addr::from(u128::from(base) + u128::from(number))),
    };
    let ports = [9001, 443, 9001, 20_001];
    let bases = [IpAddr::from(RELAY_V4), IpAddr::from(RELAY_V6)];
    let endpoint = |base, number| Endpoint::new(at(base, number), ports[usize::from(number) % 4]);
    bases
        .into_iter()
        .flat_map(|base| (0..LISTED).map(move |number| endpoint(base, number)))
        .collect()
}

/// All flows by number: `OUTBOUND` from the host, the others to it.
pub(crate) fn flows() -> Vec<Flow> {
    let host = |v6: bool, port| match v6 {
        false => SocketAddr::from((HOST_V4, port)),
        true => SocketAddr::from((HOST_V6, port)),
    };
    let listed = listed();
    let mut flows: Vec<Flow> = (0..12_u16)
        .flat_map(|number| [(false, number), (true, number)])
        .map(|(v6, number)| (host(v6, 40_000 + number), web(v6, number, 443)))
        .map(|(from, to)| exit(&tcp_between(from, to)))
        .collect();
    // A relay's address with a port of no relay.
    for relay in listed.iter().step_by(4) {
        let to = SocketAddr::from((relay.address, 8080));
        flows.push(exit(&tcp_between(host(to.is_ipv6(), 40_100), to)));
    }
    for (number, relay) in (40_200..).zip(listed.iter().chain(&listed[..8])) {
        let to = SocketAddr::from((relay.address, relay.port));
        // A frame with the mark must lose it.
        let tos = if number == 40_201 { MARK } else { 0 };
        let segment = tcp_between(host(to.is_ipv6(), number), to).tos(tos);
        flows.push(relayed(&segment));
    }
    for number in 0..6 {
        let v6 = number % 2 == 1;
        let tos = if number < 2 { MARK } else { 0 };
        let to = web(v6, number, 50_000 + number);
        let reply = tcp_between(host(v6, LISTENER), to).tos(tos);
        flows.push(unmarked(&reply, "reply"));
        let datagram = udp_between(host(v6, 41_000 + number), to).tos(tos);
        flows.push(unmarked(&datagram, "host"));
    }
    for number in 0..8 {
        let v6 = number % 2 == 1;
        // A mark on inbound frames stays.
        let tos = if number < 4 { MARK } else { 0 };
        let (from, to) = (web(v6, number, 443), host(v6, 40_000 + number));
        flows.push(inbound(&tcp_between(from, to).tos(tos)));
        flows.push(inbound(&udp_between(from, to).tos(tos)));
    }
    flows
}

fn web(v6: bool, number: u16, port: u16) -> SocketAddr {
    let address = match v6 {
        false => IpAddr::from([198, 51, 100, number.to_be_bytes()[1]]),
        true => IpAddr::from([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number]),
    };
    SocketAddr::from((address, port))
}

fn tcp_between(from: SocketAddr, to: SocketAddr) -> Frame {
    sized(tcp(&from.to_string(), &to.to_string()), to)
}

fn udp_between(from: SocketAddr, to: SocketAddr) -> Frame {
    sized(udp(&from.to_string(), &to.to_string()), to)
}

/// Pads a frame to the common length, so that all records have the same offset.
fn sized(frame: Frame, to: SocketAddr) -> Frame {
    let headers = if to.is_ipv6() { 14 + 40 } else { 14 + 20 };
    frame.payload(FRAME_BYTES - headers)
}

fn flow(before: &Frame, after: &Frame, sink: Sink, class: &'static str) -> Flow {
    let (before, after) = (before.build(), after.build());
    Flow {
        before,
        after,
        sink,
        class,
    }
}

fn exit(frame: &Frame) -> Flow {
    flow(frame, &frame.clone().tos(MARK), Sink::Uplink, "exit")
}

fn relayed(frame: &Frame) -> Flow {
    let steered = frame.clone().macs(mac(TORNET_MAC), mac(INCOMING_MAC));
    flow(frame, &steered.tos(0), Sink::Incoming, "relay")
}

fn unmarked(frame: &Frame, class: &'static str) -> Flow {
    flow(frame, &frame.clone().tos(0), Sink::Uplink, class)
}

fn inbound(frame: &Frame) -> Flow {
    let frame = frame.clone().macs(FROM, TO);
    flow(&frame, &frame, Sink::Host, "")
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

/// The flow and the sequence number of a frame.
pub(crate) fn place(number: u64, flows: u32) -> (u32, u32) {
    let flows = u64::from(flows);
    let small = |wide| u32::try_from(wide).unwrap();
    (small(number * STRIDE % flows), small(number / flows))
}

pub(crate) fn sign(frame: &mut [u8], flow: u32, sequence: u32) {
    let record = [MAGIC, flow, sequence].map(u32::to_ne_bytes);
    frame[HEADER_BYTES..HEADER_BYTES + 12].copy_from_slice(record.as_flattened());
}

#[test]
fn every_frame_has_its_own_place_and_a_record_behind_its_headers() {
    let flows = flows();
    assert_eq!(flows.len(), FLOWS as usize);
    for (number, flow) in (0..).zip(&flows) {
        assert_eq!(flow.before.len(), FRAME_BYTES);
        assert_eq!(flow.after.len(), FRAME_BYTES);
        assert_eq!(flow.is_inbound(), number >= OUTBOUND);
    }
    for flows in [OUTBOUND, FLOWS] {
        let places: std::collections::BTreeSet<_> = (0..10 * u64::from(flows))
            .map(|number| place(number, flows))
            .collect();
        assert_eq!(places.len(), 10 * flows as usize);
        let mut places = places.into_iter();
        assert!(places.all(|(flow, sequence)| flow < flows && sequence < 10));
    }
}
