//! The monitor's configuration: one TOML file, checked as a whole, and its overrides on the command
//! line. Does not access the machine.

mod raw;
mod tap;

use crate::cell::{Counts, DEFAULT_CELLS, Directions, MAX_CELLS};
use crate::clock::Length;
use crate::mirror::Unwrap;
use crate::period::{DEFAULT_STATE, is_exit_name};
use crate::places::{Countries, PlacesSettings};
use crate::publish::{Epsilon, NoiseSettings, PublishError, PublishSettings};
use crate::row::Dimension;
use crate::tap::{MAX_FRAMES, MAX_RANGES, MIN_RING};
use exitmark_policy::PrefixSet;
use exitmark_policy::packet::Dscp;
use exitmark_service::config::{self, ConfigError, code_point, value};
use ipnet::IpNet;
use raw::Raw;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Default of `metrics.listen`.
pub const METRICS: &str = "127.0.0.1:9788";
/// Value of `places.countries` for Tor's compiled-in tables.
const EMBEDDED: &str = "embedded";
/// Default of `period.directory`.
pub const DIRECTORY: &str = "/var/lib/exitmark-monitor";

/// A checked configuration: every value is in its range, and no two contradict each other.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The exit's name in period files and on pages.
    pub exit: String,
    /// The names of the taps' NICs; none if only captured files are counted.
    pub interfaces: Vec<String>,
    /// The directions to count.
    pub directions: Directions,
    /// The mirrors' packets to unwrap.
    pub unwrap: Unwrap,
    /// The Tor host's clearnet addresses: at most [`MAX_RANGES`] ranges of each IP version.
    pub addresses: PrefixSet,
    /// The user that the process becomes when it is started by root.
    pub user: Option<String>,
    /// The DSCP value that marks exit traffic.
    pub mark: Dscp,
    /// Paths of the databases of countries and autonomous systems.
    pub places: PlacesSettings,
    /// The length of a period; a day by default.
    pub length: Length,
    /// The directory for period files ([`DIRECTORY`] by default).
    pub directory: PathBuf,
    /// State directory: the running period's counts, kept for a restart.
    pub state: PathBuf,
    /// What may be published: thresholds, bins, tables, noise.
    pub publish: PublishSettings,
    /// Size of the table of cells.
    pub cells: usize,
    /// Entries of each receive ring; a power of two.
    pub ring: u32,
    /// Where metrics are served; `None` turns them off.
    pub metrics: Option<SocketAddr>,
}

/// Values from the command line that replace keys of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Replaces `interface` and `tap.interfaces`, unless empty.
    pub interfaces: Vec<String>,
    /// Replaces `addresses`, unless empty.
    pub addresses: Vec<IpNet>,
    /// Replaces `period.directory`.
    pub directory: Option<PathBuf>,
}

impl Settings {
    /// A one-line summary: mark, NIC, period, thresholds, noise. Contains no address.
    pub fn summary(&self) -> String {
        let interfaces = match self.interfaces.as_slice() {
            [] => "no interface".to_owned(),
            names => names.join(", "),
        };
        let towards = match self.directions {
            Directions::Out => "from",
            Directions::Both => "from and to",
        };
        format!(
            "counts {} {towards} {} at {interfaces}; a period is {}, with at most {} rows per \
             statistic, each of at least {} connections; {}",
            self.mark,
            match self.addresses.v4_ranges().len() + self.addresses.v6_ranges().len() {
                1 => "1 address range".to_owned(),
                more => format!("{more} address ranges"),
            },
            humantime::format_duration(Duration::from_secs(self.length.seconds().unsigned_abs())),
            self.publish.top,
            self.publish.threshold_flows,
            match &self.publish.noise {
                Some(noise) => format!("noise with epsilon {}", noise.epsilon.as_f64()),
                None => "no noise".to_owned(),
            }
        )
    }

