//! What is counted: against numbers written out by hand, against etherparse, and against tshark.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

use super::places::{CSV, load};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use exitmark::lab::frames::{self, Frame, extension, tcp, udp};
use exitmark::lab::{Random, is_installed};
use exitmark::monitor::cell::{Cell, Country, Counts, Place};
use exitmark::monitor::filter::{Arrived, Filter, Part, Refusal, Seen};
use exitmark::monitor::ledger::{Ledger, Spilled};
use exitmark::monitor::pcap::{Capture, CaptureError, Progress};
use exitmark::monitor::places::Places;
use exitmark::monitor::tally::{Counter, DEFAULT_CELLS};
use exitmark::packet::{Dscp, Version};
use jiff::Timestamp;
use pcap_file::pcap::{PcapHeader, PcapWriter, RawPcapPacket};
use pcap_file::{DataLink, Endianness, TsResolution};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

const HOST: &str = "192.0.2.10:40000";
const HOST_V6: &str = "[2001:db8:10::1]:40000";
const MARKED: u8 = 0x28;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
/// 2023-11-14T22:13:20Z
const NOW: u32 = 1_700_000_000;

static PLACES: LazyLock<Arc<Places>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.csv");
    fs::write(&file, CSV).unwrap();
    Arc::new(load(&file, None).unwrap())
});

fn filter() -> Filter {
    Filter {
        dscp: Dscp::AF11,
        clearnet: vec![
            "192.0.2.10".parse().unwrap(),
            "2001:db8:10::1".parse().unwrap(),
        ],
    }
}

fn counter(cells: usize) -> Counter {
    Counter::new(filter(), Arc::clone(&PLACES), cells)
}

fn count(counter: &mut Counter, frames: &[Vec<u8>]) {
    let arrived: Vec<_> = frames.iter().map(|frame| whole(frame)).collect();
    counter.count(&arrived);
}

fn whole(bytes: &[u8]) -> Arrived<'_> {
    Arrived {
        bytes,
        whole: bytes.len(),
    }
}

/// A frame whose TCP header, this many bytes before the frame's end, has these flags.
fn flagged(frame: &Frame, tcp_bytes: usize, flags: u8) -> Vec<u8> {
    let mut bytes = frame.build();
    let at = bytes.len() - tcp_bytes + 13;
    bytes[at] = flags;
    bytes
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
    }
}

/// What a frame is refused for, or what it counts as.
fn judged(frame: &[u8]) -> Result<Seen, Refusal> {
    filter().judge(&whole(frame))
}

