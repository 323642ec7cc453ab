//! A page: tiles, tables and plots of a span.

use super::plot::{self, Bar};
use super::ranking::{Ranking, ranking};
use super::sums::{Day, Key, Month, Span, Statistics, Sums, Table, Values};
use super::words;
use crate::row::{Dimension, Encryption};
use askama::Template;
use jiff::civil::Date;
use std::collections::BTreeMap;

/// The style sheet, embedded in every page, so that a page needs no other file.
pub(super) const STYLE: &str = include_str!("templates/style.css");

/// Bars of a plot at most: a span of more months has one for each year.
const BARS: usize = 60;

/// A link to a page; without a target it stands for the page itself.
pub(super) struct Link {
    text: String,
    to: Option<String>,
}

impl Link {
    pub(super) fn new(text: impl Into<String>, to: Option<String>) -> Self {
        let text = text.into();
        Self { text, to }
    }
}

/// Navigation links of a page: to other exits, years and months.
pub(super) struct Links {
    pub(super) exits: Vec<Link>,
    pub(super) years: Vec<Link>,
    pub(super) months: Vec<Link>,
}

struct Tile {
    label: &'static str,
    value: String,
    note: String,
}

impl Tile {
    /// The number and its unit; the unit may be empty.
    fn parts(&self) -> (&str, &str) {
        let parts = self.value.split_once('\u{a0}');
        parts.unwrap_or((&self.value, ""))
    }
}

struct Piece {
    class: &'static str,
    name: &'static str,
    share: String,
    bytes: String,
}

struct Mix {
    id: &'static str,
    title: &'static str,
    text: &'static str,
    strip: String,
    pieces: Vec<Piece>,
}

struct Fact {
    name: &'static str,
    value: String,
}

#[derive(Template)]
#[template(path = "page.html")]
pub(super) struct Page<'a> {
    style: &'static str,
    style_digest: &'a str,
    title: String,
    heading: String,
    exit: String,
    covered: String,
    links: &'a Links,
    tiles: Vec<Tile>,
    plot_unit: &'static str,
    plots: [String; 2],
    bars: Vec<Bar>,
    has_partial: bool,
    mixes: Vec<Mix>,
    rankings: Vec<Ranking>,
    crosses: Vec<Ranking>,
    facts: Vec<Fact>,
    threshold: String,
    noise: Option<String>,
    is_summed: bool,
    spilled: bool,
    file: &'a str,
}

/// What a page shows: the sums of one exit, or of all, over a span.
pub(super) struct Subject<'a> {
    pub(super) statistics: &'a Statistics,
    pub(super) exit: Option<&'a str>,
    pub(super) span: Span,
    pub(super) sums: &'a Sums,
    pub(super) links: &'a Links,
    /// Base name of the page's files.
    pub(super) file: &'a str,
    pub(super) style_digest: &'a str,
}

impl<'a> Page<'a> {
    pub(super) fn new(subject: &Subject<'a>) -> Self {
        let Subject {
            statistics,
            exit,
            span,
            sums,
            ..
        } = *subject;
        let heading = words::span(span);
        let exits = statistics.exits();
        let exit = match (exit, exits.as_slice()) {
            (Some(exit), _) => exit.to_owned(),
            (None, [exit]) => (*exit).to_owned(),
            _ => format!("all {} exits", exits.len()),
        };
        let (plot_unit, bars) = bars(span, sums);
        let largest = bars.iter().max_by_key(|bar| bar.total.bytes);
        let description = largest.map_or_else(String::new, |bar| {
            format!(
                "{} bars, one per {plot_unit}. The largest is {}, with {}. A table follows.",
                bars.len(),
                bar.name,
                words::bytes(bar.total.bytes)
            )
        });
        let title = format!("Bytes per {plot_unit}, {heading}, {exit}");
        let plots = [("wide", 960), ("narrow", 400)]
            .map(|(id, width)| plot::svg(&bars, width, id, &title, &description));
        let names = |asn: u32| statistics.names.get(&asn).cloned();
        let ranked = |dimension, id, title, column, text| {
            ranking(sums, dimension, &names, [id, title, column, text])
        };
        let method = &sums.method;
        Self {
            style: STYLE,
            style_digest: subject.style_digest,
            title: format!("Tor exit traffic, {heading}, {exit}"),
            heading,
            exit,
            covered: covered(sums),
            links: subject.links,
            tiles: tiles(sums, statistics, span),
            plot_unit,
            plots,
            has_partial: bars.iter().any(|bar| bar.is_partial),
            bars,
            mixes: vec![encryption(sums), versions(sums)],
            rankings: vec![
                ranked(
                    Dimension::Port,
                    "ports",
                    "Ports",
                    "Port",
                    "By destination port. The service is the usual one of the port.",
                ),
                ranked(
                    Dimension::System,
                    "systems",
                    "Networks",
                    "Autonomous system",
                    "By the autonomous system that announces the destination.",
                ),
                ranked(
                    Dimension::Country,
                    "countries",
                    "Countries",
                    "Country",
                    "By the country in which the destination is registered. It may be hosted \
                     elsewhere.",
                ),
            ],
            crosses: [
                (
                    Dimension::PortCountry,
                    "ports-countries",
                    "Ports and countries",
                ),
                (Dimension::PortSystem, "ports-systems", "Ports and networks"),
                (
                    Dimension::SystemCountry,
                    "systems-countries",
                    "Networks and countries",
                ),
            ]
            .into_iter()
            .filter(|(dimension, ..)| sums.tables.contains_key(dimension))
            .map(|(dimension, id, title)| ranked(dimension, id, title, "Pair", ""))
            .collect(),
            facts: facts(sums),
            threshold: listed(&method.threshold_flows),
            noise: noise(&method.epsilon),
            is_summed: sums.periods > 1,
            spilled: method.spilled,
            file: subject.file,
        }
    }
}

