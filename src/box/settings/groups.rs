//! Makes the groups of the policy from `[host]` or `[[host]]`, `[mark]` and `[steer]`.

use super::check::{at_most, prefixes, quoted};
use super::forms::Hosts;
use super::steer::{HopKey, Steering, tags};
use super::{Hop, SettingsError, host, raw, source};
use exitmark_policy::packet::{Dscp, MacAddr, VlanTags};
use exitmark_policy::{
    Actions, ClassifyBy, Group, Intent, Listener, MAX_GROUPS, MAX_LISTENERS, MAX_PREFIXES,
    MAX_RESOLVERS, PrefixSet, Steer,
};
use exitmark_service::config::{RawDscp, code_point, parsed, value};
use ipnet::IpNet;
use std::collections::BTreeSet;

/// The most pairs of group and port that several groups may have, without the ports on which every
/// group listens. In the kernel they are further listeners with an address.
const MAX_GROUP_PORTS: usize = 1024;
/// The longest name of a group in characters.
const MAX_NAME: usize = 32;

/// The group that an error is about.
#[derive(Clone, Debug)]
pub(super) struct GroupName {
    name: String,
    /// The file has `[[host]]`.
    is_of_several: bool,
}

impl GroupName {
    pub(super) fn new(hosts: &Hosts, host: &raw::Host) -> Self {
        Self {
            name: host.name().to_owned(),
            is_of_several: hosts.are_several(),
        }
    }

    /// The same error, with the group if the file has several.
    pub(super) fn locate(&self, error: SettingsError) -> SettingsError {
        match self.is_of_several {
            true => with_groups(error, &[&self.name]),
            false => error,
        }
    }
}

/// The same error, with the groups that it is about.
pub(super) fn with_groups(error: SettingsError, names: &[&str]) -> SettingsError {
    /// The most names; a site may have 64 groups with the same fault.
    const NAMED: usize = 4;
    let SettingsError::Value { key, value, reason } = error else {
        return error;
    };
    let (named, others) = names.split_at(names.len().min(NAMED));
    let noun = if names.len() == 1 { "group" } else { "groups" };
    let quoted: Vec<_> = named.iter().map(|name| format!("\"{name}\"")).collect();
    let more = match others.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let value = format!("{value} ({noun} {}{more})", quoted.join(", "));
    SettingsError::Value { key, value, reason }
}

/// Checks the names of the groups, and names those without: `one` in `[host]`, `host-1`, `host-2`
/// and so on in `[[host]]`.
pub(super) fn set_names(hosts: &mut Hosts, one: &str) -> Result<(), SettingsError> {
    const KEY: &str = "host.name";
    let named = match hosts {
        Hosts::One(host) => {
            host.name.get_or_insert_with(|| one.to_owned());
            std::slice::from_ref(&**host)
        }
        Hosts::Several(hosts) => {
            for (number, host) in (1..).zip(&mut *hosts) {
                host.name.get_or_insert_with(|| format!("host-{number}"));
            }
            hosts.as_slice()
        }
    };
    let count = named.len();
    if count == 0 {
        let reason = "is no group of hosts; write [host], or [[host]] once for each group";
        return Err(value("host", "[]", reason));
    }
    if count > MAX_GROUPS {
        let reason = format!("are more than {MAX_GROUPS}; put hosts with equal keys into one");
        return Err(value("host", format_args!("{count} groups"), reason));
    }
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    for (index, host) in named.iter().enumerate() {
        let (name, number) = (host.name(), index + 1);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_legal) {
            let reason = format!(
                "is not a name for group {number}: a to z, 0 to 9 and -, at most {MAX_NAME} \
                 characters"
            );
            return Err(value(KEY, format_args!("{name:?}"), reason));
        }
        let same = |other: &raw::Host| other.name() == name;
        if let Some(before) = named[..index].iter().position(same) {
            let reason = format!(
                "is the name of group {} and of group {number}; each needs a name of its own \
                 (without the key it is \"host-\" and the number)",
                before + 1
            );
            return Err(quoted(KEY, name, reason));
        }
    }
    Ok(())
}

