//! Tier: any machine. The rule: the table of cases, and properties of every frame there can be.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod answers;
mod host_mark;
mod oracle;
mod table;
