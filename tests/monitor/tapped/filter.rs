//! Compares the kernel's filter with the parser: the same packets, the same refusals.

use crate::mirrored::{self, Outer};
use exitmark_lab::differential::{Generator, GroupScenario, Scenario};
use exitmark_lab::{Netns, Random, needs_root};
use exitmark_monitor::cell::Directions;
use exitmark_monitor::filter::Filter;
use exitmark_monitor::mirror::Unwrap;
use exitmark_monitor::tap::{Program, Sorted};
use exitmark_policy::PrefixSet;
use exitmark_policy::packet::{Address, Dscp, Headers, Packet, parse, protocol};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SEED: u64 = 0x7a9;
const SCENARIOS: usize = 8;
const FRAMES: usize = 3000;
/// Bytes of a frame that BPF_PROG_RUN puts into the first buffer: a page minus headroom and
/// skb_shared_info.
const FIRST_BUFFER: usize = 4096 - 256 - 320;
/// Must match bpf/monitor.bpf.c.
const LONGEST_HEADERS: usize = 1280;

/// Offset of the transport header of a valid packet.
fn transport(frame: &[u8], l3: usize) -> usize {
    if frame[l3] >> 4 == 4 {
        return l3 + usize::from(frame[l3] & 0x0f) * 4;
    }
    let (mut kind, mut at) = (frame[l3 + 6], l3 + 40);
    while matches!(kind, 0 | 43 | 44 | 60) {
        let (fragment, later) = (kind == 44, frame[at + 2] != 0 || frame[at + 3] & 0xf8 != 0);
        kind = frame[at];
        at += match fragment {
            true => 8,
            false => 8 + usize::from(frame[at + 1]) * 8,
        };
        if fragment && later {
            break;
        }
    }
    at
}

/// Both addresses, offset of the IP header, ToS, protocol, and whether it is a later fragment.
fn fields<A: Address>(packet: &Packet<A>) -> ([IpAddr; 2], usize, u8, u8, bool) {
    let is_later = packet.fragment.is_some_and(|fragment| !fragment.first);
    let Packet { l3, tos, .. } = *packet;
    let ends = [packet.source.to_ip(), packet.destination.to_ip()];
    (ends, l3, tos, packet.protocol, is_later)
}

type Count = fn(&mut Sorted);

/// What the filter must do: bytes that remain of the frame, and the counter.
fn expected(frame: &[u8], filter: &Filter, clearnet: &[IpNet]) -> (Option<usize>, Count) {
    let malformed: Count = |sorted| sorted.malformed += 1;
    let reach = &frame[..frame.len().min(FIRST_BUFFER)];
    let Ok(reach) = filter.unwrap.open(reach) else {
        return (None, malformed);
    };
    // What a mirror has put in front of the frame.
    let front = reach.as_ptr().addr() - frame.as_ptr().addr();
    let ([source, destination], l3, tos, carries, later) = match parse(reach, usize::MAX) {
        Headers::NotIp => return (None, |sorted| sorted.not_ip += 1),
        Headers::Malformed(_) => return (None, malformed),
        Headers::V4(packet) => fields(&packet),
        Headers::V6(packet) => fields(&packet),
    };
    let length = |at: usize| usize::from(u16::from_be_bytes([reach[at], reach[at + 1]]));
    let end = match source {
        IpAddr::V4(_) => l3 + length(l3 + 2),
        IpAddr::V6(_) => l3 + 40 + length(l3 + 4),
    };
    let needed = match carries {
        _ if later => 0,
        protocol::TCP => 20,
        protocol::UDP => 8,
        _ => 0,
    };
    let bytes = (transport(reach, l3) + needed).min(end);
    if bytes > reach.len() || front + bytes > LONGEST_HEADERS {
        return (None, malformed);
    }
    if Dscp::of(tos) != filter.dscp {
        return (None, |sorted| sorted.unmarked += 1);
    }
    let is_host = |address| clearnet.iter().any(|net| net.contains(&address));
    match (is_host(source), is_host(destination), filter.directions) {
        (false, false, _) => (None, |sorted| sorted.other_source += 1),
        (false, true, Directions::Out) => (None, |sorted| sorted.inbound += 1),
        // The filter has no socket.
        _ => (Some(front + bytes), |sorted| sorted.no_socket += 1),
    }
}

