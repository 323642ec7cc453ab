//! Reads period files, which are untrusted. An error names file and line, and ends the report. One
//! part of a period is in memory at a time, besides the sums.

use super::ReportError;
use super::sums::{Month, PeriodPart, Statistics, SumKey, date};
use crate::cell::{Counts, Directions};
use crate::row::{About, Dimension, FORMAT, Row, YEARS};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line of a period file, in bytes.
const LINE: u64 = 16 * 1024;
/// Rows of a part at most, without its total.
const ROWS: usize = 100_000;
/// Rows kept over all months and exits at most: about 200 MiB.
const KEPT: usize = 2_000_000;
/// Different exits at most, over all files.
const EXITS: usize = 256;
/// Period files at most, over all directories.
const FILES: usize = 1_000_000;
/// Depth of directories at most.
const DEPTH: usize = 8;
/// Longest name, in characters.
const NAME: usize = 120;
/// Longest period, in seconds: a leap year.
const PERIOD: i64 = 366 * 86_400;
/// Largest value of flows, bytes or packets in a row.
const COUNT: u64 = 1 << 56;

const EXTENSION: &str = "jsonl";

/// Reads files, and the `.jsonl` files in directories.
///
/// # Errors
/// A file cannot be read or is not a period file, a period occurs twice, or no period was found.
pub fn read(paths: &[PathBuf]) -> Result<Statistics, ReportError> {
    let mut files = Vec::new();
    for path in paths {
        find(path, 0, &mut files)?;
    }
    let mut reader = Reader::default();
    for file in files {
        reader.file(&file)?;
    }
    if reader.statistics.exits.is_empty() {
        let places: Vec<_> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(ReportError::NoPeriod(places.join(", ")));
    }
    Ok(reader.statistics)
}

/// Finds the files to read, sorted by name. Symbolic links to directories are not followed.
fn find(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), ReportError> {
    let refused = |what: String| ReportError::File(path.to_owned(), what);
    let unread = |error: std::io::Error| refused(format!("cannot be read: {error}"));
    if !path.metadata().map_err(unread)?.is_dir() {
        files.push(path.to_owned());
    } else if depth == DEPTH {
        return Err(refused(format!("is more than {DEPTH} directories deep")));
    } else {
        let mut inside = BTreeSet::new();
        for entry in path.read_dir().map_err(unread)? {
            let entry = entry.map_err(unread)?;
            let kind = entry.file_type().map_err(unread)?;
            let is_period = entry.path().extension().is_some_and(|ext| ext == EXTENSION);
            if kind.is_dir() || is_period && entry.path().is_file() {
                inside.insert(entry.path());
            }
        }
        for path in inside {
            find(&path, depth + 1, files)?;
        }
    }
    if files.len() > FILES {
        return Err(refused(format!("is one of more than {FILES} files")));
    }
    Ok(())
}

/// The sums of the files that were read so far, and what the next ones must not repeat.
#[derive(Default)]
struct Reader {
    statistics: Statistics,
    /// Exit, start and part of every part, and the index of its file.
    parts_read: BTreeMap<(usize, i64, u32), usize>,
    exits: BTreeMap<String, usize>,
    files: Vec<PathBuf>,
    /// The sum of all rows. While it fits, every partial sum fits.
    everything: Counts,
}

impl Reader {
    fn file(&mut self, path: &Path) -> Result<(), ReportError> {
        let unread = |error| ReportError::File(path.to_owned(), format!("cannot be read: {error}"));
        let mut lines = BufReader::new(File::open(path).map_err(unread)?);
        self.files.push(path.to_owned());
        let mut line = Vec::new();
        let mut number = 0_u64;
        let mut part: Option<PeriodPart> = None;
        let mut keys = BTreeSet::new();
        loop {
            line.clear();
            let length = (&mut lines).take(LINE + 1).read_until(b'\n', &mut line);
            let length = u64::try_from(length.map_err(unread)?).unwrap_or(u64::MAX);
            let wrong = |number, what| ReportError::Line(path.to_owned(), number, what);
            if length == 0 {
                break;
            }
            number += 1;
            let row = parse(&line).map_err(|what| wrong(number, what))?;
            let sum = self.everything.checked_add(row.counts);
            let too_much = || wrong(number, "the sum of all rows is beyond 64 bits".to_owned());
            self.everything = sum.ok_or_else(too_much)?;
            if let Some(about) = row.about.clone() {
                if let Some(part) = part.take() {
                    self.part(&part).map_err(|what| wrong(number - 1, what))?;
                }
                self.meet(&row, &about)
                    .map_err(|what| wrong(number, what))?;
                keys.clear();
                part = Some(PeriodPart {
                    total: row,
                    about,
                    rows: Vec::new(),
                });
                continue;
            }
            let belongs = part.as_mut().filter(|part| {
                let of = |row: &Row| (row.period_start, row.period_end, row.exit.clone());
                of(&part.total) == of(&row)
            });
            let Some(part) = belongs else {
                let what =
                    "no row with the dimension `total` of the same exit and period is above it";
                return Err(wrong(number, what.to_owned()));
            };
            is_of(&row, &part.about).map_err(|what| wrong(number, what))?;
            if part.rows.len() == ROWS {
                return Err(wrong(
                    number,
                    format!("the period has more than {ROWS} rows"),
                ));
            }
            if !keys.insert((row.dimension, row.other, SumKey::of(&row))) {
                return Err(wrong(number, "the same row is above it already".to_owned()));
            }
            part.rows.push(row);
        }
        let Some(part) = part else {
            return Err(ReportError::File(path.to_owned(), "is empty".to_owned()));
        };
        self.part(&part)
            .map_err(|what| ReportError::Line(path.to_owned(), number, what))
    }

