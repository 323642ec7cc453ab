//! Sums of periods. Months of each exit are kept; longer spans are sums of months.

use crate::cell::{Country, Counts, Directions};
use crate::row::{About, Dimension, Encryption, Row};
use jiff::civil::Date;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// A month of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    /// The year, in UTC; 2000 to 2199.
    pub year: i16,
    /// The month, 1 (January) to 12, in UTC.
    pub month: i8,
}

impl Month {
    pub(super) fn first(self) -> Date {
        Date::new(self.year, self.month, 1).unwrap_or_default()
    }
}

impl From<Date> for Month {
    fn from(date: Date) -> Self {
        let (year, month) = (date.year(), date.month());
        Self { year, month }
    }
}

/// The time that a page covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Span {
    /// All periods, whenever they began.
    Everything,
    /// Periods that began in this year.
    Year(i16),
    /// Periods that began in this month.
    Month(Month),
}

impl Span {
    /// Whether the span contains a month.
    pub fn has(self, month: Month) -> bool {
        match self {
            Self::Everything => true,
            Self::Year(year) => month.year == year,
            Self::Month(only) => month == only,
        }
    }

    /// Name in files: `all`, `2026`, `2026-11`.
    pub fn slug(self) -> String {
        match self {
            Self::Everything => "all".to_owned(),
            Self::Year(year) => format!("{year:04}"),
            Self::Month(month) => month.first().strftime("%Y-%m").to_string(),
        }
    }
}

/// The key of a row within its dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SumKey {
    /// The destination port; 0 for packets without ports.
    pub port: Option<u16>,
    /// The autonomous system's number; 0 if it is unknown.
    pub asn: Option<u32>,
    /// The country's two letters.
    pub country: Option<Country>,
    /// The IP version, 4 or 6. `None` in other dimensions.
    pub ip_version: Option<u8>,
    /// Whether the port's usual protocol encrypts.
    pub encryption: Option<Encryption>,
}

impl SumKey {
    /// The key of [`Dimension::IpVersion`].
    pub fn ip_version(version: u8) -> Self {
        Self {
            ip_version: Some(version),
            ..Self::default()
        }
    }

    /// The key of [`Dimension::Encryption`].
    pub fn encryption(encryption: Encryption) -> Self {
        Self {
            encryption: Some(encryption),
            ..Self::default()
        }
    }

    /// The key of a row, from the columns of its dimension.
    pub fn of(row: &Row) -> Self {
        Self {
            port: row.port,
            asn: row.asn,
            country: row.country,
            ip_version: row.ip_version,
            // A port's row may have this column too, but is not keyed by it.
            encryption: row.encryption.filter(|_| row.port.is_none()),
        }
    }
}

/// A sum of rows with the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSum {
    /// The sum of the rounded counts of the rows with this key.
    pub counts: Counts,
    /// How many of the parts with a row `other` also have a row with this key.
    beside_other: u64,
}

/// The sums of a dimension: its rows by key, and `other`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DimensionSums {
    /// The rows with a key; rows `other` are apart.
    pub entries: BTreeMap<SumKey, RowSum>,
    /// The sum of the rows `other`.
    pub other: Counts,
    /// How many parts have a row `other`.
    others: u64,
}

impl DimensionSums {
    /// Whether the sum is a lower bound: in some part its row may be in `other`.
    pub fn is_lower_bound(&self, entry: &RowSum) -> bool {
        entry.beside_other < self.others
    }

    /// Whether any part has a row `other`.
    pub fn has_other(&self) -> bool {
        self.others > 0
    }

    /// The sum over all rows, with `other`. Packets without a connection are in the total only.
    pub fn sum(&self) -> Counts {
        let entries = self.entries.values().map(|entry| entry.counts);
        entries.chain([self.other]).sum()
    }

    /// The rows with a key, most bytes in both directions first.
    pub fn ranked(&self) -> Vec<(&SumKey, &RowSum)> {
        let mut rows: Vec<_> = self.entries.iter().collect();
        // A stable sort: equal rows stay in the order of their keys.
        rows.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.counts.all_bytes()));
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

/// The sums of a day, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Day {
    /// The sum of the totals of its periods.
    pub total: Counts,
    /// Bytes to and from ports whose protocols encrypt, do not, or are unknown.
    pub encryption: [u64; 3],
    /// Length of the periods that began on the day, in seconds.
    pub seconds: u64,
    /// Seconds of these during which the tap was watched.
    pub watched: u64,
}

