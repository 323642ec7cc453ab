//! Adds and removes pins in the BPF file system, and describes failures with a remedy.

use super::sys;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// The prefix of a temporary name, which a rename replaces.
pub(super) const NEXT: &str = "next_";

/// Why an object cannot be pinned, or a pin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is not in a BPF file system.
    #[error(
        "{0} is not in a BPF file system, where the policy outlives this process: \
         `mount -t bpf bpf /sys/fs/bpf` mounts one, `pin.directory` names another"
    )]
    NoBpfFs(PathBuf),
    /// The directory is a mount point.
    #[error(
        "{0} is a mount point, which other programs use too; name a directory in it: {0}/exitmark"
    )]
    MountPoint(PathBuf),
    /// Another process holds the directory's lock.
    #[error("another exitmark holds {0}: stop it first, or give each its own `pin.directory`")]
    Owned(PathBuf),
    /// The file system refuses an operation, such as "pin", on this pin or directory.
    #[error("cannot {0} {1}: {2}{hint}", hint = hint(.2))]
    Refused(&'static str, PathBuf, #[source] io::Error),
}

/// Converts an error of libbpf, and keeps its kind for [`hint`].
pub(super) fn as_io(error: libbpf_rs::Error) -> io::Error {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            io::Error::new(io::ErrorKind::PermissionDenied, error)
        }
        _ => io::Error::other(error),
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run it as root, or as a user with CAP_BPF, CAP_NET_ADMIN and write permission there"
        }
        _ => "",
    }
}

pub(super) fn refused(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Refused(doing, path, source)
}

/// Removes a pin; false if it does not exist.
pub(super) fn remove(path: &Path) -> Result<bool, PinError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused("remove", path)(error)),
    }
}

/// Pins an object at this path, atomically replacing the previous one: even if this process is
/// killed, one of the two is pinned there.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), PinError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let next = path.with_file_name(format!("{NEXT}{name}"));
    let mut pinned = sys::pin(object, &next);
    if pinned
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
    {
        // Left behind by a process that was killed.
        remove(&next)?;
        pinned = sys::pin(object, &next);
    }
    pinned.map_err(refused("pin", &next))?;
    fs::rename(&next, path).map_err(refused("pin", path))
}
