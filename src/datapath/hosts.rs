//! The MAC address of each address of the hosts, learned from frames. Same logic as bpf/hosts.h.
//!
//! A hash table in the cells that this program's workers and the XDP program share. An entry is
//! claimed by a compare-and-swap of its key; its MAC address is replaced by each frame with another
//! one. The box sends nothing on the wire: an address that has sent no frame is not asked for.
//!
//! An address is removed in two steps. [`Hosts::forget`] replaces its key, so that its entry is not
//! found. A thread that has found it before may still read or write its MAC address; so
//! [`Hosts::free_forgotten`] frees the entry only [`GRACE`] later, and another address never gets an
//! entry with a MAC address in it.

use super::Cells;
use super::contract::{self, GOLDEN, GOLDEN_OF_LOW, exitmark_host, index_of};
use exitmark_policy::packet::MacAddr;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The entries of the table.
pub(super) const HOST_SLOTS: usize = contract::HOST_SLOTS as usize;
/// How many entries an address can have.
const PROBES: usize = contract::HOST_PROBES as usize;
const MAC_BITS: u32 = contract::MAC_BYTES_BITS;
/// The bits of a MAC address.
const MAC_MASK: u64 = (1 << MAC_BITS) - 1;
/// The bits of the number of changes.
const CHANGES: u16 = u16::MAX >> 1;
/// The address has sent a frame since this bit was cleared.
const SEEN: u64 = 1 << contract::HOST_SEEN_BIT;
/// For how many seconds the entry of a removed address is not free. No frame takes that long.
const GRACE: u64 = 2;
/// How long an address must have sent nothing to be removed from a table with few free entries.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// The addresses beyond which those without frames are removed: three quarters of the entries.
const CROWDED: usize = HOST_SLOTS / 4 * 3;
/// From here on, a key is that of an address; below, it is when an address was removed.
const LEAST_KEY: u64 = 1 << 32;
const SLOT_BITS: u32 = contract::HOST_SLOT_BITS;
/// The numbers of an entry.
pub(super) const ENTRY: usize = size_of::<exitmark_host>() / size_of::<u64>();
const KEY: usize = index_of!(exitmark_host, key);
const MAC: usize = index_of!(exitmark_host, mac);
const ADDRESS: usize = index_of!(exitmark_host, address);
/// Beside an IPv4 address: the key is not 0.
const IPV4: u64 = 1 << 32;
/// Beside the hash of an IPv6 address.
const IPV6: u64 = 1 << 63;

const _: () = assert!(HOST_SLOTS == 1 << SLOT_BITS);
const _: () = assert!(CHANGES as u32 == contract::HOST_CHANGES);

/// The MAC address of an address of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownHost {
    /// The host's IP address.
    pub address: IpAddr,
    /// The MAC address of its last frame.
    pub mac: MacAddr,
    /// How often the MAC address has changed, modulo 32,768.
    pub changes: u16,
}

impl KnownHost {
    /// How often the MAC address has changed since there were this many changes.
    pub const fn changes_since(&self, earlier: u16) -> u16 {
        self.changes.wrapping_sub(earlier) & CHANGES
    }
}

/// An address of a host, and whether it has sent a frame lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveHost {
    /// The address and its MAC address.
    pub host: KnownHost,
    /// Whether it has sent a frame since the last [`Links::take_activity`](crate::Links::take_activity).
    pub is_active: bool,
}

/// When each address of a host was last known to send frames.
#[derive(Debug, Default)]
pub struct HostAges(HashMap<IpAddr, Duration>);

impl HostAges {
    /// Notes the activity of all addresses. Returns the addresses to be removed: if the table has
    /// few free entries, those that have been idle for [`MAX_IDLE`].
    pub(super) fn idle(&mut self, activity: &[ActiveHost], now: Duration) -> Vec<IpAddr> {
        let before = std::mem::take(&mut self.0);
        let last = |one: &ActiveHost| {
            let address = one.host.address;
            let earlier = before.get(&address).filter(|_| !one.is_active);
            (address, earlier.copied().unwrap_or(now))
        };
        self.0 = activity.iter().map(last).collect();
        if activity.len() <= CROWDED {
            return Vec::new();
        }
        let is_idle = |&(_, last): &(&IpAddr, &Duration)| now.saturating_sub(*last) >= MAX_IDLE;
        let idle = self.0.iter().filter(is_idle);
        idle.map(|(address, _)| *address).collect()
    }
}