/// What is limited by the room in the kernel, of all groups together.
#[derive(Default)]
struct Totals {
    /// The hosts' addresses, with the index of the group and the key.
    prefixes: Vec<(IpNet, usize, &'static str)>,
    resolvers: Vec<IpNet>,
    exempt: Vec<IpNet>,
    /// Listeners with an address.
    endpoints: usize,
}

impl Totals {
    /// Refuses more than there is room for.
    fn check(&self, hosts: &Hosts) -> Result<(), SettingsError> {
        let of_all = if hosts.are_several() {
            " of all groups"
        } else {
            ""
        };
        let prefixes = self.prefixes.iter().map(|(net, ..)| net);
        at_most(MAX_PREFIXES, "host.addresses", prefixes, of_all)?;
        at_most(MAX_RESOLVERS, "host.resolvers", &self.resolvers, of_all)?;
        at_most(MAX_PREFIXES, "host.exempt", &self.exempt, of_all)?;
        let count = self.endpoints;
        if count > MAX_LISTENERS {
            let reason = format!(
                "are more than {MAX_LISTENERS}{of_all} with an address; a bare port counts on every \
                 address"
            );
            return Err(value(
                "host.listeners",
                format_args!("{count} entries"),
                reason,
            ));
        }
        Ok(())
    }
}

/// The groups, checked.
pub(super) struct Groups {
    pub(super) groups: Vec<Group>,
    /// The addresses of all groups, of both kinds.
    pub(super) prefixes: Vec<IpNet>,
    /// The next hops by their numbers.
    pub(super) next_hops: Vec<Hop>,
    pub(super) hop_keys: Vec<HopKey>,
}

impl Groups {
    /// Checks the groups of a box, each by itself and all together.
    pub(super) fn of_box(raw: &raw::Raw, mut steering: Steering) -> Result<Self, SettingsError> {
        let mut totals = Totals::default();
        let mut named = Vec::new();
        for host in raw.host.groups() {
            let name = GroupName::new(&raw.host, host);
            let mut group = || {
                let (steer, path) = steering.of_group(&name, &host.steer)?;
                let index = named.len();
                let group = of_box(raw, host, index, steer, &mut totals)?;
                let own = totals.prefixes.iter().filter(|(_, of, _)| *of == index);
                let own: Vec<_> = own.map(|(net, ..)| *net).collect();
                let (translations, key) = steering.translations(&host.steer, &own, steer)?;
                let translations = translations.into_boxed_slice();
                Ok((
                    key,
                    Group {
                        path,
                        translations,
                        ..group
                    },
                ))
            };
            let (key, group) = group().map_err(|error| name.locate(error))?;
            named.push((name, key, group));
        }
        are_disjoint(raw.host.groups(), &totals)?;
        let hosts: Vec<_> = totals.prefixes.iter().map(|(net, ..)| *net).collect();
        source::check(raw.steer.source.as_ref(), &named, &hosts)?;
        let groups: Vec<_> = named.into_iter().map(|(_, _, group)| group).collect();
        check_ports(&groups)?;
        let macs: Vec<MacAddr> = groups.iter().filter_map(|group| group.mac).collect();
        let (next_hops, hop_keys) = steering.hops(&hosts, &macs)?;
        Ok(Self {
            groups,
            prefixes: hosts,
            next_hops,
            hop_keys,
        })
    }

