//! Checks each part of the file.

use super::{Control, Datapath, Engine, Pin, RelaySettings, SettingsError, raw};
use exitmark_policy::Endpoint;
use exitmark_relays::{Authorities, DocumentFiles, DocumentPattern, MAX_DOCUMENTS, Sources, Trust};
use exitmark_service::config::{parsed, value};
use ipnet::IpNet;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const RING: std::ops::RangeInclusive<u32> = 64..=32_768;
/// The limit of `relays.retain`. A connection between relays lasts a week at most.
const MAX_RETAIN: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const SAMPLE: std::ops::RangeInclusive<u32> = 0..=65_536;
const BATCH: std::ops::RangeInclusive<u32> = 1..=256;
/// The limits of `datapath.spin` in µs. Beyond, waking a worker is as good as polling.
const SPIN: std::ops::RangeInclusive<u32> = 0..=1000;

/// An error with a text as the value.
pub(super) fn quoted(key: &'static str, text: impl Display, reason: impl Display) -> SettingsError {
    value(key, format_args!("\"{text}\""), reason)
}

/// Parses addresses and prefixes; a bare address is a prefix of its full length.
pub(super) fn prefixes(key: &'static str, texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    texts
        .iter()
        .map(|text| {
            let net: Option<IpNet> = match text.parse::<IpAddr>() {
                Ok(address) => Some(address.into()),
                Err(_) => text.parse().ok(),
            };
            let reason = "is neither an address such as 192.0.2.10 or 2001:db8::10 nor a prefix \
                          such as 192.0.2.0/28";
            let net = net.ok_or_else(|| quoted(key, text, reason))?;
            if net.addr() != net.network() {
                let reason = format!(
                    "has bits set behind the prefix; did you mean {}?",
                    net.trunc()
                );
                return Err(quoted(key, text, reason));
            }
            unmapped(net.addr()).map_err(|reason| quoted(key, text, reason))?;
            Ok(net)
        })
        .collect()
}

/// Refuses more prefixes of one family than the BPF map holds. `of` completes the reason: of what
/// the prefixes are.
pub(super) fn at_most<'n>(
    limit: usize,
    key: &'static str,
    nets: impl IntoIterator<Item = &'n IpNet>,
    of: &str,
) -> Result<(), SettingsError> {
    let (v4, v6): (Vec<&IpNet>, Vec<_>) = nets.into_iter().partition(|net| net.addr().is_ipv4());
    let count = v4.len().max(v6.len());
    if count > limit {
        let reason = format!("are more than {limit} of one family{of}; put them into prefixes");
        return Err(value(key, format_args!("{count} entries"), reason));
    }
    Ok(())
}

pub(super) fn endpoint(key: &'static str, text: &str) -> Result<Endpoint, SettingsError> {
    let reason = "is not an address with a port, such as 192.0.2.1:9001 or [2001:db8::1]:9001";
    let endpoint: Option<Endpoint> = text.parse().ok();
    let endpoint = endpoint.filter(|endpoint| endpoint.port != 0);
    let endpoint = endpoint.ok_or_else(|| quoted(key, text, reason))?;
    unmapped(endpoint.address).map_err(|reason| quoted(key, text, reason))?;
    Ok(endpoint)
}

/// Parses an endpoint of `relays.extra`.
fn relay(text: &str) -> Result<Endpoint, SettingsError> {
    const KEY: &str = "relays.extra";
    let relay = endpoint(KEY, text)?;
    match names_a_host(relay.address) {
        true => Ok(relay),
        false => Err(quoted(
            KEY,
            text,
            "is not at an address that a relay can have",
        )),
    }
}

/// Whether packets on a network can have this address as that of one host: it is not unspecified,
/// loopback, multicast, limited broadcast or in 0.0.0.0/8 (RFC 6890 section 2.2, RFC 4291 section
/// 2.4).
pub(super) fn names_a_host(address: IpAddr) -> bool {
    let is_special = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unspecified(),
    };
    !address.is_loopback() && !address.is_multicast() && !is_special
}

