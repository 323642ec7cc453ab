//! Tier: any machine; tests of the kernel engine are skipped without root. Samples of both
//! engines, audited against the policy and captured for an operator.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

mod attack;
mod auditor;
mod capture;
mod forged;
mod hidden;
mod rig;
