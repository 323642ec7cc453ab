//! What periods add up to: months of each exit are kept, and days, years and everything are made
//! of them by addition alone.

use crate::monitor::cell::{Country, Counts};
use crate::monitor::row::{About, Dimension, Encryption, Row};
use jiff::civil::Date;
use std::collections::{BTreeMap, BTreeSet};

/// A month of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    /// The year.
    pub year: i16,
    /// 1 to 12.
    pub month: i8,
}

impl From<Date> for Month {
    fn from(date: Date) -> Self {
        let (year, month) = (date.year(), date.month());
        Self { year, month }
    }
}

/// What a page tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Span {
    /// All periods there are.
    Everything,
    /// Those that began in a year.
    Year(i16),
    /// Those that began in a month.
    Month(Month),
}

impl Span {
    /// Whether a month belongs to it.
    pub fn has(self, month: Month) -> bool {
        match self {
            Self::Everything => true,
            Self::Year(year) => month.year == year,
            Self::Month(only) => month == only,
        }
    }

    /// `all`, `2026`, `2026-11`: how files call it.
    pub fn slug(self) -> String {
        match self {
            Self::Everything => "all".to_owned(),
            Self::Year(year) => format!("{year:04}"),
            Self::Month(Month { year, month }) => format!("{year:04}-{month:02}"),
        }
    }
}

/// What the packets of a row have in common, within its dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The destination port.
    pub port: Option<u16>,
    /// The autonomous system's number.
    pub asn: Option<u32>,
    /// The country.
    pub country: Option<Country>,
    /// 4 or 6.
    pub ip_version: Option<u8>,
    /// Whether the port's protocol encrypts.
    pub encryption: Option<Encryption>,
}

impl Key {
    /// Of [`Dimension::IpVersion`].
    pub fn ip_version(version: u8) -> Self {
        Self {
            ip_version: Some(version),
            ..Self::default()
        }
    }

    /// Of [`Dimension::Encryption`].
    pub fn encryption(encryption: Encryption) -> Self {
        Self {
            encryption: Some(encryption),
            ..Self::default()
        }
    }

    /// A row's, by the columns that its dimension has.
    pub fn of(row: &Row) -> Self {
        Self {
            port: row.port,
            asn: row.asn,
            country: row.country,
            ip_version: row.ip_version,
            // A port's row may have this column too, and is none the more for it.
            encryption: row.encryption.filter(|_| row.port.is_none()),
        }
    }
}

/// A row of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The sum of its rows.
    pub counts: Counts,
    /// Of the parts that have a row for `other`, how many have one for this too.
    beside_other: u64,
}

/// A dimension's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Those with a key.
    pub entries: BTreeMap<Key, Entry>,
    /// What has no row of its own.
    pub other: Counts,
    /// How many parts have such a row.
    others: u64,
}

impl Table {
    /// Whether the sum may lack something that went into `other` in some period.
    pub fn is_lower_bound(&self, entry: &Entry) -> bool {
        entry.beside_other < self.others
    }

    /// Whether anything is in `other`.
    pub fn has_other(&self) -> bool {
        self.others > 0
    }

    /// The sum of all rows.
    pub fn sum(&self) -> Counts {
        let mut sum = self.other;
        self.entries.values().for_each(|entry| sum += entry.counts);
        sum
    }

    /// The rows with a key, those with the most bytes first.
    pub fn ranked(&self) -> Vec<(&Key, &Entry)> {
        let mut rows: Vec<_> = self.entries.iter().collect();
        // Stable, so that equals stay in the order of their keys.
        rows.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.counts.bytes));
        rows
    }

    fn add(&mut self, more: &Self) {
        for (key, entry) in &more.entries {
            let mine = self.entries.entry(*key).or_default();
            mine.counts += entry.counts;
            mine.beside_other += entry.beside_other;
        }
        self.other += more.other;
        self.others += more.others;
    }
}

/// What is known of a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Day {
    /// The sum of its totals.
    pub total: Counts,
    /// Bytes to ports whose protocols encrypt, do not, and may or may not.
    pub encryption: [u64; 3],
    /// How long its periods are.
    pub seconds: u64,
    /// For how much of that the tap was watched.
    pub watched: u64,
}

impl Day {
    /// Adds another one.
    pub fn add(&mut self, more: &Self) {
        self.total += more.total;
        for (mine, more) in self.encryption.iter_mut().zip(more.encryption) {
            *mine = mine.saturating_add(more);
        }
        self.seconds = self.seconds.saturating_add(more.seconds);
        self.watched = self.watched.saturating_add(more.watched);
    }
}

