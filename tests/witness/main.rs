//! Tier: any machine; what needs the kernel's engine is skipped without root. Samples of both
//! engines, held against the policy and shown to an operator.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod attack;
mod audit;
mod capture;
mod forged;
mod hidden;
mod rig;
