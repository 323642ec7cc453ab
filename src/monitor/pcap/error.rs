//! Why a capture cannot be counted, or not to its end.

use std::io;
use std::path::{Path, PathBuf};

/// Which file, where in it, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
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
    /// Its packets have no time.
    #[error(
        "{0} begins with a packet that has no time (pcapng's Simple Packet Block), so nobody knows \
         which period it is of; capture with what writes times, as tcpdump and dumpcap do, or give \
         all of it one that you know: `editcap -F pcap {0} OLD.pcap && editcap -t $(date -d \
         2026-11-21T12:00Z +%s) OLD.pcap NEW.pcap`"
    )]
    Timeless(PathBuf),
    /// It begins as no capture does.
    #[error(
        "{0} is neither pcap nor pcapng; unpack it where it is compressed, or convert it \
         (`tshark -r FILE -w NEW.pcapng`)"
    )]
    Format(PathBuf),
    /// Packets of a network that nobody here can read.
    #[error(
        "{path}: link type {link} cannot be counted; Ethernet (1), raw IP (101, 228, 229) and \
         Linux cooked (113, 276) can, so capture at such an interface"
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
         before it is counted. Whoever wrote the file was interrupted or had a full disk: if it is \
         only being copied, count it again when that is done"
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
        "{path}, byte {offset}, behind packet {packets}: {what}; all before it is counted, and the \
         rest cannot be read: fetch the file again, or capture anew"
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

impl CaptureError {
    pub(in super::super) fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn link(path: &Path, link: u32) -> Self {
        Self::LinkType {
            path: path.to_owned(),
            link,
        }
    }
}
