//! The read buffer of a capture file. It is wiped when it is dropped.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use zeroize::Zeroize;

/// Size of the buffer, in bytes; fits into the cache.
const BUFFER_BYTES: usize = 256 << 10;
/// Size until the first packet is known: all files are opened before one is read.
const FIRST_BYTES: usize = 8 << 10;
/// The longest record, in bytes; the buffer grows for it.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// Room for an Ethernet header in front of the unread bytes.
const HEADROOM: usize = 16;

#[derive(Debug)]
pub(super) struct Input {
    file: File,
    buffer: Vec<u8>,
    /// Range of the bytes that were read and not taken.
    start: usize,
    end: usize,
    /// Position of `start` in the file.
    offset: u64,
}

impl Input {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            buffer: vec![0; FIRST_BYTES],
            start: HEADROOM,
            end: HEADROOM,
            offset: 0,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// The whole buffer, and where its unread part begins. Bytes in front of that stay until the
    /// next [`Input::fill`].
    pub(super) fn buffer(&mut self) -> (&mut [u8], usize) {
        (&mut self.buffer[..self.end], self.start)
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        self.offset += bytes as u64;
    }

    /// Reads more bytes; false at the end of the file, or if the longest record does not fit.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, HEADROOM);
        (self.start, self.end) = (HEADROOM, HEADROOM + self.end - self.start);
        if self.end == self.buffer.len() {
            if self.end >= MAX_RECORD_BYTES + BUFFER_BYTES {
                return Ok(false);
            }
            self.enlarge(self.end * 2);
        }
        loop {
            match self.file.read(&mut self.buffer[self.end..]) {
                Ok(bytes) => {
                    self.end += bytes;
                    return Ok(bytes > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Grows the buffer to its full size.
    pub(super) fn read_ahead(&mut self) {
        if self.buffer.len() < BUFFER_BYTES {
            self.enlarge(BUFFER_BYTES);
        }
    }

    fn enlarge(&mut self, bytes: usize) {
        let mut larger = vec![0; bytes];
        larger[..self.end].copy_from_slice(&self.buffer[..self.end]);
        self.buffer.zeroize();
        self.buffer = larger;
    }

    /// Wipes all bytes that were taken, and the unused end of the buffer.
    pub(super) fn wipe(&mut self) {
        let (start, end) = (self.start, self.end);
        self.buffer[..start].zeroize();
        self.buffer[end..].zeroize();
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}