/// Sometimes sends a frame the other way, puts it into a mirror's packet, damages that, or cuts it.
fn change(random: &mut Random, frame: &mut Vec<u8>) {
    if random.percent(25) {
        // Source and destination of a frame without tags.
        match frame.get(12..14) {
            Some([0x08, 0x00]) if frame.len() >= 34 => frame[26..34].rotate_left(4),
            Some([0x86, 0xdd]) if frame.len() >= 54 => frame[22..54].rotate_left(16),
            _ => {}
        }
    }
    if random.percent(50) && frame.len() < 2000 {
        let kind = random.one_of(mirrored::KINDS);
        let outer = Outer {
            is_v6: random.percent(40),
            tags: random.one_of([0, 0, 1, 4, 5]),
            options: random.one_of([0, 0, 4, 40]),
            fragment: random.one_of([0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0005]),
        };
        let inner = frame.len();
        *frame = mirrored::wrapped(kind, outer, frame);
        let front = frame.len() - inner;
        if random.percent(40) {
            let at = random.below(front);
            frame[at] = random.byte();
        }
        if random.percent(10) {
            // The outer length ends the mirrored frame.
            frame[if outer.is_v6 { 18 } else { 16 } + 4 * outer.tags.min(4)] = 0;
        }
        if random.percent(10) {
            frame.extend((0..random.below(40)).map(|_| 0x81));
        }
    }
    if random.percent(10) {
        frame.truncate(14 + random.below(frame.len().max(15) - 14));
    }
}

/// The hosts' prefixes, or single addresses at their ends, and up to 1,000 of each IP version
/// around them.
fn clearnet(scenario: &Scenario, random: &mut Random) -> Vec<IpNet> {
    let hosts = scenario.groups.iter().flat_map(GroupScenario::hosts);
    let mut clearnet: Vec<IpNet> = match random.percent(50) {
        true => hosts.collect(),
        false => hosts
            .flat_map(|host| [host.network(), host.broadcast(), host.addr()].map(IpNet::from))
            .collect(),
    };
    let of_v4 = |index: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(index << 22 | 0x155)));
    let of_v6 = |index: u32| IpNet::from(IpAddr::from(Ipv6Addr::from(u128::from(index) << 118)));
    clearnet.truncate(24);
    let more = random.one_of([0, 2, 1000]);
    clearnet.extend((0..more).flat_map(|index| [of_v4(index), of_v6(index)]));
    clearnet
}

/// Runs random frames through filter and parser; returns the filter's counters.
fn compare() -> Sorted {
    let mut random = Random::new(SEED);
    let mut all = Sorted::default();
    for _ in 0..SCENARIOS {
        let scenario = Scenario::some(&mut random);
        let mark = scenario.groups[0].mark;
        let clearnet = clearnet(&scenario, &mut random);
        let filter = Filter {
            dscp: mark,
            clearnet: PrefixSet::new(clearnet.iter().copied()),
            directions: random.one_of([Directions::Out, Directions::Both]),
            unwrap: random.one_of([Unwrap::default(), mirrored::ALL, mirrored::ALL]),
        };
        let program = Program::load(&filter, 1, true).unwrap();
        // The same program, where a driver leaves headers beyond the first buffer.
        let split = Program::load(&filter, 1, true).unwrap();
        let mut generator = Generator::new(&scenario);
        let mut frame = Vec::new();
        let mut counters = Sorted::default();
        for _ in 0..FRAMES {
            generator.next(&mut random, &mut frame);
            change(&mut random, &mut frame);
            let left = program.run(&frame).unwrap();
            let (bytes, count) = expected(&frame, &filter, &clearnet);
            for sorted in [&mut counters, &mut all] {
                sorted.received += 1;
                count(sorted);
            }
            let after = program.counters().unwrap();
            assert_eq!(after, counters, "{clearnet:?} {frame:02x?}");
            let first = random.below(100).saturating_add(14).min(frame.len());
            let of_split = split.run_split(&frame, first).unwrap();
            assert_eq!(of_split, left, "{frame:02x?}");
            let rest = bytes.map_or(&frame[..], |bytes| &frame[..bytes]);
            assert_eq!(left.len(), rest.len(), "{frame:02x?}");
            assert!(left == rest, "{frame:02x?}");
            if bytes.is_some() {
                // The remaining bytes parse alike.
                let reach = &frame[..frame.len().min(FIRST_BUFFER)];
                let parsed = |bytes| parse(filter.unwrap.open(bytes).unwrap(), usize::MAX);
                assert_eq!(parsed(&left), parsed(reach));
            }
        }
    }
    all
}

#[test]
fn the_filter_and_the_parser_agree_on_random_frames() {
    needs_root!();
    let all = Netns::new("filter").unwrap().run(compare);
    println!("{all:?}");
    // Enough of each kind to detect a difference.
    let counts = [
        all.not_ip,
        all.malformed,
        all.unmarked,
        all.other_source,
        all.inbound,
        all.no_socket,
    ];
    assert!(counts.iter().all(|&count| count > 200), "{all:?}");
}
