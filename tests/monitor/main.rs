//! Tiers: any machine, and root. The monitor: what it counts, keeps, publishes and shows.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod command;
mod count;
mod files;
mod live;
mod mirrored;
#[path = "../wire/needles.rs"]
mod needles;
mod pages;
mod places;
mod published;
mod recovery;
mod settings;
mod tapped;

use std::fmt::Display;

/// Checks that a message has these words.
#[track_caller]
fn says(message: &dyn Display, words: &str) {
    let message = message.to_string();
    assert!(message.contains(words), "{words:?} is not in: {message}");
}
