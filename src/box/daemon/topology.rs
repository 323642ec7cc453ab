//! Detects frames that the configured topology of the site does not cover, and reports what happens
//! to them.
//!
//! The counters of such frames are checked once a second. A frame raises an alarm, which ends after
//! a minute without another one.

mod conflicts;

use super::wire::Wire;
use crate::observe::GroupReport;
use crate::settings::{Hop, Incoming, UNROUTED_FAMILY};
pub(super) use conflicts::Conflicts;
use exitmark_datapath::{Counter, KnownHost, Links, Tally};
use exitmark_policy::packet::Version;
use exitmark_policy::{ClassifyBy, Group, Rules, Steer};
use std::time::Instant;

/// How many checks without such a frame end an alarm.
const QUIET: u32 = 60;
/// The kind of the alarm that two machines use an address at the same time.
pub(super) const HOST_CONFLICT: &str = "host_conflict";

#[derive(Clone, Copy, Debug, Default)]
struct RecentCount {
    last: Option<u64>,
    frames: u64,
    quiet: u32,
}

impl RecentCount {
    fn look(&mut self, now: u64) {
        // Counts before the first check, and counters that decrease, come from another process.
        let last = self.last.replace(now).unwrap_or(now);
        match now.saturating_sub(last) {
            0 => self.quiet = self.quiet.saturating_add(1),
            more => {
                self.frames = self.frames.saturating_add(more);
                self.quiet = 0;
            }
        }
        if self.quiet >= QUIET {
            self.frames = 0;
        }
    }
}

/// The warning that the host accepts connections at a port that is not in `host.listeners`.
pub(super) fn unnamed(by: ClassifyBy) -> String {
    let class = match by {
        ClassifyBy::RelaySet => "exit",
        ClassifyBy::HostMark(_) => "relay",
    };
    format!(
        "the host accepts connections at a port that host.listeners does not name: what it sends \
         from there counts as {class} traffic; `ss -ltn` on the Tor host lists the ports: add them \
         to host.listeners, or close them"
    )
}

/// Relay traffic that no next hop of its group routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Its VLAN tags are not those of its group.
    Vlan,
    /// Its group has no next hop for its IP version.
    Family,
    /// Its source address would be translated, and no answer to it back.
    Source,
}

impl Misfit {
    pub(super) const ALL: [Self; 3] = [Self::Vlan, Self::Family, Self::Source];

    /// The warning's kind, and the counter's name.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Vlan => "unrouted_vlan",
            Self::Family => UNROUTED_FAMILY,
            Self::Source => "unrouted_source",
        }
    }

    const fn counter(self) -> Counter {
        match self {
            Self::Vlan => Counter::UnroutedVlan,
            Self::Family => Counter::UnroutedFamily,
            Self::Source => Counter::UnroutedSource,
        }
    }

    const fn of_group(self, group: &GroupReport) -> u64 {
        match self {
            Self::Vlan => group.unrouted_vlan,
            Self::Family => group.unrouted_family,
            Self::Source => group.unrouted_source,
        }
    }

    /// The finding and its remedy, for the log and the status. `names` are the groups whose frames
    /// are counted; none if there is one group.
    pub(super) fn text(self, incoming: &Incoming, rules: &Rules, names: &[&str]) -> String {
        match self {
            Self::Vlan => other_tags(incoming, rules, names),
            Self::Family => no_next_hop(incoming, rules, names),
            Self::Source => unlisted(incoming, names),
        }
    }
}

fn other_tags(incoming: &Incoming, rules: &Rules, names: &[&str]) -> String {
    let (interface, consequence) = (&incoming.interface, incoming.consequence());
    let of_groups = of_groups(names);
    // Of several groups, each has its own.
    let own = match rules.groups() {
        [one] => format!(" ({})", one.vlan),
        _ => String::new(),
    };
    format!(
        "relay traffic{of_groups} with other VLAN tags than host.vlan{own} is not steered: it \
         {consequence}; set host.vlan to the tags of the host's frames, and steer.vlan to those of \
         the next hop's network on {interface}"
    )
}

