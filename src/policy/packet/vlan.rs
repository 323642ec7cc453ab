//! VLAN tags (IEEE 802.1Q): which ones a frame has, and how they are replaced.

use super::ethernet::{ETHERNET_HEADER_BYTES, MacPair, QINQ, VLAN, VLAN_TAG_BYTES};
use std::fmt;

/// The bytes of both MAC addresses.
const MACS: usize = 12;
/// Beside an ID: the tag is there. Priority and DEI are above it in the tag itself.
const PRESENT: u32 = 0x1000;
const ID: u32 = 0x0fff;

/// The IDs of a frame's VLAN tags, at most two. Their priority (PCP) and DEI do not count.
///
/// One number, compared for each relay frame: 16 bits for the outer tag of a pair, 16 for the inner
/// or only one. The XDP program uses the same numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VlanTags(u32);

impl VlanTags {
    /// No tag.
    pub const UNTAGGED: Self = Self(0);
    /// More than two tags; equal to no configured tags.
    const MANY: Self = Self(u32::MAX);

    /// One tag with this ID, 0 to 4,095. ID 0 is a tag too (it has a priority only).
    pub const fn one(id: u16) -> Self {
        Self(PRESENT | id as u32 & ID)
    }

    /// Two tags, the outer one first (QinQ), with IDs from 0 to 4,095.
    pub const fn pair(outer: u16, inner: u16) -> Self {
        Self(Self::one(outer).0 << 16 | Self::one(inner).0)
    }

    /// The tags as a number, 0 for none.
    pub const fn to_u32(self) -> u32 {
        self.0
    }

    /// How many tags these are: 0, 1 or 2.
    #[inline]
    pub const fn count(self) -> usize {
        (self.0 & PRESENT != 0) as usize + (self.0 >> 16 & PRESENT != 0) as usize
    }

    /// The length of the tags in a frame, in bytes.
    #[inline]
    pub const fn bytes(self) -> usize {
        self.count() * VLAN_TAG_BYTES
    }

    /// The IDs, the outer one first.
    pub fn ids(self) -> impl Iterator<Item = u16> {
        let both = [self.0 >> 16, self.0 & 0xffff];
        let present = both.into_iter().filter(|tag| tag & PRESENT != 0);
        present.filter_map(|tag| u16::try_from(tag & ID).ok())
    }

    /// The tags of a frame whose IP header begins at `l3`, behind its tags.
    #[inline]
    pub(super) fn of(frame: &[u8], l3: usize) -> Self {
        match l3.wrapping_sub(ETHERNET_HEADER_BYTES) {
            0 => Self::UNTAGGED,
            4 => Self::one(id_at(frame, MACS)),
            8 => Self::pair(id_at(frame, MACS), id_at(frame, MACS + VLAN_TAG_BYTES)),
            _ => Self::MANY,
        }
    }
}

/// The ID in the tag at `offset`.
fn id_at(frame: &[u8], offset: usize) -> u16 {
    match frame.get(offset + 2..offset + 4) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]) & 0x0fff,
        _ => 0,
    }
}

impl fmt::Display for VlanTags {
    /// `untagged`, `VLAN 30` or `VLAN 200.30`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 0 {
            return f.write_str("untagged");
        }
        let ids: Vec<_> = self.ids().map(|id| id.to_string()).collect();
        write!(f, "VLAN {}", ids.join("."))
    }
}

impl fmt::Debug for VlanTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first bytes of a frame that leaves with other MAC addresses and tags: both addresses and
/// the tags, up to the EtherType of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retagged {
    bytes: [u8; MACS + 2 * VLAN_TAG_BYTES],
    length: usize,
    replaces: usize,
}

impl Retagged {
    /// The beginning of this frame with other tags, in which `tags` is how many bytes of tags it
    /// has now. Equally many tags keep their EtherTypes, priorities (PCP) and DEI, and only their
    /// IDs change. Otherwise the outer tag of a pair is 802.1ad and every other tag 802.1Q; each has
    /// the priority and DEI of the frame's outermost tag, 0 if it has none. `priority`, 0 to 7,
    /// replaces the priority of each tag. `None` for a runt.
    pub fn new(frame: &[u8], tags: usize, to: VlanTags, priority: Option<u8>) -> Option<Self> {
        let head = frame.get(..MACS + tags)?;
        let mut bytes = [0; MACS + 2 * VLAN_TAG_BYTES];
        bytes[..MACS].copy_from_slice(&head[..MACS]);
        let (old, _) = head[MACS..].as_chunks::<VLAN_TAG_BYTES>();
        let is_pair = to.count() == 2;
        for (at, id) in to.ids().enumerate() {
            let [a, b, high, _] = match old.get(at) {
                Some(tag) if old.len() == to.count() => *tag,
                _ => {
                    let [a, b] = if is_pair && at == 0 { QINQ } else { VLAN }.to_be_bytes();
                    [a, b, old.first().map_or(0, |tag| tag[2]), 0]
                }
            };
            let high = priority.map_or(high, |pcp| high & 0x1f | pcp << 5);
            let [id_high, low] = id.to_be_bytes();
            let tag = [a, b, high & 0xf0 | id_high, low];
            let start = MACS + at * VLAN_TAG_BYTES;
            bytes[start..start + VLAN_TAG_BYTES].copy_from_slice(&tag);
        }
        Some(Self {
            bytes,
            length: MACS + to.bytes(),
            replaces: MACS + tags,
        })
    }

