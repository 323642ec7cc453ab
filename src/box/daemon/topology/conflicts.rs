//! Finds host addresses that two machines use at the same time.
//!
//! The MAC address of such an address alternates. That of an address which VRRP moves to another
//! machine changes at most once in 3 s, the time after which a backup with the default timers
//! replaces a silent master (RFC 9568, section 6.1); that of an address which is configured on
//! another machine changes once.

use exitmark_datapath::KnownHost;
use exitmark_policy::packet::MacAddr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How many changes of its MAC address within [`WINDOW`] make a conflict: one more than VRRP can.
const CHANGES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// The most changes between two looks; more are a count that has begun anew.
const MOST_CHANGES: u16 = 1 << 13;
/// How long a conflict lasts after the last such changes.
const QUIET: Duration = Duration::from_secs(60);
/// The most MAC addresses remembered for an address, and the most addresses in a text.
const NAMED: usize = 4;

/// The changes of all known host addresses.
#[derive(Debug, Default)]
pub(in super::super) struct Conflicts {
    hosts: BTreeMap<IpAddr, Changes>,
    looked: Option<Instant>,
}

/// The changes of one address.
#[derive(Debug)]
struct Changes {
    /// How often the MAC address had changed at the last look, modulo 32,768.
    changes: u16,
    /// The MAC addresses seen during the changes, the last one at the end.
    macs: Vec<MacAddr>,
    /// When changes were found, and how many, within [`WINDOW`].
    found: VecDeque<(Instant, u32)>,
    /// When there were last enough of them for a conflict.
    conflict: Option<Instant>,
}

impl Changes {
    fn new(host: &KnownHost) -> Self {
        Self {
            changes: host.changes,
            macs: vec![host.mac],
            found: VecDeque::new(),
            conflict: None,
        }
    }

    fn look(&mut self, now: Instant, host: &KnownHost, more: u16) {
        self.changes = host.changes;
        if more > 0 {
            self.found.push_back((now, more.into()));
        }
        let is_past = |&(at, _): &(Instant, u32)| now.saturating_duration_since(at) >= WINDOW;
        while self.found.front().is_some_and(is_past) {
            self.found.pop_front();
        }
        if self.found.iter().map(|(_, more)| more).sum::<u32>() >= CHANGES {
            self.conflict = Some(now);
        }
        let is_over = |at: Instant| now.saturating_duration_since(at) >= QUIET;
        if self.conflict.is_some_and(is_over) {
            self.conflict = None;
        }
        self.macs.retain(|mac| *mac != host.mac);
        if self.found.is_empty() && self.conflict.is_none() {
            self.macs.clear();
        }
        self.macs.push(host.mac);
        self.macs.drain(..self.macs.len().saturating_sub(NAMED));
    }
}

impl Conflicts {
    /// Compares the known hosts with those at the last look. Returns whether there is a conflict
    /// that there was not.
    pub(in super::super) fn look(&mut self, now: Instant, hosts: &[KnownHost]) -> bool {
        let last = self.looked.replace(now);
        // Changes before the first look are those of another process; after a long time without a
        // look it is unknown when they happened.
        let is_late = last.is_none_or(|last| now.saturating_duration_since(last) >= WINDOW);
        let mut is_new = false;
        for host in hosts {
            let known = self.hosts.entry(host.address);
            // An address that is new since the last look has changed since then.
            let seen = known.or_insert_with(|| Changes {
                changes: 0,
                ..Changes::new(host)
            });
            let had_conflict = seen.conflict.is_some();
            let more = match is_late {
                true => 0,
                // A smaller count is that of an address that was forgotten and has come back.
                false => Some(host.changes_since(seen.changes))
                    .filter(|more| *more <= MOST_CHANGES)
                    .unwrap_or_default(),
            };
            seen.look(now, host, more);
            is_new |= !had_conflict && seen.conflict.is_some();
        }
        if self.hosts.len() > hosts.len() {
            let addresses: BTreeSet<_> = hosts.iter().map(|host| host.address).collect();
            self.hosts.retain(|address, _| addresses.contains(address));
        }
        is_new
    }

    fn current(&self) -> impl Iterator<Item = (&IpAddr, &Changes)> {
        let hosts = self.hosts.iter();
        hosts.filter(|(_, changes)| changes.conflict.is_some())
    }

    /// Whether there is a conflict now.
    pub(in super::super) fn exist(&self) -> bool {
        self.current().next().is_some()
    }

    /// The conflicts and their remedy, if there are any.
    pub(in super::super) fn text(&self) -> Option<String> {
        let named = self.current().take(NAMED).map(|(address, changes)| {
            let macs: Vec<_> = changes.macs.iter().map(MacAddr::to_string).collect();
            format!("{address} ({})", macs.join(", "))
        });
        let named: Vec<_> = named.collect();
        let more = match self.current().count().saturating_sub(named.len()) {
            0 if named.is_empty() => return None,
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "host addresses are sent from several MAC addresses in turn: {}{more}: two machines use \
             an address at the same time, and what arrives by incoming for it goes to the one that \
             sent last; give each machine addresses of its own, or if it is one machine with a bond, \
             set host.mac, or a bond mode that sends from one MAC address",
            named.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn mac(number: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, number])
    }

