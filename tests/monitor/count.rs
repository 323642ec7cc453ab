//! Counting, compared with numbers computed by hand, with etherparse, and with tshark.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod captured;
mod directions;
mod foreign;
mod outsiders;
mod parsed;
mod table;
mod tshark;
mod written;

use super::places::{CSV, load_bytes};
pub(crate) use captured::{ever, of_link, pcap};
use exitmark_lab::Random;
use exitmark_lab::frames::{self, Frame, extension, tcp, udp};
use exitmark_monitor::cell::{Cell, Counts, Place};
use exitmark_monitor::filter::{Arrived, CountedPacket, Filter, Refusal};
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::places::Places;
use exitmark_monitor::tally::Counter;
use exitmark_policy::PrefixSet;
use exitmark_policy::packet::{Dscp, Version};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
pub(crate) use written::Written;

const HOST: &str = "192.0.2.10:40000";
const HOST_V6: &str = "[2001:db8:10::1]:40000";
pub(crate) const MARKED: u8 = 0x28;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

pub(crate) static PLACES: LazyLock<Arc<Places>> =
    LazyLock::new(|| Arc::new(load_bytes("own.csv", CSV.as_bytes(), false).unwrap()));

pub(crate) fn filter() -> Filter {
    let clearnet = addresses(["192.0.2.10", "2001:db8:10::1"]);
    Filter::outbound(Dscp::AF11, clearnet)
}

fn addresses<const N: usize>(texts: [&str; N]) -> PrefixSet {
    let addresses = texts.map(|text| text.parse::<IpAddr>().unwrap());
    addresses.into_iter().collect()
}

fn counter(cells: usize) -> Counter {
    Counter::new(filter(), Arc::clone(&PLACES), cells)
}

fn count(counter: &mut Counter, frames: &[Vec<u8>]) {
    let arrived: Vec<_> = frames.iter().map(|frame| whole(frame)).collect();
    counter.count(&arrived);
}

fn whole(bytes: &[u8]) -> Arrived<'_> {
    Arrived { bytes }
}

/// A marked segment of the host with these control bits.
fn segment(to: &str, control: u8) -> Frame {
    let host = if to.starts_with('[') { HOST_V6 } else { HOST };
    tcp(host, to).tos(MARKED).control(control)
}

fn cell(port: u16, country: &str, asn: u32, version: Version) -> Cell {
    Cell {
        port,
        place: Place {
            country: country.parse().unwrap(),
            asn,
        },
        version,
    }
}

const fn counts(packets: u64, bytes: u64, flows: u64) -> Counts {
    Counts {
        flows,
        bytes,
        packets,
        down_bytes: 0,
        down_packets: 0,
    }
}

/// Why a frame is refused, or what it counts as.
fn judged(frame: &[u8]) -> Result<CountedPacket, Refusal> {
    filter().judge(&whole(frame))
}

/// Packets to `ports` ports at three places, and one to an unknown place.
fn many(ports: u16) -> Vec<Vec<u8>> {
    let mut random = Random::new(11);
    (0..4000)
        .map(|_| {
            let port = random.half() % ports;
            let to = random.one_of(["1.2.3.4", "1.2.4.4", "198.51.100.9", "10.0.0.1"]);
            let is_v6 = random.percent(30);
            let to = if is_v6 { "[2001:db8:1::5]" } else { to };
            let payload = 20 + random.below(60);
            let frame = segment(&format!("{to}:{port}"), random.byte());
            frame.payload(payload).build()
        })
        .collect()
}

#[test]
fn counts_a_few_packets_as_computed_by_hand() {
    let to = "1.2.3.4:443";
    let v6 = segment("[2001:db8:1::5]:443", SYN);
    let tagged = segment("1.2.4.1:22", SYN).tag(0x8100, 7);
    let any = [extension::HOP_BY_HOP, extension::DESTINATION];
    let frames = [
        segment(to, SYN),
        segment(to, SYN),
        segment(to, ACK).payload(1000),
        // Both ECN bits, as set on congestion.
        segment("1.2.3.200:443", ACK).tos(MARKED | 3),
        segment("1.2.3.4:80", SYN_ACK),
        udp(HOST, to).tos(MARKED).payload(100),
        // To an unknown place.
        udp(HOST, "10.1.2.3:53").tos(MARKED).payload(30),
        tagged.clone(),
        tagged.tag(0x8100, 8).control(ACK),
        segment("1.2.4.1:22", SYN).options(8),
        v6.clone(),
        v6.clone().extensions(&any),
        // The first fragment has the ports; the later one has other data there.
        segment(to, SYN).fragment(7, 0, true),
        segment(to, SYN).fragment(7, 5, false),
        v6.clone().fragment(7, 0, true),
        v6.fragment(7, 5, false),
        // Neither TCP nor UDP: no port.
        frames::of_protocol(1, HOST, to).tos(MARKED),
        // Padding to Ethernet's minimum length does not belong to the packet.
        udp(HOST, "1.2.4.1:9").tos(MARKED).payload(8).padding(18),
    ];
    let frames = frames.map(|frame| frame.build());
    let mut counter = counter(64);
    count(&mut counter, &frames);
    // One tag, two tags, eight bytes of options.
    let ssh = counts(3, 60 + 60 + 68, 2);
    // Two SYN, data, ECN, UDP, the first fragment.
    let web = counts(6, 60 + 60 + 1020 + 60 + 120 + 60, 3);
    // Plain, with two extension headers, the first fragment.
    let web_v6 = counts(3, 80 + 96 + 88, 3);
    let mut expected = Ledger {
        cells: vec![
            (cell(22, "DE", 64501, Version::V4), ssh),
            (cell(443, "GB", 64500, Version::V4), web),
            (cell(443, "FR", 64502, Version::V6), web_v6),
        ],
        unattributed: vec![
            // A later fragment, 60, ICMP, 60, to port 9, to port 53, and a SYN-ACK.
            (Version::V4, counts(5, 120 + 28 + 50 + 60, 0)),
            // A later fragment: 40 and 8 and 40.
            (Version::V6, counts(1, 88, 0)),
        ],
        ..Ledger::default()
    };
    expected.cells.sort_unstable_by_key(|(cell, _)| *cell);
    assert_eq!(counter.tally().ledger(), expected);
    assert_eq!(counter.refusals().total(), 0);
    let [v4, v6] = [counts(14, 1826, 5), counts(4, 352, 3)];
    let totals = [(Version::V4, v4), (Version::V6, v6)];
    assert_eq!(counter.tally().totals(), totals);
    let occupancy = counter.tally().occupancy();
    assert_eq!((occupancy.used, occupancy.capacity), (3, 64));
}