fn no_next_hop(incoming: &Incoming, rules: &Rules, names: &[&str]) -> String {
    let (interface, consequence) = (&incoming.interface, incoming.consequence());
    let lacking = [Version::V4, Version::V6]
        .into_iter()
        .filter_map(|version| {
            let is_lacking = |group: &&Group| {
                let is_named = names.is_empty() || names.contains(&group.name.as_str());
                let steer = group.actions.intent().steer;
                is_named && steer != Steer::Off && !steer.routes(version)
            };
            let groups: Vec<_> = rules.groups().iter().filter(is_lacking).collect();
            let shown: Vec<_> = groups.iter().map(|group| group.name.as_str()).collect();
            let of_groups = if names.is_empty() {
                ""
            } else {
                &of_groups(&shown)
            };
            (!groups.is_empty()).then(|| format!("over {}{of_groups}", version_name(version)))
        });
    let lacking: Vec<_> = lacking.collect();
    let hops: Vec<_> = incoming.next_hops.iter().map(Hop::to_string).collect();
    let given = match hops.as_slice() {
        [one] => format!(" = \"{one}\""),
        _ => String::new(),
    };
    format!(
        "relay traffic {} is not steered, because steer.next_hop{given} names no router for it: it \
         {consequence}; name a router for each IP version, as in [\"203.0.113.1\", \
         \"2001:db8:3::1\"], or give the MAC address of one that routes both, which `ip neighbour \
         show dev {interface}` shows",
        lacking.join(" and ")
    )
}

fn unlisted(incoming: &Incoming, names: &[&str]) -> String {
    let (of_groups, consequence) = (of_groups(names), incoming.consequence());
    format!(
        "traffic from host.relay_addresses{of_groups} to endpoints that the relay set does not list is \
         not steered, because with steer.source their answers would not be recognised: it \
         {consequence}; name the endpoints, such as bridges, in relays.extra"
    )
}

/// The names of groups as a part of a sentence; nothing without a name.
pub(super) fn of_groups(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!(" of the group {one}"),
        several => format!(" of the groups {}", several.join(", ")),
    }
}

/// The name of an IP version.
pub(super) const fn version_name(version: Version) -> &'static str {
    match version {
        Version::V4 => "IPv4",
        Version::V6 => "IPv6",
    }
}

/// The counters of a misfit: of all frames, and of each group if there are several.
#[derive(Debug, Default)]
struct Unrouted {
    all: RecentCount,
    groups: Vec<(String, RecentCount)>,
}

impl Unrouted {
    fn look(&mut self, all: u64, groups: impl ExactSizeIterator<Item = (String, u64)>) {
        self.all.look(all);
        let mut before = std::mem::replace(&mut self.groups, Vec::with_capacity(groups.len()));
        for (name, count) in groups {
            let known = before.iter_mut().find(|(known, _)| *known == name);
            let mut recent = known.map(|(_, recent)| *recent).unwrap_or_default();
            recent.look(count);
            self.groups.push((name, recent));
        }
    }

    fn names(&self) -> Vec<&str> {
        let counted = self.groups.iter().filter(|(_, recent)| recent.frames > 0);
        counted.map(|(name, _)| name.as_str()).collect()
    }
}

#[derive(Debug, Default)]
pub(super) struct Topology {
    vlan: Unrouted,
    family: Unrouted,
    source: Unrouted,
    hosts_full: RecentCount,
    conflicts: Conflicts,
    listener: RecentCount,
    lacked_relays: bool,
}

impl Topology {
    /// Without a relay set, the host's own ORPort is not known as a listener, so frames counted
    /// then raise no warning. The set may have been loaded since the last check.
    fn look_at_listener(&mut self, counted: u64, lacks_relays: bool) {
        let lacked_relays = std::mem::replace(&mut self.lacked_relays, lacks_relays);
        if lacks_relays || lacked_relays {
            self.listener = RecentCount::default();
        }
        self.listener.look(counted);
    }

    const fn unrouted(&self, misfit: Misfit) -> &Unrouted {
        match misfit {
            Misfit::Vlan => &self.vlan,
            Misfit::Family => &self.family,
            Misfit::Source => &self.source,
        }
    }

    fn look_at_unrouted(&mut self, misfit: Misfit, tally: &Tally, groups: &[GroupReport]) {
        let unrouted = match misfit {
            Misfit::Vlan => &mut self.vlan,
            Misfit::Family => &mut self.family,
            Misfit::Source => &mut self.source,
        };
        let groups = groups.iter();
        let groups = groups.map(|group| (group.name.clone(), misfit.of_group(group)));
        unrouted.look(tally.of(misfit.counter()), groups);
    }

    /// Whether the misfit was observed in the last minute.
    pub(super) const fn has(&self, misfit: Misfit) -> bool {
        self.unrouted(misfit).all.frames > 0
    }

    /// The groups with this misfit in the last minute; none if there is one group.
    pub(super) fn groups_with(&self, misfit: Misfit) -> Vec<&str> {
        self.unrouted(misfit).names()
    }

