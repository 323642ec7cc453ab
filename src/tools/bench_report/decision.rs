//! Converts criterion's measurements of a decision to a result file: `decision.json`.

use exitmark_lab::results;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

const SETS: [&str; 2] = ["ring", "cold"];
/// The size limit of a file; criterion writes less for one kind.
const MOST_BYTES: u64 = 1 << 20;
/// The most time between the measurements of decisions and of rates.
const APART: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Serialize)]
struct Decision {
    kind: String,
    set: &'static str,
    ns: f64,
}

/// A file `estimates.json`; only the median is used.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    let after = one.duration_since(other);
    after.unwrap_or_else(|error| error.duration())
}

/// Reads criterion's directory and writes the medians to the results; writes no file if there are
/// none.
pub(crate) fn collect(criterion: &Path, directory: &Path) -> Result<(), String> {
    let rates = fs::metadata(directory.join("machine.json")).and_then(|file| file.modified());
    let mut decisions = Vec::new();
    for set in SETS {
        let group = criterion.join(format!("decision_{set}"));
        let failed = |error| format!("cannot read {}: {error}", group.display());
        let entries = match fs::read_dir(&group) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let kind = entry.map_err(failed)?;
            let path = kind.path().join("new/estimates.json");
            // The directory of criterion's own report has no such file.
            if !path.exists() {
                continue;
            }
            let broken = |what: String| {
                format!(
                    "{} {what}; remove it, or measure again: `cargo bench --bench decision`",
                    path.display()
                )
            };
            let unread = |error| broken(format!("cannot be read: {error}"));
            let file = File::open(&path).map_err(unread)?;
            let written = file.metadata().and_then(|file| file.modified());
            if let (Ok(rates), Ok(written)) = (&rates, written)
                && apart(*rates, written) > APART
            {
                let what = "was not written within a day of the rates' machine.json";
                return Err(broken(what.to_owned()));
            }
            let mut text = String::new();
            file.take(MOST_BYTES)
                .read_to_string(&mut text)
                .map_err(unread)?;
            let estimates: Estimates = serde_json::from_str(&text)
                .map_err(|error| broken(format!("is not what criterion writes: {error}")))?;
            decisions.push(Decision {
                kind: kind.file_name().to_string_lossy().into_owned(),
                set,
                ns: (estimates.median.point_estimate * 1e3).round() / 1e3,
            });
        }
    }
    if decisions.is_empty() {
        return Ok(());
    }
    decisions.sort_by(|one, other| (other.set, &one.kind).cmp(&(one.set, &other.kind)));
    results::write(&directory.join("decision.json"), &decisions).map_err(|error| error.0)
}
