//! The tap: a NIC that gets copies of the exit packets.

use super::check::quoted;
use super::wires::Wire;
use super::{SettingsError, raw};
use exitmark_policy::Tap;

/// The NIC of a tap, as the end of a part of a summary.
pub(super) fn summary(tap: Option<&str>) -> String {
    tap.map_or_else(String::new, |tap| {
        format!(", exit packets are copied to {tap}")
    })
}

/// Refuses a tap that is a port of a wire: it gets nothing but copies, and several wires may share it.
pub(super) fn check(wires: &[Wire], key: &'static str) -> Result<(), SettingsError> {
    let table = key.split('.').next().unwrap_or_default();
    for tap in wires.iter().filter_map(|wire| wire.ports.tap.as_ref()) {
        for wire in wires {
            let ports = &wire.ports;
            let incoming = ports.incoming.as_ref().map(|incoming| &incoming.interface);
            let roles = [
                ("host", Some(&ports.host)),
                ("uplink", Some(&ports.uplink)),
                ("incoming", incoming),
            ];
            if let Some((role, _)) = roles.iter().find(|(_, nic)| *nic == Some(tap)) {
                let reason = format!(
                    "is the same NIC as {table}.{role}; the tap gets copies only: name a NIC of \
                     its own"
                );
                return Err(quoted(key, tap, reason));
            }
        }
    }
    Ok(())
}

/// Which exit packets are copied. By default answers too, if they can be recognised.
pub(super) fn copies(raw: &raw::Raw, wires: &[Wire]) -> Result<Tap, SettingsError> {
    const KEY: &str = "tap.directions";
    let has_tap = wires.iter().any(|wire| wire.ports.tap.is_some());
    let by_mark = matches!(raw.classify_by, raw::ClassifyBy::HostMark);
    match raw.tap.directions {
        Some(directions) if !has_tap => {
            let reason = "belongs to a tap, and none is named: set ports.tap (wire.tap in a \
                          [[wire]]), or remove the key";
            Err(quoted(KEY, directions.name(), reason))
        }
        Some(raw::Directions::Both) if by_mark => {
            let reason = "needs the relay set: with classify_by = \"host-mark\" answers cannot be \
                          recognised, because the hosts mark only what they send; use \"out\"";
            Err(quoted(KEY, "both", reason))
        }
        _ if !has_tap => Ok(Tap::Off),
        Some(raw::Directions::Out) => Ok(Tap::Out),
        None if by_mark => Ok(Tap::Out),
        Some(raw::Directions::Both) | None => Ok(Tap::Both),
    }
}