    fn host(address: &str, number: u8, changes: u16) -> KnownHost {
        KnownHost {
            address: address.parse().unwrap(),
            mac: mac(number),
            changes,
        }
    }

    /// Whether there is a conflict after each second with this many more changes.
    fn conflicts(seconds: &[u16]) -> Vec<bool> {
        let (mut conflicts, mut now) = (Conflicts::default(), Instant::now());
        let mut changes = 1000;
        conflicts.look(now, &[host("192.0.2.10", 1, changes)]);
        let look = |more: &u16| {
            now += SECOND;
            changes += more;
            let number = u8::try_from(changes % 2).unwrap();
            conflicts.look(now, &[host("192.0.2.10", number, changes)]);
            conflicts.exist()
        };
        seconds.iter().map(look).collect()
    }

    #[test]
    fn five_changes_within_ten_seconds_are_a_conflict_for_a_minute() {
        let mut seconds = vec![2, 0, 0, 0, 0, 0, 0, 0, 2, 1];
        seconds.extend([0; 61]);
        let found = conflicts(&seconds);
        let mut expected = vec![false; 9];
        expected.extend([true; 60]);
        expected.extend([false; 2]);
        assert_eq!(found, expected);
        // Eleven seconds are too long.
        let seconds = [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0];
        assert_eq!(conflicts(&seconds), [false; 12]);
    }

    #[test]
    fn vrrp_and_a_moved_address_are_no_conflicts() {
        let failing_over = [1, 0, 0].repeat(40);
        assert_eq!(conflicts(&failing_over), [false; 120]);
        // Two changes in a second: the announcement crosses a last frame of the old machine.
        assert_eq!(conflicts(&[2, 1, 0, 0, 0]), [false; 5]);
    }

    #[test]
    fn addresses_that_change_together_are_no_conflicts() {
        let (mut conflicts, now) = (Conflicts::default(), Instant::now());
        for (second, number) in [(0, 1), (1, 2), (2, 3)] {
            let hosts = (0..50).map(|last| {
                let address = format!("192.0.2.{last}");
                host(&address, number, u16::from(number))
            });
            let hosts: Vec<_> = hosts.collect();
            assert!(!conflicts.look(now + second * SECOND, &hosts));
        }
    }

    #[test]
    fn changes_before_the_first_look_and_in_a_long_gap_do_not_count() {
        let (mut conflicts, now) = (Conflicts::default(), Instant::now());
        let look = |conflicts: &mut Conflicts, second: u32, changes: u16| {
            conflicts.look(now + second * SECOND, &[host("192.0.2.10", 1, changes)])
        };
        assert!(!look(&mut conflicts, 0, 60_000));
        assert!(!look(&mut conflicts, 10, 60_100));
        assert!(!look(&mut conflicts, 11, 60_104));
        // The number wraps around.
        assert!(!look(&mut conflicts, 30, u16::MAX));
        assert!(look(&mut conflicts, 31, 4));
        // It is new only once.
        assert!(!look(&mut conflicts, 32, 14));
        assert!(conflicts.exist());
    }

    #[test]
    fn a_new_address_has_changed_since_the_last_look() {
        let (mut conflicts, now) = (Conflicts::default(), Instant::now());
        conflicts.look(now, &[]);
        assert!(conflicts.look(now + SECOND, &[host("2001:db8::10", 1, 5)]));
        assert!(!conflicts.look(now + 2 * SECOND, &[]));
        assert!(!conflicts.exist() && conflicts.text().is_none());
    }

    #[test]
    fn the_text_names_addresses_and_mac_addresses() {
        let (mut conflicts, now) = (Conflicts::default(), Instant::now());
        let hosts = |changes: u16, number: u8| {
            let all = (1..=6).map(move |last| host(&format!("192.0.2.{last}"), number, changes));
            let quiet = host("198.51.100.1", 9, 0);
            all.chain([quiet]).collect::<Vec<_>>()
        };
        conflicts.look(now, &hosts(0, 1));
        assert_eq!(conflicts.text(), None);
        conflicts.look(now + SECOND, &hosts(7, 2));
        let text = conflicts.text().unwrap();
        let beginning = "192.0.2.1 (02:00:00:00:00:01, 02:00:00:00:00:02), 192.0.2.2 (";
        assert!(text.contains(beginning), "{text}");
        assert!(text.contains("192.0.2.4 (02:"), "{text}");
        assert!(text.contains(") and 2 more: two machines"), "{text}");
        for absent in ["192.0.2.5", "198.51.100.1"] {
            assert!(!text.contains(absent), "{text}");
        }
    }
}
