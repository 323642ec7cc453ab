//! The only wiring of the monitor: where packets come from, when the clock is asked, what is told
//! to whom, and what the process gives up.

mod metrics;

use super::settings::Settings;
use std::path::PathBuf;

/// Where packets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The NIC at a tap.
    Interface(String),
    /// Captured files.
    Files(Vec<PathBuf>),
}

/// (to be written)
///
/// # Errors
/// (to be written)
pub fn run(_: &Settings, _: &Source) -> Result<Option<String>, String> {
    Err("to be written".to_owned())
}
