//! File operations in single steps, so that a test can stop before each.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// System calls only this module needs: a hard link, for file systems that cannot rename without
/// replacing.
pub const SYSTEM_CALLS: [i64; 1] = [libc::SYS_linkat];

/// A step of a file operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Create a file under a temporary name.
    Create,
    /// Write the content of the new file.
    Write,
    /// Sync the new file to the disk (fsync(2)).
    Sync,
    /// Rename the file to its final name.
    Rename,
    /// Sync its directory, which makes the new name permanent.
    SyncDirectory,
    /// Remove a file, finished or not.
    Delete,
}

type Before = Box<dyn Fn(Step, &Path) -> io::Result<()> + Send>;

/// Access to files, with a hook for tests.
#[derive(Default)]
pub struct Disk {
    before: Option<Before>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    /// Calls `before` ahead of every step. An error fails the step; a panic leaves the files as a
    /// killed process would.
    pub fn with_hook(before: impl Fn(Step, &Path) -> io::Result<()> + Send + 'static) -> Self {
        Self {
            before: Some(Box::new(before)),
        }
    }

    fn step(&self, step: Step, path: &Path) -> io::Result<()> {
        self.before.as_ref().map_or(Ok(()), |ask| ask(step, path))
    }

    /// Replaces a file, or creates it. Only its owner can read it.
    pub(super) fn replace(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let new = temporary(path);
        let written = self
            .write(&new, write)
            .and_then(|_| self.rename(&new, path))
            .and_then(|()| self.sync_directory(path));
        self.tidied(&new, written)
    }

    /// Creates a file that all users can read; fails if it exists.
    pub(super) fn publish(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = temporary(path);
        let written = self
            .write(&new, |file| file.write_all(bytes))
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o644)))
            .and_then(|()| self.step(Step::Rename, path))
            .and_then(|()| rename_to_new(&new, path));
        self.tidied(&new, written)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Rename, to)?;
        fs::rename(from, to)
    }

    /// Removes a file; succeeds if it does not exist.
    pub(super) fn delete(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Delete, path)?;
        gone(path)
    }

    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step(Step::SyncDirectory, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    fn write(
        &self,
        new: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<File> {
        // Removes a leftover of an earlier process or a planted file: a symbolic link would lead
        // elsewhere, a FIFO would block.
        gone(new)?;
        self.step(Step::Create, new)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new)?;
        self.step(Step::Write, new)?;
        let mut buffered = BufWriter::new(file);
        write(&mut buffered)?;
        let file = buffered
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        self.step(Step::Sync, new)?;
        file.sync_all()?;
        Ok(file)
    }

    /// Removes an unfinished file: it must not fill the disk further.
    fn tidied(&self, new: &Path, written: io::Result<()>) -> io::Result<()> {
        if written.is_err() {
            let _ = self.delete(new);
        }
        written
    }
}

/// The SHA-256 of a file in hexadecimal; `None` if the file does not exist.
pub(super) fn digest_of(path: &Path) -> io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    Ok(Some(hex(hash)))
}

/// A hash as 64 lower-case hexadecimal digits.
pub(super) fn hex(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())
}

/// Suffix of unfinished files.
pub(super) const UNFINISHED: &str = ".new";

fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(UNFINISHED);
    path.with_file_name(name)
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // The file system lacks RENAME_NOREPLACE; a hard link does not replace a file either.
        Err(Errno::EINVAL) => {
            fs::hard_link(from, to)?;
            gone(from)
        }
        result => Ok(result?),
    }
}
