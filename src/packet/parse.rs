//! From a frame to its headers.

use super::ethernet::{self, Payload};
use super::{Address, Headers, Packet, Version, ipv4, ipv6};
use std::net::IpAddr;

/// Reads a frame's headers.
///
/// `frame` is the readable part, `frame_bytes` the length of the whole frame: they differ
/// where a jumbo frame lies in several buffers. No input makes it panic.
#[inline(always)]
pub fn parse(frame: &[u8], frame_bytes: usize) -> Headers {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => match ipv4::read(frame, l3, frame_bytes) {
            Ok(packet) => Headers::V4(packet),
            Err(reason) => Headers::Malformed(reason),
        },
        Payload::Ipv6(l3) => match ipv6::read(frame, l3, frame_bytes) {
            Ok(packet) => Headers::V6(packet),
            Err(reason) => Headers::Malformed(reason),
        },
        Payload::Other => Headers::NotIp,
    }
}

/// The destination address of an IP packet, if the frame holds that much of one. The rest of
/// the packet may be anything: to be delivered, a frame need not make sense to us.
#[inline]
pub fn destination(frame: &[u8]) -> Option<IpAddr> {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => ipv4::address(frame.get(l3..)?, ipv4::DESTINATION),
        Payload::Ipv6(l3) => ipv6::address(frame.get(l3..)?, ipv6::DESTINATION),
        Payload::Other => None,
    }
}

/// The source address, likewise.
#[inline]
pub fn source(frame: &[u8]) -> Option<IpAddr> {
    match ethernet::payload(frame) {
        Payload::Ipv4(l3) => ipv4::address(frame.get(l3..)?, ipv4::SOURCE),
        Payload::Ipv6(l3) => ipv6::address(frame.get(l3..)?, ipv6::SOURCE),
        Payload::Other => None,
    }
}

/// Where the transport header of a packet out of [`parse`] begins, from the frame's start. A later
/// fragment has none.
#[inline]
pub fn transport<A: Address>(frame: &[u8], packet: &Packet<A>) -> Option<usize> {
    if packet.fragment.is_some_and(|fragment| !fragment.first) {
        return None;
    }
    match A::VERSION {
        Version::V4 => ipv4::transport(frame, packet.l3),
        Version::V6 => ipv6::transport(frame, packet.l3),
    }
}