    /// Checks the only group of engine `connect`: the connections of tor on this machine.
    pub(super) fn of_tor(raw: &raw::Raw, steer: Steer) -> Result<Self, SettingsError> {
        // There is exactly one: this engine refuses `[[host]]`.
        let host = &raw.host.groups()[0];
        Ok(Self {
            groups: vec![of_any(raw, host, &[], steer, &mut Totals::default())?],
            prefixes: Vec::new(),
            next_hops: Vec::new(),
            hop_keys: Vec::new(),
        })
    }
}

/// A group of a box, without its path.
fn of_box(
    raw: &raw::Raw,
    host: &raw::Host,
    index: usize,
    steer: Steer,
    totals: &mut Totals,
) -> Result<Group, SettingsError> {
    const KEYS: [&str; 2] = ["host.addresses", "host.relay_addresses"];
    let addresses = prefixes(KEYS[0], &host.addresses)?;
    let relay_addresses = prefixes(KEYS[1], &host.relay_addresses)?;
    host::addresses(&addresses, &relay_addresses)?;
    for (key, nets) in KEYS.into_iter().zip([&addresses, &relay_addresses]) {
        let entries = nets.iter().map(|net| (*net, index, key));
        totals.prefixes.extend(entries);
    }
    let own: Vec<IpNet> = addresses.iter().chain(&relay_addresses).copied().collect();
    let listeners = host::listeners(&host.listeners, &own)?;
    let has_address = |listener: &&Listener| matches!(listener, Listener::Endpoint(_));
    totals.endpoints += listeners.iter().filter(has_address).count();
    let mac = host.mac.as_deref().map(|text| parsed("host.mac", text));
    let vlan = host.vlan.as_ref().map(|raw| tags("host.vlan", raw));
    let vlan = vlan.transpose()?.unwrap_or(VlanTags::UNTAGGED);
    check_uplink(&raw.uplink, &host.uplink, vlan)?;
    Ok(Group {
        addresses: PrefixSet::new(addresses),
        relay_addresses: PrefixSet::new(relay_addresses),
        listeners,
        mac: mac.transpose()?,
        vlan,
        ..of_any(raw, host, &own, steer, totals)?
    })
}

/// Refuses other tags at the uplink, of the group or of all, than the hosts of the group have.
fn check_uplink(
    of_all: &raw::Uplink,
    own: &raw::Uplink,
    vlan: VlanTags,
) -> Result<(), SettingsError> {
    let checked = |key, given: &raw::Uplink| {
        let given = given.vlan.clone();
        given
            .map(|raw| tags(key, &raw).map(|tags| (key, raw, tags)))
            .transpose()
    };
    let of_all = checked("uplink.vlan", of_all)?;
    let own = checked("host.uplink.vlan", own)?;
    match own.or(of_all) {
        Some((key, raw, tags)) if tags != vlan => {
            let reason = format!(
                "is not host.vlan, {vlan}, and the wire changes no tags between host and uplink: \
                 only steered frames and their answers get others. Make the switch port at the \
                 uplink a trunk or access port on which frames are as the hosts send them, or \
                 change the hosts' tags, and set both keys to these tags; groups with different \
                 tags have host.uplink.vlan each"
            );
            Err(value(key, raw, reason))
        }
        _ => Ok(()),
    }
}

/// The keys that every engine has. `own` are the addresses of the group.
fn of_any(
    raw: &raw::Raw,
    host: &raw::Host,
    own: &[IpNet],
    steer: Steer,
    totals: &mut Totals,
) -> Result<Group, SettingsError> {
    let resolvers = host::resolvers(&host.resolvers, own)?;
    let exempt = host::exempt(&host.exempt)?;
    totals.resolvers.extend(&resolvers);
    totals.exempt.extend(&exempt);
    totals.check(&raw.host)?;
    let intent = Intent {
        mode: raw.mode,
        mark: mark(&raw.mark, &host.mark)?,
        at_uplink: host.mark.at_uplink.unwrap_or(raw.mark.at_uplink),
        steer,
    };
    Ok(Group {
        resolvers: PrefixSet::new(resolvers),
        exempt: PrefixSet::new(exempt),
        exit_protocols: host.mark.protocols.unwrap_or(raw.mark.protocols),
        ..Group::new(host.name(), Actions::new(intent))
    })
}

/// The mark of a group: its own, or the file's, which is always checked.
fn mark(of_all: &raw::Mark, own: &raw::HostMark) -> Result<Dscp, SettingsError> {
    let keys = ["mark.dscp", "mark.tos"];
    let of_all = code_point(keys, of_all.dscp.as_ref(), of_all.tos)?;
    if own.dscp.is_none() && own.tos.is_none() {
        return Ok(of_all);
    }
    let keys = ["host.mark.dscp", "host.mark.tos"];
    code_point(keys, own.dscp.as_ref(), own.tos)
}

/// How exit traffic is recognised: the host mark is the same for all groups.
pub(super) fn classify_by(raw: &raw::Raw) -> Result<ClassifyBy, SettingsError> {
    const KEYS: [&str; 2] = ["host.dscp", "host.tos"];
    let hosts = raw.host.groups().iter();
    let mut given = hosts.filter(|host| host.dscp.is_some() || host.tos.is_some());
    let locate = |host: &raw::Host, error| GroupName::new(&raw.host, host).locate(error);
    match raw.classify_by {
        raw::ClassifyBy::HostMark => {
            let read = |host: &raw::Host| {
                let mark = code_point(KEYS, host.dscp.as_ref(), host.tos);
                mark.map_err(|error| locate(host, error))
            };
            let Some(first) = given.next() else {
                return Ok(ClassifyBy::HostMark(Dscp::AF11));
            };
            let mark = read(first)?;
            for host in given {
                let other = read(host)?;
                if other != mark {
                    let reason = format!(
                        "is not {mark}, that of group \"{}\": all hosts have the same mark; give it \
                         in one group",
                        first.name()
                    );
                    return Err(locate(host, value(KEYS[0], other, reason)));
                }
            }
            Ok(ClassifyBy::HostMark(mark))
        }
        raw::ClassifyBy::RelaySet => {
            let reason = "is the mark of a host that is patched to set one, and only read with \
                          classify_by = \"host-mark\"; what the box writes is mark.dscp";
            let Some(host) = given.next() else {
                return Ok(ClassifyBy::RelaySet);
            };
            let error = match (&host.dscp, host.tos) {
                (Some(RawDscp::Name(name)), _) => quoted(KEYS[0], name, reason),
                (Some(RawDscp::Number(number)), _) => value(KEYS[0], number, reason),
                (None, tos) => {
                    let tos = tos.unwrap_or_default();
                    value(KEYS[1], format_args!("{tos:#04x}"), reason)
                }
            };
            Err(locate(host, error))
        }
    }
}

/// Refuses an address of two groups.
fn are_disjoint(hosts: &[raw::Host], totals: &Totals) -> Result<(), SettingsError> {
    let mut sorted = totals.prefixes.clone();
    // A prefix comes directly behind the widest one that contains it, or behind others in that one.
    sorted.sort_unstable();
    let mut widest: Option<(IpNet, usize, &str)> = None;
    for entry @ (net, group, _) in sorted {
        let within = widest.filter(|(widest, ..)| widest.contains(&net));
        match within {
            None => widest = Some(entry),
            Some((_, other, _)) if other == group => {}
            Some(other) => {
                let name = |index: usize| hosts[index].name();
                // The later group in the file is at fault.
                let (first, (net, group, key)) = match other.1 < group {
                    true => (other, entry),
                    false => (entry, other),
                };
                let reason = format!(
                    "overlaps {} of group \"{}\"; an address belongs to one group",
                    first.0,
                    name(first.1)
                );
                return Err(with_groups(quoted(key, net, reason), &[name(group)]));
            }
        }
    }
    Ok(())
}

/// Refuses more ports of groups than there is room for.
fn check_ports(groups: &[Group]) -> Result<(), SettingsError> {
    if groups.len() < 2 {
        return Ok(());
    }
    let ports = |group: &Group| -> BTreeSet<u16> {
        let port = |listener: &Listener| match listener {
            Listener::Port(port) => Some(*port),
            Listener::Endpoint(_) => None,
        };
        group.listeners.iter().filter_map(port).collect()
    };
    let of_each: Vec<_> = groups.iter().map(ports).collect();
    let is_everywhere = |port: &u16| of_each.iter().all(|ports| ports.contains(port));
    let of_some = |ports: &BTreeSet<u16>| ports.iter().filter(|port| !is_everywhere(port)).count();
    let count: usize = of_each.iter().map(of_some).sum();
    if count > MAX_GROUP_PORTS {
        let reason = format!(
            "are more than {MAX_GROUP_PORTS} of all groups, not counting ports on which every group \
             listens: remove ports, or list them in every group"
        );
        return Err(value(
            "host.listeners",
            format_args!("{count} ports"),
            reason,
        ));
    }
    Ok(())
}
