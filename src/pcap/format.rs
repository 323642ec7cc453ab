//! Finds packets and their times in a capture file: pcap here, pcapng in `blocks`.
//!
//! Only what is needed is parsed: names, comments, statistics and unknown blocks are skipped by
//! their length, whatever they contain.

use super::blocks::Blocks;
use super::link::{Link, Record};
use super::step::{ByteOrder, MAX_PACKET_BYTES, NANOS, Step, Stuck, Timed, absurd};

/// Magic numbers of pcap files, in the writer's byte order (pcap-savefile(5)): times in
/// microseconds or in nanoseconds.
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// With 24-byte record headers, as an old libpcap on Linux wrote them.
const LONG_RECORDS: u32 = 0xa1b2_cd34;
const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 16;
const LONG_RECORD_BYTES: usize = 24;

/// Format of an open file, and the parser's state.
pub enum Format {
    /// pcap (pcap-savefile(5)): every record is a packet of the same link type.
    Pcap(Records),
    /// pcapng (draft-ietf-opsawg-pcapng).
    PcapNg(Blocks),
}

/// The header of a pcap file: byte order, link type, unit of times, length of a record's header.
pub struct Records {
    order: ByteOrder,
    link: Link,
    nanos_per_tick: u64,
    record_bytes: usize,
}

impl Format {
    /// Reads a file header and returns the format and the header's length; `None` for an unknown
    /// magic number.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Stuck> {
        let magic = ByteOrder::Little.word(bytes, 0).ok_or(Stuck::Incomplete)?;
        if Blocks::is_magic(magic) {
            // The section header is read as a block.
            return Ok(Some((Self::PcapNg(Blocks::default()), 0)));
        }
        let (order, magic) = match magic {
            MICROSECONDS | NANOSECONDS | LONG_RECORDS => (ByteOrder::Little, magic),
            _ => (ByteOrder::Big, magic.swap_bytes()),
        };
        let (nanos_per_tick, record_bytes) = match magic {
            MICROSECONDS => (1000, RECORD_BYTES),
            NANOSECONDS => (1, RECORD_BYTES),
            LONG_RECORDS => (1000, LONG_RECORD_BYTES),
            _ => return Ok(None),
        };
        // The upper half may hold the length of the frame check sequence.
        let link = order.word(bytes, 20).ok_or(Stuck::Incomplete)? & 0xffff;
        let records = Records {
            order,
            link: Link::of(link),
            nanos_per_tick,
            record_bytes,
        };
        Ok(Some((Self::Pcap(records), HEADER_BYTES)))
    }

    /// Parses the record at the beginning of `bytes`.
    ///
    /// # Errors
    /// [`Stuck::Incomplete`] if the record is longer than `bytes`, which is also the result for no
    /// bytes at all; [`Stuck::Broken`] if it contradicts the format.
    #[inline]
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Stuck> {
        match self {
            Self::Pcap(records) => records.step(bytes),
            Self::PcapNg(blocks) => blocks.step(bytes),
        }
    }

    /// The link type of a pcap file, if it is not supported.
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
        let [seconds, fraction, kept, whole] = self.order.words(bytes).ok_or(Stuck::Incomplete)?;
        let (seconds, fraction) = (u64::from(seconds), u64::from(fraction));
        let (kept, whole) = (kept as usize, whole as usize);
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
