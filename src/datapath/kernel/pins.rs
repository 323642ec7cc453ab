//! What outlives the process: links and maps with names in the BPF file system.
//!
//! ```text
//! <directory>/link_host, link_uplink, link_incoming   the attachments
//! <directory>/watch_unsent, watch_unredirected        what counts the NICs' drops
//! <directory>/undo                                    what to set back on which NIC
//! <directory>/maps-<layout>/…                         the program's maps
//! ```
//!
//! The links are the box: as long as they are there, frames flow. A build with another layout
//! of its maps brings maps of its own and takes the links over all the same.

use super::super::Role;
use super::sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const UNDO: &str = "undo";
const MAPS: &str = "maps-";
/// How long the last owner may take to end: it drains its rings.
const OWNER_PATIENCE: Duration = Duration::from_secs(3);
const OWNER_PAUSE: Duration = Duration::from_millis(2);

/// Why nothing can be pinned, or what is pinned cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is on no BPF file system.
    #[error(
        "{0} is not in a BPF file system, where the policy outlives this process: \
         `mount -t bpf bpf /sys/fs/bpf` mounts one, `pin.directory` names another"
    )]
    NoBpfFs(PathBuf),
    /// Another process has it.
    #[error("another exitmark holds {0}: stop it first, or give each its own `pin.directory`")]
    Owned(PathBuf),
    /// The file system refuses.
    #[error("cannot {doing} {path}: {source}{}", hint(.source))]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// libbpf's error with the kind that it has, for the hint.
fn as_io(error: libbpf_rs::Error) -> io::Error {
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
            "; it takes CAP_BPF and CAP_NET_ADMIN, and a directory that this user may write to"
        }
        _ => "",
    }
}

fn refused(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Refused {
        doing,
        path,
        source,
    }
}

/// A program that counts what NICs drop behind the XDP program's back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Watch {
    /// What a driver had no room for.
    Unsent,
    /// What did not get as far as a driver.
    Unredirected,
}

impl Watch {
    const fn name(self) -> &'static str {
        match self {
            Self::Unsent => "watch_unsent",
            Self::Unredirected => "watch_unredirected",
        }
    }
}

/// The directory of one box' pins, held against other processes until this is dropped.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    undo: MapHandle,
    _lock: Flock<File>,
}

