//! exitmark.

pub mod policy;
pub mod relays;
