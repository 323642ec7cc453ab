//! The kinds of frames whose decision is timed, and the flows of each.

use exitmark_datapath::Role;
use exitmark_lab::frames::{Frame, tcp, udp};
use exitmark_lab::site::{INCOMING_MAC, TORNET_MAC};
use std::net::SocketAddr;

pub(crate) const HOST_V4: &str = "192.0.2.10";
pub(crate) const HOST_V6: &str = "2001:db8:1::10";
/// The lengths of frames in bytes. The smaller one stands for 60 with IPv4, which is 64 with the FCS,
/// and for 80 with IPv6, whose TCP headers do not fit into 64.
pub(crate) const SIZES: [u32; 2] = [64, 1514];

/// How many flows there are, and endpoints in the relay set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) name: &'static str,
    pub(crate) flows: u32,
    pub(crate) endpoints: u32,
}

/// A ring's worth, and more than the caches hold.
pub(crate) const SCALES: [Scale; 2] = [
    Scale {
        name: "ring",
        flows: 1_024,
        endpoints: 1_024,
    },
    Scale {
        name: "cold",
        flows: 65_536,
        endpoints: 65_536,
    },
];

impl Scale {
    /// The endpoints of the relay set, both IP versions alternating.
    pub(crate) fn relays(self) -> impl Iterator<Item = SocketAddr> {
        (0..self.endpoints).map(|number| {
            let relay = match number % 2 {
                0 => relay4(number / 2),
                _ => relay6(number / 2),
            };
            relay.parse().unwrap()
        })
    }
}

/// Frames that the kernel's program treats in the same way.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// The port that receives them.
    pub(crate) ingress: Role,
    pub(crate) is_v6: bool,
    /// Whether the bare rule treats them as exitmark does.
    pub(crate) is_of_rule: bool,
    /// Builds the frame of a flow, given the number of relays of its IP version.
    make: fn(u32, u32) -> Frame,
}

const fn outbound(name: &'static str, is_v6: bool, make: fn(u32, u32) -> Frame) -> Kind {
    Kind {
        name,
        ingress: Role::Host,
        is_v6,
        is_of_rule: true,
        make,
    }
}

const fn inbound(name: &'static str, ingress: Role, make: fn(u32, u32) -> Frame) -> Kind {
    Kind {
        ingress,
        is_of_rule: false,
        ..outbound(name, false, make)
    }
}

pub(crate) const KINDS: [Kind; 13] = [
    outbound("exit4", false, |n, _| tcp(&host4(n), &web4(n))),
    outbound("exit6", true, |n, _| tcp(&host6(n), &web6(n))),
    outbound("relay4", false, |n, relays| {
        tcp(&host4(n), &relay4(n % relays))
    }),
    outbound("relay6", true, |n, relays| {
        tcp(&host6(n), &relay6(n % relays))
    }),
    outbound("exit4-marked", false, |n, _| {
        tcp(&host4(n), &web4(n)).tos(0x28)
    }),
    outbound("exit4-qinq", false, |n, _| {
        tcp(&host4(n), &web4(n)).tag(0x88a8, 7).tag(0x8100, 9)
    }),
    outbound("udp4", false, |n, _| udp(&host4(n), &web4(n))),
    Kind {
        is_of_rule: false,
        ..outbound("listener4", false, |n, _| tcp("192.0.2.10:22", &web4(n)))
    },
    outbound("foreign4", false, |n, _| tcp("192.0.2.99:40000", &web4(n))),
    inbound("from uplink", Role::Uplink, |n, _| tcp(&web4(n), &host4(n))),
    Kind {
        is_v6: true,
        ..inbound("from uplink, IPv6", Role::Uplink, |n, _| {
            tcp(&web6(n), &host6(n))
        })
    },
    inbound("from a relay by uplink", Role::Uplink, |n, relays| {
        tcp(&relay4(n % relays), &host4(n))
    }),
    inbound("from a relay by incoming", Role::Incoming, |n, relays| {
        let (own, router) = (INCOMING_MAC.parse().unwrap(), TORNET_MAC.parse().unwrap());
        tcp(&relay4(n % relays), &host4(n)).macs(own, router)
    }),
];

impl Kind {
    /// The frame of a flow, of this size.
    pub(crate) fn frame(&self, flow: u32, size: u32, scale: Scale) -> Vec<u8> {
        let frame = (self.make)(flow, scale.endpoints / 2);
        let headers = frame.clone().payload(0).build().len();
        let size = match (size, self.is_v6) {
            (64, false) => 60,
            (64, true) => 80,
            (size, _) => usize::try_from(size).unwrap(),
        };
        frame.payload(size - headers).build()
    }
}

const fn ephemeral(number: u32) -> u32 {
    10_000 + number % 50_000
}

fn host4(number: u32) -> String {
    format!("{HOST_V4}:{}", ephemeral(number))
}

fn host6(number: u32) -> String {
    format!("[{HOST_V6}]:{}", ephemeral(number))
}

fn web4(number: u32) -> String {
    let [_, _, high, low] = scattered(number).to_be_bytes();
    format!("100.64.{high}.{low}:443")
}

fn web6(number: u32) -> String {
    format!("[2001:db8:51:{:x}::7]:443", scattered(number) & 0xffff)
}

fn relay4(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("198.18.{high}.{low}:9001")
}

fn relay6(number: u32) -> String {
    format!("[2001:db8:18:{number:x}::1]:9001")
}

/// Another number below 65,536 for each: neighbouring flows have destinations far apart.
const fn scattered(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) & 0xffff
}
