//! The configuration: one TOML file, read once, checked whole, immutable ever after.
//!
//! Nothing here looks at the machine: whether a NIC exists is for others to find out. What is
//! wrong in the file itself is said with the key, the value, and what is accepted.

mod raw;

use crate::packet::{Dscp, MacAddr};
use crate::policy::{
    Actions, AtUplink, Endpoint, ExitProtocols, Intent, Listener, MAX_LISTENERS, MAX_PREFIXES,
    MAX_RESOLVERS, Mode, PrefixSet, Rules,
};
use ipnet::IpNet;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// A NIC's name has at most 15 bytes (IFNAMSIZ with its NUL).
const MAX_INTERFACE_NAME: usize = 15;
const RING: std::ops::RangeInclusive<u32> = 64..=32_768;
const BATCH: std::ops::RangeInclusive<u32> = 1..=256;

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
    /// Where relay endpoints come from.
    pub relays: RelaySources,
    /// Sizes and ways of the packet path.
    pub datapath: Datapath,
    /// What outlives the process.
    pub pin: Pin,
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
    /// The MAC address of the router there.
    pub next_hop: MacAddr,
}

/// Where relay endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySources {
    /// Consensus documents of either flavour.
    pub consensus: Vec<PathBuf>,
    /// Endpoints that no consensus lists.
    pub extra: Vec<Endpoint>,
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
    /// Entries of each ring, a power of two.
    pub ring: u32,
    /// Frames that are handled at a time.
    pub batch: u32,
    /// Whether the NIC's own buffers are used.
    pub zero_copy: ZeroCopy,
    /// Whether the kernel decides what workers cannot keep up with.
    pub spill: bool,
    /// Where frames for the host are forwarded.
    pub inbound: Inbound,
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

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key, or a value of the wrong type.
    #[error("the configuration cannot be understood: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value that cannot be.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with that, and what is accepted.
        reason: String,
    },
}

fn value(key: &'static str, value: impl Display, reason: impl Display) -> SettingsError {
    SettingsError::Value {
        key,
        value: value.to_string(),
        reason: reason.to_string(),
    }
}

impl Settings {
    /// Reads and checks a file. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// What is wrong with the file, by key.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")))
    }

    /// Checks a configuration's text. `base` is what relative paths in it start from.
    ///
    /// # Errors
    /// What is wrong with it, by key.
    pub fn parse(text: &str, base: &Path) -> Result<Self, SettingsError> {
        let raw: raw::Raw = toml::from_str(text)?;
        let ports = ports(&raw.ports, &raw.steer)?;
        let relays = relay_sources(raw.relays, base)?;
        let addresses = prefixes("host.addresses", &raw.host.addresses)?;
        let relay_addresses = prefixes("host.relay_addresses", &raw.host.relay_addresses)?;
        check_addresses(&addresses, &relay_addresses)?;
        if relays.consensus.is_empty() && relays.extra.is_empty() && !addresses.is_empty() {
            return Err(value(
                "relays.consensus",
                "[]",
                "without a relay set every connection to a relay would be marked as exit traffic; \
                 name tor's cached-microdesc-consensus or cached-consensus here",
            ));
        }
        let rules = Rules {
            addresses: PrefixSet::new(addresses.iter().copied()),
            relay_addresses: PrefixSet::new(relay_addresses.iter().copied()),
            listeners: listeners(&raw.host.listeners)?,
            resolvers: PrefixSet::new(at_most(
                MAX_RESOLVERS,
                "host.resolvers",
                prefixes("host.resolvers", &raw.host.resolvers)?,
            )?),
            exempt: PrefixSet::new(at_most(
                MAX_PREFIXES,
                "host.exempt",
                prefixes("host.exempt", &raw.host.exempt)?,
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
                mark: mark(&raw.mark)?,
                at_uplink: match raw.mark.at_uplink {
                    raw::AtUplink::Keep => AtUplink::Keep,
                    raw::AtUplink::Strip => AtUplink::Strip,
                },
                steer: ports.incoming.is_some(),
            }),
        };
        Ok(Self {
            engine: match raw.engine {
                raw::Engine::Auto => Engine::Auto,
                raw::Engine::AfXdp => Engine::AfXdp,
                raw::Engine::Xdp => Engine::Xdp,
            },
            ports,
            rules: Arc::new(rules),
            host_prefixes: addresses.into_iter().chain(relay_addresses).collect(),
            host_mac: raw
                .host
                .mac
                .map(|text| parsed("host.mac", &text))
                .transpose()?,
            relays,
            datapath: datapath(&raw.datapath)?,
            pin: pin(raw.pin)?,
        })
    }
}

fn parsed<T: FromStr<Err: Display>>(key: &'static str, text: &str) -> Result<T, SettingsError> {
    text.parse()
        .map_err(|reason| value(key, format_args!("\"{text}\""), reason))
}

