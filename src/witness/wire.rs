//! Where things are in a frame, read anew: the reader that the engines share is not to vouch for
//! itself.

use crate::packet::{Dscp, Version};

const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// As deep as anybody looks.
const MAX_TAGS: usize = 4;
const MACS: usize = 12;

/// How a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    /// Where the Ethernet header and its tags end.
    pub(super) payload: usize,
    /// How many tags there are.
    pub(super) tags: usize,
    /// The IP version, if the ethertype and the header agree on one.
    pub(super) ip: Option<Version>,
}

impl Wire {
    /// Reads a frame; a runt has no end of its header.
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

    /// The ToS or traffic-class byte of the packet in the frame that was read.
    pub(super) fn tos(&self, frame: &[u8]) -> Option<u8> {
        let (first, second) = (*frame.get(self.payload)?, *frame.get(self.payload + 1)?);
        match self.ip? {
            Version::V4 => Some(second),
            Version::V6 => Some(first << 4 | second >> 4),
        }
    }

    /// Its code point.
    pub(super) fn dscp(&self, frame: &[u8]) -> Option<Dscp> {
        self.tos(frame).map(Dscp::of)
    }

    /// Blanks what a mark may change: six bits, and the checksum over them.
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

    /// The IPv4 header, if there is one and it is whole.
    pub(super) fn v4_header<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        if self.ip != Some(Version::V4) {
            return None;
        }
        let header = frame.get(self.payload..)?;
        header.get(..usize::from(header.first()? & 0x0f) * 4)
    }
}
