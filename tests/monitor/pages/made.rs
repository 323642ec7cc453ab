//! Generated periods with known content.

use exitmark_monitor::cell::{Counts, Directions};
use exitmark_monitor::row::{About, Dimension, Encryption, FORMAT, Row};
use exitmark_monitor::services;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::fs;
use std::path::{Path, PathBuf};

const PORTS: [(u16, u64); 24] = [
    (443, 8120),
    (80, 705),
    (22, 96),
    (993, 88),
    (8443, 71),
    (5222, 52),
    (25, 4),
    (6881, 47),
    (587, 31),
    (53, 12),
    (8080, 63),
    (5223, 24),
    (8333, 55),
    (853, 19),
    (9418, 8),
    (6697, 14),
    (3389, 9),
    (21, 6),
    (110, 5),
    (143, 5),
    (0, 2),
    (50002, 16),
    (2083, 3),
    (41234, 38),
];

const SYSTEMS: [(u32, &str, u64); 18] = [
    (64496, "Alder Content Networks", 2310),
    (64497, "Birch Cloud", 1480),
    (64498, "Cedar Search", 1120),
    (64499, "Dogwood Hosting GmbH", 640),
    (64500, "Elm Social", 610),
    (64501, "Fir Video AB", 540),
    (64502, "Ginkgo Telecom", 310),
    (64503, "Hazel Backbone & Sons", 240),
    (64504, "Ivy Dedicated Servers", 215),
    (64505, "Juniper Tree Internet", 160),
    (64506, "Kapok Mail", 120),
    (64507, "Larch Systems of the Far and Very Distant North", 85),
    (64508, "Maple University Computing Centre", 60),
    (64509, "Nutmeg Wireless", 52),
    (64510, "Oak CDN", 44),
    (64511, "Pine Storage", 31),
    (65551, "", 20),
    (0, "", 62),
];

const COUNTRIES: [(&str, u64); 16] = [
    ("US", 3120),
    ("DE", 1650),
    ("NL", 940),
    ("FR", 610),
    ("GB", 520),
    ("FI", 310),
    ("SE", 260),
    ("RU", 250),
    ("JP", 210),
    ("SG", 190),
    ("CH", 160),
    ("CA", 150),
    ("BR", 90),
    ("IN", 80),
    ("CZ", 60),
    ("??", 110),
];

const MIB: u64 = 1 << 20;

/// The further columns of a total.
pub(super) fn about() -> About {
    About {
        format: FORMAT,
        monitor: "0.1.0".to_owned(),
        part: 1,
        watched_seconds: 86_400,
        countries: "tor-geoip 2026-10-20".to_owned(),
        systems: "asn.mmdb 2026-10-28".to_owned(),
        top: 50,
        threshold_flows: 100,
        bin_flows: 8,
        bin_bytes: MIB,
        bin_packets: 1024,
        ..About::default()
    }
}

pub(super) fn blank(exit: &str, day: Date) -> Row {
    let at = |date: Date| date.to_zoned(TimeZone::UTC).unwrap().timestamp();
    Row {
        period_start: at(day),
        period_end: at(day.tomorrow().unwrap()),
        exit: exit.to_owned(),
        ..Row::default()
    }
}

/// Sets a row's bytes; flows and packets follow from them.
pub(super) fn counted(row: Row, bytes: u64) -> Row {
    Row {
        counts: Counts {
            flows: bytes / MIB * 2,
            bytes,
            packets: bytes / MIB * 1024,
            ..Counts::default()
        },
        ..row
    }
}

/// A share, in whole bins.
fn part(bytes: u64, weight: u64, weights: u64) -> u64 {
    bytes / MIB * weight / weights * MIB
}

