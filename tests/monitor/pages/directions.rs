//! Both directions in the report: sums, tables, and what the page says beside volumes of one.

use super::{made, november, read};
use crate::says;
use exitmark_monitor::cell::Counts;
use exitmark_monitor::report;
use exitmark_monitor::row::{Dimension, Row};
use jiff::civil::date;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A file as version 0.1.0 wrote it, before there was a format number.
const FORMAT_1: &str = concat!(
    r#"{"period_start":"2026-11-05T00:00:00Z","period_end":"2026-11-06T00:00:00Z","exit":"alder","dimension":"total","other":false,"flows":1904,"bytes":998244352,"packets":1310720,"monitor":"0.1.0","part":1,"watched_seconds":86400,"unattributed_bytes":0,"unattributed_packets":0,"lost_packets":0,"countries":"tor-geoip 2026-10-20","systems":"","top":50,"threshold_flows":100,"bin_flows":8,"bin_bytes":1048576,"bin_packets":1024,"epsilon":0.0,"spilled":false}"#,
    "\n",
    r#"{"period_start":"2026-11-05T00:00:00Z","period_end":"2026-11-06T00:00:00Z","exit":"alder","dimension":"port","port":443,"other":false,"flows":1904,"bytes":998244352,"packets":1310720}"#,
    "\n",
    r#"{"period_start":"2026-11-05T00:00:00Z","period_end":"2026-11-06T00:00:00Z","exit":"alder","dimension":"country","country":"??","other":false,"flows":1904,"bytes":998244352,"packets":1310720}"#,
    "\n",
    r#"{"period_start":"2026-11-05T00:00:00Z","period_end":"2026-11-06T00:00:00Z","exit":"alder","dimension":"ip_version","ip_version":4,"other":false,"flows":1904,"bytes":998244352,"packets":1310720}"#,
    "\n",
);

/// Rows of a day in which ten times as much came down as went up.
fn both(day: i8) -> Vec<Row> {
    let mut rows = made::day("alder", date(2026, 11, day), 1 << 36);
    made::add_down(&mut rows);
    rows
}

/// The page, the CSV and the JSON of November.
fn written(directory: &Path) -> [String; 3] {
    let out = tempfile::tempdir().unwrap();
    report::write(&read(directory), out.path()).unwrap();
    ["html", "csv", "json"]
        .map(|kind| fs::read_to_string(out.path().join(format!("2026-11.{kind}"))).unwrap())
}

/// The page without its style and its tags.
fn words(page: &str) -> String {
    let body = page.split_once("</style>").unwrap().1;
    let pieces = body
        .split('<')
        .map(|piece| piece.split_once('>').map_or(piece, |(_, text)| text));
    let text: Vec<_> = pieces.flat_map(str::split_whitespace).collect();
    text.join(" ")
}

#[test]
fn files_of_the_format_before_are_of_one_direction() {
    let periods = tempfile::tempdir().unwrap();
    fs::write(periods.path().join("old.jsonl"), FORMAT_1).unwrap();
    let sums = read(periods.path()).sum(None, november(2026));
    assert_eq!(sums.total, Counts::from([1904, 998_244_352, 1_310_720]));
    assert!(!sums.method.has_down());
    let [page, csv, json] = written(periods.path());
    let words = words(&page);
    for text in [
        "packets, outbound only",
        "of bytes outbound only, by the port",
        "Bytes of IP packets per day, outbound only",
        "Shares are of bytes outbound only.",
        "Port Share Bytes, outbound only Connections",
        "the volume of downloads is not in these numbers",
    ] {
        says(&words, text);
    }
    assert!(!words.contains("Bytes down"), "{words}");
    let header = "lower_bound,flows,bytes,packets,down_bytes,down_packets\r\n";
    says(&csv, header);
    says(&csv, ",1904,998244352,1310720,,\r\n");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["directions"], "out");
    assert_eq!(json["rows"][0]["down_bytes"], Value::Null);
}

