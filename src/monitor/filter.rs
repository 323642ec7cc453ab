//! Selects the packets that count: those with the mark and a clearnet source address of the Tor
//! host (up), and, if both directions are counted, those with the mark and a clearnet destination
//! address (down). Implements the rule of bpf/monitor.bpf.c for packets from files; tests compare
//! the two.
//!
//! ECN is not part of the mark, because hosts change it. A packet may be truncated anywhere behind
//! its ports, in the capture or before: its own length field says how long it was. One that is
//! truncated before the TCP flags counts with all its bytes but begins no flow; such packets are
//! counted separately, because the flows are then too few.

use super::cell::{Direction, Directions};
use super::mirror::Unwrap;
use exitmark_policy::PrefixSet;
use exitmark_policy::packet::{
    Address, Dscp, Headers, Malformed, Packet, Version, fast_path_v4, fast_path_v6, parse,
    protocol, tag_bytes, transport,
};

/// A received packet, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// The bytes from the Ethernet header on, at least up to the ports and the TCP flags.
    pub bytes: &'a [u8],
}

/// The mark, the addresses and the directions to accept, and what is unwrapped before.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The DSCP value that marks exit traffic.
    pub dscp: Dscp,
    /// Clearnet addresses of the Tor host.
    pub clearnet: PrefixSet,
    /// Whether packets to these addresses count, too.
    pub directions: Directions,
    /// The mirrors' packets to unwrap.
    pub unwrap: Unwrap,
}

/// A packet that counts: with the mark, and from or to a clearnet address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedPacket {
    /// An IPv4 packet, with its remote address as a number in host byte order.
    V4(PacketFields<u32>),
    /// An IPv6 packet, with its remote address as a number in host byte order.
    V6(PacketFields<u128>),
}

/// The counted properties of a packet, and its remote address for the look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFields<A> {
    /// Whether the host sent the packet.
    pub direction: Direction,
    /// The remote address (up: the destination, down: the source), as a number in host byte order;
    /// only for the look-up.
    pub remote: A,
    /// The remote port; 0 for packets without ports, such as later fragments.
    pub port: u16,
    /// Length of the IP packet with its header, in bytes.
    pub bytes: u32,
    /// Whether the packet begins a TCP connection, which only the host's do; `None` if the flags
    /// were truncated.
    pub flow: Option<bool>,
}

/// Why a packet does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The frame is neither IPv4 nor IPv6.
    NotIp,
    /// The ethertype is IP, but the headers cannot be parsed.
    Malformed(Malformed),
    /// The DSCP value is not the mark.
    Unmarked,
    /// The source is not a clearnet address of the host.
    OtherSource,
    /// The destination is a clearnet address of the host, and only one direction is counted.
    Inbound,
}

/// Packets that did not count, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    not_ip: u64,
    malformed: [u64; Malformed::ALL.len()],
    unmarked: u64,
    other_source: u64,
    inbound: u64,
}

impl Refusals {
    /// Counts a packet under the reason for which it did not count.
    #[inline]
    pub fn add(&mut self, refusal: Refusal) {
        *match refusal {
            Refusal::NotIp => &mut self.not_ip,
            Refusal::Malformed(reason) => &mut self.malformed[reason as usize],
            Refusal::Unmarked => &mut self.unmarked,
            Refusal::OtherSource => &mut self.other_source,
            Refusal::Inbound => &mut self.inbound,
        } += 1;
    }

    /// The name and the count of each reason.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let policy = [
            ("not_ip", self.not_ip),
            ("unmarked", self.unmarked),
            ("other_source", self.other_source),
            ("inbound", self.inbound),
        ];
        let names = Malformed::ALL.map(Malformed::name);
        policy
            .into_iter()
            .chain(names.into_iter().zip(self.malformed))
    }

    /// Marked packets to the host that did not count.
    pub const fn inbound(&self) -> u64 {
        self.inbound
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.named().map(|(_, number)| number).sum()
    }
}

/// The frame's length, for the parser: a mirror may have cut it anywhere.
pub(super) const CUT: usize = usize::MAX;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Offset in the TCP header.
const FLAGS: usize = 13;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;

