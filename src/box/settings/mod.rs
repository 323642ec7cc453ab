//! The configuration: one TOML file, read once, checked as a whole, then immutable.
//!
//! This module does not access the machine: whether a NIC exists is checked elsewhere. An error in
//! the file names the key, the value, and the accepted values.

mod change;
mod check;
mod host;
mod objections;
mod raw;

use exitmark_nic::NextHop;
use exitmark_policy::packet::{MacAddr, Version};
use exitmark_policy::{
    Actions, ClassifyBy, Intent, MAX_PREFIXES, PrefixSet, Rules, SocketRules, Steer,
};
use exitmark_relays::Sources;
use exitmark_service::config::{self, value};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use change::Change;
pub use exitmark_service::config::ConfigError as SettingsError;
pub use objections::Objection;

/// A checked configuration: every value is in its range, and no two contradict each other.
#[derive(Debug)]
pub struct Settings {
    /// The engine that decides fast-path frames.
    pub engine: Engine,
    /// The NIC names of the roles; whether the NICs exist is not checked.
    pub ports: Ports,
    /// The rules for verdicts, from `classify_by`, `mode`, `[host]`, `[mark]` and `[steer]`.
    pub rules: Arc<Rules>,
    /// `host.addresses` and `host.relay_addresses`: packets to these on `incoming` go to the host.
    pub host_prefixes: Vec<IpNet>,
    /// The host's MAC address; if `None`, it is learned from the host's frames.
    pub host_mac: Option<MacAddr>,
    /// The sources of relay endpoints, and their lifetime.
    pub relays: RelaySettings,
    /// Sizes and modes of the data path.
    pub datapath: Datapath,
    /// The pinned state that outlives the process.
    pub pin: Pin,
    /// The user that a process started by root becomes.
    pub user: Option<String>,
    /// The control socket, which serves every command of a running box.
    pub control: Control,
    /// The loopback address on which metrics are served, if any.
    pub metrics: Option<SocketAddr>,
    /// All keys with their values, including defaults, to compare two configurations.
    keys: toml::Table,
}

/// The engine that decides fast-path frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `AfXdp` if every port is bound zero-copy, otherwise `Xdp`.
    #[default]
    Auto,
    /// Workers in user space; the kernel takes over what they cannot keep up with.
    AfXdp,
    /// The XDP program in the kernel.
    Xdp,
}

impl Engine {
    /// The engine's name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::AfXdp => "af_xdp",
            Self::Xdp => "xdp",
        }
    }
}

/// The NIC of each role, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The name of the NIC toward the Tor host.
    pub host: String,
    /// The name of the NIC toward the clearnet.
    pub uplink: String,
    /// The egress of relay traffic, if it is steered.
    pub incoming: Option<Incoming>,
}

/// The egress of steered relay traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The NIC's name; may be the uplink's.
    pub interface: String,
    /// The router on that network.
    pub next_hop: NextHop,
    /// Drop relay traffic that cannot be steered; otherwise it leaves by the uplink.
    pub drops_unsteered: bool,
}

impl Incoming {
    /// What happens to relay traffic that cannot be steered, as the end of a sentence.
    pub(crate) const fn consequence(&self) -> &'static str {
        match self.drops_unsteered {
            true => "is dropped",
            false => "leaves by the uplink, unmarked",
        }
    }

    /// The IP versions of relay frames that the next hop routes.
    fn routes(&self) -> Steer {
        match self.next_hop {
            NextHop::Mac(_) => Steer::Both,
            NextHop::Address(IpAddr::V4(_)) => Steer::Only(Version::V4),
            NextHop::Address(IpAddr::V6(_)) => Steer::Only(Version::V6),
        }
    }
}

/// The control socket's path and group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The absolute path of the socket.
    pub socket: PathBuf,
    /// The group that may use it, besides the user of the process.
    pub group: Option<String>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: "/run/exitmark/control.sock".into(),
            group: None,
        }
    }
}

/// The sources of relay endpoints, and their lifetime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySettings {
    /// Consensus documents, extra endpoints, and trusted authorities.
    pub sources: Sources,
    /// How long an endpoint that is not listed any more still counts as a relay, at most 30 days.
    pub retain: Duration,
    /// The treatment of traffic when the set is stale.
    pub when_stale: WhenStale,
    /// The state file, which keeps the set over a restart.
    pub state: PathBuf,
    /// The user that reads the documents.
    pub user: String,
}

/// The treatment of traffic when the relay set is stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenStale {
    /// Mark and steer by the stale set.
    Keep,
    /// Forward everything, unmarked and unsteered.
    #[default]
    Pass,
}

/// The pinned state that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pin {
    /// The absolute path of the pin directory, in a BPF file system.
    pub directory: PathBuf,
    /// What happens to the attachment when the process stops.
    pub on_stop: OnStop,
}

impl Default for Pin {
    fn default() -> Self {
        Self {
            directory: "/sys/fs/bpf/exitmark".into(),
            on_stop: OnStop::default(),
        }
    }
}

/// What happens to the attachment when the process stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStop {
    /// The programs stay attached and go on marking and steering.
    #[default]
    Keep,
    /// The programs are detached and the NIC settings restored.
    Detach,
}

