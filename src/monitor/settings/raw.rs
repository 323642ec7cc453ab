//! The configuration as written in the file, unchecked.

use exitmark_service::config::RawDscp;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) exit: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) addresses: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) tap: Tap,
    pub(super) mark: Mark,
    pub(super) places: Places,
    pub(super) period: Period,
    pub(super) publish: Publish,
    pub(super) noise: Noise,
    pub(super) memory: Memory,
    pub(super) metrics: Metrics,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tap {
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) directions: Option<String>,
    pub(super) unwrap: Vec<String>,
    pub(super) vxlan_port: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    pub(super) dscp: Option<RawDscp>,
    pub(super) tos: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Places {
    pub(super) countries: Option<PathBuf>,
    pub(super) systems: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Period {
    pub(super) length: Option<String>,
    pub(super) directory: Option<PathBuf>,
    pub(super) state: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Publish {
    pub(super) top: Option<i64>,
    pub(super) threshold_flows: Option<i64>,
    pub(super) bin_flows: Option<i64>,
    pub(super) bin_bytes: Option<i64>,
    pub(super) bin_packets: Option<i64>,
    pub(super) bin_down_bytes: Option<i64>,
    pub(super) bin_down_packets: Option<i64>,
    pub(super) cross: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Noise {
    pub(super) epsilon: Option<f64>,
    pub(super) flows: Option<i64>,
    pub(super) bytes: Option<i64>,
    pub(super) packets: Option<i64>,
    pub(super) down_bytes: Option<i64>,
    pub(super) down_packets: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    pub(super) cells: Option<i64>,
    pub(super) ring: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Option<String>,
}