/// Different values of a setting, as far as a reader wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(pub BTreeSet<String>);

impl Values {
    /// More than that are of no use to a reader.
    const MOST: usize = 24;

    fn add(&mut self, value: String) {
        if self.0.len() < Self::MOST {
            self.0.insert(value);
        }
    }

    fn add_all(&mut self, more: &Self) {
        more.0.iter().for_each(|value| self.add(value.clone()));
    }
}

/// How the numbers came about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Method {
    /// Versions of the program.
    pub monitors: Values,
    /// Databases of countries.
    pub countries: Values,
    /// Databases of autonomous systems.
    pub systems: Values,
    /// Rows of a dimension at most.
    pub top: Values,
    /// Flows that a row has at least.
    pub threshold_flows: Values,
    /// What flows are rounded to,
    pub bin_flows: Values,
    /// bytes,
    pub bin_bytes: Values,
    /// and packets.
    pub bin_packets: Values,
    /// The privacy parameters of the noise.
    pub epsilon: Values,
    /// Whether a table of cells was ever full.
    pub spilled: bool,
}

impl Method {
    fn of(about: &About) -> Self {
        let one = |value: String| Values(BTreeSet::from([value]));
        let text = |value: &str| Values(Some(value.to_owned()).into_iter().collect());
        Self {
            monitors: text(&about.monitor),
            countries: text(&about.countries),
            systems: text(&about.systems),
            top: one(about.top.to_string()),
            threshold_flows: one(about.threshold_flows.to_string()),
            bin_flows: one(about.bin_flows.to_string()),
            bin_bytes: one(about.bin_bytes.to_string()),
            bin_packets: one(about.bin_packets.to_string()),
            epsilon: one(about.epsilon.to_string()),
            spilled: about.spilled,
        }
    }

    fn add(&mut self, more: &Self) {
        for (mine, more) in [
            (&mut self.monitors, &more.monitors),
            (&mut self.countries, &more.countries),
            (&mut self.systems, &more.systems),
            (&mut self.top, &more.top),
            (&mut self.threshold_flows, &more.threshold_flows),
            (&mut self.bin_flows, &more.bin_flows),
            (&mut self.bin_bytes, &more.bin_bytes),
            (&mut self.bin_packets, &more.bin_packets),
            (&mut self.epsilon, &more.epsilon),
        ] {
            mine.add_all(more);
        }
        self.spilled |= more.spilled;
    }
}

/// Sums of any number of periods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// The sum of the totals.
    pub total: Counts,
    /// Packets that were lost.
    pub lost: u64,
    /// How many periods there are, of all exits.
    pub periods: u64,
    /// By the day on which a period began; days that a period reaches are there too.
    pub days: BTreeMap<Date, Day>,
    /// By everything else.
    pub tables: BTreeMap<Dimension, Table>,
    /// How it was counted.
    pub method: Method,
}

/// A part of a period: the row of its total, and all others.
#[derive(Clone, Debug)]
pub struct Part {
    /// The total's row.
    pub total: Row,
    /// What it has beside the counts.
    pub about: About,
    /// The other rows.
    pub rows: Vec<Row>,
}

fn counts(row: &Row) -> Counts {
    Counts {
        flows: row.flows,
        bytes: row.bytes,
        packets: row.packets,
    }
}

impl Sums {
    /// Adds a part of a period, the first one of that period or another one.
    pub fn add_part(&mut self, part: &Part, is_first: bool) {
        let seconds = part.total.period_end.as_second() - part.total.period_start.as_second();
        let mut day = Day {
            total: counts(&part.total),
            watched: part.about.watched_seconds,
            ..Day::default()
        };
        if is_first {
            day.seconds = u64::try_from(seconds).unwrap_or(0);
            self.periods += 1;
        }
        self.total += day.total;
        self.lost = self.lost.saturating_add(part.about.lost_packets);
        self.method.add(&Method::of(&part.about));

        let with_other: BTreeSet<Dimension> = part
            .rows
            .iter()
            .filter(|row| row.other)
            .map(|row| row.dimension)
            .collect();
        for row in &part.rows {
            let table = self.tables.entry(row.dimension).or_default();
            if row.other {
                table.other += counts(row);
                table.others += 1;
                continue;
            }
            let entry = table.entries.entry(Key::of(row)).or_default();
            entry.counts += counts(row);
            entry.beside_other += u64::from(with_other.contains(&row.dimension));
            if row.dimension == Dimension::Encryption {
                let slot = match row.encryption {
                    Some(Encryption::Encrypted) => &mut day.encryption[0],
                    Some(Encryption::Plain) => &mut day.encryption[1],
                    _ => &mut day.encryption[2],
                };
                *slot = slot.saturating_add(row.bytes);
            }
        }

        let first = date(part.total.period_start.as_second());
        self.days.entry(first).or_default().add(&day);
        // A period of several days is counted on its first; the others are covered all the same.
        let last = date(part.total.period_end.as_second() - 1);
        for date in first.series(jiff::Span::new().days(1)) {
            if date > last || Month::from(date) != Month::from(first) {
                break;
            }
            self.days.entry(date).or_default();
        }
    }

