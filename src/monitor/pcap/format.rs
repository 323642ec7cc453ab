//! Where the packets are in a pcap or pcapng file, and of what time.

use super::link::{Link, Record};
use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::{
    ENHANCED_PACKET_BLOCK, INTERFACE_DESCRIPTION_BLOCK, PACKET_BLOCK, SECTION_HEADER_BLOCK,
    SIMPLE_PACKET_BLOCK,
};
use pcap_file::pcapng::{PcapNgParser, RawBlock};
use pcap_file::{Endianness, PcapError, TsResolution};

/// The first bytes of a pcapng file, in any byte order.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// The longest packet that libpcap writes.
const MAX_PACKET_BYTES: usize = 262_144;
const PCAP_RECORD_HEADER: usize = 16;
const BLOCK_HEADER: usize = 8;
const NANOS: u64 = 1_000_000_000;
/// How many interfaces a section of a pcapng file may describe, and how long the block of one or of
/// a section may be: their options are kept, each in many times its bytes.
const MAX_INTERFACES: usize = 4096;
const MAX_DESCRIPTION_BYTES: usize = 16 << 10;

pub(super) enum Format {
    Pcap {
        parser: PcapParser,
        link: Link,
        nanos_per_tick: u64,
    },
    PcapNg {
        parser: Box<PcapNgParser>,
        interfaces: Vec<Interface>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    link: Link,
    snaplen: usize,
    ticks: Ticks,
    /// Seconds that every time is off.
    offset: u64,
}

/// The unit of an interface's times.
#[derive(Clone, Copy, Debug)]
enum Ticks {
    OfNanos(u64),
    PerSecond(u128),
}

/// What comes next.
pub(super) struct Step {
    /// A packet, its place counted from where the step began.
    pub(super) packet: Option<Timed>,
    /// How long the record is.
    pub(super) taken: usize,
}

pub(super) struct Timed {
    pub(super) record: Record,
    pub(super) link: Link,
    /// Nanoseconds since 1970; none where the file does not say it.
    pub(super) time: Option<u64>,
}

/// Why there is no next step.
pub(super) enum Stuck {
    /// More is to be read first.
    Incomplete,
    /// It cannot be read.
    Broken(String),
    /// It is of a link type that is not known.
    Link(u32),
}

impl From<PcapError> for Stuck {
    fn from(error: PcapError) -> Self {
        match error {
            PcapError::IncompleteBuffer => Self::Incomplete,
            error => Self::Broken(error.to_string()),
        }
    }
}

impl Format {
    /// Reads a file's header; gives its length too.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), Stuck> {
        if bytes.len() < PCAPNG_MAGIC.len() {
            return Err(Stuck::Incomplete);
        }
        if bytes.starts_with(&PCAPNG_MAGIC) {
            refuse_long_description(bytes, Endianness::Big)?;
            let (rest, parser) = PcapNgParser::new(bytes)?;
            let parser = Box::new(parser);
            let interfaces = Vec::new();
            let format = Self::PcapNg { parser, interfaces };
            return Ok((format, bytes.len() - rest.len()));
        }
        let (rest, parser) = PcapParser::new(bytes)?;
        let header = parser.header();
        // The upper bits say whether frames have a checksum at their end.
        let number = u32::from(header.datalink) & 0x03ff_ffff;
        let format = Self::Pcap {
            parser,
            link: Link::of(number).ok_or(Stuck::Link(number))?,
            nanos_per_tick: match header.ts_resolution {
                TsResolution::MicroSecond => 1000,
                TsResolution::NanoSecond => 1,
            },
        };
        Ok((format, bytes.len() - rest.len()))
    }

