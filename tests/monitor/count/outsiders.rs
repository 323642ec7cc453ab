//! Packets that outsiders provoke, without a connection through the host, and their effect on
//! published rows.

use super::{ACK, HOST, HOST_V6, MARKED, PLACES, SYN, SYN_ACK, count, filter, whole};
use crate::published::{self, CROSS, plain};
use exitmark_lab::Random;
use exitmark_lab::frames::{of_protocol, tcp, udp};
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::publish::PublishSettings;
use exitmark_monitor::row::Row;
use exitmark_monitor::tally::{Counter, Tally};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const RST: u8 = 0x04;
const PORTS: [u16; 6] = [443, 80, 22, 8080, 25, 50_001];
/// Destinations in distinct places, the last one IPv6.
const PLACES_OF: [&str; 5] = [
    "1.2.3.4",
    "1.2.4.4",
    "198.51.100.9",
    "10.0.0.1",
    "[2001:db8:1::5]",
];
const THRESHOLD: u64 = 20;

/// A port, and an index of [`PLACES_OF`].
type At = (u16, usize);

/// The host's and the remote endpoint of a packet.
fn endpoints((port, place): At) -> (&'static str, String) {
    let destination = PLACES_OF[place];
    let host = match destination.starts_with('[') {
        true => HOST_V6,
        false => HOST,
    };
    (host, format!("{destination}:{port}"))
}

fn segment(at: At, flags: u8, payload: usize) -> Vec<u8> {
    let (_, to) = endpoints(at);
    let frame = super::segment(&to, flags);
    frame.payload(20 + payload).build()
}

/// Connections, each cell's first one at the beginning, and their packets.
fn honest(random: &mut Random) -> (Vec<Vec<u8>>, BTreeSet<At>) {
    let cells: BTreeSet<At> = (0..14)
        .map(|_| (random.one_of(PORTS), random.below(PLACES_OF.len())))
        .collect();
    let all: Vec<_> = cells.iter().copied().collect();
    let mut frames: Vec<_> = all.iter().map(|at| segment(*at, SYN, 0)).collect();
    for _ in 0..200 {
        let at = all[random.below(all.len())];
        let flags = if random.percent(70) { SYN } else { ACK };
        frames.push(segment(at, flags, random.below(1000)));
    }
    (frames, cells)
}

/// A packet that opens no cell.
fn provoked(at: At, random: &mut Random) -> Vec<u8> {
    let (host, to) = endpoints(at);
    match random.below(6) {
        0 => udp(host, &to)
            .tos(MARKED)
            .payload(8 + random.below(900))
            .build(),
        1 => of_protocol(1, host, &to).tos(MARKED).build(),
        2 => tcp(host, &to).tos(MARKED).fragment(7, 5, false).build(),
        _ => {
            let flags = random.one_of([RST, RST | ACK, SYN_ACK, ACK, 0, 0xff]);
            segment(at, flags, random.below(1400))
        }
    }
}

/// How packets are counted into a ledger.
#[derive(Clone, Copy, Debug)]
enum PacketInput {
    /// Into one table of this many cells, as from a file.
    File(usize),
    /// Into small tables, passed on at a quarter of their cells, as at a tap.
    Tap(usize),
}

fn counted(input: PacketInput, frames: &[Vec<u8>]) -> Ledger {
    let cells = match input {
        PacketInput::File(cells) => {
            let mut counter = Counter::new(filter(), Arc::clone(&PLACES), cells);
            count(&mut counter, frames);
            return counter.tally().ledger();
        }
        PacketInput::Tap(cells) => cells,
    };
    let turn = || Tally::of_a_turn(Arc::clone(&PLACES), 16);
    let mut whole_period = Tally::new(Arc::clone(&PLACES), cells);
    let mut counter = Counter::of(filter(), turn());
    let mut spare = turn();
    for frame in frames {
        counter.count(&[whole(frame)]);
        if counter.tally().occupancy().used > 4 {
            spare = counter.exchange(spare);
            whole_period.absorb(&mut spare);
        }
    }
    whole_period.absorb(counter.tally_mut());
    whole_period.ledger()
}

fn rows(ledger: &Ledger) -> Vec<Row> {
    let settings = PublishSettings {
        cross: CROSS.into(),
        ..plain(THRESHOLD, 3)
    };
    published::rows(ledger, &settings)
}

/// A row's key and flows as text, and its bytes and packets.
fn keyed(rows: &[Row]) -> BTreeMap<String, (u64, u64)> {
    let key = |row: &Row| {
        let mut bare = row.clone();
        bare.about = None;
        (bare.counts.bytes, bare.counts.packets) = (0, 0);
        let key = serde_json::to_string(&bare).unwrap();
        (key, (row.counts.bytes, row.counts.packets))
    };
    rows.iter().map(key).collect()
}

