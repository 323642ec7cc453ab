//! Captured files: pcap and pcapng of all kinds, their faults, and their times.

use super::directions::{both, stream};
use super::written::{END, IF_TSRESOL, NOW, Written, micros};
use super::{HOST, MARKED, PLACES, count, counter, many};
use crate::says;
use exitmark_lab::Random;
use exitmark_lab::frames::udp;
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::pcap::{Capture, CaptureError, Progress};
use exitmark_monitor::tally::{Counter, DEFAULT_CELLS};
use exitmark_pcap::ReadError;
use jiff::{SignedDuration, Timestamp};
use pcap_file::pcap::{PcapHeader, PcapWriter, RawPcapPacket};
use pcap_file::{DataLink, Endianness, TsResolution};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Writes packets, at these seconds after [`NOW`], to a pcap file.
pub(crate) fn pcap(
    path: &Path,
    seconds: &[i32],
    frames: &[Vec<u8>],
    header: PcapHeader,
    snaplen: usize,
) {
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

pub(crate) fn of_link(number: u32) -> PcapHeader {
    PcapHeader {
        datalink: DataLink::from(number),
        endianness: Endianness::Little,
        ..PcapHeader::default()
    }
}

pub(crate) fn ever() -> Range<Timestamp> {
    Timestamp::UNIX_EPOCH..Timestamp::MAX
}

fn after(seconds: i64) -> Timestamp {
    Timestamp::from_second(i64::from(NOW) + seconds).unwrap()
}

/// The fraction of a second at which [`pcap`] writes every packet.
const FRACTION: SignedDuration = SignedDuration::from_micros(999_999);

/// A packet of [`pcap`] follows, at this second after [`NOW`].
fn next(seconds: i64) -> Progress {
    Progress::Next(after(seconds) + FRACTION)
}

pub(super) fn counted(path: &Path) -> Ledger {
    let mut counter = counter(DEFAULT_CELLS);
    let mut capture = Capture::open(path).unwrap();
    let progress = capture.count_until(ever(), &mut counter);
    assert_eq!(progress.unwrap(), Progress::End);
    counter.tally().ledger()
}

/// Checks that a capture is refused because of this link type.
pub(super) fn refuses_link(error: CaptureError, number: u32) {
    let expected =
        matches!(error, CaptureError::Read(ReadError::LinkType { link, .. }) if link == number);
    assert!(expected, "{error}");
}

pub(super) fn directly(frames: &[Vec<u8>]) -> Ledger {
    let mut counter = counter(DEFAULT_CELLS);
    count(&mut counter, frames);
    counter.tally().ledger()
}

#[test]
fn counts_pcap_of_every_byte_order_resolution_and_link_type_alike() {
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
    // Replaces MAC addresses and ethertype by the header of another link type.
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
    refuses_link(Capture::open(&path).err().unwrap(), 105);
}

#[test]
fn a_capture_of_both_directions_counts_like_its_packets() {
    let (frames, by_cell, unattributed) = stream(&mut Random::new(22), 5000);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("both.pcap");
    pcap(&path, &[], &frames, of_link(1), usize::MAX);
    let mut counter = Counter::new(both(), Arc::clone(&PLACES), DEFAULT_CELLS);
    let mut capture = Capture::open(&path).unwrap();
    let progress = capture.count_until(ever(), &mut counter);
    assert_eq!(progress.unwrap(), Progress::End);
    let ledger = counter.tally().ledger();
    assert_eq!(ledger.cells, Vec::from_iter(by_cell));
    assert_eq!(ledger.all_unattributed(), unattributed);
}

/// Writes a pcapng file. Every tenth packet has no time; the others have the same number of ticks,
/// which are microseconds unless the interface has another resolution.
fn ng(path: &Path, frames: &[Vec<u8>], is_little: bool, link: u16, resolution: Option<u8>) {
    let resolution = resolution.map(|value| [value]);
    let options = resolution.iter();
    let options = options.flat_map(|value| [(IF_TSRESOL, &value[..]), END]);
    let mut file = Written::new(is_little, &[]);
    file.interface(link, 0, &options.collect::<Vec<_>>());
    // A block that readers skip.
    file.block(0xbad, b"hello");
    for (index, frame) in frames.iter().enumerate() {
        match index % 10 {
            9 => file.simple(frame),
            _ => file.enhanced(0, micros(0), frame, 0, &[(1, b"text"), END]),
        };
    }
    fs::write(path, file.bytes).unwrap();
}

#[test]
fn counts_pcapng_of_both_byte_orders_alike() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("any.pcapng");
    let frames = many(50);
    for is_little in [true, false] {
        ng(&path, &frames, is_little, 1, None);
        assert_eq!(counted(&path), directly(&frames), "little: {is_little}");
    }
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
        let first = Timestamp::from_nanosecond(nanos).unwrap();
        assert_eq!(next, Progress::Next(first), "{resolution:?}");
    }
}

