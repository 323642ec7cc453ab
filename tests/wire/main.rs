//! Tier: root. The real binary between real kernels, on veth pairs in namespaces.
//!
//! ```text
//!  host ── eth0 ─── host0 ┌─────┐ uplink0 ─── eth0 ── clearnet
//!  192.0.2.10             │ box │                     192.0.2.1, 198.51.100.7
//!                         └─────┘ incoming0 ─ eth0 ── tornet
//!                                 203.0.113.2         203.0.113.1, 198.18.0.1
//! ```
//!
//! Every test has four namespaces and a box of its own, so all of them may run in parallel. A test
//! of raw frames silences the three ends first: then every captured frame was sent by the test, and
//! captures and counters are compared completely.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod agreement;
mod audit;
mod blind;
mod bundles;
mod craft;
mod doubtful;
mod dumps;
mod endurance;
mod frames;
mod guarded;
mod incoming;
mod instances;
#[cfg(target_arch = "x86_64")]
mod killed;
mod leaks;
mod marked;
mod needles;
mod plain_wire;
mod ports;
mod private;
mod privileges;
mod rack;
mod refusals;
mod reload;
mod resolver;
mod rig;
mod service;
mod several;
mod sites;
mod stacks;
mod steering;
mod swapped;
mod takeover;
mod tap;
mod translated;
mod trunk;
mod unnamed;
mod unrouted;
mod wires;
mod without_relays;
mod wrong_turns;
