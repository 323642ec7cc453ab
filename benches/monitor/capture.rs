//! A capture file in memory: a realistic mix, with 128 captured bytes per packet.

use crate::systems::Databases;
use crate::traffic::{Kind, SYN, Traffic, filter};
use crate::{Row, Sample, Unit};
use exitmark_monitor::pcap::{Capture, Progress};
use exitmark_monitor::tally::{Counter, DEFAULT_CELLS};
use jiff::Timestamp;
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tempfile::NamedTempFile;

const KEPT: u16 = 128;
/// Directory of a tmpfs.
const IN_MEMORY: &str = "/dev/shm";
/// Distinct packets, which are repeated.
const DIFFERENT: u32 = 65_536;

#[derive(Clone, Copy)]
enum Format {
    Pcap,
    PcapNg,
}

pub(crate) fn rows(databases: &Databases, gigabytes: f64) -> impl Iterator<Item = Row> {
    let formats = [("pcap", Format::Pcap), ("pcapng", Format::PcapNg)];
    formats.into_iter().map(move |(name, format)| {
        let databases = databases.clone();
        let made = RefCell::new(None);
        Row {
            name,
            measure: Box::new(move |_| {
                let mut made = made.borrow_mut();
                let (file, packets) =
                    made.get_or_insert_with(|| write(&databases, format, gigabytes));
                Ok(measure(&databases, file.path(), *packets))
            }),
        }
    })
}

fn measure(databases: &Databases, path: &Path, packets: u32) -> Sample {
    let mut counter = Counter::new(filter(), Arc::clone(&databases.places), DEFAULT_CELLS);
    let start = Instant::now();
    let mut capture = Capture::open(path).unwrap();
    let all = Timestamp::UNIX_EPOCH..Timestamp::MAX;
    let progress = capture.count_until(all, &mut counter).unwrap();
    let spent = start.elapsed().as_secs_f64();
    assert_eq!(progress, Progress::End);
    let [(_, v4), (_, v6)] = counter.tally().totals();
    let counted = v4.packets + v6.packets;
    assert_eq!(counted, u64::from(packets), "all of them count");
    let bytes_per_packet = f64::from(KEPT);
    Sample {
        value: f64::from(packets) * bytes_per_packet / spent / 1e9,
        unit: Unit::Gigabytes { bytes_per_packet },
    }
}

/// Writes a file with this many gigabytes of captured bytes; returns its number of packets.
fn write(databases: &Databases, format: Format, gigabytes: f64) -> (NamedTempFile, u32) {
    let kind = Kind {
        v6: 30,
        worst: false,
        syn: SYN,
    };
    let mut traffic = Traffic::new(databases, kind);
    let mut records = Vec::new();
    let le = u32::to_le_bytes;
    for _ in 0..DIFFERENT {
        let (mut kept, whole) = traffic.next();
        kept.resize(usize::from(KEPT), 0);
        let lengths = [
            u32::from(KEPT),
            u32::try_from(whole).unwrap().max(u32::from(KEPT)),
        ];
        let time = 1_700_000_000_u32;
        match format {
            Format::Pcap => {
                records.extend([time, 0].map(le).as_flattened());
                records.extend(lengths.map(le).as_flattened());
                records.extend(&kept);
            }
            Format::PcapNg => {
                let total = 32 + u32::from(KEPT);
                let micros = u64::from(time) * 1_000_000;
                let [high, low] =
                    [micros >> 32, micros & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
                records.extend([6, total, 0, high, low].map(le).as_flattened());
                records.extend(lengths.map(le).as_flattened());
                records.extend(&kept);
                records.extend(le(total));
            }
        }
    }
    let once = f64::from(KEPT) * f64::from(DIFFERENT) / 1e9;
    let is_enough = |times: &u32| f64::from(*times) * once >= gigabytes;
    let repeated = (1..u32::MAX).find(is_enough).unwrap_or(1);
    let directory = [PathBuf::from(IN_MEMORY), std::env::temp_dir()];
    let directory = directory.iter().find(|path| path.is_dir()).unwrap();
    let file = NamedTempFile::new_in(directory).unwrap();
    let mut writer = BufWriter::new(File::create(file.path()).unwrap());
    let header: Vec<u32> = match format {
        Format::Pcap => vec![0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1],
        Format::PcapNg => {
            let section = [0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28];
            let interface = [1, 20, 1, 262_144, 20];
            [&section[..], &interface].concat()
        }
    };
    let header: Vec<u8> = header.into_iter().flat_map(le).collect();
    writer.write_all(&header).unwrap();
    for _ in 0..repeated {
        writer.write_all(&records).unwrap();
    }
    writer.flush().unwrap();
    (file, repeated * DIFFERENT)
}
