//! The host's traffic: the axes of the bench, the flows of a load and their frames, the relays.
//!
//! Pure: the same load gives the same frames on every machine.

use crate::site::HOST_MAC;
use etherparse::PacketBuilder;
use exitmark_policy::packet::MacAddr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const ETHERNET_BYTES: usize = 14;
const TCP_BYTES: usize = 20;
/// The host's single addresses; all its other prefixes are networks.
const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);

// Interface to traffic.bpf.c.
const SEQUENCE_EXIT: u32 = 0x4558_4954;
const SEQUENCE_RELAY: u32 = 0x5245_4c41;

/// The address family of all frames, and of the relay set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// The length of the headers of every frame, which is the smallest frame of this family:
    /// Ethernet, IP and TCP, all without options.
    pub(crate) fn header_bytes(self) -> usize {
        let ip = match self {
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
        };
        ETHERNET_BYTES + ip + TCP_BYTES
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) family: Family,
    /// The requested frame size in bytes; [`Load::frame_bytes`] is the real one.
    pub(crate) size: usize,
    pub(crate) relay_percent: u8,
    /// The number of receive queues of every port, and of generators.
    pub(crate) queues: u32,
    pub(crate) flows: u32,
    /// The number of endpoints in the relay set, at least one.
    pub(crate) relays: u32,
    /// The number of the host's prefixes, over which the flows are spread.
    pub(crate) prefixes: u32,
}

impl Load {
    /// The first value of every axis.
    pub(crate) const BASE: Self = Self {
        family: Family::Ipv4,
        size: 64,
        relay_percent: 50,
        queues: 1,
        flows: 1024,
        relays: 10_000,
        prefixes: 1,
    };

    /// The length from the Ethernet header to the end of the payload, without the FCS. The smallest
    /// TCP frame of IPv6 has 74 bytes.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.size.max(self.family.header_bytes())
    }

    pub(crate) fn relays(&self) -> impl Iterator<Item = SocketAddr> {
        let family = self.family;
        (0..self.relays).map(move |number| relay(family, number))
    }

    pub(crate) fn host(&self) -> IpAddr {
        host(self.family, 0)
    }

    /// The host's prefixes in the notation of exitmark and nftables.
    pub(crate) fn host_prefixes(&self) -> impl Iterator<Item = String> {
        let family = self.family;
        (0..self.prefixes).map(move |number| match (number, host(family, number)) {
            (0, address) => address.to_string(),
            (_, IpAddr::V4(address)) => format!("{}/28", Ipv4Addr::from(u32::from(address) & !15)),
            (_, IpAddr::V6(address)) => {
                format!("{}/64", Ipv6Addr::from(u128::from(address) >> 64 << 64))
            }
        })
    }

    /// Whether there are exit flows, and whether there are relay flows.
    pub(crate) fn kinds(&self) -> (bool, bool) {
        let to_relay = |flow| self.is_to_relay(flow);
        (
            !(0..self.flows).all(to_relay),
            (0..self.flows).any(to_relay),
        )
    }

    fn is_to_relay(&self, flow: u32) -> bool {
        scatter(flow) % 100 < u32::from(self.relay_percent)
    }

    /// The destination of a flow. Every sixteenth exit flow goes to another port of a relay's
    /// address.
    fn destination(&self, flow: u32) -> SocketAddr {
        let anywhere = scatter(scatter(flow));
        let relay = |relays| relay(self.family, anywhere % relays);
        if self.is_to_relay(flow) {
            relay(self.relays)
        } else if flow.is_multiple_of(16) {
            SocketAddr::new(relay(self.relays).ip(), 8080)
        } else {
            let address = match self.family {
                Family::Ipv4 => Ipv4Addr::from(0x6440_0000 | (anywhere & 0x003f_ffff)).into(),
                Family::Ipv6 => {
                    let network = 0x3fff_u128 << 112 | u128::from(anywhere & 0xfff_ffff) << 64;
                    Ipv6Addr::from(network | u128::from(flow) << 16 | 1).into()
                }
            };
            SocketAddr::new(address, 443)
        }
    }

    /// The frame of a flow as sent by the host. In a million flows there are a few duplicates.
    pub(crate) fn frame(&self, flow: u32, next_hop: MacAddr) -> Vec<u8> {
        let to = self.destination(flow);
        let ethernet = PacketBuilder::ethernet2(HOST_MAC.bytes(), next_hop.bytes());
        let ip = match (host(self.family, flow % self.prefixes), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (from, to) => ethernet.ipv6(octets(from), octets(to), 64),
        };
        let sequence = match self.is_to_relay(flow) {
            true => SEQUENCE_RELAY,
            false => SEQUENCE_EXIT,
        };
        // 64,512 ports from 1024 on.
        let port = u16::try_from(1024 + flow % 64_512).unwrap_or(u16::MAX);
        let builder = ip.tcp(port, to.port(), sequence, 0xffff).ack(1);
        let payload = vec![0; self.frame_bytes() - self.family.header_bytes()];
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        // Writing to a vector fails only for a payload beyond 64 KiB, which the arguments exclude.
        let written = builder.write(&mut frame, &payload);
        debug_assert!(written.is_ok());
        frame
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} B, {} % to relays, queues: {}, flows: {}, relays: {}",
            self.family.name(),
            self.frame_bytes(),
            self.relay_percent,
            self.queues,
            self.flows,
            self.relays,
        )?;
        match self.prefixes {
            1 => Ok(()),
            prefixes => write!(f, ", prefixes: {prefixes}"),
        }
    }
}

/// The relay endpoint of a number, unique; half have port 443. IPv4 ones are scattered over
/// 198.18.0.0/15, IPv6 ones have a network each in 2001:2::/48.
fn relay(family: Family, number: u32) -> SocketAddr {
    let port = if number.is_multiple_of(2) { 443 } else { 9001 };
    let address: IpAddr = match family {
        // An odd factor permutes the numbers below a power of two.
        Family::Ipv4 => {
            Ipv4Addr::from(0xc612_0000 | (number.wrapping_mul(40_503) & 0x1_ffff)).into()
        }
        Family::Ipv6 => {
            let network = 0x2001_0002_0000_0000_u128 | u128::from(number & 0xffff);
            Ipv6Addr::from(network << 64 | u128::from(scatter(number))).into()
        }
    };
    SocketAddr::new(address, port)
}

/// The host's address in one of its prefixes, at most 256.
fn host(family: Family, prefix: u32) -> IpAddr {
    match (family, prefix) {
        (Family::Ipv4, 0) => HOST_V4.into(),
        (Family::Ipv6, 0) => HOST_V6.into(),
        (Family::Ipv4, _) => Ipv4Addr::from(0x0a00_100a | prefix << 16).into(),
        (Family::Ipv6, _) => {
            let network = 0x2001_0db8_0002_0000_u128 | u128::from(prefix << 4);
            Ipv6Addr::from(network << 64 | 0x10).into()
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Hashes a number (the finalizer of MurmurHash3, which is in the public domain).
fn scatter(number: u32) -> u32 {
    let mut mixed = number.wrapping_add(0x9e37_79b9);
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    mixed ^ (mixed >> 16)
}
