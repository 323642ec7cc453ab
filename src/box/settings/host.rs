//! Checks the keys of a group of hosts.

use super::check::{endpoint, names_a_host, prefixes, quoted};
use super::objections::{covers_too_much, is_wider_than_a_site};
use super::{SettingsError, raw};
use exitmark_policy::{Endpoint, Listener};
use exitmark_service::config::value;
use ipnet::IpNet;
use std::net::SocketAddr;

pub(super) fn addresses(
    addresses: &[IpNet],
    relay_addresses: &[IpNet],
) -> Result<(), SettingsError> {
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
            if !names_a_host(address) {
                return Err(quoted(key, net, "is not an address that a host sends from"));
            }
            if is_wider_than_a_site(net) {
                let reason = "holds the hosts of many sites, whose traffic would count as the Tor \
                              host's; name the Tor host's own addresses";
                return Err(quoted(key, net, reason));
            }
        }
    }
    for net in relay_addresses {
        let overlap = |other: &&IpNet| other.contains(net) || net.contains(*other);
        if addresses.iter().any(|other| overlap(&other)) {
            let reason = "overlaps host.addresses; list each address under one of the two keys";
            return Err(quoted("host.relay_addresses", net, reason));
        }
    }
    Ok(())
}

/// Parses `host.resolvers`, the servers that the host reaches through the box. `"any"` is every
/// address, for a host with a recursive resolver.
pub(super) fn resolvers(raw: &raw::Resolvers, host: &[IpNet]) -> Result<Vec<IpNet>, SettingsError> {
    const KEY: &str = "host.resolvers";
    let nets = match raw {
        raw::Resolvers::Named(texts) => prefixes(KEY, texts)?,
        raw::Resolvers::Word(word) if word == "any" => {
            return prefixes(KEY, &["0.0.0.0/0", "::/0"].map(str::to_owned));
        }
        raw::Resolvers::Word(word) => {
            let reason = "is neither \"any\" nor a list such as [\"9.9.9.9\"]";
            return Err(quoted(KEY, word, reason));
        }
    };
    let is_host = |net: &&IpNet| {
        net.addr().is_loopback() || host.iter().any(|host| host == *net) && is_one(net)
    };
    let is_none = |net: &&IpNet| is_one(net) && !names_a_host(net.addr()) && !is_host(net);
    if let Some(net) = nets.iter().find(is_none) {
        return Err(quoted(KEY, net.addr(), "is not the address of a server"));
    }
    match nets.iter().find(is_host) {
        Some(net) => Err(quoted(
            KEY,
            net.addr(),
            "is the Tor host itself, and its queries to itself are never marked; for a recursive \
             resolver there, resolvers = \"any\"",
        )),
        None => Ok(nets),
    }
}

fn is_one(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Parses `host.exempt`; refuses prefixes that cover a substantial part of the internet.
pub(super) fn exempt(texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    const KEY: &str = "host.exempt";
    let nets = prefixes(KEY, texts)?;
    let widest = nets.iter().min_by_key(|net| net.prefix_len());
    match (covers_too_much(&nets), widest) {
        (Some(percent), Some(widest)) => {
            let reason = format!(
                "covers, with the other prefixes, {percent} % of the Internet, and exit traffic to \
                 them would not be marked; name the destinations of the host's own traffic, or set \
                 mode = \"audit\" to mark nothing"
            );
            Err(quoted(KEY, widest, reason))
        }
        _ => Ok(nets),
    }
}

pub(super) fn listeners(
    raw: &[raw::Listener],
    host: &[IpNet],
) -> Result<Box<[Listener]>, SettingsError> {
    const KEY: &str = "host.listeners";
    let listeners: Box<[Listener]> = raw
        .iter()
        .map(|listener| match listener {
            raw::Listener::Port(number) => u16::try_from(*number)
                .ok()
                .filter(|port| *port != 0)
                .map(Listener::Port)
                .ok_or_else(|| value(KEY, number, "is not a port: 1 to 65535")),
            raw::Listener::Endpoint(text) => endpoint(KEY, text).map(Listener::Endpoint),
        })
        .collect::<Result<_, _>>()?;
    for listener in &listeners {
        let Listener::Endpoint(Endpoint { address, port }) = *listener else {
            continue;
        };
        let shown = SocketAddr::new(address, port);
        if address.is_unspecified() {
            let reason = format!("is every address; give only the port: {port}");
            return Err(quoted(KEY, shown, reason));
        }
        if !host.iter().any(|net| net.contains(&address)) {
            let reason = "is at an address that is neither in host.addresses nor in \
                          host.relay_addresses, so no packet from there is the host's";
            return Err(quoted(KEY, shown, reason));
        }
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::PrefixSet;

    fn read(text: &str) -> Result<PrefixSet, String> {
        #[derive(serde::Deserialize)]
        struct Host {
            resolvers: raw::Resolvers,
        }
        let host: Host = toml::from_str(text).map_err(|error| error.to_string())?;
        let nets = resolvers(&host.resolvers, &[]).map_err(|error| error.to_string())?;
        Ok(PrefixSet::new(nets))
    }

    /// A recursive resolver queries servers at any address.
    #[test]
    fn any_resolver_is_every_address() {
        let any = read("resolvers = \"any\"").unwrap();
        for address in [
            "0.0.0.0",
            "198.51.100.53",
            "255.255.255.255",
            "::",
            "2001:db8::53",
        ] {
            assert!(any.contains(address.parse().unwrap()), "{address}");
        }
        let one = read("resolvers = [\"9.9.9.9\"]").unwrap();
        assert!(!one.contains("9.9.9.10".parse().unwrap()));
        for (wrong, words) in [
            ("\"all\"", &["host.resolvers", "\"all\"", "any"][..]),
            ("\"9.9.9.9\"", &["host.resolvers", "9.9.9.9", "any"]),
            ("[\"any\"]", &["host.resolvers", "any", "192.0.2.10"]),
            ("53", &["any", "list of addresses"]),
        ] {
            let error = read(&format!("resolvers = {wrong}")).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{wrong}: no `{word}` in: {error}");
            }
        }
    }
}
