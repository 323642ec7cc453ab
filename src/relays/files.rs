//! Opens and reads regular files of bounded size.
//!
//! The paths come from the operator, but the files may be controlled by others: nothing here
//! blocks, opens a device, or trusts a length.

use super::{LoadError, MAX_DOCUMENT};
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An open regular file of at most [`MAX_DOCUMENT`] bytes.
pub(super) struct OpenFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
}

/// Identifies a version of a file: inode, length and times. Another version differs in some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            length: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the content is the same, as far as the file system shows. Changes of only the file's
    /// names (ctime), such as its replacement by a rename, do not count.
    fn has_content_of(&self, other: &Self) -> bool {
        (self.inode, self.length, self.modified) == (other.inode, other.length, other.modified)
    }

    /// The version at `path` now; `None` if the file does not exist.
    pub fn at(path: &Path) -> Option<Self> {
        path.metadata().ok().as_ref().map(Self::of)
    }
}

impl OpenFile {
    /// Opens a regular file of at most [`MAX_DOCUMENT`] bytes.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |reason| LoadError::Read(path.to_owned(), reason);
        let only_regular = |kind: FileType| match kind_of(kind) {
            None => Ok(()),
            Some(kind) => Err(LoadError::NotRegular(path.to_owned(), kind)),
        };
        // Resolve symbolic links: the target's name and kind count.
        let real = path.canonicalize().map_err(failed)?;
        let is_unverified = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("unverified-")
        };
        if is_unverified(path) || is_unverified(&real) {
            return Err(LoadError::Unverified(path.to_owned()));
        }
        // Checked before opening, because opening a device can have side effects, and again on the
        // open file, because tor replaces its files and the path may name another one by then.
        only_regular(real.metadata().map_err(failed)?.file_type())?;
        let file = open_without_waiting(&real).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        only_regular(metadata.file_type())?;
        if metadata.len() > MAX_DOCUMENT {
            return Err(LoadError::TooLarge(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
        })
    }

    /// The length in bytes when the file was opened.
    pub(super) fn length(&self) -> u64 {
        self.metadata.len()
    }

    /// Copies exactly [`length`](Self::length) bytes to `out`.
    ///
    /// # Errors
    /// Reading or writing fails, or the file changed meanwhile.
    pub(super) fn copy_to(&mut self, out: &mut impl io::Write) -> Result<(), LoadError> {
        let failed = |reason| LoadError::Read(self.path.clone(), reason);
        let copied = io::copy(&mut (&mut self.file).take(self.metadata.len()), out);
        let copied = copied.map_err(failed)?;
        let now = self.file.metadata().map_err(failed)?;
        let is_as_it_was = Version::of(&now).has_content_of(&Version::of(&self.metadata));
        if copied != self.metadata.len() || !is_as_it_was {
            return Err(LoadError::Changed(self.path.clone()));
        }
        Ok(())
    }
}

/// The bytes of a regular file of at most [`MAX_DOCUMENT`] bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut file = OpenFile::open(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(file.length()).unwrap_or(0));
    file.copy_to(&mut bytes)?;
    Ok(bytes)
}

/// Turns a read error into one about certificates, which have another remedy.
pub(super) fn about_certificates(error: LoadError) -> LoadError {
    match error {
        LoadError::Read(path, reason) => LoadError::Certificates(path, reason),
        other => other,
    }
}

/// Without `O_NONBLOCK`, opening a FIFO blocks until it has a writer.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The kind of a file, with its article; `None` for a regular file.
fn kind_of(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a FIFO")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}
