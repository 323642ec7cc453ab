//! Tier: root. The rules are implemented twice, in Rust and in BPF: both engines must give every
//! frame the same verdict, the same bytes and the same counters.
//!
//! The XDP program runs by BPF_PROG_RUN: it is not attached, and nothing is sent.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod bench_rule;
mod chain;
mod corpus;
mod filled;
mod hosts;
mod inbound;
mod million;
mod plain;
mod plants;
mod rig;
mod sampled;
mod send_only;
mod table;
mod tap;
