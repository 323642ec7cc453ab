//! Whether the Tor host is behind `host`.
//!
//! With `host` and `uplink` swapped the wire carries everything, and every frame from `host` is of
//! class `foreign`: nothing is marked or steered. So the classes are looked at once a second. While
//! none of the host's own frames arrives by `host`, both engines count those that arrive by
//! `uplink` ([`Links::seek_host`]); in the usual case that costs a frame nothing.
//!
//! A frame with a forged source address must not raise the alarm: it takes several, while frames of
//! others arrive by `host`, and none of the host's own.

use super::Daemon;
use crate::datapath::{Counter, Links, Role, Tally};
use crate::policy::Class;

/// How many of the host's frames must arrive by `uplink`.
const BY_UPLINK: u64 = 3;
/// In how many looks such frames must arrive after the host was heard by `host`, beside as many frames
/// of others by `host` as a router sends: the host may be starting anew, while a forger uses its
/// address.
const LOOKS_BY_UPLINK: u32 = 10;
/// How many frames of others must arrive by `host`, and in how many looks at least, where none of
/// the host's arrives by either port. A host that is quiet still sends some from link-local
/// addresses.
const FOREIGN: u64 = 100;
const LOOKS: u32 = 10;

/// What has been counted up to one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// Frames by `host` from an address of the host.
    own: u64,
    /// Frames by `host` from other addresses.
    foreign: u64,
    /// Frames by `uplink` from an address of the host.
    by_uplink: u64,
}

impl Counted {
    fn of(tally: &Tally) -> Self {
        let of = |class| tally.of(Counter::Class(class));
        let own = [
            Class::Resolver,
            Class::Reply,
            Class::Relay,
            Class::Exempt,
            Class::Exit,
            Class::Host,
        ];
        let own: u64 = own.into_iter().map(of).sum();
        Self {
            // The source address of what had no user space was not looked at.
            own: own.saturating_sub(tally.of(Counter::NoUserSpace)),
            foreign: of(Class::Foreign),
            by_uplink: tally.of(Counter::HostByUplink),
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The host's frames arrive by `uplink`.
    Swapped,
    /// They arrive by neither port, and others do by `host`.
    Absent,
}

/// What the looks came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sides {
    /// At the last look.
    last: Option<Counted>,
    /// When a frame of the host's own arrived by `host` last, or at the first look.
    since: Counted,
    /// Looks since then.
    looks: u32,
    /// Those of them in which frames from the host's addresses had arrived by `uplink`.
    looks_by_uplink: u32,
    /// Whether there was such a frame.
    is_heard: bool,
    finding: Option<Finding>,
}

impl Sides {
    /// Compares with the last look. Whether what was found has changed.
    fn look(&mut self, now: Counted) -> bool {
        let last = self.last.replace(now);
        self.is_heard |= last.is_some_and(|last| now.own > last.own);
        // Counters that fall are those of another build.
        if last.is_none_or(|last| now.own != last.own || now.foreign < last.foreign) {
            (self.since, self.looks, self.looks_by_uplink) = (now, 0, 0);
        } else {
            self.looks = self.looks.saturating_add(1);
            if last.is_some_and(|last| now.by_uplink > last.by_uplink) {
                self.looks_by_uplink = self.looks_by_uplink.saturating_add(1);
            }
        }
        let foreign = now.foreign - self.since.foreign;
        let by_uplink = now.by_uplink.saturating_sub(self.since.by_uplink);
        let is_behind_uplink = match self.is_heard {
            true => self.looks_by_uplink >= LOOKS_BY_UPLINK && foreign >= FOREIGN,
            false => foreign > 0 && by_uplink >= BY_UPLINK,
        };
        let finding = if is_behind_uplink {
            Some(Finding::Swapped)
        } else if foreign >= FOREIGN && self.looks >= LOOKS {
            Some(Finding::Absent)
        } else {
            None
        };
        std::mem::replace(&mut self.finding, finding) != finding
    }