impl Day {
    /// Adds the numbers of another day, or of the same day at another exit.
    pub fn add(&mut self, more: &Self) {
        self.total += more.total;
        for (mine, more) in self.encryption.iter_mut().zip(more.encryption) {
            *mine = mine.saturating_add(more);
        }
        self.seconds = self.seconds.saturating_add(more.seconds);
        self.watched = self.watched.saturating_add(more.watched);
    }
}

/// Distinct values of a setting, a few at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(pub BTreeSet<String>);

impl Values {
    /// More values are not shown.
    const MOST: usize = 24;

    fn add(&mut self, value: impl Into<String>) {
        if self.0.len() < Self::MOST {
            self.0.insert(value.into());
        }
    }
}

/// How the numbers were made: distinct values over the periods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Method {
    pub monitors: Values,
    /// Databases of countries, with version and date.
    pub countries: Values,
    pub systems: Values,
    pub top: Values,
    pub threshold_flows: Values,
    /// Bin sizes, to whose multiples counts were rounded up.
    pub bins: Counts<Values>,
    /// Values of ε; 0 without noise.
    pub epsilon: Values,
    /// Whether a table of cells was full in any period.
    pub spilled: bool,
    /// Parts of periods in all,
    pub parts: u64,
    /// and those in which something came down and was counted.
    pub parts_with_down: u64,
}

impl Method {
    fn note(&mut self, about: &About, total: &Counts) {
        self.parts += 1;
        if about.directions == Directions::Both && total.down_packets > 0 {
            self.parts_with_down += 1;
            self.bins.down_bytes.add(about.bin_down_bytes.to_string());
            self.bins
                .down_packets
                .add(about.bin_down_packets.to_string());
        }
        self.monitors.add(&about.monitor);
        self.countries.add(&about.countries);
        self.systems.add(&about.systems);
        self.top.add(about.top.to_string());
        self.threshold_flows.add(about.threshold_flows.to_string());
        self.bins.flows.add(about.bin_flows.to_string());
        self.bins.bytes.add(about.bin_bytes.to_string());
        self.bins.packets.add(about.bin_packets.to_string());
        self.epsilon.add(about.epsilon.to_string());
        self.spilled |= about.spilled;
    }

    fn add(&mut self, more: &Self) {
        for (mine, more) in [
            (&mut self.monitors, &more.monitors),
            (&mut self.countries, &more.countries),
            (&mut self.systems, &more.systems),
            (&mut self.top, &more.top),
            (&mut self.threshold_flows, &more.threshold_flows),
            (&mut self.bins.flows, &more.bins.flows),
            (&mut self.bins.bytes, &more.bins.bytes),
            (&mut self.bins.packets, &more.bins.packets),
            (&mut self.bins.down_bytes, &more.bins.down_bytes),
            (&mut self.bins.down_packets, &more.bins.down_packets),
            (&mut self.epsilon, &more.epsilon),
        ] {
            more.0.iter().for_each(|value| mine.add(value));
        }
        self.spilled |= more.spilled;
        self.parts += more.parts;
        self.parts_with_down += more.parts_with_down;
    }

    /// Whether some of the periods have what came down.
    pub fn has_down(&self) -> bool {
        self.parts_with_down > 0
    }
}

/// Sums of any number of periods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// The sum of the totals, unattributed packets included.
    pub total: Counts,
    /// Packets lost before they were counted.
    pub lost: u64,
    /// Number of periods, over all exits.
    pub periods: u64,
    /// By the day on which a period began; the other days that a period covers have zeroes.
    pub days: BTreeMap<Date, Day>,
    /// The sums of each dimension that occurs, without the total.
    pub tables: BTreeMap<Dimension, DimensionSums>,
    /// How the numbers were made.
    pub method: Method,
}

/// A part of a period: its total and its other rows.
#[derive(Clone, Debug)]
pub struct PeriodPart {
    /// The row of the total, which begins the part.
    pub total: Row,
    pub about: About,
    /// The other rows, each with another key.
    pub rows: Vec<Row>,
}

