//! The configuration: one TOML file, read once, checked whole, immutable ever after.
//!
//! Nothing here looks at the machine: whether a NIC exists is for others to find out. What is
//! wrong in the file itself is said with the key, the value, and what is accepted.

mod change;
mod check;
mod host;
mod objections;
mod raw;

use crate::config::{self, value};
use crate::nic::NextHop;
use crate::packet::{MacAddr, Version};
use crate::policy::{
    Actions, AtUplink, ClassifyBy, ExitProtocols, Intent, MAX_PREFIXES, Mode, PrefixSet, Rules,
    Steer,
};
use crate::relays::Sources;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use crate::config::ConfigError as SettingsError;
pub use change::Change;
pub use objections::Objection;

/// A checked configuration.
#[derive(Debug)]
pub struct Settings {
    /// Where ordinary frames are decided.
    pub engine: Engine,
    /// The NICs.
    pub ports: Ports,
    /// The rules that a verdict follows.
    pub rules: Arc<Rules>,
    /// The host's addresses of both kinds: what arrives for them on `incoming` is the host's.
    pub host_prefixes: Vec<IpNet>,
    /// The host's MAC address; learnt from its frames where it is not given.
    pub host_mac: Option<MacAddr>,
    /// Where relay endpoints come from, and for how long they are good.
    pub relays: RelaySettings,
    /// Sizes and ways of the packet path.
    pub datapath: Datapath,
    /// What outlives the process.
    pub pin: Pin,
    /// The user that the process becomes when it is started by root.
    pub user: Option<String>,
    /// How the running box is asked and told.
    pub control: Control,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// All keys with their values, those left out included, to tell one configuration from
    /// another.
    keys: toml::Table,
}

/// Where ordinary frames are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// In user space where every port is bound zero-copy, else in the kernel.
    Auto,
    /// In user space, as long as it keeps up.
    AfXdp,
    /// In the kernel.
    Xdp,
}

impl Engine {
    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::AfXdp => "af_xdp",
            Self::Xdp => "xdp",
        }
    }
}

/// Which NIC plays which role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Toward the Tor host.
    pub host: String,
    /// Toward the clearnet.
    pub uplink: String,
    /// Where relay traffic leaves, if it is steered.
    pub incoming: Option<Incoming>,
}

/// The way out for relay traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The NIC; may be the uplink's.
    pub interface: String,
    /// The router there.
    pub next_hop: NextHop,
    /// Relay traffic that cannot be steered is dropped; otherwise it leaves by the uplink.
    pub drops_unsteered: bool,
}

impl Incoming {
    /// Which relay frames the router there routes.
    fn routes(&self) -> Steer {
        match self.next_hop {
            NextHop::Mac(_) => Steer::Both,
            NextHop::Address(IpAddr::V4(_)) => Steer::Only(Version::V4),
            NextHop::Address(IpAddr::V6(_)) => Steer::Only(Version::V6),
        }
    }
}

/// How the running box is asked and told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The socket.
    pub socket: PathBuf,
    /// The group that may use it, besides the user of the process.
    pub group: Option<String>,
}

/// Where relay endpoints come from, and for how long they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySettings {
    /// Consensus documents, extras, and who is believed.
    pub sources: Sources,
    /// For how long who has left counts as a relay.
    pub retain: Duration,
    /// What becomes of the traffic when there is no consensus any more to go by.
    pub when_stale: WhenStale,
    /// Where the set is kept over a restart.
    pub state: PathBuf,
    /// The user as whom documents are read.
    pub user: String,
}

/// What becomes of the traffic when the relay set is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenStale {
    /// It is marked and steered by the last set that there was.
    Keep,
    /// All of it is forwarded, unmarked and unsteered.
    Pass,
}

/// What outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where in the BPF file system it is.
    pub directory: PathBuf,
    /// Whether the box goes on without the process when that is told to stop.
    pub on_stop: OnStop,
}

/// What becomes of the attachment when the process is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// The kernel goes on marking and steering.
    Keep,
    /// The NICs are what they were before.
    Detach,
}

/// Sizes and ways of the packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// Entries of each ring, a power of two, where it is given; see [`Datapath::rings`].
    pub ring: Option<u32>,
    /// Frames that are handled at a time, where it is given.
    pub batch: Option<u32>,
    /// Between frames that are less than this apart a worker does not sleep.
    pub spin: Duration,
    /// Whether the NIC's own buffers are used.
    pub zero_copy: ZeroCopy,
    /// Whether the XDP program is loaded for frames in several buffers.
    pub frags: Frags,
    /// Whether the kernel decides what workers cannot keep up with.
    pub spill: bool,
    /// Where frames for the host are forwarded.
    pub inbound: Inbound,
    /// One decision in so many is held against the policy, a power of two; 0 is none.
    pub sample: u32,
}

/// The size of the sockets' rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Entries of each ring, a power of two.
    pub ring: u32,
    /// Frames that are handled at a time, at most as many as a ring has entries.
    pub batch: u32,
}

impl Datapath {
    /// How large the rings are: as the configuration says, or for all frames of a port, or for
    /// those that the XDP program leaves to user space (fragments, IPv6 extension headers), which
    /// takes a quarter of the locked memory.
    pub fn rings(&self, serves_all: bool) -> RingSizes {
        let (ring, batch) = match serves_all {
            true => (2048, 256),
            false => (512, 64),
        };
        let ring = self.ring.unwrap_or(ring);
        let batch = self.batch.unwrap_or_else(|| ring.min(batch));
        RingSizes { ring, batch }
    }
}