fn ports(raw: &raw::Ports, steer: &raw::Steer) -> Result<Ports, SettingsError> {
    let interface = |key: &'static str, name: &str| {
        let legal = |c: char| !c.is_whitespace() && c != '/' && c != ':' && c != '\0';
        if name.is_empty() || name.len() > MAX_INTERFACE_NAME || !name.chars().all(legal) {
            let reason = "no NIC can have this name: 1 to 15 bytes, without spaces, `/` and `:` \
                          (`ip link` lists the names)";
            return Err(value(key, format_args!("\"{name}\""), reason));
        }
        Ok(name.to_owned())
    };
    let host = interface("ports.host", &raw.host)?;
    let uplink = interface("ports.uplink", &raw.uplink)?;
    let quoted = format!("\"{host}\"");
    if uplink == host {
        let reason = "is the same NIC as ports.host; a wire has two ends";
        return Err(value("ports.uplink", quoted, reason));
    }
    let incoming = match (&raw.incoming, &steer.next_hop) {
        (None, None) => None,
        (Some(name), Some(next_hop)) => {
            let interface = interface("ports.incoming", name)?;
            if interface == host {
                let reason =
                    "is the same NIC as ports.host; relay traffic would go back to the host";
                return Err(value("ports.incoming", quoted, reason));
            }
            Some(Incoming {
                interface,
                next_hop: parsed("steer.next_hop", next_hop)?,
            })
        }
        (Some(name), None) => {
            return Err(value(
                "ports.incoming",
                format_args!("\"{name}\""),
                "relay traffic needs steer.next_hop, the MAC address of the router on that network",
            ));
        }
        (None, Some(next_hop)) => {
            return Err(value(
                "steer.next_hop",
                format_args!("\"{next_hop}\""),
                "steering needs ports.incoming; without it relay traffic leaves by the uplink",
            ));
        }
    };
    Ok(Ports {
        host,
        uplink,
        incoming,
    })
}

/// Addresses and prefixes; a bare address is a prefix of its full length.
fn prefixes(key: &'static str, texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    texts
        .iter()
        .map(|text| {
            let net: Option<IpNet> = match text.parse::<IpAddr>() {
                Ok(address) => Some(address.into()),
                Err(_) => text.parse().ok(),
            };
            let reason = "is neither an address such as 192.0.2.10 or 2001:db8::10 nor a prefix \
                          such as 192.0.2.0/28";
            let net = net.ok_or_else(|| value(key, format_args!("\"{text}\""), reason))?;
            if net.addr() != net.network() {
                let reason = format!(
                    "has bits set behind the prefix; did you mean {}?",
                    net.trunc()
                );
                return Err(value(key, format_args!("\"{text}\""), reason));
            }
            Ok(net)
        })
        .collect()
}

/// No more of one family than the kernel's program has room for.
fn at_most(limit: usize, key: &'static str, nets: Vec<IpNet>) -> Result<Vec<IpNet>, SettingsError> {
    let of_v4 = nets
        .iter()
        .filter(|net| matches!(net, IpNet::V4(_)))
        .count();
    let count = of_v4.max(nets.len() - of_v4);
    if count > limit {
        let reason = format!("are more than {limit} of one family; put them into prefixes");
        return Err(value(key, format_args!("{count} entries"), reason));
    }
    Ok(nets)
}

fn check_addresses(addresses: &[IpNet], relay_addresses: &[IpNet]) -> Result<(), SettingsError> {
    if addresses.is_empty() && relay_addresses.is_empty() {
        let reason = "name the address from which the Tor host reaches the clearnet";
        return Err(value("host.addresses", "[]", reason));
    }
    let both = [
        ("host.addresses", addresses),
        ("host.relay_addresses", relay_addresses),
    ];
    for (key, nets) in both {
        for net in nets {
            let address = net.addr();
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                return Err(value(
                    key,
                    format_args!("\"{net}\""),
                    "is no address that a host sends from",
                ));
            }
        }
    }
    let all = addresses.iter().chain(relay_addresses).copied();
    at_most(MAX_PREFIXES, "host.addresses", all.collect())?;
    for net in relay_addresses {
        let overlap = |other: &&IpNet| other.contains(net) || net.contains(*other);
        if addresses.iter().any(|other| overlap(&other)) {
            return Err(value(
                "host.relay_addresses",
                format_args!("\"{net}\""),
                "is in host.addresses too; an address carries Tor traffic only, or it does not",
            ));
        }
    }
    Ok(())
}

