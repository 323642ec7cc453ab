//! Tier: any machine. The report of a running box: as text, as metrics and live on a screen, and
//! the users of the metrics in dist/.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod dist;
mod metrics;
mod sample;
mod text;
mod top;
