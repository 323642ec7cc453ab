//! The MAC address of each of the host's addresses, learned from frames.
//!
//! If several hosts are behind one box, their addresses have different MAC addresses, and the MAC
//! address learned last is wrong for all hosts but one. Same logic as bpf/hosts.h.

use super::contract::{self, GOLDEN};
use exitmark_policy::packet::MacAddr;
use std::net::IpAddr;

/// Entries: half for each IP version. Addresses may share an entry, which then holds the one that
/// sent last.
pub(super) const HOST_SLOTS: usize = contract::HOST_SLOTS as usize;
const TAG_BITS: u32 = contract::HOST_TAG_BITS;
/// Of the hash: a key has one more, for the IP version.
const HASH_BITS: u32 = contract::HOST_KEY_BITS - 1;
const MAC_BITS: u32 = contract::MAC_BYTES_BITS;

const _: () = assert!(HOST_SLOTS == 2 << (HASH_BITS - TAG_BITS));

/// The slot of an address' entry, and the tag that distinguishes addresses that share the slot.
#[derive(Clone, Copy)]
pub(super) struct HostKey(u64);

impl HostKey {
    pub(super) fn of(address: IpAddr) -> Self {
        let (version, number) = match address {
            IpAddr::V4(address) => (0, u32::from(address).into()),
            IpAddr::V6(address) => {
                let [high, low] = halves(address.into());
                (1, high ^ low)
            }
        };
        let hash: u64 = number.wrapping_mul(GOLDEN) >> (64 - HASH_BITS);
        Self(version << HASH_BITS | hash)
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "a slot's number has seven bits"
    )]
    pub(super) const fn slot(self) -> usize {
        (self.0 >> TAG_BITS) as usize
    }

    const fn tag(self) -> u64 {
        self.0 & ((1 << TAG_BITS) - 1)
    }

    /// The entry that maps the address to this MAC address.
    pub(super) const fn entry(self, mac: MacAddr) -> u64 {
        self.tag() << MAC_BITS | mac.to_u64()
    }

    /// The MAC address in an entry, if the entry is for this address.
    pub(super) const fn read(self, entry: u64) -> Option<MacAddr> {
        if entry >> MAC_BITS == self.tag() {
            mac_in(entry)
        } else {
            None
        }
    }
}

/// The MAC address in an entry, for whichever address.
pub(super) const fn mac_in(entry: u64) -> Option<MacAddr> {
    MacAddr::from_u64(entry & ((1 << MAC_BITS) - 1))
}

#[allow(clippy::cast_possible_truncation, reason = "each half is taken")]
const fn halves(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_entry_is_read_by_its_address_alone() {
        let mac = MacAddr::new([2, 0xff, 0, 0x80, 0xff, 1]);
        let addresses = [
            "192.0.2.10",
            "192.0.2.11",
            "2001:db8:1::10",
            "2001:db8:2::10",
        ];
        let keys = addresses.map(|text| HostKey::of(text.parse().unwrap()));
        for (at, key) in keys.into_iter().enumerate() {
            for (of, other) in keys.into_iter().enumerate() {
                let read = key.read(other.entry(mac));
                assert_eq!(read, (at == of).then_some(mac), "{at} by {of}");
            }
            assert_eq!(key.read(0), None);
            assert_eq!(mac_in(key.entry(mac)), Some(mac));
        }
    }

    #[test]
    fn consecutive_addresses_do_not_share_slots() {
        for first in [0xc000_0200_u32, 0x0a00_00f0, 0xffff_ff00] {
            let v4 = (0..32).map(|n| IpAddr::V4((first + n).into()));
            let v6 = (0..32).map(|n| IpAddr::V6((0x2001_0db8 << 96 | 0x0001 << 64 | n).into()));
            let slots = v4.chain(v6).map(|address| HostKey::of(address).slot());
            assert_eq!(slots.collect::<BTreeSet<_>>().len(), 64, "{first:x}");
        }
    }
}
