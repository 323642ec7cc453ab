//! As in `src/lab/site.rs`: the table of cases names two MAC addresses of the demo.

pub const INCOMING_MAC: &str = "02:00:00:00:03:01";
pub const TORNET_MAC: &str = "02:00:00:00:03:02";