#[test]
fn a_handful_of_packets_is_counted_as_by_hand() {
    let syn = flagged(&tcp(HOST, "1.2.3.4:443").tos(MARKED), 40, SYN);
    let data = flagged(
        &tcp(HOST, "1.2.3.4:443").tos(MARKED).payload(1000),
        1000,
        ACK,
    );
    // Both ECN bits, as a congested sender sets them.
    let ecn = flagged(&tcp(HOST, "1.2.3.200:443").tos(MARKED | 3), 40, ACK);
    let tagged = tcp(HOST, "1.2.4.1:22").tos(MARKED).tag(0x8100, 7);
    let twice = tagged.clone().tag(0x8100, 8);
    let v6 = tcp(HOST_V6, "[2001:db8:1::5]:443").tos(MARKED);
    let extended = v6
        .clone()
        .extensions(&[extension::HOP_BY_HOP, extension::DESTINATION]);
    let frames = [
        syn.clone(),
        syn,
        data,
        ecn,
        flagged(&tcp(HOST, "1.2.3.4:80").tos(MARKED), 40, SYN_ACK),
        udp(HOST, "1.2.3.4:443").tos(MARKED).payload(100).build(),
        // To nobody knows where.
        udp(HOST, "10.1.2.3:53").tos(MARKED).payload(30).build(),
        flagged(&tagged, 40, SYN),
        flagged(&twice, 40, ACK),
        flagged(&tcp(HOST, "1.2.4.1:22").tos(MARKED).options(8), 40, SYN),
        flagged(&v6, 40, SYN),
        flagged(&extended, 40, SYN),
        // The first fragment has the ports; the later one has something else there.
        flagged(
            &tcp(HOST, "1.2.3.4:443").tos(MARKED).fragment(7, 0, true),
            40,
            SYN,
        ),
        flagged(
            &tcp(HOST, "1.2.3.4:443").tos(MARKED).fragment(7, 5, false),
            40,
            SYN,
        ),
        flagged(&v6.clone().fragment(7, 0, true), 40, SYN),
        flagged(&v6.clone().fragment(7, 5, false), 40, SYN),
        // Neither TCP nor UDP: no port.
        frames::of_protocol(1, HOST, "1.2.3.4:443")
            .tos(MARKED)
            .build(),
        // Padding up to Ethernet's least length is no part of the packet.
        udp(HOST, "1.2.4.1:9")
            .tos(MARKED)
            .payload(8)
            .padding(18)
            .build(),
    ];
    let mut counter = counter(64);
    count(&mut counter, &frames);
    let expected = Ledger {
        cells: vec![
            // A later fragment, 60, and ICMP, 60.
            (cell(0, "GB", 64500, Version::V4), counts(2, 120, 0)),
            // A later fragment: 40 and 8 and 40.
            (cell(0, "FR", 64502, Version::V6), counts(1, 88, 0)),
            (cell(9, "DE", 64501, Version::V4), counts(1, 28, 0)),
            // One tag, two tags, eight bytes of options.
            (
                cell(22, "DE", 64501, Version::V4),
                counts(3, 60 + 60 + 68, 2),
            ),
            (cell(53, "??", 0, Version::V4), counts(1, 50, 0)),
            (cell(80, "GB", 64500, Version::V4), counts(1, 60, 0)),
            // Two SYN, data, ECN, UDP, the first fragment.
            (
                cell(443, "GB", 64500, Version::V4),
                counts(6, 60 + 60 + 1020 + 60 + 120 + 60, 3),
            ),
            // Plain, with two extension headers, the first fragment.
            (
                cell(443, "FR", 64502, Version::V6),
                counts(3, 80 + 96 + 88, 3),
            ),
        ],
        ..Ledger::default()
    };
    let mut expected = expected;
    expected.cells.sort_unstable_by_key(|(cell, _)| *cell);
    assert_eq!(counter.tally().ledger(), expected);
    assert_eq!(counter.refusals().total(), 0);
    assert_eq!(
        counter.tally().totals()[0],
        (Version::V4, counts(14, 1826, 5))
    );
    assert_eq!(
        counter.tally().totals()[1],
        (Version::V6, counts(4, 352, 3))
    );
    assert_eq!(
        (
            counter.tally().occupancy().used,
            counter.tally().occupancy().capacity
        ),
        (8, 64)
    );
}

