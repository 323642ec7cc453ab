//! Both directions: what counts as up and as down, and that the sums are those of the stream.

use super::{
    ACK, HOST, HOST_V6, MARKED, PLACES, SYN, SYN_ACK, addresses, cell, counts, filter, judged,
    whole,
};
use exitmark_lab::Random;
use exitmark_lab::frames::{extension, of_protocol, tcp, udp};
use exitmark_monitor::cell::{Cell, Counts, Direction, Directions};
use exitmark_monitor::filter::{CountedPacket, Filter, Refusal};
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::tally::{Counter, DEFAULT_CELLS, Tally};
use exitmark_policy::packet::Version;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn both() -> Filter {
    Filter {
        directions: Directions::Both,
        ..filter()
    }
}

fn counter() -> Counter {
    Counter::new(both(), Arc::clone(&PLACES), DEFAULT_CELLS)
}

const fn down(packets: u64, bytes: u64) -> Counts {
    Counts {
        down_bytes: bytes,
        down_packets: packets,
        ..counts(0, 0, 0)
    }
}

#[test]
fn an_answer_counts_in_the_cell_of_its_connection() {
    let (to, to_v6) = ("1.2.3.4:443", "[2001:db8:1::5]:22");
    let back = |from: &str, control| {
        let host = if from.starts_with('[') { HOST_V6 } else { HOST };
        tcp(from, host).tos(MARKED).control(control)
    };
    let frames = [
        super::segment(to, SYN),
        back(to, SYN_ACK),
        super::segment(to, ACK).payload(120),
        back(to, ACK).payload(1460),
        // ECN is not part of the mark.
        back(to, ACK).payload(1460).tos(MARKED | 3),
        udp(to, HOST).tos(MARKED).payload(92),
        // A connection from outside begins no flow.
        back(to, SYN),
        super::segment(to_v6, SYN),
        back(to_v6, SYN_ACK),
        back(to_v6, ACK).extensions(&[extension::DESTINATION]),
        // To ports and places without a connection.
        back("1.2.3.4:80", ACK),
        of_protocol(1, to, HOST).tos(MARKED),
    ];
    let mut counter = counter();
    for frame in frames {
        counter.count(&[whole(&frame.build())]);
    }
    let mut web = counts(2, 60 + 140, 1);
    web += down(5, 60 + 1480 + 1480 + 112 + 60);
    let mut shell = counts(1, 80, 1);
    shell += down(2, 80 + 88);
    let expected = Ledger {
        cells: vec![
            (cell(22, "FR", 64502, Version::V6), shell),
            (cell(443, "GB", 64500, Version::V4), web),
        ],
        unattributed: vec![(Version::V4, down(2, 120))],
        ..Ledger::default()
    };
    assert_eq!(counter.tally().ledger(), expected);
    assert_eq!(counter.refusals().total(), 0);
}

#[test]
fn a_packet_between_two_addresses_of_the_host_counts_up_only() {
    let filter = Filter {
        clearnet: addresses(["192.0.2.10", "192.0.2.11"]),
        ..both()
    };
    let frame = tcp(HOST, "192.0.2.11:443").tos(MARKED).control(SYN).build();
    let Ok(CountedPacket::V4(fields)) = filter.judge(&whole(&frame)) else {
        panic!("it counts");
    };
    let remote = u32::from_be_bytes([192, 0, 2, 11]);
    let expected = (Direction::Up, remote, 443, Some(true));
    let found = (fields.direction, fields.remote, fields.port, fields.flow);
    assert_eq!(found, expected);
}

#[test]
fn one_direction_refuses_answers_and_says_so() {
    let answer = tcp("1.2.3.4:443", HOST).tos(MARKED);
    assert_eq!(judged(&answer.build()), Err(Refusal::Inbound));
    let unmarked = answer.tos(0).build();
    assert_eq!(judged(&unmarked), Err(Refusal::Unmarked));
}

