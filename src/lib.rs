//! exitmark.

pub mod datapath;
pub mod lab;
pub mod packet;
pub mod policy;
pub mod relays;
