//! The packets to count.

use crate::systems::Databases;
use exitmark_lab::Random;
use exitmark_monitor::filter::Filter;
use exitmark_policy::packet::Dscp;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SOURCE_V4: [u8; 4] = [192, 0, 2, 10];
const SOURCE_V6: [u8; 16] = [
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];
/// Destinations of realistic traffic.
const POPULAR: usize = 20_000;
const PORTS: [u16; 8] = [22, 25, 853, 993, 5222, 6667, 8080, 8443];

pub(crate) fn filter() -> Filter {
    Filter::outbound(Dscp::AF11, clearnet().into_iter().collect())
}

pub(crate) fn clearnet() -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::from(SOURCE_V4)),
        IpAddr::V6(Ipv6Addr::from(SOURCE_V6)),
    ]
}

#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Percentage of IPv6.
    pub(crate) v6: usize,
    /// Whether every packet goes to another range and port; otherwise a few places and ports get
    /// most packets.
    pub(crate) worst: bool,
    /// Percentage of SYN segments. Only these open cells in the monitor's table.
    pub(crate) syn: usize,
}

/// Percentage of SYN segments in realistic traffic.
pub(crate) const SYN: usize = 3;

/// Packets of a kind, the same at every start.
pub(crate) struct Traffic<'d> {
    databases: &'d Databases,
    random: Random,
    kind: Kind,
}

impl<'d> Traffic<'d> {
    pub(crate) fn new(databases: &'d Databases, kind: Kind) -> Self {
        Self {
            databases,
            random: Random::new(7),
            kind,
        }
    }

    /// The headers of the next packet, and its length.
    pub(crate) fn next(&mut self) -> (Vec<u8>, usize) {
        let is_v6 = self.random.percent(self.kind.v6);
        let payload = if self.random.percent(60) { 1400 } else { 20 };
        let mut frame = vec![2, 0, 0, 0, 2, 2, 2, 0, 0, 0, 1, 1];
        if is_v6 {
            let index = self.place(self.databases.v6.len());
            let destination = self.databases.v6[index] + u128::from(self.random.half());
            frame.extend([0x86, 0xdd, 0x62, 0x80, 0, 0]);
            frame.extend(length(20 + payload));
            frame.extend([6, 64]);
            frame.extend(SOURCE_V6);
            frame.extend(destination.to_be_bytes());
        } else {
            let index = self.place(self.databases.v4.len());
            let destination = self.databases.v4[index] + u32::from(self.random.byte());
            frame.extend([0x08, 0x00, 0x45, 0x28]);
            frame.extend(length(40 + payload));
            frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(SOURCE_V4);
            frame.extend(destination.to_be_bytes());
        }
        let port = self.port();
        frame.extend(40_000_u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        let flags = if self.random.percent(self.kind.syn) {
            0x02
        } else {
            0x10
        };
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        let whole = frame.len() + payload;
        (frame, whole)
    }

    /// Realistic: a quarter of the popular places gets more than half of the packets.
    fn place(&mut self, ranges: usize) -> usize {
        if self.kind.worst {
            return self.random.below(ranges);
        }
        let rank = self.random.below(POPULAR);
        let rank = rank * self.random.below(POPULAR) / POPULAR;
        // Spreads consecutive ranks.
        rank.wrapping_mul(2_654_435_761) % ranges
    }

    fn port(&mut self) -> u16 {
        match self.random.below(100) {
            _ if self.kind.worst => self.random.half(),
            0..80 => 443,
            80..90 => 80,
            90..98 => self.random.one_of(PORTS),
            _ => self.random.half(),
        }
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap().to_be_bytes()
}
