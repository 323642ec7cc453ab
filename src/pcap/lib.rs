//! Reads packets from pcap and pcapng files, for both programs. Ethernet, raw IP and Linux's
//! interface "any" are supported.
//!
//! A file is read through one buffer; packets are used in place and not copied, and the buffer is
//! wiped when it is dropped. A broken file is read up to the fault. The parser is hand-written so
//! that unneeded parts cannot make a file unreadable, and because parsing a packet's options costs
//! more than everything else.

#![forbid(unsafe_code)]

mod blocks;
mod error;
mod format;
mod input;
mod link;
mod step;

pub use error::ReadError;
pub use format::Format;
use input::Input;
pub use link::{Link, Record};
use std::fs::File;
use std::path::{Path, PathBuf};
pub use step::{Step, Stuck, Timed};

/// An open capture, pcap or pcapng, which is read from its beginning to its end.
///
/// Lengths are in bytes, times in nanoseconds since the Unix epoch, whichever unit the file uses.
/// The link types of [`Link`] can be parsed; packets of others are returned with their number. A
/// file that is cut off or broken is an error of [`Reader::read_packet`] behind the last whole
/// packet.
///
/// # Examples
/// ```
/// use exitmark_pcap::{Link, ReadError, Reader};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let name = format!("exitmark-pcap-example-{}.pcap", std::process::id());
/// # let path = std::env::temp_dir().join(name);
/// // The header of a pcap file of Ethernet frames, and one frame at 1.5 s after the epoch.
/// let mut file = Vec::new();
/// for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1] {
///     file.extend(u32::to_le_bytes(word));
/// }
/// for word in [1, 500_000, 14, 60] {
///     file.extend(u32::to_le_bytes(word)); // Seconds, microseconds, 14 captured bytes of 60.
/// }
/// file.extend([0; 14]);
/// std::fs::write(&path, &file)?;
///
/// let mut reader = Reader::open(&path)?;
/// while let Some(packet) = reader.read_packet()? {
///     assert_eq!((packet.bytes.len(), packet.whole), (14, 60));
///     assert_eq!((packet.link, packet.time), (Link::Ethernet, Some(1_500_000_000)));
/// }
/// assert_eq!(reader.packets(), 1);
///
/// // Without its last byte, the file ends within a record.
/// std::fs::write(&path, &file[..file.len() - 1])?;
/// let cut = Reader::open(&path)?.read_packet().map(|_| ());
/// assert!(matches!(cut, Err(ReadError::Truncated { packets: 0, offset: 24, .. })));
/// # std::fs::remove_file(&path)?;
/// # Ok(())
/// # }
/// ```
pub struct Reader {
    path: PathBuf,
    input: Input,
    format: Format,
    packets: u64,
    passed: Passed,
}

/// Packets that were skipped because of their link type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// How many packets were skipped.
    pub packets: u64,
    /// Link type number of the last one; 0 if no packet was skipped.
    pub link: u32,
}

/// A captured packet, in the reader's buffer until the next packet is read.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The captured bytes, from the link layer's header on; fewer than `whole` if the capture cut
    /// the packet (`snaplen`).
    pub bytes: &'a [u8],
    /// Length on the wire, in bytes; at least the captured length.
    pub whole: usize,
    /// The link type of its interface.
    pub link: Link,
    /// Capture time, in nanoseconds since the Unix epoch; `None` if the file does not give it.
    pub time: Option<u64>,
}

impl Passed {
    /// The sum after one more skipped packet, whose link type number is `link`.
    pub const fn and(self, link: u32) -> Self {
        Self {
            packets: self.packets + 1,
            link,
        }
    }
}

