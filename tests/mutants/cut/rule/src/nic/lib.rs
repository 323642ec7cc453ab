//! The part of `src/nic` that the settings need.

#[path = "next_hop/configured.rs"]
mod configured;

pub use configured::{NextHop, NextHopError};

/// As in `src/nic/own.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub name: String,
    pub alt_names: Vec<String>,
    pub mac: Option<exitmark_policy::packet::MacAddr>,
    pub networks: Vec<ipnet::IpNet>,
}

impl Own {
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alt_names.iter().any(|alt| alt == name)
    }
}
