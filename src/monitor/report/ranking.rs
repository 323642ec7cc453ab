//! A dimension as a table: the largest rows, more rows on demand, and the rest.

use super::format;
use super::plot;
use super::sums::{SumKey, Sums};
use crate::cell::Counts;
use crate::row::Dimension;
use crate::services;

/// Rows that are visible before the reader asks for more.
const FIRST: usize = 12;
/// Rows of a table at most; the data files have all.
const MOST: usize = 200;

/// A row with its numbers as text.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) beside: Option<String>,
    pub(super) encryption: Option<&'static str>,
    pub(super) flows: String,
    pub(super) bytes: String,
    pub(super) down: String,
    pub(super) share: String,
    pub(super) strip: String,
    pub(super) is_rest: bool,
}

/// A dimension as a table, with its numbers as text.
pub(super) struct Ranking {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) column: &'static str,
    pub(super) text: &'static str,
    pub(super) lines: Vec<Line>,
    pub(super) more: Vec<Line>,
    pub(super) cut: usize,
    pub(super) has_lower_bounds: bool,
}

/// A row's name, and the text beside it.
fn name(
    dimension: Dimension,
    key: &SumKey,
    names: &dyn Fn(u32) -> Option<String>,
) -> (String, Option<String>) {
    let port = |port: u16| match port {
        0 => "none".to_owned(),
        _ => port.to_string(),
    };
    let system = |asn: u32| match asn {
        0 => "unknown".to_owned(),
        _ => names(asn).unwrap_or_else(|| format!("AS{asn}")),
    };
    let (of_port, of_asn) = (key.port.unwrap_or(0), key.asn.unwrap_or(0));
    let country = || key.country.map_or_else(String::new, format::country);
    match dimension {
        Dimension::Port => {
            let beside = match of_port {
                0 => Some("fragments and protocols without ports".to_owned()),
                _ => format::service(of_port).map(str::to_owned),
            };
            (port(of_port), beside)
        }
        Dimension::System => {
            let number = (of_asn != 0).then(|| format!("AS{of_asn}"));
            (system(of_asn), number)
        }
        Dimension::PortCountry => (format!("{}, {}", port(of_port), country()), None),
        Dimension::PortSystem => (format!("{}, {}", port(of_port), system(of_asn)), None),
        Dimension::SystemCountry => (format!("{}, {}", system(of_asn), country()), None),
        _ => (country(), key.country.map(|country| country.to_string())),
    }
}

/// Formats a dimension's rows, largest first. `labels` are the table's id, title, first column and
/// text.
pub(super) fn ranking(
    sums: &Sums,
    dimension: Dimension,
    names: &dyn Fn(u32) -> Option<String>,
    labels: [&'static str; 4],
) -> Ranking {
    let [id, title, column, text] = labels;
    let table = sums.table(dimension);
    let sum = table.sum();
    let ranked = table.ranked();
    let largest = ranked
        .first()
        .map_or(1, |(_, entry)| entry.counts.all_bytes());
    let mut has_lower_bounds = false;
    let mut line = |name, beside, class: Option<&'static str>, counts: Counts, is_lower| {
        has_lower_bounds |= is_lower;
        let least = if is_lower { "≥\u{a0}" } else { "" };
        Line {
            name,
            beside,
            encryption: class,
            flows: format!("{least}{}", format::count(counts.flows)),
            bytes: format!("{least}{}", format::bytes(counts.bytes)),
            down: format!("{least}{}", format::bytes(counts.down_bytes)),
            share: format::share(counts.all_bytes(), sum.all_bytes()),
            strip: plot::strip(&[(
                class.unwrap_or("bar"),
                format::thousandths(counts.all_bytes().min(largest), largest),
            )]),
            is_rest: false,
        }
    };
    let shown = ranked.iter().take(MOST).map(|(key, entry)| {
        let (name, beside) = name(dimension, key, names);
        let kind = key.port.map(services::encryption);
        let class = kind.map(format::encryption);
        let is_lower = table.is_lower_bound(entry);
        line(name, beside, class, entry.counts, is_lower)
    });
    let mut lines: Vec<Line> = shown.collect();
    let first = ranked.iter().take(FIRST).map(|(_, entry)| entry.counts);
    let beyond = sum.saturating_sub(first.sum());
    let mut rest = |name: &str, counts| Line {
        is_rest: true,
        strip: String::new(),
        ..line(name.to_owned(), None, None, counts, false)
    };
    let mut more = lines.split_off(lines.len().min(FIRST));
    if beyond.all_bytes() > 0 {
        lines.push(rest("everything else", beyond));
    }
    if !more.is_empty() && table.has_other() {
        more.push(rest("suppressed", table.other));
    }
    Ranking {
        id,
        title,
        column,
        text,
        lines,
        more,
        cut: ranked.len().saturating_sub(MOST),
        has_lower_bounds,
    }
}