    /// The next packet, or whatever else is there.
    #[inline]
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, Stuck> {
        match self {
            Self::Pcap {
                parser,
                link,
                nanos_per_tick,
            } => {
                // Raw, because the other way refuses packets that the capture cut off.
                match parser.next_raw_packet(bytes) {
                    Ok((_, packet)) => {
                        let kept = packet.data.len();
                        if kept > MAX_PACKET_BYTES {
                            return Err(absurd(kept));
                        }
                        let seconds = u64::from(packet.ts_sec) * NANOS;
                        let time = seconds + u64::from(packet.ts_frac) * *nanos_per_tick;
                        Ok(Step {
                            packet: Some(Timed {
                                record: Record {
                                    start: PCAP_RECORD_HEADER,
                                    kept,
                                    whole: kept.max(packet.orig_len as usize),
                                },
                                link: *link,
                                time: Some(time),
                            }),
                            taken: PCAP_RECORD_HEADER + kept,
                        })
                    }
                    Err(error) => {
                        // Nobody waits for more of what nobody would read.
                        let kept = word(bytes, 8, parser.header().endianness);
                        match kept.filter(|kept| *kept > MAX_PACKET_BYTES) {
                            Some(kept) => Err(absurd(kept)),
                            None => Err(error.into()),
                        }
                    }
                }
            }
            Self::PcapNg { parser, interfaces } => next_block(parser, interfaces, bytes),
        }
    }
}

#[cold]
fn absurd(bytes: usize) -> Stuck {
    Stuck::Broken(format!(
        "a packet of {bytes} bytes is longer than any that is captured"
    ))
}

/// A 32-bit number.
#[inline]
fn word(bytes: &[u8], at: usize, order: Endianness) -> Option<usize> {
    let bytes = *bytes.get(at..)?.first_chunk()?;
    let number = match order {
        Endianness::Big => u32::from_be_bytes(bytes),
        Endianness::Little => u32::from_le_bytes(bytes),
    };
    Some(number as usize)
}

/// Refuses the block of a section or an interface that nobody needs so long, before it is read.
#[inline]
fn refuse_long_description(bytes: &[u8], order: Endianness) -> Result<(), Stuck> {
    let order = if bytes.starts_with(&PCAPNG_MAGIC) {
        // A section says its own.
        match bytes.get(8..12) {
            Some([0x1a, ..]) => Endianness::Big,
            Some(_) => Endianness::Little,
            None => return Err(Stuck::Incomplete),
        }
    } else if word(bytes, 0, order) == Some(INTERFACE_DESCRIPTION_BLOCK as usize) {
        order
    } else {
        return Ok(());
    };
    match word(bytes, 4, order) {
        Some(length) if length > MAX_DESCRIPTION_BYTES => Err(Stuck::Broken(format!(
            "a section or an interface is described in {length} bytes, more than \
             {MAX_DESCRIPTION_BYTES}"
        ))),
        _ => Ok(()),
    }
}

#[inline]
fn next_block(
    parser: &mut PcapNgParser,
    interfaces: &mut Vec<Interface>,
    bytes: &[u8],
) -> Result<Step, Stuck> {
    let order = parser.section().endianness;
    refuse_long_description(bytes, order)?;
    let (rest, block) = match parser.next_raw_block(bytes) {
        Ok(next) => next,
        Err(error) => {
            let length = word(bytes, 4, order).filter(|_| !bytes.starts_with(&PCAPNG_MAGIC));
            return Err(
                match length.filter(|bytes| *bytes > super::input::MAX_RECORD_BYTES) {
                    Some(bytes) => Stuck::Broken(format!("a block of {bytes} bytes is too long")),
                    None => error.into(),
                },
            );
        }
    };
    let packet = match block.type_ {
        SECTION_HEADER_BLOCK => {
            interfaces.clear();
            None
        }
        INTERFACE_DESCRIPTION_BLOCK => {
            if interfaces.len() == MAX_INTERFACES {
                let what = format!("more than {MAX_INTERFACES} interfaces are described");
                return Err(Stuck::Broken(what));
            }
            if let Some(described) = parser.interfaces().last() {
                interfaces.push(interface(described)?);
            }
            None
        }
        ENHANCED_PACKET_BLOCK | PACKET_BLOCK | SIMPLE_PACKET_BLOCK => {
            Some(packet(&block, interfaces, order)?)
        }
        _ => None,
    };
    Ok(Step {
        packet,
        taken: bytes.len() - rest.len(),
    })
}

