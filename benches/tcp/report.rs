//! The results, as tables and as `tcp.json`.

use crate::Contestant;
use crate::common::results::{Series, ratio, rounded};
use crate::common::rounds::Contest;
use crate::goodput::{Direction, Goodput};
use crate::round_trip::RoundTrip;
use serde::Serialize;
use std::fmt;

/// The forwarder that every row is compared with.
const REFERENCE: &str = "wire";

#[derive(Clone, Copy, Debug)]
pub(crate) enum Sample {
    /// The goodput of an upload, and of a download after it.
    Bulk(Goodput, Goodput),
    Connect(f64),
    RoundTrip(RoundTrip),
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk(up, down) => write!(
                f,
                "up {:.3} Gbit/s ({} retransmits), down {:.3} Gbit/s ({} retransmits)",
                up.gbit_per_s, up.retransmits, down.gbit_per_s, down.retransmits
            ),
            Self::Connect(rate) => write!(f, "{rate:.0} connections a second"),
            Self::RoundTrip(trip) => {
                write!(f, "p50 {:.1} us, p99 {:.1} us", trip.p50_us, trip.p99_us)
            }
        }
    }
}

/// All runs of one forwarder in one direction, or of another trial.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    forwarder: &'static str,
    direction: &'static str,
    #[serde(flatten)]
    figure: Figure,
    min: f64,
    max: f64,
    runs: usize,
    streams: u16,
    rounds: Series,
}

/// The medians over the rounds, by unit.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
enum Figure {
    Goodput {
        gbit_per_s: f64,
        /// Retransmitted segments of all runs.
        retransmits: u64,
    },
    Connect {
        connections_per_s: f64,
    },
    RoundTrip {
        round_trip_us: f64,
        p99_us: f64,
    },
}

impl Row {
    fn new(
        contestant: &Contestant<'_>,
        direction: &'static str,
        rounds: Series,
        figure: Figure,
    ) -> Self {
        Self {
            forwarder: contestant.forwarder.name(),
            direction,
            figure,
            min: rounded(rounds.min()),
            max: rounded(rounds.max()),
            runs: rounds.runs(),
            streams: contestant.trial.streams(),
            rounds,
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.direction == other.direction && self.streams == other.streams
    }
}

/// The rows in the order of the tables: uploads, downloads, connections, round trips.
pub(crate) fn rows(contests: &[Contest<Contestant<'_>, Sample>]) -> Vec<Row> {
    let uploads = contests
        .iter()
        .filter_map(|one| goodput(one, Direction::Upload));
    let downloads = contests
        .iter()
        .filter_map(|one| goodput(one, Direction::Download));
    let connections = contests.iter().filter_map(connections);
    let round_trips = contests.iter().filter_map(round_trip);
    let bulk = uploads.chain(downloads);
    bulk.chain(connections).chain(round_trips).collect()
}

/// The row of a direction; `None` for another trial.
fn goodput(contest: &Contest<Contestant<'_>, Sample>, direction: Direction) -> Option<Row> {
    let samples = || {
        contest.samples.iter().filter_map(|sample| match sample {
            Sample::Bulk(up, down) => Some(match direction {
                Direction::Upload => up,
                Direction::Download => down,
            }),
            _ => None,
        })
    };
    let rounds = Series::new(samples().map(|goodput| goodput.gbit_per_s))?;
    let figure = Figure::Goodput {
        gbit_per_s: rounded(rounds.median()),
        retransmits: samples().map(|goodput| goodput.retransmits).sum(),
    };
    let name = direction.name();
    Some(Row::new(&contest.contestant, name, rounds, figure))
}

fn connections(contest: &Contest<Contestant<'_>, Sample>) -> Option<Row> {
    let rates = contest.samples.iter().filter_map(|sample| match sample {
        Sample::Connect(rate) => Some(*rate),
        _ => None,
    });
    let rounds = Series::new(rates)?;
    let figure = Figure::Connect {
        connections_per_s: rounded(rounds.median()),
    };
    Some(Row::new(&contest.contestant, "connect", rounds, figure))
}

fn round_trip(contest: &Contest<Contestant<'_>, Sample>) -> Option<Row> {
    let trips = || {
        contest.samples.iter().filter_map(|sample| match sample {
            Sample::RoundTrip(trip) => Some(trip),
            _ => None,
        })
    };
    let rounds = Series::new(trips().map(|trip| trip.p50_us))?;
    let p99 = Series::new(trips().map(|trip| trip.p99_us))?;
    let figure = Figure::RoundTrip {
        round_trip_us: rounded(rounds.median()),
        p99_us: rounded(p99.median()),
    };
    Some(Row::new(&contest.contestant, "round-trip", rounds, figure))
}

/// Prints the rows, each with its ratio to the bare wire in the same direction.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "\n{:<22} {:<10} {:>7}  {:<34}  {:<22}  x {REFERENCE}",
        "forwarder", "direction", "streams", "median", "(min .. max)"
    );
    for row in rows {
        let against = rows
            .iter()
            .find(|other| other.forwarder == REFERENCE && row.is_like(other));
        println!(
            "{:<22} {:<10} {:>7}  {:<34}  {:<22}  {}",
            row.forwarder,
            row.direction,
            row.streams,
            row.figure.to_string(),
            format!("({:.3} .. {:.3})", row.min, row.max),
            ratio(against.and_then(|other| row.rounds.ratio_to(&other.rounds))),
        );
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goodput {
                gbit_per_s,
                retransmits,
            } => write!(f, "{gbit_per_s:.3} Gbit/s, {retransmits} retransmits"),
            Self::Connect { connections_per_s } => write!(f, "{connections_per_s:.0} a second"),
            Self::RoundTrip {
                round_trip_us,
                p99_us,
            } => write!(f, "{round_trip_us:.1} us, p99 {p99_us:.1} us"),
        }
    }
}