    /// Reads and checks a file; without a path, takes the defaults. Relative paths in the file are
    /// relative to its directory.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if the file cannot be read; otherwise as [`Settings::parse`].
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Self::parse("", Path::new(""), overrides);
        };
        let text = config::read(path, "exitmark-monitor.example.toml")?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")), overrides)
    }

    /// Checks the text of a configuration; relative paths in it are relative to `base`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] if the text is not TOML or has an unknown key or a value of another
    /// type; [`ConfigError::Value`] with the key if a value, or an override, is invalid.
    pub fn parse(text: &str, base: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)?;
        let under = |key: &'static str, path: Option<PathBuf>| match path {
            Some(path) if path.as_os_str().is_empty() => Err(value(key, "\"\"", "is not a path")),
            path => Ok(path.map(|path| base.join(path))),
        };
        let addresses = match overrides.addresses.as_slice() {
            [] => parsed(&raw.addresses)?,
            given => given.to_vec(),
        };
        let directions = tap::directions(raw.tap.directions.as_deref())?;
        Ok(Self {
            exit: exit(raw.exit)?,
            interfaces: tap::interfaces(&overrides.interfaces, raw.interface, raw.tap.interfaces)?,
            directions,
            unwrap: tap::unwrap(&raw.tap.unwrap, raw.tap.vxlan_port)?,
            addresses: self::addresses(&addresses)?,
            user: config::user(raw.user)?,
            mark: code_point(
                ["mark.dscp", "mark.tos"],
                raw.mark.dscp.as_ref(),
                raw.mark.tos,
            )?,
            places: PlacesSettings {
                countries: match raw.places.countries.filter(|path| path != EMBEDDED) {
                    None => Countries::Embedded,
                    path => under("places.countries", path)?
                        .map_or_else(Countries::default, Countries::At),
                },
                systems: under("places.systems", raw.places.systems)?,
            },
            length: length(raw.period.length.as_deref())?,
            directory: overrides
                .directory
                .clone()
                .or(under("period.directory", raw.period.directory)?)
                .unwrap_or_else(|| DIRECTORY.into()),
            state: under("period.state", raw.period.state)?.unwrap_or_else(|| DEFAULT_STATE.into()),
            publish: publish(&raw.publish, &raw.noise, directions)?,
            cells: within(
                "memory.cells",
                raw.memory.cells,
                DEFAULT_CELLS,
                1024..=MAX_CELLS,
            )?,
            ring: ring(raw.memory.ring)?,
            metrics: config::metrics(raw.metrics.listen.as_deref().unwrap_or(METRICS), METRICS)?,
        })
    }
}

/// The exit's name becomes part of file names and of other programs' tables.
fn exit(name: Option<String>) -> Result<String, ConfigError> {
    let name = name.unwrap_or_else(|| "exit".to_owned());
    match is_exit_name(&name) {
        true => Ok(name),
        false => {
            let reason = "is not a valid exit name: 1 to 64 letters, digits, `-`, `_` and `.`, with a \
                          letter or digit first";
            Err(value("exit", format_args!("\"{name}\""), reason))
        }
    }
}

fn parsed(texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let net = |text: &String| {
        let quoted = format!("\"{text}\"");
        net(text).map_err(|reason| value("addresses", quoted, reason))
    };
    texts.iter().map(net).collect()
}

/// Merges addresses and prefixes into ranges.
fn addresses(nets: &[IpNet]) -> Result<PrefixSet, ConfigError> {
    const KEY: &str = "addresses";
    if nets.is_empty() {
        let reason = "name the clearnet addresses of the Tor host, here or with --address: only \
                      marked packets from these are counted";
        return Err(value(KEY, "[]", reason));
    }
    let mut named = BTreeSet::new();
    if let Some(net) = nets.iter().find(|net| !named.insert(**net)) {
        return Err(value(KEY, format_args!("\"{net}\""), "is named twice"));
    }
    let addresses = PrefixSet::new(IpNet::aggregate(&nets.to_vec()));
    let count = addresses.v4_ranges().len().max(addresses.v6_ranges().len());
    if count > MAX_RANGES {
        let reason =
            format!("are more than {MAX_RANGES} of one IP version; put them into prefixes");
        return Err(value(KEY, format_args!("{count} ranges"), reason));
    }
    Ok(addresses)
}

/// An address, or a prefix, of which hosts may send from every address.
///
/// # Errors
/// What the text is instead, as a clause.
pub fn net(text: &str) -> Result<IpNet, String> {
    const SPECIAL: [&str; 7] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "224.0.0.0/3",
        "::/127",
        "::ffff:0:0/96",
        "fe80::/10",
        "ff00::/8",
    ];
    let net: Option<IpNet> = match text.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => text.parse().ok(),
    };
    let net = net.ok_or(
        "is neither an address such as 192.0.2.10 or 2001:db8::10 nor a prefix such as \
         192.0.2.0/24",
    )?;
    if net.addr() != net.network() {
        let whole = net.trunc();
        return Err(format!(
            "has bits set behind the prefix; did you mean {whole}?"
        ));
    }
    let mut special = SPECIAL
        .iter()
        .filter_map(|special| special.parse::<IpNet>().ok());
    match special.find(|special| special.contains(&net) || net.contains(special)) {
        Some(special) if special.contains(&net) => Err(format!(
            "is not an address that a host sends to the Internet from: it is in {special}"
        )),
        Some(special) => Err(format!(
            "contains {special}, from which no host sends to the Internet"
        )),
        None => Ok(net),
    }
}

fn length(text: Option<&str>) -> Result<Length, ConfigError> {
    const KEY: &str = "period.length";
    let Some(text) = text else {
        return Ok(Length::DAY);
    };
    let quoted = format!("\"{text}\"");
    let length = humantime::parse_duration(text)
        .map_err(|_| value(KEY, &quoted, "is not a length of time such as \"24h\""))?;
    Length::new(length).map_err(|reason| value(KEY, &quoted, reason))
}

