//! The parts of the report on the site: next hops, host addresses, and their warnings.

use super::super::topology::{HOST_CONFLICT, Misfit, of_groups, version_name};
use super::Wire;
use crate::observe::{HostReport, NextHopReport, Report, SteeringReport, SteeringState, Warning};
use crate::settings::{Hop, Incoming};
use exitmark_datapath::{KnownHost, Role};
use exitmark_nic::NextHopState;
use exitmark_policy::packet::Version;
use exitmark_policy::{Group, Rules};

/// The marks of all groups, each once.
pub(in crate::daemon) fn marks(rules: &Rules) -> String {
    let mut marks = Vec::new();
    for group in rules.groups() {
        let mark = group.actions.mark().to_string();
        if !marks.contains(&mark) {
            marks.push(mark);
        }
    }
    marks.join(", ")
}

pub(super) fn hosts(known: &[KnownHost]) -> Vec<HostReport> {
    let hosts = known.iter().map(|host| HostReport {
        address: host.address.to_string(),
        mac: host.mac.to_string(),
        changes: host.changes.into(),
    });
    hosts.collect()
}

impl SteeringReport {
    /// The report on the configured next hops and their states, in the order of the configuration:
    /// the numbers of the next hops in `rules` are their places in it.
    pub(in crate::daemon) fn of<'a>(
        incoming: &Incoming,
        rules: &Rules,
        states: impl IntoIterator<Item = (&'a Hop, NextHopState)>,
        changes: u64,
    ) -> Self {
        let hops = states.into_iter().enumerate();
        let hops = hops.map(|(number, (hop, state))| next_hop(number, hop, state, rules));
        let on_unavailable = match incoming.drops_unsteered {
            true => "drop",
            false => "uplink",
        };
        Self::new(on_unavailable, changes, hops.collect())
    }
}

fn next_hop(number: usize, hop: &Hop, state: NextHopState, rules: &Rules) -> NextHopReport {
    let is_for = |group: &Group, version: Version| {
        let steer = group.actions.intent().steer;
        steer.routes(version) && group.path.next_hop(version) == number
    };
    let versions = [Version::V4, Version::V6];
    let groups = rules.groups().iter();
    let groups = groups.filter(|group| versions.iter().any(|version| is_for(group, *version)));
    let families = versions.into_iter().filter(|version| {
        let mut groups = rules.groups().iter();
        groups.any(|group| is_for(group, *version))
    });
    let state_name = match (state.has_carrier, state.mac) {
        (false, _) => SteeringState::NoCarrier,
        (true, None) => SteeringState::Unresolved,
        (true, Some(_)) => SteeringState::Steering,
    };
    let mac = state.mac.filter(|_| state.has_carrier);
    NextHopReport {
        next_hop: hop.next_hop.to_string(),
        vlan: hop.vlan.to_string(),
        groups: groups.map(|group| group.name.clone()).collect(),
        families: families
            .map(|version| version_name(version).to_owned())
            .collect(),
        state: state_name,
        mac: mac.map(|mac| mac.to_string()),
    }
}

impl Wire {
    /// The warnings of a box that steers, about its next hops and its hosts.
    pub(super) fn site_warnings(&self, report: &Report, hosts: &[KnownHost]) -> Vec<Warning> {
        let settings = &self.settings;
        let Some(incoming) = settings.incoming() else {
            return Vec::new();
        };
        let rules = &settings.rules;
        let mut warnings = Vec::new();
        let mut warn = |kind: &str, is_alarm: bool, text: String| {
            warnings.push(Warning::new(kind, is_alarm, text));
        };
        let mut ports = report.ports.iter();
        let port = ports.rfind(|port| {
            let roles = [Role::Incoming, Role::Uplink];
            roles.iter().any(|role| role.name() == port.role)
        });
        let has_link = port.is_some_and(|port| port.has_carrier);
        for text in unusable(&report.steering, has_link, rules.groups().len() > 1) {
            warn("steering", true, text);
        }
        for misfit in Misfit::ALL {
            if self.topology.has(misfit) {
                let names = self.topology.groups_with(misfit);
                warn(misfit.kind(), true, misfit.text(incoming, rules, &names));
            }
        }
        if let Some(text) = self.topology.conflict() {
            warn(HOST_CONFLICT, true, text);
        }
        for text in other_macs(rules, hosts, incoming) {
            warn("host_mac", false, text);
        }
        if self.topology.has_full_table() {
            warn("hosts_full", false, full_table(hosts.len(), incoming));
        }
        warnings
    }
}

