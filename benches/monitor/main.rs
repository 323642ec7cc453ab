//! The cost of the monitor: nanoseconds per packet from memory, captures per second from a file,
//! and memory.
//!
//! Everything runs on one core. The rows take turns within every round, and the median of the
//! rounds is reported. The databases are the embedded one of countries and a generated one of
//! 100,000 prefixes of autonomous systems. `cargo bench --bench monitor -- --help` lists the
//! options.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose inputs are wrong has nothing to say"
)]

mod capture;
#[path = "../common/mod.rs"]
#[allow(
    dead_code,
    reason = "it is made for benches between network namespaces"
)]
mod common;
mod footprint;
mod memory;
mod systems;
mod traffic;
mod veth;

use clap::Parser;
use common::results::Series;
use common::{results, rounds};
use exitmark_lab::LabError;
use serde_json::{Value, json};
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;
use systems::Databases;

const BENCH: &str = "monitor";
/// Packets of a terabyte per day, at 769 bytes per packet.
const DAY: f64 = 1.3e9;

#[derive(Parser)]
#[command(name = "monitor", about = "What the monitor costs")]
struct Arguments {
    #[command(flatten)]
    options: rounds::Options,
    /// Gigabytes of captured packets in the file
    #[arg(long, default_value_t = 1.0)]
    gigabytes: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    rounds::exit(BENCH, bench(&arguments))
}

fn bench(arguments: &Arguments) -> Result<bool, LabError> {
    let databases = Databases::load();
    let is_quick = arguments.options.quick;
    let gigabytes = if is_quick { 0.05 } else { arguments.gigabytes };
    let rows = memory::rows(&databases)
        .chain(capture::rows(&databases, gigabytes))
        .chain(footprint::rows(&databases))
        .chain(veth::rows(&databases))
        .collect();
    let rows = arguments.options.chosen(rows, |row: &Row| row.name)?;
    let rows = rows.into_iter();
    let outcome = rounds::run(BENCH, &arguments.options, rows, |row, length| {
        (row.measure)(length)
    })?;
    let mut reported = Vec::new();
    println!(
        "{:<28} {:>10} {:>10} {:>10}  unit",
        "row", "median", "min", "max"
    );
    for contest in &outcome.contests {
        let row = &contest.contestant;
        let samples = contest.samples.iter().map(|sample| sample.value);
        let Some(series) = Series::new(samples) else {
            continue;
        };
        let units = contest.samples.iter().map(|sample| sample.unit);
        let Some(unit) = units.reduce(Unit::and) else {
            continue;
        };
        println!(
            "{:<28} {:>10.3} {:>10.3} {:>10.3}  {unit}{}",
            row.name,
            series.median(),
            series.min(),
            series.max(),
            unit.more(series.median())
        );
        reported.push(unit.row(row.name, &series));
    }
    let directory = results::write(
        "monitor.json",
        &json!({ "machine": outcome.machine, "rows": reported, "missing": outcome.failed }),
    )?;
    println!("\nwritten to {}", directory.join("monitor.json").display());
    results::note_missing(BENCH, &outcome.failed)?;
    Ok(outcome.failed.is_empty())
}

/// A measurement, run for the given time.
struct Row {
    name: &'static str,
    measure: Box<dyn Fn(Duration) -> Result<Sample, LabError>>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    value: f64,
    unit: Unit,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, unit } = *self;
        write!(f, "{value:.3} {unit}{}", unit.more(value))
    }
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    /// Nanoseconds per packet, on one core.
    NanosPerPacket,
    /// Gigabytes of captured bytes per second, and the mean packet size.
    Gigabytes {
        bytes_per_packet: f64,
    },
    Mebibytes,
    /// Marked packets counted at a tap, in millions per second.
    Tap(Offered),
}

/// The frames that were sent to a tap.
#[derive(Clone, Copy, Debug)]
struct Offered {
    /// In millions per second.
    rate: f64,
    marked: u64,
    lost: u64,
}

impl Unit {
    fn and(self, next: Self) -> Self {
        match (self, next) {
            (Self::Tap(one), Self::Tap(other)) => Self::Tap(Offered {
                marked: one.marked + other.marked,
                lost: one.lost + other.lost,
                ..one
            }),
            _ => self,
        }
    }

    /// The same value in other units.
    fn more(self, value: f64) -> String {
        match self {
            Self::NanosPerPacket => {
                let (mpps, day) = (1e3 / value, value * DAY / 1e9);
                format!(", {mpps:.1} Mpps, 1.3e9 packets in {day:.0} s")
            }
            Self::Gigabytes { bytes_per_packet } => {
                let nanos = bytes_per_packet / value;
                Self::NanosPerPacket.more(nanos)
            }
            Self::Mebibytes => String::new(),
            Self::Tap(Offered { rate, marked, lost }) => {
                format!(" of {rate:.2} offered, {lost} of {marked} marked lost")
            }
        }
    }

    fn row(self, name: &str, series: &Series) -> Value {
        let median = results::rounded(series.median());
        let mut row = json!({
            "name": name, "unit": self.to_string(), "median": median,
            "min": results::rounded(series.min()), "max": results::rounded(series.max()),
            "rounds": series,
        });
        let nanos = match self {
            Self::NanosPerPacket => series.median(),
            Self::Gigabytes { bytes_per_packet } => bytes_per_packet / series.median(),
            Self::Mebibytes => return row,
            Self::Tap(offered) => {
                row["offered_mpps"] = results::rounded(offered.rate).into();
                row["marked_packets"] = offered.marked.into();
                row["lost_packets"] = offered.lost.into();
                return row;
            }
        };
        row["mpps"] = results::rounded(1e3 / nanos).into();
        row["seconds_per_1300000000_packets"] = results::rounded(nanos * DAY / 1e9).into();
        row
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NanosPerPacket => "ns/packet",
            Self::Gigabytes { .. } => "GB/s",
            Self::Mebibytes => "MiB",
            Self::Tap(_) => "Mpps",
        })
    }
}
