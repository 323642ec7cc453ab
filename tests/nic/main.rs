//! Tier: root. The box's NICs: the next hop of steered frames, and the findings of the doctor.

mod doctor;
mod way;

/// Skips the test without root.
macro_rules! needs_root {
    () => {
        if !exitmark_lab::is_root() {
            return;
        }
    };
}
use needs_root;
