//! The traffic of an exit host on the two links behind its box, parsed with etherparse.
//!
//! A flow is a SYN without ACK from the host, identified by its endpoints and its initial sequence
//! number: a retransmitted SYN is the same flow, a reused port is another one.
//!
//! Probes are frames that the test sends from the host, with a source port that no socket uses. A
//! probe to a relay shows by which link the box forwards it. Links keep the order of frames, so a
//! probe on each link is a marker: earlier frames of tor have arrived when the probe has.

use crate::ground::{Dual, Lot, OR_PORT, RESOLVER, WEB, relay};
use crate::web::DNS_PORT;
use etherparse::{LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice};
use exitmark_lab::site::mac;
use exitmark_lab::{Capture, CapturedFrame, Netns, RawPort};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The box's mark: AF11, its default.
const MARK: u8 = 10;
const PROBE_PORT: u16 = 1;
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    sequence: u32,
}

#[derive(Clone, Copy, Debug)]
struct FlowFrame {
    /// With the sequence number of a segment, or the first four bytes of a datagram's payload.
    flow: Flow,
    marked: bool,
    is_udp: bool,
    is_first: bool,
    /// Accepts a connection, or refuses a segment of an unknown one.
    is_answer: bool,
}

impl FlowFrame {
    /// Parses leniently, because captures truncate frames that the kernel has merged.
    fn read(frame: &CapturedFrame) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ethernet(&frame.bytes).ok()?;
        let (source, destination, dscp): (IpAddr, IpAddr, u8) = match packet.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                let (ip, dscp) = (ip.header(), ip.header().dcp().value());
                (ip.source_addr().into(), ip.destination_addr().into(), dscp)
            }
            LaxNetSlice::Ipv6(ip) => {
                let (ip, dscp) = (ip.header(), ip.header().traffic_class() >> 2);
                (ip.source_addr().into(), ip.destination_addr().into(), dscp)
            }
            LaxNetSlice::Arp(_) => return None,
        };
        let flow = |from, to, sequence| Flow {
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
            sequence,
        };
        let marked = dscp == MARK;
        match packet.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => {
                let sequence = tcp.sequence_number();
                Some(Self {
                    flow: flow(tcp.source_port(), tcp.destination_port(), sequence),
                    marked,
                    is_udp: false,
                    is_first: tcp.syn() && !tcp.ack(),
                    is_answer: tcp.syn() && tcp.ack() || tcp.rst() && (!tcp.ack() || sequence == 0),
                })
            }
            TransportSlice::Udp(udp) => {
                let number = udp.payload().first_chunk().copied();
                let number = number.map_or(0, u32::from_be_bytes);
                Some(Self {
                    flow: flow(udp.source_port(), udp.destination_port(), number),
                    marked,
                    is_udp: true,
                    is_first: false,
                    is_answer: false,
                })
            }
            _ => None,
        }
    }

    /// The number of a probe, from 1.
    fn probe(&self) -> Option<u32> {
        (self.flow.source.port() == PROBE_PORT).then_some(self.flow.sequence)
    }

    fn is_probe(frame: &CapturedFrame, number: u32) -> bool {
        Self::read(frame).is_some_and(|observed| observed.probe() == Some(number))
    }
}

/// The captures behind one box, and the raw port of its host for probes.
pub(crate) struct FlowCapture {
    uplink: Capture,
    incoming: Capture,
    port: RawPort,
    /// The host's own port on the link for Tor traffic, if it has one.
    second_port: Option<RawPort>,
    probes: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    /// Flows on the uplink with the mark.
    pub(crate) marked: BTreeSet<Flow>,
    /// The ports to which marked SYNs were sent again.
    pub(crate) repeated: Vec<u16>,
    /// Flows on the link that carries Tor traffic.
    pub(crate) steered: BTreeSet<Flow>,
    /// Queries to the resolver that were neither marked nor steered.
    pub(crate) queries: u64,
    /// Frames to the resolver that were marked or steered.
    pub(crate) wrong_queries: u64,
    /// Frames that were marked and steered.
    pub(crate) marked_incoming: u64,
    /// TCP on the uplink without the mark that is not an answer to a remote host.
    pub(crate) unmarked_uplink: Vec<(SocketAddr, SocketAddr)>,
}

impl FlowCapture {
    pub(crate) fn start(world: &Netns, lot: &Lot) -> Self {
        let capture = |link: &str| Capture::start(world, link, "in", "ip or ip6").unwrap();
        let port = |name| RawPort::open(&lot.host, name).unwrap();
        Self {
            uplink: capture(lot.uplink),
            incoming: capture(lot.incoming),
            port: port("eth0"),
            second_port: lot.middle.is_none().then(|| port("eth1")),
            probes: 0,
        }
    }

