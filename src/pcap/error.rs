//! Errors of reading a capture, or of not reading it to its end.

use std::io;
use std::path::{Path, PathBuf};

/// Names the file, the position, the fault and a remedy.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}; {}", advice(.source))]
    File {
        /// Path of the capture file, as it was given.
        path: PathBuf,
        /// The error that the operating system returned.
        source: io::Error,
    },
    /// The file has no bytes. Holds its path.
    #[error(
        "{0} is empty: its writer has not written to it yet, or had a full disk; leave it out, \
         or fetch it again"
    )]
    Empty(PathBuf),
    /// The file begins with no known magic number.
    #[error(
        "{0} is neither pcap nor pcapng; unpack it where it is compressed, or convert it \
         (`tshark -r FILE -w NEW.pcapng`)"
    )]
    Format(PathBuf),
    /// All packets have a link type that is not supported.
    #[error(
        "{path}: link type {link} cannot be read; Ethernet (1), raw IP (101, 228, 229) and Linux \
         cooked (113, 276) can, so capture at such an interface"
    )]
    LinkType {
        /// Path of the capture file, as it was given.
        path: PathBuf,
        /// The link type (<https://www.tcpdump.org/linktypes.html>).
        link: u32,
    },
    /// The file ends within a record.
    #[error(
        "{path} ends within a record, which begins at byte {offset}, behind packet {packets}; all \
         before it was read. The writer of the file was interrupted or had a full disk: if it is \
         only being copied, read it again when that is done"
    )]
    Truncated {
        /// Path of the capture file, as it was given.
        path: PathBuf,
        /// How many packets precede the record.
        packets: u64,
        /// Byte offset of the record in the file.
        offset: u64,
    },
    /// A record contradicts the format, so the position of the next one is unknown.
    #[error(
        "{path}, byte {offset}, behind packet {packets}: {what}; all before it was read, and the \
         rest cannot be: fetch the file again, or capture anew"
    )]
    Broken {
        /// Path of the capture file, as it was given.
        path: PathBuf,
        /// How many packets precede the record.
        packets: u64,
        /// Byte offset of the record in the file.
        offset: u64,
        /// The contradiction, as a clause without the position.
        what: String,
    },
}

/// The remedy for an I/O error.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "raise the limit of open files (`ulimit -n`), or join captures (`mergecap`)"
        }
        _ => "name a capture file that this user may read",
    }
}

impl ReadError {
    /// An error of opening or reading `path`.
    pub fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}
