//! Which tests this machine allows.

use super::Netns;
use std::io::Write;
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
    let required = std::env::var_os("EXITMARK_REQUIRE_ROOT").is_some_and(|value| value == "1");
    assert!(!required, "EXITMARK_REQUIRE_ROOT=1, but: {error}");
    // Not by a print macro: what a passing test prints is swallowed.
    SAID.call_once(|| {
        let _ = writeln!(std::io::stderr(), "SKIPPED (needs root): {error}");
    });
    false
}