impl Sums {
    /// Adds a part; `is_first` if it is the first one of its period that was read.
    pub fn add_part(&mut self, part: &PeriodPart, is_first: bool) {
        let seconds = part.total.period_end.as_second() - part.total.period_start.as_second();
        let mut day = Day {
            total: part.total.counts,
            watched: part.about.watched_seconds,
            ..Day::default()
        };
        if is_first {
            day.seconds = u64::try_from(seconds).unwrap_or(0);
            self.periods += 1;
        }
        self.total += day.total;
        self.lost = self.lost.saturating_add(part.about.lost_packets);
        self.method.note(&part.about, &part.total.counts);

        let with_other: BTreeSet<Dimension> = part
            .rows
            .iter()
            .filter(|row| row.other)
            .map(|row| row.dimension)
            .collect();
        for row in &part.rows {
            let table = self.tables.entry(row.dimension).or_default();
            if row.other {
                table.other += row.counts;
                table.others += 1;
                continue;
            }
            let entry = table.entries.entry(SumKey::of(row)).or_default();
            entry.counts += row.counts;
            entry.beside_other += u64::from(with_other.contains(&row.dimension));
            if row.dimension == Dimension::Encryption {
                let slot = match row.encryption {
                    Some(Encryption::Encrypted) => &mut day.encryption[0],
                    Some(Encryption::Plain) => &mut day.encryption[1],
                    _ => &mut day.encryption[2],
                };
                *slot = slot.saturating_add(row.counts.all_bytes());
            }
        }

        let first = date(part.total.period_start.as_second());
        self.days.entry(first).or_default().add(&day);
        // A period of several days counts on its first; the others get an entry.
        let last = date(part.total.period_end.as_second() - 1);
        for date in first.series(jiff::Span::new().days(1)) {
            if date > last || Month::from(date) != Month::from(first) {
                break;
            }
            self.days.entry(date).or_default();
        }
    }

    /// Adds the sums of other periods, or of another exit.
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

    /// Number of rows and days kept.
    pub(super) fn len(&self) -> usize {
        let rows = self.tables.values().map(|table| table.entries.len());
        rows.sum::<usize>() + self.days.len()
    }

    /// Length of the periods, and how much of it was watched, in seconds.
    pub fn watched(&self) -> (u64, u64) {
        let mut all = Day::default();
        self.days.values().for_each(|day| all.add(day));
        (all.seconds, all.watched)
    }

    /// The table of a dimension; empty if it has no rows.
    pub fn table(&self, dimension: Dimension) -> &DimensionSums {
        static NONE: LazyLock<DimensionSums> = LazyLock::new(DimensionSums::default);
        self.tables.get(&dimension).unwrap_or(&NONE)
    }

    /// Bytes in both directions of the row with this key, and of all rows of the dimension.
    pub fn share(&self, dimension: Dimension, key: &SumKey) -> (u64, u64) {
        let table = self.table(dimension);
        let entry = table.entries.get(key);
        let part = entry.map_or(0, |entry| entry.counts.all_bytes());
        (part, table.sum().all_bytes())
    }
}

/// The date of a time that was checked to be in range.
pub(super) fn date(second: i64) -> Date {
    jiff::Timestamp::from_second(second)
        .map(|moment| moment.to_zoned(jiff::tz::TimeZone::UTC).date())
        .unwrap_or_default()
}

/// Everything that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Sums by exit name and month.
    pub(super) exits: BTreeMap<String, BTreeMap<Month, Sums>>,
    /// Names of autonomous systems; the last one read wins.
    pub(super) names: BTreeMap<u32, String>,
    /// Number of rows and days kept.
    pub(super) kept: usize,
}

impl Statistics {
    /// The exits' names, sorted.
    pub fn exits(&self) -> Vec<&str> {
        self.exits.keys().map(String::as_str).collect()
    }

    /// `None` for all exits together, and each exit if there are several.
    pub fn scopes(&self) -> Vec<Option<&str>> {
        let each = self.exits().into_iter().map(Some);
        let each = each.filter(|_| self.exits.len() > 1);
        std::iter::once(None).chain(each).collect()
    }

    /// The months of an exit; of all exits for `None`.
    pub fn months(&self, exit: Option<&str>) -> BTreeSet<Month> {
        self.of(exit)
            .flat_map(|months| months.keys().copied())
            .collect()
    }

    /// All time, and every year and month with periods of the exit (of any exit for `None`).
    pub fn spans(&self, exit: Option<&str>) -> Vec<Span> {
        let months = self.months(exit);
        let years: BTreeSet<i16> = months.iter().map(|month| month.year).collect();
        let everything = std::iter::once(Span::Everything);
        let years = years.into_iter().map(Span::Year);
        let months = months.into_iter().map(Span::Month);
        everything.chain(years).chain(months).collect()
    }

    /// The sums of a span for an exit (over all exits for `None`).
    pub fn sum(&self, exit: Option<&str>, span: Span) -> Sums {
        let months = self.of(exit).flatten();
        let mut sum = Sums::default();
        for (_, sums) in months.filter(|(month, _)| span.has(**month)) {
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
