//! Evaluation of the captures: every sent frame is searched for on the other side and compared
//! byte for byte with the expected frame.
//!
//! Pure. The expected frame, checksum included, is computed with etherparse, never with the code
//! under test.

use super::captures::{ObservedFrame, Sightings};
use super::plan::{FLOWS, Flow, Kind, MARK, addresses, flow_of};
use etherparse::{IpDscp, Ipv4Header, Ipv6Header};
use exitmark_lab::site::{HOST_MAC, HOST_V4, HOST_V6, INCOMING_MAC, TORNET_MAC, mac};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

const LINK: usize = 14;

/// The port by which a frame left the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Uplink,
    Incoming,
}

/// The results of one flow.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) flow: &'static Flow,
    pub(super) sent: u64,
    pub(super) bytes: u64,
    pub(super) uplink: u64,
    pub(super) incoming: u64,
    /// Frames that carried the mark when they left the box.
    pub(super) marked: u64,
    /// Frames that left by the right port with exactly the expected bytes.
    pub(super) right: u64,
    /// DSCP before and after.
    pub(super) dscps: BTreeSet<(u8, u8)>,
    /// Whether MAC addresses were kept (false) or replaced by the expected ones (true).
    pub(super) new_macs: BTreeSet<bool>,
}

impl Row {
    pub(super) fn lost(&self) -> u64 {
        self.sent - self.uplink - self.incoming
    }

    pub(super) fn holds(&self) -> bool {
        self.sent > 0 && self.right == self.sent
    }
}

/// Frames towards the host.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) sent: u64,
    pub(super) bytes: u64,
    /// Frames that arrived with exactly the expected bytes.
    pub(super) right: u64,
    pub(super) lost: u64,
}

#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) rows: Vec<Row>,
    pub(super) from_clearnet: Answers,
    pub(super) from_tornet: Answers,
    /// Received frames without a matching sent frame: duplicates or corrupted frames.
    pub(super) strays: u64,
    /// Markers that did not arrive where the frames that they delimit do.
    pub(super) missed_markers: u64,
}

impl Evidence {
    pub(super) fn weigh(sightings: &Sightings) -> Self {
        let Sightings {
            host,
            clearnet,
            tornet,
            missed_markers,
        } = sightings;
        let mut rows: Vec<Row> = FLOWS.iter().map(Row::new).collect();
        let mut outbound = Ledger::new(host.sent.iter());
        let sides = [(Side::Uplink, clearnet), (Side::Incoming, tornet)];
        for (side, there) in sides {
            for observed in &there.received {
                // The box's own stack sends there too, for neighbour discovery.
                if side == Side::Incoming && is_of_the_box(&observed.bytes) {
                    continue;
                }
                if let Some(sent) = outbound.claim(observed)
                    && sent.counts
                {
                    rows[flow_of(&sent.bytes)].judge(&sent.bytes, &observed.bytes, side);
                }
            }
        }
        for sent in host.sent.iter().filter(|sent| sent.counts) {
            let row = &mut rows[flow_of(&sent.bytes)];
            row.sent += 1;
            row.bytes += sent.bytes.len() as u64;
        }

        let to_host = |observed: &&ObservedFrame| {
            addresses(&observed.bytes).is_some_and(|(_, destination)| is_the_host(destination))
        };
        let mut inbound_clearnet = Ledger::new(clearnet.sent.iter());
        let mut inbound_tornet = Ledger::new(tornet.sent.iter().filter(to_host));
        let mut from_clearnet = Answers::default();
        let mut from_tornet = Answers::default();
        let mut strays = outbound.strays;
        for observed in &host.received {
            if let Some(sent) = inbound_tornet.find(observed) {
                from_tornet.judge(sent, observed, &routed(&sent.bytes));
            } else if let Some(sent) = inbound_clearnet.find(observed) {
                from_clearnet.judge(sent, observed, &sent.bytes);
            } else if observed.counts {
                strays += 1;
            }
        }
        from_clearnet.lost = inbound_clearnet.unclaimed();
        from_clearnet.sent += from_clearnet.lost;
        from_tornet.lost = inbound_tornet.unclaimed();
        from_tornet.sent += from_tornet.lost;
        Self {
            rows,
            from_clearnet,
            from_tornet,
            strays,
            missed_markers: *missed_markers,
        }
    }

