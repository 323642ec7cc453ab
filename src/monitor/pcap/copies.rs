//! Detects packets that were captured more than once. On its way out of a host a packet passes
//! several interfaces (a bridge and its port, a bond and its NIC, a VLAN and its parent), and a
//! capture of the interface "any", or of several interfaces, has a copy from each.
//!
//! A copy has the same headers and the same beginning, comes from another interface, and follows
//! within a second. Fields that a hop changes (TTL, checksums) are not compared. Only keyed hashes
//! of the last packets are kept; if more packets than that lie between two copies, both count.

use crate::filter::{Arrived, CUT};
use exitmark_pcap::{Link, Timed};
use exitmark_policy::packet::{Headers, parse, protocol, transport};
use std::hash::{BuildHasher, RandomState};
use zeroize::Zeroize;

/// Entries of the hash table: a power of two.
const REMEMBERED: usize = 1 << 14;
/// Longest time between copies, in nanoseconds: a NIC's copy is captured behind its queue.
const APART: u64 = 1_000_000_000;
/// Bytes of the IP packet that are compared.
const COMPARED: usize = 96;

#[derive(Clone, Copy, Default)]
struct RecentPacket {
    hash: u64,
    interface: u64,
    time: u64,
}

/// The packets seen last. Allocated when the first packet is compared.
#[derive(Default)]
pub(super) struct Copies {
    key: RandomState,
    recent: Vec<RecentPacket>,
}

impl Copies {
    /// Whether a packet is a copy of one from another interface; false without a time.
    pub(super) fn has(&mut self, packet: &Arrived<'_>, interface: u64, time: Option<u64>) -> bool {
        let (Some(time), Some(hash)) = (time, self.hash(packet)) else {
            return false;
        };
        if self.recent.is_empty() {
            self.recent.resize(REMEMBERED, RecentPacket::default());
        }
        #[allow(clippy::cast_possible_truncation, reason = "the lower bits are meant")]
        let place = &mut self.recent[hash as usize % REMEMBERED];
        let is_same = place.hash == hash && place.time.abs_diff(time) < APART;
        if is_same && place.interface != interface {
            return true;
        }
        *place = RecentPacket {
            hash,
            interface,
            time,
        };
        false
    }

    /// Hashes the fields that copies share, and wipes them.
    fn hash(&self, packet: &Arrived<'_>) -> Option<u64> {
        let bytes = packet.bytes;
        let (ttl, checksum, l3, protocol, l4) = match parse(bytes, CUT) {
            Headers::V4(ip) => (8, Some(10), ip.l3, ip.protocol, transport(bytes, &ip)),
            Headers::V6(ip) => (7, None, ip.l3, ip.protocol, transport(bytes, &ip)),
            Headers::NotIp | Headers::Malformed(_) => return None,
        };
        let ip = bytes.get(l3..)?;
        // The NIC fills in the checksum of a packet that leaves, behind the capture.
        let l4_checksum = l4.and_then(|l4| match protocol {
            protocol::TCP => Some(l4 - l3 + 16),
            protocol::UDP => Some(l4 - l3 + 6),
            _ => None,
        });
        let mut compared = [0; COMPARED];
        let kept = ip.len().min(COMPARED);
        compared[..kept].copy_from_slice(&ip[..kept]);
        compared[ttl] = 0;
        for at in checksum.into_iter().chain(l4_checksum) {
            if let Some(bytes) = compared.get_mut(at..at + 2) {
                bytes.fill(0);
            }
        }
        let hash = self.key.hash_one(&compared[..]);
        compared.zeroize();
        Some(hash)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for recent in &mut self.recent {
            recent.hash.zeroize();
        }
    }
}

/// The interface that a packet was captured at, if the file has several.
#[inline]
pub(super) fn interface(packet: &Timed, bytes: &[u8]) -> Option<u64> {
    let number = u64::from(packet.interface);
    if packet.link == Link::CookedV2 {
        // LINUX_SLL2 has the interface index in the packet.
        let index = bytes.get(4..8)?.first_chunk()?;
        return Some(number << 32 | u64::from(u32::from_be_bytes(*index)));
    }
    packet.is_one_of_several.then_some(number << 32)
}
