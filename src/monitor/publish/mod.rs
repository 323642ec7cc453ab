//! What of a period may be published: exact counts in, rows out. Pure: reads no clock and writes no
//! file.
//!
//! The method is that of Tor's own statistics (dir-spec, "Extra-info document": an exit's streams
//! are rounded up to multiples of 4, its bytes to KiB, and rare ports are one `other`; onion
//! service statistics are rounded up to bins and have Laplace noise), applied to every dimension:
//!
//! 1. The cells of a dimension in which connections began are summed up. Only sums with enough
//!    flows are shown, and of them the largest (`select`). The rest is one row, `other`. Packets of
//!    cells without a connection are unattributed: in the total only.
//! 2. Subtraction must not reveal what is not shown: what the shown rows leave of the total, or of
//!    a row of a coarser table (`other` is one), is nothing or has enough flows itself; otherwise
//!    another row is withdrawn. Between ports and encryption that is a row of encryption, between
//!    single and cross tables one of the cross table. Systems and countries contain each other as
//!    well, as public databases tell: what the systems that lie in one country only leave of its
//!    row (or of `other`), and the same with countries of one system only, is nothing or enough,
//!    too. This covers one row less rows of one other table. Sums of several rows on both sides, or
//!    over more than two tables, are not checked; noise covers them.
//! 3. If configured, noise is added to the remaining rows ([`noise`]). Rows that it brings below
//!    the threshold join `other`; it shows no row that is hidden without noise.
//! 4. Flows, bytes and packets are rounded up to their bins, and rows are ordered by the shown
//!    numbers, never by the exact ones.
//!
//! Flows alone decide which rows exist, in both directions: what comes down is published in the
//! rows that connections make, and adds and removes none. Packets without a connection can be provoked from outside
//! (a refusal, an answer) and must not make a row disappear: they only change numbers of their row
//! and of the total.
//!
//! A period with fewer flows than the threshold is one row of the total with zero counts: it
//! reveals only that they were too few.

pub mod key;
pub mod laplace;
pub mod noise;
mod select;

pub use key::RowKey;
pub use noise::{Epsilon, Noise, NoiseError, NoiseSettings};

use super::cell::{Counts, Directions};
use super::clock::Period;
use super::ledger::Ledger;
use super::row::{About, Dimension, FORMAT, Row};
use select::{Figures, Total};
use std::cmp::Reverse;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

/// The dimensions of every period, besides the total.
const SINGLE: [Dimension; 5] = [
    Dimension::Port,
    Dimension::System,
    Dimension::Country,
    Dimension::IpVersion,
    Dimension::Encryption,
];

/// The rows that may be shown, and how exact their numbers may be.
#[derive(Clone, Debug)]
pub struct PublishSettings {
    /// Rows of a dimension at most, without `other`.
    pub top: u32,
    /// Flows that a row needs at least.
    pub threshold_flows: u64,
    /// Counts are rounded up to multiples of these.
    pub bins: Counts<NonZeroU64>,
    /// Dimensions of two columns to publish.
    pub cross: Vec<Dimension>,
    /// Noise that is added to every shown number; `None` adds none.
    pub noise: Option<NoiseSettings>,
    /// What came down is published only if both directions are counted.
    pub directions: Directions,
}

impl Default for PublishSettings {
    /// A page view makes about ten flows, so fewer than 100 may be one person's evening. 8 flows
    /// and 1024 packets are the bins in which Tor counts onion services and their cells. 1 MiB up
    /// and 8 MiB down hide whether one more page was fetched: the median one has about 3 MB.
    fn default() -> Self {
        let bin = |size| NonZeroU64::new(size).unwrap_or(NonZeroU64::MIN);
        Self {
            top: 50,
            threshold_flows: 100,
            bins: [8, 1 << 20, 1024, 8 << 20, 8192].map(bin).into(),
            cross: Vec::new(),
            noise: None,
            directions: Directions::Out,
        }
    }
}

/// Why the settings for publishing are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A single dimension among the cross tables, or a cross table twice.
    #[error(
        "the cross tables have {0:?}: name port_country, port_system and system_country, each at \
         most once"
    )]
    Cross(Dimension),
    /// The noise cannot be configured.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

impl PublishSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`PublishError::Cross`] if `cross` has a dimension of one column, or one twice;
    /// [`PublishError::Noise`] if a parameter of the noise is out of range.
    pub fn check(&self) -> Result<(), PublishError> {
        for (index, &dimension) in self.cross.iter().enumerate() {
            let is_single = dimension == Dimension::Total || SINGLE.contains(&dimension);
            if is_single || self.cross[..index].contains(&dimension) {
                return Err(PublishError::Cross(dimension));
            }
        }
        if let Some(noise) = &self.noise {
            noise.check(self.threshold_flows, self.tables(), self.directions)?;
        }
        Ok(())
    }

    /// Number of tables of a period, with the total.
    pub fn tables(&self) -> u64 {
        u64::try_from(1 + self.dimensions().count()).unwrap_or(u64::MAX)
    }

    /// The tables besides the total.
    fn dimensions(&self) -> impl Iterator<Item = Dimension> {
        SINGLE.iter().chain(&self.cross).copied()
    }
}