    /// The sum of `number` over all flows of a kind.
    pub(super) fn sum(&self, kind: Kind, number: impl Fn(&Row) -> u64) -> u64 {
        let rows = self.rows.iter().filter(|row| row.flow.kind == kind);
        rows.map(number).sum()
    }

    /// Frames sent, in either direction, that no capture received.
    pub(super) fn lost(&self) -> u64 {
        let outbound: u64 = self.rows.iter().map(Row::lost).sum();
        outbound + self.from_clearnet.lost + self.from_tornet.lost
    }

    /// Whether every frame arrived where it should with the expected bytes.
    pub(super) fn holds(&self) -> bool {
        self.strays == 0
            && self.missed_markers == 0
            && self.rows.iter().all(Row::holds)
            && self.from_clearnet.holds()
            && self.from_tornet.holds()
    }
}

impl Row {
    fn new(flow: &'static Flow) -> Self {
        Self {
            flow,
            sent: 0,
            bytes: 0,
            uplink: 0,
            incoming: 0,
            marked: 0,
            right: 0,
            dscps: BTreeSet::new(),
            new_macs: BTreeSet::new(),
        }
    }

    fn judge(&mut self, sent: &[u8], observed: &[u8], side: Side) {
        match side {
            Side::Uplink => self.uplink += 1,
            Side::Incoming => self.incoming += 1,
        }
        let (proper_side, proper) = match self.flow.kind {
            Kind::Exit => (Side::Uplink, marked(sent)),
            Kind::Relay => (Side::Incoming, Some(steered(sent))),
            Kind::Other => (Side::Uplink, Some(sent.to_vec())),
        };
        if side == proper_side && proper.as_deref() == Some(observed) {
            self.right += 1;
        }
        let after = dscp(observed);
        if after == Some(MARK) {
            self.marked += 1;
        }
        self.dscps.extend(dscp(sent).zip(after));
        if observed.get(..12) == sent.get(..12) {
            self.new_macs.insert(false);
        } else if observed.get(..12) == steered(sent).get(..12) {
            self.new_macs.insert(true);
        }
    }
}

impl Answers {
    pub(super) fn holds(&self) -> bool {
        self.sent > 0 && self.right == self.sent
    }

    fn judge(&mut self, sent: &ObservedFrame, observed: &ObservedFrame, proper: &[u8]) {
        if sent.counts {
            self.sent += 1;
            self.bytes += sent.bytes.len() as u64;
            self.right += u64::from(observed.bytes == proper);
        }
    }
}

/// Sent frames, each to be matched with one received frame. Identical frames match in the order
/// in which they were sent, except that frames between the markers match one another first:
/// kernels send identical frames, and one sent before the other capture began is never received.
struct Ledger<'a> {
    open: HashMap<Vec<u8>, VecDeque<&'a ObservedFrame>>,
    strays: u64,
}

impl<'a> Ledger<'a> {
    fn new(sent: impl Iterator<Item = &'a ObservedFrame>) -> Self {
        let mut open: HashMap<_, VecDeque<_>> = HashMap::new();
        for frame in sent {
            let same = open.entry(essence(&frame.bytes)).or_default();
            same.push_back(frame);
        }
        Self { open, strays: 0 }
    }