    /// Refuses a part that was read already.
    fn meet(&mut self, total: &Row, about: &About) -> Result<(), String> {
        let next = self.exits.len();
        let exit = *self.exits.entry(total.exit.clone()).or_insert(next);
        if exit == EXITS {
            return Err(format!("there are more than {EXITS} exits"));
        }
        let file = self.files.len() - 1;
        let key = (exit, total.period_start.as_second(), about.part);
        match self.parts_read.insert(key, file) {
            None => Ok(()),
            Some(first) => Err(format!(
                "part {} of the period that begins {} for exit {:?} is in {} already",
                about.part,
                total.period_start,
                total.exit,
                self.files[first].display()
            )),
        }
    }

    /// Adds a part to its month.
    fn part(&mut self, part: &PeriodPart) -> Result<(), String> {
        is_whole(part)?;
        let start = part.total.period_start.as_second();
        let exit = self.exits[&part.total.exit];
        let parts = self
            .parts_read
            .range((exit, start, 0)..=(exit, start, u32::MAX));
        let is_first = parts.count() == 1;
        let Statistics { exits, names, kept } = &mut self.statistics;
        let months = exits.entry(part.total.exit.clone()).or_default();
        let month = months.entry(Month::from(date(start))).or_default();
        let before = month.len();
        month.add_part(part, is_first);
        *kept += month.len() - before;
        for row in &part.rows {
            if let (Some(asn), Some(name)) = (row.asn, &row.as_name) {
                names.insert(asn, name.clone());
            }
        }
        if *kept + names.len() > KEPT {
            return Err(format!(
                "these files have more than {KEPT} different rows; give fewer files at a time"
            ));
        }
        Ok(())
    }
}

fn parse(line: &[u8]) -> Result<Row, String> {
    let Some(text) = line.strip_suffix(b"\n") else {
        return Err(match u64::try_from(line.len()) {
            Ok(length) if length <= LINE => {
                "the file ends within it: it was cut, or is still being written".to_owned()
            }
            _ => format!("it has more than {LINE} bytes"),
        });
    };
    // A parser error may quote the line: it is escaped before it reaches a terminal.
    let said = |error: serde_json::Error| -> String {
        let words: String = error.to_string().chars().take(200).collect();
        format!("it is not a row: {}", words.escape_debug())
    };
    let mut row: Row = serde_json::from_slice(text).map_err(said)?;
    if row.dimension == Dimension::Total && row.about.is_none() {
        // Parsed again for an error that names the faulty column.
        row.about = Some(serde_json::from_slice(text).map_err(said)?);
    } else if row.dimension != Dimension::Total {
        row.about = None;
    }
    columns(&row)?;
    values(&mut row)?;
    Ok(row)
}

/// Checks that the row has exactly the columns of its dimension.
fn columns(row: &Row) -> Result<(), String> {
    let has = [
        ("port", row.port.is_some()),
        ("asn", row.asn.is_some()),
        ("country", row.country.is_some()),
        ("ip_version", row.ip_version.is_some()),
        ("encryption", row.encryption.is_some()),
    ];
    let needs: &[&str] = match row.dimension {
        _ if row.other => &[],
        Dimension::Total => &[],
        Dimension::Port => &["port"],
        Dimension::System => &["asn"],
        Dimension::Country => &["country"],
        Dimension::IpVersion => &["ip_version"],
        Dimension::Encryption => &["encryption"],
        Dimension::PortCountry => &["port", "country"],
        Dimension::PortSystem => &["port", "asn"],
        Dimension::SystemCountry => &["asn", "country"],
    };
    for (column, is_there) in has {
        let goes_with_port = column == "encryption" && row.port.is_some();
        if needs.contains(&column) && !is_there {
            return Err(format!("a row of its dimension has the column `{column}`"));
        }
        if !needs.contains(&column) && is_there && !goes_with_port {
            return Err(format!("a row of its dimension has no column `{column}`"));
        }
    }
    if row.as_name.is_some() && row.asn.is_none() {
        return Err("it has the column `as_name` and no `asn`".to_owned());
    }
    if row.other && row.dimension == Dimension::Total {
        return Err("a total is never `other`".to_owned());
    }
    Ok(())
}

