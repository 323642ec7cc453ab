//! What was measured, for people and for programs: the table and `tcp.json`.

use crate::Contestant;
use crate::common::results::{Series, ratio, rounded};
use crate::common::rounds::Contest;
use crate::forwarders::REFERENCE;
use crate::goodput::{Direction, Goodput};
use serde::Serialize;
use std::fmt;

/// One run of one forwarder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) upload: Goodput,
    pub(crate) download: Goodput,
}

impl Sample {
    fn goodput(&self, direction: Direction) -> Goodput {
        match direction {
            Direction::Upload => self.upload,
            Direction::Download => self.download,
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (up, down) = (&self.upload, &self.download);
        write!(
            f,
            "up {:.3} Gbit/s ({} retransmits), down {:.3} Gbit/s ({} retransmits)",
            up.gbit_per_s, up.retransmits, down.gbit_per_s, down.retransmits
        )
    }
}

/// All runs of one forwarder in one direction.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    forwarder: &'static str,
    direction: &'static str,
    gbit_per_s: f64,
    min: f64,
    max: f64,
    runs: usize,
    streams: u16,
    /// Segments that were sent again, in all runs.
    retransmits: u64,
    #[serde(skip)]
    rates: Series,
}

impl Row {
    /// None when there is no sample.
    fn new(contest: &Contest<Contestant<'_>, Sample>, direction: Direction) -> Option<Self> {
        let samples = || contest.samples.iter().map(|one| one.goodput(direction));
        let rates = Series::new(samples().map(|goodput| goodput.gbit_per_s))?;
        Some(Self {
            forwarder: contest.contestant.forwarder.name(),
            direction: direction.name(),
            gbit_per_s: rounded(rates.median()),
            min: rounded(rates.min()),
            max: rounded(rates.max()),
            runs: rates.runs(),
            streams: contest.contestant.streams,
            retransmits: samples().map(|goodput| goodput.retransmits).sum(),
            rates,
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        self.direction == other.direction && self.streams == other.streams
    }
}

/// The table: uploads, then downloads.
pub(crate) fn rows(contests: &[Contest<Contestant<'_>, Sample>]) -> Vec<Row> {
    [Direction::Upload, Direction::Download]
        .into_iter()
        .flat_map(|direction| {
            contests
                .iter()
                .filter_map(move |contest| Row::new(contest, direction))
        })
        .collect()
}

/// Prints the rows, each with its ratio to the reference in the same direction.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "\n{:<22} {:<9} {:>7}  Gbit/s  (min .. max)       retransmits  x {REFERENCE}",
        "forwarder", "direction", "streams"
    );
    for row in rows {
        let against = rows
            .iter()
            .find(|other| other.forwarder == REFERENCE && row.is_like(other));
        println!(
            "{:<22} {:<9} {:>7}  {:>6.3}  ({:.3} .. {:.3})  {:>11}  {}",
            row.forwarder,
            row.direction,
            row.streams,
            row.gbit_per_s,
            row.min,
            row.max,
            row.retransmits,
            ratio(against.and_then(|other| row.rates.ratio_to(&other.rates))),
        );
    }
}
