//! The MAC address of each address of the hosts, learned from frames. Same logic as bpf/hosts.h.
//!
//! A hash table in the cells that this program's workers and the XDP program share. An entry is
//! claimed once, by a compare-and-swap of its key, and never removed; its MAC address is replaced by
//! each frame with another one. The box sends nothing on the wire: an address that has sent no frame
//! is not asked for.

use super::Cells;
use super::contract::{self, GOLDEN, GOLDEN_OF_LOW, exitmark_host, index_of};
use exitmark_policy::packet::MacAddr;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering;

/// The entries of the table.
pub(super) const HOST_SLOTS: usize = contract::HOST_SLOTS as usize;
/// How many entries an address can have.
const PROBES: usize = contract::HOST_PROBES as usize;
const MAC_BITS: u32 = contract::MAC_BYTES_BITS;
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

/// The MAC address of an address of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownHost {
    /// The host's IP address.
    pub address: IpAddr,
    /// The MAC address of its last frame.
    pub mac: MacAddr,
    /// How often the MAC address has changed, modulo 65,536.
    pub changes: u16,
}

/// The key of an address in the table, never 0.
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

    /// The MAC address of an address, with the number of its changes above it; 0 if unknown.
    #[inline]
    pub(super) fn entry_of(&self, key: HostKey) -> u64 {
        let mut entries = key.entries();
        let entry = entries.find(|entry| self.get(entry + KEY) == key.key);
        entry.map_or(0, |entry| self.get(entry + MAC))
    }

    /// Notes the MAC address of an address.
    pub(super) fn learn(&self, key: HostKey, mac: MacAddr) -> Lesson {
        // Each key is read once: with two passes, the address could get an entry in front of a free
        // one in between, and then another one.
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
        if before == Some(mac) {
            return Lesson::Known;
        }
        let changes = (old >> MAC_BITS).wrapping_add(u64::from(before.is_some()));
        self.set(entry + MAC, changes << MAC_BITS | mac.to_u64());
        Lesson::New { before }
    }

    /// Every entry that has a MAC address.
    pub(super) fn known(&self) -> impl Iterator<Item = KnownHost> {
        (0..HOST_SLOTS).filter_map(|slot| {
            let numbers: [u64; ENTRY] = std::array::from_fn(|at| self.get(slot * ENTRY + at));
            known_in(&numbers)
        })
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
        changes: (numbers[MAC] >> MAC_BITS) as u16,
    })
}

/// The MAC address in an entry.
#[inline]
fn mac_in(number: u64) -> Option<MacAddr> {
    MacAddr::from_u64(number & ((1 << MAC_BITS) - 1))
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
            let lesson = hosts.learn(HostKey::of(address(number)), mac(number as usize));
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
        let lessons = [1, 1, 2, 2, 1].map(|number| hosts.learn(key, mac(number)));
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
        assert_eq!(hosts.learn(key, mac(1)), Lesson::Full);
        assert_eq!(hosts.find(key), None);
        let last = key.entries().last().unwrap();
        hosts.set(last + KEY, 0);
        assert_eq!(hosts.learn(key, mac(1)), Lesson::New { before: None });
        assert_eq!(hosts.find(key), Some(mac(1)));
    }
}
