//! A laboratory of network namespaces: the hosts of the demo, of the tests and of the
//! benchmarks, on one machine and with nothing left behind.
//!
//! Namespaces here have no name in the file system. Each lives as long as the thread that
//! holds it, so that even a killed process leaves none. It drives `ip` and `ethtool` where an
//! operator would type them, and must never touch the namespace that it was started in.

pub mod authorities;
pub mod bpf;
mod capture;
pub mod cases;
pub mod consensus;
pub mod differential;
pub mod frames;
#[cfg(target_arch = "x86_64")]
mod killed;
mod netdoc;
mod netns;
mod poll;
mod publish;
mod random;
mod raw;
pub mod site;
mod tier;

pub use capture::{Capture, CapturedFrame};
#[cfg(target_arch = "x86_64")]
pub use killed::{Ending, killed_at, steps};
pub use netns::{Child, LabError, Netns, VethEnd, contained, veth};
pub use poll::{occupy, poll};
pub use publish::{CERTIFICATES, publish, replace};
pub use random::Random;
pub use raw::RawPort;
pub use tier::{is_installed, is_root};
