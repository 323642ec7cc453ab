//! Tier: root. Engine connect with the real binary: TCP connections of users of their own, out of a
//! Tor host's namespace.
//!
//! ```text
//!  tor host ── eth0 ─────────────────── eth0 ── world
//!  192.0.2.10, 203.0.113.10                     192.0.2.1, 198.51.100.7, 198.18.0.1, 198.18.9.1
//!  2001:db8:1::10, 2001:db8:3::10               2001:db8:1::1, 2001:db8:51::7, 2001:db8:18::1,
//!                                               2001:db8:18:1::1
//! ```
//!
//! The programs are attached at the root of the cgroups, and tell the tests' connections by the
//! user, of which each test has its own.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod changes;
mod client;
mod commands;
mod differential;
mod life;
mod marks;
mod rig;
mod table;