    fn find(&mut self, observed: &ObservedFrame) -> Option<&'a ObservedFrame> {
        let open = self.open.get_mut(&essence(&observed.bytes))?;
        let like = open.iter().position(|sent| sent.counts == observed.counts);
        open.remove(like.unwrap_or(0))
    }

    fn claim(&mut self, observed: &ObservedFrame) -> Option<&'a ObservedFrame> {
        let sent = self.find(observed);
        self.strays += u64::from(sent.is_none() && observed.counts);
        sent
    }

    fn unclaimed(&self) -> u64 {
        let open = self.open.values().flatten();
        open.filter(|frame| frame.counts).count() as u64
    }
}

/// The part that the box never changes: the frame without MAC addresses, DSCP and IPv4 checksum.
fn essence(frame: &[u8]) -> Vec<u8> {
    let mut essence = frame.to_vec();
    if let Some(macs) = essence.get_mut(..12) {
        macs.fill(0);
    }
    if is_ipv4(frame) {
        essence[LINK + 1] &= 0x03;
        essence[LINK + 10..LINK + 12].fill(0);
    } else if is_ipv6(frame) {
        essence[LINK] &= 0xf0;
        essence[LINK + 1] &= 0x3f;
    }
    essence
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x00]) && frame.len() >= LINK + 20
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.len() >= LINK + 40
}

fn dscp(frame: &[u8]) -> Option<u8> {
    if is_ipv4(frame) {
        Some(frame[LINK + 1] >> 2)
    } else if is_ipv6(frame) {
        Some((frame[LINK] & 0x0f) << 2 | frame[LINK + 1] >> 6)
    } else {
        None
    }
}

/// The frame expected for an exit frame.
fn marked(sent: &[u8]) -> Option<Vec<u8>> {
    let (link, packet) = sent.split_at_checked(LINK)?;
    if is_ipv4(sent) {
        let (mut header, rest) = Ipv4Header::from_slice(packet).ok()?;
        header.dscp = IpDscp::try_new(MARK).ok()?;
        header.header_checksum = header.calc_header_checksum();
        Some([link, &header.to_bytes(), rest].concat())
    } else {
        let (mut header, rest) = Ipv6Header::from_slice(packet).ok()?;
        header.traffic_class = MARK << 2 | header.traffic_class & 0x03;
        Some([link, &header.to_bytes(), rest].concat())
    }
}

/// The frame expected for a relay frame.
fn steered(sent: &[u8]) -> Vec<u8> {
    let macs = [mac(TORNET_MAC), mac(INCOMING_MAC)].concat();
    let rest = sent.iter().skip(12).copied();
    macs.into_iter().chain(rest).collect()
}

/// The frame expected for a frame from the network that carries Tor traffic.
fn routed(sent: &[u8]) -> Vec<u8> {
    let rest = sent.iter().skip(6).copied();
    mac(HOST_MAC).into_iter().chain(rest).collect()
}

fn is_the_host(address: IpAddr) -> bool {
    address == IpAddr::from(HOST_V4) || address == IpAddr::from(HOST_V6)
}

/// Whether the box's own network stack sent this frame: its MAC source address is the box's, and
/// it is not an IP packet from the host.
fn is_of_the_box(frame: &[u8]) -> bool {
    frame.get(6..12) == Some(&mac(INCOMING_MAC))
        && !addresses(frame).is_some_and(|(source, _)| is_the_host(source))
}

