//! A step of the readers of both formats: its result, and the numbers of a capture file.

use super::link::{Link, Record};

/// The longest packet that libpcap writes, in bytes.
pub(super) const MAX_PACKET_BYTES: usize = 262_144;
pub(super) const NANOS: u64 = 1_000_000_000;

/// Byte order of a file or section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// The next record: a packet of pcap, a block of pcapng.
pub struct Step {
    /// The packet, its start counted from the beginning of the record; `None` for other records.
    pub packet: Option<Timed>,
    /// Length of the record, in bytes.
    pub taken: usize,
}

/// A packet's position in the buffer, its interface, and its time.
#[derive(Clone, Copy)]
pub struct Timed {
    /// Where the packet is in the buffer.
    pub record: Record,
    /// The link type of its interface.
    pub link: Link,
    /// Nanoseconds since the Unix epoch; `None` if the file does not give it.
    pub time: Option<u64>,
    /// Number of the interface in its section of the file.
    pub interface: u32,
    /// Whether the section has described more than one interface so far.
    pub is_one_of_several: bool,
}

/// Why no record follows.
#[derive(Debug)]
pub enum Stuck {
    /// The record continues behind the bytes that were given; none of them was taken.
    Incomplete,
    /// The record cannot be parsed.
    Broken(String),
}

impl ByteOrder {
    #[inline]
    pub(super) fn word(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Big => u32::from_be_bytes(bytes),
            Self::Little => u32::from_le_bytes(bytes),
        })
    }

    /// The first `N` words of 32 bits; `None` if there are fewer.
    #[inline]
    pub(super) fn words<const N: usize>(self, bytes: &[u8]) -> Option<[u32; N]> {
        let words = bytes.as_chunks().0.first_chunk::<N>()?;
        Some(match self {
            Self::Big => words.map(u32::from_be_bytes),
            Self::Little => words.map(u32::from_le_bytes),
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

#[cold]
pub(super) fn absurd(bytes: usize) -> Stuck {
    Stuck::Broken(format!(
        "a packet of {bytes} bytes is longer than any that is captured"
    ))
}