#[test]
fn both_directions_are_summed_and_shown_apart() {
    let periods = tempfile::tempdir().unwrap();
    for day in [5, 6] {
        made::put(periods.path(), &format!("{day}.jsonl"), &both(day));
    }
    let sums = read(periods.path()).sum(None, november(2026));
    assert_eq!(sums.total.bytes, 1 << 37);
    assert_eq!(sums.total.down_bytes, 10 << 37);
    assert_eq!(sums.method.parts_with_down, 2);
    let [page, csv, json] = written(periods.path());
    let words = words(&page);
    for text in [
        "Volume up 137",
        "Volume down 1.37",
        "Port Share Bytes up Bytes down Connections",
        "Kind Share Bytes up Bytes down",
        "of bytes up and down, by the port",
        "per day, up and down, by whether",
        "Bytes down are rounded up to multiples of 8388608",
    ] {
        says(&words, text);
    }
    assert!(!words.contains("outbound only"), "{words}");
    let total = csv.lines().nth(1).unwrap();
    let expected = format!(",{},{},{}", 1_u64 << 37, 1_u64 << 27, 10_u64 << 37);
    assert!(total.contains(&expected), "{total}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["directions"], "both");
    assert_eq!(json["rows"][0]["down_bytes"], 10_u64 << 37);
}

#[test]
fn rows_are_ordered_by_the_bytes_of_both_directions() {
    let periods = tempfile::tempdir().unwrap();
    let mut rows = both(5);
    // The smallest port up is the largest one together with what came down.
    let of_port = |row: &&mut Row| row.dimension == Dimension::Port && !row.other;
    let smallest = rows
        .iter_mut()
        .filter(of_port)
        .min_by_key(|row| row.counts.bytes);
    let smallest = smallest.unwrap();
    smallest.counts.down_bytes = 1 << 45;
    let port = smallest.port.unwrap();
    made::put(periods.path(), "a.jsonl", &rows);
    let sums = read(periods.path()).sum(None, november(2026));
    let ranked = sums.table(Dimension::Port).ranked();
    assert_eq!(ranked[0].0.port, Some(port));
}

#[test]
fn a_page_says_for_how_many_periods_it_has_both_directions() {
    let periods = tempfile::tempdir().unwrap();
    fs::write(periods.path().join("old.jsonl"), FORMAT_1).unwrap();
    made::put(periods.path(), "new.jsonl", &both(6));
    let [page, csv, json] = written(periods.path());
    let words = words(&page);
    says(&words, "Volume down 687");
    says(&words, "of 1 of 2 periods");
    says(
        &words,
        "up and down; down in 1 of 2 periods only, by whether",
    );
    // A row without anything down has 0, because something is counted.
    says(&csv, ",998244352,1310720,0,0\r\n");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["directions"], "mixed");
}

#[test]
fn a_tap_that_shows_nothing_down_is_of_one_direction() {
    let periods = tempfile::tempdir().unwrap();
    let mut rows = both(5);
    for row in &mut rows {
        (row.counts.down_bytes, row.counts.down_packets) = (0, 0);
    }
    made::put(periods.path(), "a.jsonl", &rows);
    let [page, ..] = written(periods.path());
    says(&words(&page), "packets, outbound only");
}

#[test]
fn refuses_contradictory_directions_and_later_formats() {
    let good = made::text(&both(5));
    let refusal = |text: &str| {
        let periods = tempfile::tempdir().unwrap();
        let path = periods.path().join("a.jsonl");
        fs::write(&path, text).unwrap();
        report::read(&[path]).unwrap_err().to_string()
    };
    for (from, to, expected) in [
        (
            "\"format\":2",
            "\"format\":3",
            "`format` is 3, and this version",
        ),
        ("\"format\":2", "\"format\":0", "`format` is 0"),
        (
            "\"directions\":\"both\"",
            "\"directions\":\"out\"",
            "one direction was counted",
        ),
        ("\"directions\":\"both\",", "", "one direction was counted"),
        (
            "\"directions\":\"both\"",
            "\"directions\":\"in\"",
            "not a row",
        ),
    ] {
        assert!(good.contains(from));
        says(&refusal(&good.replacen(from, to, 1)), expected);
    }
    // Without what came down in one row, the rows do not add up.
    let mut rows = both(5);
    let row = rows
        .iter_mut()
        .find(|row| row.dimension == Dimension::Country);
    row.unwrap().counts.down_bytes = 0;
    says(&refusal(&made::text(&rows)), "do not add up");
    let mut rows = both(5);
    rows[1].counts.down_packets = 1 << 57;
    says(&refusal(&made::text(&rows)), "`down_packets` is");
}