/// Packets of a stream in both directions, each cut somewhere behind its TCP flags, and what they
/// add up to: by cell, if a connection was begun there before.
pub(super) fn stream(
    random: &mut Random,
    packets: usize,
) -> (Vec<Vec<u8>>, BTreeMap<Cell, Counts>, Counts) {
    let places = [
        ("1.2.3.4", "GB", 64500),
        ("1.2.4.1", "DE", 64501),
        ("10.0.0.1", "??", 0),
    ];
    let mut by_cell = BTreeMap::<Cell, Counts>::new();
    let mut unattributed = Counts::default();
    let frames = (0..packets).map(|_| {
        let (address, country, asn) = random.one_of(places);
        let port = random.one_of([22, 80, 443]);
        let remote = format!("{address}:{port}");
        let payload = 20 + usize::from(random.half()) % 1441;
        let is_up = random.percent(40);
        let is_syn = random.percent(10);
        let control = if is_syn { SYN } else { ACK };
        let (from, to) = if is_up {
            (HOST, &*remote)
        } else {
            (&*remote, HOST)
        };
        let frame = tcp(from, to).tos(MARKED).control(control).payload(payload);
        // Without Ethernet's header. The payload includes TCP's header.
        let bytes = 20 + payload as u64;
        let counted = match is_up {
            true => counts(1, bytes, u64::from(is_syn)),
            false => down(1, bytes),
        };
        let key = cell(port, country, asn, Version::V4);
        if counted.flows > 0 || by_cell.contains_key(&key) {
            *by_cell.entry(key).or_default() += counted;
        } else {
            unattributed += counted;
        }
        let mut frame = frame.build();
        let rest = frame.len() - 54;
        frame.truncate(54 + random.below(rest + 1));
        frame
    });
    let frames = frames.collect();
    (frames, by_cell, unattributed)
}

#[test]
fn the_sums_of_a_stream_are_those_of_its_packets() {
    let (frames, by_cell, unattributed) = stream(&mut Random::new(20), 20_000);
    let expected = Ledger {
        cells: by_cell.into_iter().collect(),
        unattributed: vec![(Version::V4, unattributed)],
        ..Ledger::default()
    };
    let sum: Counts = expected.cells.iter().map(|(_, counts)| *counts).sum();
    assert!(sum.flows > 500 && sum.down_packets > 10_000 && sum.packets > 5000);
    let mut counter = counter();
    super::count(&mut counter, &frames);
    assert_eq!(counter.tally().ledger(), expected);
    // The same over tables that are handed over and restored.
    let mut whole_period = Tally::new(Arc::clone(&PLACES), DEFAULT_CELLS);
    let mut turn = Counter::of(both(), Tally::of_a_turn(Arc::clone(&PLACES), 64));
    let mut spare = Tally::of_a_turn(Arc::clone(&PLACES), 64);
    for frame in &frames {
        super::count(&mut turn, std::slice::from_ref(frame));
        spare = turn.exchange(spare);
        whole_period.absorb(&mut spare);
    }
    assert_eq!(whole_period.ledger(), expected);
    let mut restored = Tally::new(Arc::clone(&PLACES), DEFAULT_CELLS);
    restored.restore(&expected);
    assert_eq!(restored.ledger(), expected);
    assert_eq!(restored.totals(), whole_period.totals());
}

#[test]
fn a_full_table_counts_both_directions_in_every_dimension() {
    let (frames, by_cell, unattributed) = stream(&mut Random::new(21), 2000);
    let mut small = Counter::new(both(), Arc::clone(&PLACES), 1);
    super::count(&mut small, &frames);
    let ledger = small.tally().ledger();
    assert_eq!(ledger.cells.len(), 1);
    let mut sum: Counts = ledger
        .spilled
        .versions
        .iter()
        .map(|(_, counts)| *counts)
        .sum();
    sum += ledger.cells[0].1;
    sum += ledger.all_unattributed();
    let mut expected: Counts = by_cell.into_values().sum();
    expected += unattributed;
    assert_eq!(sum, expected);
    let of_ports: Counts = ledger.spilled.ports.iter().map(|(_, counts)| *counts).sum();
    assert!(of_ports.down_packets > 0);
}
