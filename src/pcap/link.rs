//! What packets begin with in a capture.

use crate::packet::ETHERNET_HEADER_BYTES;

/// A link type (<https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Ethernet, and nothing in front of it.
    Ethernet,
    /// IPv4 or IPv6, as the first byte says.
    Ip,
    /// Sixteen bytes, the last two an ethertype: Ethernet, with two bytes in front.
    Cooked,
    /// Twenty bytes, the first two an ethertype.
    CookedV2,
    /// Any other one, which is not read here.
    Other(u32),
}

/// A packet in the buffer, in front of which there is room for an Ethernet header: what is there
/// was read before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    pub(crate) start: usize,
    pub(crate) kept: usize,
    /// How long the packet was.
    pub(crate) whole: usize,
}

const COOKED_V2_BYTES: usize = 20;
const COOKED_BYTES: usize = 16;

impl Link {
    /// By its number.
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Ethernet,
            101 | 228 | 229 => Self::Ip,
            113 => Self::Cooked,
            276 => Self::CookedV2,
            other => Self::Other(other),
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Ethernet => 1,
            Self::Ip => 101,
            Self::Cooked => 113,
            Self::CookedV2 => 276,
            Self::Other(number) => number,
        }
    }

    /// Makes of a packet a frame that begins as Ethernet's do, but for its addresses, which are
    /// whatever lay there.
    #[inline]
    pub(crate) fn dress(self, buffer: &mut [u8], record: Record) -> Record {
        let Record { start, kept, whole } = record;
        let (drop, shortest) = match self {
            Self::Ethernet | Self::Other(_) => return record,
            Self::Cooked => (COOKED_BYTES - ETHERNET_HEADER_BYTES, COOKED_BYTES),
            Self::CookedV2 => {
                // What is behind a shorter one is the next record.
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

/// Writes the ethertype of what begins at `at` in front of it.
fn put(buffer: &mut [u8], at: usize, ethertype: [u8; 2]) {
    if let Some(place) = buffer.get_mut(at - 2..at) {
        place.copy_from_slice(&ethertype);
    }
}

impl Record {
    /// Its bytes.
    pub(crate) fn bytes(self, buffer: &[u8]) -> &[u8] {
        let bytes = buffer.get(self.start..self.start + self.kept);
        bytes.unwrap_or_default()
    }
}
