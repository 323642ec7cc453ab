//! The block structure of pcapng (draft-ietf-opsawg-pcapng). Sections, interfaces and packets are
//! read; other blocks are skipped by their length.
//!
//! An option list ends with opt_endofopt or at the end of its block. An option that is too short
//! for its value, or longer than the rest of its block, is ignored: the file stays readable.

use super::input::MAX_RECORD_BYTES;
use super::link::{Link, Record};
use super::step::{ByteOrder, MAX_PACKET_BYTES, NANOS, Step, Stuck, Timed, absurd};

/// The block types that are read. The section header's reads the same in both byte orders.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Block type and block length, in front of a block's body.
const BLOCK_HEADER: usize = 8;
/// The header, and the length again behind the body.
const LEAST_BLOCK: usize = 12;
/// A section header block without options.
const LEAST_SECTION: usize = 28;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// The fields of an enhanced or obsolete packet block in front of the packet data.
const PACKET_FIELDS: usize = 20;

/// The interface options that are used.
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;
/// Interfaces in one section at most.
const MAX_INTERFACES: usize = 1 << 16;

/// State of the current section.
#[derive(Default)]
pub struct Blocks {
    order: Option<ByteOrder>,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: Link,
    snaplen: usize,
    ticks: Ticks,
    /// Seconds to add to every time; two's complement, since the option is signed.
    offset: u64,
}

/// The unit of an interface's times.
#[derive(Clone, Copy, Debug)]
enum Ticks {
    OfNanos(u64),
    PerSecond(u128),
}

impl Blocks {
    /// Whether a file that begins with this word, in either byte order, is pcapng.
    pub(super) const fn is_magic(word: u32) -> bool {
        word == SECTION
    }

    #[inline]
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, Stuck> {
        let begins = ByteOrder::Little.word(bytes, 0).ok_or(Stuck::Incomplete)?;
        // A palindrome: the same number in either byte order.
        if begins == SECTION {
            return self.section(bytes);
        }
        let Some(order) = self.order else {
            return Err(broken("no section header precedes this block"));
        };
        let kind = order.word(bytes, 0).ok_or(Stuck::Incomplete)?;
        let taken = block_bytes(bytes, order, LEAST_BLOCK)?;
        let body = &bytes[BLOCK_HEADER..taken - 4];
        let packet = match kind {
            ENHANCED_PACKET => {
                let interface = order.word(body, 0);
                Some(self.packet(body, interface, order)?)
            }
            SIMPLE_PACKET => Some(self.simple(body, order)?),
            OBSOLETE_PACKET => {
                // The obsolete block has a 16-bit interface number, and a drop count behind it.
                let interface = order.half(body, 0).map(u32::from);
                Some(self.packet(body, interface, order)?)
            }
            INTERFACE => {
                self.describe(body, order)?;
                None
            }
            _ => None,
        };
        Ok(Step { packet, taken })
    }

    #[cold]
    fn section(&mut self, bytes: &[u8]) -> Result<Step, Stuck> {
        let order = match ByteOrder::Little.word(bytes, 8).ok_or(Stuck::Incomplete)? {
            BYTE_ORDER => ByteOrder::Little,
            other if other.swap_bytes() == BYTE_ORDER => ByteOrder::Big,
            _ => {
                return Err(broken(
                    "a section does not say in which order its bytes are",
                ));
            }
        };
        let taken = block_bytes(bytes, order, LEAST_SECTION)?;
        if order.half(bytes, 12) != Some(1) {
            return Err(broken(
                "a section is of a version of pcapng that is not known",
            ));
        }
        self.order = Some(order);
        self.interfaces.clear();
        Ok(Step {
            packet: None,
            taken,
        })
    }

    #[cold]
    fn describe(&mut self, body: &[u8], order: ByteOrder) -> Result<(), Stuck> {
        let (Some(link), Some(snaplen)) = (order.half(body, 0), order.word(body, 4)) else {
            return Err(broken("the description of an interface is too short"));
        };
        if self.interfaces.len() == MAX_INTERFACES {
            let what = format!("more than {MAX_INTERFACES} interfaces are described");
            return Err(Stuck::Broken(what));
        }
        let mut interface = Interface {
            link: Link::of(link.into()),
            snaplen: snaplen as usize,
            ticks: Ticks::OfNanos(1000),
            offset: 0,
        };
        for (code, value) in options(&body[8..], order) {
            match (code, value) {
                (IF_TSRESOL, [value]) => interface.ticks = Ticks::of(*value),
                (IF_TSOFFSET, value) => {
                    let whole = value.try_into().map(|bytes| match order {
                        ByteOrder::Little => u64::from_le_bytes(bytes),
                        ByteOrder::Big => u64::from_be_bytes(bytes),
                    });
                    interface.offset = whole.unwrap_or(interface.offset);
                }
                _ => {}
            }
        }
        self.interfaces.push(interface);
        Ok(())
    }

