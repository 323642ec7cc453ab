//! Checks how relay traffic is steered, for each group: next hops, VLAN tags and priority.

use super::check::quoted;
use super::forms::{NextHops, Sources, Tags};
use super::groups::GroupName;
use super::wires::incoming_key;
use super::{Hop, SettingsError, Wire, raw, source};
use exitmark_nic::NextHop;
use exitmark_policy::packet::{MacAddr, Version, VlanTags};
use exitmark_policy::{Steer, SteeredPath, Translation};
use exitmark_service::config::{parsed, value};
use ipnet::IpNet;
use std::net::IpAddr;

/// The names of the keys in a table.
struct Keys {
    next_hop: &'static str,
    vlan: &'static str,
    pcp: &'static str,
}

const OF_SITE: Keys = Keys {
    next_hop: "steer.next_hop",
    vlan: "steer.vlan",
    pcp: "steer.pcp",
};

const OF_GROUP: Keys = Keys {
    next_hop: "host.steer.next_hop",
    vlan: "host.steer.vlan",
    pcp: "host.steer.pcp",
};

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// The checked keys of `[steer]`, or of a group's.
struct Table {
    /// For each IP version.
    next_hops: Option<[Option<NextHop>; 2]>,
    vlan: Option<VlanTags>,
    priority: Option<u8>,
}

impl Table {
    fn new(
        keys: &Keys,
        (next_hop, vlan, pcp): (Option<&NextHops>, Option<&Tags>, Option<i64>),
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            next_hops: next_hop
                .map(|raw| next_hops(keys.next_hop, raw))
                .transpose()?,
            vlan: vlan.map(|raw| tags(keys.vlan, raw)).transpose()?,
            priority: pcp.map(|raw| priority(keys.pcp, raw)).transpose()?,
        })
    }
}

/// The key that a next hop is from.
#[derive(Clone, Debug)]
pub(super) struct HopKey {
    pub(super) key: &'static str,
    /// If the key is one of a group's.
    pub(super) group: Option<GroupName>,
}

impl HopKey {
    /// An error in this key.
    pub(super) fn error(&self, next_hop: NextHop, reason: impl std::fmt::Display) -> SettingsError {
        let error = quoted(self.key, next_hop, reason);
        match &self.group {
            Some(group) => group.locate(error),
            None => error,
        }
    }
}

/// The steering of all groups; numbers their next hops.
pub(super) struct Steering {
    site: Table,
    is_enabled: bool,
    drops_unsteered: bool,
    has_incoming: bool,
    incoming_key: &'static str,
    /// `incoming` is the uplink, in some wire.
    shares_uplink: bool,
    /// `steer.source`.
    source: Option<Sources>,
    by_relays: bool,
    hops: Vec<(Hop, HopKey)>,
}

impl Steering {
    /// Checks `[steer]`.
    pub(super) fn new(
        raw: &raw::Raw,
        wires: &[Wire],
        given: &toml::Table,
    ) -> Result<Self, SettingsError> {
        let steer = &raw.steer;
        let keys = (steer.next_hop.as_ref(), steer.vlan.as_ref(), steer.pcp);
        let hosts = raw.host.groups();
        let lacks_next_hop = |host: &raw::Host| {
            let is_enabled = host.steer.enabled.unwrap_or(steer.enabled);
            is_enabled && host.steer.next_hop.is_none() && steer.next_hop.is_none()
        };
        let incoming_key = incoming_key(raw.wire.is_some());
        // Every wire has one, or none has.
        let incoming = wires.first().and_then(|wire| wire.ports.incoming.as_ref());
        match incoming {
            None => needs_incoming(raw, given, incoming_key)?,
            Some(incoming) if hosts.iter().all(lacks_next_hop) => {
                let reason = "relay traffic needs steer.next_hop, the address or MAC address of \
                              the router on that network";
                return Err(quoted(incoming_key, &incoming.interface, reason));
            }
            Some(_) => {}
        }
        let site = Table::new(&OF_SITE, keys)?;
        let has_tags = |tags: &Option<Tags>| tags.as_ref().is_some_and(|tags| !tags.0.is_empty());
        if let Some(pcp) = site.priority
            && !has_tags(&steer.vlan)
            && !hosts.iter().any(|host| has_tags(&host.steer.vlan))
        {
            return Err(value(OF_SITE.pcp, pcp, PCP_WITHOUT_TAG));
        }
        let leaves_by_uplink = |wire: &Wire| {
            let incoming = wire.ports.incoming.as_ref();
            incoming.is_some_and(|incoming| incoming.interface == wire.ports.uplink)
        };
        let steering = Self {
            site,
            is_enabled: steer.enabled,
            drops_unsteered: incoming.is_some_and(|incoming| incoming.drops_unsteered),
            has_incoming: incoming.is_some(),
            incoming_key,
            shares_uplink: wires.iter().any(leaves_by_uplink),
            source: steer.source.clone(),
            by_relays: matches!(raw.classify_by, raw::ClassifyBy::RelaySet),
            hops: Vec::new(),
        };
        let key = HopKey {
            key: OF_SITE.next_hop,
            group: None,
        };
        steering.can_resolve(steering.site.next_hops, &key)?;
        Ok(steering)
    }

