//! The buffer through which a file is read. It is wiped when it is given up.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use zeroize::Zeroize;

/// How much is read at once: it stays in the cache.
const BUFFER_BYTES: usize = 256 << 10;
/// The same until the first packet is known: of many files all are begun before one is read.
const FIRST_BYTES: usize = 8 << 10;
/// What one record may have at most; the buffer grows up to that.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// In front of what is unread there is always room for an Ethernet header.
const HEADROOM: usize = 16;

#[derive(Debug)]
pub(super) struct Input {
    file: File,
    buffer: Vec<u8>,
    /// What was read and is not taken yet.
    start: usize,
    end: usize,
    /// Of `start` in the file.
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

    /// The whole buffer, and where in it the unread part begins; what is before that stays until
    /// the next [`Input::fill`].
    pub(super) fn buffer(&mut self) -> (&mut [u8], usize) {
        (&mut self.buffer[..self.end], self.start)
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        self.offset += bytes as u64;
    }

    /// Reads more; false where there is no more.
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

    /// From now on much is read at once.
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

    /// Overwrites all that was read and taken.
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