/// The next hops that cannot be used, each with its groups if there are several.
fn unusable(steering: &SteeringReport, has_link: bool, has_groups: bool) -> Vec<String> {
    let consequence = match steering.on_unavailable.as_str() {
        "drop" => "is dropped",
        _ => "leaves by the uplink, unmarked",
    };
    let hops = steering.next_hops.as_slice();
    let mut texts = Vec::new();
    for hop in hops.iter().filter(|hop| !hop.is_usable()) {
        let is_tagged = hop.vlan != "untagged";
        let names: Vec<_> = hop.groups.iter().map(String::as_str).collect();
        let names = if has_groups {
            of_groups(&names)
        } else {
            String::new()
        };
        let name = match (hops.len(), is_tagged) {
            (1, false) => "the next hop".to_owned(),
            (_, false) => format!("the next hop {}", hop.next_hop),
            (_, true) => format!("the next hop {} ({})", hop.next_hop, hop.vlan),
        };
        let traffic = format!("relay traffic{names} {consequence}");
        texts.push(match hop.state {
            // It concerns all of them.
            SteeringState::NoCarrier if !has_link || !is_tagged => {
                return vec![format!(
                    "incoming has no link: relay traffic {consequence}; check the cable and the \
                     other end"
                )];
            }
            SteeringState::NoCarrier => format!(
                "{name} cannot be reached, because the box's own VLAN interface there is missing, \
                 down or without a link: {traffic}; `exitmark doctor` names the commands that make \
                 one"
            ),
            _ => format!(
                "{name} does not answer: {traffic}; check steer.next_hop, and that the box has an \
                 address on that network"
            ),
        });
    }
    texts
}

/// The groups whose frames have another MAC address than the configured one.
fn other_macs(rules: &Rules, hosts: &[KnownHost], incoming: &Incoming) -> Vec<String> {
    let has_several = rules.groups().len() > 1;
    let texts = rules.groups().iter().filter_map(|group| {
        let mac = group.mac?;
        let contains = |host: &&KnownHost| {
            let (own, of_relays) = (&group.addresses, &group.relay_addresses);
            own.contains(host.address) || of_relays.contains(host.address)
        };
        let mut others = hosts.iter().filter(contains).filter(|host| host.mac != mac);
        let first = others.next()?;
        let more = match others.count() {
            0 => String::new(),
            more => format!(" (and {more} more addresses with other ones than host.mac)"),
        };
        let names = if has_several {
            of_groups(&[&group.name])
        } else {
            String::new()
        };
        Some(format!(
            "host.mac = \"{mac}\"{names} is not the MAC address of the frames from {}, which is \
             {}{more}: what arrives by {} for it goes to host.mac; correct host.mac, or leave it \
             out: the MAC address of each address is then learned",
            first.address, first.mac, incoming.interface
        ))
    });
    texts.collect()
}

