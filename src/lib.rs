//! exitmark.

pub mod datapath;
pub mod lab;
pub mod nic;
pub mod packet;
pub mod policy;
pub mod relays;
pub mod settings;