#[cfg(test)]
mod tests {
    use super::super::captures::Sighting;
    use super::super::plan::{DNS, SSH, WEB};
    use super::*;
    use etherparse::PacketBuilder;
    use exitmark_lab::site::{CLEARNET_MAC, OR_PORT, RELAY_V4, RELAY_V6, SERVER_V4, SERVER_V6};
    use std::fmt::Debug;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn link() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2(mac(HOST_MAC), mac(CLEARNET_MAC))
    }

    fn frame<E: Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
        let mut frame = Vec::new();
        write(&mut frame).unwrap();
        frame
    }

    fn v4(to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
        let builder = link().ipv4(HOST_V4.octets(), to.octets(), 64);
        let builder = builder.tcp(ports.0, ports.1, 7, 512);
        frame(|out| builder.write(out, b"some text"))
    }

    fn v6(to: Ipv6Addr, port: u16) -> Vec<u8> {
        let builder = link().ipv6(HOST_V6.octets(), to.octets(), 64);
        let builder = builder.tcp(40_000, port, 7, 512);
        frame(|out| builder.write(out, b"some text"))
    }

    /// One frame of each flow, in the order of [`FLOWS`].
    fn one_of_each() -> Vec<Vec<u8>> {
        let to = |to: Ipv4Addr| link().ipv4(HOST_V4.octets(), to.octets(), 64);
        let refusal = to(RELAY_V4).tcp(40_000, OR_PORT, 7, 0).rst();
        let ping = to(SERVER_V4).icmpv4_echo_request(1, 1);
        let no_ip = |kind: [u8; 2], rest: &[u8]| {
            let macs = [mac(CLEARNET_MAC), mac(HOST_MAC)].concat();
            [&macs[..], &kind, rest].concat()
        };
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([1; 20]);
        vec![
            v4(SERVER_V4, (40_000, WEB)),
            v6(SERVER_V6, WEB),
            v4(RELAY_V4, (40_000, WEB)),
            v4(RELAY_V4, (40_000, OR_PORT)),
            v6(RELAY_V6, OR_PORT),
            v4(SERVER_V4, (40_000, DNS)),
            frame(|out| to(SERVER_V4).udp(5, DNS).write(out, b"?")),
            v4(SERVER_V4, (SSH, 40_000)),
            frame(|out| ping.write(out, b"?")),
            no_ip([8, 6], &arp),
            frame(|out| refusal.write(out, b"")),
            no_ip([0x88, 0xb5], b"nothing known"),
        ]
    }

    fn observed(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<ObservedFrame> {
        let counts = true;
        let frames = frames.into_iter();
        frames
            .map(|bytes| ObservedFrame { bytes, counts })
            .collect()
    }

    fn sighting(sent: Vec<Vec<u8>>, received: Vec<Vec<u8>>) -> Sighting {
        Sighting {
            sent: observed(sent),
            received: observed(received),
        }
    }

    /// The three captures of a run without faults.
    fn ideal() -> Sightings {
        let sent = one_of_each();
        let (mut uplink, mut incoming) = (Vec::new(), Vec::new());
        for frame in &sent {
            match FLOWS[flow_of(frame)].kind {
                Kind::Exit => uplink.push(marked(frame).unwrap()),
                Kind::Relay => incoming.push(steered(frame)),
                Kind::Other => uplink.push(frame.clone()),
            }
        }
        let answer = PacketBuilder::ethernet2(mac(TORNET_MAC), mac(INCOMING_MAC))
            .ipv4(RELAY_V4.octets(), HOST_V4.octets(), 64)
            .tcp(OR_PORT, 40_000, 7, 512);
        let answer = frame(|out| answer.write(out, b"an answer"));
        let page = PacketBuilder::ethernet2(mac(CLEARNET_MAC), mac(HOST_MAC))
            .ipv4(SERVER_V4.octets(), HOST_V4.octets(), 64)
            .tcp(WEB, 40_000, 7, 512);
        let page = frame(|out| page.write(out, b"a page"));
        Sightings {
            host: sighting(sent, vec![page.clone(), routed(&answer)]),
            clearnet: sighting(vec![page], uplink),
            tornet: sighting(vec![answer], incoming),
            missed_markers: 0,
        }
    }

    #[test]
    fn matches_each_frame_with_its_flow() {
        let flows: Vec<usize> = one_of_each().iter().map(|frame| flow_of(frame)).collect();
        assert_eq!(flows, (0..FLOWS.len()).collect::<Vec<_>>());
    }

    #[test]
    fn holds_without_faults() {
        let evidence = Evidence::weigh(&ideal());
        assert!(evidence.holds(), "{evidence:?}");
        assert_eq!((evidence.lost(), evidence.strays), (0, 0));
    }

    fn mark(observed: &mut ObservedFrame) {
        observed.bytes = marked(&observed.bytes).unwrap();
    }

    #[test]
    fn detects_every_fault() {
        type Accident = fn(&mut Sightings);
        let accidents: [(&str, Accident, [u64; 3]); 13] = [
            (
                "exit frame lost",
                |s| drop(s.clearnet.received.remove(0)),
                [1, 0, 0],
            ),
            (
                "relay frame lost",
                |s| drop(s.tornet.received.remove(1)),
                [1, 0, 0],
            ),
            (
                "exit frame unmarked",
                |s| s.clearnet.received[0].bytes = s.host.sent[0].bytes.clone(),
                [0, 0, 1],
            ),
            (
                "checksum not updated",
                |s| s.clearnet.received[0].bytes[LINK + 10] ^= 1,
                [0, 0, 1],
            ),
            (
                "ECN touched",
                |s| s.clearnet.received[0].bytes[LINK + 1] ^= 1,
                [1, 1, 0],
            ),
            (
                "TTL touched",
                |s| s.clearnet.received[0].bytes[LINK + 8] -= 1,
                [1, 1, 0],
            ),
            (
                "payload touched",
                |s| *s.tornet.received[0].bytes.last_mut().unwrap() ^= 1,
                [1, 1, 0],
            ),
            (
                "relay frame marked",
                |s| mark(&mut s.tornet.received[0]),
                [0, 0, 1],
            ),
            (
                "old MAC address",
                |s| s.tornet.received[0].bytes[5] ^= 1,
                [0, 0, 1],
            ),
            (
                "relay frame leaked",
                |s| s.clearnet.received.push(s.tornet.received.remove(0)),
                [0, 0, 1],
            ),
            (
                "other frame marked",
                |s| mark(&mut s.clearnet.received[3]),
                [0, 0, 1],
            ),
            (
                "frame doubled",
                |s| {
                    let bytes = s.clearnet.received[0].bytes.clone();
                    s.clearnet.received.extend(observed([bytes]));
                },
                [0, 1, 0],
            ),
            (
                "answer lost",
                |s| drop(s.host.received.remove(1)),
                [1, 0, 0],
            ),
        ];
        for (what, happen, [lost, strays, wrong]) in accidents {
            let mut sightings = ideal();
            happen(&mut sightings);
            let evidence = Evidence::weigh(&sightings);
            assert!(!evidence.holds(), "{what}");
            assert_eq!(evidence.lost(), lost, "{what}");
            assert_eq!(evidence.strays, strays, "{what}");
            let rows = evidence.rows.iter();
            let wrong_observed: u64 = rows.map(|row| row.sent - row.lost() - row.right).sum();
            assert_eq!(wrong_observed, wrong, "{what}");
        }
    }

    #[test]
    fn a_missed_marker_is_a_failure() {
        let mut sightings = ideal();
        sightings.missed_markers = 1;
        assert!(!Evidence::weigh(&sightings).holds());
    }

    #[test]
    fn ignores_frames_outside_the_markers() {
        let mut sightings = ideal();
        // Received before the capture at the host had begun, sent after it had ended.
        let outside = |port| ObservedFrame {
            bytes: v4(SERVER_V4, (port, WEB)),
            counts: false,
        };
        sightings.clearnet.received.push(outside(1));
        sightings.host.sent.push(outside(2));
        assert!(Evidence::weigh(&sightings).holds());
    }

    #[test]
    fn ignores_an_earlier_copy_captured_at_one_end_only() {
        let mut sightings = ideal();
        let bytes = sightings.host.sent[9].bytes.clone();
        let counts = false;
        sightings
            .host
            .sent
            .insert(0, ObservedFrame { bytes, counts });
        assert!(Evidence::weigh(&sightings).holds());
    }
}
