//! Statistics over rounds, and result files.

use exitmark_lab::{LabError, results};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The values of all rounds in order, at least one.
#[derive(Debug)]
pub(crate) struct Series {
    rounds: Vec<f64>,
    sorted: Vec<f64>,
}

impl Series {
    /// `None` without values.
    pub(crate) fn new(values: impl Iterator<Item = f64>) -> Option<Self> {
        let rounds: Vec<_> = values.collect();
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then_some(Self { rounds, sorted })
    }

    pub(crate) fn median(&self) -> f64 {
        let last = self.sorted.len() - 1;
        f64::midpoint(self.sorted[last / 2], self.sorted[last.div_ceil(2)])
    }

    pub(crate) fn min(&self) -> f64 {
        self.sorted[0]
    }

    pub(crate) fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    pub(crate) fn runs(&self) -> usize {
        self.rounds.len()
    }

    /// The median of the ratios within each round: a disturbance of a round affects both sides.
    pub(crate) fn ratio_to(&self, other: &Self) -> Option<f64> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        Self::new(pairs.map(|(mine, its)| mine / its)).map(|ratios| ratios.median())
    }
}

/// Serializes the values of all rounds in order.
impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rounds.iter().map(|&value| rounded(value)))
    }
}

pub(crate) fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Rounds a rate to four decimals.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// A count as a number; no run counts up to 2^32.
pub(crate) fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A failed measurement and its reason.
#[derive(Debug, Serialize)]
pub(crate) struct Missing {
    pub(crate) bench: &'static str,
    pub(crate) forwarder: String,
    pub(crate) reason: String,
}

/// Replaces a bench's entries in `missing.json`, its failed measurements.
pub(crate) fn note_missing(bench: &str, missing: &[Missing]) -> Result<(), LabError> {
    const NAME: &str = "missing.json";
    let before = fs::read(directory().join(NAME)).unwrap_or_default();
    // An invalid file is replaced.
    let mut all: Vec<Value> = serde_json::from_slice(&before).unwrap_or_default();
    all.retain(|one| one["bench"] != bench);
    all.extend(missing.iter().map(|one| json!(one)));
    write_rows(NAME, &all)
}

/// Writes rows into the directory of results, one a line.
pub(crate) fn write_rows(name: &str, rows: &[impl Serialize]) -> Result<(), LabError> {
    results::write(&directory().join(name), rows)
}

fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    target.join("bench")
}

/// Writes an object into the directory of results, and returns that directory.
pub(crate) fn write(name: &str, content: &impl Serialize) -> Result<PathBuf, LabError> {
    let directory = directory();
    let path = directory.join(name);
    let failed = |error| LabError(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(&directory).map_err(failed)?;
    let text = serde_json::to_string_pretty(content).map_err(|error| failed(error.into()))?;
    fs::write(&path, text + "\n").map_err(failed)?;
    Ok(directory)
}