    #[inline]
    fn interface(&self, number: u32) -> Result<&Interface, Stuck> {
        let interface = self.interfaces.get(number as usize);
        interface.ok_or_else(|| Stuck::Broken(format!("interface {number} is not described")))
    }

    /// Reads an enhanced or obsolete packet block; they differ in where the interface number is.
    /// Options are not read: parsing them costs more than everything else.
    #[inline]
    fn packet(&self, body: &[u8], number: Option<u32>, order: ByteOrder) -> Result<Timed, Stuck> {
        let number = number.ok_or_else(|| broken(SHORT))?;
        let interface = self.interface(number)?;
        let [_, high, low, kept, whole] = order.words(body).ok_or_else(|| broken(SHORT))?;
        let (high, low) = (u64::from(high), u64::from(low));
        let (kept, whole) = (kept as usize, whole as usize);
        if kept > body.len() - PACKET_FIELDS {
            return Err(broken("a packet is longer than its block"));
        }
        if kept > MAX_PACKET_BYTES {
            return Err(absurd(kept));
        }
        Ok(Timed {
            record: Record {
                start: BLOCK_HEADER + PACKET_FIELDS,
                kept,
                whole: whole.max(kept),
            },
            link: interface.link,
            time: Some(interface.nanos(high << 32 | low)),
            interface: number,
            is_one_of_several: self.interfaces.len() > 1,
        })
    }

    /// Reads a simple packet block: no time, interface 0.
    fn simple(&self, body: &[u8], order: ByteOrder) -> Result<Timed, Stuck> {
        let interface = self.interface(0)?;
        let whole = order.word(body, 0).ok_or_else(|| broken(SHORT))? as usize;
        let room = body.len() - 4;
        let snaplen = match interface.snaplen {
            0 => room,
            snaplen => snaplen,
        };
        let kept = whole.min(room).min(snaplen);
        if kept > MAX_PACKET_BYTES {
            return Err(absurd(kept));
        }
        Ok(Timed {
            record: Record {
                start: BLOCK_HEADER + 4,
                kept,
                whole,
            },
            link: interface.link,
            time: None,
            interface: 0,
            is_one_of_several: self.interfaces.len() > 1,
        })
    }
}

const SHORT: &str = "a packet's block is too short";

#[cold]
fn broken(what: &str) -> Stuck {
    Stuck::Broken(what.to_owned())
}

/// Length of a block, if all of it is in `bytes`. Some writers do not count the padding in the
/// block length; the copy of the length behind the padding shows it.
#[inline]
fn block_bytes(bytes: &[u8], order: ByteOrder, least: usize) -> Result<usize, Stuck> {
    let length = order.word(bytes, 4).ok_or(Stuck::Incomplete)?;
    let taken = (length as usize).next_multiple_of(4);
    if taken < least || taken > MAX_RECORD_BYTES {
        return Err(absurd_block(taken));
    }
    if bytes.len() < taken {
        return Err(Stuck::Incomplete);
    }
    if order.word(bytes, taken - 4) != Some(length) {
        return Err(broken("the two lengths of a block differ"));
    }
    Ok(taken)
}

#[cold]
fn absurd_block(bytes: usize) -> Stuck {
    Stuck::Broken(format!("a block of {bytes} bytes is too short or too long"))
}

/// Iterates over the options of a block as code and value.
fn options(mut list: &[u8], order: ByteOrder) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (code, bytes) = (order.half(list, 0)?, order.half(list, 2)?.into());
        let value = list.get(4..4 + bytes).filter(|_| code != 0)?;
        let end = 4 + usize::next_multiple_of(bytes, 4);
        list = list.get(end..).unwrap_or_default();
        Some((code, value))
    })
}

impl Ticks {
    /// Decodes if_tsresol: a power of ten, or a power of two if the top bit is set.
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
        // The offset is signed: the sum may go down.
        nanos.wrapping_add(self.offset.wrapping_mul(NANOS))
    }
}
