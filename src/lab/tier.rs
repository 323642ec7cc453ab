//! Which tests this machine allows.

use super::Netns;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Once;

/// Whether network namespaces can be had, for tests of the tier *root*. Where they cannot, says
/// so once in a line with SKIPPED.
///
/// # Panics
/// Where `EXITMARK_REQUIRE_ROOT` is 1: on a machine that should have them a skip hides a fault.
pub fn is_root() -> bool {
    static SAID: Once = Once::new();
    let Err(error) = Netns::new("probe") else {
        return true;
    };
    assert!(!is_required(), "EXITMARK_REQUIRE_ROOT=1, but: {error}");
    // Not by a print macro: what a passing test prints is swallowed.
    SAID.call_once(|| {
        let _ = writeln!(std::io::stderr(), "SKIPPED (needs root): {error}");
    });
    false
}

/// Whether this program is installed, for tests that cannot do without. Where it is not, says so
/// in a line with SKIPPED.
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

/// Whether a skip would hide a fault.
fn is_required() -> bool {
    std::env::var_os("EXITMARK_REQUIRE_ROOT").is_some_and(|value| value == "1")
}
