//! Checks that the box has the addresses of `steer.source`: answers to them arrive only if its own
//! stack answers ARP and neighbour discovery for them.

use exitmark_nic::LocalNic;
use exitmark_policy::{Rules, Translation};
use ipnet::IpNet;
use std::net::IpAddr;

/// The kind of the alarm.
pub(super) const SOURCE_MISSING: &str = "source_missing";

/// The addresses of `steer.source` that the box does not have.
#[derive(Debug, Default)]
pub(super) struct Sources {
    missing: Vec<IpAddr>,
}

impl Sources {
    /// Looks at the box's addresses again; logs what changes.
    pub(super) fn look(&mut self, rules: &Rules, interface: &str) {
        let mut wanted = wanted(rules).peekable();
        if wanted.peek().is_none() {
            self.missing.clear();
            return;
        }
        let nics = match LocalNic::all() {
            Ok(nics) => nics,
            Err(error) => {
                tracing::warn!("the box's addresses cannot be read: {error}");
                return;
            }
        };
        let networks = || nics.iter().flat_map(|nic| &nic.networks);
        let is_missing = |wanted: &IpAddr| !networks().any(|own| own.addr() == *wanted);
        let missing: Vec<_> = wanted.filter(is_missing).collect();
        if missing != self.missing {
            self.missing = missing;
            match self.text(interface) {
                Some(text) => tracing::error!("ALARM: {text}"),
                None => tracing::info!("alarm cleared: {SOURCE_MISSING}"),
            }
        }
    }

    /// The finding and its remedy, if an address is missing.
    pub(super) fn text(&self, interface: &str) -> Option<String> {
        let first = self.missing.first()?;
        let more = match self.missing.len() {
            1 => String::new(),
            count => format!(" and {} more of steer.source", count - 1),
        };
        let length = if first.is_ipv4() { 24 } else { 64 };
        Some(format!(
            "the box does not have the address {first}{more} (steer.source): no router can resolve \
             it, so relays' answers do not arrive; `ip addr add {first}/{length} dev {interface}`, \
             with the network's own length"
        ))
    }
}

/// The single addresses in place of hosts'. The router may send the traffic of a prefix to the box
/// without resolving each address.
fn wanted(rules: &Rules) -> impl Iterator<Item = IpAddr> + '_ {
    let translations = rules.groups().iter().flat_map(|group| &group.translations);
    let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    translations
        .map(Translation::incoming)
        .filter(single)
        .map(|net| net.addr())
}