fn anywhere(random: &mut Random) -> At {
    let port = if random.percent(50) {
        random.one_of(PORTS)
    } else {
        random.half()
    };
    (port, random.below(PLACES_OF.len()))
}

/// Mixes provoked packets into the honest ones, none in the cells to avoid.
fn with_provoked(
    honest: &[Vec<u8>],
    avoid: Option<&BTreeSet<At>>,
    random: &mut Random,
) -> (Vec<Vec<u8>>, u64) {
    let mut frames = honest.to_vec();
    let mut added = 0;
    for _ in 0..=random.below(60) {
        let at = anywhere(random);
        if avoid.is_some_and(|cells| cells.contains(&at)) {
            continue;
        }
        let frame = provoked(at, random);
        added += 1;
        frames.insert(random.below(frames.len() + 1), frame);
    }
    (frames, added)
}

/// 10,000 adversaries: packets in cells without a connection change only the total.
#[test]
fn packets_without_a_connection_change_only_the_total() {
    let mut random = Random::new(31);
    let (mut changed, mut shown) = (0, BTreeSet::new());
    for _ in 0..100 {
        let (honest, cells) = honest(&mut random);
        // Room for the honest cells only, and for many more.
        for input in [
            PacketInput::File(cells.len()),
            PacketInput::File(4096),
            PacketInput::Tap(cells.len()),
            PacketInput::Tap(4096),
        ] {
            let before = rows(&counted(input, &honest));
            let with_keys = before.iter().filter(|row| !row.other);
            shown.extend(with_keys.map(|row| row.dimension));
            for _ in 0..25 {
                let (frames, added) = with_provoked(&honest, Some(&cells), &mut random);
                let after = rows(&counted(input, &frames));
                assert_eq!(after[1..], before[1..], "{input:?}, {added} provoked");
                assert_eq!(after[0].counts.flows, before[0].counts.flows);
                assert_eq!(after[0].counts.packets, before[0].counts.packets + added);
                let about = after[0].about.as_ref().unwrap();
                assert_eq!(about.unattributed_packets, added);
                assert!(!about.spilled, "{input:?}");
                changed += u64::from(added > 0);
            }
        }
    }
    assert!(changed > 9_000, "{changed}");
    assert_eq!(shown.len(), 9, "every statistic is shown: {shown:?}");
}

/// In a cell with connections, a provoked packet looks like data: it counts there and removes no
/// row, even if the table is full.
#[test]
fn packets_without_a_connection_remove_no_row() {
    let mut random = Random::new(32);
    let mut spilled = 0;
    for _ in 0..100 {
        let (honest, _) = honest(&mut random);
        for input in [
            PacketInput::File(4096),
            PacketInput::Tap(4096),
            PacketInput::File(5),
        ] {
            let before = rows(&counted(input, &honest));
            let keys = keyed(&before[1..]);
            for _ in 0..5 {
                let (frames, added) = with_provoked(&honest, None, &mut random);
                let after = rows(&counted(input, &frames));
                let about = after[0].about.as_ref().unwrap();
                spilled += u64::from(about.spilled);
                let changed = keyed(&after[1..]);
                let names = |keys: &BTreeMap<String, _>| keys.keys().cloned().collect::<Vec<_>>();
                assert_eq!(names(&changed), names(&keys), "{input:?}, {added} provoked");
                for (key, (bytes, packets)) in &keys {
                    let (more_bytes, more_packets) = changed[key];
                    let is_no_less = more_bytes >= *bytes && more_packets >= *packets;
                    assert!(is_no_less, "{input:?}: {key}");
                    assert!(more_packets - packets <= added, "{input:?}: {key}");
                }
            }
        }
    }
    assert!(spilled == 500, "{spilled}");
}

/// One refused IPv6 connection among IPv4 connections.
#[test]
fn a_refusal_by_another_ip_version_withdraws_no_row() {
    let mut frames = Vec::new();
    for (port, connections) in [(443, 70), (80, 20), (22, 10)] {
        frames.extend((0..connections).map(|_| segment((port, 0), SYN, 0)));
    }
    let quiet = rows(&counted(PacketInput::File(64), &frames));
    frames.push(segment((50_000, 4), RST, 0));
    let refused = rows(&counted(PacketInput::File(64), &frames));
    assert_eq!(refused[1..], quiet[1..]);
    assert_eq!(refused[0].counts.packets, quiet[0].counts.packets + 1);
    assert!(refused.iter().any(|row| row.ip_version == Some(4)));
}
