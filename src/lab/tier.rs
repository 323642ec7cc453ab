//! Detects which tests can run on this machine.

use super::Netns;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Once;

/// Whether network namespaces can be created, for tests of the tier *root*. If not, prints one line
/// with SKIPPED.
///
/// # Panics
/// If `EXITMARK_REQUIRE_ROOT` is 1, instead of skipping.
pub fn is_root() -> bool {
    static SAID: Once = Once::new();
    let Err(error) = Netns::new("probe") else {
        return true;
    };
    assert!(!is_required(), "EXITMARK_REQUIRE_ROOT=1, but: {error}");
    // Not by a print macro: the test harness captures the output of passing tests.
    SAID.call_once(|| {
        let _ = writeln!(std::io::stderr(), "SKIPPED (needs root): {error}");
    });
    false
}

/// Returns from a test of the tier *root* without root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::is_root() {
            return;
        }
    };
}

/// Whether this program is installed, for tests that require it. If not, prints a line with
/// SKIPPED.
///
/// # Panics
/// As [`is_root`].
pub fn is_installed(program: &str) -> bool {
    let started = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let Err(error) = started else {
        return true;
    };
    let missing = format!("{program} cannot be started: {error}; `make setup` installs it");
    assert!(!is_required(), "EXITMARK_REQUIRE_ROOT=1, but {missing}");
    let _ = writeln!(std::io::stderr(), "SKIPPED (needs {program}): {missing}");
    false
}

/// Whether tests must fail instead of being skipped.
fn is_required() -> bool {
    std::env::var_os("EXITMARK_REQUIRE_ROOT").is_some_and(|value| value == "1")
}
