//! The state directory: counts that are not published yet, one file for each period.
//!
//! A file is named `START-PART.state` (START in seconds since the Unix epoch) until its period is
//! first to be published, then `START-PART-DIGEST.closed`, where DIGEST is that of the rows to
//! publish. After a crash it tells whether they were published. Marking is a rename, which a full
//! tmpfs allows.
//!
//! The files contain no address, but exact counts: only their owner may read them, and a file or
//! directory that other users could have written is refused.

use super::disk::{Disk, UNFINISHED, hex};
use crate::clock::{Length, Period};
use crate::ledger::{Ledger, MAX_JSON_BYTES};
use jiff::Timestamp;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Version 1 had one direction: each of its counts is three numbers, which is still read.
const FORMAT: u32 = 2;
/// Largest possible counts, and the fields around them.
const MAX_BYTES: u64 = MAX_JSON_BYTES as u64 + 4096;
/// Size of the read buffer, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Entries of the directory that are read at most: it may hold foreign files.
const MAX_FILES: usize = 1000;
const DIGEST_CHARACTERS: usize = 64;
/// The digest line, and the newline in front of it.
const END_BYTES: u64 = DIGEST_CHARACTERS as u64 + 2;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory can be neither opened nor created.
    #[error(
        "{}: {_1}; make it with `install -d -m 0700 {}`, owned by the monitor's user, or name \
         another directory", _0.display(), _0.display()
    )]
    Directory(PathBuf, io::Error),
    /// Other users can read or write the directory. Holds its path, and the fault of owner, mode or
    /// kind as a clause.
    #[error(
        "{} {_1}: the state directory holds exact counts, and must be a directory that belongs to \
         the monitor's user (uid {}) with mode 0700; remove it, and it is made anew",
        _0.display(), Uid::effective()
    )]
    Exposed(PathBuf, &'static str),
    /// Another process holds the lock. Holds the directory's path.
    #[error(
        "{} is used by another exitmark-monitor; stop that one, or give this one a state \
         directory of its own", .0.display()
    )]
    InUse(PathBuf),
}

/// A state directory, locked by this process.
#[derive(Debug)]
pub(super) struct StateDirectory {
    path: PathBuf,
    lock: File,
}

/// Unlocks explicitly: a child process that is just starting may share the descriptor.
impl Drop for StateDirectory {
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

/// The name of a state file, parsed: start of the period in seconds since the Unix epoch, part,
/// digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) start: i64,
    pub(super) part: u32,
    /// Digest of the rows to publish, once publishing was tried.
    pub(super) digest: Option<String>,
}

impl Name {
    pub(super) fn of(period: &Period, digest: Option<String>) -> Self {
        Self {
            start: period.start.as_second(),
            part: period.part,
            digest,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (stem, digest) = if let Some(stem) = text.strip_suffix(".state") {
            (stem, None)
        } else {
            let (stem, digest) = text.strip_suffix(".closed")?.rsplit_once('-')?;
            let is_digest = digest.len() == DIGEST_CHARACTERS;
            (stem, Some(is_digest.then(|| digest.to_owned())?))
        };
        let (start, part) = stem.rsplit_once('-')?;
        Some(Self {
            start: start.parse().ok()?,
            part: part.parse().ok()?,
            digest,
        })
    }

    fn text(&self) -> String {
        let Self { start, part, .. } = self;
        match &self.digest {
            None => format!("{start}-{part}.state"),
            Some(digest) => format!("{start}-{part}-{digest}.closed"),
        }
    }
}

/// The content of a state file, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<L> {
    format: u32,
    /// Version of the program that wrote the file; informative.
    monitor: String,
    start: Timestamp,
    length_seconds: i64,
    ran_seconds: u64,
    ledger: L,
}

impl Stored<Ledger> {
    /// Returns the period, how long it ran, and its counts.
    fn open(self, name: &Name) -> Result<(Period, Duration, Ledger), &'static str> {
        let length = Length::stored(self.length_seconds).ok_or("has no length")?;
        if self.start.as_second() != name.start || name.part == 0 {
            return Err("has another period than its name");
        }
        let period = Period {
            start: self.start,
            length,
            part: name.part,
        };
        Ok((period, Duration::from_secs(self.ran_seconds), self.ledger))
    }
}