#[test]
fn what_does_not_count_is_told_by_its_reason() {
    let to = "1.2.3.4:443";
    let refused = [
        ("unmarked", tcp(HOST, to).build()),
        ("unmarked", tcp(HOST, to).tos(0x03).build()),
        ("unmarked", tcp(HOST, to).tos(0x2c).build()),
        (
            "unmarked",
            tcp(HOST_V6, "[2001:db8:1::5]:443").tos(0xb8).build(),
        ),
        (
            "other_source",
            tcp("192.0.2.11:40000", to).tos(MARKED).build(),
        ),
        // Inbound: the host is the destination.
        ("other_source", tcp(to, HOST).tos(MARKED).build()),
        (
            "other_source",
            tcp("[2001:db8:10::2]:1", HOST_V6).tos(MARKED).build(),
        ),
        (
            "not_ip",
            [vec![0; 12], vec![0x08, 0x06], vec![0; 46]].concat(),
        ),
        ("not_ip", Vec::new()),
        (
            "short_header",
            tcp(HOST, to).tos(MARKED).build()[..20].to_vec(),
        ),
        (
            "short_transport",
            tcp(HOST, to).tos(MARKED).payload(2).build(),
        ),
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
fn packets_that_were_cut_off_count_as_long_as_their_ports_are_there() {
    let kinds = [
        flagged(&tcp(HOST, "1.2.3.4:443").tos(MARKED).payload(500), 500, SYN),
        flagged(
            &tcp(HOST, "1.2.3.4:443").tos(MARKED).options(4).payload(500),
            500,
            SYN,
        ),
        flagged(
            &tcp(HOST_V6, "[2001:db8:1::5]:443").tos(MARKED).payload(500),
            500,
            SYN,
        ),
    ];
    for (frame, l4) in kinds.iter().zip([34, 38, 54]) {
        for kept in 0..=frame.len() {
            for whole in [frame.len(), usize::MAX] {
                let bytes = &frame[..kept];
                let (port, flow) = match filter().judge(&Arrived { bytes, whole }) {
                    Ok(Seen::V4(seen)) => (seen.port, seen.flow),
                    Ok(Seen::V6(seen)) => (seen.port, seen.flow),
                    Err(_) => {
                        assert!(kept < l4 + 4, "{kept} bytes are enough");
                        continue;
                    }
                };
                assert!(kept >= l4 + 4, "{kept} bytes are too few");
                assert_eq!(port, 443);
                assert_eq!(flow, (kept >= l4 + 14).then_some(true), "{kept} bytes");
            }
        }
    }
    let mut counter = counter(4);
    counter.count(&[Arrived {
        bytes: &kinds[0][..40],
        whole: kinds[0].len(),
    }]);
    assert_eq!(counter.flagless(), 1);
    assert_eq!(counter.tally().totals()[0].1, counts(1, 520, 0));
}

#[test]
fn a_segment_that_ends_before_its_flags_begins_nothing() {
    // Eight bytes of TCP, and padding that looks like SYN.
    let mut frame = tcp(HOST, "1.2.3.4:443")
        .tos(MARKED)
        .payload(8)
        .padding(18)
        .build();
    frame[34 + 13] = SYN;
    let Ok(Seen::V4(seen)) = judged(&frame) else {
        panic!("it counts");
    };
    assert_eq!((seen.bytes, seen.flow), (28, Some(false)));
}

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
        if is_tcp { flagged(&frame, payload, flags) } else { frame.build() }
    }
}

/// What etherparse makes of a frame: marked, IP length, destination, port, SYN without ACK.
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
            (
                header.traffic_class(),
                length,
                IpAddr::V6(header.destination_addr()),
            )
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

