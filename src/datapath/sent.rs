//! What the forwarder needs of an outbound packet after its verdict: the sender, the IP version and
//! the tags; and the new beginning of a frame whose tags are replaced.

use super::{Frame, FrameMemory};
use exitmark_policy::packet::{
    self, ETHERNET_HEADER_BYTES, MacPair, Packet, Retagged, Version, VlanTags,
};

/// What is left of an outbound packet after the verdict.
#[derive(Clone, Copy)]
pub(super) struct SentPacket {
    /// Both halves of the source address, combined into one number.
    pub(super) source: u64,
    pub(super) version: Version,
    pub(super) vlan: VlanTags,
    pub(super) has_tags: bool,
}

impl Default for SentPacket {
    fn default() -> Self {
        Self {
            source: 0,
            version: Version::V4,
            vlan: VlanTags::UNTAGGED,
            has_tags: false,
        }
    }
}

impl From<Packet<u32>> for SentPacket {
    #[inline(always)]
    fn from(packet: Packet<u32>) -> Self {
        Self {
            source: u64::from(packet.source),
            version: Version::V4,
            vlan: packet.vlan,
            has_tags: packet.l3 != ETHERNET_HEADER_BYTES,
        }
    }
}

impl From<Packet<u128>> for SentPacket {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "each half is taken")]
    fn from(packet: Packet<u128>) -> Self {
        let (high, low) = ((packet.source >> 64) as u64, packet.source as u64);
        Self {
            source: high.rotate_left(32) ^ low,
            version: Version::V6,
            vlan: packet.vlan,
            has_tags: packet.l3 != ETHERNET_HEADER_BYTES,
        }
    }
}

/// The offset of the eight bytes that end with the source MAC address.
pub(super) const SOURCE_END: usize = 4;
/// A value that no host has: its source MAC address would be multicast.
pub(super) const NO_MAC: u64 = u64::MAX;
/// The sender of no frame.
pub(super) const NO_HOST: SentBy = SentBy {
    mac: NO_MAC,
    address: 0,
};

/// The sender of a frame, for comparison within a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SentBy {
    /// See [`source_end`].
    pub(super) mac: u64,
    /// See [`SentPacket::source`].
    pub(super) address: u64,
}

/// The eight bytes of a frame that end with its source MAC address: one load, one comparison.
#[inline(always)]
pub(super) fn source_end(frame: &[u8]) -> u64 {
    let bytes = frame.get(SOURCE_END..).and_then(<[u8]>::first_chunk);
    bytes.map_or(NO_MAC, |bytes| u64::from_ne_bytes(*bytes))
}

/// The beginning of a frame with other tags and MAC addresses.
#[cold]
#[inline(never)]
pub(super) fn replaced(
    frame: &[u8],
    tags: VlanTags,
    priority: Option<u8>,
    macs: MacPair,
) -> Option<Retagged> {
    let retagged = Retagged::new(frame, packet::tag_bytes(frame), tags, priority)?;
    Some(retagged.with_macs(macs))
}

/// Replaces the beginning of a frame. Returns false, and leaves the frame as it is, if the memory
/// has no room in front of it.
#[cold]
#[inline(never)]
pub(super) fn retag(
    frame: Frame,
    retagged: &Retagged,
    memory: &mut impl FrameMemory,
) -> (Frame, bool) {
    let (beginning, replaces) = retagged.parts();
    match memory.lengthen(frame, beginning.len(), replaces) {
        Ok(longer) => {
            let bytes = memory.bytes(&longer);
            if let Some(head) = bytes.get_mut(..beginning.len()) {
                head.copy_from_slice(beginning);
            }
            (longer, true)
        }
        Err(same) => (same, false),
    }
}