/// The key of an address in the table, at least [`LEAST_KEY`].
#[derive(Clone, Copy)]
pub(super) struct HostKey {
    key: u64,
    halves: [u64; 2],
}

impl HostKey {
    #[inline]
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let low = u64::from(u32::from(address));
                Self {
                    key: low | IPV4,
                    halves: [0, low],
                }
            }
            IpAddr::V6(address) => {
                let [high, low] = halves(address.into());
                let hash = high.wrapping_mul(GOLDEN);
                let hash = hash.wrapping_add(low.wrapping_mul(GOLDEN_OF_LOW));
                Self {
                    key: hash | IPV6,
                    halves: [high, low],
                }
            }
        }
    }

    /// The first numbers of the entries that the address can have.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "after the shift, only the index is left"
    )]
    fn entries(self) -> impl Iterator<Item = usize> {
        let slot = (self.key.wrapping_mul(GOLDEN) >> (u64::BITS - SLOT_BITS)) as usize;
        (slot..slot + PROBES).map(|slot| slot % HOST_SLOTS * ENTRY)
    }
}

/// What a frame has taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lesson {
    /// Nothing new.
    Known,
    /// The address has this MAC address now; before, it had the other one, if any.
    New { before: Option<MacAddr> },
    /// No entry is left for the address.
    Full,
}

/// The table within the cells of the links.
pub(super) struct Hosts<'c> {
    cells: &'c Cells,
    first: usize,
}

impl<'c> Hosts<'c> {
    /// The table that begins at this cell.
    pub(super) const fn at(cells: &'c Cells, first: usize) -> Self {
        Self { cells, first }
    }

    #[inline]
    fn get(&self, number: usize) -> u64 {
        self.cells[self.first + number].load(Ordering::Relaxed)
    }

    fn set(&self, number: usize, value: u64) {
        self.cells[self.first + number].store(value, Ordering::Relaxed);
    }

    /// The MAC address of an address, if it is known.
    #[inline]
    pub(super) fn find(&self, key: HostKey) -> Option<MacAddr> {
        mac_in(self.entry_of(key))
    }

    /// The MAC address of an address, with the number of its changes and [`SEEN`] above it; 0 if
    /// unknown.
    #[inline]
    pub(super) fn entry_of(&self, key: HostKey) -> u64 {
        let mut entries = key.entries();
        let entry = entries.find(|entry| self.get(entry + KEY) == key.key);
        entry.map_or(0, |entry| self.get(entry + MAC))
    }

    /// Whether the address has this MAC address and has sent a frame lately: a frame teaches nothing.
    #[inline]
    pub(super) fn has_seen(&self, key: HostKey, mac: MacAddr) -> bool {
        self.entry_of(key) & (MAC_MASK | SEEN) == mac.to_u64() | SEEN
    }

    /// Notes the MAC address of an address, from a frame that it has sent if `is_seen`.
    pub(super) fn learn(&self, key: HostKey, mac: MacAddr, is_seen: bool) -> Lesson {
        // An entry in front of that of the address may be free: another address was removed. Each
        // key is read once: with two passes, the address could get an entry in front of a free one
        // in between, and then another one.
        let (mut own, mut free) = (None, None);
        for entry in key.entries() {
            match self.get(entry + KEY) {
                found if found == key.key => own = own.or(Some(entry)),
                0 => free = free.or(Some(entry)),
                _ => {}
            }
        }
        let Some(entry) = own.or(free) else {
            return Lesson::Full;
        };
        if own.is_none() {
            let cell = &self.cells[self.first + entry + KEY];
            let claimed = cell.compare_exchange(0, key.key, Ordering::Relaxed, Ordering::Relaxed);
            if claimed.is_err() {
                // Another worker was faster: the next frame finds another entry.
                return Lesson::Known;
            }
            for (half, value) in key.halves.into_iter().enumerate() {
                self.set(entry + ADDRESS + half, value);
            }
        }
        let old = self.get(entry + MAC);
        let before = mac_in(old);
        let is_known = before == Some(mac);
        let changes = (old >> MAC_BITS) + u64::from(before.is_some() && !is_known);
        let seen = if is_seen { SEEN } else { old & SEEN };
        let new = (changes & u64::from(CHANGES)) << MAC_BITS | mac.to_u64() | seen;
        if new != old {
            self.set(entry + MAC, new);
        }
        match is_known {
            true => Lesson::Known,
            false => Lesson::New { before },
        }
    }

