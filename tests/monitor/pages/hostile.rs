//! Malicious files and names.

use super::{day, made, read};
use crate::says;
use exitmark_monitor::report;
use exitmark_monitor::row::{About, Row};
use jiff::civil::date;
use std::fs;
use std::path::Path;

fn good() -> String {
    made::text(&made::day("one", date(2026, 11, 5), 1 << 40))
}

/// The error from reading a directory with this file; it names the file.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let periods = tempfile::tempdir().unwrap();
    fs::write(periods.path().join(name), bytes).unwrap();
    let said = error_of(periods.path());
    says(&said, name);
    says(&said, "Nothing was written");
    said
}

fn error_of(path: &Path) -> String {
    let read = report::read(&[path.to_owned()]);
    read.unwrap_err().to_string()
}

#[test]
fn reports_the_line_of_a_fault() {
    let good = good();
    let lines: Vec<&str> = good.lines().collect();
    let [port, system, country, version] = [
        "\"port\":80,",
        "\"asn\":64496,",
        "\"country\":\"DE\"",
        "\"ip_version\":6",
    ]
    .map(|column| lines.iter().position(|line| line.contains(column)).unwrap());
    // Line, what is replaced by what, and what is said of it.
    #[rustfmt::skip]
    let cases = [
        (port, "\"port\":80", "\"port\":-1", "not a row"),
        (port, "\"port\":80", "\"port\":65536", "not a row"),
        (port, "\"port\":80", "\"port\":\"80\"", "not a row"),
        (port, "\"port\":80", "\"country\":\"DE\"", "column `port`"),
        (port, "\"port\":80", "\"port\":80,\"asn\":5", "no column `asn`"),
        (port, "\"port\":80", "\"port\":443", "already"),
        (port, "\"port\":80", "\"port\":80,\"as_name\":\"x\"", "no `asn`"),
        (port, "\"dimension\":\"port\"", "\"dimension\":\"ports\"", "not a row"),
        (port, "\"dimension\":\"port\"", "\"dimension\":\"\\u001b[31m\"", "\\u{1b}[31m"),
        (port, "\"exit\":\"one\"", "\"exit\":\"two\"", "is above it"),
        (port, "\"exit\":\"one\"", "\"exit\":\" \\u0007\"", "no name"),
        (port, "2026-11-05T", "2026-11-04T", "is above it"),
        (port, "2026-11-06T", "2026-11-05T", "ends before"),
        (port, "2026-11-06T", "2028-11-05T", "longer than a year"),
        (port, "2026-11-05T", "1926-11-05T", "no period begins"),
        (port, "2026-11-05T", "2026-13-05T", "not a row"),
        (port, "\"flows\":", "\"flows\":999999999999", "`flows` is"),
        (port, "\"bytes\":", "\"bytes\":1.5e300,\"x\":", "not a row"),
        (port, "\"bytes\":", "\"bytes\":-", "not a row"),
        (port, "\"bytes\":", "\"byte\":", "not a row"),
        (port, "\"other\":false", "\"other\":true", "no column `port`"),
        (port, "}", "", "not a row"),
        (port, "{", "", "not a row"),
        (system, "\"asn\":64496", "\"asn\":4294967296", "not a row"),
        (country, "\"country\":\"DE\"", "\"country\":\"D\"", "not a row"),
        (country, "\"country\":\"DE\"", "\"country\":\"<b>\"", "not a row"),
        (version, "\"ip_version\":6", "\"ip_version\":5", "not 4 or 6"),
        (0, "\"part\":1,", "", "`part`"),
        (0, "\"part\":1", "\"part\":0", "first one is 1"),
        (0, "\"part\":1", "\"part\":\"1\"", "not a row"),
        (0, "\"epsilon\":0.0", "\"epsilon\":-1", "`epsilon`"),
        (0, "\"epsilon\":0.0", "\"epsilon\":null", "not a row"),
        (0, "86400", "186400", "`watched_seconds`"),
        (0, "\"other\":false", "\"other\":true", "never `other`"),
        (0, "\"dimension\":\"total\"", "\"dimension\":\"port\",\"port\":1", "is above it"),
    ];
    for (at, from, to, expected) in cases {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let changed = lines[at].replacen(from, to, 1);
        assert_ne!(changed, lines[at], "{from} is not in line {at}");
        lines[at] = changed;
        let said = refusal("a.jsonl", (lines.join("\n") + "\n").as_bytes());
        says(&said, &format!("a.jsonl, line {}: ", at + 1));
        assert!(said.contains(expected), "{from} → {to}: {said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}

#[test]
fn reports_the_file_of_a_fault() {
    let good = good();
    let lines: Vec<&str> = good.lines().collect();
    let cut = |bytes: usize| good.as_bytes()[..bytes].to_vec();
    let long = format!("{}\n", " ".repeat(20_000));
    let endless = "[".repeat(16_000) + "\n";
    let twice = good.repeat(2);
    let rows = |count: usize| (lines[..count].join("\n") + "\n").into_bytes();
    #[rustfmt::skip]
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("empty", vec![], "is empty"),
        ("in the middle", cut(good.len() / 2), "was cut"),
        ("at the last byte", cut(good.len() - 1), "was cut"),
        ("after the total", rows(1), "missing"),
        ("between lines", rows(40), "missing"),
        ("a line without end", long.into_bytes(), "more than 16384 bytes"),
        ("zeroes", vec![0; 1 << 20], "more than 16384 bytes"),
        ("deep", endless.into_bytes(), "not a row"),
        ("no text", b"\xff\xfe\n".to_vec(), "not a row"),
        ("twice", twice.into_bytes(), "is in"),
        ("no rows", b"\n\n".to_vec(), "not a row"),
    ];
    for (name, bytes, expected) in cases {
        let said = refusal("b.jsonl", &bytes);
        assert!(said.contains(expected), "{name}: {said}");
    }
}

#[test]
fn refuses_sums_beyond_64_bits() {
    let periods = tempfile::tempdir().unwrap();
    for exit in ["one", "two"] {
        for day in 1..=28 {
            let rows = made::day(exit, date(2026, 2, day), 1 << 56);
            made::put(periods.path(), &format!("{exit}-{day:02}.jsonl"), &rows);
        }
    }
    says(&error_of(periods.path()), "beyond 64 bits");
}

#[test]
fn the_same_period_twice_is_refused_with_both_files() {
    let periods = tempfile::tempdir().unwrap();
    fs::write(periods.path().join("a.jsonl"), good()).unwrap();
    fs::write(periods.path().join("copy.jsonl"), good()).unwrap();
    let said = error_of(periods.path());
    says(&said, "copy.jsonl, line 1");
    says(&said, "a.jsonl already");
    says(&said, "part 1");
    says(&said, "2026-11-05");
}

#[test]
fn reports_missing_files() {
    let nowhere = "/nonexistent/periods";
    says(&error_of(Path::new(nowhere)), nowhere);
    let empty = tempfile::tempdir().unwrap();
    says(&error_of(empty.path()), ".jsonl");
}

#[test]
fn ignores_unknown_columns() {
    let periods = tempfile::tempdir().unwrap();
    let more = good().replace("\"other\":", "\"colour\":{\"deep\":[1,2]},\"other\":");
    assert!(more.contains("colour"));
    fs::write(periods.path().join("a.jsonl"), more).unwrap();
    let sums = read(periods.path()).sum(None, super::november(2026));
    assert_eq!(sums.total.bytes, 1 << 40);
}

const EVIL: &str = "<script>alert('1')</script> & \"<b>\" </title></style>\u{202e}\u{1b}[31m";

#[test]
fn names_are_escaped() {
    let periods = tempfile::tempdir().unwrap();
    let evil = |row: Row| Row {
        exit: EVIL.to_owned(),
        as_name: row.asn.map(|_| format!("={EVIL}")),
        about: row.about.map(|about| About {
            countries: EVIL.to_owned(),
            systems: EVIL.to_owned(),
            monitor: EVIL.to_owned(),
            ..about
        }),
        ..row
    };
    let rows = made::day("x", date(2026, 11, 5), 1 << 40).into_iter();
    let rows: Vec<_> = rows.map(evil).collect();
    made::put(periods.path(), "a.jsonl", &rows);
    let rows = day("../../etc", date(2026, 11, 5), &[(Some(1), 1)]);
    made::put(periods.path(), "b.jsonl", &rows);
    let above = tempfile::tempdir().unwrap();
    let out = above.path().join("out");
    report::write(&read(periods.path()), &out).unwrap();
    assert_eq!(fs::read_dir(above.path()).unwrap().count(), 1);
    let mut pages = 0;
    for entry in fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let is_plain = name.chars().all(is_plain) && !name.starts_with('.');
        assert!(is_plain, "{name}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(['\u{202e}', '\u{1b}']), "{name}");
        if name.ends_with(".html") {
            pages += 1;
            for harm in ["<script", "<b>\"", "alert('"] {
                assert!(!text.contains(harm), "{name} has {harm}");
            }
            assert_eq!(text.matches("</title></head>").count(), 0, "{name}");
            assert_eq!(text.matches("</style>").count(), 1, "{name}");
            let is_escaped = text.contains("&#60;script");
            assert!(is_escaped || name.starts_with("exit-etc"), "{name}");
        }
        if name.ends_with(".csv") {
            assert!(!text.contains(",\"="), "{name} has a formula");
        }
    }
    assert_eq!(pages, 3 * 3 + 1);
}

#[test]
fn an_interrupted_run_leaves_the_page_complete() {
    let periods = tempfile::tempdir().unwrap();
    fs::write(periods.path().join("a.jsonl"), good()).unwrap();
    let statistics = read(periods.path());
    let out = tempfile::tempdir().unwrap();
    report::write(&statistics, out.path()).unwrap();
    let index = || fs::read_to_string(out.path().join("index.html")).unwrap();
    let before = index();

    // What a killed run leaves goes with the next one; what is not ours stays.
    let left = out.path().join(".exitmark-report-x1");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("index.html"), "half").unwrap();
    fs::write(out.path().join("robots.txt"), "own").unwrap();
    report::write(&statistics, out.path()).unwrap();
    assert!(!left.exists() && out.path().join("robots.txt").exists());
    assert_eq!(index(), before);

    // The last page of all cannot be put in its place: the index is still the old one.
    fs::remove_file(out.path().join("icon.svg")).unwrap();
    fs::create_dir(out.path().join("icon.svg")).unwrap();
    fs::write(out.path().join("icon.svg/x"), "").unwrap();
    let error = report::write(&statistics, out.path()).unwrap_err();
    says(&error, "icon.svg");
    assert_eq!(index(), before);
    for entry in fs::read_dir(out.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.to_str().unwrap().starts_with('.'), "{name:?}");
    }
}
