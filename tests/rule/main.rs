//! Tier: any machine. The rules: the table of cases, and properties of arbitrary frames.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod answers;
mod host_mark;
mod oracle;
mod table;