/// `fragmented` packets have no transport header for etherparse, even the first one.
fn agree(frame: &[u8]) {
    let Some((tos, length, destination, port, begins)) = independent(frame) else {
        return;
    };
    let (is_v6, seen) = match judged(frame) {
        Ok(Seen::V4(Part {
            destination,
            port,
            bytes,
            flow,
        })) => (
            false,
            (
                IpAddr::from(std::net::Ipv4Addr::from(destination)),
                port,
                bytes,
                flow,
            ),
        ),
        Ok(Seen::V6(Part {
            destination,
            port,
            bytes,
            flow,
        })) => (
            true,
            (
                IpAddr::from(std::net::Ipv6Addr::from(destination)),
                port,
                bytes,
                flow,
            ),
        ),
        Err(refusal) => {
            assert_eq!(refusal, Refusal::Unmarked, "{frame:02x?}");
            assert_ne!(tos >> 2, 10);
            return;
        }
    };
    assert_eq!(tos >> 2, 10);
    assert_eq!(is_v6, destination.is_ipv6());
    assert_eq!((seen.0, seen.2), (destination, length), "{frame:02x?}");
    let is_fragment =
        SlicedPacket::from_ethernet(frame).is_ok_and(|packet| packet.is_ip_payload_fragmented());
    if !is_fragment {
        assert_eq!((seen.1, seen.3), (port, Some(begins)), "{frame:02x?}");
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
    fn nothing_panics(
        frame in any_frame(),
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        cut: usize,
        longer: usize,
    ) {
        let mut frame = frame;
        for (at, byte) in changes {
            let at = at % frame.len();
            frame[at] = byte;
        }
        frame.truncate(cut % (frame.len() + 1));
        let mut counter = counter(2);
        for whole in [frame.len(), longer, usize::MAX, 0] {
            counter.count(&[Arrived { bytes: &frame, whole }]);
        }
        let [(_, v4), (_, v6)] = counter.tally().totals();
        assert_eq!(v4.packets + v6.packets + counter.refusals().total(), 4);
    }
}

/// Packets to `ports` ports at three places, and one to nowhere.
fn many(ports: u16) -> Vec<Vec<u8>> {
    let mut random = Random::new(11);
    (0..4000)
        .map(|_| {
            let port = random.half() % ports;
            let to = random.one_of(["1.2.3.4", "1.2.4.4", "198.51.100.9", "10.0.0.1"]);
            let frame = if random.percent(30) {
                tcp(HOST_V6, &format!("[2001:db8:1::5]:{port}"))
            } else {
                tcp(HOST, &format!("{to}:{port}"))
            };
            let payload = 20 + random.below(60);
            flagged(&frame.tos(MARKED).payload(payload), payload, random.byte())
        })
        .collect()
}

/// The sums of a dimension, of cells and of what was spilled.
fn sums<K: Ord>(
    ledger: &Ledger,
    of: impl Fn(&Cell) -> K,
    spilled: impl FnOnce(&Spilled) -> Vec<(K, Counts)>,
) -> BTreeMap<K, Counts> {
    let mut sums = BTreeMap::<K, Counts>::new();
    let cells = ledger
        .cells
        .iter()
        .map(|(cell, counts)| (of(cell), *counts));
    for (key, counts) in cells.chain(spilled(&ledger.spilled)) {
        *sums.entry(key).or_default() += counts;
    }
    sums
}

type Dimensions = (
    BTreeMap<u16, Counts>,
    BTreeMap<u32, Counts>,
    BTreeMap<Country, Counts>,
    BTreeMap<Version, Counts>,
);

fn dimensions(ledger: &Ledger) -> Dimensions {
    (
        sums(ledger, |cell| cell.port, |spilled| spilled.ports.clone()),
        sums(
            ledger,
            |cell| cell.place.asn,
            |spilled| spilled.systems.clone(),
        ),
        sums(
            ledger,
            |cell| cell.place.country,
            |spilled| spilled.countries.clone(),
        ),
        sums(
            ledger,
            |cell| cell.version,
            |spilled| spilled.versions.clone(),
        ),
    )
}

#[test]
fn a_full_table_costs_no_sum_of_one_dimension() {
    let frames = many(500);
    let (mut large, mut small, mut least) = (counter(DEFAULT_CELLS), counter(37), counter(1));
    for counter in [&mut large, &mut small, &mut least] {
        count(counter, &frames);
    }
    let exact = dimensions(&large.tally().ledger());
    assert_eq!(large.tally().ledger().spilled, Spilled::default());
    assert!(large.tally().occupancy().used > 1000);
    for (counter, cells) in [(&small, 37), (&least, 1)] {
        let ledger = counter.tally().ledger();
        assert_eq!(ledger.cells.len(), cells);
        assert_eq!(dimensions(&ledger), exact);
        assert_eq!(counter.tally().totals(), large.tally().totals());
        let in_cells: u64 = ledger.cells.iter().map(|(_, counts)| counts.packets).sum();
        assert_eq!(counter.tally().occupancy().spilled, 4000 - in_cells);
    }
}

#[test]
fn what_is_restored_is_what_was_there() {
    let frames = many(300);
    for cells in [DEFAULT_CELLS, 37] {
        let mut before = counter(cells);
        count(&mut before, &frames);
        before.tally_mut().note_lost(3);
        before.tally_mut().note_watched(60);
        let ledger = before.tally().ledger();
        let mut after = counter(cells);
        after.tally_mut().restore(&ledger);
        assert_eq!(after.tally().ledger(), ledger);
        assert_eq!(after.tally().totals(), before.tally().totals());
        // And it goes on.
        count(&mut before, &frames);
        count(&mut after, &frames);
        assert_eq!(
            dimensions(&after.tally().ledger()),
            dimensions(&before.tally().ledger())
        );
        assert_eq!(after.tally_mut().take(), after_take(&mut after, &ledger));
    }
}

/// What a counter had: it is empty now, and takes another ledger.
fn after_take(counter: &mut Counter, ledger: &Ledger) -> Ledger {
    assert_eq!(counter.tally().ledger(), Ledger::default());
    assert_eq!(counter.tally().occupancy().used, 0);
    counter.tally_mut().restore(ledger);
    count(counter, &many(300));
    counter.tally().ledger()
}

#[test]
fn a_ledger_of_other_databases_and_of_a_larger_table_is_kept() {
    let foreign = |number: u32| {
        let cell = Cell {
            port: 443,
            place: Place {
                country: "ZZ".parse().unwrap(),
                asn: number,
            },
            version: Version::V4,
        };
        (cell, counts(1, 100, 1))
    };
    let ledger = Ledger {
        cells: (1..=100).map(foreign).collect(),
        ..Ledger::default()
    };
    let mut large = counter(1000);
    large.tally_mut().restore(&ledger);
    assert_eq!(large.tally().ledger(), ledger);
    let mut small = counter(10);
    small.tally_mut().restore(&ledger);
    assert_eq!(small.tally().ledger().cells.len(), 10);
    assert_eq!(dimensions(&small.tally().ledger()), dimensions(&ledger));
}

#[test]
fn a_rinse_counts_nothing() {
    let v4_alone = Filter {
        clearnet: vec!["192.0.2.10".parse().unwrap()],
        ..filter()
    };
    for filter in [filter(), v4_alone] {
        let mut counter = Counter::new(filter, Arc::clone(&PLACES), 64);
        count(&mut counter, &many(10));
        let (ledger, refusals) = (counter.tally().ledger(), *counter.refusals());
        counter.rinse();
        assert_eq!(
            (counter.tally().ledger(), *counter.refusals()),
            (ledger, refusals)
        );
    }
}

#[test]
fn no_packet_allocates() {
    let frames = many(500);
    let arrived: Vec<_> = frames.iter().map(|frame| whole(frame)).collect();
    for cells in [DEFAULT_CELLS, 37] {
        let mut counter = counter(cells);
        // What spills needs its arrays once.
        counter.count(&arrived);
        let allocated = allocation_counter::measure(|| counter.count(&arrived));
        assert_eq!(allocated.count_total, 0);
    }
}

/// Packets at these seconds after [`NOW`], in a pcap file.
fn pcap(path: &Path, seconds: &[i32], frames: &[Vec<u8>], header: PcapHeader, snaplen: usize) {
    let mut writer = PcapWriter::with_header(fs::File::create(path).unwrap(), header).unwrap();
    for (index, frame) in frames.iter().enumerate() {
        let second = seconds.get(index).copied().unwrap_or(0);
        let kept = frame.len().min(snaplen);
        let packet = RawPcapPacket {
            ts_sec: NOW.saturating_add_signed(second),
            ts_frac: 999_999,
            incl_len: u32::try_from(kept).unwrap(),
            orig_len: u32::try_from(frame.len()).unwrap(),
            data: frame[..kept].into(),
        };
        writer.write_raw_packet(&packet).unwrap();
    }
}

fn of_link(number: u32) -> PcapHeader {
    PcapHeader {
        datalink: DataLink::from(number),
        endianness: Endianness::Little,
        ..PcapHeader::default()
    }
}

fn ever() -> Range<Timestamp> {
    Timestamp::UNIX_EPOCH..Timestamp::MAX
}

fn after(seconds: i64) -> Timestamp {
    Timestamp::from_second(i64::from(NOW) + seconds).unwrap()
}

fn counted(path: &Path) -> Ledger {
    let mut counter = counter(DEFAULT_CELLS);
    let mut capture = Capture::open(path).unwrap();
    assert_eq!(
        capture.count_until(ever(), &mut counter).unwrap(),
        Progress::End
    );
    counter.tally().ledger()
}

fn directly(frames: &[Vec<u8>]) -> Ledger {
    let mut counter = counter(DEFAULT_CELLS);
    count(&mut counter, frames);
    counter.tally().ledger()
}

#[test]
fn pcap_of_every_order_resolution_and_link_type_counts_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any.pcap");
    let frames = many(50);
    let expected = directly(&frames);
    for endianness in [Endianness::Big, Endianness::Little] {
        for ts_resolution in [TsResolution::MicroSecond, TsResolution::NanoSecond] {
            let header = PcapHeader {
                endianness,
                ts_resolution,
                ..of_link(1)
            };
            for snaplen in [usize::MAX, 68] {
                pcap(&path, &[], &frames, header, snaplen);
                assert_eq!(counted(&path), expected, "{endianness:?} {ts_resolution:?}");
            }
        }
    }
    // Destination, source and ethertype away, and what others have put in their place.
    let dressed = |front: fn([u8; 2]) -> Vec<u8>| -> Vec<Vec<u8>> {
        let dress =
            |frame: &Vec<u8>| [front([frame[12], frame[13]]), frame[14..].to_vec()].concat();
        frames.iter().map(dress).collect()
    };
    let raw = dressed(|_| Vec::new());
    let cooked = dressed(|[a, b]| vec![0, 4, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, a, b]);
    let cooked_v2 =
        dressed(|[a, b]| [vec![a, b], vec![0, 0, 0, 0, 0, 2, 0, 1, 4, 6], vec![9; 8]].concat());
    for (link, frames) in [(101, &raw), (228, &raw), (113, &cooked), (276, &cooked_v2)] {
        pcap(&path, &[], frames, of_link(link), usize::MAX);
        assert_eq!(counted(&path), expected, "link type {link}");
        ng(&path, frames, true, u16::try_from(link).unwrap(), None);
        assert_eq!(counted(&path), expected, "link type {link} in pcapng");
    }
    pcap(&path, &[], &frames, of_link(105), usize::MAX);
    let error = Capture::open(&path).err().unwrap();
    assert!(
        matches!(error, CaptureError::LinkType { link: 105, .. }),
        "{error}"
    );
}

