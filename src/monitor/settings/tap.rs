//! The keys of the taps.

use super::within;
use crate::cell::Directions;
use crate::mirror::{Unwrap, VXLAN_PORT};
use crate::tap::MAX_TAPS;
use exitmark_service::config::{self, ConfigError, value};
use std::collections::BTreeSet;

/// The taps' NICs, by the option, `interface` or `tap.interfaces`.
pub(super) fn interfaces(
    options: &[String],
    one: Option<String>,
    several: Option<Vec<String>>,
) -> Result<Vec<String>, ConfigError> {
    const KEY: &str = "tap.interfaces";
    let (key, names) = match (options, one, several) {
        ([], Some(one), Some(_)) => {
            let reason = "is set beside tap.interfaces: name all NICs in tap.interfaces";
            return Err(value("interface", format_args!("\"{one}\""), reason));
        }
        ([], one, None) => ("interface", Vec::from_iter(one)),
        ([], None, Some(names)) if names.is_empty() => {
            return Err(value(
                KEY,
                "[]",
                "names no NIC: name one or more, or leave the key out",
            ));
        }
        ([], None, Some(names)) => (KEY, names),
        (options, ..) => ("interface", options.to_vec()),
    };
    if names.len() > MAX_TAPS {
        let reason = format_args!("are more than {MAX_TAPS}");
        return Err(value(key, format_args!("{} NICs", names.len()), reason));
    }
    let mut checked = BTreeSet::new();
    for name in &names {
        if !checked.insert(config::interface(key, name)?) {
            return Err(value(key, format_args!("\"{name}\""), "is named twice"));
        }
    }
    Ok(names)
}

pub(super) fn directions(text: Option<&str>) -> Result<Directions, ConfigError> {
    match text {
        None | Some("out") => Ok(Directions::Out),
        Some("both") => Ok(Directions::Both),
        Some(text) => {
            let reason = "is not \"out\" (packets from `addresses`) or \"both\" (and packets to \
                          them, at the tap port of exitmark)";
            Err(value("tap.directions", format_args!("\"{text}\""), reason))
        }
    }
}

pub(super) fn unwrap(names: &[String], port: Option<i64>) -> Result<Unwrap, ConfigError> {
    let mut unwrap = Unwrap::default();
    let port_or_default = within("tap.vxlan_port", port, VXLAN_PORT, 1..=u16::MAX)?;
    for name in names {
        match name.as_str() {
            "erspan" => unwrap.erspan = true,
            "vxlan" => unwrap.vxlan = Some(port_or_default),
            _ => {
                let reason = "cannot be unwrapped: there are \"erspan\" (types II and III) and \
                              \"vxlan\"";
                return Err(value("tap.unwrap", format_args!("\"{name}\""), reason));
            }
        }
    }
    match (port, unwrap.vxlan) {
        (Some(port), None) => {
            let reason = "has no effect: \"vxlan\" is not in tap.unwrap";
            Err(value("tap.vxlan_port", port, reason))
        }
        _ => Ok(unwrap),
    }
}
