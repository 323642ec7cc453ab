//! What outlives the process: links and maps with names in the BPF file system.
//!
//! ```text
//! <directory>/link_host, link_uplink, link_incoming   the attachments
//! <directory>/program_host, …                         what they attach
//! <directory>/watch_unsent, watch_unredirected        what counts the NICs' drops
//! <directory>/undo                                    what to set back on which NIC
//! <directory>/maps-<layout>/…                         the program's maps
//! ```
//!
//! The links are the box: as long as they are there, frames flow. A build with another layout
//! of its maps brings maps of its own and takes the links over all the same.
//!
//! A process may be killed between any two of its system calls, and what it leaves must be enough
//! for the next one: a name goes from one object to the next in one step, and a program has its name
//! before a link attaches it.

use super::super::Role;
use super::pin_error::{NEXT, PinError, as_io, pin, refused, remove};
use super::sys;
use super::undo::{Undo, read_undo, undo_map, write_undo};
use libbpf_rs::MapHandle;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, Gid, Uid, chown, faccessat};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const UNDO: &str = "undo";
const MAPS: &str = "maps-";
/// The map that is pinned first of all.
pub(super) const POLICIES: &str = "policies";
/// How long the last owner may take to end: it drains its rings.
const OWNER_PATIENCE: Duration = Duration::from_secs(3);
const OWNER_PAUSE: Duration = Duration::from_millis(2);

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
    lock: Flock<File>,
}