/// Refuses an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2), which no packet carries.
pub(super) fn unmapped(address: IpAddr) -> Result<(), String> {
    match address.to_canonical() {
        canonical if canonical == address => Ok(()),
        canonical => Err(format!(
            "is an IPv4-mapped IPv6 address, which no packet carries; write {canonical}"
        )),
    }
}

pub(super) fn relays(raw: raw::Relays, base: &Path) -> Result<RelaySettings, SettingsError> {
    let extra = raw.extra.iter().map(|text| relay(text));
    let certificates = raw.certificates.map(|path| base.join(path));
    if let (Some(path), true) = (&certificates, raw.consensus.is_empty()) {
        let reason = "belongs to documents, and relays.consensus names none";
        return Err(quoted("relays.certificates", path.display(), reason));
    }
    let (files, patterns) = documents(&raw.consensus, certificates.as_ref(), base)?;
    let state = base.join(&raw.state);
    let is_taken =
        |source: &DocumentFiles| source.consensus == state || source.certificates == state;
    let is_matched = patterns.iter().any(|pattern| pattern.matches(&state));
    let is_taken =
        files.iter().any(is_taken) || is_matched || certificates.as_ref() == Some(&state);
    if state.file_name().is_none() || is_taken {
        let reason = "is not usable as exitmark's own file; give a path such as \
                      /var/lib/exitmark/relays.state";
        return Err(quoted("relays.state", raw.state.display(), reason));
    }
    Ok(RelaySettings {
        sources: Sources {
            files,
            patterns,
            extra: extra.collect::<Result<_, _>>()?,
            trust: trust(raw.verify, raw.authorities)?,
        },
        retain: retain(&raw.retain)?,
        when_stale: raw.when_stale,
        state,
        user: raw.user,
    })
}

/// The documents of `relays.consensus`: those with a path of their own, and patterns.
fn documents(
    paths: &[PathBuf],
    certificates: Option<&PathBuf>,
    base: &Path,
) -> Result<(Vec<DocumentFiles>, Vec<DocumentPattern>), SettingsError> {
    const KEY: &str = "relays.consensus";
    let (mut files, mut patterns) = (Vec::new(), Vec::new());
    for path in paths {
        let refused = |reason| quoted(KEY, path.display(), reason);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("unverified-") {
            let reason = "is what tor has fetched and not verified yet; name the cached- one";
            return Err(refused(reason));
        }
        let is_twice = match DocumentPattern::is_pattern(path) {
            true => {
                let pattern = DocumentPattern::new(base, path, certificates.cloned());
                let pattern = pattern.map_err(refused)?;
                let is_twice = patterns.contains(&pattern);
                patterns.push(pattern);
                is_twice
            }
            false => {
                let mut source = DocumentFiles::beside(base.join(path));
                if let Some(certificates) = certificates {
                    source.certificates.clone_from(certificates);
                }
                let is_twice = files.contains(&source);
                files.push(source);
                is_twice
            }
        };
        if is_twice {
            return Err(refused("is named twice"));
        }
    }
    if paths.len() > MAX_DOCUMENTS {
        let reason = format!("are more than the {MAX_DOCUMENTS} of a relay set");
        return Err(value(KEY, format_args!("{} entries", paths.len()), reason));
    }
    Ok((files, patterns))
}

fn trust(verify: bool, authorities: Option<Vec<String>>) -> Result<Trust, SettingsError> {
    const KEY: &str = "relays.authorities";
    match (verify, authorities) {
        (true, None) => Ok(Trust::Majority(Authorities::tor_network())),
        (true, Some(texts)) if texts.is_empty() => {
            let reason = "trusts no authority; leave the key out for those of the Tor network";
            Err(value(KEY, "[]", reason))
        }
        (true, Some(texts)) => {
            let identities = texts.iter().map(|text| parsed(KEY, text));
            Ok(Trust::Majority(Authorities::new(
                identities.collect::<Result<Vec<_>, _>>()?,
            )))
        }
        (false, None) => Ok(Trust::Unverified),
        (false, Some(texts)) => {
            let reason = "lists trusted authorities, but relays.verify = false accepts any; keep \
                          one of the two";
            Err(value(KEY, format_args!("{} entries", texts.len()), reason))
        }
    }
}

