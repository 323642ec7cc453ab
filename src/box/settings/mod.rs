//! The configuration: one TOML file, read once, checked as a whole, then immutable.
//!
//! This module does not access the machine: whether a NIC exists is checked elsewhere. An error in
//! the file names the key, the value, and the accepted values.

mod change;
mod check;
mod effective;
mod engine;
mod forms;
mod groups;
mod host;
mod objections;
mod raw;
mod source;
mod steer;
mod tap;
mod tor;
mod wires;

use exitmark_nic::NextHop;
use exitmark_policy::packet::VlanTags;
use exitmark_policy::{ClassifyBy, Group, Rules, SocketRules};
use exitmark_relays::Sources;
use exitmark_service::config::{self, value};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use groups::Groups;
use steer::Steering;

pub use change::Change;
pub use engine::Engine;
pub use exitmark_service::config::ConfigError as SettingsError;
pub use objections::{Objection, UNROUTED_FAMILY};
pub use tor::{TorHost, UserPattern};
pub use wires::{LinkLoss, MAX_WIRES, Wire};

/// A checked configuration: every value is in its range, and no two contradict each other.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The engine that decides.
    pub engine: Engine,
    /// The NIC names of the roles of the first wire; whether the NICs exist is not checked. `None`
    /// exactly with [`Engine::Connect`]. For the other wires see [`Settings::of_wire`].
    pub ports: Option<Ports>,
    /// The wires, at most [`MAX_WIRES`]; empty exactly with [`Engine::Connect`]. All have an
    /// `incoming` or none has, and all have the same next hops.
    pub wires: Vec<Wire>,
    /// Whose connections are judged; `Some` exactly with [`Engine::Connect`].
    pub tor: Option<TorHost>,
    /// The rules for verdicts, from `classify_by`, `mode`, `[host]`, `[mark]` and `[steer]`, with at
    /// least one group; exactly one, `tor`, with [`Engine::Connect`]. In [`Rules::sockets`] the
    /// index of [`TorHost::interface`] is missing (0).
    pub rules: Arc<Rules>,
    /// `host.addresses` and `host.relay_addresses` of all groups: packets to these on `incoming` go
    /// to the hosts. Empty with [`Engine::Connect`].
    pub host_prefixes: Vec<IpNet>,
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
    /// The groups as in the file.
    hosts: forms::Hosts,
    /// `steer.enabled`.
    steers: bool,
    /// The key of each of [`Incoming::next_hops`].
    hop_keys: Vec<steer::HopKey>,
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
    /// The name of the NIC that gets copies of the exit packets, if there is one.
    pub tap: Option<String>,
}

impl Ports {
    fn summary(&self) -> String {
        let steering = match &self.incoming {
            Some(incoming) => format!(
                "relay traffic by {} to {}",
                incoming.interface,
                incoming.summary()
            ),
            None => "relay traffic is not steered".to_owned(),
        };
        let (host, uplink) = (&self.host, &self.uplink);
        let copies = tap::summary(self.tap.as_deref());
        format!("{host} and {uplink} are a wire, {steering}{copies}")
    }
}

/// The egress of steered relay traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The NIC's name; may be the uplink's.
    pub interface: String,
    /// The routers on that network, by their numbers in
    /// [`SteeredPath::next_hops`](exitmark_policy::SteeredPath::next_hops). All are different, and
    /// each is of some group; empty if no group is steered.
    pub next_hops: Vec<Hop>,
    /// Drop relay traffic that cannot be steered; otherwise it leaves by the uplink.
    pub drops_unsteered: bool,
}

/// A router, and the VLAN in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The router.
    pub next_hop: NextHop,
    /// The tags of frames to it.
    pub vlan: VlanTags,
}

impl fmt::Display for Hop {
    /// Such as `203.0.113.1` or `203.0.113.1 (VLAN 30)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vlan {
            VlanTags::UNTAGGED => self.next_hop.fmt(f),
            vlan => write!(f, "{} ({vlan})", self.next_hop),
        }
    }
}

