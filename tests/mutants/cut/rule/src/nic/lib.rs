//! The part of `src/nic` that the settings need.

#[path = "next_hop/configured.rs"]
mod configured;

pub use configured::{NextHop, NextHopError};

/// As in `src/nic/local_nic.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNic {
    pub name: String,
    pub alt_names: Vec<String>,
    pub mac: Option<exitmark_policy::packet::MacAddr>,
    pub networks: Vec<ipnet::IpNet>,
}

impl LocalNic {
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alt_names.iter().any(|alt| alt == name)
    }
}