fn retain(text: &str) -> Result<Duration, SettingsError> {
    let duration = humantime::parse_duration(text).ok();
    duration
        .filter(|duration| *duration <= MAX_RETAIN)
        .ok_or_else(|| {
            let reason = "is not a time such as \"28h\" or \"90min\", up to 30 days";
            quoted("relays.retain", text, reason)
        })
}

pub(super) fn datapath(raw: &raw::Datapath) -> Result<Datapath, SettingsError> {
    let within = |key, number: i64, range: &std::ops::RangeInclusive<u32>| {
        u32::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let reason = format!("is not within {} to {}", range.start(), range.end());
                value(key, number, reason)
            })
    };
    let given = |key, number: Option<i64>, range| {
        let number = number.map(|number| within(key, number, range));
        number.transpose()
    };
    let ring = given("datapath.ring", raw.ring, &RING)?;
    if let Some(ring) = ring.filter(|ring| !ring.is_power_of_two()) {
        let reason = format!("is not a power of two; {} is", ring.next_power_of_two());
        return Err(value("datapath.ring", ring, reason));
    }
    let batch = given("datapath.batch", raw.batch, &BATCH)?;
    if let (Some(ring), Some(batch)) = (ring, batch)
        && batch > ring
    {
        let reason = format!("is more than datapath.ring = {ring} holds");
        return Err(value("datapath.batch", batch, reason));
    }
    let spin = given("datapath.spin", raw.spin, &SPIN)?;
    let sample = within("datapath.sample", raw.sample, &SAMPLE)?;
    if sample != 0 && !sample.is_power_of_two() {
        let reason = format!("is not a power of two; {} is", sample.next_power_of_two());
        return Err(value("datapath.sample", sample, reason));
    }
    if raw.inbound == Engine::Connect {
        let reason = "opens connections and handles no frames; inbound is \"auto\", \"xdp\" or \
                      \"af_xdp\"";
        return Err(quoted("datapath.inbound", raw.inbound.name(), reason));
    }
    Ok(Datapath {
        sample,
        ring,
        batch,
        spin: spin.map(|spin| Duration::from_micros(spin.into())),
        cpu_latency: raw.cpu_latency,
        zero_copy: raw.zero_copy,
        frags: raw.frags,
        spill: raw.spill,
        inbound: raw.inbound,
    })
}

pub(super) fn pin(pin: &Pin) -> Result<(), SettingsError> {
    let directory = &pin.directory;
    // The BPF file system reserves names with a dot.
    let has_dot = directory.to_string_lossy().contains('.');
    if !directory.is_absolute() || directory.parent().is_none() || has_dot {
        let reason = "is not an absolute path without dots in a BPF file system, such as \
                      /sys/fs/bpf/exitmark";
        return Err(quoted("pin.directory", directory.display(), reason));
    }
    Ok(())
}

pub(super) fn control(control: &Control) -> Result<(), SettingsError> {
    const KEY: &str = "control.socket";
    /// The longest path of a Unix socket in bytes (sun_path without its NUL, unix(7)).
    const LONGEST: usize = 107;
    let socket = &control.socket;
    if !socket.is_absolute() || socket.file_name().is_none() {
        let reason = "is not an absolute path of a socket, such as /run/exitmark/control.sock";
        return Err(quoted(KEY, socket.display(), reason));
    }
    if socket.as_os_str().len() > LONGEST {
        let reason = format!("is longer than the {LONGEST} bytes that a socket's address can have");
        return Err(quoted(KEY, socket.display(), reason));
    }
    Ok(())
}

/// Refuses a state file or socket that collides with another configured path.
pub(super) fn places(state: &Path, control: &Control, pin: &Pin) -> Result<(), SettingsError> {
    if state == control.socket {
        let reason = "is control.socket as well; give the file a place of its own";
        return Err(quoted("relays.state", state.display(), reason));
    }
    for (key, path) in [
        ("relays.state", state),
        ("control.socket", control.socket.as_path()),
    ] {
        if path.starts_with(&pin.directory) {
            let reason = "is in pin.directory, where a BPF file system holds nothing but pins";
            return Err(quoted(key, path.display(), reason));
        }
    }
    Ok(())
}
