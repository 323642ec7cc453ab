//! Compares the kernel's filter with the parser: the same packets, the same refusals.

use exitmark_lab::differential::{Generator, GroupScenario, Scenario};
use exitmark_lab::{Netns, Random, needs_root};
use exitmark_monitor::tap::{Program, Sorted};
use exitmark_policy::packet::{Address, Dscp, Headers, Packet, parse, protocol};
use std::net::IpAddr;

const SEED: u64 = 0x7a9;
const SCENARIOS: usize = 4;
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

/// Source, offset of the IP header, ToS, protocol, and whether it is a later fragment.
fn fields<A: Address>(packet: &Packet<A>) -> (IpAddr, usize, u8, u8, bool) {
    let is_later = packet.fragment.is_some_and(|fragment| !fragment.first);
    let Packet { l3, tos, .. } = *packet;
    (packet.source.to_ip(), l3, tos, packet.protocol, is_later)
}

type Count = fn(&mut Sorted);

/// What the filter must do: bytes that remain of the frame, and the counter.
fn expected(frame: &[u8], mark: Dscp, clearnet: &[IpAddr]) -> (Option<usize>, Count) {
    let malformed: Count = |sorted| sorted.malformed += 1;
    let reach = &frame[..frame.len().min(FIRST_BUFFER)];
    let (source, l3, tos, carries, later) = match parse(reach, frame.len()) {
        Headers::NotIp => return (None, |sorted| sorted.not_ip += 1),
        Headers::Malformed(_) => return (None, malformed),
        Headers::V4(packet) => fields(&packet),
        Headers::V6(packet) => fields(&packet),
    };
    let length = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
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
    let bytes = (transport(reach, l3) + needed).min(end).min(reach.len());
    if bytes > LONGEST_HEADERS {
        return (None, malformed);
    }
    if Dscp::of(tos) != mark {
        return (None, |sorted| sorted.unmarked += 1);
    }
    if !clearnet.contains(&source) {
        return (None, |sorted| sorted.other_source += 1);
    }
    // The filter has no socket.
    (Some(bytes), |sorted| sorted.no_socket += 1)
}

/// Runs random frames through filter and parser; returns the filter's counters.
fn compare() -> Sorted {
    let mut random = Random::new(SEED);
    let mut all = Sorted::default();
    for _ in 0..SCENARIOS {
        let scenario = Scenario::some(&mut random);
        let mark = scenario.groups[0].mark;
        let ranges = scenario.groups.iter().flat_map(GroupScenario::hosts);
        let mut clearnet: Vec<IpAddr> = ranges
            .flat_map(|range| [range.network(), range.broadcast(), range.addr()])
            .collect();
        clearnet.truncate(64);
        let program = Program::load(mark, &clearnet, 1, true).unwrap();
        // The same program, where a driver leaves headers beyond the first buffer.
        let split = Program::load(mark, &clearnet, 1, true).unwrap();
        let mut generator = Generator::new(&scenario);
        let mut frame = Vec::new();
        let mut counters = Sorted::default();
        for _ in 0..FRAMES {
            generator.next(&mut random, &mut frame);
            let left = program.run(&frame).unwrap();
            let (bytes, count) = expected(&frame, mark, &clearnet);
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
                assert_eq!(parse(&left, usize::MAX), parse(reach, frame.len()));
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
        all.no_socket,
    ];
    assert!(counts.iter().all(|&count| count > 200), "{all:?}");
}