fn within<T: Display + PartialOrd + TryFrom<i64>>(
    key: &'static str,
    number: Option<i64>,
    default: T,
    range: RangeInclusive<T>,
) -> Result<T, ConfigError> {
    let Some(number) = number else {
        return Ok(default);
    };
    let checked = T::try_from(number).ok();
    let checked = checked.filter(|number| range.contains(number));
    checked.ok_or_else(|| {
        let reason = format_args!("is not within {} to {}", range.start(), range.end());
        value(key, number, reason)
    })
}

fn ring(number: Option<i64>) -> Result<u32, ConfigError> {
    let ring = within("memory.ring", number, 4096, MIN_RING..=MAX_FRAMES)?;
    match ring.is_power_of_two() {
        true => Ok(ring),
        false => Err(value("memory.ring", ring, "is not a power of two")),
    }
}

fn positive(
    key: &'static str,
    number: Option<i64>,
    default: NonZeroU64,
) -> Result<NonZeroU64, ConfigError> {
    let Some(number) = number else {
        return Ok(default);
    };
    u64::try_from(number)
        .ok()
        .and_then(NonZeroU64::new)
        .ok_or_else(|| value(key, number, "is less than 1"))
}

fn publish(
    raw: &raw::Publish,
    noise: &raw::Noise,
    directions: Directions,
) -> Result<PublishSettings, ConfigError> {
    let default = PublishSettings::default();
    let cross = raw.cross.iter().map(|name| match name.as_str() {
        "port_country" => Ok(Dimension::PortCountry),
        "port_system" => Ok(Dimension::PortSystem),
        "system_country" => Ok(Dimension::SystemCountry),
        _ => Err(value(
            "publish.cross",
            format_args!("\"{name}\""),
            "is not a cross table; there are \"port_country\", \"port_system\" and \"system_country\"",
        )),
    });
    let settings = PublishSettings {
        top: within("publish.top", raw.top, default.top, 1..=10_000)?,
        threshold_flows: within(
            "publish.threshold_flows",
            raw.threshold_flows,
            default.threshold_flows,
            2..=u32::MAX.into(),
        )?,
        bins: Counts {
            flows: positive("publish.bin_flows", raw.bin_flows, default.bins.flows)?,
            bytes: positive("publish.bin_bytes", raw.bin_bytes, default.bins.bytes)?,
            packets: positive("publish.bin_packets", raw.bin_packets, default.bins.packets)?,
            down_bytes: positive(
                "publish.bin_down_bytes",
                raw.bin_down_bytes,
                default.bins.down_bytes,
            )?,
            down_packets: positive(
                "publish.bin_down_packets",
                raw.bin_down_packets,
                default.bins.down_packets,
            )?,
        },
        cross: cross.collect::<Result<_, _>>()?,
        noise: self::noise(noise)?,
        directions,
    };
    settings.check().map_err(|reason| match reason {
        PublishError::Noise(reason) => {
            let epsilon = noise.epsilon.unwrap_or_default();
            value("noise.epsilon", epsilon, reason)
        }
        PublishError::Cross(_) => value("publish.cross", format_args!("{:?}", raw.cross), reason),
    })?;
    Ok(settings)
}

fn noise(raw: &raw::Noise) -> Result<Option<NoiseSettings>, ConfigError> {
    const KEYS: [&str; 5] = [
        "noise.flows",
        "noise.bytes",
        "noise.packets",
        "noise.down_bytes",
        "noise.down_packets",
    ];
    let given = [
        raw.flows,
        raw.bytes,
        raw.packets,
        raw.down_bytes,
        raw.down_packets,
    ];
    let Some(epsilon) = raw.epsilon else {
        let mut others = KEYS.into_iter().zip(given);
        return match others.find_map(|(key, one)| Some((key, one?))) {
            Some((key, one)) => Err(value(key, one, "has no effect without noise.epsilon")),
            None => Ok(None),
        };
    };
    let bound = |index: usize, default| {
        let default = NonZeroU64::new(default).unwrap_or(NonZeroU64::MIN);
        positive(KEYS[index], given[index], default).map(NonZeroU64::get)
    };
    Ok(Some(NoiseSettings {
        epsilon: Epsilon::try_from(epsilon)
            .map_err(|reason| value("noise.epsilon", epsilon, reason))?,
        user: Counts {
            flows: bound(0, 50)?,
            bytes: bound(1, 50 << 20)?,
            packets: bound(2, 50_000)?,
            // A receiver acknowledges every second segment (RFC 5681), which has 1,500 bytes.
            down_bytes: bound(3, 150 << 20)?,
            down_packets: bound(4, 100_000)?,
        },
        seed: None,
    }))
}