    /// Checks a group's `steer`, and returns which of its relay frames are steered, and how.
    pub(super) fn of_group(
        &mut self,
        name: &GroupName,
        raw: &raw::HostSteer,
    ) -> Result<(Steer, SteeredPath), SettingsError> {
        let keys = (raw.next_hop.as_ref(), raw.vlan.as_ref(), raw.pcp);
        let own = Table::new(&OF_GROUP, keys)?;
        let vlan = own.vlan.or(self.site.vlan).unwrap_or_default();
        if let Some(pcp) = own.priority
            && vlan == VlanTags::UNTAGGED
        {
            return Err(value(OF_GROUP.pcp, pcp, PCP_WITHOUT_TAG));
        }
        let mut path = SteeredPath {
            next_hops: [0; 2],
            vlan,
            priority: own.priority.or(self.site.priority),
        };
        let key = match own.next_hops {
            Some(_) => HopKey {
                key: OF_GROUP.next_hop,
                group: Some(name.clone()),
            },
            None => HopKey {
                key: OF_SITE.next_hop,
                group: None,
            },
        };
        self.can_resolve(own.next_hops, &key)?;
        if !self.has_incoming || !raw.enabled.unwrap_or(self.is_enabled) {
            return Ok((Steer::Off, path));
        }
        let next_hops = own.next_hops.or(self.site.next_hops).unwrap_or_default();
        if next_hops == [None; 2] && self.drops_unsteered {
            let reason = "drops relay traffic that cannot be steered, but this group has no next \
                          hop, so its relay traffic would leave by the uplink: set steer.next_hop, \
                          or steer.enabled = false for the group";
            return Err(quoted("steer.on_unavailable", "drop", reason));
        }
        for (number, next_hop) in path.next_hops.iter_mut().zip(next_hops) {
            if let Some(next_hop) = next_hop {
                *number = self.number(Hop { next_hop, vlan }, &key);
            }
        }
        let steer = Steer::of(|version| next_hops[version as usize].is_some());
        Ok((steer, path))
    }

    /// The addresses that the steered traffic of a group with these addresses has in place of
    /// them, and the key that they are from.
    pub(super) fn translations(
        &self,
        raw: &raw::HostSteer,
        own: &[IpNet],
        steer: Steer,
    ) -> Result<(Vec<Translation>, &'static str), SettingsError> {
        let (key, given) = match (&raw.source, &self.source) {
            (Some(own), _) => (source::OF_GROUP, own),
            (None, Some(of_site)) => (source::OF_SITE, of_site),
            (None, None) => return Ok((Vec::new(), source::OF_SITE)),
        };
        let translations = source::translations(key, given, own, steer)?;
        let reason = match translations.is_empty() {
            true => return Ok((translations, key)),
            false if !self.by_relays => {
                "needs classify_by = \"relay-set\": by the relay set the box recognises the relays' \
                 answers, and translates them back"
            }
            false if self.shares_uplink => {
                "needs a network of its own: where incoming is the uplink, the box's own stack \
                 receives no frames, and cannot answer for the address"
            }
            false => return Ok((translations, key)),
        };
        Err(value(key, given, reason))
    }

