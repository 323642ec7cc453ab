//! The sums as JSON and CSV, with the columns that docs/periods.md documents.

use super::format;
use super::sums::{Day, DimensionSums, RowSum, Span, Statistics, SumKey, Sums, Values};
use crate::cell::{Country, Counts};
use crate::row::{CountColumns, Dimension};
use jiff::civil::Date;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A row of the output, flat like a row of a period file.
#[derive(Default, Serialize)]
struct Line<'a> {
    span: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<&'a str>,
    dimension: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<Date>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    asn: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    country: Option<Country>,
    #[serde(skip_serializing_if = "Option::is_none")]
    country_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_version: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<&'static str>,
    other: bool,
    lower_bound: bool,
    #[serde(flatten, with = "CountColumns")]
    counts: Counts,
}

/// The JSON object of a span.
#[derive(Serialize)]
struct About<'a> {
    span: String,
    exit: Option<&'a str>,
    periods: u64,
    seconds: u64,
    watched_seconds: u64,
    lost_packets: u64,
    spilled: bool,
    directions: &'static str,
    monitors: Vec<&'a str>,
    countries: Vec<&'a str>,
    systems: Vec<&'a str>,
    rows: Vec<Line<'a>>,
}

/// Sums of a span, ready to be written.
pub(super) struct Data<'a> {
    pub(super) exit: Option<&'a str>,
    pub(super) span: String,
    pub(super) sums: &'a Sums,
    pub(super) names: &'a BTreeMap<u32, String>,
}

impl<'a> Data<'a> {
    pub(super) fn new(
        exit: Option<&'a str>,
        span: Span,
        sums: &'a Sums,
        names: &'a BTreeMap<u32, String>,
    ) -> Self {
        Self {
            exit,
            span: span.slug(),
            sums,
            names,
        }
    }

    fn line(&'a self, dimension: Value, counts: Counts) -> Line<'a> {
        Line {
            span: &self.span,
            exit: self.exit,
            dimension,
            counts,
            ..Line::default()
        }
    }

    fn row(
        &'a self,
        dimension: Dimension,
        table: &DimensionSums,
        key: &SumKey,
        entry: &RowSum,
    ) -> Line<'a> {
        Line {
            port: key.port,
            service: key.port.and_then(format::service),
            asn: key.asn,
            as_name: key
                .asn
                .and_then(|asn| self.names.get(&asn))
                .map(String::as_str),
            country: key.country,
            country_name: key.country.map(format::country),
            ip_version: key.ip_version,
            encryption: key.encryption.map(format::encryption),
            lower_bound: table.is_lower_bound(entry),
            ..self.line(json!(dimension), entry.counts)
        }
    }

    /// The total, the days, and the rows of every dimension, largest first and `other` last.
    fn lines(&'a self) -> impl Iterator<Item = Line<'a>> {
        let total = std::iter::once(self.line(json!(Dimension::Total), self.sums.total));
        let day = |(date, day): (&Date, &Day)| Line {
            day: Some(*date),
            ..self.line(json!("day"), day.total)
        };
        let tables = self.sums.tables.iter().flat_map(move |(dimension, table)| {
            let rows = table.ranked().into_iter();
            let rows = rows.map(move |(key, entry)| self.row(*dimension, table, key, entry));
            let other = table.has_other().then(|| Line {
                other: true,
                ..self.line(json!(dimension), table.other)
            });
            rows.chain(other)
        });
        total.chain(self.sums.days.iter().map(day)).chain(tables)
    }

    /// CSV (RFC 4180), with a header line.
    pub(super) fn csv(&'a self) -> String {
        let mut text = COLUMNS.join(",");
        text.push_str("\r\n");
        for line in self.lines() {
            // Numbers and text always serialise.
            let line = serde_json::to_value(line).unwrap_or_default();
            let cells = COLUMNS.map(|column| match &line[column] {
                Value::Null if DOWN.contains(&column) && self.sums.method.has_down() => {
                    "0".to_owned()
                }
                Value::Null => String::new(),
                Value::String(text) if NAMES.contains(&column) => quoted(text),
                Value::String(text) => text.clone(),
                value => value.to_string(),
            });
            text.push_str(&cells.join(","));
            text.push_str("\r\n");
        }
        text
    }

    /// One JSON object: the span, how its numbers were made, and its rows.
    pub(super) fn json(&'a self) -> String {
        let (seconds, watched_seconds) = self.sums.watched();
        let method = &self.sums.method;
        let values = |values: &'a Values| values.0.iter().map(String::as_str).collect();
        let about = About {
            span: self.span.clone(),
            exit: self.exit,
            periods: self.sums.periods,
            seconds,
            watched_seconds,
            lost_packets: self.sums.lost,
            spilled: method.spilled,
            directions: match method.parts_with_down {
                0 => "out",
                with_down if with_down < method.parts => "mixed",
                _ => "both",
            },
            monitors: values(&method.monitors),
            countries: values(&method.countries),
            systems: values(&method.systems),
            rows: self.lines().collect(),
        };
        // Numbers and text always serialise.
        serde_json::to_string(&about).unwrap_or_default()
    }
}

/// The columns of the CSV, in order.
const COLUMNS: [&str; 19] = [
    "span",
    "exit",
    "dimension",
    "day",
    "port",
    "service",
    "asn",
    "as_name",
    "country",
    "country_name",
    "ip_version",
    "encryption",
    "other",
    "lower_bound",
    "flows",
    "bytes",
    "packets",
    "down_bytes",
    "down_packets",
];

/// The columns that rows without a value omit, as in a period file.
const DOWN: [&str; 2] = ["down_bytes", "down_packets"];

/// The columns whose text may contain commas and quotation marks.
const NAMES: [&str; 4] = ["exit", "service", "as_name", "country_name"];

/// A quoted CSV field; text that a spreadsheet would take for a formula gets an apostrophe in
/// front.
fn quoted(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@']);
    let guard = if is_formula { "'" } else { "" };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

/// All sums as one JSON document: each span over all exits and, if there are several, for each
/// exit.
pub fn json(statistics: &Statistics) -> String {
    let spans: Vec<String> = statistics
        .scopes()
        .into_iter()
        .flat_map(|exit| {
            let spans = statistics.spans(exit).into_iter();
            spans.map(move |span| {
                let sums = statistics.sum(exit, span);
                Data::new(exit, span, &sums, &statistics.names).json()
            })
        })
        .collect();
    let exits = serde_json::to_string(&statistics.exits()).unwrap_or_default();
    format!("{{\"exits\":{exits},\"spans\":[{}]}}\n", spans.join(",\n"))
}
