//! exitmark.

pub mod packet;
pub mod policy;
pub mod relays;