    /// The number of a next hop, which equal ones share.
    fn number(&mut self, hop: Hop, key: &HopKey) -> u8 {
        let known = self.hops.iter().position(|(known, _)| *known == hop);
        let number = known.unwrap_or_else(|| {
            self.hops.push((hop, key.clone()));
            self.hops.len() - 1
        });
        // A group has two next hops, and there are at most MAX_GROUPS groups.
        u8::try_from(number).unwrap_or(u8::MAX)
    }

    /// Refuses an address that the box cannot resolve, because the uplink's frames do not reach its
    /// own network stack.
    fn can_resolve(
        &self,
        next_hops: Option<[Option<NextHop>; 2]>,
        key: &HopKey,
    ) -> Result<(), SettingsError> {
        let is_address = |hop: &NextHop| matches!(hop, NextHop::Address(_));
        let given = next_hops.unwrap_or_default();
        match given.into_iter().flatten().find(is_address) {
            Some(next_hop) if self.shares_uplink => {
                let reason = format!(
                    "cannot be resolved where {} is the uplink: the box's own network stack \
                     receives no frames from it; give the router's MAC address",
                    self.incoming_key
                );
                Err(quoted(key.key, next_hop, reason))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a host as a next hop: steered frames would come back to it. Returns the next hops by
    /// their numbers.
    pub(super) fn hops(
        self,
        hosts: &[IpNet],
        macs: &[MacAddr],
    ) -> Result<(Vec<Hop>, Vec<HopKey>), SettingsError> {
        for (hop, key) in &self.hops {
            let is_host = match hop.next_hop {
                NextHop::Mac(mac) => macs.contains(&mac),
                NextHop::Address(address) => hosts.iter().any(|net| net.contains(&address)),
            };
            if is_host {
                let reason = format!(
                    "is the Tor host, so relay traffic would go back to it; name the router on the \
                     network of {}",
                    self.incoming_key
                );
                return Err(key.error(hop.next_hop, reason));
            }
        }
        Ok(self.hops.into_iter().unzip())
    }
}

const PCP_WITHOUT_TAG: &str = "is the priority of a VLAN tag, and steered frames have no tag: set \
                               steer.vlan, or remove the key";

/// Refuses keys that need `incoming`. `given` is what the file has, without defaults.
fn needs_incoming(
    raw: &raw::Raw,
    given: &toml::Table,
    incoming: &str,
) -> Result<(), SettingsError> {
    const OF_SITE: [&str; 5] = [
        "steer.next_hop",
        "steer.vlan",
        "steer.pcp",
        "steer.enabled",
        source::OF_SITE,
    ];
    const OF_GROUP: [&str; 5] = [
        "host.steer.next_hop",
        "host.steer.vlan",
        "host.steer.pcp",
        "host.steer.enabled",
        source::OF_GROUP,
    ];
    let refuse = |table: Option<&toml::Value>, keys: [&'static str; 5]| {
        let found = |key: &'static str| {
            let (_, name) = key.rsplit_once('.')?;
            // `enabled = false` and `source = "keep"` need no NIC.
            let found = table?.get(name)?;
            let needs = found.as_bool() != Some(false) && found.as_str() != Some("keep");
            needs.then_some((key, found))
        };
        let reason =
            format!("steering needs {incoming}; without it relay traffic leaves by the uplink");
        match keys.into_iter().find_map(found) {
            Some((key, found)) => Err(value(key, found, reason)),
            None => Ok(()),
        }
    };
    if matches!(raw.steer.on_unavailable, raw::OnUnavailable::Drop) && raw.steer.next_hop.is_none()
    {
        let reason = format!(
            "drops relay traffic that cannot be steered, but without {incoming} nothing is \
             steered; leave the key out, or set {incoming}"
        );
        return Err(quoted("steer.on_unavailable", "drop", reason));
    }
    refuse(given.get("steer"), OF_SITE)?;
    let hosts = match given.get("host") {
        Some(toml::Value::Array(hosts)) => hosts.as_slice(),
        Some(host) => std::slice::from_ref(host),
        None => &[],
    };
    for (host, raw_host) in hosts.iter().zip(raw.host.groups()) {
        let name = GroupName::new(&raw.host, raw_host);
        refuse(host.get("steer"), OF_GROUP).map_err(|error| name.locate(error))?;
    }
    Ok(())
}

/// Parses next hops, one for each IP version at most.
fn next_hops(key: &'static str, raw: &NextHops) -> Result<[Option<NextHop>; 2], SettingsError> {
    let texts = match raw {
        NextHops::One(text) => std::slice::from_ref(text),
        NextHops::List(texts) => texts,
        NextHops::ByVersion(table) => return by_version(key, [&table.v4, &table.v6]),
    };
    let mut next_hops = [None; 2];
    for text in texts {
        let next_hop: NextHop = parsed(key, text)?;
        for version in VERSIONS {
            if applies_to(next_hop, version)
                && let Some(first) = next_hops[version as usize].replace(next_hop)
            {
                let reason = format!(
                    "is the second next hop for {}, after {first}: give one for each IP version \
                     (a MAC address is for both), or {{ v4 = …, v6 = … }}",
                    version_name(version)
                );
                return Err(quoted(key, text, reason));
            }
        }
    }
    if next_hops == [None; 2] {
        let reason = "names no router: give its address or MAC address; with steer.enabled = false \
                      nothing is steered";
        return Err(value(key, "[]", reason));
    }
    Ok(next_hops)
}

/// Parses the table form.
fn by_version(
    key: &'static str,
    texts: [&Option<String>; 2],
) -> Result<[Option<NextHop>; 2], SettingsError> {
    let mut next_hops = [None; 2];
    for (version, text) in VERSIONS.into_iter().zip(texts) {
        let Some(text) = text else { continue };
        let next_hop: NextHop = parsed(key, text)?;
        if !applies_to(next_hop, version) {
            let reason = format!(
                "is not an {0} address, and stands for {0} ({1}): give the router's {0} address or \
                 its MAC address",
                version_name(version),
                ["v4", "v6"][version as usize]
            );
            return Err(quoted(key, text, reason));
        }
        next_hops[version as usize] = Some(next_hop);
    }
    if next_hops == [None; 2] {
        let reason = "names no router: give { v4 = \"203.0.113.1\", v6 = \"fe80::1\" }, or one of \
                      the two; with steer.enabled = false nothing is steered";
        return Err(value(key, "{}", reason));
    }
    Ok(next_hops)
}

fn applies_to(next_hop: NextHop, version: Version) -> bool {
    match (next_hop, version) {
        (NextHop::Mac(_), _)
        | (NextHop::Address(IpAddr::V4(_)), Version::V4)
        | (NextHop::Address(IpAddr::V6(_)), Version::V6) => true,
        (NextHop::Address(_), _) => false,
    }
}

/// An IP version in messages.
pub(super) const fn version_name(version: Version) -> &'static str {
    match version {
        Version::V4 => "IPv4",
        Version::V6 => "IPv6",
    }
}

/// Parses VLAN tags; none is untagged.
pub(super) fn tags(key: &'static str, raw: &Tags) -> Result<VlanTags, SettingsError> {
    let id = |id: i64| u16::try_from(id).ok().filter(|id| (1..=4094).contains(id));
    let ids: Option<Vec<u16>> = raw.0.iter().copied().map(id).collect();
    match ids.as_deref() {
        Some([]) => Ok(VlanTags::UNTAGGED),
        Some([id]) => Ok(VlanTags::one(*id)),
        Some([outer, inner]) => Ok(VlanTags::pair(*outer, *inner)),
        Some(_) => {
            let reason = "are more than the two tags that are supported: give the ID of one, 1 to \
                          4094, or [outer, inner]";
            Err(value(key, raw, reason))
        }
        None => {
            let reason = "is not the ID of a VLAN, 1 to 4094, or [outer, inner] for two tags; \
                          without the key, frames are untagged";
            Err(value(key, raw, reason))
        }
    }
}

fn priority(key: &'static str, raw: i64) -> Result<u8, SettingsError> {
    let pcp = u8::try_from(raw).ok().filter(|pcp| *pcp <= 7);
    pcp.ok_or_else(|| {
        let reason = "is not a priority (PCP): 0 to 7; without the key, that of the frame is kept";
        value(key, raw, reason)
    })
}
