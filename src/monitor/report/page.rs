//! A page: tiles, tables and plots of a span.

use super::format;
use super::plot::{self, Bar};
use super::ranking::{Ranking, ranking};
use super::sums::{Day, DimensionSums, Method, Month, Span, Statistics, SumKey, Sums, Values};
use crate::cell::Counts;
use crate::row::{Dimension, Encryption};
use askama::Template;
use std::collections::BTreeMap;

/// The style sheet, embedded in every page, so that a page needs no other file.
pub(super) const STYLE: &str = include_str!("templates/style.css");

/// Bars of a plot at most: a span of more months has one for each year.
const BARS: usize = 60;

/// The tables of two columns, with their ids and titles.
const CROSSES: [(Dimension, &str, &str); 3] = {
    use Dimension::{PortCountry, PortSystem, SystemCountry};
    [
        (PortCountry, "ports-countries", "Ports and countries"),
        (PortSystem, "ports-systems", "Ports and networks"),
        (SystemCountry, "systems-countries", "Networks and countries"),
    ]
};

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
    down: String,
}

struct Mix {
    id: &'static str,
    title: &'static str,
    text: String,
    strip: String,
    pieces: Vec<Piece>,
}

#[derive(Template)]
#[template(path = "page.html")]
pub(super) struct Page<'a> {
    subject: Subject<'a>,
    style: &'static str,
    title: String,
    heading: String,
    exit: String,
    covered: String,
    tiles: Vec<Tile>,
    volume: Volume,
    plot_unit: &'static str,
    plots: [String; 2],
    bars: Vec<Bar>,
    has_partial: bool,
    mixes: Vec<Mix>,
    rankings: Vec<Ranking>,
    crosses: Vec<Ranking>,
    /// How the numbers were made: name and value.
    facts: Vec<(&'static str, String)>,
    threshold: String,
    noise: Option<String>,
}

/// What a page says beside each volume: the direction that it is of.
struct Volume {
    has_down: bool,
    /// The heading of a column of bytes that went up.
    up: &'static str,
    /// A clause about volumes of both directions.
    both: String,
}