/// A pcapng file, written by hand; the packets are microseconds apart from [`NOW`] on, or as the
/// interface's resolution makes of that.
fn ng(path: &Path, frames: &[Vec<u8>], is_little: bool, link: u16, resolution: Option<u8>) {
    let word = |number: u32| {
        if is_little {
            number.to_le_bytes()
        } else {
            number.to_be_bytes()
        }
    };
    let half = |number: u16| {
        if is_little {
            number.to_le_bytes()
        } else {
            number.to_be_bytes()
        }
    };
    let block = |kind: u32, body: &[u8]| {
        let padding = vec![0; body.len().wrapping_neg() % 4];
        let total = word(u32::try_from(12 + body.len() + padding.len()).unwrap());
        [&word(kind)[..], &total, body, &padding, &total].concat()
    };
    let mut file = block(
        0x0a0d_0d0a,
        &[&word(0x1a2b_3c4d)[..], &half(1), &half(0), &[0xff; 8]].concat(),
    );
    let option = resolution.map_or(Vec::new(), |value| {
        [&half(9)[..], &half(1), &[value, 0, 0, 0], &[0; 4]].concat()
    });
    file.extend(block(
        1,
        &[&half(link)[..], &half(0), &word(0), &option].concat(),
    ));
    // Something that no reader needs to know.
    file.extend(block(0xbad, b"hello"));
    for (index, frame) in frames.iter().enumerate() {
        let length = word(u32::try_from(frame.len()).unwrap());
        if index % 10 == 9 {
            file.extend(block(3, &[&length[..], frame].concat()));
            continue;
        }
        let ticks = u64::from(NOW) * 1_000_000;
        let [high, low] = halves(ticks);
        let time = [word(high), word(low)].concat();
        let padding = vec![0; frame.len().wrapping_neg() % 4];
        // A comment.
        let options = [&half(1)[..], &half(4), b"text", &[0; 4]].concat();
        let body = [
            &word(0)[..],
            &time,
            &length,
            &length,
            frame,
            &padding,
            &options,
        ]
        .concat();
        file.extend(block(6, &body));
    }
    fs::write(path, file).unwrap();
}

