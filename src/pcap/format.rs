//! Where the packets are in a capture file, and of what time: pcap here, pcapng in `blocks`.
//!
//! Nothing is read that nobody needs: names, comments, statistics and unknown blocks are stepped
//! over by their length, whatever they hold.

use super::blocks::Blocks;
use super::link::{Link, Record};

/// The longest packet that libpcap writes.
pub(super) const MAX_PACKET_BYTES: usize = 262_144;
pub(super) const NANOS: u64 = 1_000_000_000;

/// The first four bytes of a pcap file as a number, in the byte order of whoever wrote it
/// (pcap-savefile(5)): times in microseconds, in nanoseconds,
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// and with records of 24 bytes in front of packets, as an old libpcap on Linux had them.
const LONG_RECORDS: u32 = 0xa1b2_cd34;
const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 16;
const LONG_RECORD_BYTES: usize = 24;

/// The order of a number's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

/// An open file's format, and what is known of it so far.
pub(crate) enum Format {
    /// The older one.
    Pcap(Records),
    /// The newer one.
    PcapNg(Blocks),
}

/// A pcap file.
pub(crate) struct Records {
    order: Order,
    link: Link,
    nanos_per_tick: u64,
    record_bytes: usize,
}

/// What comes next.
pub(crate) struct Step {
    /// A packet, its place counted from where the step began.
    pub(crate) packet: Option<Timed>,
    /// How long the record is.
    pub(crate) taken: usize,
}

/// A packet, and of what time.
#[derive(Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) record: Record,
    pub(crate) link: Link,
    /// Nanoseconds since 1970; none where the file does not say it.
    pub(crate) time: Option<u64>,
    /// The number of the interface in its section of the file,
    pub(crate) interface: u32,
    /// which has others beside it.
    pub(crate) is_one_of_several: bool,
}

/// Why there is no next step.
#[derive(Debug)]
pub(crate) enum Stuck {
    /// More is to be read first.
    Incomplete,
    /// It cannot be read.
    Broken(String),
}

impl Order {
    #[inline]
    pub(super) fn word(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Big => u32::from_be_bytes(bytes),
            Self::Little => u32::from_le_bytes(bytes),
        })
    }

    #[inline]
    pub(super) fn half(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Big => u16::from_be_bytes(bytes),
            Self::Little => u16::from_le_bytes(bytes),
        })
    }
}

impl Format {
    /// Reads a file's header; gives its length too. None where no capture begins so.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Stuck> {
        let magic = Order::Little.word(bytes, 0).ok_or(Stuck::Incomplete)?;
        if Blocks::is_magic(magic) {
            // Its header is a block as all others are.
            return Ok(Some((Self::PcapNg(Blocks::default()), 0)));
        }
        let (order, magic) = match magic {
            MICROSECONDS | NANOSECONDS | LONG_RECORDS => (Order::Little, magic),
            _ => (Order::Big, magic.swap_bytes()),
        };
        let (nanos_per_tick, record_bytes) = match magic {
            MICROSECONDS => (1000, RECORD_BYTES),
            NANOSECONDS => (1, RECORD_BYTES),
            LONG_RECORDS => (1000, LONG_RECORD_BYTES),
            _ => return Ok(None),
        };
        // The upper half may say that frames have a checksum at their end, and how long it is.
        let link = order.word(bytes, 20).ok_or(Stuck::Incomplete)? & 0xffff;
        let records = Records {
            order,
            link: Link::of(link),
            nanos_per_tick,
            record_bytes,
        };
        Ok(Some((Self::Pcap(records), HEADER_BYTES)))
    }

    /// The next packet, or whatever else is there.
    #[inline]
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Stuck> {
        match self {
            Self::Pcap(records) => records.step(bytes),
            Self::PcapNg(blocks) => blocks.step(bytes),
        }
    }

    /// Whether a pcap file's packets are all of a link type that cannot be read.
    pub(super) const fn unreadable_link(&self) -> Option<u32> {
        match self {
            Self::Pcap(Records {
                link: Link::Other(number),
                ..
            }) => Some(*number),
            _ => None,
        }
    }
}

impl Records {
    #[inline]
    fn step(&self, bytes: &[u8]) -> Result<Step, Stuck> {
        let field = |at| self.order.word(bytes, at).ok_or(Stuck::Incomplete);
        let (seconds, fraction) = (u64::from(field(0)?), u64::from(field(4)?));
        let (kept, whole) = (field(8)? as usize, field(12)? as usize);
        if kept > MAX_PACKET_BYTES {
            return Err(absurd(kept));
        }
        let taken = self.record_bytes + kept;
        if bytes.len() < taken {
            return Err(Stuck::Incomplete);
        }
        Ok(Step {
            packet: Some(Timed {
                record: Record {
                    start: self.record_bytes,
                    kept,
                    whole: kept.max(whole),
                },
                link: self.link,
                time: Some(seconds * NANOS + fraction * self.nanos_per_tick),
                interface: 0,
                is_one_of_several: false,
            }),
            taken,
        })
    }
}

#[cold]
pub(super) fn absurd(bytes: usize) -> Stuck {
    Stuck::Broken(format!(
        "a packet of {bytes} bytes is longer than any that is captured"
    ))
}
