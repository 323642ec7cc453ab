//! Why a capture cannot be read, or not to its end.

use std::io;
use std::path::{Path, PathBuf};

/// Which file, where in it, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be opened or read.
    #[error("{path}: {source}; {}", advice(.source))]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error(
        "{0} is empty: whoever captures has written nothing yet, or had a full disk; leave it out, \
         or fetch it again"
    )]
    Empty(PathBuf),
    /// It begins as no capture does.
    #[error(
        "{0} is neither pcap nor pcapng; unpack it where it is compressed, or convert it \
         (`tshark -r FILE -w NEW.pcapng`)"
    )]
    Format(PathBuf),
    /// All its packets are of networks that nobody here can read.
    #[error(
        "{path}: link type {link} cannot be read; Ethernet (1), raw IP (101, 228, 229) and Linux \
         cooked (113, 276) can, so capture at such an interface"
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// Its number.
        link: u32,
    },
    /// It ends within a record.
    #[error(
        "{path} ends within a record, which begins at byte {offset}, behind packet {packets}; all \
         before it was read. Whoever wrote the file was interrupted or had a full disk: if it is \
         only being copied, read it again when that is done"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How many packets there are before.
        packets: u64,
        /// From the file's beginning.
        offset: u64,
    },
    /// A record is none.
    #[error(
        "{path}, byte {offset}, behind packet {packets}: {what}; all before it was read, and the \
         rest cannot be: fetch the file again, or capture anew"
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// How many packets there are before.
        packets: u64,
        /// From the file's beginning.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// What helps where a file cannot be read.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "raise the limit of open files (`ulimit -n`), or join captures (`mergecap`)"
        }
        _ => "name a capture file that this user may read",
    }
}

impl ReadError {
    /// A file that cannot be opened or read.
    pub fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}
