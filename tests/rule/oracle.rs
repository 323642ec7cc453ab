//! Properties of arbitrary frames, with etherparse's parser as the oracle.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use exitmark_box::settings::Settings;
use exitmark_datapath::{Counter, Forwarder, Outcome, Role};
use exitmark_lab::cases::{CaseTable, tables};
use exitmark_lab::frames::{extension, of_protocol};
use exitmark_policy::packet::{
    Address, Headers, Packet, fast_path_v4, fast_path_v6, ipv4_header_checksum_is_good, parse,
    tag_bytes,
};
use exitmark_policy::{FragmentTable, Group, Snapshot, judge, judge_whole_v4, judge_whole_v6};
use proptest::prelude::*;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Frames of every shape the builder knows.
fn built() -> impl Strategy<Value = Vec<u8>> {
    let endpoints4 = prop_oneof![
        Just(("192.0.2.10:40000", "198.51.100.7:443")),
        Just(("192.0.2.10:22", "198.51.100.7:443")),
        Just(("192.0.2.10:40000", "198.18.0.1:9001")),
        Just(("192.0.2.99:40000", "198.18.0.1:9001")),
    ];
    let endpoints6 = prop_oneof![
        Just(("[2001:db8:1::10]:40000", "[2001:db8:51::7]:443")),
        Just(("[2001:db8:1::10]:40000", "[2001:db8:18::1]:9001")),
        Just(("[2001:db8:1::99]:40000", "[2001:db8:18::1]:9001")),
    ];
    let kinds = [
        extension::HOP_BY_HOP,
        extension::ROUTING,
        extension::DESTINATION,
    ];
    (
        prop_oneof![endpoints4, endpoints6],
        prop_oneof![Just(6u8), Just(17), any::<u8>()],
        any::<u8>(),
        proptest::collection::vec(
            (prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>()),
            0..3,
        ),
        proptest::option::weighted(0.3, (any::<u32>(), 0u16..0x1fff, any::<bool>())),
        proptest::collection::vec(proptest::sample::select(kinds.to_vec()), 0..10),
        0usize..=10,
        (0usize..100, 0usize..8),
    )
        .prop_map(
            |(ends, protocol, tos, tags, fragment, extensions, options, sizes)| {
                let mut frame = of_protocol(protocol, ends.0, ends.1)
                    .tos(tos)
                    .options(options * 4)
                    .extensions(&extensions)
                    .payload(sizes.0)
                    .padding(sizes.1);
                for (identifier, control) in tags {
                    frame = frame.tag(identifier, control);
                }
                if let Some((id, offset, more)) = fragment {
                    frame = frame.fragment(id, offset, more);
                }
                frame.build()
            },
        )
}

