//! Tier: root. What the box makes of its NICs: the way out for steered frames, and what the doctor
//! finds.

mod doctor;
mod way;

/// Leaves the test where there is no root.
macro_rules! needs_root {
    () => {
        if !exitmark::lab::is_root() {
            return;
        }
    };
}
use needs_root;