    pub(super) const fn has_unnamed_listener(&self) -> bool {
        self.listener.frames > 0
    }

    /// Whether frames came from an address without room in the table in the last minute.
    pub(super) const fn has_full_table(&self) -> bool {
        self.hosts_full.frames > 0
    }

    /// The addresses that two machines use at the same time, and the remedy.
    pub(super) fn conflict(&self) -> Option<String> {
        self.conflicts.text()
    }
}

impl Wire {
    pub(super) fn look_at_topology(
        &mut self,
        tally: &Tally,
        groups: &[GroupReport],
        lacks_relays: bool,
    ) {
        let before = Misfit::ALL.map(|misfit| self.topology.has(misfit));
        let had_conflict = self.topology.conflicts.exist();
        let topology = &mut self.topology;
        topology.look_at_listener(tally.of(Counter::UnnamedListener), lacks_relays);
        for misfit in Misfit::ALL {
            topology.look_at_unrouted(misfit, tally, groups);
        }
        topology.hosts_full.look(self.links.hosts_full());
        // One of two MAC addresses may be gone.
        self.links.settle_hosts(self.other_macs.as_deref());
        let settings = &self.settings;
        let hosts = known_hosts(&self.links, &settings.rules);
        let is_new_conflict = topology.conflicts.look(Instant::now(), &hosts);
        let Some(incoming) = settings.incoming() else {
            return;
        };
        for (misfit, had) in Misfit::ALL.into_iter().zip(before) {
            match (had, topology.has(misfit)) {
                (false, true) => {
                    let names = topology.groups_with(misfit);
                    let text = misfit.text(incoming, &settings.rules, &names);
                    tracing::error!("ALARM: {text}");
                }
                (true, false) => tracing::info!("alarm cleared: {}", misfit.kind()),
                _ => {}
            }
        }
        match topology.conflict() {
            Some(text) if is_new_conflict => tracing::error!("ALARM: {text}"),
            None if had_conflict => tracing::info!("alarm cleared: {HOST_CONFLICT}"),
            _ => {}
        }
    }
}