/// Joins values for a sentence.
fn listed(values: &Values) -> String {
    let some = values.0.iter().filter(|value| !value.is_empty());
    some.map(String::as_str).collect::<Vec<_>>().join(" or ")
}

/// The ε of the noise; `None` without noise.
fn noise(epsilon: &Values) -> Option<String> {
    let some = epsilon.0.iter().filter(|value| *value != "0");
    let some: Vec<&str> = some.map(String::as_str).collect();
    (!some.is_empty()).then(|| some.join(" or "))
}

/// The first and the last day that have numbers, as text.
fn covered(sums: &Sums) -> String {
    let ends = (sums.days.first_key_value(), sums.days.last_key_value());
    match ends {
        (Some((first, _)), Some((last, _))) if first == last => words::date(*first),
        (Some((first, _)), Some((last, _))) => {
            format!("{} to {}", words::date(*first), words::date(*last))
        }
        _ => String::new(),
    }
}

fn tiles(sums: &Sums, statistics: &Statistics, span: Span) -> Vec<Tile> {
    let (seconds, watched) = sums.watched();
    let of = |dimension, key| {
        let (part, whole) = sums.share(dimension, &key);
        words::share(part, whole)
    };
    let plural = |count: u64, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{} {one}s", words::grouped(count)),
    };
    let days = u64::try_from(sums.days.len()).unwrap_or(u64::MAX);
    let of_days = match span {
        Span::Month(Month { year, month }) => {
            let length = Date::new(year, month, 1).map_or(0, jiff::civil::Date::days_in_month);
            format!("{days} of {length}")
        }
        _ => words::grouped(days),
    };
    let exits = u64::try_from(statistics.exits.len()).unwrap_or(u64::MAX);
    vec![
        Tile {
            label: "Volume",
            value: words::bytes(sums.total.bytes),
            note: format!("{}\u{a0}packets", words::count(sums.total.packets)),
        },
        Tile {
            label: "Connections",
            value: words::count(sums.total.flows),
            note: "TCP connections begun".to_owned(),
        },
        Tile {
            label: "Encrypted",
            value: of(
                Dimension::Encryption,
                Key::encryption(Encryption::Encrypted),
            ),
            note: "of bytes, by the port".to_owned(),
        },
        Tile {
            label: "IPv6",
            value: of(Dimension::IpVersion, Key::ip_version(6)),
            note: "of bytes".to_owned(),
        },
        Tile {
            label: "Days",
            value: of_days,
            note: format!(
                "watched {} of the time",
                words::share(watched.min(seconds), seconds)
            ),
        },
        Tile {
            label: "Lost",
            value: words::count(sums.lost),
            note: match exits {
                _ if sums.lost == 0 => "no packet was lost".to_owned(),
                _ => format!(
                    "packets, {} of all",
                    words::share(sums.lost, sums.total.packets)
                ),
            },
        },
    ]
    .into_iter()
    .map(|tile| match tile.label {
        "Days" => Tile {
            note: format!("{}, {}", plural(sums.periods, "period"), tile.note),
            ..tile
        },
        _ => tile,
    })
    .collect()
}