impl Incoming {
    /// What happens to relay traffic that cannot be steered, as the end of a sentence.
    pub(crate) const fn consequence(&self) -> &'static str {
        match self.drops_unsteered {
            true => "is dropped",
            false => "leaves by the uplink, unmarked",
        }
    }

    fn summary(&self) -> String {
        match self.next_hops.as_slice() {
            [] => "no next hop".to_owned(),
            [one] => one.to_string(),
            [one, other] => format!("{one} and {other}"),
            all => format!("{} next hops", all.len()),
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
    /// How long an idle worker polls before it sleeps, at most 1,000 µs. By default as long as a
    /// wake-up takes.
    pub spin: Option<Duration>,
    /// Whether wake-ups of workers are made fast while frames arrive often.
    pub cpu_latency: CpuLatencyLimit,
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

/// Whether cores are kept out of idle states that take long to leave, while frames arrive often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuLatencyLimit {
    /// If the kernel has idle states to choose from, and permits it.
    #[default]
    Auto,
    /// Never.
    Off,
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

    /// The egress of steered relay traffic of the first wire, if it is steered.
    pub fn incoming(&self) -> Option<&Incoming> {
        self.ports.as_ref()?.incoming.as_ref()
    }

    /// The NIC that gets copies of the exit packets of the first wire, if there is one.
    pub fn tap(&self) -> Option<&str> {
        self.ports.as_ref()?.tap.as_deref()
    }

    /// A one-line summary: mode, NICs or users, groups if there are several, steering, marks.
    /// Contains no address of a host.
    pub fn summary(&self) -> String {
        let place = match (&self.ports, &self.tor) {
            (Some(_), _) => self.summary_of_wires(),
            (None, Some(tor)) => tor.summary(&self.rules.sockets),
            (None, None) => String::new(),
        };
        let groups = self.rules.groups();
        let count = match groups.len() {
            0 | 1 => String::new(),
            count => format!("{count} groups, "),
        };
        let mut marks: Vec<_> = groups.iter().map(|group| group.actions.mark()).collect();
        marks.sort_unstable_by_key(|mark| mark.bits());
        marks.dedup();
        let noun = if marks.len() == 1 { "mark" } else { "marks" };
        let marks: Vec<_> = marks.iter().map(|mark| mark.to_string()).collect();
        let mode = self.rules.mode().name();
        format!("mode {mode}, {place}, {count}{noun} {}", marks.join(", "))
    }

    /// Whether frames of some group get more or fewer VLAN tags: steered ones, or those that come
    /// by `incoming`, also if nothing is steered.
    pub(crate) fn replaces_tags(&self) -> bool {
        let mut groups = self.rules.groups().iter();
        groups.any(|group| group.vlan.count() != group.path.vlan.count())
    }

    /// Whether workers may request fast wake-ups. With engine `xdp` hardly any frame needs one.
    pub(crate) fn permits_fast_wakes(&self) -> bool {
        let serves_many = match self.engine {
            Engine::AfXdp | Engine::Auto => true,
            Engine::Xdp => self.datapath.inbound == Engine::AfXdp,
            Engine::Connect => false,
        };
        serves_many && self.datapath.cpu_latency == CpuLatencyLimit::Auto
    }

    /// Whether exit and relay traffic are classified by the relay set.
    pub fn decides_by_relays(&self) -> bool {
        self.rules.classify_by == ClassifyBy::RelaySet
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
    /// assert_eq!(settings.ports.unwrap().uplink, "eth1");
    /// assert!(settings.rules.is_host("192.0.2.10".parse().unwrap()));
    ///
    /// // A DSCP has six bits.
    /// let error = Settings::parse(&text.replace("\"af11\"", "64"), Path::new("")).unwrap_err();
    /// assert!(error.to_string().starts_with("mark.dscp = 64: "));
    /// # Ok::<(), exitmark_box::settings::SettingsError>(())
    /// ```
    pub fn parse(text: &str, base: &Path) -> Result<Self, SettingsError> {
        let mut raw: raw::Raw = toml::from_str(text)?;
        let given: toml::Table = toml::from_str(text)?;
        engine::check_keys(raw.engine, &given)?;
        let is_box = raw.engine != Engine::Connect;
        groups::set_names(&mut raw.host, if is_box { "host" } else { "tor" })?;
        wires::set_defaults(&mut raw);
        let keys = change::keys(&raw);
        let mut wires = match is_box {
            true => wires::wires(&raw)?,
            false => Vec::new(),
        };
        let tor = (!is_box).then(|| tor::host(&raw.tor, &raw.steer));
        let tor = tor.transpose()?;
        let classify_by = groups::classify_by(&raw)?;
        let (groups, sockets) = if is_box {
            let steering = Steering::new(&raw, &wires, &given)?;
            (Groups::of_box(&raw, steering)?, SocketRules::default())
        } else {
            let (sockets, steer) = tor::sockets(&raw.steer, &raw.mark)?;
            (Groups::of_tor(&raw, steer)?, sockets)
        };
        let incoming = wires
            .iter_mut()
            .filter_map(|wire| wire.ports.incoming.as_mut());
        for incoming in incoming {
            incoming.next_hops.clone_from(&groups.next_hops);
        }
        wires::refuse_long_frames(&wires)?;
        let tap = tap::copies(&raw, &wires)?;
        let rules = Rules::new(classify_by, groups.groups, sockets).tapping(tap);
        let relays = check::relays(raw.relays, base)?;
        let sources = &relays.sources;
        let has_no_source = !sources.names_documents() && sources.extra.is_empty();
        if has_no_source && needs_relays(&rules, tor.is_some()) {
            return Err(value(
                "relays.consensus",
                "[]",
                "without a relay set every connection to a relay would be marked as exit traffic; \
                 name tor's cached-microdesc-consensus or cached-consensus here",
            ));
        }
        check::pin(&raw.pin)?;
        check::control(&raw.control)?;
        check::places(&relays.state, &raw.control, &raw.pin)?;
        Ok(Self {
            engine: raw.engine,
            ports: wires.first().map(|wire| wire.ports.clone()),
            wires,
            tor,
            rules: Arc::new(rules),
            host_prefixes: groups.prefixes,
            relays,
            datapath: check::datapath(&raw.datapath)?,
            pin: raw.pin,
            user: config::user(raw.user)?,
            control: raw.control,
            metrics: config::metrics(&raw.metrics.listen, "127.0.0.1:9787")?,
            keys,
            hosts: raw.host,
            steers: raw.steer.enabled,
            hop_keys: groups.hop_keys,
        })
    }
}

/// Whether some traffic is classified by the relay set: tor's connections, or frames from
/// `host.addresses`, which carry both exit and relay traffic.
fn needs_relays(rules: &Rules, is_of_tor: bool) -> bool {
    let has_clearnet = |group: &Group| !group.addresses.is_empty();
    rules.classify_by == ClassifyBy::RelaySet
        && (is_of_tor || rules.groups().iter().any(has_clearnet))
}
