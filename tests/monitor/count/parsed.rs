//! Packet parsing, compared with etherparse, and without a panic.

use super::{HOST, HOST_V6, MARKED, counter, judged};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use exitmark_lab::frames::{extension, tcp, udp};
use exitmark_monitor::filter::{Arrived, CountedPacket, Refusal};
use proptest::prelude::*;
use std::net::IpAddr;

fn endpoints() -> impl Strategy<Value = (bool, u32, u128, u16)> {
    (any::<bool>(), any::<u32>(), any::<u128>(), any::<u16>())
}

prop_compose! {
    fn any_frame()(
        (is_v6, v4, v6, port) in endpoints(),
        is_tcp: bool,
        tos in prop_oneof![Just(MARKED), Just(MARKED | 1), any::<u8>()],
        flags: u8,
        payload in 20..80_usize,
        options in 0..=10_usize,
        extensions in proptest::collection::vec(
            prop_oneof![Just(extension::ROUTING), Just(extension::DESTINATION)], 0..4),
        fragment in prop_oneof![3 => Just(None), 1 => (0..3_u16, any::<bool>()).prop_map(Some)],
        tags in 0..3_usize,
    ) -> Vec<u8> {
        let make = if is_tcp { tcp } else { udp };
        let v6 = std::net::Ipv6Addr::from(v6);
        let mut frame = if is_v6 {
            make(HOST_V6, &format!("[{v6}]:{port}")).extensions(&extensions)
        } else {
            make(HOST, &format!("{}:{port}", std::net::Ipv4Addr::from(v4))).options(options * 4)
        };
        frame = frame.tos(tos).payload(payload);
        if let Some((offset, more)) = fragment {
            frame = frame.fragment(9, offset, more);
        }
        for tag in 0..tags {
            frame = frame.tag(0x8100, u16::try_from(tag).unwrap());
        }
        frame.control(flags).build()
    }
}

/// A frame as etherparse parses it: ToS, IP length, destination, port, SYN without ACK.
fn independent(frame: &[u8]) -> Option<(u8, u32, IpAddr, u16, bool)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (tos, length, destination) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let tos = header.dcp().value() << 2 | header.ecn().value();
            let destination = IpAddr::V4(header.destination_addr());
            (tos, u32::from(header.total_len()), destination)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let length = 40 + u32::from(header.payload_length());
            let destination = IpAddr::V6(header.destination_addr());
            (header.traffic_class(), length, destination)
        }
        NetSlice::Arp(_) => return None,
    };
    let (port, begins) = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.destination_port(), tcp.syn() && !tcp.ack()),
        Some(TransportSlice::Udp(udp)) => (udp.destination_port(), false),
        _ => (0, false),
    };
    Some((tos, length, destination, port, begins))
}

/// etherparse finds no transport header in fragments, not even in the first.
fn agree(frame: &[u8]) {
    let Some((tos, length, destination, port, begins)) = independent(frame) else {
        return;
    };
    let (to, seen_port, bytes, flow) = match judged(frame) {
        Ok(CountedPacket::V4(found)) => (
            IpAddr::V4(found.remote.into()),
            found.port,
            found.bytes,
            found.flow,
        ),
        Ok(CountedPacket::V6(found)) => (
            IpAddr::V6(found.remote.into()),
            found.port,
            found.bytes,
            found.flow,
        ),
        Err(refusal) => {
            assert_eq!(refusal, Refusal::Unmarked, "{frame:02x?}");
            assert_ne!(tos >> 2, 10);
            return;
        }
    };
    assert_eq!(tos >> 2, 10);
    assert_eq!((to, bytes), (destination, length), "{frame:02x?}");
    let is_fragment =
        SlicedPacket::from_ethernet(frame).is_ok_and(|packet| packet.is_ip_payload_fragmented());
    if !is_fragment {
        assert_eq!((seen_port, flow), (port, Some(begins)), "{frame:02x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn etherparse_reads_the_same(frame in any_frame()) {
        assert!(independent(&frame).is_some(), "{frame:02x?}");
        agree(&frame);
    }

    #[test]
    fn the_filter_never_panics(
        frame in any_frame(),
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        cut: usize,
    ) {
        let mut frame = frame;
        for (at, byte) in changes {
            let at = at % frame.len();
            frame[at] = byte;
        }
        frame.truncate(cut % (frame.len() + 1));
        let mut counter = counter(2);
        counter.count(&[Arrived { bytes: &frame }]);
        let [(_, v4), (_, v6)] = counter.tally().totals();
        assert_eq!(v4.packets + v6.packets + counter.refusals().total(), 1);
    }
}