impl Volume {
    fn of(method: &Method) -> Self {
        let Method {
            parts,
            parts_with_down,
            ..
        } = method;
        match parts_with_down {
            0 => Self {
                has_down: false,
                up: "Bytes, outbound only",
                both: "outbound only".to_owned(),
            },
            some => Self {
                has_down: true,
                up: "Bytes up",
                both: match some < parts {
                    false => "up and down".to_owned(),
                    true => format!("up and down; down in {some} of {parts} periods only"),
                },
            },
        }
    }
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
    pub(super) fn new(subject: Subject<'a>) -> Self {
        let (statistics, span, sums) = (subject.statistics, subject.span, subject.sums);
        let heading = format::span(span);
        let exits = statistics.exits();
        let exit = match (subject.exit, exits.as_slice()) {
            (Some(exit), _) => exit.to_owned(),
            (None, [exit]) => (*exit).to_owned(),
            _ => format!("all {} exits", exits.len()),
        };
        let (plot_unit, bars) = bars(span, sums);
        let volume = Volume::of(&sums.method);
        let largest = bars.iter().max_by_key(|bar| bar.total.all_bytes());
        let description = largest.map_or_else(String::new, |bar| {
            format!(
                "{} bars, one per {plot_unit}. The largest is {}, with {}. A table follows.",
                bars.len(),
                bar.name,
                format::bytes(bar.total.all_bytes())
            )
        });
        let title = format!("Bytes per {plot_unit}, {}, {heading}, {exit}", volume.both);
        let plots = [("wide", 960), ("narrow", 400)]
            .map(|(id, width)| plot::svg(&bars, width, id, &title, &description));
        let names = |asn: u32| statistics.names.get(&asn).cloned();
        let ranked = |dimension, labels| ranking(sums, dimension, &names, labels);
        let by_port = "By the remote port. The service is the usual one of the port.";
        let by_system = "By the autonomous system that announces the remote address.";
        let by_country = "By the country in which the remote address is registered. It may be hosted \
                          elsewhere.";
        let method = &sums.method;
        Self {
            subject,
            style: STYLE,
            title: format!("Tor exit traffic, {heading}, {exit}"),
            heading,
            exit,
            covered: covered(sums),
            tiles: tiles(sums, span, &volume),
            mixes: mixes(sums, &volume),
            volume,
            plot_unit,
            plots,
            has_partial: bars.iter().any(|bar| bar.is_partial),
            bars,
            rankings: vec![
                ranked(Dimension::Port, ["ports", "Ports", "Port", by_port]),
                ranked(
                    Dimension::System,
                    ["systems", "Networks", "Autonomous system", by_system],
                ),
                ranked(
                    Dimension::Country,
                    ["countries", "Countries", "Country", by_country],
                ),
            ],
            crosses: CROSSES
                .into_iter()
                .filter(|(dimension, ..)| sums.tables.contains_key(dimension))
                .map(|(dimension, id, title)| ranked(dimension, [id, title, "Pair", ""]))
                .collect(),
            facts: facts(method),
            threshold: listed(&method.threshold_flows),
            noise: noise(&method.epsilon),
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
        (Some((first, _)), Some((last, _))) if first == last => format::date(*first),
        (Some((first, _)), Some((last, _))) => {
            format!("{} to {}", format::date(*first), format::date(*last))
        }
        _ => String::new(),
    }
}

fn tiles(sums: &Sums, span: Span, volume: &Volume) -> Vec<Tile> {
    let (seconds, watched) = sums.watched();
    let of = |dimension, key| {
        let (part, whole) = sums.share(dimension, &key);
        format::share(part, whole)
    };
    let days = u64::try_from(sums.days.len()).unwrap_or(u64::MAX);
    let of_days = match span {
        Span::Month(month) => format!("{days} of {}", month.first().days_in_month()),
        _ => format::grouped(days),
    };
    let periods = match sums.periods {
        1 => "1 period".to_owned(),
        periods => format!("{} periods", format::grouped(periods)),
    };
    let watched = format::share(watched.min(seconds), seconds);
    let encrypted = of(
        Dimension::Encryption,
        SumKey::encryption(Encryption::Encrypted),
    );
    let lost = match sums.lost {
        0 => "no packet was lost".to_owned(),
        lost => format!(
            "packets, {} of all",
            format::share(lost, sums.total.all_packets())
        ),
    };
    let packets = |packets| format!("{}\u{a0}packets", format::count(packets));
    let note = str::to_owned;
    let Counts {
        bytes,
        packets: up,
        down_bytes,
        down_packets,
        ..
    } = sums.total;
    let volumes = match volume.has_down {
        false => vec![(
            "Volume",
            format::bytes(bytes),
            format!("{}, {}", packets(up), volume.both),
        )],
        true => vec![
            ("Volume up", format::bytes(bytes), packets(up)),
            (
                "Volume down",
                format::bytes(down_bytes),
                match sums.method.parts_with_down < sums.method.parts {
                    false => packets(down_packets),
                    true => format!(
                        "{}, of {} of {} periods",
                        packets(down_packets),
                        sums.method.parts_with_down,
                        sums.method.parts
                    ),
                },
            ),
        ],
    };
    let others = [
        (
            "Connections",
            format::count(sums.total.flows),
            note("TCP connections begun"),
        ),
        (
            "Encrypted",
            encrypted,
            format!("of bytes {}, by the port", volume.both),
        ),
        (
            "IPv6",
            of(Dimension::IpVersion, SumKey::ip_version(6)),
            format!("of bytes {}", volume.both),
        ),
        (
            "Days",
            of_days,
            format!("{periods}, watched {watched} of the time"),
        ),
        ("Lost", format::count(sums.lost), lost),
    ];
    volumes
        .into_iter()
        .chain(others)
        .map(|(label, value, note)| Tile { label, value, note })
        .collect()
}

/// One bar for each day of a month; for longer spans one for each month or year.
fn bars(span: Span, sums: &Sums) -> (&'static str, Vec<Bar>) {
    if let Span::Month(_) = span {
        let bars = sums
            .days
            .iter()
            .map(|(date, day)| bar(date.day().to_string(), format::date(*date), day));
        return ("day", bars.collect());
    }
    let mut months = BTreeMap::<Month, Day>::new();
    for (date, day) in &sums.days {
        months.entry(Month::from(*date)).or_default().add(day);
    }
    if months.len() <= BARS {
        let bars = months.iter().map(|(&month, day)| {
            let label = match month.month {
                1 => month.year.to_string(),
                _ => format::short_month(month),
            };
            bar(label, format::span(Span::Month(month)), day)
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
    labels: [&'static str; 3],
    table: &DimensionSums,
    kinds: &[(&'static str, &'static str, SumKey)],
    volume: &Volume,
) -> Mix {
    let [id, title, text] = labels;
    let whole = table.sum().all_bytes();
    let mut strips = Vec::new();
    let mut pieces = Vec::new();
    let mut piece = |class, name, counts: Counts| {
        let bytes = counts.all_bytes();
        strips.push((class, format::thousandths(bytes, whole)));
        pieces.push(Piece {
            class,
            name,
            share: format::share(bytes, whole),
            bytes: format::bytes(counts.bytes),
            down: format::bytes(counts.down_bytes),
        });
    };
    for &(class, name, key) in kinds {
        let entry = table.entries.get(&key);
        piece(
            class,
            name,
            entry.map_or(Counts::default(), |entry| entry.counts),
        );
    }
    if table.has_other() {
        piece("rest", "suppressed", table.other);
    }
    Mix {
        id,
        title,
        text: format!("{text} Shares are of bytes {}.", volume.both),
        strip: plot::strip(&strips),
        pieces,
    }
}

fn mixes(sums: &Sums, volume: &Volume) -> Vec<Mix> {
    use Encryption::{Encrypted, Plain, Unknown};
    let kinds = [Encrypted, Plain, Unknown].map(|kind| {
        let name = format::encryption(kind);
        (name, name, SumKey::encryption(kind))
    });
    let encryption = [
        "encryption",
        "Encryption",
        "Whether the usual service of the port encrypts from the first byte. A service that may \
         upgrade to TLS later counts as plain.",
    ];
    let versions = [
        ("four", "IPv4", SumKey::ip_version(4)),
        ("six", "IPv6", SumKey::ip_version(6)),
    ];
    let by_version = "By the IP version of the packets.";
    vec![
        mix(
            encryption,
            sums.table(Dimension::Encryption),
            &kinds,
            volume,
        ),
        mix(
            ["versions", "IP versions", by_version],
            sums.table(Dimension::IpVersion),
            &versions,
            volume,
        ),
    ]
}

fn facts(method: &Method) -> Vec<(&'static str, String)> {
    let bins = method.bins.clone().map(|values| listed(&values));
    let noise = noise(&method.epsilon).unwrap_or_default();
    [
        ("Minimum flows of a row", listed(&method.threshold_flows)),
        ("Maximum rows of a table and period", listed(&method.top)),
        ("Flows are rounded up to multiples of", bins.flows),
        ("Bytes are rounded up to multiples of", bins.bytes),
        ("Packets are rounded up to multiples of", bins.packets),
        ("Bytes down are rounded up to multiples of", bins.down_bytes),
        (
            "Packets down are rounded up to multiples of",
            bins.down_packets,
        ),
        ("Noise (ε)", noise),
        ("Database of countries", listed(&method.countries)),
        ("Database of autonomous systems", listed(&method.systems)),
        ("Version of exitmark-monitor", listed(&method.monitors)),
    ]
    .into_iter()
    .filter(|(name, _)| method.has_down() || !name.contains(" down "))
    .map(|(name, value)| match value.as_str() {
        "" => (name, "none".to_owned()),
        _ => (name, value),
    })
    .collect()
}
