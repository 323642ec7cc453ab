//! Tier: any machine. The rules: the tables of cases and of connections, and properties of arbitrary
//! frames.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

mod answers;
mod connections;
mod host_mark;
mod oracle;
mod table;
mod tap;
