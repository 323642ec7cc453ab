//! Selects the packets that count: those with the mark and a clearnet source address of the Tor
//! host. Implements the rule of bpf/monitor.bpf.c for packets from files; tests compare the two.
//!
//! ECN is not part of the mark, because hosts change it. A packet may be truncated anywhere behind
//! its ports. One that is truncated before the TCP flags counts with all its bytes but begins no
//! flow; such packets are counted separately, because the flows are then too few.

use exitmark_policy::packet::{
    Address, Dscp, Headers, Malformed, Packet, Version, fast_path_v4, fast_path_v6, parse,
    protocol, tag_bytes, transport,
};
use std::net::IpAddr;

/// A received packet, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// The bytes from the Ethernet header on, at least up to the ports and the TCP flags.
    pub bytes: &'a [u8],
    /// Length of the whole frame; bytes beyond the slice were truncated. `usize::MAX` if it is
    /// unknown because the kernel has checked the length and truncated the frame.
    pub whole: usize,
}

/// The mark and the source addresses to accept.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The DSCP value that marks exit traffic.
    pub dscp: Dscp,
    /// Clearnet addresses of the Tor host.
    pub clearnet: Vec<IpAddr>,
}

/// A packet that counts: with the mark, and from a clearnet address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedPacket {
    /// An IPv4 packet, with its destination as a number in host byte order.
    V4(PacketFields<u32>),
    /// An IPv6 packet, with its destination as a number in host byte order.
    V6(PacketFields<u128>),
}

/// The counted properties of a packet, and its destination address for the look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFields<A> {
    /// The destination address, as a number in host byte order; only for the look-up.
    pub destination: A,
    /// The destination port; 0 for packets without ports, such as later fragments.
    pub port: u16,
    /// Length of the IP packet with its header, in bytes.
    pub bytes: u32,
    /// Whether the packet begins a TCP connection; `None` if the flags were truncated.
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
}

/// Packets that did not count, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    not_ip: u64,
    malformed: [u64; Malformed::ALL.len()],
    unmarked: u64,
    other_source: u64,
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
        } += 1;
    }

    /// The name and the count of each reason.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let policy = [
            ("not_ip", self.not_ip),
            ("unmarked", self.unmarked),
            ("other_source", self.other_source),
        ];
        let names = Malformed::ALL.map(Malformed::name);
        policy
            .into_iter()
            .chain(names.into_iter().zip(self.malformed))
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.named().map(|(_, number)| number).sum()
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Offset in the TCP header.
const FLAGS: usize = 13;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;

impl Filter {
    /// Parses a packet and applies the rule. No input makes it panic.
    ///
    /// # Errors
    /// Why the packet does not count.
    // Inlined for its one hot caller, where the fields that the monitor does not use are not read:
    // a seventh fewer instructions per packet.
    #[inline(always)]
    pub fn judge(&self, packet: &Arrived<'_>) -> Result<CountedPacket, Refusal> {
        let Arrived { bytes, whole } = *packet;
        let tags = tag_bytes(bytes);
        if let Some(packet) = fast_path_v4(bytes, tags, whole) {
            let l4 = packet.l3 + IPV4_HEADER_BYTES;
            return self.part(bytes, &packet, Some(l4)).map(CountedPacket::V4);
        }
        if let Some(packet) = fast_path_v6(bytes, tags, whole) {
            let l4 = packet.l3 + IPV6_HEADER_BYTES;
            return self.part(bytes, &packet, Some(l4)).map(CountedPacket::V6);
        }
        self.judge_others(bytes, whole)
    }

    /// The slow path: options, extension headers, fragments, other protocols, malformed packets.
    #[inline(never)]
    fn judge_others(&self, bytes: &[u8], whole: usize) -> Result<CountedPacket, Refusal> {
        match parse(bytes, whole) {
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
        let source = packet.source.to_ip();
        if !self.clearnet.contains(&source) {
            return Err(Refusal::OtherSource);
        }
        let total = match A::VERSION {
            Version::V4 => be16(bytes, packet.l3 + 2),
            Version::V6 => be16(bytes, packet.l3 + 4) + 40,
        };
        let end = packet.l3 + total as usize;
        Ok(PacketFields {
            destination: packet.destination,
            port: packet.ports.destination,
            bytes: total,
            flow: match l4 {
                // Bytes behind the end of the packet are padding.
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