/// The upper and the lower half of a number.
fn halves(number: u64) -> [u32; 2] {
    [number >> 32, number & 0xffff_ffff].map(|half| u32::try_from(half).unwrap())
}

#[test]
fn pcapng_of_both_orders_counts_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any.pcapng");
    let frames = many(50);
    for is_little in [true, false] {
        ng(&path, &frames, is_little, 1, None);
        assert_eq!(counted(&path), directly(&frames), "little: {is_little}");
    }
    // The number of ticks is the same in all of these.
    let ticks = i128::from(NOW) * 1_000_000;
    for (resolution, nanos) in [
        (None, ticks * 1000),
        (Some(9), ticks),
        (Some(7), ticks * 100),
        (Some(0x80 | 20), ticks * 1_000_000_000 / 1_048_576),
    ] {
        ng(&path, &frames, true, 1, resolution);
        let mut capture = Capture::open(&path).unwrap();
        let long_ago = Timestamp::UNIX_EPOCH..Timestamp::UNIX_EPOCH;
        let next = capture.count_until(long_ago, &mut counter(4)).unwrap();
        let Progress::Next(time) = next else {
            panic!("there are packets");
        };
        assert_eq!(
            time,
            Timestamp::from_nanosecond(nanos).unwrap(),
            "{resolution:?}"
        );
    }
}

