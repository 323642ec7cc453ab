//! The report: sums of period files, and the page.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed; the lint's exception stops at #[test]"
)]

mod browser;
mod database;
mod directions;
mod document;
mod hostile;
mod made;

use exitmark_monitor::report::{self, Month, Span, Statistics};
use exitmark_monitor::row::{Dimension, Row};
use jiff::civil::{Date, date};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn read(directory: &Path) -> Statistics {
    report::read(&[directory.to_owned()]).unwrap()
}

fn november(year: i16) -> Span {
    Span::Month(Month { year, month: 11 })
}

/// A day with these bytes by port, in MiB, and minimal rows by country and version.
fn day(exit: &str, date: Date, ports: &[(Option<u16>, u64)]) -> Vec<Row> {
    let blank = made::blank(exit, date);
    let total = ports.iter().map(|(_, mib)| mib * MIB).sum();
    let mut rows = vec![Row {
        about: Some(made::about()),
        ..made::counted(blank.clone(), total)
    }];
    rows.extend(ports.iter().map(|&(port, mib)| {
        let row = Row {
            dimension: Dimension::Port,
            port,
            other: port.is_none(),
            ..blank.clone()
        };
        made::counted(row, mib * MIB)
    }));
    let country = Row {
        dimension: Dimension::Country,
        country: Some("DE".parse().unwrap()),
        ..blank.clone()
    };
    let version = Row {
        dimension: Dimension::IpVersion,
        ip_version: Some(4),
        ..blank
    };
    rows.extend([country, version].map(|row| made::counted(row, total)));
    rows
}

/// Bytes of exit `one` by port in MiB, whether each is a lower bound, and `other`.
fn ports(statistics: &Statistics, span: Span) -> (Vec<(u16, u64, bool)>, u64) {
    let sums = statistics.sum(Some("one"), span);
    let table = sums.table(Dimension::Port);
    let rows = table.ranked().into_iter().map(|(key, entry)| {
        let bytes = entry.counts.bytes / MIB;
        (key.port.unwrap(), bytes, table.is_lower_bound(entry))
    });
    (rows.collect(), table.other.bytes / MIB)
}

#[test]
fn months_and_years_are_sums_of_days() {
    let periods = tempfile::tempdir().unwrap();
    let (last, first) = (date(2027, 12, 31), date(2028, 1, 1));
    let leap = date(2028, 2, 29);
    let files: [(&str, &str, Date, &[_]); 5] = [
        ("a", "one", last, &[(Some(443), 7), (None, 2)]),
        ("b", "one", first, &[(Some(443), 11), (Some(80), 3)]),
        ("deep/er/c", "one", date(2028, 2, 28), &[(Some(80), 5)]),
        ("deep/d", "one", leap, &[(Some(80), 13)]),
        ("deep/e", "two", leap, &[(Some(22), 17)]),
    ];
    for (name, exit, date, ports) in files {
        let rows = day(exit, date, ports);
        made::put(periods.path(), &format!("{name}.jsonl"), &rows);
    }
    made::put(periods.path(), "not-a-period.txt", &[]);
    let statistics = read(periods.path());

    let month = |year, month| Span::Month(Month { year, month });
    let spans = [
        Span::Everything,
        Span::Year(2027),
        Span::Year(2028),
        month(2027, 12),
        month(2028, 1),
        month(2028, 2),
    ];
    assert_eq!(statistics.spans(None), spans);
    let of_two = [Span::Everything, Span::Year(2028), month(2028, 2)];
    assert_eq!(statistics.spans(Some("two")), of_two);
    let mib = |exit, span| statistics.sum(exit, span).total.bytes / MIB;
    assert_eq!(spans.map(|span| mib(None, span)), [58, 9, 49, 9, 14, 35]);
    assert_eq!(mib(Some("one"), month(2028, 2)), 18);
    assert_eq!(mib(Some("two"), Span::Everything), 17);
    assert_eq!(mib(Some("three"), Span::Everything), 0);

    let february = statistics.sum(None, month(2028, 2));
    let days = february.days.iter();
    let bytes: Vec<_> = days
        .map(|(date, day)| (*date, day.total.bytes / MIB))
        .collect();
    assert_eq!(bytes, [(date(2028, 2, 28), 5), (leap, 30)]);
    assert_eq!(february.periods, 3);
    assert_eq!(february.watched(), (3 * 86_400, 3 * 86_400));

    // On the first day port 80 may have been in `other`, so its sum is a lower bound; 443 was
    // shown.
    let all = (vec![(80, 21, true), (443, 18, false)], 2);
    assert_eq!(ports(&statistics, Span::Everything), all);
    let year = (vec![(80, 21, false), (443, 11, false)], 0);
    assert_eq!(ports(&statistics, Span::Year(2028)), year);
}

