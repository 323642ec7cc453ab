//! Tier: any machine. What a running box tells of itself: as text, as metrics, on a screen, and
//! what is made of the metrics in dist/.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod dist;
mod metrics;
mod sample;
mod text;
mod top;
