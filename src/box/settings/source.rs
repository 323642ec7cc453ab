//! Checks `steer.source`: the addresses that steered traffic has in place of the hosts'.

use super::check::{names_a_host, prefixes, quoted};
use super::forms::Sources;
use super::groups::GroupName;
use super::steer::version_name;
use super::{Settings, SettingsError};
use exitmark_policy::packet::{Version, VlanTags};
use exitmark_policy::{Group, MAX_PREFIXES, Steer, Translation};
use exitmark_service::config::value;
use ipnet::IpNet;
use std::collections::BTreeMap;

/// The key of the file, and that of a group.
pub(super) const OF_SITE: &str = "steer.source";
pub(super) const OF_GROUP: &str = "host.steer.source";
/// The value that leaves the hosts' addresses as they are.
const KEEP: &str = "keep";

const FORMS: &str = "give \"keep\", an address of the network of incoming in place of each host's, or \
                     a table such as { \"192.0.2.10\" = \"203.0.113.10\" }";

impl Settings {
    /// What this machine must fulfil for each address of `steer.source` of a box, as a sentence.
    pub(crate) fn conditions_of_sources(&self) -> Vec<String> {
        let names: Vec<_> = self.all_incoming().map(|one| &*one.interface).collect();
        let names = names.join(" or ");
        let of_group = |group: &Group| {
            let interface = match group.path.vlan {
                VlanTags::UNTAGGED => names.clone(),
                vlan => format!("{names} ({vlan})"),
            };
            let condition = move |translation: &Translation| {
                let net = translation.incoming();
                let reaches = match net.prefix_len() == net.max_prefix_len() {
                    true => format!("the box must have {} on {interface}", net.addr()),
                    false => format!("the router on {interface} must route {net} to the box"),
                };
                format!(
                    "{OF_SITE}: {reaches}; no program of the box may listen there or connect from \
                     there, and no other machine may use it"
                )
            };
            group.translations.iter().map(condition).collect::<Vec<_>>()
        };
        self.rules.groups().iter().flat_map(of_group).collect()
    }
}

/// The translations of a group with these addresses. Those of an IP version that is not steered
/// are left out.
pub(super) fn translations(
    key: &'static str,
    raw: &Sources,
    own: &[IpNet],
    steer: Steer,
) -> Result<Vec<Translation>, SettingsError> {
    let given = match raw {
        Sources::One(text) => one_each(key, std::slice::from_ref(text), own)?,
        Sources::List(texts) => one_each(key, texts, own)?,
        Sources::ByHost(table) => by_host(key, table, own)?,
    };
    let is_steered = |net: &IpNet| steer.routes(version_of(net));
    let steered: Vec<_> = given
        .into_iter()
        .filter(|translation| is_steered(&translation.host()))
        .collect();
    if steered.is_empty() && keeps(raw) {
        return Ok(steered);
    }
    if let Some(lacking) = own
        .iter()
        .find(|net| is_steered(net) && !is_covered(net, &steered))
    {
        let reason = format!(
            "has no address for {lacking}, whose relay traffic over {} is steered, and would leave \
             with an address that the network of incoming does not route: {FORMS}; or put {lacking} \
             into a group with steer.source = \"keep\" or without a next hop of this IP version",
            version_name(version_of(lacking))
        );
        return Err(value(key, raw, reason));
    }
    Ok(steered)
}

const fn version_of(net: &IpNet) -> Version {
    match net {
        IpNet::V4(_) => Version::V4,
        IpNet::V6(_) => Version::V6,
    }
}

fn keeps(raw: &Sources) -> bool {
    match raw {
        Sources::One(text) => text == KEEP,
        Sources::List(texts) => matches!(texts.as_slice(), [one] if one == KEEP),
        Sources::ByHost(_) => false,
    }
}

/// Addresses, each in place of the only one of its IP version.
fn one_each(
    key: &'static str,
    texts: &[String],
    own: &[IpNet],
) -> Result<Vec<Translation>, SettingsError> {
    match texts {
        [] => return Err(value(key, "[]", FORMS)),
        [one] if one == KEEP => return Ok(Vec::new()),
        _ => {}
    }
    let mut translations: Vec<Translation> = Vec::with_capacity(texts.len());
    for source in sources(key, texts)? {
        let name = version_name(version_of(&source));
        let same = |net: &&IpNet| version_of(net) == version_of(&source);
        let host = match own.iter().filter(same).collect::<Vec<_>>()[..] {
            [host] => *host,
            [] => {
                let reason = format!("is an {name} address, and no address of the hosts is");
                return Err(quoted(key, source, reason));
            }
            [first, second, ..] => {
                let reason = format!(
                    "is in place of which {name} address of the hosts? Each needs one of its own, \
                     because the answers carry nothing else that tells the hosts apart: give a table \
                     such as {{ \"{first}\" = \"{source}\", \"{second}\" = … }}"
                );
                return Err(quoted(key, source, reason));
            }
        };
        if translations.iter().any(|known| known.host() == host) {
            let reason = format!("is the second in place of {host}; give one");
            return Err(quoted(key, source, reason));
        }
        translations.push(pair(key, host, source)?);
    }
    Ok(translations)
}

