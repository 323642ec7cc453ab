//! What a run has shown, and the file that says so.

use exitmark::lab::LabError;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One line of `survive.json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) event: &'static str,
    pub(crate) engine: &'static str,
    pub(crate) load: &'static str,
    /// Frames a second that were sent.
    pub(crate) rate_pps: u64,
    /// Frames that a NIC took.
    pub(crate) sent: u64,
    /// Of these, those that never arrived.
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) mismarked: u64,
    pub(crate) missteered: u64,
    /// Arrived, but of no flow.
    pub(crate) garbled: u64,
    /// Of the lost, those on their way to the host.
    pub(crate) lost_inbound: u64,
    /// Of the lost, those sent when every flow had arrived again.
    pub(crate) lost_after: Option<u64>,
    /// From the sending of the first lost frame to that of the last one.
    pub(crate) outage_ms: Option<u64>,
    /// The same of the longest time of which the lost frames follow each other by less than 50 ms.
    pub(crate) longest_outage_ms: Option<u64>,
    /// The most that were lost in such a time.
    pub(crate) most_lost_at_once: Option<u64>,
    /// Of the lost, those that found the cable before the box full: the load's own fault.
    pub(crate) dropped_before_box: u64,
    /// Of the lost, those that found the cables behind the box full or down.
    pub(crate) dropped_behind_box: u64,
    /// Of the lost, those that the box says it dropped; of the one that was there at the end.
    pub(crate) dropped_in_box: Option<u64>,
    /// Flows of which nothing arrived that was sent well after the event.
    pub(crate) silent_flows: u64,
    /// How many frames may be lost, where that is bounded; at saturation, beside those that found a
    /// cable full.
    pub(crate) allowed: Option<u64>,
    /// Whether everything was as expected.
    pub(crate) holds: bool,
    /// Why the run could not be made.
    pub(crate) error: Option<String>,
}

impl Row {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let outage = self.longest_outage_ms.map(|ms| format!(", outage {ms} ms"));
        format!(
            "{:21} {:7} {:10} {:>8} pps: sent {}, lost {} (before box {}, in {}, behind {}), duplicated {}, \
             reordered {}, mismarked {}, missteered {}{}",
            self.event,
            self.engine,
            self.load,
            self.rate_pps,
            self.sent,
            self.lost,
            self.dropped_before_box,
            self.dropped_in_box.unwrap_or(0),
            self.dropped_behind_box,
            self.duplicated,
            self.reordered,
            self.mismarked,
            self.missteered,
            outage.unwrap_or_default(),
        )
    }
}

/// Writes all rows to `survive.json` in the target directory.
pub(crate) fn write(rows: &[Row]) -> Result<PathBuf, LabError> {
    // Cargo makes this directory in the target directory, wherever that is.
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = scratch.parent().unwrap_or(scratch).join("survive.json");
    let text = serde_json::to_string_pretty(rows)
        .map_err(|error| LabError(format!("cannot write rows: {error}")))?;
    std::fs::write(&path, text + "\n")
        .map_err(|error| LabError(format!("cannot write {}: {error}", path.display())))?;
    Ok(path)
}
