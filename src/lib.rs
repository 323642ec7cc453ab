//! exitmark.

pub mod cli;
pub mod lab;
pub mod policy;
pub mod relays;