fn full_table(known: usize, incoming: &Incoming) -> String {
    format!(
        "frames come from more host addresses than the table of MAC addresses has room for, which \
         has {known}: unless all hosts have the same MAC address, what arrives by {} for an address \
         without an entry is dropped (host_mac_unknown); use fewer addresses, or set host.mac",
        incoming.interface
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_policy::packet::{Dscp, MacAddr, VlanTags};
    use exitmark_policy::{
        Actions, AtUplink, ClassifyBy, Intent, Mode, PrefixSet, SocketRules, Steer, SteeredPath,
    };

    fn group(name: &str, steer: Steer, next_hops: [u8; 2]) -> Group {
        let actions = Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer,
        });
        Group {
            path: SteeredPath {
                next_hops,
                ..SteeredPath::default()
            },
            ..Group::new(name, actions)
        }
    }

    fn rules(groups: Vec<Group>) -> Rules {
        Rules::new(ClassifyBy::RelaySet, groups, SocketRules::default())
    }

    fn hop(text: &str, vlan: VlanTags) -> Hop {
        Hop {
            next_hop: text.parse().unwrap(),
            vlan,
        }
    }

    fn mac(number: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, number])
    }

    fn state(has_carrier: bool, answers: bool) -> NextHopState {
        NextHopState {
            has_carrier,
            mac: answers.then(|| mac(9)),
        }
    }

    fn site() -> (Incoming, Rules) {
        let incoming = Incoming {
            interface: "incoming0".to_owned(),
            next_hops: vec![
                hop("203.0.113.1", VlanTags::UNTAGGED),
                hop("2001:db8:3::1", VlanTags::pair(200, 30)),
                hop("fe80::1", VlanTags::one(30)),
            ],
            drops_unsteered: false,
        };
        let rules = rules(vec![
            group("a", Steer::Both, [0, 1]),
            group("b", Steer::Both, [0, 2]),
            // The number for IPv6 has no meaning.
            group("c", Steer::Only(Version::V4), [0, 1]),
            group("off", Steer::Off, [0, 0]),
        ]);
        (incoming, rules)
    }

    fn report(states: [NextHopState; 3]) -> SteeringReport {
        let (incoming, rules) = site();
        let states = incoming.next_hops.iter().zip(states);
        SteeringReport::of(&incoming, &rules, states, 7)
    }

    #[test]
    fn each_next_hop_has_the_groups_and_ip_versions_that_it_is_for() {
        let up = state(true, true);
        let report = report([up, state(true, false), up]);
        let hops = report.next_hops.iter().map(|hop| {
            let (groups, families) = (hop.groups.join(" "), hop.families.join(" "));
            let (name, vlan) = (hop.next_hop.as_str(), hop.vlan.as_str());
            (name, vlan, groups, families, hop.state.name())
        });
        let expected = [
            ("203.0.113.1", "untagged", "a b c", "IPv4", "steering"),
            ("2001:db8:3::1", "VLAN 200.30", "a", "IPv6", "unresolved"),
            ("fe80::1", "VLAN 30", "b", "IPv6", "steering"),
        ];
        let expected = expected.map(|(name, vlan, groups, families, state)| {
            (name, vlan, groups.to_owned(), families.to_owned(), state)
        });
        assert_eq!(hops.collect::<Vec<_>>(), expected);
        assert_eq!(report.state, SteeringState::Unresolved);
        assert_eq!(report.next_hop.as_deref(), Some("203.0.113.1"));
        assert_eq!(report.next_hop_mac, Some(mac(9).to_string()));
        assert_eq!(
            (report.on_unavailable.as_str(), report.changes),
            ("uplink", 7)
        );
    }

    #[test]
    fn a_next_hop_of_both_ip_versions_has_both() {
        let (mut incoming, _) = site();
        incoming.next_hops.truncate(1);
        let one = rules(vec![group("host", Steer::Both, [0, 0])]);
        let states = [(&incoming.next_hops[0], state(false, true))];
        let report = SteeringReport::of(&incoming, &one, states, 0);
        assert_eq!(report.next_hops[0].families, ["IPv4", "IPv6"]);
        // Without a link its MAC address is not used.
        assert_eq!(report.state, SteeringState::NoCarrier);
        assert_eq!(report.next_hop_mac, None);
        assert_eq!(unusable(&report, false, false).len(), 1);
    }

    #[test]
    fn each_unusable_next_hop_names_its_groups() {
        let (up, silent) = (state(true, true), state(true, false));
        let texts = |states, has_link| unusable(&report(states), has_link, true);
        assert!(texts([up; 3], true).is_empty());
        let found = texts([silent, up, state(false, false)], true);
        let beginnings = [
            "the next hop 203.0.113.1 does not answer: relay traffic of the groups a, b, c leaves \
             by the uplink, unmarked; check steer.next_hop",
            "the next hop fe80::1 (VLAN 30) cannot be reached, because the box's own VLAN interface \
             there is missing, down or without a link: relay traffic of the group b leaves",
        ];
        assert_eq!(found.len(), 2);
        for (text, beginning) in found.iter().zip(beginnings) {
            assert!(text.starts_with(beginning), "{text}");
        }
        // One cause, one warning.
        let found = texts([state(false, false); 3], false);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("incoming has no link: relay traffic leaves"));
    }

    #[test]
    fn one_next_hop_of_one_group_is_not_named() {
        let hops = vec![NextHopReport {
            state: SteeringState::Unresolved,
            vlan: "untagged".to_owned(),
            groups: vec!["host".to_owned()],
            ..NextHopReport::default()
        }];
        let text = &unusable(&SteeringReport::new("drop", 0, hops), true, false)[0];
        let beginning = "the next hop does not answer: relay traffic is dropped; check";
        assert!(text.starts_with(beginning), "{text}");
    }

    #[test]
    fn a_configured_mac_address_that_frames_do_not_have_is_reported_with_both() {
        let (incoming, _) = site();
        let with_mac = |name: &str, net: &str| Group {
            addresses: PrefixSet::new([net.parse().unwrap()]),
            relay_addresses: PrefixSet::new(["2001:db8::10/128".parse().unwrap()]),
            mac: Some(mac(1)),
            ..group(name, Steer::Off, [0, 0])
        };
        let host = |address: &str, number: u8| KnownHost {
            address: address.parse().unwrap(),
            mac: mac(number),
            changes: 0,
        };
        let one = rules(vec![with_mac("host", "192.0.2.0/28")]);
        let same = [
            host("192.0.2.1", 1),
            host("2001:db8::10", 1),
            host("198.51.100.1", 2),
        ];
        assert!(other_macs(&one, &same, &incoming).is_empty());
        let others = [
            host("192.0.2.1", 1),
            host("192.0.2.2", 2),
            host("2001:db8::10", 3),
        ];
        let found = other_macs(&one, &others, &incoming);
        let text = "host.mac = \"02:00:00:00:00:01\" is not the MAC address of the frames from \
                    192.0.2.2, which is 02:00:00:00:00:02 (and 1 more addresses with";
        assert!(found.len() == 1 && found[0].starts_with(text), "{found:?}");
        let learned = Group {
            mac: None,
            ..with_mac("b", "198.51.100.0/28")
        };
        let several = rules(vec![with_mac("a", "192.0.2.0/28"), learned]);
        let found = other_macs(
            &several,
            &[host("192.0.2.2", 2), host("198.51.100.1", 3)],
            &incoming,
        );
        assert!(
            found.len() == 1 && found[0].contains("\" of the group a is not"),
            "{found:?}"
        );
    }

    #[test]
    fn equal_marks_are_named_once() {
        let marked = |dscp: Dscp| {
            let intent = group("x", Steer::Off, [0, 0]).actions.intent();
            Group::new(
                "x",
                Actions::new(Intent {
                    mark: dscp,
                    ..intent
                }),
            )
        };
        let marks_of = |all: &[Dscp]| marks(&rules(all.iter().copied().map(marked).collect()));
        assert_eq!(marks_of(&[Dscp::AF11, Dscp::AF11]), "af11 (10)");
        let cs1 = Dscp::new(8).unwrap();
        assert_eq!(
            marks_of(&[Dscp::AF11, cs1, Dscp::AF11]),
            "af11 (10), cs1 (8)"
        );
    }
}
