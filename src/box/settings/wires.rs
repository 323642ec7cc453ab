//! The wires of a box: `[ports]`, which is one, or `[[wire]]` once for each.

use super::check::quoted;
use super::forms::Wires;
use super::{Incoming, Ports, Settings, SettingsError, raw, tap};
use exitmark_service::config::{interface, value};
use serde::{Deserialize, Serialize};

/// The most wires of a box.
pub const MAX_WIRES: usize = 8;
/// The longest name of a wire in characters.
const MAX_NAME: usize = 32;
/// Two NICs, between which a box forwards frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Unique in the file; by default the name of the host's NIC.
    pub name: String,
    /// The NIC names of the roles.
    pub ports: Ports,
    /// What a side without carrier does to the other side.
    pub link_loss: LinkLoss,
}

/// What a side of a wire without carrier does to the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkLoss {
    /// The other side keeps its link. The default with one wire.
    #[default]
    Ignore,
    /// The other side's link goes down too, so that the machine there notices. The default with
    /// several wires, which may be the members of one link aggregate.
    Propagate,
}

impl LinkLoss {
    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Propagate => "propagate",
        }
    }
}

/// The keys of a wire's NICs.
struct Keys {
    host: &'static str,
    uplink: &'static str,
    incoming: &'static str,
    tap: &'static str,
}

const OF_PORTS: Keys = Keys {
    host: "ports.host",
    uplink: "ports.uplink",
    incoming: "ports.incoming",
    tap: "ports.tap",
};

const OF_WIRE: Keys = Keys {
    host: "wire.host",
    uplink: "wire.uplink",
    incoming: "wire.incoming",
    tap: "wire.tap",
};

impl Settings {
    /// The configuration of one wire of [`Self::wires`], by its index: that of a box with this wire
    /// alone. With several wires, it has a pin directory of its own, within [`Self::pin`]'s. Returns
    /// the configuration unchanged if the index is out of range.
    #[must_use]
    pub fn of_wire(&self, index: usize) -> Self {
        let mut settings = self.clone();
        let Some(wire) = self.wires.get(index) else {
            return settings;
        };
        settings.ports = Some(wire.ports.clone());
        settings.wires = vec![wire.clone()];
        if self.wires.len() > 1 {
            // The BPF file system reserves names with a dot; no wire's name has a `+`.
            let directory = format!("wire-{}", wire.name.replace('.', "+"));
            settings.pin.directory.push(directory);
        }
        settings
    }

    /// The index of the first wire with the same `incoming` as this one, whose program and sockets
    /// serve that NIC; `None` without `incoming`.
    pub fn owner_of_incoming(&self, index: usize) -> Option<usize> {
        let incoming = |wire: &Wire| Some(wire.ports.incoming.as_ref()?.interface.clone());
        let own = incoming(self.wires.get(index)?)?;
        let is_same = |wire: &Wire| incoming(wire).as_ref() == Some(&own);
        self.wires.iter().position(is_same)
    }

    /// The table of the file with the keys `host`, `uplink` and `incoming`.
    pub(crate) fn table_of_nics(&self) -> &'static str {
        match self.keys.contains_key("wire") {
            true => "wire",
            false => "ports",
        }
    }

    /// The key of the NIC for steered relay traffic.
    pub(super) fn incoming_key(&self) -> &'static str {
        incoming_key(self.keys.contains_key("wire"))
    }

    /// The wires and the egress of relay traffic, as part of [`Self::summary`].
    pub(super) fn summary_of_wires(&self) -> String {
        if let [wire] = self.wires.as_slice() {
            return wire.ports.summary();
        }
        let wire = |wire: &Wire| {
            let Ports { host, uplink, .. } = &wire.ports;
            let copies = tap::summary(wire.ports.tap.as_deref());
            format!("{} ({host} and {uplink}{copies})", wire.name)
        };
        let wires: Vec<_> = self.wires.iter().map(wire).collect();
        let steering = match self.incoming() {
            Some(first) => {
                let names: Vec<_> = self.all_incoming().map(|one| &*one.interface).collect();
                format!(
                    "relay traffic by {} to {}",
                    names.join(", "),
                    first.summary()
                )
            }
            None => "relay traffic is not steered".to_owned(),
        };
        format!(
            "{} wires: {}, {steering}",
            self.wires.len(),
            wires.join(", ")
        )
    }

    /// The `incoming` of all wires, each NIC once.
    pub(crate) fn all_incoming(&self) -> impl Iterator<Item = &Incoming> {
        let wires = self.wires.iter().enumerate();
        let owners = wires.filter(|(index, _)| self.owner_of_incoming(*index) == Some(*index));
        owners.filter_map(|(_, wire)| wire.ports.incoming.as_ref())
    }
}

/// The key of the NIC for steered relay traffic. `has_wires`: the file has `[[wire]]`.
pub(super) const fn incoming_key(has_wires: bool) -> &'static str {
    match has_wires {
        true => OF_WIRE.incoming,
        false => OF_PORTS.incoming,
    }
}