    fn entry_at(&self, slot: usize) -> [u64; ENTRY] {
        std::array::from_fn(|at| self.get(slot * ENTRY + at))
    }

    /// Whether the entry is that of its address: two threads that learned the address at once, when
    /// another one was removed, may have made two, of which the first counts.
    fn is_in_use(&self, key: u64, slot: usize) -> bool {
        let mut entries = HostKey {
            key,
            halves: [0; 2],
        }
        .entries();
        entries.find(|entry| self.get(entry + KEY) == key) == Some(slot * ENTRY)
    }

    /// Every address that has a MAC address.
    pub(super) fn known(&self) -> impl Iterator<Item = KnownHost> {
        (0..HOST_SLOTS).filter_map(|slot| {
            let numbers = self.entry_at(slot);
            known_in(&numbers).filter(|_| self.is_in_use(numbers[KEY], slot))
        })
    }

    /// Every address, and whether it has sent a frame since the last call.
    pub(super) fn take_activity(&self, now: Duration) -> impl Iterator<Item = ActiveHost> {
        (0..HOST_SLOTS).filter_map(move |slot| {
            let numbers = self.entry_at(slot);
            let host = known_in(&numbers)?;
            if !self.is_in_use(numbers[KEY], slot) {
                self.empty(slot * ENTRY, numbers[KEY], now);
                return None;
            }
            // Written only if need be: each cache line of the table is shared with other CPUs.
            let is_active = numbers[MAC] & SEEN != 0;
            if is_active {
                let mac = &self.cells[self.first + slot * ENTRY + MAC];
                mac.fetch_and(!SEEN, Ordering::Relaxed);
            }
            Some(ActiveHost { host, is_active })
        })
    }

    /// Removes an address. Its entry is not free yet: see [`Hosts::free_forgotten`].
    pub(super) fn forget(&self, key: HostKey, now: Duration) {
        for entry in key.entries() {
            self.empty(entry, key.key, now);
        }
    }

    /// Replaces the key of an entry if it is this one.
    fn empty(&self, entry: usize, key: u64, now: Duration) {
        let stamp = (now.as_secs() % LEAST_KEY).max(1);
        let cell = &self.cells[self.first + entry + KEY];
        let _ = cell.compare_exchange(key, stamp, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Frees the entries of the addresses that were removed more than [`GRACE`] ago.
    pub(super) fn free_forgotten(&self, now: Duration) {
        for slot in 0..HOST_SLOTS {
            let (entry, key) = (slot * ENTRY, self.get(slot * ENTRY + KEY));
            if (1..LEAST_KEY).contains(&key) && now.as_secs().saturating_sub(key) > GRACE {
                self.set(entry + MAC, 0);
                // Afterwards: an address that gets the entry finds no MAC address in it.
                self.cells[self.first + entry + KEY].store(0, Ordering::Release);
            }
        }
    }
}

/// The entries in the value of a links map, from the beginning of its table on.
pub(super) fn known_among(numbers: &[u64]) -> impl Iterator<Item = KnownHost> {
    let (entries, _) = numbers.as_chunks::<ENTRY>();
    entries.iter().filter_map(known_in)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "each is a half, or what is above the MAC address"
)]
fn known_in(numbers: &[u64; ENTRY]) -> Option<KnownHost> {
    let [high, low] = [numbers[ADDRESS], numbers[ADDRESS + 1]];
    let address: IpAddr = match numbers[KEY] {
        0 => return None,
        key if key & IPV6 == 0 => std::net::Ipv4Addr::from(key as u32).into(),
        _ => Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).into(),
    };
    // The address is written after the key.
    if HostKey::of(address).key != numbers[KEY] {
        return None;
    }
    Some(KnownHost {
        address,
        mac: mac_in(numbers[MAC])?,
        changes: (numbers[MAC] >> MAC_BITS) as u16 & CHANGES,
    })
}

/// The MAC address in an entry.
#[inline]
fn mac_in(number: u64) -> Option<MacAddr> {
    MacAddr::from_u64(number & MAC_MASK)
}