/// A complete day: every dimension adds up to the total.
pub(super) fn day(exit: &str, date: Date, bytes: u64) -> Vec<Row> {
    let bytes = bytes / MIB * MIB;
    let blank = blank(exit, date);
    let mut rows = vec![Row {
        about: Some(about()),
        ..counted(blank.clone(), bytes)
    }];
    let mut dimension = |dimension, weighed: Vec<(Row, u64)>| {
        let weights = 103 + weighed.iter().map(|(_, weight)| weight).sum::<u64>();
        let mut rest = bytes;
        for (row, weight) in weighed {
            let bytes = part(bytes, weight, weights);
            rest -= bytes;
            rows.push(Row {
                dimension,
                ..counted(row, bytes)
            });
        }
        rows.push(Row {
            dimension,
            other: true,
            ..counted(blank.clone(), rest)
        });
    };
    let with = |change: &dyn Fn(&mut Row)| {
        let mut row = blank.clone();
        change(&mut row);
        row
    };
    // The weights vary over the days.
    let today = usize::from(date.day().unsigned_abs());
    let sway = |index: usize| u64::try_from(90 + (today * 7 + index * 11) % 21).unwrap();
    let ports = PORTS.iter().enumerate().map(|(index, &(port, weight))| {
        let row = with(&|row| row.port = Some(port));
        (row, weight * sway(index))
    });
    let ports: Vec<_> = ports.collect();
    let encrypts = |wanted| {
        let of = ports
            .iter()
            .filter(|(row, _)| services::encryption(row.port.unwrap()) == wanted);
        let row = with(&|row| row.encryption = Some(wanted));
        (row, of.map(|(_, weight)| weight).sum())
    };
    let encryption = [
        Encryption::Encrypted,
        Encryption::Plain,
        Encryption::Unknown,
    ]
    .map(encrypts);
    let systems = SYSTEMS.iter().enumerate().map(|(index, &(asn, name, w))| {
        let row = with(&|row| {
            row.asn = Some(asn);
            row.as_name = (!name.is_empty()).then(|| name.to_owned());
        });
        (row, w * sway(index))
    });
    let countries = COUNTRIES.iter().enumerate().map(|(index, &(country, w))| {
        let row = with(&|row| row.country = Some(country.parse().unwrap()));
        (row, w * sway(index))
    });
    let pairs = [(443, "US", 31), (443, "DE", 19), (80, "US", 9)].map(|(port, country, weight)| {
        let row = with(&|row| {
            row.port = Some(port);
            row.country = Some(country.parse().unwrap());
        });
        (row, weight * 10)
    });
    let versions = [(4, 830), (6, 170)]
        .map(|(version, weight)| (with(&|row| row.ip_version = Some(version)), weight));
    dimension(Dimension::Port, ports);
    dimension(Dimension::System, systems.collect());
    dimension(Dimension::Country, countries.collect());
    dimension(Dimension::IpVersion, versions.into());
    dimension(Dimension::Encryption, encryption.into());
    dimension(Dimension::PortCountry, pairs.into());
    rows
}

/// Ten times as many bytes came down as went up, in twice as many packets.
pub(super) fn add_down(rows: &mut [Row]) {
    let about = rows[0].about.as_mut().unwrap();
    about.directions = Directions::Both;
    (about.bin_down_bytes, about.bin_down_packets) = (8 * MIB, 8192);
    for row in rows {
        row.counts.down_bytes = 10 * row.counts.bytes;
        row.counts.down_packets = 2 * row.counts.packets;
    }
}

pub(super) fn text(rows: &[Row]) -> String {
    let lines = rows.iter();
    lines
        .map(|row| serde_json::to_string(row).unwrap() + "\n")
        .collect()
}

pub(super) fn put(directory: &Path, name: &str, rows: &[Row]) -> PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text(rows)).unwrap();
    path
}

/// Days of three exits, one of them with both directions, a few weeks around the end of a year.
pub(super) fn some_weeks(directory: &Path) {
    for (exit, base) in [("alder", 1_310), ("birch", 940), ("cedar \"south\"", 420)] {
        let mut date = Date::constant(2026, 9, 12);
        while date <= Date::constant(2027, 1, 23) {
            let weekday = u64::from(date.weekday().to_monday_zero_offset().unsigned_abs());
            let wave = (u64::from(date.day().unsigned_abs()) * 37 + base) % 23;
            let bytes = base * (88 + wave - weekday * 3) * 10_000_000;
            let mut rows = day(exit, date, bytes);
            if exit == "birch" {
                add_down(&mut rows);
            }
            let about = rows[0].about.as_mut().unwrap();
            about.lost_packets = if date.day() == 5 { 2048 } else { 0 };
            if date.day() == 13 {
                about.watched_seconds = 61_000;
            }
            put(directory, &format!("{exit}-{date}.jsonl"), &rows);
            date = date.tomorrow().unwrap();
        }
    }
}