    /// The same with both MAC addresses replaced.
    #[must_use]
    pub fn with_macs(mut self, macs: MacPair) -> Self {
        self.bytes[..MACS].copy_from_slice(&macs.bytes());
        self
    }

    /// The bytes, and how many bytes of the frame they replace.
    pub fn parts(&self) -> (&[u8], usize) {
        (&self.bytes[..self.length], self.replaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [u8; 12] = [2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2];

    fn frame(tags: &[[u8; 4]]) -> Vec<u8> {
        [&ADDRESSES[..], &tags.concat(), &[0x08, 0x00, 0x45]].concat()
    }

    #[test]
    fn tags_are_read_by_their_ids() {
        let vlan = [0x81, 0, 0xe0, 30];
        let outer = [0x88, 0xa8, 0x20 | 0x0f, 0xff];
        for (tags, expected, text) in [
            (&[][..], VlanTags::UNTAGGED, "untagged"),
            (&[vlan], VlanTags::one(30), "VLAN 30"),
            (&[outer, vlan], VlanTags::pair(4095, 30), "VLAN 4095.30"),
            (&[vlan, outer], VlanTags::pair(30, 4095), "VLAN 30.4095"),
        ] {
            let read = VlanTags::of(&frame(tags), 14 + 4 * tags.len());
            assert_eq!((read, read.to_string()), (expected, text.to_owned()));
            assert_eq!((read.count(), read.bytes()), (tags.len(), 4 * tags.len()));
        }
        let many = VlanTags::of(&frame(&[vlan; 3]), 26);
        assert_ne!(many, VlanTags::pair(30, 30));
        // A tag with a priority only is a tag.
        assert_ne!(VlanTags::one(0), VlanTags::UNTAGGED);
    }

    #[test]
    fn tags_are_pushed_popped_and_swapped() {
        let vlan = |id: u8| [0x81, 0, 0xf1, id];
        let legacy = [0x91, 0, 0x41, 7];
        let (none, one, two) = (
            VlanTags::UNTAGGED,
            VlanTags::one(0x230),
            VlanTags::pair(200, 0x230),
        );
        type Tags<'t> = &'t [[u8; 4]];
        let cases: [(Tags<'_>, VlanTags, Option<u8>, Tags<'_>); 10] = [
            (&[], none, Some(5), &[]),
            (&[], one, None, &[[0x81, 0, 0x02, 0x30]]),
            (&[], one, Some(5), &[[0x81, 0, 0xa2, 0x30]]),
            (
                &[],
                two,
                None,
                &[[0x88, 0xa8, 0, 200], [0x81, 0, 0x02, 0x30]],
            ),
            (&[vlan(9)], one, None, &[[0x81, 0, 0xf2, 0x30]]),
            (&[vlan(9)], one, Some(0), &[[0x81, 0, 0x12, 0x30]]),
            (&[vlan(9)], none, None, &[]),
            (
                &[vlan(9)],
                two,
                None,
                &[[0x88, 0xa8, 0xf0, 200], [0x81, 0, 0xf2, 0x30]],
            ),
            (&[legacy, vlan(9)], one, None, &[[0x81, 0, 0x42, 0x30]]),
            (
                &[legacy, vlan(9)],
                two,
                None,
                &[[0x91, 0, 0x40, 200], [0x81, 0, 0xf2, 0x30]],
            ),
        ];
        for (tags, to, priority, expected) in cases {
            let before = frame(tags);
            let retagged = Retagged::new(&before, 4 * tags.len(), to, priority).unwrap();
            let (beginning, replaced) = retagged.parts();
            let after = [beginning, &before[replaced..]].concat();
            assert_eq!(after, frame(expected), "{tags:x?} to {to}");
        }
        assert_eq!(Retagged::new(&[0; 13], 4, none, None), None);
    }
}