#[allow(clippy::cast_possible_truncation, reason = "each half is taken")]
const fn halves(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn cells() -> Cells {
        Cells::own(HOST_SLOTS * ENTRY)
    }

    fn mac(number: usize) -> MacAddr {
        MacAddr::from_u64(0x0200_0000_0000 + number as u64).unwrap()
    }

    fn address(number: u32) -> IpAddr {
        match number % 2 {
            0 => IpAddr::V4((0xc000_0200 + number / 2).into()),
            _ => IpAddr::V6((0x2001_0db8 << 96 | u128::from(number / 2)).into()),
        }
    }

    #[test]
    fn two_thousand_addresses_have_an_entry_each() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        for number in 0..2048 {
            let lesson = hosts.learn(HostKey::of(address(number)), mac(number as usize), true);
            assert_eq!(lesson, Lesson::New { before: None }, "{number}");
        }
        for number in 0..2048 {
            let found = hosts.find(HostKey::of(address(number)));
            assert_eq!(found, Some(mac(number as usize)));
        }
        assert_eq!(hosts.find(HostKey::of(address(2048))), None);
        let known: BTreeSet<_> = hosts.known().map(|host| host.address).collect();
        assert_eq!(known, (0..2048).map(address).collect());
    }

    #[test]
    fn a_changed_mac_address_is_counted() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        let key = HostKey::of(address(1));
        let lessons = [1, 1, 2, 2, 1].map(|number| hosts.learn(key, mac(number), true));
        let after = |number| Lesson::New {
            before: Some(mac(number)),
        };
        let first = Lesson::New { before: None };
        assert_eq!(
            lessons,
            [first, Lesson::Known, after(1), Lesson::Known, after(2)]
        );
        let known = KnownHost {
            address: address(1),
            mac: mac(1),
            changes: 2,
        };
        assert_eq!(hosts.known().collect::<Vec<_>>(), [known]);
    }

    #[test]
    fn an_address_without_a_free_entry_is_not_learned() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        let key = HostKey::of(address(0));
        for entry in key.entries() {
            hosts.set(entry + KEY, 1);
        }
        assert_eq!(hosts.learn(key, mac(1), true), Lesson::Full);
        assert_eq!(hosts.find(key), None);
        let last = key.entries().last().unwrap();
        hosts.set(last + KEY, 0);
        assert_eq!(hosts.learn(key, mac(1), true), Lesson::New { before: None });
        assert_eq!(hosts.find(key), Some(mac(1)));
    }

    /// Addresses whose first entry is the same.
    fn colliding() -> impl Iterator<Item = HostKey> {
        let first = |key: HostKey| key.entries().next();
        let slot = first(HostKey::of(address(0)));
        let keys = (0..).map(|number| HostKey::of(address(number)));
        keys.filter(move |key| first(*key) == slot)
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn activity(hosts: &Hosts<'_>, now: Duration) -> Vec<(IpAddr, bool)> {
        let all = hosts.take_activity(now);
        all.map(|one| (one.host.address, one.is_active)).collect()
    }

    #[test]
    fn an_address_is_active_if_it_has_sent_a_frame_since_the_last_look() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        let key = HostKey::of(address(0));
        // From an earlier process.
        hosts.learn(key, mac(1), false);
        assert!(!hosts.has_seen(key, mac(1)));
        assert_eq!(activity(&hosts, SECOND), [(address(0), false)]);
        for number in [1, 2] {
            hosts.learn(key, mac(number), true);
            assert!(hosts.has_seen(key, mac(number)) && !hosts.has_seen(key, mac(3)));
            assert_eq!(activity(&hosts, SECOND), [(address(0), true)]);
            assert_eq!(activity(&hosts, SECOND), [(address(0), false)]);
            assert!(!hosts.has_seen(key, mac(number)));
            assert_eq!(hosts.find(key), Some(mac(number)));
        }
    }

    #[test]
    fn the_number_of_changes_is_modulo_32768() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        let key = HostKey::of(address(0));
        hosts.learn(key, mac(0), true);
        let changes = || hosts.known().next().unwrap();
        for number in 1..32_768 {
            hosts.learn(key, mac(number % 2), true);
            assert_eq!(usize::from(changes().changes), number);
        }
        let last = changes().changes;
        assert_eq!(activity(&hosts, SECOND), [(address(0), true)]);
        hosts.learn(key, mac(0), false);
        assert_eq!(changes().changes, 0);
        assert_eq!(changes().changes_since(last), 1);
        // The bit above the number is not affected.
        assert_eq!(activity(&hosts, SECOND), [(address(0), false)]);
    }

    #[test]
    fn the_entry_of_a_removed_address_is_free_later_and_has_no_mac_address() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        let keys: Vec<_> = colliding().take(4).collect();
        let slots = |key: HostKey| {
            let entries = keys[0].entries().take(4);
            let found = entries.map(|entry| hosts.get(entry + KEY) == key.key);
            found.collect::<Vec<_>>()
        };
        for (number, key) in keys[..3].iter().enumerate() {
            hosts.learn(*key, mac(number), true);
        }
        assert_eq!(slots(keys[2]), [false, false, true, false]);
        hosts.forget(keys[1], 7 * SECOND);
        assert_eq!(hosts.find(keys[1]), None);
        assert_eq!(hosts.known().count(), 2);
        // The entries behind it are found, and keep their places.
        assert_eq!(hosts.find(keys[2]), Some(mac(2)));
        hosts.learn(keys[2], mac(7), true);
        assert_eq!(slots(keys[2]), [false, false, true, false]);
        // A thread that has found the entry before still writes to it.
        let entry = keys[0].entries().nth(1).unwrap();
        hosts.set(entry + MAC, mac(9).to_u64());
        hosts.free_forgotten(9 * SECOND);
        hosts.learn(keys[3], mac(3), true);
        assert_eq!(slots(keys[3]), [false, false, false, true]);
        hosts.forget(keys[3], 9 * SECOND);
        hosts.free_forgotten(10 * SECOND);
        assert_eq!(hosts.get(entry + MAC), 0);
        // The address behind a free entry does not get a second one; a new address gets it.
        hosts.learn(keys[2], mac(8), true);
        assert_eq!(slots(keys[2]), [false, false, true, false]);
        hosts.learn(keys[3], mac(4), true);
        assert_eq!(slots(keys[3]), [false, true, false, false]);
        assert_eq!(hosts.find(keys[3]), Some(mac(4)));
    }

    #[test]
    fn of_two_entries_of_an_address_the_first_counts() {
        let cells = cells();
        let hosts = Hosts::at(&cells, 0);
        let keys: Vec<_> = colliding().take(2).collect();
        hosts.learn(keys[0], mac(0), true);
        hosts.learn(keys[1], mac(1), true);
        hosts.forget(keys[0], SECOND);
        hosts.free_forgotten(9 * SECOND);
        // Another thread has not read the second entry yet when it takes the first.
        let first = keys[1].entries().next().unwrap();
        hosts.set(first + KEY, keys[1].key);
        hosts.set(first + MAC, mac(2).to_u64() | SEEN);
        for (half, value) in keys[1].halves.into_iter().enumerate() {
            hosts.set(first + ADDRESS + half, value);
        }
        assert_eq!(hosts.find(keys[1]), Some(mac(2)));
        let macs: Vec<_> = hosts.known().map(|host| host.mac).collect();
        assert_eq!(macs, [mac(2)]);
        assert_eq!(hosts.take_activity(9 * SECOND).count(), 1);
        // The second is gone.
        hosts.set(first + KEY, 0);
        assert_eq!(hosts.find(keys[1]), None);
    }

    #[test]
    fn idle_addresses_are_removed_from_a_crowded_table_only() {
        let active = |number: u32, is_active| ActiveHost {
            host: KnownHost {
                address: address(number),
                mac: mac(1),
                changes: 0,
            },
            is_active,
        };
        let all = |count: u32| -> Vec<_> { (0..count).map(|it| active(it, it == 0)).collect() };
        let few = u32::try_from(CROWDED).unwrap();
        let mut ages = HostAges::default();
        assert!(ages.idle(&all(few + 1), SECOND).is_empty());
        assert!(ages.idle(&all(few + 1), MAX_IDLE).is_empty());
        let later = SECOND + MAX_IDLE;
        assert!(ages.idle(&all(few), later).is_empty());
        // One has come back, and one is new.
        let mut activity = all(few + 1);
        activity[5].is_active = true;
        let mut idle = ages.idle(&activity, later);
        idle.sort_unstable();
        let mut expected: Vec<_> = (1..few).filter(|it| *it != 5).map(address).collect();
        expected.sort_unstable();
        assert_eq!(idle, expected);
    }
}