/// Names the wires without a name, and sets what depends on their number.
pub(super) fn set_defaults(raw: &mut raw::Raw) {
    let Some(Wires(wires)) = &mut raw.wire else {
        return;
    };
    let link_loss = match wires.len() {
        0 | 1 => LinkLoss::Ignore,
        _ => LinkLoss::Propagate,
    };
    for wire in wires {
        wire.name.get_or_insert_with(|| wire.host.clone());
        let is_one_nic = wire.incoming.as_ref() == Some(&wire.uplink);
        wire.link_loss.get_or_insert(match is_one_nic {
            true => LinkLoss::Ignore,
            false => link_loss,
        });
    }
}

/// Checks the wires; the next hops of their `incoming` are still missing.
pub(super) fn wires(raw: &raw::Raw) -> Result<Vec<Wire>, SettingsError> {
    let drops_unsteered = matches!(raw.steer.on_unavailable, raw::OnUnavailable::Drop);
    let Some(Wires(wires)) = &raw.wire else {
        let Some(raw) = &raw.ports else {
            let reason = "a box needs its NICs toward the Tor host and toward the clearnet: set \
                          ports.host and ports.uplink; on a Tor host without a box in front of it, \
                          set engine = \"connect\"";
            return Err(value("ports", "{}", reason));
        };
        let names = Names {
            host: &raw.host,
            uplink: &raw.uplink,
            incoming: raw.incoming.as_deref(),
            tap: raw.tap.as_deref(),
        };
        let ports = ports(&OF_PORTS, names, drops_unsteered)?;
        let wires = vec![Wire {
            name: ports.host.clone(),
            ports,
            link_loss: LinkLoss::Ignore,
        }];
        tap::check(&wires, OF_PORTS.tap)?;
        return Ok(wires);
    };
    let count = wires.len();
    if raw.ports.is_some() {
        let reason = "and [ports] are both in the file; [ports] is one wire: name its NICs in a \
                      [[wire]] of their own, and remove [ports]";
        return Err(value("wire", counted(count), reason));
    }
    if count == 0 {
        let reason = "names no NICs; write [ports], or a [[wire]] for each pair of NICs";
        return Err(value("wire", "[]", reason));
    }
    if count > MAX_WIRES {
        let reason = format!("are more than {MAX_WIRES}; give the others a box of their own");
        return Err(value("wire", counted(count), reason));
    }
    let checked = |raw: &raw::Wire| {
        let names = Names {
            host: &raw.host,
            uplink: &raw.uplink,
            incoming: raw.incoming.as_deref(),
            tap: raw.tap.as_deref(),
        };
        let ports = ports(&OF_WIRE, names, drops_unsteered);
        ports
            .map_err(|error| located(error, raw.name()))
            .map(|ports| Wire {
                name: raw.name().to_owned(),
                ports,
                link_loss: raw.link_loss.unwrap_or_default(),
            })
    };
    let checked: Vec<Wire> = wires.iter().map(checked).collect::<Result<_, _>>()?;
    check_names(wires)?;
    for (index, wire) in checked.iter().enumerate() {
        check_nics(wire, &checked[..index], &checked)
            .map_err(|error| located(error, &wire.name))?;
    }
    all_have_incoming(&checked)?;
    tap::check(&checked, OF_WIRE.tap)?;
    for wire in &checked {
        let incoming = wire.ports.incoming.as_ref();
        let is_one_nic = incoming.is_some_and(|one| one.interface == wire.ports.uplink);
        if is_one_nic && wire.link_loss == LinkLoss::Propagate {
            let reason = "cannot be with one NIC as uplink and incoming: the box itself sends by \
                          it, so it is never set down; remove the key, or use two NICs";
            let error = quoted("wire.link_loss", wire.link_loss.name(), reason);
            return Err(located(error, &wire.name));
        }
    }
    Ok(checked)
}

/// Refuses pairs of tags where several wires have one `incoming`: all of them but one send by an
/// AF_PACKET socket, which takes frames of full size with one tag (packet_snd in the kernel's
/// net/packet/af_packet.c).
pub(super) fn refuse_long_frames(wires: &[Wire]) -> Result<(), SettingsError> {
    for (index, wire) in wires.iter().enumerate() {
        let Some(incoming) = &wire.ports.incoming else {
            continue;
        };
        let is_same = |other: &Wire| {
            let other = other.ports.incoming.as_ref();
            other.is_some_and(|other| other.interface == incoming.interface)
        };
        let pair = incoming.next_hops.iter().find(|hop| hop.vlan.count() > 1);
        if let (Some(hop), true) = (pair, wires[..index].iter().any(is_same)) {
            let reason = format!(
                "is a pair of tags, and several wires have the incoming {}: all but the first \
                 cannot send frames of full size with two tags there; give each wire an incoming \
                 of its own, or use one tag",
                incoming.interface
            );
            return Err(value("steer.vlan", hop.vlan, reason));
        }
    }
    Ok(())
}

fn counted(count: usize) -> String {
    let noun = if count == 1 { "wire" } else { "wires" };
    format!("{count} {noun}")
}