impl Pins {
    /// Opens the directory, and makes it if need be. Waits a little for a process that is about
    /// to end.
    ///
    /// # Errors
    /// There is no BPF file system, no privilege, or another process has it.
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        if !is_bpf_fs(directory)? {
            return Err(PinError::NoBpfFs(directory.to_owned()));
        }
        let was_there = directory.is_dir();
        let lock = lock(directory)?;
        remove_half_made(directory)?;
        let undo = undo_map(&directory.join(UNDO)).inspect_err(|_| {
            if !was_there {
                let _ = fs::remove_dir(directory);
            }
        })?;
        Ok(Self {
            undo,
            directory: directory.to_owned(),
            lock,
        })
    }

    /// Whether the directory is the one that was opened, as far as this user may look.
    fn is_in_place(&self) -> bool {
        let identity = |data: fs::Metadata| (data.dev(), data.ino());
        match fs::metadata(&self.directory) {
            Ok(now) => self.lock.metadata().map(identity).ok() == Some(identity(now)),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Makes the directory again after it was removed, or its file system unmounted, and pins in it
    /// what to set back on the NICs.
    ///
    /// # Errors
    /// As [`Pins::open`].
    pub(super) fn renew(&mut self) -> Result<(), PinError> {
        if !is_bpf_fs(&self.directory)? {
            return Err(PinError::NoBpfFs(self.directory.clone()));
        }
        if !self.is_in_place() {
            self.lock = lock(&self.directory)?;
        }
        let path = self.directory.join(UNDO);
        if path.exists() {
            return Ok(());
        }
        sys::pin(self.undo.as_fd(), &path).map_err(refused("pin", &path))
    }

    /// Whether anything is missing of what a box has pinned: programs on the NICs of these roles,
    /// these watches, and these maps of this layout.
    pub(super) fn are_wiped(
        &self,
        roles: impl Iterator<Item = Role>,
        watches: impl Iterator<Item = Watch>,
        (layout, maps): (u32, &[&str]),
    ) -> bool {
        let of_roles = roles.flat_map(|role| [self.link_path(role), self.program_path(role)]);
        let of_watches = watches.map(|watch| self.directory.join(watch.name()));
        let of_maps = maps.iter().map(|map| self.maps(layout).join(map));
        let undo = std::iter::once(self.directory.join(UNDO));
        let mut all = undo.chain(of_roles).chain(of_watches).chain(of_maps);
        !self.is_in_place() || all.any(|path| is_missing(&path))
    }

    /// Whether there is anything at this place.
    pub fn exist(directory: &Path) -> bool {
        directory.is_dir()
    }

    /// The programs that are attached by pins in this directory, with the numbers of their NICs,
    /// as far as this user may look. Changes nothing, and needs nobody to hold still.
    pub fn peek(directory: &Path) -> Vec<(Role, u32, u32)> {
        let targets = Role::ALL.into_iter().filter_map(|role| {
            let link = sys::open_pinned(&directory.join(format!("link_{role}"))).ok()?;
            let target = sys::link_target(link.as_fd()).ok()?;
            (target.ifindex != 0).then_some((role, target.ifindex, target.program))
        });
        targets.collect()
    }

    /// Whether pins can be in this directory, which need not be there yet.
    pub fn can_be_in(directory: &Path) -> bool {
        is_bpf_fs(directory).unwrap_or(false)
    }

    /// Whether a program is on a NIC by one of the links.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn are_attached(&self) -> Result<bool, PinError> {
        for role in Role::ALL {
            if let Some(link) = self.link(role)? {
                let path = self.link_path(role);
                let target = sys::link_target(link.as_fd()).map_err(refused("look at", &path))?;
                if target.ifindex != 0 {
                    return Ok(true);
                }
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

    /// The number of the NIC on which a role's pinned link has its program: 0 where that NIC is gone,
    /// none where there is no such pin.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn attached_to(&self, role: Role) -> Result<Option<u32>, PinError> {
        let path = self.link_path(role);
        let target = |link: OwnedFd| sys::link_target(link.as_fd());
        let target = self.link(role)?.map(target).transpose();
        Ok(target
            .map_err(refused("look at", &path))?
            .map(|target| target.ifindex))
    }

    pub(super) fn pin_link(&self, role: Role, link: impl AsFd) -> Result<(), PinError> {
        pin(link.as_fd(), &self.link_path(role))
    }

    fn program_path(&self, role: Role) -> PathBuf {
        self.directory.join(format!("program_{role}"))
    }

    /// Pins the program that a role's link is about to attach: to open it by its number takes
    /// CAP_SYS_ADMIN, which no box needs for anything else.
    pub(super) fn pin_program(&self, role: Role, program: BorrowedFd<'_>) -> Result<(), PinError> {
        pin(program, &self.program_path(role))
    }

    pub(super) fn remove_program(&self, role: Role) -> Result<(), PinError> {
        remove(&self.program_path(role)).map(drop)
    }

    /// The program with this number, which a role's link attaches.
    pub(super) fn open_program(&self, role: Role, number: u32) -> io::Result<OwnedFd> {
        if let Ok(pinned) = sys::open_pinned(&self.program_path(role))
            && sys::program_number(pinned.as_fd())? == number
        {
            return Ok(pinned);
        }
        sys::open_program(number)
    }

    pub(super) fn pin_watch(&self, watch: Watch, link: impl AsFd) -> Result<(), PinError> {
        pin(link.as_fd(), &self.directory.join(watch.name()))
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
        // First what can be refused, so that nothing is half done then.
        can_be_changed(&self.directory)?;
        if let Some(link) = self.link(role)?
            && sys::link_target(link.as_fd())
                .map_err(refused("look at", &path))?
                .ifindex
                != 0
        {
            // Without this the kernel does it some time after the last reference is gone. What is
            // left if this process ends here is the name of a link that attaches nothing.
            sys::detach_link(link.as_fd()).map_err(refused("detach", &path))?;
        }
        let was_pinned = remove(&path)?;
        self.remove_program(role)?;
        Ok(was_pinned)
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

    /// Makes the place of this layout's maps.
    pub(super) fn make_maps(&self, layout: u32) -> Result<(), PinError> {
        make_directory(&self.maps(layout))
    }

    /// Pins a map in the place of the one that has its name.
    pub(super) fn pin_map(
        &self,
        layout: u32,
        name: &str,
        map: BorrowedFd<'_>,
    ) -> Result<(), PinError> {
        pin(map, &self.maps(layout).join(name))
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

    /// What is to be set back on the NIC in this role.
    pub fn undo(&self, role: Role) -> Option<Undo> {
        read_undo(&self.undo, role)
    }

    /// Remembers that, or that there is nothing.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn remember(&self, role: Role, undo: Option<Undo>) -> Result<(), PinError> {
        write_undo(&self.undo, role, undo)
            .map_err(|error| refused("write to", &self.directory.join(UNDO))(as_io(error)))
    }

    /// Leaves all of it to a user, who can then remove it if the directory can be reached.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn give_to(&self, user: Uid, group: Gid) -> Result<(), PinError> {
        let mut paths = vec![self.directory.clone()];
        while let Some(path) = paths.pop() {
            chown(&path, Some(user), Some(group))
                .map_err(io::Error::from)
                .map_err(refused("give away", &path))?;
            if path.is_dir() {
                let entries = fs::read_dir(&path).map_err(refused("list", &path))?;
                paths.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
        Ok(())
    }

    /// Takes the programs off.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove_links(&self) -> Result<(), PinError> {
        for role in Role::ALL {
            self.remove_link(role)?;
        }
        self.remove_watches()
    }

    /// Removes all that is left after [`Pins::remove_links`].
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(self) -> Result<(), PinError> {
        for (_, path) in self.map_directories()? {
            remove_directory(&path)?;
        }
        remove(&self.directory.join(UNDO))?;
        match fs::remove_dir(&self.directory) {
            // An empty directory in one that is another user's does no harm.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            done => done.map_err(refused("remove", &self.directory)),
        }
    }
}

/// Whether there is nothing at this path, as far as this user may look.
fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether what exists of a path is in a BPF file system.
fn is_bpf_fs(directory: &Path) -> Result<bool, PinError> {
    let existing = directory
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let kind = statfs(existing)
        .map_err(io::Error::from)
        .map_err(refused("look at", existing))?;
    Ok(kind.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether this user may give and take away names in a directory.
fn can_be_changed(directory: &Path) -> Result<(), PinError> {
    let how = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(AT_FDCWD, directory, how, AtFlags::AT_EACCESS)
        .map_err(io::Error::from)
        .map_err(refused("change", directory))
}

/// Removes names that a process which was killed had not put into their places.
fn remove_half_made(directory: &Path) -> Result<(), PinError> {
    let entries = fs::read_dir(directory).map_err(refused("list", directory))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(NEXT) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Nobody else may hold, or unpin, what is in it.
fn make_directory(path: &Path) -> Result<(), PinError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(refused("make", path))
}

/// Makes the directory if need be and takes hold of it.
fn lock(directory: &Path) -> Result<Flock<File>, PinError> {
    let deadline = Instant::now() + OWNER_PATIENCE;
    loop {
        make_directory(directory)?;
        let file = File::open(directory).map_err(refused("open", directory))?;
        let identity = |data: &fs::Metadata| (data.dev(), data.ino());
        let opened = file.metadata().map_err(refused("look at", directory))?;
        if let Some(parent) = directory.parent()
            && fs::metadata(parent).is_ok_and(|parent| parent.dev() != opened.dev())
        {
            return Err(PinError::MountPoint(directory.to_owned()));
        }
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Whoever had it may have removed it.
            Ok(lock)
                if fs::metadata(directory).is_ok_and(|now| identity(&now) == identity(&opened)) =>
            {
                return Ok(lock);
            }
            Ok(_) | Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                if Instant::now() >= deadline {
                    return Err(PinError::Owned(directory.to_owned()));
                }
                thread::sleep(OWNER_PAUSE);
            }
            Err((_, error)) => return Err(refused("lock", directory)(error.into())),
        }
    }
}

fn remove_directory(path: &Path) -> Result<(), PinError> {
    if !path.exists() {
        return Ok(());
    }
    fs::remove_dir_all(path).map_err(refused("remove", path))
}