/// Built frames, frames with some bytes changed, truncated frames, and random bytes.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let changed = (
        built(),
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    )
        .prop_map(|(mut frame, changes)| {
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            frame
        });
    let cut = (built(), any::<prop::sample::Index>()).prop_map(|(mut frame, at)| {
        frame.truncate(at.index(frame.len() + 1));
        frame
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![4 => built(), 4 => changed, 2 => cut, 1 => noise]
}

/// The configurations of the tables in which no frame gets other VLAN tags or another address, parsed
/// once.
static POLICIES: LazyLock<Vec<(CaseTable, Settings, Arc<Snapshot>)>> = LazyLock::new(|| {
    let policy = |table: CaseTable| {
        let settings = table.settings().unwrap();
        let snapshot = Arc::new(table.snapshot(&settings));
        (table, settings, snapshot)
    };
    let policies = tables().into_iter().map(policy);
    let changes = |group: &Group| group.has_tags() || group.translates();
    let is_plain = |(_, settings, _): &(CaseTable, Settings, Arc<Snapshot>)| {
        !settings.rules.groups().iter().any(changes)
    };
    policies.filter(is_plain).collect()
});

/// A forwarder for one of the tables' configurations.
fn forwarder(choice: prop::sample::Index) -> Forwarder {
    let (table, settings, snapshot) = choice.get(&POLICIES);
    Forwarder::new(Arc::clone(snapshot), Arc::new(table.links(settings)))
}

/// The offset of the IP header and its version, by etherparse.
fn ip_header(frame: &[u8]) -> Option<(usize, u8)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let header = match sliced.net? {
        NetSlice::Ipv4(ipv4) => (ipv4.header().slice().as_ptr() as usize, 4),
        NetSlice::Ipv6(ipv6) => (ipv6.header().slice().as_ptr() as usize, 6),
        NetSlice::Arp(_) => return None,
    };
    Some((header.0 - frame.as_ptr() as usize, header.1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// For any frame: no panic, and only the six DSCP bits, the checksum that covers them, and the
    /// MAC addresses of a steered frame change.
    #[test]
    fn only_dscp_checksum_and_macs_ever_change(frame in any_frame(), choice in any::<prop::sample::Index>(), ingress in 0usize..3) {
        let mut forwarder = forwarder(choice);
        let ingress = Role::ALL[ingress];
        let mut after = frame.clone();
        let length = after.len();
        let (outcome, verdict) = forwarder.forward(ingress, &mut after, length, Duration::ZERO);
        prop_assert_eq!(after.len(), frame.len());
        prop_assert_eq!(verdict.is_some(), ingress == Role::Host);
        prop_assert_eq!(forwarder.tally().classified(), u64::from(ingress == Role::Host));

        let macs = frame.len().min(12);
        let steered = outcome == Outcome::Forward(Role::Incoming);
        let routed = ingress == Role::Incoming && outcome == Outcome::Forward(Role::Host);
        if !steered && !routed {
            prop_assert_eq!(&after[..macs], &frame[..macs]);
        }
        let remark = verdict.and_then(|verdict| verdict.remark);
        let mut allowed = frame.clone();
        if let Some(remark) = remark {
            // The oracle must agree on the header's offset and version. It refuses more frames (e.g.
            // with a truncated TCP header), so it is compared only if it accepts the frame.
            if let Some((l3, version)) = ip_header(&frame) {
                prop_assert_eq!(remark.l3, l3);
                prop_assert_eq!(version, if frame[l3] >> 4 == 4 { 4 } else { 6 });
            }
            let l3 = remark.l3;
            if frame[l3] >> 4 == 4 {
                prop_assert_eq!((frame[l3 + 1] ^ after[l3 + 1]) & 0b11, 0, "ECN");
                allowed[l3 + 1] = after[l3 + 1];
                allowed[l3 + 10..l3 + 12].copy_from_slice(&after[l3 + 10..l3 + 12]);
                let header = l3..l3 + usize::from(frame[l3] & 15) * 4;
                prop_assert_eq!(
                    ipv4_header_checksum_is_good(&after[header.clone()]),
                    ipv4_header_checksum_is_good(&frame[header])
                );
            } else {
                prop_assert_eq!((frame[l3 + 1] ^ after[l3 + 1]) & 0x3f, 0, "ECN and flow label");
                allowed[l3] = frame[l3] & 0xf0 | after[l3] & 0x0f;
                allowed[l3 + 1] = after[l3 + 1];
            }
            let marked = forwarder.tally().of(Counter::Marked) + forwarder.tally().of(Counter::Cleared);
            prop_assert_eq!(marked, 1);
        }
        prop_assert_eq!(&after[macs..], &allowed[macs..]);
    }

    /// The fast path's parser and judge agree with those for any frame, and accept every frame of
    /// the fast path.
    #[test]
    fn fast_path_agrees_with_the_general_parser(
        frame in any_frame(),
        choice in any::<prop::sample::Index>(),
        other_length in proptest::option::weighted(0.2, 0usize..300),
    ) {
        let length = other_length.unwrap_or(frame.len());
        let forwarder = forwarder(choice);
        let snapshot = forwarder.snapshot();
        let headers = parse(&frame, length);
        let verdict = judge(&headers, snapshot, &mut FragmentTable::default(), Duration::ZERO);
        let tags = tag_bytes(&frame);
        match (fast_path_v4(&frame, tags, length), fast_path_v6(&frame, tags, length)) {
            (Some(packet), None) => {
                prop_assert_eq!(headers, Headers::V4(packet));
                prop_assert_eq!(judge_whole_v4(packet, snapshot), verdict);
            }
            (None, Some(packet)) => {
                prop_assert_eq!(headers, Headers::V6(packet));
                prop_assert_eq!(judge_whole_v6(packet, snapshot), verdict);
            }
            (None, None) => {
                // Long enough for TCP's control bits, for any protocol.
                let word = |at: usize| usize::from(frame[at]) << 8 | usize::from(frame[at + 1]);
                let is_fast_path = match headers {
                    Headers::V4(packet) => frame[packet.l3] == 0x45
                        && packet.fragment.is_none() && matches!(packet.protocol, 6 | 17)
                        && word(packet.l3 + 2) >= 20 + 14
                        && frame.len() >= packet.l3 + 20 + 14,
                    Headers::V6(packet) => matches!(frame[packet.l3 + 6], 6 | 17)
                        && word(packet.l3 + 4) >= 14
                        && frame.len() >= packet.l3 + 40 + 14,
                    _ => false,
                };
                prop_assert!(!is_fast_path || length < frame.len(), "{headers:?}");
            }
            both => prop_assert!(false, "{both:?}"),
        }
    }

    /// The parser agrees with etherparse on every frame that etherparse accepts.
    #[test]
    fn agrees_with_etherparse(frame in any_frame()) {
        let ours = parse(&frame, frame.len());
        let Ok(sliced) = SlicedPacket::from_ethernet(&frame) else {
            return Ok(());
        };
        let expected: (IpAddr, IpAddr, u8, u8) = match &sliced.net {
            Some(NetSlice::Ipv4(ipv4)) => {
                let header = ipv4.header();
                (header.source_addr().into(), header.destination_addr().into(), header.protocol().0, header.slice()[1])
            }
            Some(NetSlice::Ipv6(ipv6)) => {
                let header = ipv6.header();
                let chain = ipv6.extensions().clone().into_iter().count();
                let class = header.traffic_class();
                if chain > 8 || header.payload_length() == 0 {
                    return Ok(());
                }
                (header.source_addr().into(), header.destination_addr().into(), ipv6.payload().ip_number.0, class)
            }
            _ => {
                prop_assert_eq!(ours, Headers::NotIp);
                return Ok(());
            }
        };
        let packet = match ours {
            Headers::V4(packet) => Packet { source: packet.source.to_ip(), destination: packet.destination.to_ip(), l3: packet.l3, vlan: packet.vlan, ports: packet.ports, tcp: packet.tcp, fragment: packet.fragment, tos: packet.tos, protocol: packet.protocol },
            Headers::V6(packet) => Packet { source: packet.source.to_ip(), destination: packet.destination.to_ip(), l3: packet.l3, vlan: packet.vlan, ports: packet.ports, tcp: packet.tcp, fragment: packet.fragment, tos: packet.tos, protocol: packet.protocol },
            _ => {
                // The ports of TCP and UDP are required; etherparse stops at unknown protocols.
                prop_assert!(sliced.transport.is_none(), "{:?}", ours);
                return Ok(());
            }
        };
        prop_assert_eq!((packet.source, packet.destination), (expected.0, expected.1));
        prop_assert_eq!(packet.tos, expected.3);
        match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                prop_assert_eq!(packet.protocol, 6);
                let ports = packet.ports;
                prop_assert_eq!((ports.source, ports.destination), (tcp.source_port(), tcp.destination_port()));
                let bits = tcp.slice()[13];
                prop_assert_eq!((packet.tcp.sequence, packet.tcp.control), (tcp.sequence_number(), bits));
            }
            Some(TransportSlice::Udp(udp)) => {
                prop_assert_eq!(packet.protocol, 17);
                let ports = packet.ports;
                prop_assert_eq!((ports.source, ports.destination), (udp.source_port(), udp.destination_port()));
            }
            // An authentication header is an extension in etherparse, but a protocol here.
            _ => if packet.protocol != 51 && packet.fragment.is_none() {
                prop_assert_eq!(packet.protocol, expected.2);
            },
        }
    }
}