fn listeners(raw: &[raw::Listener]) -> Result<Box<[Listener]>, SettingsError> {
    const KEY: &str = "host.listeners";
    let named = |listener: &&raw::Listener| matches!(listener, raw::Listener::Endpoint(_));
    let count = raw.iter().filter(named).count();
    if count > MAX_LISTENERS {
        let reason = format!(
            "are more than {MAX_LISTENERS} with an address; a bare port counts on every address"
        );
        return Err(value(KEY, format_args!("{count} entries"), reason));
    }
    raw.iter()
        .map(|listener| match listener {
            raw::Listener::Port(number) => u16::try_from(*number)
                .ok()
                .filter(|port| *port != 0)
                .map(Listener::Port)
                .ok_or_else(|| value(KEY, number, "is no port: 1 to 65535")),
            raw::Listener::Endpoint(text) => endpoint(KEY, text).map(Listener::Endpoint),
        })
        .collect()
}

fn endpoint(key: &'static str, text: &str) -> Result<Endpoint, SettingsError> {
    let endpoint: Option<Endpoint> = text.parse().ok();
    endpoint
        .filter(|endpoint| endpoint.port != 0)
        .ok_or_else(|| {
            let reason = "is no address with a port, such as 192.0.2.1:9001 or [2001:db8::1]:9001";
            value(key, format_args!("\"{text}\""), reason)
        })
}

fn mark(raw: &raw::Mark) -> Result<Dscp, SettingsError> {
    let dscp = match (&raw.dscp, raw.tos) {
        (None, None) => Dscp::AF11,
        (Some(_), Some(tos)) => {
            let reason = "mark.dscp says the same in another way; keep one of the two";
            return Err(value("mark.tos", format_args!("{tos:#04x}"), reason));
        }
        (Some(raw::Dscp::Name(name)), None) => parsed("mark.dscp", name)?,
        (Some(raw::Dscp::Number(number)), None) => {
            let bits = u64::try_from(*number).unwrap_or(u64::MAX);
            Dscp::new(bits).map_err(|_| {
                let reason =
                    "is no DSCP: it has six bits, 0 to 63 (the whole ToS byte goes into mark.tos)";
                value("mark.dscp", number, reason)
            })?
        }
        (None, Some(tos)) => {
            let byte = u8::try_from(tos)
                .map_err(|_| value("mark.tos", tos, "is no byte: 0x04 to 0xfc"))?;
            Dscp::from_tos(byte)
                .map_err(|reason| value("mark.tos", format_args!("{tos:#04x}"), reason))?
        }
    };
    if dscp == Dscp::DEFAULT {
        let reason = "is what unmarked traffic bears; a mark must differ from it";
        return Err(value("mark.dscp", "0", reason));
    }
    Ok(dscp)
}

fn relay_sources(raw: raw::Relays, base: &Path) -> Result<RelaySources, SettingsError> {
    let extra = raw.extra.iter().map(|text| endpoint("relays.extra", text));
    Ok(RelaySources {
        extra: extra.collect::<Result<_, _>>()?,
        consensus: raw.consensus.iter().map(|path| base.join(path)).collect(),
    })
}

fn datapath(raw: &raw::Datapath) -> Result<Datapath, SettingsError> {
    let within = |key, number: i64, range: &std::ops::RangeInclusive<u32>| {
        u32::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let reason = format!("is not within {} to {}", range.start(), range.end());
                value(key, number, reason)
            })
    };
    let ring = within("datapath.ring", raw.ring, &RING)?;
    if !ring.is_power_of_two() {
        let reason = format!("is no power of two; {} is", ring.next_power_of_two());
        return Err(value("datapath.ring", ring, reason));
    }
    // Large batches spread the cost of a system call; they only form under load.
    let batch = match raw.batch {
        Some(batch) => within("datapath.batch", batch, &BATCH)?,
        None => ring.min(*BATCH.end()),
    };
    if batch > ring {
        let reason = format!("is more than datapath.ring = {ring} holds");
        return Err(value("datapath.batch", batch, reason));
    }
    Ok(Datapath {
        ring,
        batch,
        zero_copy: match raw.zero_copy {
            raw::ZeroCopy::Auto => ZeroCopy::Auto,
            raw::ZeroCopy::Require => ZeroCopy::Require,
            raw::ZeroCopy::Off => ZeroCopy::Off,
        },
        spill: raw.spill,
        inbound: match raw.inbound {
            raw::Inbound::Auto => Inbound::Auto,
            raw::Inbound::AfXdp => Inbound::AfXdp,
            raw::Inbound::Xdp => Inbound::Xdp,
        },
    })
}

fn pin(raw: raw::Pin) -> Result<Pin, SettingsError> {
    let directory = raw.directory;
    // The BPF file system keeps names with a dot for itself.
    let has_dot = directory.to_string_lossy().contains('.');
    if !directory.is_absolute() || directory.parent().is_none() || has_dot {
        return Err(value(
            "pin.directory",
            format_args!("\"{}\"", directory.display()),
            "is no absolute path without dots in a BPF file system, such as /sys/fs/bpf/exitmark",
        ));
    }
    Ok(Pin {
        directory,
        on_stop: match raw.on_stop {
            raw::OnStop::Keep => OnStop::Keep,
            raw::OnStop::Detach => OnStop::Detach,
        },
    })
}
