//! A second, independent parser of frames, so that the audit does not rely on the engines' parser.

use exitmark_policy::packet::{Dscp, Version, VlanTags};

const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// The most VLAN tags that are skipped, as in `packet`.
const MAX_TAGS: usize = 4;
const MACS: usize = 12;

/// The IDs of the tags of a frame, the outer one first; none for a runt.
pub(super) fn ids(frame: &[u8]) -> Vec<u16> {
    let tags = Wire::of(frame).map_or(0, |wire| wire.tags);
    let tag = |number: usize| frame.get(MACS + 4 * number..MACS + 4 * number + 4);
    let id = |number| match tag(number) {
        Some(&[_, _, high, low]) => Some(u16::from_be_bytes([high & 0x0f, low])),
        _ => None,
    };
    (0..tags).filter_map(id).collect()
}

/// The IDs of configured tags.
pub(super) fn ids_of(vlan: VlanTags) -> Vec<u16> {
    vlan.ids().collect()
}

/// Replaces the tags of a frame, as a steered frame's have to be.
pub(super) fn retag(frame: &mut Vec<u8>, vlan: VlanTags, priority: Option<u8>) {
    let Some(wire) = Wire::of(frame) else {
        return;
    };
    let old: Vec<[u8; 4]> = frame[MACS..]
        .chunks_exact(4)
        .take(wire.tags)
        .filter_map(|tag| tag.try_into().ok())
        .collect();
    let ids = ids_of(vlan);
    let kinds: &[u16] = match ids.len() {
        2 => &[0x88a8, 0x8100],
        _ => &[0x8100],
    };
    let mut new = Vec::new();
    for (at, id) in ids.iter().enumerate() {
        let is_swap = old.len() == ids.len();
        let kind = match is_swap {
            true => [old[at][0], old[at][1]],
            false => kinds[at].to_be_bytes(),
        };
        let from = if is_swap { old.get(at) } else { old.first() };
        let mut high = from.map_or(0, |tag| tag[2] & 0xf0);
        if let Some(priority) = priority {
            high = high & 0x10 | priority << 5;
        }
        let [id_high, id_low] = id.to_be_bytes();
        new.extend([kind[0], kind[1], high | id_high, id_low]);
    }
    frame.splice(MACS..MACS + 4 * wire.tags, new);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    /// The end of the Ethernet header and its tags, as an offset in the frame.
    pub(super) payload: usize,
    /// The number of VLAN tags, 0 to 4.
    pub(super) tags: usize,
    /// The IP version, if the EtherType and the header agree on one.
    pub(super) ip: Option<Version>,
}

impl Wire {
    /// Parses a frame; `None` for a runt.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let mut at = MACS;
        let mut tags = 0;
        loop {
            let kind = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
            at += 2;
            if TAGS.contains(&kind) && tags < MAX_TAGS {
                tags += 1;
                at += 2;
                continue;
            }
            let version = frame.get(at).map_or(0, |byte| byte >> 4);
            let ip = match (kind, version) {
                (0x0800, 4) if frame.len() >= at + 20 => Some(Version::V4),
                (0x86dd, 6) if frame.len() >= at + 40 => Some(Version::V6),
                _ => None,
            };
            return Some(Self {
                payload: at,
                tags,
                ip,
            });
        }
    }

    /// The ToS or traffic-class byte of the packet in `frame`, which must have this layout.
    pub(super) fn tos(&self, frame: &[u8]) -> Option<u8> {
        let (first, second) = (*frame.get(self.payload)?, *frame.get(self.payload + 1)?);
        match self.ip? {
            Version::V4 => Some(second),
            Version::V6 => Some(first << 4 | second >> 4),
        }
    }

    /// The DSCP of the packet; `None` if it is not IP.
    pub(super) fn dscp(&self, frame: &[u8]) -> Option<Dscp> {
        self.tos(frame).map(Dscp::of)
    }

    /// Zeroes what marking may change: the six DSCP bits, and the checksum over them.
    pub(super) fn blank_mark(&self, frame: &mut [u8]) {
        let at = self.payload;
        match self.ip {
            Some(Version::V4) => {
                frame[at + 1] &= 0x03;
                frame[at + 10..at + 12].fill(0);
            }
            Some(Version::V6) => {
                frame[at] &= 0xf0;
                frame[at + 1] &= 0x3f;
            }
            None => {}
        }
    }

    /// The IPv4 header with its options, if there is one and it is complete.
    pub(super) fn v4_header<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        if self.ip != Some(Version::V4) {
            return None;
        }
        let header = frame.get(self.payload..)?;
        header.get(..usize::from(header.first()? & 0x0f) * 4)
    }
}