/// One bar for each day of a month; for longer spans one for each month or year.
fn bars(span: Span, sums: &Sums) -> (&'static str, Vec<Bar>) {
    if let Span::Month(_) = span {
        let bars = sums
            .days
            .iter()
            .map(|(date, day)| bar(date.day().to_string(), words::date(*date), day));
        return ("day", bars.collect());
    }
    let mut months = BTreeMap::<Month, Day>::new();
    for (date, day) in &sums.days {
        months.entry(Month::from(*date)).or_default().add(day);
    }
    if months.len() <= BARS {
        let bars = months.iter().map(|(&month, day)| {
            let short: String = words::month(month.month).chars().take(3).collect();
            let label = match month.month {
                1 => month.year.to_string(),
                _ => short,
            };
            bar(label, words::span(Span::Month(month)), day)
        });
        return ("month", bars.collect());
    }
    let mut years = BTreeMap::<i16, Day>::new();
    for (month, day) in &months {
        years.entry(month.year).or_default().add(day);
    }
    let bars = years
        .iter()
        .map(|(year, day)| bar(year.to_string(), year.to_string(), day));
    ("year", bars.collect())
}

fn bar(label: String, name: String, day: &Day) -> Bar {
    Bar {
        label,
        name,
        total: day.total,
        encryption: day.encryption,
        is_partial: day.watched < day.seconds / 20 * 19,
    }
}

fn mix(
    words: [&'static str; 3],
    table: &Table,
    kinds: &[(&'static str, &'static str, Key)],
) -> Mix {
    let [id, title, text] = words;
    let whole = table.sum().bytes;
    let mut strips = Vec::new();
    let mut pieces = Vec::new();
    let mut piece = |class, name, bytes: u64| {
        strips.push((class, words::thousandths(bytes, whole)));
        pieces.push(Piece {
            class,
            name,
            share: words::share(bytes, whole),
            bytes: words::bytes(bytes),
        });
    };
    for &(class, name, key) in kinds {
        let entry = table.entries.get(&key);
        piece(class, name, entry.map_or(0, |entry| entry.counts.bytes));
    }
    if table.has_other() {
        piece("rest", "suppressed", table.other.bytes);
    }
    Mix {
        id,
        title,
        text,
        strip: plot::strip(&strips),
        pieces,
    }
}

fn encryption(sums: &Sums) -> Mix {
    let kind = |kind| {
        (
            words::encryption(kind),
            words::encryption(kind),
            Key::encryption(kind),
        )
    };
    mix(
        [
            "encryption",
            "Encryption",
            "Whether the usual service of the port encrypts from the first byte. A service that \
             may upgrade to TLS later counts as plain.",
        ],
        sums.table(Dimension::Encryption),
        &[
            Encryption::Encrypted,
            Encryption::Plain,
            Encryption::Unknown,
        ]
        .map(kind),
    )
}

fn versions(sums: &Sums) -> Mix {
    mix(
        [
            "versions",
            "IP versions",
            "By the IP version of the packets.",
        ],
        sums.table(Dimension::IpVersion),
        &[
            ("four", "IPv4", Key::ip_version(4)),
            ("six", "IPv6", Key::ip_version(6)),
        ],
    )
}

fn facts(sums: &Sums) -> Vec<Fact> {
    let method = &sums.method;
    let fact = |name, values: &Values| Fact {
        name,
        value: match listed(values) {
            value if value.is_empty() => "none".to_owned(),
            value => value,
        },
    };
    vec![
        fact("Minimum flows of a row", &method.threshold_flows),
        fact("Maximum rows of a table and period", &method.top),
        fact("Flows are rounded up to multiples of", &method.bins.flows),
        fact("Bytes are rounded up to multiples of", &method.bins.bytes),
        fact(
            "Packets are rounded up to multiples of",
            &method.bins.packets,
        ),
        Fact {
            name: "Noise (ε)",
            value: noise(&method.epsilon).unwrap_or_else(|| "none".to_owned()),
        },
        fact("Database of countries", &method.countries),
        fact("Database of autonomous systems", &method.systems),
        fact("Version of exitmark-monitor", &method.monitors),
    ]
}
