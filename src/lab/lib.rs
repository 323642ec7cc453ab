//! The hosts of the demo, the tests and the benchmarks, as network namespaces on one machine.
//!
//! Namespaces here have no name in the file system. Each lives as long as the thread that holds it,
//! so that even a killed process leaves none behind. The lab runs `ip` and `ethtool`, and must
//! never change the namespace that it was started in.

#![forbid(unsafe_code)]

pub mod authorities;
pub mod bpf;
mod capture;
pub mod cases;
mod config;
pub mod consensus;
pub mod differential;
pub mod frames;
pub mod kernel;
#[cfg(target_arch = "x86_64")]
mod killed;
mod netdoc;
mod netns;
mod poll;
pub mod process;
mod publish;
mod random;
mod raw;
pub mod results;
mod running;
pub mod site;
pub mod tap;
mod tier;
mod wait;

pub use capture::{Capture, CapturedFrame};
pub use config::{Config, both_engines, uncommented, with_wires};
#[cfg(target_arch = "x86_64")]
pub use killed::{Ending, killed_at, steps};
pub use netns::{Child, LabError, Netns, Transmitted, VethEnd, contained, join, pin_to, veth};
pub use poll::{occupy, poll};
pub use publish::{CERTIFICATES, publish, replace};
pub use random::Random;
pub use raw::RawPort;
pub use running::{FinalState, RunningBox};
pub use tier::{is_installed, is_root};
pub use wait::{eventually, timeout, wait_until};