#[test]
fn reports_uncounted_packets_by_reason() {
    let to = "1.2.3.4:443";
    #[rustfmt::skip]
    let refused = [
        ("unmarked", tcp(HOST, to).build()),
        ("unmarked", tcp(HOST, to).tos(0x03).build()),
        ("unmarked", tcp(HOST, to).tos(0x2c).build()),
        ("unmarked", tcp(HOST_V6, "[2001:db8:1::5]:443").tos(0xb8).build()),
        ("other_source", tcp("192.0.2.11:40000", to).tos(MARKED).build()),
        // Inbound: the host is the destination.
        ("inbound", tcp(to, HOST).tos(MARKED).build()),
        ("inbound", tcp("[2001:db8:10::2]:1", HOST_V6).tos(MARKED).build()),
        ("unmarked", tcp(to, HOST).build()),
        ("not_ip", [vec![0; 12], vec![0x08, 0x06], vec![0; 46]].concat()),
        ("not_ip", Vec::new()),
        ("short_header", tcp(HOST, to).tos(MARKED).build()[..20].to_vec()),
        ("short_transport", tcp(HOST, to).tos(MARKED).payload(2).build()),
    ];
    let mut counter = counter(64);
    let mut expected = BTreeMap::new();
    for (reason, frame) in refused {
        counter.count(&[whole(&frame)]);
        *expected.entry(reason).or_insert(0) += 1;
    }
    let named = counter.refusals().named().filter(|(_, number)| *number > 0);
    assert_eq!(named.collect::<BTreeMap<_, _>>(), expected);
    assert_eq!(counter.tally().ledger(), Ledger::default());
}

#[test]
fn counts_truncated_packets_that_have_their_ports() {
    let v4 = segment("1.2.3.4:443", SYN).payload(500);
    let v6 = segment("[2001:db8:1::5]:443", SYN).payload(500).build();
    let kinds = [v4.build(), v4.options(4).build(), v6.clone()];
    for (frame, l4) in kinds.iter().zip([34, 38, 54]) {
        for kept in 0..=frame.len() {
            let (port, bytes, flow) = match judged(&frame[..kept]) {
                Ok(CountedPacket::V4(fields)) => (fields.port, fields.bytes, fields.flow),
                Ok(CountedPacket::V6(fields)) => (fields.port, fields.bytes, fields.flow),
                Err(_) => {
                    assert!(kept < l4 + 4, "{kept} bytes are enough");
                    continue;
                }
            };
            assert!(kept >= l4 + 4, "{kept} bytes are too few");
            assert_eq!((port, bytes as usize), (443, frame.len() - 14));
            assert_eq!(flow, (kept >= l4 + 14).then_some(true), "{kept} bytes");
        }
    }
    let mut counter = counter(4);
    assert_eq!(counter.flagless(), 0);
    counter.count(&[whole(&kinds[0][..40])]);
    assert_eq!(counter.flagless(), 1);
    assert_eq!(counter.tally().totals()[0].1, counts(1, 520, 0));
    counter.count(&[whole(&v6[..60]); 2]);
    assert_eq!(counter.flagless(), 3);
}

#[test]
fn says_beforehand_which_packets_count() {
    let counter = counter(4);
    let marked = segment("1.2.3.4:443", ACK).payload(20);
    let unmarked = marked.clone().tos(0).build();
    let marked = marked.build();
    assert!(counter.counts(&whole(&marked)));
    assert!(!counter.counts(&whole(&unmarked)));
    assert!(!counter.counts(&whole(&marked[..20])));
}

#[test]
fn lost_packets_and_watched_seconds_add_up() {
    let mut counter = counter(4);
    for _ in 0..2 {
        counter.tally_mut().note_lost(3);
        counter.tally_mut().note_watched(40);
    }
    let ledger = counter.tally_mut().take();
    assert_eq!((ledger.lost, ledger.watched_seconds), (6, 80));
    let emptied = counter.tally().ledger();
    assert_eq!((emptied.lost, emptied.watched_seconds), (0, 0));
}

#[test]
fn a_segment_without_flags_begins_no_flow() {
    // Eight bytes of TCP, and padding that looks like SYN.
    let frame = segment("1.2.3.4:443", SYN).payload(8).padding(18);
    let mut frame = frame.build();
    frame[34 + 13] = SYN;
    let Ok(CountedPacket::V4(fields)) = judged(&frame) else {
        panic!("it counts");
    };
    assert_eq!((fields.bytes, fields.flow), (28, Some(false)));
}
