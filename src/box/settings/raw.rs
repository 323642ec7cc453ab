//! The configuration as deserialized from the file, with its defaults and before any check.

use super::forms::{Hosts, NextHops, Sources, Tags, Wires};
use super::{Control, CpuLatencyLimit, Engine, Frags, LinkLoss, Pin, WhenStale, ZeroCopy};
use exitmark_policy::{AtUplink, ExitProtocols, Mode};
use exitmark_service::config::RawDscp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    pub(super) engine: Engine,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default)]
    pub(super) classify_by: ClassifyBy,
    pub(super) user: Option<String>,
    pub(super) ports: Option<Ports>,
    pub(super) wire: Option<Wires>,
    #[serde(default)]
    pub(super) tor: Tor,
    #[serde(default)]
    pub(super) host: Hosts,
    #[serde(default)]
    pub(super) mark: Mark,
    #[serde(default)]
    pub(super) steer: Steer,
    #[serde(default)]
    pub(super) uplink: Uplink,
    #[serde(default)]
    pub(super) tap: Tap,
    #[serde(default)]
    pub(super) relays: Relays,
    #[serde(default)]
    pub(super) datapath: Datapath,
    #[serde(default)]
    pub(super) pin: Pin,
    #[serde(default)]
    pub(super) control: Control,
    #[serde(default)]
    pub(super) metrics: Metrics,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ClassifyBy {
    #[default]
    RelaySet,
    HostMark,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ports {
    pub(super) host: String,
    pub(super) uplink: String,
    pub(super) incoming: Option<String>,
    pub(super) tap: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wire {
    /// `None` only until the defaults are set.
    pub(super) name: Option<String>,
    pub(super) host: String,
    pub(super) uplink: String,
    pub(super) incoming: Option<String>,
    pub(super) tap: Option<String>,
    /// `None` only until the defaults are set.
    pub(super) link_loss: Option<LinkLoss>,
}

impl Wire {
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tor {
    pub(super) users: Vec<User>,
    pub(super) cgroups: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "a user is a name such as \"debian-tor\", or a user ID"
)]
pub(super) enum User {
    Id(i64),
    Name(String),
}

/// A group of hosts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Host {
    /// `None` only until the names are checked.
    pub(super) name: Option<String>,
    pub(super) addresses: Vec<String>,
    pub(super) relay_addresses: Vec<String>,
    pub(super) listeners: Vec<Listener>,
    pub(super) resolvers: Resolvers,
    pub(super) exempt: Vec<String>,
    pub(super) mac: Option<String>,
    pub(super) vlan: Option<Tags>,
    pub(super) dscp: Option<RawDscp>,
    pub(super) tos: Option<i64>,
    pub(super) mark: HostMark,
    pub(super) steer: HostSteer,
    pub(super) uplink: Uplink,
}

impl Host {
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

/// The keys of [`Mark`] that a group has in place of the file's.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostMark {
    pub(super) dscp: Option<RawDscp>,
    pub(super) tos: Option<i64>,
    pub(super) protocols: Option<ExitProtocols>,
    pub(super) at_uplink: Option<AtUplink>,
}

/// The keys of [`Steer`] that a group has in place of the file's.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostSteer {
    pub(super) enabled: Option<bool>,
    pub(super) next_hop: Option<NextHops>,
    pub(super) vlan: Option<Tags>,
    pub(super) pcp: Option<i64>,
    pub(super) source: Option<Sources>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tap {
    pub(super) directions: Option<Directions>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Directions {
    Out,
    Both,
}

impl Directions {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Both => "both",
        }
    }
}

/// The network of the uplink, of a group or of all.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Uplink {
    pub(super) vlan: Option<Tags>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged, expecting = "\"any\", or a list of addresses and prefixes")]
pub(super) enum Resolvers {
    Word(String),
    Named(Vec<String>),
}

impl Default for Resolvers {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "a listener is a port such as 22, or \"address:port\""
)]
pub(super) enum Listener {
    Port(i64),
    Endpoint(String),
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Mark {
    pub(super) dscp: Option<RawDscp>,
    pub(super) tos: Option<i64>,
    pub(super) protocols: ExitProtocols,
    pub(super) at_uplink: AtUplink,
    pub(super) overwrite: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Steer {
    pub(super) enabled: bool,
    pub(super) next_hop: Option<NextHops>,
    pub(super) vlan: Option<Tags>,
    pub(super) pcp: Option<i64>,
    pub(super) on_unavailable: OnUnavailable,
    pub(super) source: Option<Sources>,
    pub(super) fwmark: Option<i64>,
    pub(super) interface: Option<String>,
}

impl Default for Steer {
    fn default() -> Self {
        Self {
            enabled: true,
            next_hop: None,
            vlan: None,
            pcp: None,
            on_unavailable: OnUnavailable::default(),
            source: None,
            fwmark: None,
            interface: None,
        }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnUnavailable {
    #[default]
    Uplink,
    Drop,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Relays {
    pub(super) consensus: Vec<PathBuf>,
    pub(super) certificates: Option<PathBuf>,
    pub(super) authorities: Option<Vec<String>>,
    pub(super) verify: bool,
    pub(super) extra: Vec<String>,
    pub(super) retain: String,
    pub(super) when_stale: WhenStale,
    pub(super) state: PathBuf,
    pub(super) user: String,
}

impl Default for Relays {
    fn default() -> Self {
        Self {
            consensus: Vec::new(),
            certificates: None,
            authorities: None,
            verify: true,
            extra: Vec::new(),
            retain: "28h".to_owned(),
            when_stale: WhenStale::default(),
            state: "/var/lib/exitmark/relays.state".into(),
            user: "nobody".to_owned(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Datapath {
    pub(super) ring: Option<i64>,
    pub(super) batch: Option<i64>,
    pub(super) spin: Option<i64>,
    pub(super) cpu_latency: CpuLatencyLimit,
    pub(super) zero_copy: ZeroCopy,
    pub(super) frags: Frags,
    pub(super) spill: bool,
    pub(super) inbound: Engine,
    pub(super) sample: i64,
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            ring: None,
            batch: None,
            spin: None,
            cpu_latency: CpuLatencyLimit::default(),
            zero_copy: ZeroCopy::default(),
            frags: Frags::default(),
            spill: true,
            inbound: Engine::default(),
            sample: 4096,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) listen: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9787".to_owned(),
        }
    }
}