/// The name of an autonomous system, where a database has one.
pub type Names = Arc<dyn Fn(u32) -> Option<String> + Send + Sync>;

/// The exit and the databases that rows are published under.
#[derive(Clone)]
pub struct Origin {
    /// The exit's name, as configured.
    pub exit: String,
    /// The database of countries, with its version and date.
    pub countries: String,
    /// The database of autonomous systems; empty without one.
    pub systems: String,
    /// Returns the name of an autonomous system.
    pub names: Names,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("exit", &self.exit)
            .field("countries", &self.countries)
            .field("systems", &self.systems)
            .finish_non_exhaustive()
    }
}

/// Makes the rows of a period, the total first.
pub fn publish(
    ledger: &Ledger,
    period: &Period,
    origin: &Origin,
    settings: &PublishSettings,
    mut noise: Option<&mut Noise>,
) -> Vec<Row> {
    let figures = Figures::new(ledger, settings);
    let blank = Row {
        period_start: period.start,
        period_end: period.end(),
        exit: origin.exit.clone(),
        ..Row::default()
    };
    let total = figures.total(noise.as_deref_mut());
    let mut about = about(ledger, period, origin, settings);
    let Some(Total { attributed, rest }) = total else {
        return vec![Row {
            about: Some(about),
            ..blank
        }];
    };
    let unattributed = figures.rounded(&blank, rest);
    about.unattributed_bytes = unattributed.counts.bytes;
    about.unattributed_packets = unattributed.counts.packets;
    about.unattributed_down_bytes = unattributed.counts.down_bytes;
    about.unattributed_down_packets = unattributed.counts.down_packets;
    let mut rows = vec![Row {
        about: Some(about),
        ..figures.rounded(&blank, attributed + rest)
    }];
    for dimension in settings.dimensions() {
        let table = figures.table(dimension, attributed, noise.as_deref_mut());
        let blank = Row {
            dimension,
            ..blank.clone()
        };
        let mut shown: Vec<_> = table
            .shown
            .into_iter()
            .map(|(key, amount)| (key, figures.rounded(&blank, amount)))
            .collect();
        shown.sort_by_key(|(key, row)| (Reverse(row.counts.all_bytes()), *key));
        rows.extend(shown.into_iter().map(|(key, mut row)| {
            key.write(&mut row);
            row.as_name = row.asn.and_then(|asn| (origin.names)(asn));
            row
        }));
        rows.extend(table.other.map(|amount| Row {
            other: true,
            ..figures.rounded(&blank, amount)
        }));
    }
    rows
}

fn about(ledger: &Ledger, period: &Period, origin: &Origin, settings: &PublishSettings) -> About {
    let bins = settings.bins.map(NonZeroU64::get);
    About {
        format: FORMAT,
        directions: settings.directions,
        monitor: exitmark_service::VERSION.to_owned(),
        part: period.part,
        watched_seconds: ledger.watched_seconds,
        // Rounded like other packets: an exact number would reveal single packets.
        lost_packets: ledger
            .lost
            .div_ceil(bins.packets)
            .saturating_mul(bins.packets),
        countries: origin.countries.clone(),
        systems: origin.systems.clone(),
        top: settings.top,
        threshold_flows: settings.threshold_flows,
        bin_flows: bins.flows,
        bin_bytes: bins.bytes,
        bin_packets: bins.packets,
        bin_down_bytes: bins.down_bytes,
        bin_down_packets: bins.down_packets,
        epsilon: settings
            .noise
            .as_ref()
            .map_or(0.0, |noise| noise.epsilon.as_f64()),
        spilled: !ledger.spilled.is_empty(),
        ..About::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_a_table_too() {
        let settings = PublishSettings::default();
        assert_eq!(settings.tables(), 6);
        let cross = vec![Dimension::PortCountry, Dimension::SystemCountry];
        let crossed = PublishSettings { cross, ..settings };
        assert_eq!(crossed.tables(), 8);
        assert_eq!(crossed.check(), Ok(()));
    }

    #[test]
    fn an_origin_formats_without_its_names() {
        let origin = Origin {
            exit: "berlin-1".to_owned(),
            countries: "geoip".to_owned(),
            systems: String::new(),
            names: Arc::new(|_| None),
        };
        let shown = r#"Origin { exit: "berlin-1", countries: "geoip", systems: "", .. }"#;
        assert_eq!(format!("{origin:?}"), shown);
    }
}
