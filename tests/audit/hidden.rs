//! Addresses in unusual places of a frame: a capture without addresses contains none of them.

use crate::rig::{ground, showing};
use exitmark_datapath::Role;
use exitmark_lab::cases::{HOST4, HOST6, WEB4, WEB6};
use exitmark_lab::frames::{extension, of_protocol, tcp, udp};
use exitmark_policy::packet::MacAddr;
use std::sync::Arc;

/// Eight bytes that the frames below have in unusual places, and that must not be captured.
const PLANTED: [u8; 8] = *b"\xc6\x33\x64\x63wxyz";

fn planted(mut frame: Vec<u8>, at: usize) -> Vec<u8> {
    let end = frame.len().min(at + PLANTED.len());
    frame[at..end].copy_from_slice(&PLANTED[..end - at]);
    frame
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    // Source routes and recorded routes: type, length, pointer, addresses.
    let mut source_route = planted(tcp(HOST4, WEB4).options(12).build(), 14 + 20 + 3);
    source_route[34..37].copy_from_slice(&[0x83, 11, 4]);
    let routing = tcp(HOST6, WEB6).extensions(&[extension::ROUTING; 3]);
    let mut routing = planted(routing.build(), 14 + 40 + 8);
    routing[55] = 2;
    // Home address.
    let destination = tcp(HOST6, WEB6).extensions(&[extension::DESTINATION; 3]);
    let mut destination = planted(destination.build(), 14 + 40 + 4);
    destination[55] = 2;
    // Multipath TCP: kind, length, what it is, an address.
    let mut multipath = planted(tcp(HOST4, WEB4).payload(60).build(), 14 + 20 + 20 + 4);
    multipath[14 + 20 + 12] = 0x80;
    multipath[54..58].copy_from_slice(&[30, 12, 0x30, 1]);
    // An invalid list of options.
    let mut broken = planted(tcp(HOST4, WEB4).payload(60).build(), 14 + 20 + 20 + 2);
    broken[14 + 20 + 12] = 0x80;
    broken[54..56].copy_from_slice(&[99, 200]);
    let icmp = of_protocol(1, HOST4, WEB4).build();
    let tunnel = of_protocol(4, HOST4, WEB4).build();
    let later = tcp(HOST4, WEB4).fragment(7, 100, false).build();
    let unknown = of_protocol(132, HOST4, WEB4).build();
    let mut solicitation = of_protocol(58, HOST6, WEB6).build();
    solicitation[54] = 135;
    let group = MacAddr::new([0x33, 0x33, 0xc6, 0x33, 0x64, 0x63]);
    let from = MacAddr::new([2, 0, 0, 0, 1, 1]);
    let multicast = udp(HOST6, "[ff02::c633:6463]:5353")
        .macs(group, from)
        .build();
    let mut arp = udp(HOST4, WEB4).build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    vec![
        ("a source route", source_route),
        ("a routing header", routing),
        ("a home address", destination),
        ("multipath TCP", multipath),
        ("no options", broken),
        ("what an ICMP error quotes", planted(icmp, 14 + 20 + 24)),
        ("a packet in a packet", planted(tunnel, 14 + 20 + 16)),
        ("neighbour discovery", planted(solicitation, 14 + 40 + 8)),
        ("a group's MAC address", multicast),
        ("address resolution", planted(arp, 14 + 24)),
        ("a later fragment", planted(later, 40)),
        ("padding", planted(udp(HOST4, WEB4).padding(20).build(), 80)),
        ("an unknown transport", planted(unknown, 40)),
    ]
}

fn captured(frame: &[u8], with_payload: bool, with_addresses: bool) -> Vec<u8> {
    let ground = ground();
    let links = Arc::new(ground.links());
    let sample = ground.by_worker(&links, &[(Role::Host, frame.to_vec())])[0];
    let request = showing(with_payload, with_addresses);
    let (mut sampler, pieces) = ground.capturing(links, request, true);
    sampler.add(&sample);
    sampler.end();
    pieces.iter().flatten().collect()
}

#[test]
fn no_address_in_unusual_places_is_captured() {
    let has = |bytes: &[u8]| bytes.windows(4).any(|window| window == &PLANTED[..4]);
    for (what, frame) in frames() {
        assert!(has(&frame), "{what} has it");
        assert!(!has(&captured(&frame, false, false)), "{what}");
        assert!(has(&captured(&frame, true, true)), "{what}");
        assert!(!has(&captured(&frame, true, false)), "{what}, with payload");
    }
}

/// For any bytes: no panic, and the result is not longer than the frame.
#[test]
fn cut_and_changed_frames_do_not_panic() {
    for (_, frame) in frames() {
        for length in (1..frame.len()).step_by(3) {
            captured(&frame[..length], false, false);
        }
        for at in 12..frame.len().min(70) {
            let mut changed = frame.clone();
            changed[at] = changed[at].wrapping_mul(31).wrapping_add(0x4f);
            captured(&changed, false, false);
        }
    }
}
