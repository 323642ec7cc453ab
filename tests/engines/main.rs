//! Tier: root. The rule is written twice, in Rust and for the kernel: both engines must give
//! every frame the same verdict, the same bytes and the same counters.
//!
//! Frames go through the XDP program by BPF_PROG_RUN: it is attached nowhere, and nothing is
//! sent.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod bench_rule;
mod corpus;
mod filled;
mod inbound;
mod million;
mod plants;
mod rig;
mod sampled;
mod table;
