//! The time that a forwarder's processes spend on cores, the kernel's work on their behalf included.

use crate::common::results::number;
use exitmark_lab::LabError;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The core time so far of all child processes, in nanoseconds. The scheduler's own count is exact,
/// while ticks miss what ends before the next one.
pub(super) fn of_children() -> Result<u64, LabError> {
    let own = std::process::id().to_string();
    let failed = |error| LabError(format!("cannot read the core time of processes: {error}"));
    let mut sum = 0;
    for process in fs::read_dir("/proc").map_err(failed)?.flatten() {
        let path = process.path();
        if parent(&path).is_some_and(|parent| parent == own) {
            // A process may end meanwhile.
            sum += threads(&path).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// The fraction of a core that took this many nanoseconds of the time.
pub(super) fn fraction(nanoseconds: u64, of: Duration) -> f64 {
    number(nanoseconds / 1000) / 1e6 / of.as_secs_f64()
}

/// The fourth field of `stat`. The second one, in parentheses, may contain anything.
fn parent(process: &Path) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1).map(str::to_owned)
}

fn threads(process: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(process.join("task"))?.flatten() {
        let times = fs::read_to_string(thread.path().join("schedstat"))?;
        let on_core = times.split_whitespace().next();
        sum += on_core.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}
