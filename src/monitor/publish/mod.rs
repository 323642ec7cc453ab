//! What of a period may be shown: exact counts in, rows out. Pure; asks no clock and writes no file.
//!
//! The method is that of Tor's own statistics (dir-spec, "Extra-info document": streams of an exit
//! are rounded up to multiples of 4, its bytes to KiB, rare ports are one `other`; what is told of
//! onion services is rounded up to bins and has Laplace noise), applied to every dimension:
//!
//! 1. The cells of a dimension in which connections began are summed up. Only those with enough
//!    flows are shown, and of them those with the most (`select`). The rest is one row, `other`.
//!    Packets of cells in which no connection began are unattributed: in the total alone.
//! 2. What is not shown must not be had by subtraction: what the rows shown leave of the total, or
//!    of a row of a coarser table (`other` is one), is nothing or has enough flows itself, or else
//!    another row is withdrawn. Between ports and encryption it is encryption's, between single and cross tables
//!    the cross table's. Systems and countries are one in the other as well, and everybody can look
//!    up where: what the systems that lie in one country alone leave of its row (or of `other`, and
//!    the same with countries that are one system's alone) is nothing or enough, too. (That is for
//!    one row less some of another table. What can be learned from sums of rows on both sides, or
//!    from more than two tables together, is not looked for: who fears that takes noise.)
//! 3. If it is asked for, noise is added to the rows that are left ([`noise`]). What falls below the
//!    threshold by it joins `other`; nothing that is hidden without noise is shown with it.
//! 4. Flows, bytes and packets are rounded up to their bins, and rows are ordered by what they
//!    show, never by what they were.
//!
//! Which rows there are is decided by flows alone. Packets without a connection can be provoked
//! from outside (a refusal, an answer), and must not make a row disappear: wherever they are
//! counted, they change numbers of that row and of the total.
//!
//! A period that has fewer flows than the threshold altogether is one row of the total, and its
//! counts are 0: that they were too few is all it tells.

pub mod key;
pub mod laplace;
pub mod noise;
mod select;

pub use key::Key;
pub use noise::{Epsilon, Noise, NoiseError, NoiseSettings};

use super::clock::Period;
use super::ledger::Ledger;
use super::row::{About, Dimension, Row};
use select::{Figures, Total};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

/// The dimensions that every period has beside the total.
const SINGLE: [Dimension; 5] = [
    Dimension::Port,
    Dimension::System,
    Dimension::Country,
    Dimension::IpVersion,
    Dimension::Encryption,
];

/// How much is shown.
#[derive(Clone, Debug)]
pub struct PublishSettings {
    /// How many rows a dimension has at most, without `other`.
    pub top: u32,
    /// Fewer flows than this have no row of their own.
    pub threshold_flows: u64,
    /// Flows are rounded up to multiples of this,
    pub bin_flows: NonZeroU64,
    /// bytes of this,
    pub bin_bytes: NonZeroU64,
    /// and packets of this.
    pub bin_packets: NonZeroU64,
    /// Dimensions of two columns that are shown too.
    pub cross: Vec<Dimension>,
    /// Noise, if any.
    pub noise: Option<NoiseSettings>,
}

impl Default for PublishSettings {
    /// A page view makes some ten flows, so that fewer than 100 may be one person's evening; 8
    /// flows and 1024 packets are the bins in which Tor counts onion services and their cells, and
    /// a MiB hides whether one more page was fetched.
    fn default() -> Self {
        const fn bin(size: u64) -> NonZeroU64 {
            match NonZeroU64::new(size) {
                Some(bin) => bin,
                None => NonZeroU64::MIN,
            }
        }
        Self {
            top: 50,
            threshold_flows: 100,
            bin_flows: bin(8),
            bin_bytes: bin(1 << 20),
            bin_packets: bin(1024),
            cross: Vec::new(),
            noise: None,
        }
    }
}

/// Why a period cannot be published like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A single dimension among the crossed ones, or one twice.
    #[error(
        "the cross tables have {0:?}: name port_country, port_system and system_country, each at \
         most once"
    )]
    Cross(Dimension),
    /// No generator of noise.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

impl PublishSettings {
    /// Whether they make sense.
    ///
    /// # Errors
    /// They do not; the error says which.
    pub fn check(&self) -> Result<(), PublishError> {
        for (index, &dimension) in self.cross.iter().enumerate() {
            let is_single = dimension == Dimension::Total || SINGLE.contains(&dimension);
            if is_single || self.cross[..index].contains(&dimension) {
                return Err(PublishError::Cross(dimension));
            }
        }
        if let Some(noise) = &self.noise {
            noise.check(self.threshold_flows, self.tables())?;
        }
        Ok(())
    }

    /// How many tables a period shows, the total among them.
    pub fn tables(&self) -> u64 {
        u64::try_from(1 + self.dimensions().count()).unwrap_or(u64::MAX)
    }

    /// The tables beside the total.
    fn dimensions(&self) -> impl Iterator<Item = Dimension> {
        SINGLE.iter().chain(&self.cross).copied()
    }
}

/// The name of an autonomous system, where a database has one.
pub type Names = Arc<dyn Fn(u32) -> Option<String> + Send + Sync>;

/// Whose numbers they are, and by which databases.
#[derive(Clone)]
pub struct Origin {
    /// The name that the operator gave the exit.
    pub exit: String,
    /// The database of countries, with its version and date.
    pub countries: String,
    /// The database of autonomous systems; empty where there is none.
    pub systems: String,
    /// The names of autonomous systems.
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

/// The rows of a period, the total first.
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
        dimension: Dimension::Total,
        port: None,
        asn: None,
        as_name: None,
        country: None,
        ip_version: None,
        encryption: None,
        other: false,
        flows: 0,
        bytes: 0,
        packets: 0,
        about: None,
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
    about.unattributed_bytes = unattributed.bytes;
    about.unattributed_packets = unattributed.packets;
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
        shown.sort_by(|(key, row), (other_key, other)| {
            other.bytes.cmp(&row.bytes).then(key.cmp(other_key))
        });
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
    let bin = settings.bin_packets.get();
    About {
        monitor: env!("EXITMARK_VERSION").to_owned(),
        part: period.part,
        watched_seconds: ledger.watched_seconds,
        unattributed_bytes: 0,
        unattributed_packets: 0,
        // As other packets: how many somebody sent is not told to the last one.
        lost_packets: ledger.lost.div_ceil(bin).saturating_mul(bin),
        countries: origin.countries.clone(),
        systems: origin.systems.clone(),
        top: settings.top,
        threshold_flows: settings.threshold_flows,
        bin_flows: settings.bin_flows.get(),
        bin_bytes: settings.bin_bytes.get(),
        bin_packets: bin,
        epsilon: settings
            .noise
            .as_ref()
            .map_or(0.0, |noise| noise.epsilon.as_f64()),
        spilled: !ledger.spilled.is_empty(),
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
    fn an_origin_shows_what_it_is_made_of() {
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