    /// Whether a frame from this address to this endpoint is steered now.
    pub(crate) fn is_steered(&mut self, lot: &Lot, from: Dual, endpoint: SocketAddr) -> bool {
        let number = self.send_segment(lot, from, endpoint);
        // A marker behind the probe, which always leaves by the uplink.
        let line = self.send_datagram(lot);
        let observed = sees_probe(&mut self.uplink, LIMIT, line);
        assert!(observed, "a probe was lost on {}", lot.uplink);
        if sees_probe(&mut self.uplink, Duration::ZERO, number) {
            return false;
        }
        let by_incoming = sees_probe(&mut self.incoming, LIMIT, number);
        assert!(by_incoming, "a probe was lost on {}", lot.incoming);
        true
    }

    /// Sends a marker on each link, and waits for both. Returns their two numbers.
    pub(crate) fn draw_line(&mut self, lot: &Lot) -> [u32; 2] {
        let to_authority = relay(1).at(OR_PORT)[0];
        let numbers = [
            self.send_datagram(lot),
            match self.second_port.take() {
                // An authority's endpoint, which is in every relay set, so that a box steers it.
                None => self.send_segment(lot, lot.first, to_authority),
                Some(second) => {
                    let first = std::mem::replace(&mut self.port, second);
                    let number = self.send_segment(lot, lot.first, to_authority);
                    self.second_port = Some(std::mem::replace(&mut self.port, first));
                    number
                }
            },
        ];
        let links = [&mut self.uplink, &mut self.incoming];
        for (capture, number) in links.into_iter().zip(numbers) {
            let observed = sees_probe(capture, LIMIT, number);
            let host = lot.host.label();
            assert!(observed, "a line is lost behind the box of {host}");
        }
        numbers
    }

    /// Ends the captures and counts frames up to these markers.
    pub(crate) fn finish(self, lot: &Lot, line: [u32; 2]) -> Flows {
        let own = [Some(lot.first), Some(lot.second), lot.third];
        let own: Vec<IpAddr> = own.into_iter().flatten().flat_map(Dual::both).collect();
        let mut flows = Flows::default();
        let links = [(self.uplink, true), (self.incoming, false)];
        for ((capture, is_uplink), number) in links.into_iter().zip(line) {
            let frames = capture.finish().unwrap();
            let is_before = |frame: &&CapturedFrame| !FlowFrame::is_probe(frame, number);
            let before = frames.iter().take_while(is_before);
            for observed in before.filter_map(FlowFrame::read) {
                if own.contains(&observed.flow.source.ip()) && observed.probe().is_none() {
                    flows.count(observed, is_uplink);
                }
            }
        }
        flows
    }

    /// Sends a segment of no connection.
    fn send_segment(&mut self, lot: &Lot, from: Dual, to: SocketAddr) -> u32 {
        self.probes += 1;
        let from = from.both()[usize::from(to.is_ipv6())];
        let header = link(lot, from, to.ip()).tcp(PROBE_PORT, to.port(), self.probes, 0);
        let mut frame = Vec::new();
        header.ack(0).write(&mut frame, &[]).unwrap();
        self.port.send(&frame).unwrap();
        self.probes
    }

    fn send_datagram(&mut self, lot: &Lot) -> u32 {
        self.probes += 1;
        let header = link(lot, lot.first.v4.into(), WEB.v4.into()).udp(PROBE_PORT, PROBE_PORT);
        let mut frame = Vec::new();
        let payload = self.probes.to_be_bytes();
        header.write(&mut frame, &payload).unwrap();
        self.port.send(&frame).unwrap();
        self.probes
    }
}

/// Waits for a probe; returns false on timeout.
fn sees_probe(capture: &mut Capture, limit: Duration, number: u32) -> bool {
    let is_it = |frame: &CapturedFrame| FlowFrame::is_probe(frame, number);
    // The newest frames are at the end.
    capture.wait_until(limit, |frames| frames.iter().rev().any(is_it))
}

impl Flows {
    fn count(&mut self, observed: FlowFrame, is_uplink: bool) {
        let FlowFrame { flow, marked, .. } = observed;
        if marked && !is_uplink {
            self.marked_incoming += 1;
        }
        let is_query = flow.destination == SocketAddr::from((RESOLVER, DNS_PORT));
        if is_query && (marked || !is_uplink) {
            self.wrong_queries += 1;
        } else if observed.is_udp {
            self.queries += u64::from(is_query);
        } else if observed.is_first && !is_uplink {
            self.steered.insert(flow);
        } else if observed.is_first && marked {
            if !self.marked.insert(flow) {
                self.repeated.push(flow.destination.port());
            }
        } else if is_uplink && !marked && flow.source.port() != OR_PORT && !observed.is_answer {
            self.unmarked_uplink.push((flow.source, flow.destination));
        }
    }
}

fn link(
    lot: &Lot,
    from: IpAddr,
    to: IpAddr,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let link = PacketBuilder::ethernet2(mac(&lot.host_mac), mac(&lot.gateway_mac));
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("a packet has addresses of one family"),
    }
}