#[test]
fn a_period_ends_at_the_first_packet_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("time.pcap");
    let frame = udp(HOST, "1.2.3.4:443").tos(MARKED).build();
    let frames = vec![frame; 8];
    // The last but one is late.
    let seconds = [0, 59, 60, 61, 150, 151, 10, 152];
    pcap(&path, &seconds, &frames, of_link(1), usize::MAX);
    let mut capture = Capture::open(&path).unwrap();
    let mut counter = counter(4);
    let mut taken = |capture: &mut Capture, period: Range<Timestamp>| {
        let progress = capture.count_until(period, &mut counter).unwrap();
        (
            progress,
            counter
                .tally_mut()
                .take()
                .cells
                .first()
                .map_or(0, |(_, counts)| counts.packets),
        )
    };
    let at = |seconds| Progress::Next(after(seconds) + jiff::SignedDuration::from_micros(999_999));
    assert_eq!(taken(&mut capture, after(0)..after(0)), (at(0), 0));
    assert_eq!(taken(&mut capture, after(0)..after(60)), (at(60), 2));
    assert_eq!(taken(&mut capture, after(60)..after(120)), (at(150), 2));
    assert_eq!(
        taken(&mut capture, after(120)..after(180)),
        (Progress::End, 4)
    );
    assert_eq!((capture.packets(), capture.late()), (8, 1));
    // A packet of exactly the end is behind it.
    let end = after(0) + jiff::SignedDuration::from_micros(999_999);
    let mut capture = Capture::open(&path).unwrap();
    assert_eq!(taken(&mut capture, after(0)..end), (at(0), 0));
}

#[test]
fn a_capture_that_is_broken_counts_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken");
    let frames: Vec<_> = many(50).into_iter().take(100).collect();
    pcap(&path, &[], &frames, of_link(1), usize::MAX);
    let whole = fs::read(&path).unwrap();
    let last = whole.len() - frames[99].len();
    let try_it = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut counter = counter(1000);
        let result =
            Capture::open(&path).and_then(|mut capture| capture.count_until(ever(), &mut counter));
        let error = result.unwrap_err();
        let [(_, v4), (_, v6)] = counter.tally().totals();
        (error.to_string(), v4.packets + v6.packets)
    };
    let (error, packets) = try_it(&whole[..whole.len() - 1]);
    assert!(
        error.contains(&format!("begins at byte {}, behind packet 99", last - 16)),
        "{error}"
    );
    assert_eq!(packets, 99);
    let (error, packets) = try_it(&whole[..last - 3]);
    assert!(error.contains("ends within a record"), "{error}");
    assert_eq!(packets, 99);
    let mut absurd = whole.clone();
    absurd[last - 5] = 0x7f;
    // The length that was kept, in the upper byte: two gigabytes.
    absurd[last - 8 + 3] = 0x7f;
    let (error, packets) = try_it(&absurd);
    assert!(
        error.contains("longer than any that is captured"),
        "{error}"
    );
    assert_eq!(packets, 99);
    for nothing in [&b""[..], b"\xd4\xc3", b"hello, this is no capture at all"] {
        let (error, _) = try_it(nothing);
        assert!(error.contains("neither pcap nor pcapng"), "{error}");
    }
    ng(&path, &frames, true, 1, None);
    let whole = fs::read(&path).unwrap();
    let (error, packets) = try_it(&whole[..whole.len() - 1]);
    assert!(error.contains("ends within a record"), "{error}");
    assert_eq!(packets, 99);
    let error = Capture::open(Path::new("/nonexistent.pcap")).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("/nonexistent.pcap: No such file"),
        "{error}"
    );
}