    /// Adds other sums.
    pub fn add(&mut self, more: &Self) {
        self.total += more.total;
        self.lost = self.lost.saturating_add(more.lost);
        self.periods += more.periods;
        for (date, day) in &more.days {
            self.days.entry(*date).or_default().add(day);
        }
        for (dimension, table) in &more.tables {
            self.tables.entry(*dimension).or_default().add(table);
        }
        self.method.add(&more.method);
    }

    /// How many rows and days are kept.
    pub(super) fn len(&self) -> usize {
        let rows = self.tables.values().map(|table| table.entries.len());
        rows.sum::<usize>() + self.days.len()
    }

    /// How long the periods are, and for how much of that the tap was watched.
    pub fn watched(&self) -> (u64, u64) {
        self.days.values().fold((0, 0), |(seconds, watched), day| {
            (
                seconds.saturating_add(day.seconds),
                watched.saturating_add(day.watched),
            )
        })
    }

    /// A dimension's table, empty where there is none.
    pub fn table(&self, dimension: Dimension) -> &Table {
        static NONE: Table = Table {
            entries: BTreeMap::new(),
            other: Counts {
                flows: 0,
                bytes: 0,
                packets: 0,
            },
            others: 0,
        };
        self.tables.get(&dimension).unwrap_or(&NONE)
    }

    /// Bytes of the row with this key, and of all rows of the dimension.
    pub fn share(&self, dimension: Dimension, key: &Key) -> (u64, u64) {
        let table = self.table(dimension);
        let part = table.entries.get(key).map_or(0, |entry| entry.counts.bytes);
        (part, table.sum().bytes)
    }
}

/// The day of a moment that was found to be in the calendar's range.
pub(super) fn date(second: i64) -> Date {
    jiff::Timestamp::from_second(second)
        .map(|moment| moment.to_zoned(jiff::tz::TimeZone::UTC).date())
        .unwrap_or_default()
}

/// All that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// By the exit's name, then by month.
    pub(super) exits: BTreeMap<String, BTreeMap<Month, Sums>>,
    /// Names of autonomous systems, the last that was read.
    pub(super) names: BTreeMap<u32, String>,
    /// How many rows and days are kept in all.
    pub(super) kept: usize,
}

impl Statistics {
    /// The exits' names, in order.
    pub fn exits(&self) -> Vec<&str> {
        self.exits.keys().map(String::as_str).collect()
    }

    /// All exits together, and each one where there are several.
    pub fn scopes(&self) -> Vec<Option<&str>> {
        let each = self.exits().into_iter().map(Some);
        let each = each.filter(|_| self.exits.len() > 1);
        std::iter::once(None).chain(each).collect()
    }

    /// The months of an exit, or of all.
    pub fn months(&self, exit: Option<&str>) -> BTreeSet<Month> {
        self.of(exit)
            .flat_map(|months| months.keys().copied())
            .collect()
    }

    /// Everything, every year and every month that an exit, or all together, has periods of.
    pub fn spans(&self, exit: Option<&str>) -> Vec<Span> {
        let months = self.months(exit);
        let years: BTreeSet<i16> = months.iter().map(|month| month.year).collect();
        let everything = std::iter::once(Span::Everything);
        let years = years.into_iter().map(Span::Year);
        let months = months.into_iter().map(Span::Month);
        everything.chain(years).chain(months).collect()
    }

    /// The sums of a span, of an exit or of all together.
    pub fn sum(&self, exit: Option<&str>, span: Span) -> Sums {
        let mut sum = Sums::default();
        for (_, sums) in self
            .of(exit)
            .flatten()
            .filter(|(month, _)| span.has(**month))
        {
            sum.add(sums);
        }
        sum
    }

    fn of(&self, exit: Option<&str>) -> impl Iterator<Item = &BTreeMap<Month, Sums>> {
        self.exits
            .iter()
            .filter(move |(name, _)| exit.is_none_or(|exit| exit == *name))
            .map(|(_, months)| months)
    }
}