/// The entries of the table that are of these hosts.
fn by_host(
    key: &'static str,
    table: &BTreeMap<String, String>,
    own: &[IpNet],
) -> Result<Vec<Translation>, SettingsError> {
    let mut translations = Vec::with_capacity(table.len());
    for (host, source) in table {
        let host = one_of(prefixes(key, std::slice::from_ref(host))?);
        let source = one_of(sources(key, std::slice::from_ref(source))?);
        if let (Some(host), Some(source)) = (host, source)
            && own.iter().any(|net| net.contains(&host))
        {
            translations.push(pair(key, host, source)?);
        }
    }
    Ok(translations)
}

fn one_of(nets: Vec<IpNet>) -> Option<IpNet> {
    nets.into_iter().next()
}

/// Parses addresses of the network of `incoming`.
fn sources(key: &'static str, texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    if texts.iter().any(|text| text == KEEP) {
        let reason = format!("is for all hosts or none: {FORMS}");
        return Err(quoted(key, KEEP, reason));
    }
    let nets = prefixes(key, texts)?;
    let is_link_local = |net: &IpNet| match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    };
    match nets
        .iter()
        .find(|net| !names_a_host(net.addr()) || is_link_local(net))
    {
        Some(net) => {
            let reason = "is not an address at which relays can answer; give an address of the \
                          network of incoming that the box has for this alone";
            Err(quoted(key, net, reason))
        }
        None => Ok(nets),
    }
}

fn pair(key: &'static str, host: IpNet, source: IpNet) -> Result<Translation, SettingsError> {
    Translation::new(host, source).ok_or_else(|| {
        let reason = format!(
            "is in place of {host}, and must be of the same IP version and length: an address for \
             an address, a /28 for a /28"
        );
        quoted(key, source, reason)
    })
}

/// Whether all addresses of a prefix are translated, if none is twice, which [`check`] refuses.
fn is_covered(net: &IpNet, translations: &[Translation]) -> bool {
    let size = |net: &IpNet| 1_u128 << (net.max_prefix_len() - net.prefix_len()).min(127);
    let within = translations
        .iter()
        .map(Translation::host)
        .filter(|host| net.contains(host) || host.contains(net));
    within.map(|host| size(&host)).sum::<u128>() >= size(net)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Checks the translations of all groups against each other and the hosts.
pub(super) fn check(
    raw: Option<&Sources>,
    groups: &[(GroupName, &'static str, Group)],
    hosts: &[IpNet],
) -> Result<(), SettingsError> {
    let mut taken: Vec<(Translation, &GroupName)> = Vec::new();
    for (name, key, group) in groups {
        for translation in &group.translations {
            let source = translation.incoming();
            let refuse = |reason: String| Err(name.locate(quoted(key, source, reason)));
            if let Some(host) = hosts.iter().find(|host| overlap(host, &source)) {
                return refuse(format!(
                    "overlaps {host}, an address of the hosts; give an address of the network of \
                     incoming that the box has for this alone"
                ));
            }
            let twice = |(other, _): &&(Translation, _)| {
                overlap(&other.incoming(), &source) || overlap(&other.host(), &translation.host())
            };
            if let Some((other, _)) = taken.iter().find(twice) {
                return refuse(format!(
                    "is in place of {}, and {} is in place of {}: each address of the hosts needs \
                     one of its own, because the answers carry nothing else that tells the hosts \
                     apart",
                    translation.host(),
                    other.incoming(),
                    other.host()
                ));
            }
            taken.push((*translation, name));
        }
    }
    if taken.len() > MAX_PREFIXES {
        let reason = format!("are more than {MAX_PREFIXES}; translate prefixes");
        return Err(value(
            OF_SITE,
            format_args!("{} entries", taken.len()),
            reason,
        ));
    }
    // An entry of the table that is of no host is a mistake.
    let Some(Sources::ByHost(table)) = raw else {
        return Ok(());
    };
    for text in table.keys() {
        let host = one_of(prefixes(OF_SITE, std::slice::from_ref(text))?);
        if host.is_some_and(|host| !hosts.iter().any(|net| net.contains(&host))) {
            let reason = "is in neither host.addresses nor host.relay_addresses";
            return Err(quoted(OF_SITE, text, reason));
        }
    }
    Ok(())
}
