//! Detects site topologies that are not supported, and reports what happens to their frames.
//!
//! The counters of such frames are checked once a second. A frame raises an alarm, which ends after
//! a minute without another one.

use super::Daemon;
use crate::settings::Incoming;
use exitmark_datapath::{Counter, Links, SEVERAL_CHANGES, Tally};
use exitmark_policy::ClassifyBy;
use exitmark_policy::packet::MacAddr;

/// How many checks without such a frame end an alarm.
const QUIET: u32 = 60;
/// The same for several hosts, of which all but one may be quiet for long.
const QUIET_HOSTS: u32 = 3600;

#[derive(Clone, Copy, Debug, Default)]
struct RecentCount {
    last: Option<u64>,
    frames: u64,
    quiet: u32,
}

impl RecentCount {
    fn look(&mut self, now: u64) {
        self.look_for(now, QUIET);
    }

    fn look_for(&mut self, now: u64, quiet: u32) {
        // Counts before the first check, and counters that decrease, come from another process.
        let last = self.last.replace(now).unwrap_or(now);
        match now.saturating_sub(last) {
            0 => self.quiet = self.quiet.saturating_add(1),
            more => {
                self.frames = self.frames.saturating_add(more);
                self.quiet = 0;
            }
        }
        if self.quiet >= quiet {
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

/// A property of the host's traffic that the box does not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Relay traffic has a VLAN tag.
    Vlan,
    /// The IP version of relay traffic is not that of the next hop's address.
    Family,
    /// The host's addresses are sent from several MAC addresses in turn.
    Hosts,
}

impl Misfit {
    pub(super) const ALL: [Self; 3] = [Self::Vlan, Self::Family, Self::Hosts];

    /// The warning's kind; the counter's name, if frames are counted.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Vlan => "unrouted_vlan",
            Self::Family => "unrouted_family",
            Self::Hosts => "several_hosts",
        }
    }

    /// The finding and its remedy, for the log and the status.
    pub(super) fn text(self, incoming: &Incoming, host_mac: Option<MacAddr>) -> String {
        let (interface, next_hop) = (&incoming.interface, incoming.next_hop);
        let consequence = incoming.consequence();
        match self {
            Self::Hosts => match host_mac {
                None => format!(
                    "frames from host.addresses have several MAC addresses in turn: several hosts \
                     behind one box are not served; a frame that arrives by {interface} goes \
                     to the MAC address that last sent from its destination address, or is dropped \
                     (host_mac_unknown) if none has; give each host a box of its own"
                ),
                Some(mac) => format!(
                    "frames from host.addresses have other MAC addresses than host.mac = \
                     \"{mac}\": what arrives by {interface} goes only to that one; set host.mac to \
                     the host's MAC address, and give each host a box of its own"
                ),
            },
            Self::Vlan => format!(
                "relay traffic with a VLAN tag is not steered, because the next hop is resolved in \
                 the untagged network of {interface}: it {consequence}; have the host send \
                 untagged frames, or put the box where frames have no tag"
            ),
            Self::Family => format!(
                "relay traffic of the other IP version than steer.next_hop = \"{next_hop}\" is not \
                 steered: it {consequence}; if that router routes both, give its MAC address, \
                 which `ip neighbour show dev {interface}` shows"
            ),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Topology {
    vlan: RecentCount,
    family: RecentCount,
    hosts: RecentCount,
    listener: RecentCount,
    lacked_relays: bool,
}

impl Topology {
    fn look(&mut self, tally: &Tally, links: &Links, lacks_relays: bool) {
        self.look_at_hosts(links.host_changes());
        if self.hosts.frames == 0 {
            links.settle_hosts();
        }
        self.look_at_listener(tally.of(Counter::UnnamedListener), lacks_relays);
        self.vlan.look(tally.of(Counter::UnroutedVlan));
        self.family.look(tally.of(Counter::UnroutedFamily));
    }

    fn look_at_hosts(&mut self, changes: u64) {
        let quiet = match self.has(Misfit::Hosts) {
            true => QUIET_HOSTS,
            false => QUIET,
        };
        self.hosts.look_for(changes, quiet);
    }

    /// Without a relay set, the host's own ORPort is not known as a listener, so frames counted
    /// then raise no warning. The set may have been loaded since the last check.
    fn look_at_listener(&mut self, counted: u64, lacks_relays: bool) {
        let lacked_relays = std::mem::replace(&mut self.lacked_relays, lacks_relays);
        if lacks_relays || lacked_relays {
            self.listener = RecentCount::default();
        }
        self.listener.look(counted);
    }

    /// Whether the misfit was observed in the last minute (several hosts: hour).
    pub(super) const fn has(&self, misfit: Misfit) -> bool {
        match misfit {
            Misfit::Vlan => self.vlan.frames > 0,
            Misfit::Family => self.family.frames > 0,
            Misfit::Hosts => self.hosts.frames >= SEVERAL_CHANGES,
        }
    }

    pub(super) const fn has_unnamed_listener(self) -> bool {
        self.listener.frames > 0
    }
}

impl Daemon {
    pub(super) fn look_at_topology(&mut self, tally: &Tally) {
        let before = self.topology;
        let lacks_relays = self.in_force.relay_service.numbers.report().is_missing;
        self.topology.look(tally, &self.links, lacks_relays);
        let Some(incoming) = self.in_force.settings.incoming() else {
            return;
        };
        for misfit in Misfit::ALL {
            match (before.has(misfit), self.topology.has(misfit)) {
                (false, true) => {
                    let text = misfit.text(incoming, self.in_force.settings.host_mac);
                    tracing::error!("ALARM: {text}");
                }
                (true, false) => tracing::info!("alarm cleared: {}", misfit.kind()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn several_hosts_are_an_alarm_for_as_long_as_all_but_one_may_be_quiet() {
        let mut topology = Topology::default();
        let mut changes = 0;
        let mut look = |topology: &mut Topology, more: u64, looks: u32| {
            changes += more;
            for _ in 0..looks {
                topology.look_at_hosts(changes);
            }
            topology.has(Misfit::Hosts)
        };
        assert!(!look(&mut topology, 0, 1));
        // A host whose NIC was replaced is one host.
        assert!(!look(&mut topology, 2, QUIET + 1));
        assert!(!look(&mut topology, 2, 1));
        assert!(look(&mut topology, 1, 1));
        assert!(look(&mut topology, 0, QUIET_HOSTS - 1));
        assert!(!look(&mut topology, 0, 1));
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