/// Sizes and modes of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// Entries of each ring: a power of two, 64 to 32,768. For the default see [`Datapath::rings`].
    pub ring: Option<u32>,
    /// Frames per batch, 1 to 256. For the default see [`Datapath::rings`].
    pub batch: Option<u32>,
    /// How long an idle worker polls before it sleeps, at most 1,000 µs.
    pub spin: Duration,
    /// Whether the sockets are bound zero-copy.
    pub zero_copy: ZeroCopy,
    /// Whether the XDP program is loaded for multi-buffer frames.
    pub frags: Frags,
    /// Whether the kernel takes over what workers cannot keep up with.
    pub spill: bool,
    /// The engine for frames to the host. `Auto` is `AfXdp` if that is the engine and the sockets
    /// are zero-copy, otherwise `Xdp`; `AfXdp` is also used without zero-copy.
    pub inbound: Engine,
    /// One decision in this many is audited: a power of two up to 65,536; 0 turns the audit off.
    pub sample: u32,
}

/// The sizes of the sockets' rings and of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Entries of each ring, a power of two.
    pub ring: u32,
    /// Frames per batch, at most `ring`.
    pub batch: u32,
}

impl Datapath {
    /// The configured sizes; by default large ones if all frames of a port go through the sockets
    /// (`serves_all`), otherwise a quarter of the memory, for the frames that the XDP program
    /// leaves to user space (fragments, IPv6 extension headers).
    pub fn rings(&self, serves_all: bool) -> RingSizes {
        let (ring, batch) = if serves_all { (2048, 256) } else { (512, 64) };
        let ring = self.ring.unwrap_or(ring);
        let batch = self.batch.unwrap_or_else(|| ring.min(batch));
        RingSizes { ring, batch }
    }
}

/// Whether the XDP program is loaded for multi-buffer frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Frags {
    /// If the MTU or a veth pair needs it.
    #[default]
    Auto,
    /// Always, also if every MTU fits a single buffer.
    On,
    /// Never: a port whose MTU needs it is refused.
    Off,
}

/// Whether the sockets are bound zero-copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ZeroCopy {
    /// If every port supports it and can redirect such frames; otherwise copy mode.
    Auto,
    /// Always; otherwise the start fails.
    Require,
    /// Never: copy mode, which every driver supports. The default.
    #[default]
    Off,
}

impl Settings {
    /// Reads and checks a file. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// [`SettingsError::Read`] if the file cannot be read or is not UTF-8; otherwise as
    /// [`Settings::parse`].
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = config::read(path, "exitmark.example.toml")?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")))
    }

    /// A one-line summary: mode, NICs, steering, mark. Contains no address of the host.
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

    /// Whether exit and relay traffic are classified by the relay set.
    pub fn decides_by_relays(&self) -> bool {
        self.rules.classify_by == ClassifyBy::RelaySet
    }

    /// Whether some frames are classified by the relay set: those from `host.addresses`, which
    /// carry both exit and relay traffic.
    fn needs_relays(&self) -> bool {
        self.decides_by_relays() && !self.rules.addresses.is_empty()
    }

    /// Checks a configuration's text, without accessing the machine: neither a NIC nor a file that
    /// it names need exist. Relative paths in it are relative to `base`. Durations are text such as
    /// `"28h"`, except `datapath.spin`, which is in microseconds.
    ///
    /// # Errors
    /// [`SettingsError::Syntax`] if the text is not TOML, lacks a key, or has an unknown one or a
    /// value of another type. [`SettingsError::Value`] for the first key whose value is out of
    /// range or contradicts another key; the message has the key, the value and the accepted
    /// values.
    ///
    /// # Examples
    /// ```
    /// use exitmark_box::settings::Settings;
    /// use std::path::Path;
    ///
    /// let text = r#"
    ///     [ports]
    ///     host = "eth0"
    ///     uplink = "eth1"
    ///     [host]
    ///     addresses = ["192.0.2.10"]
    ///     [mark]
    ///     dscp = "af11"
    ///     [relays]
    ///     consensus = ["/var/lib/tor/cached-microdesc-consensus"]
    /// "#;
    /// let settings = Settings::parse(text, Path::new("/etc/exitmark"))?;
    /// assert_eq!(settings.ports.uplink, "eth1");
    /// assert!(settings.rules.is_host("192.0.2.10".parse().unwrap()));
    ///
    /// // A DSCP has six bits.
    /// let error = Settings::parse(&text.replace("\"af11\"", "64"), Path::new("")).unwrap_err();
    /// assert!(error.to_string().starts_with("mark.dscp = 64: "));
    /// # Ok::<(), exitmark_box::settings::SettingsError>(())
    /// ```
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
            exit_protocols: raw.mark.protocols,
            actions: Actions::new(Intent {
                mode: raw.mode,
                mark: check::mark(&raw.mark)?,
                at_uplink: raw.mark.at_uplink,
                steer: ports.incoming.as_ref().map_or(Steer::Off, Incoming::routes),
            }),
            sockets: SocketRules::default(),
        };
        check::pin(&raw.pin)?;
        check::control(&raw.control)?;
        check::places(&relays.state, &raw.control, &raw.pin)?;
        Ok(Self {
            engine: raw.engine,
            ports,
            rules: Arc::new(rules),
            host_prefixes,
            host_mac,
            relays,
            datapath: check::datapath(&raw.datapath)?,
            pin: raw.pin,
            user: config::user(raw.user)?,
            control: raw.control,
            metrics: config::metrics(&raw.metrics.listen, "127.0.0.1:9787")?,
            keys,
        })
    }
}