/// The same error, with the wire that it is about.
fn located(error: SettingsError, name: &str) -> SettingsError {
    let SettingsError::Value { key, value, reason } = error else {
        return error;
    };
    let value = format!("{value} (wire {name:?})");
    SettingsError::Value { key, value, reason }
}

fn check_names(wires: &[raw::Wire]) -> Result<(), SettingsError> {
    const KEY: &str = "wire.name";
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "-.@:_".contains(c);
    for (index, wire) in wires.iter().enumerate() {
        let (name, number) = (wire.name(), index + 1);
        let default = match name == wire.host {
            true => " (without the key, the name is that of the host's NIC: set wire.name)",
            false => "",
        };
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_legal) {
            let reason = format!(
                "is not a name for wire {number}: letters of ASCII, 0 to 9 and -.@:_, at most \
                 {MAX_NAME} characters{default}"
            );
            return Err(value(KEY, format_args!("{name:?}"), reason));
        }
        let same = |other: &raw::Wire| other.name() == name;
        if let Some(before) = wires[..index].iter().position(same) {
            let reason = format!(
                "is the name of wire {} and of wire {number}; each needs a name of its own{default}",
                before + 1
            );
            return Err(quoted(KEY, name, reason));
        }
    }
    Ok(())
}

/// Refuses a NIC that another wire uses too, except as `incoming` of both. `before`: the wires
/// before this one.
fn check_nics(wire: &Wire, before: &[Wire], all: &[Wire]) -> Result<(), SettingsError> {
    let Ports { host, uplink, .. } = &wire.ports;
    for (key, nic) in [(OF_WIRE.host, host), (OF_WIRE.uplink, uplink)] {
        if let Some((other, name)) = side_of(before, nic) {
            let reason = format!(
                "is {other} of wire {name:?} too; each wire needs two NICs of its own: correct one \
                 of the two"
            );
            return Err(quoted(key, nic, reason));
        }
    }
    let Some(incoming) = &wire.ports.incoming else {
        return Ok(());
    };
    let nic = &incoming.interface;
    let others = all.iter().filter(|other| other.name != wire.name);
    match side_of(others, nic) {
        Some((other, name)) => {
            let reason = format!(
                "is {other} of wire {name:?}; relay traffic leaves by a NIC that is a side of no \
                 other wire: name one, which several wires may have as wire.incoming"
            );
            Err(quoted(OF_WIRE.incoming, nic, reason))
        }
        None => Ok(()),
    }
}

/// The key and the name of the wire that has this NIC as its host or uplink.
fn side_of<'w>(
    wires: impl IntoIterator<Item = &'w Wire>,
    nic: &str,
) -> Option<(&'static str, &'w str)> {
    wires.into_iter().find_map(|wire| match &wire.ports {
        ports if ports.host == nic => Some((OF_WIRE.host, &*wire.name)),
        ports if ports.uplink == nic => Some((OF_WIRE.uplink, &*wire.name)),
        _ => None,
    })
}

/// Refuses wires of which only some have an `incoming`.
fn all_have_incoming(wires: &[Wire]) -> Result<(), SettingsError> {
    let with = wires.iter().find_map(|wire| {
        let incoming = wire.ports.incoming.as_ref()?;
        Some((wire, incoming))
    });
    let without = wires.iter().find(|wire| wire.ports.incoming.is_none());
    match (with, without) {
        (Some((wire, incoming)), Some(without)) => {
            let reason = format!(
                "is missing in wire {:?}, and the groups of hosts are of all wires: set it in each \
                 wire (several may name the same NIC), or in none; host.steer.enabled = false turns \
                 steering off for a group",
                without.name
            );
            let error = quoted(OF_WIRE.incoming, &incoming.interface, reason);
            Err(located(error, &wire.name))
        }
        _ => Ok(()),
    }
}

/// The NICs of a wire in the file.
struct Names<'a> {
    host: &'a str,
    uplink: &'a str,
    incoming: Option<&'a str>,
    tap: Option<&'a str>,
}

/// Checks the names of a wire's NICs.
fn ports(keys: &Keys, names: Names<'_>, drops_unsteered: bool) -> Result<Ports, SettingsError> {
    let host = interface(keys.host, names.host)?;
    let uplink = interface(keys.uplink, names.uplink)?;
    if uplink == host {
        let reason = format!("is the same NIC as {}; a wire has two ends", keys.host);
        return Err(quoted(keys.uplink, host, reason));
    }
    let incoming = names.incoming.map(|name| {
        let interface = interface(keys.incoming, name)?;
        if interface == host {
            let reason = format!(
                "is the same NIC as {}; relay traffic would go back to the host",
                keys.host
            );
            return Err(quoted(keys.incoming, &host, reason));
        }
        Ok(Incoming {
            interface,
            next_hops: Vec::new(),
            drops_unsteered,
        })
    });
    let tap = names.tap.map(|name| interface(keys.tap, name));
    Ok(Ports {
        tap: tap.transpose()?,
        incoming: incoming.transpose()?,
        host,
        uplink,
    })
}