/// The host addresses whose MAC address is known. The table may contain addresses of an earlier
/// configuration, which are left out.
pub(super) fn known_hosts(links: &Links, rules: &Rules) -> Vec<KnownHost> {
    let mut hosts = links.hosts();
    hosts.retain(|host| rules.is_host(host.address));
    hosts.sort_unstable_by_key(|host| host.address);
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::packet::{Dscp, MacAddr, VlanTags};
    use exitmark_policy::{Actions, AtUplink, Intent, Mode, PrefixSet, SocketRules};

    #[test]
    fn one_frame_is_an_alarm_for_a_minute() {
        let mut recent = RecentCount::default();
        // Counts of another process raise no alarm.
        recent.look(1000);
        assert_eq!(recent.frames, 0);
        recent.look(1001);
        for _ in 1..QUIET {
            recent.look(1001);
            assert_eq!(recent.frames, 1);
        }
        recent.look(1001);
        assert_eq!(recent.frames, 0);
        recent.look(1003);
        recent.look(1004);
        assert_eq!(recent.frames, 3);
        // Counters of another build.
        recent.look(0);
        assert_eq!(recent.frames, 3);
    }

    fn group(name: &str, steer: Steer, vlan: VlanTags) -> Group {
        let actions = Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer,
        });
        Group {
            vlan,
            ..Group::new(name, actions)
        }
    }

    fn rules(groups: Vec<Group>) -> Rules {
        Rules::new(ClassifyBy::RelaySet, groups, SocketRules::default())
    }

    fn incoming(next_hops: &[&str]) -> Incoming {
        let hop = |text: &&str| Hop {
            next_hop: text.parse().unwrap(),
            vlan: VlanTags::UNTAGGED,
        };
        Incoming {
            interface: "incoming0".to_owned(),
            next_hops: next_hops.iter().map(hop).collect(),
            drops_unsteered: false,
        }
    }

    #[track_caller]
    fn says(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }

    #[test]
    fn frames_with_other_tags_are_reported_with_the_keys_to_set() {
        let one = rules(vec![group("host", Steer::Both, VlanTags::one(30))]);
        let text = Misfit::Vlan.text(&incoming(&["203.0.113.1"]), &one, &[]);
        let parts = [
            "relay traffic with other VLAN tags than host.vlan (VLAN 30) is not steered",
            "leaves by the uplink, unmarked",
            "set host.vlan",
            "steer.vlan",
            "incoming0",
        ];
        says(&text, &parts);
        let names = ["a", "b", "c"];
        let several = names.map(|name| group(name, Steer::Both, VlanTags::UNTAGGED));
        let several = rules(several.into());
        let text = Misfit::Vlan.text(&incoming(&["203.0.113.1"]), &several, &["a", "c"]);
        says(
            &text,
            &["relay traffic of the groups a, c with other VLAN tags than host.vlan is"],
        );
    }

    #[test]
    fn a_missing_next_hop_is_reported_with_its_ip_version_and_groups() {
        use Version::{V4, V6};
        let group = |name: &str, steer| group(name, steer, VlanTags::UNTAGGED);
        let one = rules(vec![group("host", Steer::Only(V4))]);
        let text = Misfit::Family.text(&incoming(&["203.0.113.1"]), &one, &[]);
        let parts = [
            "relay traffic over IPv6 is not steered",
            "steer.next_hop = \"203.0.113.1\" names no router for it",
            "leaves by the uplink, unmarked",
            "MAC address",
        ];
        says(&text, &parts);
        let several = rules(vec![
            group("a", Steer::Only(V4)),
            group("b", Steer::Only(V6)),
            group("c", Steer::Only(V4)),
            group("both", Steer::Both),
            group("off", Steer::Off),
        ]);
        let hops = incoming(&["203.0.113.1", "2001:db8:3::1"]);
        let names = ["a", "b", "c", "both", "off"];
        let text = Misfit::Family.text(&hops, &several, &names);
        let part = "relay traffic over IPv4 of the group b and over IPv6 of the groups a, c is not";
        says(&text, &[part, "because steer.next_hop names"]);
        let text = Misfit::Family.text(&hops, &several, &["c"]);
        says(
            &text,
            &["relay traffic over IPv6 of the group c is not steered"],
        );
    }

    #[test]
    fn only_groups_whose_counter_moves_are_named() {
        let mut unrouted = Unrouted::default();
        let mut look = |all: u64, groups: &[(&str, u64)]| {
            let groups = groups
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count));
            unrouted.look(all, groups);
            let names = unrouted.names().into_iter().map(str::to_owned);
            (unrouted.all.frames > 0, names.collect::<Vec<_>>())
        };
        assert_eq!(look(9, &[("a", 4), ("b", 5)]), (false, vec![]));
        let of_b = (true, vec!["b".to_owned()]);
        assert_eq!(look(10, &[("a", 4), ("b", 6)]), of_b);
        // Other numbers, and a group that is new.
        assert_eq!(look(10, &[("b", 6), ("new", 7), ("a", 4)]), of_b);
        for _ in 2..QUIET {
            assert_eq!(look(10, &[("b", 6), ("new", 7), ("a", 4)]), of_b);
        }
        assert_eq!(look(10, &[("b", 6), ("new", 7), ("a", 4)]), (false, vec![]));
        assert_eq!(look(11, &[]), (true, vec![]));
    }

    #[test]
    fn addresses_of_an_earlier_configuration_are_left_out() {
        let links = Links::new(None);
        let known = |address: &str| KnownHost {
            address: address.parse().unwrap(),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            changes: 0,
        };
        let all = ["198.51.100.7", "2001:db8::10", "192.0.2.11", "192.0.2.10"];
        links.remember_hosts(all.map(known));
        let host = Group {
            addresses: PrefixSet::new(["192.0.2.0/28".parse().unwrap()]),
            relay_addresses: PrefixSet::new(["2001:db8::10/128".parse().unwrap()]),
            ..group("host", Steer::Both, VlanTags::UNTAGGED)
        };
        let expected = ["192.0.2.10", "192.0.2.11", "2001:db8::10"].map(known);
        assert_eq!(known_hosts(&links, &rules(vec![host])), expected);
    }

    #[test]
    fn unnamed_listeners_are_reported_only_with_a_relay_set() {
        let mut topology = Topology::default();
        // Frames counted so far, whether the relay set is missing, whether the warning is on.
        for (counted, lacks_relays, expected) in [
            (0, true, false),
            (1, true, false),
            // The set came between two checks; some frames may have been counted before it.
            (2, false, false),
            (2, false, false),
            (3, false, true),
            // A reload with other files has discarded the set.
            (4, true, false),
            (5, false, false),
            (6, false, true),
        ] {
            topology.look_at_listener(counted, lacks_relays);
            assert_eq!(topology.has_unnamed_listener(), expected, "{counted}");
        }
    }
}
