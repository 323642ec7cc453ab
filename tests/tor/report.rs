//! The results of a run, and their file.

use serde::Serialize;
use std::path::{Path, PathBuf};

/// One line of `tor.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The configuration of tor's source addresses.
    pub(crate) binding: &'static str,
    /// Exit connections by tor's count.
    pub(crate) tor_exit: u64,
    /// Flows that left by the uplink, marked.
    pub(crate) marked: u64,
    /// Connections to relays and directories by tor's count.
    pub(crate) tor_or_dir: u64,
    /// Flows that left by the network that carries Tor traffic.
    pub(crate) steered: u64,
    /// Queries to the resolver on the uplink, unmarked.
    pub(crate) resolver: u64,
    /// Frames on the network that carries Tor traffic, marked.
    pub(crate) mismarked_incoming: u64,
    /// TCP frames on the uplink that are neither marked nor an answer of the relay.
    pub(crate) unmarked_exit: u64,
    /// Pages that arrived complete.
    pub(crate) pages_ok: u64,
    pub(crate) pages: u64,
}

/// Writes all rows to `tor.json` in the target directory.
pub(crate) fn write(rows: &[Row]) -> PathBuf {
    // Cargo creates this directory in the target directory.
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = scratch.parent().unwrap_or(scratch).join("tor.json");
    std::fs::write(&path, serde_json::to_string_pretty(rows).unwrap() + "\n").unwrap();
    path
}
