//! What was measured, for people and for programs: the table, `pps.json`, `machine.json`.

use crate::machine::Machine;
use crate::traffic::Load;
use exitmark::lab::LabError;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// One run of one forwarder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Million frames a second that arrived.
    pub(crate) mpps: f64,
    /// The part of the sent frames that did not.
    pub(crate) loss: f64,
}

/// All runs of one forwarder with one load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) forwarder: &'static str,
    frame_bytes: usize,
    relay_share: f64,
    queues: u32,
    mpps: f64,
    min: f64,
    max: f64,
    loss: f64,
    runs: usize,
    /// The rate of every round, in their order.
    #[serde(skip)]
    rounds: Vec<f64>,
}

impl Row {
    /// None when there is no sample.
    pub(crate) fn new(forwarder: &'static str, load: Load, samples: &[Sample]) -> Option<Self> {
        let rates = sorted(samples.iter().map(|sample| sample.mpps));
        let losses = sorted(samples.iter().map(|sample| sample.loss));
        Some(Self {
            forwarder,
            frame_bytes: load.frame_bytes,
            relay_share: f64::from(load.relay_percent) / 100.0,
            queues: 1,
            mpps: rounded(median(&rates)?),
            min: rounded(*rates.first()?),
            max: rounded(*rates.last()?),
            loss: rounded(median(&losses)?),
            runs: samples.len(),
            rounds: samples.iter().map(|sample| sample.mpps).collect(),
        })
    }

    /// The median of the ratios within each round: what disturbs a round disturbs both.
    fn ratio_to(&self, other: &Self) -> Option<f64> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(&sorted(pairs.map(|(mine, its)| mine / its)))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// To four decimals: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// Prints the rows, each with its ratio to `nftables` with the same load.
pub(crate) fn print(rows: &[Row]) {
    println!();
    println!(
        "forwarder              bytes  relay share   Mpps  (min .. max)       loss   x nftables"
    );
    for row in rows {
        let against = rows
            .iter()
            .find(|other| other.forwarder == "nftables" && other.frame_bytes == row.frame_bytes);
        let ratio = against
            .and_then(|other| row.ratio_to(other))
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!(
            "{:<22} {:>5}  {:>11.2}  {:>5.3}  ({:.3} .. {:.3})  {:>6.2} %  {ratio:>10}",
            row.forwarder,
            row.frame_bytes,
            row.relay_share,
            row.mpps,
            row.min,
            row.max,
            row.loss * 100.0,
        );
    }
}

/// Writes both files and returns their directory.
pub(crate) fn write(rows: &[Row], machine: &Machine) -> Result<PathBuf, LabError> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    let directory = target.join("bench");
    let failed = |error| LabError(format!("cannot write to {}: {error}", directory.display()));
    fs::create_dir_all(&directory).map_err(failed)?;
    let pps = serde_json::to_string_pretty(rows).map_err(|error| failed(error.into()))?;
    let machine = serde_json::to_string_pretty(machine).map_err(|error| failed(error.into()))?;
    fs::write(directory.join("pps.json"), pps + "\n").map_err(failed)?;
    fs::write(directory.join("machine.json"), machine + "\n").map_err(failed)?;
    Ok(directory)
}