#[test]
fn parts_of_a_period_are_one_period() {
    let periods = tempfile::tempdir().unwrap();
    let of_part = |part, mib, watched_seconds| {
        let mut rows = day("one", date(2026, 11, 5), &[(Some(443), mib)]);
        let about = rows[0].about.as_mut().unwrap();
        about.part = part;
        about.watched_seconds = watched_seconds;
        about.lost_packets = 1024;
        rows
    };
    // In a file of its own, and together in one.
    made::put(periods.path(), "1.jsonl", &of_part(1, 3, 40_000));
    let both = [of_part(2, 4, 30_000), of_part(3, 5, 3_200)].concat();
    made::put(periods.path(), "2.jsonl", &both);
    let sums = read(periods.path()).sum(None, november(2026));
    let numbers = (sums.total.bytes / MIB, sums.periods, sums.lost);
    assert_eq!(numbers, (12, 1, 3072));
    assert_eq!(sums.watched(), (86_400, 73_200));
}

#[test]
fn a_period_of_days_covers_them() {
    let periods = tempfile::tempdir().unwrap();
    let mut rows = day("one", date(2026, 11, 28), &[(Some(443), 9)]);
    let end = made::blank("one", date(2026, 12, 4)).period_end;
    rows.iter_mut().for_each(|row| row.period_end = end);
    made::put(periods.path(), "week.jsonl", &rows);
    let statistics = read(periods.path());
    assert_eq!(statistics.spans(None).len(), 3);
    let days = statistics.sum(None, november(2026)).days;
    let bytes: Vec<_> = days.values().map(|day| day.total.bytes / MIB).collect();
    assert_eq!(bytes, [9, 0, 0]);
}

/// The numbers of a month's JSON or CSV, by their keys.
type Numbers = BTreeMap<Vec<String>, (u64, bool)>;

const KEYS: [&str; 7] = [
    "dimension",
    "day",
    "port",
    "asn",
    "country",
    "ip_version",
    "encryption",
];

fn of_json(rows: &serde_json::Value) -> Numbers {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows = rows.as_array().unwrap().iter().map(|row| {
        let mut key: Vec<_> = KEYS.iter().map(|column| text(&row[*column])).collect();
        key.push(row["other"].to_string());
        let lower_bound = row["lower_bound"].as_bool().unwrap();
        (key, (row["bytes"].as_u64().unwrap(), lower_bound))
    });
    rows.collect()
}

fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut is_quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => cells.push(String::new()),
            c => cells.last_mut().unwrap().push(c),
        }
    }
    cells
}

fn of_csv(text: &str) -> Numbers {
    let mut lines = text.split_terminator("\r\n").map(cells);
    let columns = lines.next().unwrap();
    let at = |name: &str| columns.iter().position(|column| column == name).unwrap();
    let rows = lines.map(|line| {
        assert_eq!(line.len(), columns.len());
        let mut key: Vec<_> = KEYS.iter().map(|column| line[at(column)].clone()).collect();
        key.push(line[at("other")].clone());
        let lower_bound = line[at("lower_bound")] == "true";
        (key, (line[at("bytes")].parse().unwrap(), lower_bound))
    });
    rows.collect()
}