impl Filter {
    /// A filter for packets of the host that arrive as they are.
    pub const fn outbound(dscp: Dscp, clearnet: PrefixSet) -> Self {
        Self {
            dscp,
            clearnet,
            directions: Directions::Out,
            unwrap: Unwrap {
                erspan: false,
                vxlan: None,
            },
        }
    }

    /// Parses a packet and applies the rule. No input makes it panic.
    ///
    /// # Errors
    /// Why the packet does not count.
    // Inlined for its one hot caller, where the fields that the monitor does not use are not read:
    // a seventh fewer instructions per packet.
    #[inline(always)]
    pub fn judge(&self, packet: &Arrived<'_>) -> Result<CountedPacket, Refusal> {
        let opened = self.unwrap.open(packet.bytes);
        self.judge_bare(opened.map_err(Refusal::Malformed)?)
    }

    /// The packet without a mirror's packet around it, if it counts.
    pub fn unwrapped<'p>(&self, packet: &Arrived<'p>) -> Option<Arrived<'p>> {
        let bytes = self.unwrap.open(packet.bytes).ok()?;
        self.judge_bare(bytes).ok().map(|_| Arrived { bytes })
    }

    #[inline(always)]
    fn judge_bare(&self, bytes: &[u8]) -> Result<CountedPacket, Refusal> {
        let tags = tag_bytes(bytes);
        if let Some(packet) = fast_path_v4(bytes, tags, CUT) {
            let l4 = packet.l3 + IPV4_HEADER_BYTES;
            return self.part(bytes, &packet, Some(l4)).map(CountedPacket::V4);
        }
        if let Some(packet) = fast_path_v6(bytes, tags, CUT) {
            let l4 = packet.l3 + IPV6_HEADER_BYTES;
            return self.part(bytes, &packet, Some(l4)).map(CountedPacket::V6);
        }
        self.judge_others(bytes)
    }

    /// The slow path: options, extension headers, fragments, other protocols, malformed packets.
    #[inline(never)]
    fn judge_others(&self, bytes: &[u8]) -> Result<CountedPacket, Refusal> {
        match parse(bytes, CUT) {
            Headers::NotIp => Err(Refusal::NotIp),
            Headers::Malformed(reason) => Err(Refusal::Malformed(reason)),
            Headers::V4(packet) => {
                let l4 = transport(bytes, &packet);
                self.part(bytes, &packet, l4).map(CountedPacket::V4)
            }
            Headers::V6(packet) => {
                let l4 = transport(bytes, &packet);
                self.part(bytes, &packet, l4).map(CountedPacket::V6)
            }
        }
    }

    #[inline(always)]
    fn part<A: Address>(
        &self,
        bytes: &[u8],
        packet: &Packet<A>,
        l4: Option<usize>,
    ) -> Result<PacketFields<A>, Refusal> {
        if Dscp::of(packet.tos) != self.dscp {
            return Err(Refusal::Unmarked);
        }
        let direction = if self.clearnet.contains(packet.source.to_ip()) {
            Direction::Up
        } else if !self.clearnet.contains(packet.destination.to_ip()) {
            return Err(Refusal::OtherSource);
        } else if self.directions == Directions::Out {
            return Err(Refusal::Inbound);
        } else {
            Direction::Down
        };
        let (remote, port) = match direction {
            Direction::Up => (packet.destination, packet.ports.destination),
            Direction::Down => (packet.source, packet.ports.source),
        };
        let total = match A::VERSION {
            Version::V4 => be16(bytes, packet.l3 + 2),
            Version::V6 => be16(bytes, packet.l3 + 4) + 40,
        };
        let end = packet.l3 + total as usize;
        Ok(PacketFields {
            direction,
            remote,
            port,
            bytes: total,
            flow: match l4 {
                // Bytes behind the end of the packet are padding.
                _ if direction == Direction::Down => Some(false),
                Some(l4) if packet.protocol == protocol::TCP && l4 + FLAGS < end => bytes
                    .get(l4 + FLAGS)
                    .map(|flags| flags & (SYN | ACK) == SYN),
                _ => Some(false),
            },
        })
    }
}

/// Reads two bytes of a header that the parser has validated.
#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u32::from(high) << 8 | u32::from(low),
        _ => 0,
    }
}
