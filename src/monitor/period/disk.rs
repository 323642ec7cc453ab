//! What is done to files, one step at a time, so that a test can stop before each.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What is done here and not by every running process: a second name for a file, where a file
/// system cannot rename without replacing.
pub const SYSTEM_CALLS: [i64; 1] = [libc::SYS_linkat];

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A new file under a name that nobody reads.
    Create,
    /// What it holds.
    Write,
    /// That it lies on the disk.
    Sync,
    /// Its name.
    Rename,
    /// That the directory lies on the disk.
    SyncDirectory,
    /// The end of a file.
    Delete,
}

type Before = Box<dyn Fn(Step, &Path) -> io::Result<()> + Send>;

/// The disk.
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
    /// One that asks before every step: an error is the step's, and a panic leaves the files as
    /// the end of the process would.
    pub fn asking(before: impl Fn(Step, &Path) -> io::Result<()> + Send + 'static) -> Self {
        Self {
            before: Some(Box::new(before)),
        }
    }

    fn step(&self, step: Step, path: &Path) -> io::Result<()> {
        self.before.as_ref().map_or(Ok(()), |ask| ask(step, path))
    }

    /// Puts a file in the place of one that may be there. Only its owner may read it.
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

    /// Puts a file that all may read where there is none.
    pub(super) fn publish(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = temporary(path);
        let written = self
            .write(&new, |file| file.write_all(bytes))
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o644)))
            .and_then(|()| self.step(Step::Rename, path))
            .and_then(|()| rename_to_new(&new, path));
        self.tidied(&new, written)
    }

    /// Gives a file another name in its directory.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Rename, to)?;
        fs::rename(from, to)
    }

    /// Removes a file, which may be gone.
    pub(super) fn delete(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Delete, path)?;
        gone(path)
    }

    /// Waits until what was renamed in a file's directory lies on the disk.
    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step(Step::SyncDirectory, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    fn write(
        &self,
        new: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<File> {
        // What an earlier process left half done, or somebody has put there: a link would lead
        // elsewhere, a FIFO would wait.
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

    /// A full disk is not filled further by what could not be finished.
    fn tidied(&self, new: &Path, written: io::Result<()>) -> io::Result<()> {
        if written.is_err() {
            let _ = self.delete(new);
        }
        written
    }
}

/// The SHA-256 of a file, if there is one.
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

/// A hash in hexadecimal digits.
pub(super) fn hex(hash: Sha256) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What ends with this was never finished.
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
        // A file system that does not know how: a second name takes no other's place either.
        Err(Errno::EINVAL) => {
            fs::hard_link(from, to)?;
            gone(from)
        }
        result => Ok(result?),
    }
}
