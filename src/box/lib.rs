//! The box, the program `exitmark`: marks Tor exit traffic with a DSCP value and steers relay traffic
//! to another NIC.
//!
//! - [`settings`] checks the configuration;
//! - `daemon` connects data path, relay set and NICs to a running box; [`cli`] is its command line;
//! - [`observe`] formats the reports of a running box, [`control`] serves them on a socket;
//! - [`audit`] audits samples of forwarded frames against the policy, and captures frames;
//! - `doctor` checks the machine, and names remedies;
//! - `explain` runs the data path over captured frames, and the rule over destinations;
//! - `machine` reads what engine connect depends on besides the configuration.

#![forbid(unsafe_code)]

pub mod audit;
pub mod cli;
pub mod control;
mod daemon;
mod doctor;
mod explain;
mod machine;
pub mod observe;
pub mod settings;