/// Whether the XDP program is loaded for frames in several buffers (XDP multi-buffer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frags {
    /// Where the MTU or a veth pair needs it.
    Auto,
    /// Always.
    On,
    /// Never: a port whose MTU needs it is refused.
    Off,
}

/// Where frames for the host are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// In the kernel, unless user space gets them without a copy.
    Auto,
    /// In user space.
    AfXdp,
    /// In the kernel.
    Xdp,
}

/// Whether packet memory is shared with the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where every port can.
    Auto,
    /// Or not at all.
    Require,
    /// Never.
    Off,
}

impl Settings {
    /// Reads and checks a file. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// What is wrong with the file, by key.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = config::read(path, "exitmark.example.toml")?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")))
    }

    /// What it comes to, in a few words.
    pub fn summary(&self) -> String {
        let ports = &self.ports;
        let steering = match &ports.incoming {
            Some(incoming) => format!(
                "relay traffic by {} to {}",
                incoming.interface, incoming.next_hop
            ),
            None => "relay traffic is not steered".to_owned(),
        };
        let actions = &self.rules.actions;
        format!(
            "mode {}, {} and {} are a wire, {steering}, mark {}",
            actions.mode().name(),
            ports.host,
            ports.uplink,
            actions.mark()
        )
    }

    /// Whether the relay set tells exit traffic from relay traffic.
    pub fn decides_by_relays(&self) -> bool {
        self.rules.classify_by == ClassifyBy::RelaySet
    }

    /// Whether frames are judged by the relay set: the host's clearnet addresses carry traffic of
    /// both kinds.
    fn needs_relays(&self) -> bool {
        self.decides_by_relays() && !self.rules.addresses.is_empty()
    }

    /// Checks a configuration's text. `base` is what relative paths in it start from.
    ///
    /// # Errors
    /// What is wrong with it, by key.
    pub fn parse(text: &str, base: &Path) -> Result<Self, SettingsError> {
        let raw: raw::Raw = toml::from_str(text)?;
        let keys = change::keys(&raw);
        let ports = check::ports(&raw.ports, &raw.steer)?;
        let relays = check::relays(raw.relays, base)?;
        let addresses = check::prefixes("host.addresses", &raw.host.addresses)?;
        let relay_addresses = check::prefixes("host.relay_addresses", &raw.host.relay_addresses)?;
        host::addresses(&addresses, &relay_addresses)?;
        let host_prefixes: Vec<_> = addresses.iter().chain(&relay_addresses).copied().collect();
        let host_mac = raw.host.mac.as_deref();
        let host_mac = host_mac.map(|text| config::parsed("host.mac", text));
        let host_mac = host_mac.transpose()?;
        host::leads_away(ports.incoming.as_ref(), &host_prefixes, host_mac)?;
        let classify_by = check::classify_by(&raw.classify_by, &raw.host)?;
        let needs_relays = classify_by == ClassifyBy::RelaySet && !addresses.is_empty();
        let sources = &relays.sources;
        if needs_relays && sources.files.is_empty() && sources.extra.is_empty() {
            return Err(value(
                "relays.consensus",
                "[]",
                "without a relay set every connection to a relay would be marked as exit traffic; \
                 name tor's cached-microdesc-consensus or cached-consensus here",
            ));
        }
        let rules = Rules {
            classify_by,
            addresses: PrefixSet::new(addresses.iter().copied()),
            relay_addresses: PrefixSet::new(relay_addresses.iter().copied()),
            listeners: host::listeners(&raw.host.listeners, &host_prefixes)?,
            resolvers: PrefixSet::new(host::resolvers(&raw.host.resolvers, &host_prefixes)?),
            exempt: PrefixSet::new(check::at_most(
                MAX_PREFIXES,
                "host.exempt",
                host::exempt(&raw.host.exempt)?,
            )?),
            exit_protocols: match raw.mark.protocols {
                raw::Protocols::Tcp => ExitProtocols::Tcp,
                raw::Protocols::TcpUdp => ExitProtocols::TcpUdp,
                raw::Protocols::All => ExitProtocols::All,
            },
            actions: Actions::new(Intent {
                mode: match raw.mode {
                    raw::Mode::Enforce => Mode::Enforce,
                    raw::Mode::Audit => Mode::Audit,
                },
                mark: check::mark(&raw.mark)?,
                at_uplink: match raw.mark.at_uplink {
                    raw::AtUplink::Keep => AtUplink::Keep,
                    raw::AtUplink::Strip => AtUplink::Strip,
                },
                steer: ports.incoming.as_ref().map_or(Steer::Off, Incoming::routes),
            }),
        };
        let pin = check::pin(raw.pin)?;
        let control = check::control(raw.control)?;
        check::places(&relays.state, &control, &pin)?;
        Ok(Self {
            engine: match raw.engine {
                raw::Engine::Auto => Engine::Auto,
                raw::Engine::AfXdp => Engine::AfXdp,
                raw::Engine::Xdp => Engine::Xdp,
            },
            ports,
            rules: Arc::new(rules),
            host_prefixes,
            host_mac,
            relays,
            datapath: check::datapath(&raw.datapath)?,
            pin,
            user: config::user(raw.user)?,
            control,
            metrics: config::metrics(&raw.metrics.listen, "127.0.0.1:9787")?,
            keys,
        })
    }
}