#[test]
fn no_bytes_make_a_reader_of_captures_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("random");
    let frames: Vec<_> = many(50).into_iter().take(10).collect();
    let mut random = Random::new(17);
    let mut counter = counter(1000);
    for round in 0..2_000 {
        if round % 2 == 0 {
            ng(&path, &frames, round % 4 == 0, 276, Some(9));
        } else {
            pcap(&path, &[], &frames, of_link(101), usize::MAX);
        }
        let mut bytes = fs::read(&path).unwrap();
        for _ in 0..=random.below(5) {
            let near = if random.percent(50) { 200 } else { bytes.len() };
            let at = random.below(near);
            bytes[at] = random.byte();
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(mut capture) = Capture::open(&path) {
            let _ = capture.count_until(ever(), &mut counter);
        }
    }
}

/// Sums by port and IP version, as tshark reads the same file.
fn by_tshark(path: &Path) -> BTreeMap<(Version, u16), Counts> {
    let output = Command::new("tshark")
        .args(["-n", "-r"])
        .arg(path)
        .args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"])
        .args(["-Y", "(ip.dsfield.dscp == 10 && ip.src == 192.0.2.10) || (ipv6.tclass.dscp == 10 && ipv6.src == 2001:db8:10::1)"])
        .args(["-T", "fields", "-E", "separator=,"])
        .args(["-e", "ip.len", "-e", "ipv6.plen", "-e", "tcp.dstport", "-e", "udp.dstport"])
        .args(["-e", "tcp.flags.syn", "-e", "tcp.flags.ack"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut sums = BTreeMap::<_, Counts>::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let fields: Vec<_> = line.split(',').collect();
        let number = |index: usize| fields[index].parse::<u64>().ok();
        let is = |index: usize| matches!(fields[index], "1" | "True");
        let (version, bytes) = match (number(0), number(1)) {
            (Some(total), None) => (Version::V4, total),
            (None, Some(payload)) => (Version::V6, payload + 40),
            other => panic!("{line}: {other:?}"),
        };
        let port = number(2).or(number(3)).unwrap_or(0);
        let key = (version, u16::try_from(port).unwrap());
        *sums.entry(key).or_default() += counts(1, bytes, u64::from(is(4) && !is(5)));
    }
    sums
}

#[test]
fn tshark_counts_the_same() {
    if !is_installed("tshark") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("traffic.pcap");
    let mut random = Random::new(23);
    let frames: Vec<_> = many(20)
        .into_iter()
        .enumerate()
        .map(|(index, frame)| match index % 8 {
            0 => udp(HOST, "1.2.3.4:443").tos(MARKED | 2).payload(50).build(),
            1 => udp(HOST_V6, "[2001:db8:2::9]:53")
                .tos(MARKED)
                .payload(50)
                .build(),
            2 => tcp(HOST, "1.2.3.4:9").tos(random.byte()).build(),
            3 => tcp("192.0.2.99:1", "1.2.3.4:9").tos(MARKED).build(),
            4 => tcp(HOST, "1.2.3.4:9")
                .tos(MARKED)
                .fragment(7, 5, false)
                .build(),
            5 => flagged(&tcp(HOST, "1.2.3.4:80").tos(MARKED).tag(0x8100, 5), 40, SYN),
            _ => frame,
        })
        .collect();
    pcap(&path, &[], &frames, of_link(1), usize::MAX);
    let ledger = counted(&path);
    let mut ours = BTreeMap::<_, Counts>::new();
    for (cell, counts) in &ledger.cells {
        *ours.entry((cell.version, cell.port)).or_default() += *counts;
    }
    assert!(ours.len() > 20);
    assert_eq!(ours, by_tshark(&path));
}
