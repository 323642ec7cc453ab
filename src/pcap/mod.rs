//! Packets out of capture files, for both programs: pcap and pcapng, of Ethernet, of IP alone, and
//! of Linux's interface "any".
//!
//! A file is read through one buffer, in which the packets stay: nothing of them is copied, and
//! the buffer is wiped when it is not needed any more. A file that is broken somewhere is read up
//! to there. Written by hand, because what is not needed must not make a file unreadable, and
//! because a packet's options cost more than all the rest where they are read.

mod blocks;
mod error;
mod format;
mod input;
mod link;

pub use error::ReadError;
pub(crate) use format::{Format, Step, Stuck, Timed};
use input::Input;
pub use link::Link;
pub(crate) use link::Record;
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

/// Packets of link types that are not read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// How many there were.
    pub(crate) packets: u64,
    /// The type of the last one.
    pub(crate) link: u32,
}

/// A packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// What was kept of it.
    pub bytes: &'a [u8],
    /// How long it was, in bytes; no less than what was kept.
    pub whole: usize,
    /// What it begins with.
    pub link: Link,
    /// When it was captured, in nanoseconds since 1970; none where the file does not say it.
    pub time: Option<u64>,
}

impl Passed {
    /// One more.
    pub(crate) const fn and(self, link: u32) -> Self {
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
    /// It cannot be read, or is no capture.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::file(path, source))?;
        Self::of(path, file)
    }

    /// The same of a file that is open: all that is done here is to read it.
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
                    // What is shorter than any magic number.
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

    /// The next packet, of whatever link type; none at the end.
    ///
    /// # Errors
    /// The file cannot be read any further.
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

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many packets were read.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// How many of them were passed over, because of their link type.
    pub(crate) const fn passed(&self) -> Passed {
        self.passed
    }

    /// From now on much is read at once.
    pub(crate) fn read_ahead(&mut self) {
        self.input.read_ahead();
    }

    /// The format, the whole buffer, and where in it the unread part begins.
    pub(crate) fn parts(&mut self) -> (&mut Format, &mut [u8], usize) {
        let (buffer, start) = self.input.buffer();
        (&mut self.format, buffer, start)
    }

    /// Goes on behind some bytes of the unread part, in which there were packets.
    pub(crate) fn take(&mut self, bytes: usize, packets: u64, passed: Passed) {
        self.input.take(bytes);
        self.packets += packets;
        if passed.packets > 0 {
            self.passed.packets += passed.packets;
            self.passed.link = passed.link;
        }
    }

    /// Reads more, if that is all that was missing; false at the end.
    ///
    /// # Errors
    /// The file cannot be read any further.
    pub(crate) fn read_on(&mut self, stuck: Stuck) -> Result<bool, ReadError> {
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