impl StateDirectory {
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |reason| StateError::Directory(path.to_owned(), reason);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        let found =
            fs::symlink_metadata(path).map_err(|error| failed(made.err().unwrap_or(error)))?;
        if let Some(what) = exposed(&found, found.is_dir(), "is not a directory") {
            return Err(StateError::Exposed(path.to_owned(), what));
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK)
            .open(path.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(path.to_owned())),
            Err(TryLockError::Error(reason)) => Err(failed(reason)),
        }
    }

    /// The path of the state file with this name.
    pub(super) fn place(&self, name: &Name) -> PathBuf {
        self.path.join(name.text())
    }

    /// The state files, oldest period first. Removes unfinished files.
    pub(super) fn names(&self) -> Result<Vec<Name>, StateError> {
        let failed = |reason| StateError::Directory(self.path.clone(), reason);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)?.take(MAX_FILES) {
            let file = entry.map_err(failed)?.file_name();
            let Some(text) = file.to_str() else {
                continue;
            };
            if text.ends_with(UNFINISHED) {
                let _ = fs::remove_file(self.path.join(text));
            }
            // A name that this program would not write is foreign.
            names.extend(Name::parse(text).filter(|name| name.text() == text));
        }
        names.sort();
        Ok(names)
    }

    /// Reads a state file. An error says why it cannot be used, without any of its content.
    pub(super) fn load(&self, name: &Name) -> Result<(Period, Duration, Ledger), String> {
        let (mut file, length) = open(&self.place(name)).map_err(|error| error.to_string())?;
        // One line of JSON, and one line with its digest.
        let length = length.checked_sub(END_BYTES).ok_or("is empty or cut off")?;
        if !is_whole(&mut file, length).map_err(|error| error.to_string())? {
            return Err("is damaged or cut off: its checksum does not match".to_owned());
        }
        let body = BufReader::with_capacity(BUFFER_BYTES, file.take(length));
        let stored: Option<Stored<Ledger>> = serde_json::from_reader(body).ok();
        let stored = stored.filter(|stored| (1..=FORMAT).contains(&stored.format));
        let stored = stored.ok_or("was written by another version of exitmark-monitor")?;
        Ok(stored.open(name)?)
    }

    /// Writes a state file, replacing an older one.
    pub(super) fn save(
        &self,
        disk: &Disk,
        name: &Name,
        period: &Period,
        ran: Duration,
        ledger: &Ledger,
    ) -> io::Result<()> {
        let stored = Stored {
            format: FORMAT,
            monitor: exitmark_service::VERSION.to_owned(),
            start: period.start,
            length_seconds: period.length.seconds(),
            ran_seconds: ran.as_secs(),
            ledger,
        };
        disk.replace(&self.place(name), |file| {
            let mut file = Hashing {
                file,
                hash: Sha256::new(),
            };
            serde_json::to_writer(&mut file, &stored)?;
            let digest = hex(file.hash);
            write!(file.file, "\n{digest}\n")
        })
    }

    /// Renames an unusable file, for inspection.
    pub(super) fn set_aside(&self, name: &Name) -> io::Result<PathBuf> {
        let aside = self.path.join(format!("{}.unusable", name.text()));
        fs::rename(self.place(name), &aside)?;
        Ok(aside)
    }
}

/// Says why other users could have read or written a file or directory, if they could.
fn exposed(
    found: &Metadata,
    is_right_kind: bool,
    wrong_kind: &'static str,
) -> Option<&'static str> {
    if !is_right_kind {
        Some(wrong_kind)
    } else if found.uid() != Uid::effective().as_raw() {
        Some("belongs to another user")
    } else if found.mode() & 0o077 != 0 {
        Some("is accessible to users other than its owner")
    } else {
        None
    }
}

/// Opens a file that only its owner could have written; returns its length, too.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if let Some(what) = exposed(&found, found.is_file(), "is not a regular file") {
        return Err(io::Error::other(what));
    }
    if found.len() > MAX_BYTES {
        return Err(io::Error::other("is larger than any counts"));
    }
    Ok((file, found.len()))
}

/// Whether the first `length` bytes match the digest behind them. Rewinds the file. It is read
/// twice so that it is never whole in memory and a damaged one is never parsed.
fn is_whole(file: &mut File, length: u64) -> io::Result<bool> {
    let mut body = file.take(length);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut hash = Sha256::new();
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => hash.update(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut end = Vec::new();
    file.take(END_BYTES + 1).read_to_end(&mut end)?;
    file.rewind()?;
    Ok(end == format!("\n{}\n", hex(hash)).as_bytes())
}

/// Hashes what it writes, so that a state is never whole in memory.
struct Hashing<'a> {
    file: &'a mut dyn Write,
    hash: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
