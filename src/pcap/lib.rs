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

pub use error::ReadError;
pub use format::{Format, Step, Stuck, Timed};
use input::Input;
pub use link::{Link, Record};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An open capture.
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
    /// Link type of the last one.
    pub link: u32,
}

/// A captured packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The captured bytes.
    pub bytes: &'a [u8],
    /// Length on the wire, in bytes; at least the captured length.
    pub whole: usize,
    /// The link type of its interface.
    pub link: Link,
    /// Capture time, in nanoseconds since the Unix epoch; `None` if the file does not give it.
    pub time: Option<u64>,
}

impl Passed {
    /// Counts one more packet.
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
    /// The file cannot be read, or is not a capture.
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

    /// Reads the next packet, of any link type; `None` at the end.
    ///
    /// # Errors
    /// The rest of the file cannot be read.
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
        let record = timed.record;
        let record = Record {
            start: start + record.start,
            ..record
        };
        Ok(Some(Packet {
            bytes: record.bytes(buffer),
            whole: record.whole,
            link: timed.link,
            time: timed.time,
        }))
    }

    /// The capture file.
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

    /// Reads more bytes if the record was incomplete; false at the end.
    ///
    /// # Errors
    /// The rest of the file cannot be read.
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