#[test]
fn data_files_and_document_have_the_same_numbers() {
    let periods = tempfile::tempdir().unwrap();
    made::some_weeks(periods.path());
    let statistics = read(periods.path());
    let out = tempfile::tempdir().unwrap();
    let summary = report::write(&statistics, out.path()).unwrap();
    let files = fs::read_dir(out.path()).unwrap().count();
    assert_eq!((summary.files, summary.exits), (files, 3));
    // For all exits and each of three: all time, two years, five months; plus the index.
    assert_eq!((summary.pages, files), (4 * 8 + 1, 4 * 8 * 3 + 2));

    let document: serde_json::Value = serde_json::from_str(&report::json(&statistics)).unwrap();
    assert_eq!(document["exits"].as_array().unwrap().len(), 3);
    let spans = document["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 4 * 8);
    let november = spans
        .iter()
        .find(|span| span["span"] == "2026-11" && span["exit"].is_null())
        .unwrap();
    let file = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
    let beside: serde_json::Value = serde_json::from_str(&file("2026-11.json")).unwrap();
    assert_eq!(&beside, november);
    assert_eq!(beside["watched_seconds"], 3 * (29 * 86_400 + 61_000));
    assert_eq!(beside["lost_packets"], 3 * 2048);

    // Compared with a simple sum over the files.
    let mut plain = Numbers::new();
    for exit in ["alder", "birch", "cedar \"south\""] {
        for day in 1..=30 {
            let name = format!("{exit}-2026-11-{day:02}.jsonl");
            let text = fs::read_to_string(periods.path().join(name)).unwrap();
            for line in text.lines() {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                let of_row = of_json(&serde_json::json!([{
                    "dimension": row["dimension"], "port": row["port"], "asn": row["asn"],
                    "country": row["country"], "ip_version": row["ip_version"],
                    "encryption": row["encryption"], "other": row["other"],
                    "bytes": row["bytes"], "lower_bound": false,
                }]));
                for (mut key, (bytes, _)) in of_row {
                    plain.entry(key.clone()).or_default().0 += bytes;
                    if key[0] == "total" {
                        key[0] = "day".to_owned();
                        key[1] = format!("2026-11-{day:02}");
                        plain.entry(key).or_default().0 += bytes;
                    }
                }
            }
        }
    }
    assert!(plain.len() > 100);
    assert_eq!(of_json(&beside["rows"]), plain);
    assert_eq!(of_csv(&file("2026-11.csv")), plain);
    assert_eq!(file("index.html"), file("2027-01.html"));
}

#[test]
fn years_of_files_take_little_memory() {
    let periods = tempfile::tempdir().unwrap();
    let mut bytes = 0;
    for exit in ["alder", "birch", "cedar"] {
        let mut day = date(2026, 1, 1);
        let (from, to) = (day.to_string(), day.tomorrow().unwrap().to_string());
        let text = made::text(&made::day(exit, day, 1 << 40));
        let text = text.replace(&from, "FROM").replace(&to, "TO");
        while day < date(2029, 1, 1) {
            let text = text
                .replace("FROM", &day.to_string())
                .replace("TO", &day.tomorrow().unwrap().to_string());
            bytes += text.len();
            // Days of a month share a file: creating thousands of files is slow.
            let name = format!("{exit}-{}-{}.jsonl", day.year(), day.month());
            let path = periods.path().join(name);
            let file = File::options().append(true).create(true).open(path);
            let mut file = file.unwrap();
            file.write_all(text.as_bytes()).unwrap();
            day = day.tomorrow().unwrap();
        }
    }
    let mut statistics = None;
    let reading = allocation_counter::measure(|| statistics = Some(read(periods.path())));
    let statistics = statistics.unwrap();
    let sums = statistics.sum(None, Span::Everything);
    assert_eq!((sums.periods, sums.days.len()), (3 * 1096, 1096));
    assert_eq!(sums.total.bytes, (3 * 1096) << 40);
    let out = tempfile::tempdir().unwrap();
    let writing = allocation_counter::measure(|| {
        report::write(&statistics, out.path()).unwrap();
    });
    let most = reading.bytes_max.max(writing.bytes_max);
    assert!(bytes > 40_000_000, "{bytes}");
    assert!(most < 12 << 20, "{most} of {bytes}");
}