impl Reader {
    /// Opens a capture and reads its header.
    ///
    /// # Errors
    /// [`ReadError::File`] if the file cannot be opened or read, [`ReadError::Empty`] if it has no
    /// bytes, [`ReadError::Format`] if it is neither pcap nor pcapng, [`ReadError::Truncated`] if
    /// it ends within its header, [`ReadError::LinkType`] if it is a pcap file of another link
    /// type.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::file(path, source))?;
        Self::of(path, file)
    }

    /// Like [`Reader::open`] for an open file, which is only read.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn of(path: &Path, file: File) -> Result<Self, ReadError> {
        let path = path.to_owned();
        let mut input = Input::new(file);
        let (format, taken) = loop {
            match Format::read(input.unread()) {
                Ok(Some(found)) => break found,
                Ok(None) => return Err(ReadError::Format(path)),
                Err(_) => {}
            }
            let filled = input.fill();
            if !filled.map_err(|error| ReadError::file(&path, error))? {
                return Err(match input.unread().len() {
                    0 => ReadError::Empty(path),
                    // Shorter than a magic number.
                    1..4 => ReadError::Format(path),
                    _ => ReadError::Truncated {
                        path,
                        packets: 0,
                        offset: 0,
                    },
                });
            }
        };
        if let Some(link) = format.unreadable_link() {
            return Err(ReadError::LinkType { path, link });
        }
        input.take(taken);
        Ok(Self {
            path,
            input,
            format,
            packets: 0,
            passed: Passed::default(),
        })
    }

    /// Reads the next packet, of any link type; `None` at the end of the file.
    ///
    /// # Errors
    /// [`ReadError::File`] if the file cannot be read, [`ReadError::Truncated`] if it ends within a
    /// record, [`ReadError::Broken`] if a record contradicts the format. The packets before it were
    /// returned.
    pub fn read_packet(&mut self) -> Result<Option<Packet<'_>>, ReadError> {
        let (timed, taken) = loop {
            match self.format.step(self.input.unread()) {
                Ok(Step { packet, taken }) => match packet {
                    Some(timed) => break (timed, taken),
                    None => self.input.take(taken),
                },
                Err(stuck) => {
                    if !self.read_on(stuck)? {
                        return Ok(None);
                    }
                }
            }
        };
        let (_, start) = self.input.buffer();
        self.take(taken, 1, Passed::default());
        let (buffer, _) = self.input.buffer();
        let mut record = timed.record;
        record.start += start;
        Ok(Some(Packet {
            bytes: record.bytes(buffer),
            whole: record.whole,
            link: timed.link,
            time: timed.time,
        }))
    }

    /// The path that the capture was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many packets were read so far.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// How many of these were skipped because of their link type.
    pub const fn passed(&self) -> Passed {
        self.passed
    }

    /// Grows the buffer to its full size.
    pub fn read_ahead(&mut self) {
        self.input.read_ahead();
    }

    /// The format, the whole buffer, and where its unread part begins.
    pub fn parts(&mut self) -> (&mut Format, &mut [u8], usize) {
        let (buffer, start) = self.input.buffer();
        (&mut self.format, buffer, start)
    }

    /// Skips unread bytes, which held `packets` packets.
    pub fn take(&mut self, bytes: usize, packets: u64, passed: Passed) {
        self.input.take(bytes);
        self.packets += packets;
        if passed.packets > 0 {
            self.passed.packets += passed.packets;
            self.passed.link = passed.link;
        }
    }

    /// Reads more bytes if the record was incomplete; false at the end of the file.
    ///
    /// # Errors
    /// As [`Reader::read_packet`]; and [`ReadError::LinkType`] at the end of the file, if every
    /// packet was skipped because of its link type.
    pub fn read_on(&mut self, stuck: Stuck) -> Result<bool, ReadError> {
        let path = || self.path.clone();
        let (packets, offset) = (self.packets, self.input.offset());
        if let Stuck::Broken(what) = stuck {
            return Err(ReadError::Broken {
                path: path(),
                packets,
                offset,
                what,
            });
        }
        let filled = self.input.fill();
        if filled.map_err(|error| ReadError::file(&self.path, error))? {
            return Ok(true);
        }
        self.input.wipe();
        if !self.input.unread().is_empty() {
            return Err(ReadError::Truncated {
                path: self.path.clone(),
                packets,
                offset,
            });
        }
        let Passed { packets, link } = self.passed;
        if packets > 0 && packets == self.packets {
            let path = self.path.clone();
            return Err(ReadError::LinkType { path, link });
        }
        Ok(false)
    }
}