/// The packet in a block. Its options, which nobody needs, are not read: they cost more than all
/// the rest.
#[inline]
fn packet(
    block: &RawBlock<'_>,
    interfaces: &[Interface],
    order: Endianness,
) -> Result<Timed, Stuck> {
    let field = |at| {
        word(&block.body, at, order)
            .ok_or_else(|| Stuck::Broken("a packet's block is too short".to_owned()))
    };
    let interface = |number: usize| {
        let interface = interfaces.get(number);
        interface.ok_or_else(|| Stuck::Broken(format!("there is no interface {number}")))
    };
    if block.type_ == SIMPLE_PACKET_BLOCK {
        let interface = interface(0)?;
        let whole = field(0)?;
        let room = block.body.len() - 4;
        let kept = whole.min(room).min(match interface.snaplen {
            0 => room,
            snaplen => snaplen,
        });
        return Ok(Timed {
            record: Record {
                start: BLOCK_HEADER + 4,
                kept,
                whole,
            },
            link: interface.link,
            time: None,
        });
    }
    let number = match (block.type_, order) {
        (ENHANCED_PACKET_BLOCK, _) => field(0)?,
        // Half a word; the other half counts losses.
        (_, Endianness::Little) => field(0)? & 0xffff,
        (_, Endianness::Big) => field(0)? >> 16,
    };
    let interface = interface(number)?;
    let (high, low) = (field(4)? as u64, field(8)? as u64);
    let (kept, whole) = (field(12)?, field(16)?);
    if kept > block.body.len() - 20 {
        return Err(Stuck::Broken(
            "a packet is longer than its block".to_owned(),
        ));
    }
    if kept > MAX_PACKET_BYTES {
        return Err(absurd(kept));
    }
    Ok(Timed {
        record: Record {
            start: BLOCK_HEADER + 20,
            kept,
            whole: whole.max(kept),
        },
        link: interface.link,
        time: Some(interface.nanos(high << 32 | low)),
    })
}

fn interface(described: &InterfaceDescriptionBlock<'_>) -> Result<Interface, Stuck> {
    let number = u32::from(described.linktype);
    let (mut ticks, mut offset) = (Ticks::OfNanos(1000), 0);
    for option in &described.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(value) => ticks = Ticks::of(*value),
            InterfaceDescriptionOption::IfTsOffset(seconds) => offset = *seconds,
            _ => {}
        }
    }
    Ok(Interface {
        link: Link::of(number).ok_or(Stuck::Link(number))?,
        snaplen: described.snaplen as usize,
        ticks,
        offset,
    })
}

impl Ticks {
    /// As the option if_tsresol says: a power of ten, or of two.
    const fn of(value: u8) -> Self {
        match value {
            0..=9 => Self::OfNanos(10_u64.pow(9 - value as u32)),
            10..=0x7f => Self::PerSecond(10_u128.pow(if value < 38 { value as u32 } else { 38 })),
            _ => {
                let power = value as u32 & 0x7f;
                Self::PerSecond(1 << if power < 127 { power } else { 127 })
            }
        }
    }
}

impl Interface {
    #[inline]
    fn nanos(&self, ticks: u64) -> u64 {
        let nanos = match self.ticks {
            Ticks::OfNanos(nanos) => ticks.saturating_mul(nanos),
            Ticks::PerSecond(per_second) => {
                let nanos = u128::from(ticks) * u128::from(NANOS) / per_second;
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        };
        // It is signed: what is added may be negative.
        nanos.wrapping_add(self.offset.wrapping_mul(NANOS))
    }
}
