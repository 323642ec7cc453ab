//! Which packets count: those that bear the mark and come from a clearnet address of the Tor host.
//! The same rule as bpf/monitor.bpf.c has, for what comes from files, and to be held against it.
//!
//! ECN, which the hosts change as they please, is no part of the mark. A packet may be cut off
//! anywhere behind its ports. One that is cut off before TCP's flags counts as a packet with all
//! its bytes, and begins no flow that anybody could see; how many did so is told apart, because
//! then the flows are too few.

use crate::packet::{
    Address, Dscp, Headers, Malformed, Packet, Version, parse, plain_v4, plain_v6, protocol,
    tag_bytes, transport,
};
use std::net::IpAddr;

/// A packet as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Its bytes from the Ethernet header on, at least up to the ports and TCP's flags.
    pub bytes: &'a [u8],
    /// How long the whole frame was; what the bytes lack of that was cut off. `usize::MAX` where
    /// nobody knows, because the kernel, which cut it, has checked it.
    pub whole: usize,
}

/// The rule.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The mark.
    pub dscp: Dscp,
    /// The host's clearnet addresses.
    pub clearnet: Vec<IpAddr>,
}

/// A packet that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Of IPv4.
    V4(Part<u32>),
    /// Of IPv6.
    V6(Part<u128>),
}

/// What counts of a packet, and the address that decides by which country and system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<A> {
    /// Where it goes to.
    pub destination: A,
    /// To which port; 0 for what has none, such as a later fragment.
    pub port: u16,
    /// The length of the IP packet, its header included.
    pub bytes: u32,
    /// Whether it begins a TCP connection; none where the flags were cut off.
    pub flow: Option<bool>,
}

/// Why a packet does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Said to be IP, and cannot be read.
    Malformed(Malformed),
    /// It has another DSCP value.
    Unmarked,
    /// It comes from somewhere else.
    OtherSource,
}

/// How many packets did not count, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    not_ip: u64,
    malformed: [u64; Malformed::ALL.len()],
    unmarked: u64,
    other_source: u64,
}

impl Refusals {
    /// Counts one.
    #[inline]
    pub fn add(&mut self, refusal: Refusal) {
        *match refusal {
            Refusal::NotIp => &mut self.not_ip,
            Refusal::Malformed(reason) => &mut self.malformed[reason as usize],
            Refusal::Unmarked => &mut self.unmarked,
            Refusal::OtherSource => &mut self.other_source,
        } += 1;
    }

    /// Every reason's name with its number.
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

    /// All of them.
    pub fn total(&self) -> u64 {
        self.named().map(|(_, number)| number).sum()
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// From the beginning of TCP's header.
const FLAGS: usize = 13;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;

impl Filter {
    /// What there is to count of a packet. No bytes make it panic.
    ///
    /// # Errors
    /// The packet does not count.
    #[inline]
    pub fn judge(&self, packet: &Arrived<'_>) -> Result<Seen, Refusal> {
        let Arrived { bytes, whole } = *packet;
        let tags = tag_bytes(bytes);
        if let Some(plain) = plain_v4(bytes, tags, whole) {
            let l4 = plain.l3 + IPV4_HEADER_BYTES;
            return self.part(bytes, &plain, Some(l4)).map(Seen::V4);
        }
        if let Some(plain) = plain_v6(bytes, tags, whole) {
            let l4 = plain.l3 + IPV6_HEADER_BYTES;
            return self.part(bytes, &plain, Some(l4)).map(Seen::V6);
        }
        self.judge_others(bytes, whole)
    }

    /// The rest: options, extension headers, fragments, other protocols, and what is broken.
    #[inline(never)]
    fn judge_others(&self, bytes: &[u8], whole: usize) -> Result<Seen, Refusal> {
        match parse(bytes, whole) {
            Headers::NotIp => Err(Refusal::NotIp),
            Headers::Malformed(reason) => Err(Refusal::Malformed(reason)),
            Headers::V4(packet) => {
                let l4 = transport(bytes, &packet);
                self.part(bytes, &packet, l4).map(Seen::V4)
            }
            Headers::V6(packet) => {
                let l4 = transport(bytes, &packet);
                self.part(bytes, &packet, l4).map(Seen::V6)
            }
        }
    }

    #[inline(always)]
    fn part<A: Address>(
        &self,
        bytes: &[u8],
        packet: &Packet<A>,
        l4: Option<usize>,
    ) -> Result<Part<A>, Refusal> {
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
        Ok(Part {
            destination: packet.destination,
            port: packet.ports.destination,
            bytes: total,
            flow: match l4 {
                // What lies behind the packet's end is padding.
                Some(l4) if packet.protocol == protocol::TCP && l4 + FLAGS < end => bytes
                    .get(l4 + FLAGS)
                    .map(|flags| flags & (SYN | ACK) == SYN),
                _ => Some(false),
            },
        })
    }
}

/// Two bytes of a header that was read before, so they are there.
#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u32::from(high) << 8 | u32::from(low),
        _ => 0,
    }
}
