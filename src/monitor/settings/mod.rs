//! The monitor's configuration: one TOML file, checked as a whole, and its overrides on the command
//! line. Does not access the machine.

mod raw;

use crate::cell::{Counts, DEFAULT_CELLS, MAX_CELLS};
use crate::clock::Length;
use crate::period::{DEFAULT_STATE, is_exit_name};
use crate::places::{Countries, PlacesSettings};
use crate::publish::{Epsilon, NoiseSettings, PublishError, PublishSettings};
use crate::row::Dimension;
use crate::tap::{MAX_FRAMES, MAX_SOURCES, MIN_RING};
use exitmark_policy::packet::Dscp;
use exitmark_service::config::{self, ConfigError, code_point, value};
use raw::Raw;
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
    /// The name of the tap's NIC; `None` if only captured files are counted.
    pub interface: Option<String>,
    /// The Tor host's clearnet addresses.
    pub addresses: Vec<IpAddr>,
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
    /// Replaces `interface`, if given.
    pub interface: Option<String>,
    /// Replaces `addresses`, unless empty.
    pub addresses: Vec<IpAddr>,
    /// Replaces `period.directory`.
    pub directory: Option<PathBuf>,
}

impl Settings {
    /// A one-line summary: mark, NIC, period, thresholds, noise. Contains no address.
    pub fn summary(&self) -> String {
        let interface = self.interface.as_deref().unwrap_or("no interface");
        format!(
            "counts {} from {} at {interface}; a period is {}, with at most {} rows per \
             statistic, each of at least {} connections; {}",
            self.mark,
            match self.addresses.len() {
                1 => "1 address".to_owned(),
                more => format!("{more} addresses"),
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
        let interface = overrides.interface.clone().or(raw.interface);
        let addresses = match overrides.addresses.as_slice() {
            [] => parsed(&raw.addresses)?,
            given => given.to_vec(),
        };
        Ok(Self {
            exit: exit(raw.exit)?,
            interface: interface
                .map(|name| config::interface("interface", &name))
                .transpose()?,
            addresses: checked(addresses)?,
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
            publish: publish(&raw.publish, &raw.noise)?,
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

fn parsed(texts: &[String]) -> Result<Vec<IpAddr>, ConfigError> {
    let address = |text: &String| {
        let reason = "is not an address such as 192.0.2.10 or 2001:db8::10; name each one";
        text.parse()
            .map_err(|_| value("addresses", format_args!("\"{text}\""), reason))
    };
    texts.iter().map(address).collect()
}

fn checked(addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, ConfigError> {
    const KEY: &str = "addresses";
    if addresses.is_empty() {
        let reason = "name the clearnet addresses of the Tor host, here or with --address: only \
                      marked packets from these are counted";
        return Err(value(KEY, "[]", reason));
    }
    let of_v4 = addresses.iter().filter(|one| one.is_ipv4()).count();
    let count = of_v4.max(addresses.len() - of_v4);
    if count > MAX_SOURCES {
        let reason = format!("are more than {MAX_SOURCES} of one IP version");
        return Err(value(KEY, format_args!("{count} entries"), reason));
    }
    for (index, address) in addresses.iter().enumerate() {
        let quoted = format!("\"{address}\"");
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            let reason = "is not an address that a host sends from";
            return Err(value(KEY, quoted, reason));
        }
        if addresses[..index].contains(address) {
            return Err(value(KEY, quoted, "is named twice"));
        }
    }
    Ok(addresses)
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

fn publish(raw: &raw::Publish, noise: &raw::Noise) -> Result<PublishSettings, ConfigError> {
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
        },
        cross: cross.collect::<Result<_, _>>()?,
        noise: self::noise(noise)?,
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
    const KEYS: [&str; 3] = ["noise.flows", "noise.bytes", "noise.packets"];
    let given = [raw.flows, raw.bytes, raw.packets];
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
        },
        seed: None,
    }))
}
