//! Detects swapped `host` and `uplink` ports.
//!
//! With the two swapped the wire carries everything, but every frame from `host` is of class
//! `foreign`: nothing is marked or steered. The class counters are checked once a second. While no
//! frame of the host's own arrives by `host`, both engines count those that arrive by `uplink`
//! (`Links::seek_host`); otherwise this costs nothing per frame.
//!
//! One frame with a forged source address must not raise the alarm. It takes several of them, while
//! foreign frames and none of the host's own arrive by `host`.

use super::wire::Wire;
use exitmark_datapath::{Counter, Role, Tally};
use exitmark_policy::Class;

/// How many of the host's frames must arrive by `uplink`.
const BY_UPLINK: u64 = 3;
/// In how many checks such frames must arrive once the host has sent by `host`, with [`FOREIGN`]
/// foreign frames by `host`, as many as a router sends: the host may be rebooting while its address
/// is forged.
const LOOKS_BY_UPLINK: u32 = 10;
/// How many foreign frames must arrive by `host`, over at least [`LOOKS`] checks, if the host's own
/// arrive by neither port. A quiet host still sends some from link-local addresses.
const FOREIGN: u64 = 100;
const LOOKS: u32 = 10;

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
            // For frames counted as no_user_space, the source address was not checked.
            own: own.saturating_sub(tally.of(Counter::NoUserSpace)),
            foreign: of(Class::Foreign),
            by_uplink: tally.of(Counter::HostByUplink),
        }
    }
}

/// Where the host seems to be instead of behind the port `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The host's frames arrive by `uplink`.
    Swapped,
    /// The host's frames arrive by neither port, and foreign ones by `host`.
    Absent,
}

/// The counters at earlier checks, and the finding that follows from them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sides {
    last: Option<Counted>,
    /// The counters when a frame of the host's own last arrived by `host`, or at the first check.
    since: Counted,
    /// The number of checks since then.
    looks: u32,
    /// Those of them in which frames from the host's addresses had arrived by `uplink`.
    looks_by_uplink: u32,
    /// Whether a frame of the host's own has arrived by `host` at all.
    has_received: bool,
    /// `None` as long as the host is where it should be, or unknown.
    pub(super) finding: Option<Finding>,
}

impl Sides {
    /// Compares with the last check; returns whether the finding has changed.
    fn look(&mut self, now: Counted) -> bool {
        let last = self.last.replace(now);
        self.has_received |= last.is_some_and(|last| now.own > last.own);
        // A counter that decreases was started anew by another build.
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
        let is_behind_uplink = match self.has_received {
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
}

impl Finding {
    /// The finding and its remedy, for the log and the status. `table` has the keys of the NICs.
    pub(super) fn text(self, host: &str, uplink: &str, table: &str) -> String {
        match self {
            Self::Swapped => format!(
                "host and uplink are swapped: frames from host.addresses arrive by {uplink} \
                 (uplink) and none by {host} (host), so nothing is marked or steered; exchange \
                 {table}.host and {table}.uplink, or the cables, and restart"
            ),
            Self::Absent => format!(
                "frames arrive by {host} (host), and none is from host.addresses, so nothing is \
                 marked or steered; add the host's address to host.addresses, or exchange \
                 {table}.host and {table}.uplink if the host is behind {uplink} (uplink)"
            ),
        }
    }
}

impl Wire {
    /// Checks that the host's frames arrive by `host`, and logs a change of the finding.
    pub(super) fn look_at_sides(&mut self, tally: &Tally) {
        let has_changed = self.sides.look(Counted::of(tally));
        // The engines count the host's frames by `uplink` while none arrives by `host`.
        self.links
            .seek_host(!self.sides.has_received || self.sides.looks > 0);
        if !has_changed {
            return;
        }
        match self.sides.finding {
            Some(finding) => tracing::error!("ALARM: {}", self.wrong_side(finding)),
            None => tracing::info!("frames from host.addresses arrive by host"),
        }
    }

    pub(super) fn wrong_side(&self, finding: Finding) -> String {
        let [host, uplink] = [Role::Host, Role::Uplink].map(|role| self.bound.nic_name(role));
        finding.text(host, uplink, self.settings.table_of_nics())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The finding after each check, given the frames since the last: own, foreign, by uplink.
    fn findings(seconds: &[(u64, u64, u64)]) -> Vec<Option<Finding>> {
        let (mut sides, mut now) = (Sides::default(), Counted::default());
        assert!(!sides.look(now), "nothing to compare with");
        let look = |&(own, foreign, by_uplink): &(u64, u64, u64)| {
            now.own += own;
            now.foreign += foreign;
            now.by_uplink += by_uplink;
            sides.look(now);
            sides.finding
        };
        seconds.iter().map(look).collect()
    }

    #[test]
    fn the_remedy_names_the_keys_of_the_file() {
        for finding in [Finding::Swapped, Finding::Absent] {
            for table in ["ports", "wire"] {
                let text = finding.text("lan0", "wan0", table);
                let keys = format!("exchange {table}.host and {table}.uplink");
                assert!(text.contains(&keys), "{text}");
            }
        }
    }

    #[test]
    fn a_host_behind_host_gives_no_finding() {
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
        // A quiet host with an IPv6 link-local address, and one that sends a frame now and then.
        assert!(findings(&[(0, 3, 0); 30]).iter().all(Option::is_none));
        let now_and_then = [(0, 99, 0), (0, 0, 0), (1, 0, 0)].repeat(10);
        assert!(findings(&now_and_then).iter().all(Option::is_none));
    }

    #[test]
    fn swapped_ports_are_found_by_three_frames_of_the_host() {
        let all = findings(&[(0, 1, 1), (0, 0, 1), (0, 1, 1), (0, 0, 0)]);
        let swapped = Some(Finding::Swapped);
        assert_eq!(all, [None, None, swapped, swapped]);
        // Found at once, and over with the first frame of the host by `host`.
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
    fn forged_frames_during_a_reboot_of_the_host_raise_no_alarm() {
        let mut seconds = vec![(9, 0, 0)];
        // Five minutes with a DHCP request now and then.
        seconds.extend([(0, 1, 900), (0, 0, 900), (0, 0, 900), (0, 0, 900)].repeat(75));
        seconds.extend([(9, 0, 0); 3]);
        assert!(findings(&seconds).iter().all(Option::is_none));
    }

    #[test]
    fn a_host_whose_address_is_not_configured_is_found() {
        let all = findings(&[(0, 50, 0); 12]);
        let absent = Some(Finding::Absent);
        assert_eq!(all[..9], [None; 9]);
        assert_eq!(all[9..], [absent; 3]);
    }

    #[test]
    fn counters_that_start_anew_do_not_count_as_traffic() {
        let mut sides = Sides::default();
        for foreign in [1000, 0, 1000, 0] {
            let counted = Counted {
                foreign,
                ..Counted::default()
            };
            sides.look(counted);
            assert_eq!(sides.finding, None);
        }
    }
}