#[test]
fn a_period_ends_at_the_first_packet_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("time.pcap");
    let frame = udp(HOST, "1.2.3.4:443").tos(MARKED).build();
    let frames = vec![frame; 8];
    // The last packet but one is late by less than a minute.
    let seconds = [0, 59, 60, 61, 150, 151, 60, 152];
    pcap(&path, &seconds, &frames, of_link(1), usize::MAX);
    let mut capture = Capture::open(&path).unwrap();
    let mut counter = counter(4);
    let mut taken = |capture: &mut Capture, period: Range<Timestamp>| {
        let progress = capture.count_until(period, &mut counter).unwrap();
        let counted = counter.tally_mut().take().all_unattributed();
        (progress, counted.packets)
    };
    for (from, to, expected) in [
        (0, 0, (next(0), 0)),
        (0, 60, (next(60), 2)),
        (60, 120, (next(150), 2)),
        (120, 180, (Progress::End, 4)),
    ] {
        assert_eq!(taken(&mut capture, after(from)..after(to)), expected);
    }
    assert_eq!((capture.packets(), capture.remarks().late), (8, 1));
    // A packet exactly at the end is after the period.
    let end = after(0) + FRACTION;
    let mut capture = Capture::open(&path).unwrap();
    assert_eq!(taken(&mut capture, after(0)..end), (next(0), 0));
}

#[test]
fn leaves_packets_that_are_too_late() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("late.pcap");
    let frame = udp(HOST, "1.2.3.4:443").tos(MARKED).build();
    // A minute before the period's start, and just before that.
    for (seconds, packets, left) in [([0, -60, 1], 3, None), ([0, -61, 1], 1, Some(-61))] {
        let frames = vec![frame.clone(); 3];
        pcap(&path, &seconds, &frames, of_link(1), usize::MAX);
        let mut capture = Capture::open(&path).unwrap();
        let period = after(0)..after(60);
        let progress = capture.count_until(period, &mut counter(4)).unwrap();
        let expected = left.map_or(Progress::End, next);
        assert_eq!((progress, capture.packets()), (expected, packets));
    }
}

#[test]
fn a_capture_that_begins_without_a_time_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("timeless.pcapng");
    let frames: Vec<_> = many(50).into_iter().take(20).collect();
    ng(&path, &frames, true, 1, None);
    let whole = fs::read(&path).unwrap();
    // The tenth packet is a Simple Packet Block, after nine Enhanced ones.
    let at = |kind: &[u8]| whole.windows(4).position(|bytes| bytes == kind).unwrap();
    let (first, simple) = (at(&[6, 0, 0, 0]), at(&[3, 0, 0, 0]));
    fs::write(&path, [&whole[..first], &whole[simple..]].concat()).unwrap();
    let mut counter = counter(1000);
    let mut capture = Capture::open(&path).unwrap();
    says(
        &capture.count_until(ever(), &mut counter).unwrap_err(),
        "has no time",
    );
    assert_eq!(counter.tally().ledger(), Ledger::default());
}

#[test]
fn counts_a_broken_capture_up_to_the_fault() {
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
    let mut absurd = whole.clone();
    absurd[last - 5] = 0x7f;
    // The upper byte of the captured length: two gigabytes.
    absurd[last - 8 + 3] = 0x7f;
    let place = format!("begins at byte {}, behind packet 99", last - 16);
    for (bytes, expected, packets) in [
        (&whole[..whole.len() - 1], place.as_str(), 99),
        (&whole[..last - 3], "ends within a record", 99),
        (&absurd, "longer than any that is captured", 99),
        (b"", "is empty", 0),
        (b"\xd4\xc3", "neither pcap nor pcapng", 0),
        (
            b"hello, this is no capture at all",
            "neither pcap nor pcapng",
            0,
        ),
    ] {
        let (error, counted) = try_it(bytes);
        says(&error, expected);
        assert_eq!(counted, packets, "{error}");
    }
    ng(&path, &frames, true, 1, None);
    let whole = fs::read(&path).unwrap();
    let (error, packets) = try_it(&whole[..whole.len() - 1]);
    says(&error, "ends within a record");
    assert_eq!(packets, 99);
    let missing = Capture::open(Path::new("/nonexistent.pcap"));
    says(&missing.err().unwrap(), "/nonexistent.pcap: No such file");
}

/// Nothing of the block is kept, so it may be as long as any block.
#[test]
fn reads_a_long_block_and_refuses_an_endless_one() {
    let directory = tempfile::tempdir().unwrap();
    for (bytes, is_read) in [(1 << 20, true), (16 << 20, true), ((16 << 20) + 4, false)] {
        for is_little in [true, false] {
            // An Ethernet interface, and opt_endofopt up to the block's end.
            let mut description = vec![0; bytes - 12];
            description[usize::from(!is_little)] = 1;
            let mut file = Written::new(is_little, &[]);
            file.block(1, &description);
            let path = directory.path().join("long.pcapng");
            fs::write(&path, &file.bytes).unwrap();
            let mut counter = counter(1000);
            let read = Capture::open(&path)
                .and_then(|mut capture| capture.count_until(ever(), &mut counter));
            match read {
                Ok(progress) => assert!(is_read && progress == Progress::End),
                Err(error) => {
                    assert!(!is_read, "{error}");
                    says(&error, "too long");
                }
            }
        }
    }
}

#[test]
fn capture_readers_never_panic() {
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
