//! Link types, and how packets of each become Ethernet frames.

use exitmark_policy::packet::ETHERNET_HEADER_BYTES;

/// A link type (<https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// LINKTYPE_ETHERNET (1): frames without the frame check sequence.
    Ethernet,
    /// Raw IPv4 or IPv6, distinguished by the first four bits.
    Ip,
    /// LINUX_SLL: 16 bytes, the last two an ethertype, as in Ethernet.
    Cooked,
    /// LINUX_SLL2: 20 bytes, the first two an ethertype.
    CookedV2,
    /// Any other link type; its packets are not parsed.
    Other(u32),
}

/// A packet in the buffer. The bytes in front of it were read before, and are free for an Ethernet
/// header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// Index of its first byte in the buffer.
    pub start: usize,
    /// Length of the captured part, in bytes.
    pub kept: usize,
    /// Length of the packet on the wire, in bytes.
    pub whole: usize,
}

const COOKED_V2_BYTES: usize = 20;
const COOKED_BYTES: usize = 16;

impl Link {
    /// The link type of a number in a capture. 101, 228 and 229 (raw IP, IPv4, IPv6) are one type
    /// here.
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Ethernet,
            101 | 228 | 229 => Self::Ip,
            113 => Self::Cooked,
            276 => Self::CookedV2,
            other => Self::Other(other),
        }
    }

    /// The link type's number in a capture; 101 for every kind of raw IP.
    pub const fn number(self) -> u32 {
        match self {
            Self::Ethernet => 1,
            Self::Ip => 101,
            Self::Cooked => 113,
            Self::CookedV2 => 276,
            Self::Other(number) => number,
        }
    }

    /// Rewrites a packet in place so that it begins with an Ethernet header. The MAC addresses of
    /// that header are undefined.
    #[inline]
    pub fn dress(self, buffer: &mut [u8], record: Record) -> Record {
        let Record { start, kept, whole } = record;
        let (drop, shortest) = match self {
            Self::Ethernet | Self::Other(_) => return record,
            Self::Cooked => (COOKED_BYTES - ETHERNET_HEADER_BYTES, COOKED_BYTES),
            Self::CookedV2 => {
                // A shorter packet ends before this: the next record follows.
                if let (COOKED_V2_BYTES.., Some(&[high, low])) =
                    (kept, buffer.get(start..start + 2))
                {
                    put(buffer, start + COOKED_V2_BYTES, [high, low]);
                }
                (COOKED_V2_BYTES - ETHERNET_HEADER_BYTES, COOKED_V2_BYTES)
            }
            Self::Ip => {
                let ethertype = match buffer.get(start).map(|first| first >> 4) {
                    Some(4) => [0x08, 0x00],
                    Some(6) => [0x86, 0xdd],
                    _ => [0, 0],
                };
                put(buffer, start, ethertype);
                return Record {
                    start: start - ETHERNET_HEADER_BYTES,
                    kept: kept + ETHERNET_HEADER_BYTES,
                    whole: whole + ETHERNET_HEADER_BYTES,
                };
            }
        };
        if kept < shortest {
            return Record::default();
        }
        Record {
            start: start + drop,
            kept: kept - drop,
            whole: whole - drop,
        }
    }
}

/// Writes `ethertype` in front of the payload at `at`.
fn put(buffer: &mut [u8], at: usize, ethertype: [u8; 2]) {
    if let Some(place) = buffer.get_mut(at - 2..at) {
        place.copy_from_slice(&ethertype);
    }
}

impl Record {
    /// The captured bytes in `buffer`; none if the record is outside of it.
    #[inline]
    pub fn bytes(self, buffer: &[u8]) -> &[u8] {
        let bytes = buffer.get(self.start..self.start + self.kept);
        bytes.unwrap_or_default()
    }
}