impl Pins {
    /// Opens the directory, and makes it if need be. Waits a little for a process that is about
    /// to end.
    ///
    /// # Errors
    /// There is no BPF file system, no privilege, or another process has it.
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        let existing = directory
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        let kind = statfs(existing)
            .map_err(io::Error::from)
            .map_err(refused("look at", existing))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(PinError::NoBpfFs(directory.to_owned()));
        }
        fs::create_dir_all(directory).map_err(refused("make", directory))?;
        let lock = lock(directory)?;
        Ok(Self {
            undo: undo_map(&directory.join(UNDO))?,
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    /// Whether there is anything at this place.
    pub fn exist(directory: &Path) -> bool {
        directory.is_dir()
    }

    /// Whether a program is attached by one of the links.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn are_attached(&self) -> Result<bool, PinError> {
        for role in Role::ALL {
            if self.link(role)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn link_path(&self, role: Role) -> PathBuf {
        self.directory.join(format!("link_{role}"))
    }

    /// Where the maps of this layout are.
    pub(super) fn maps(&self, layout: u32) -> PathBuf {
        self.directory.join(format!("{MAPS}{layout}"))
    }

    /// A role's link, if there is one.
    pub(super) fn link(&self, role: Role) -> Result<Option<OwnedFd>, PinError> {
        let path = self.link_path(role);
        match sys::open_pinned(&path) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused("open", &path)(error)),
        }
    }

    pub(super) fn pin_link(&self, role: Role, link: impl AsFd) -> Result<(), PinError> {
        let path = self.link_path(role);
        sys::pin(link.as_fd(), &path).map_err(refused("pin", &path))
    }

    pub(super) fn pin_watch(&self, watch: Watch, link: impl AsFd) -> Result<(), PinError> {
        let path = self.directory.join(watch.name());
        sys::pin(link.as_fd(), &path).map_err(refused("pin", &path))
    }

    pub(super) fn remove_watches(&self) -> Result<(), PinError> {
        for watch in [Watch::Unsent, Watch::Unredirected] {
            remove(&self.directory.join(watch.name()))?;
        }
        Ok(())
    }

    /// Takes a role's program off its NIC.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove_link(&self, role: Role) -> Result<bool, PinError> {
        let path = self.link_path(role);
        if let Some(link) = self.link(role)?
            && sys::link_ifindex(link.as_fd()).map_err(refused("look at", &path))? != 0
        {
            // Without this the kernel does it some time after the last reference is gone.
            sys::detach_link(link.as_fd()).map_err(refused("detach", &path))?;
        }
        remove(&path)
    }

    /// Removes what was pinned with other layouts than this; says which.
    pub(super) fn remove_other_maps(&self, layout: u32) -> Result<Vec<String>, PinError> {
        let mut removed = Vec::new();
        for (name, path) in self.map_directories()? {
            if path != self.maps(layout) {
                remove_directory(&path)?;
                removed.push(name.trim_start_matches(MAPS).to_owned());
            }
        }
        Ok(removed)
    }

    pub(super) fn remove_maps(&self, layout: u32) -> Result<(), PinError> {
        remove_directory(&self.maps(layout))
    }

    fn map_directories(&self) -> Result<Vec<(String, PathBuf)>, PinError> {
        let entries = fs::read_dir(&self.directory).map_err(refused("list", &self.directory))?;
        Ok(entries
            .flatten()
            .map(|entry| {
                (
                    entry.file_name().to_string_lossy().into_owned(),
                    entry.path(),
                )
            })
            .filter(|(name, _)| name.starts_with(MAPS))
            .collect())
    }

    /// The NIC on which promiscuous mode is to be turned off when the box is taken off it.
    pub fn promiscuous(&self, role: Role) -> Option<u32> {
        let key = u32::try_from(role.index()).ok()?.to_ne_bytes();
        let value = self.undo.lookup(&key, MapFlags::ANY).ok()??;
        let number = value.first_chunk().copied().map(u32::from_ne_bytes)?;
        (number != 0).then_some(number)
    }

    /// Remembers that NIC, or that there is none.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn remember_promiscuous(&self, role: Role, ifindex: Option<u32>) -> Result<(), PinError> {
        let key = u32::try_from(role.index()).unwrap_or(0).to_ne_bytes();
        let value = ifindex.unwrap_or(0).to_ne_bytes();
        self.undo
            .update(&key, &value, MapFlags::ANY)
            .map_err(|error| refused("write to", &self.directory.join(UNDO))(as_io(error)))
    }

    /// Takes everything off: links first, so that no program is left without its maps.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(self) -> Result<(), PinError> {
        for role in Role::ALL {
            self.remove_link(role)?;
        }
        self.remove_watches()?;
        for (_, path) in self.map_directories()? {
            remove_directory(&path)?;
        }
        remove(&self.directory.join(UNDO))?;
        fs::remove_dir(&self.directory).map_err(refused("remove", &self.directory))
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, PinError> {
    let deadline = Instant::now() + OWNER_PATIENCE;
    let mut file = File::open(directory).map_err(refused("open", directory))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, nix::errno::Errno::EWOULDBLOCK)) => {
                if Instant::now() >= deadline {
                    return Err(PinError::Owned(directory.to_owned()));
                }
                file = unlocked;
                thread::sleep(OWNER_PAUSE);
            }
            Err((_, error)) => return Err(refused("lock", directory)(error.into())),
        }
    }
}

/// A small map for numbers that only user space reads: a place that lasts as long as the links.
fn undo_map(path: &Path) -> Result<MapHandle, PinError> {
    if path.exists() {
        return MapHandle::from_pinned_path(path)
            .map_err(|error| refused("open", path)(as_io(error)));
    }
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let entries = u32::try_from(Role::ALL.len()).unwrap_or(3);
    let mut map = MapHandle::create(
        MapType::Array,
        Some("exitmark_undo"),
        4,
        4,
        entries,
        &options,
    )
    .map_err(|error| refused("make", path)(as_io(error)))?;
    map.pin(path)
        .map_err(|error| refused("pin", path)(as_io(error)))?;
    Ok(map)
}

fn remove(path: &Path) -> Result<bool, PinError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused("remove", path)(error)),
    }
}

fn remove_directory(path: &Path) -> Result<(), PinError> {
    if !path.exists() {
        return Ok(());
    }
    fs::remove_dir_all(path).map_err(refused("remove", path))
}