/// Checks the values, and sanitises names.
fn values(row: &mut Row) -> Result<(), String> {
    let (start, end) = (row.period_start.as_second(), row.period_end.as_second());
    if !YEARS.contains(&date(start).year()) {
        return Err(format!("no period begins {}", row.period_start));
    }
    if end <= start || end - start > PERIOD {
        return Err("the period ends before it begins, or is longer than a year".to_owned());
    }
    let columns = ["flows", "bytes", "packets", "down_bytes", "down_packets"];
    for (column, value) in columns.into_iter().zip(<[u64; 5]>::from(row.counts)) {
        if value > COUNT {
            return Err(format!("`{column}` is {value}, too large for a period"));
        }
    }
    if let Some(version) = row.ip_version.filter(|version| ![4, 6].contains(version)) {
        return Err(format!("`ip_version` is {version}, and not 4 or 6"));
    }
    row.exit = shown(&row.exit);
    if row.exit.is_empty() {
        return Err("the exit has no name".to_owned());
    }
    row.as_name = row
        .as_name
        .as_deref()
        .map(shown)
        .filter(|name| !name.is_empty());
    if let Some(about) = &row.about {
        is_of(row, about)?;
    }
    let Some(about) = &mut row.about else {
        return Ok(());
    };
    if !(1..=FORMAT).contains(&about.format) {
        return Err(format!(
            "`format` is {}, and this version of exitmark-monitor reads up to {FORMAT}: install a \
             newer one",
            about.format
        ));
    }
    for text in [&mut about.monitor, &mut about.countries, &mut about.systems] {
        *text = shown(text);
    }
    if about.part == 0 {
        return Err("`part` is 0; the first one is 1".to_owned());
    }
    if !about.epsilon.is_finite() || about.epsilon < 0.0 {
        return Err("`epsilon` is not a number from 0 on".to_owned());
    }
    // A clock that was set back lengthens a period, but not that much.
    let watched = i64::try_from(about.watched_seconds).unwrap_or(i64::MAX);
    if watched / 2 > end - start {
        return Err("`watched_seconds` is more than twice the period".to_owned());
    }
    Ok(())
}

/// Checks that a row has only the directions that its total names.
fn is_of(row: &Row, about: &About) -> Result<(), String> {
    let Counts {
        down_bytes,
        down_packets,
        ..
    } = row.counts;
    match about.directions {
        Directions::Out if (down_bytes, down_packets) != (0, 0) => Err(
            "it has `down_bytes` or `down_packets`, and the total says that one direction was counted"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Sanitises a name: removes control and bidirectional formatting characters, and truncates it.
fn shown(name: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let plain = name.chars().map(|c| match c {
        c if c.is_control() || turns(c) => ' ',
        c => c,
    });
    let plain: String = plain.take(NAME).collect();
    plain.trim().to_owned()
}

/// Checks that a part is complete: each dimension must have the total's counts, except unattributed
/// ones. With noise only the presence of rows can be checked.
fn is_whole(part: &PeriodPart) -> Result<(), String> {
    let total = part.total.counts;
    if total == Counts::default() {
        return Ok(());
    }
    let about = &part.about;
    let is_exact = about.epsilon == 0.0;
    for dimension in [Dimension::Port, Dimension::Country, Dimension::IpVersion] {
        let rows = || part.rows.iter().filter(|row| row.dimension == dimension);
        let sum: Counts = rows().map(|row| row.counts).sum();
        let lacks = sum.flows < total.flows
            || sum.bytes < total.bytes.saturating_sub(about.unattributed_bytes)
            || sum.packets < total.packets.saturating_sub(about.unattributed_packets)
            || sum.down_bytes
                < total
                    .down_bytes
                    .saturating_sub(about.unattributed_down_bytes)
            || sum.down_packets
                < total
                    .down_packets
                    .saturating_sub(about.unattributed_down_packets);
        if rows().next().is_none() || is_exact && lacks {
            return Err(format!(
                "the period that begins {} ends here, but its rows of dimension {dimension:?} do \
                 not add up to its total: the file was cut, or lines are missing",
                part.total.period_start
            ));
        }
    }
    Ok(())
}