    /// What is wrong, if anything.
    pub(super) const fn finding(&self) -> Option<Finding> {
        self.finding
    }
}

impl Finding {
    /// The finding and its mend, for the log and the status.
    pub(super) fn text(self, host: &str, uplink: &str) -> String {
        match self {
            Self::Swapped => format!(
                "host and uplink are swapped: frames from host.addresses arrive by {uplink} \
                 (uplink) and none by {host} (host), so nothing is marked or steered; exchange \
                 ports.host and ports.uplink, or the cables, and restart"
            ),
            Self::Absent => format!(
                "frames arrive by {host} (host), and none is from host.addresses, so nothing is \
                 marked or steered; add the host's address to host.addresses, or exchange \
                 ports.host and ports.uplink if the host is behind {uplink} (uplink)"
            ),
        }
    }
}

impl Daemon {
    /// Looks whether the host's frames arrive by `host`, and says what has changed.
    pub(super) fn look_at_sides(&mut self, tally: &Tally) {
        let has_changed = self.sides.look(Counted::of(tally));
        seek(&self.links, &self.sides);
        if !has_changed {
            return;
        }
        match self.sides.finding() {
            Some(finding) => tracing::error!("ALARM: {}", self.wrong_side(finding)),
            None => tracing::info!("frames from host.addresses arrive by host"),
        }
    }

    /// What is wrong, with the NICs' names.
    pub(super) fn wrong_side(&self, finding: Finding) -> String {
        let name = |role: Role| {
            let mut ports = self.standing.ports.iter();
            let port = ports.find(|port| port.role == role);
            port.map_or(role.name(), |port| port.nic.name.as_str())
        };
        finding.text(name(Role::Host), name(Role::Uplink))
    }
}

/// Has the engines count the host's frames by `uplink` while none arrives by `host`.
fn seek(links: &Links, sides: &Sides) {
    links.seek_host(!sides.is_heard || sides.looks > 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrives between two looks: own, foreign, by uplink. What is found after each.
    fn findings(seconds: &[(u64, u64, u64)]) -> Vec<Option<Finding>> {
        let (mut sides, mut now) = (Sides::default(), Counted::default());
        assert!(!sides.look(now), "nothing to compare with");
        let look = |&(own, foreign, by_uplink): &(u64, u64, u64)| {
            now.own += own;
            now.foreign += foreign;
            now.by_uplink += by_uplink;
            sides.look(now);
            sides.finding()
        };
        seconds.iter().map(look).collect()
    }

    #[test]
    fn a_host_behind_host_is_not_found_amiss() {
        for second in [
            (1, 0, 0),
            (1000, 1000, 0),
            (1, 1000, 50),
            (0, 0, 0),
            (0, 0, 9),
        ] {
            let all = findings(&[second; 20]);
            assert!(all.iter().all(Option::is_none), "{second:?}: {all:?}");
        }
        // A quiet host with an IPv6 link-local address, and one that says something now and then.
        assert!(findings(&[(0, 3, 0); 30]).iter().all(Option::is_none));
        let now_and_then = [(0, 99, 0), (0, 0, 0), (1, 0, 0)].repeat(10);
        assert!(findings(&now_and_then).iter().all(Option::is_none));
    }

    #[test]
    fn swapped_ports_are_found_by_three_frames_of_the_host() {
        let all = findings(&[(0, 1, 1), (0, 0, 1), (0, 1, 1), (0, 0, 0)]);
        let swapped = Some(Finding::Swapped);
        assert_eq!(all, [None, None, swapped, swapped]);
        // At once, and over as soon as the host is heard where it should be.
        let all = findings(&[(0, 9, 9), (1, 9, 9), (0, 0, 0)]);
        assert_eq!(all, [swapped, None, None]);
    }

    #[test]
    fn cables_that_are_swapped_later_are_found() {
        let mut seconds = vec![(9, 0, 0); 2];
        seconds.extend([(0, 9, 9); 12]);
        let all = findings(&seconds);
        assert_eq!(all[..13], [None; 13]);
        assert_eq!(all[13], Some(Finding::Swapped));
    }

    #[test]
    fn forged_frames_while_the_host_starts_anew_are_no_alarm() {
        let mut seconds = vec![(9, 0, 0)];
        // Five minutes, in which it asks for an address now and then.
        seconds.extend([(0, 1, 900), (0, 0, 900), (0, 0, 900), (0, 0, 900)].repeat(75));
        seconds.extend([(9, 0, 0); 3]);
        assert!(findings(&seconds).iter().all(Option::is_none));
    }

    #[test]
    fn a_host_whose_address_is_not_named_is_found() {
        let all = findings(&[(0, 50, 0); 12]);
        let absent = Some(Finding::Absent);
        assert_eq!(all[..9], [None; 9]);
        assert_eq!(all[9..], [absent; 3]);
    }

    #[test]
    fn counters_of_another_build_are_no_traffic() {
        let mut sides = Sides::default();
        for foreign in [1000, 0, 1000, 0] {
            let counted = Counted {
                foreign,
                ..Counted::default()
            };
            sides.look(counted);
            assert_eq!(sides.finding(), None);
        }
    }
}
