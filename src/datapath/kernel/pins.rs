//! The pins in the BPF file system, which outlive the process.
//!
//! ```text
//! <directory>/link_host, link_uplink, link_incoming   the XDP links
//! <directory>/program_host, …                         the programs that they attach
//! <directory>/watch_unsent, watch_unredirected        the links that count the NICs' drops
//! <directory>/undo                                    the NIC settings to restore
//! <directory>/maps-<layout>/…                         the program's maps
//! <directory>/wire-<name>/…                           all of these, if the box has several wires
//! ```
//!
//! Frames are forwarded as long as the links are pinned. A build with another map layout makes
//! its own maps and takes over the same links.
//!
//! A process may be killed between any two of its system calls, and the pins that it leaves must
//! be usable by the next one: a pin is replaced atomically, and a program is pinned before a link
//! attaches it.

use super::super::Role;
use super::pin_error::{NEXT, PinError, as_io, pin, refused, remove};
use super::sys;
use super::undo::{Undo, read_undo, undo_map, write_undo};
use libbpf_rs::MapHandle;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, Gid, Uid, chown, faccessat};
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const UNDO: &str = "undo";
const MAPS: &str = "maps-";
/// The beginning of the names of the wires' directories.
const WIRE: &str = "wire-";
/// The map that is pinned first.
pub(super) const POLICIES: &str = "policies";
/// How long to wait for the previous owner to end, which drains its rings first.
const OWNER_TIMEOUT: Duration = Duration::from_secs(3);
const OWNER_PAUSE: Duration = Duration::from_millis(2);

/// A tracing program that counts redirected frames dropped by NICs.
#[derive(Clone, Copy, Debug)]
pub(super) enum DropCounter {
    /// Counts frames that a driver dropped.
    Unsent,
    /// Counts frames that did not reach a driver.
    Unredirected,
}

impl DropCounter {
    const fn name(self) -> &'static str {
        match self {
            Self::Unsent => "watch_unsent",
            Self::Unredirected => "watch_unredirected",
        }
    }
}

/// The pin directory of one box, locked against other processes until this value is dropped.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    undo: MapHandle,
    lock: Flock<File>,
}

impl Pins {
    /// Opens and locks the directory, and makes it if it does not exist. Waits up to 3 seconds for
    /// a process that is about to end.
    ///
    /// # Errors
    /// The directory is not in a BPF file system, cannot be made, or another process holds it.
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

    /// Whether the directory is still the one that was opened. True if this user cannot tell.
    pub(crate) fn is_in_place(&self) -> bool {
        let identity = |data: fs::Metadata| (data.dev(), data.ino());
        match fs::metadata(&self.directory) {
            Ok(now) => self.lock.metadata().map(identity).ok() == Some(identity(now)),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Makes the directory again after it was removed or its file system unmounted, and pins the
    /// undo map in it.
    ///
    /// # Errors
    /// As [`Pins::open`].
    pub(crate) fn renew(&mut self) -> Result<(), PinError> {
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

    /// Whether any pin of a box is missing: the links and programs of these roles, these drop
    /// counters, these maps of this layout, and the undo map.
    pub(super) fn are_wiped(
        &self,
        roles: impl Iterator<Item = Role>,
        drop_counters: impl Iterator<Item = DropCounter>,
        (layout, maps): (u32, &[&str]),
    ) -> bool {
        let of_roles = roles.flat_map(|role| [self.link_path(role), self.program_path(role)]);
        let of_drop_counters = drop_counters.map(|counter| self.directory.join(counter.name()));
        let of_maps = maps.iter().map(|map| self.maps(layout).join(map));
        let undo = std::iter::once(self.directory.join(UNDO));
        let mut all = undo.chain(of_roles).chain(of_drop_counters).chain(of_maps);
        !self.is_in_place() || all.any(|path| is_missing(&path))
    }

    /// The links pinned in this directory that this user may read, as role, interface index of
    /// the NIC, and program ID. Changes nothing and takes no lock.
    pub fn peek(directory: &Path) -> Vec<(Role, u32, u32)> {
        let targets = Role::ALL.into_iter().filter_map(|role| {
            let link = sys::open_pinned(&directory.join(format!("link_{role}"))).ok()?;
            let target = sys::link_target(link.as_fd()).ok()?;
            (target.ifindex != 0).then_some((role, target.ifindex, target.program))
        });
        targets.collect()
    }

    /// The pin directories of wires within this one, if the box has several.
    pub fn wires_in(directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let is_wire = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(WIRE) && Self::are_in(&entry.path())
        };
        let wires = entries.filter(is_wire);
        wires.map(|entry| entry.path()).collect()
    }

    /// Whether there are pin directories of wires within this one.
    pub fn has_wires(&self) -> bool {
        !Self::wires_in(&self.directory).is_empty()
    }

    /// Whether this directory is the pin directory of a wire.
    pub fn are_in(directory: &Path) -> bool {
        directory.join(UNDO).exists()
    }

    /// Whether this directory, which need not exist yet, is in a BPF file system.
    pub fn can_be_in(directory: &Path) -> bool {
        is_bpf_fs(directory).unwrap_or(false)
    }

    /// Whether one of the links attaches a program to a NIC.
    ///
    /// # Errors
    /// A link cannot be read.
    pub fn are_attached(&self) -> Result<bool, PinError> {
        for role in Role::ALL {
            if self.attached_to(role)?.is_some_and(|ifindex| ifindex != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn link_path(&self, role: Role) -> PathBuf {
        self.directory.join(format!("link_{role}"))
    }

    pub(crate) fn maps(&self, layout: impl Display) -> PathBuf {
        self.directory.join(format!("{MAPS}{layout}"))
    }

    pub(super) fn link(&self, role: Role) -> Result<Option<OwnedFd>, PinError> {
        self.named(&format!("link_{role}"))
    }

    /// The object that is pinned by this name, if any.
    pub(crate) fn named(&self, name: &str) -> Result<Option<OwnedFd>, PinError> {
        let path = self.directory.join(name);
        match sys::open_pinned(&path) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused("open", &path)(error)),
        }
    }

    /// Pins an object by this name, atomically replacing the previous one.
    pub(crate) fn pin_named(&self, name: &str, object: BorrowedFd<'_>) -> Result<(), PinError> {
        pin(object, &self.directory.join(name))
    }

    /// Moves the link of a role to the pins of another wire, which replaces the program that it
    /// attaches without losing a frame. That program stays pinned. Returns the interface index of its
    /// NIC; `None` without a link.
    ///
    /// # Errors
    /// A pin cannot be read, made or removed.
    pub fn hand_over(&self, role: Role, to: &Self) -> Result<Option<u32>, PinError> {
        let path = self.link_path(role);
        let Some(link) = self.link(role)? else {
            return Ok(None);
        };
        let target = sys::link_target(link.as_fd()).map_err(refused("look at", &path))?;
        if let Ok(program) = self.open_program(role, target.program) {
            to.pin_program(role, program.as_fd())?;
        }
        to.pin_link(role, &link)?;
        remove(&path)?;
        Ok(Some(target.ifindex))
    }

    /// Removes the pin with this name, if it exists.
    pub(crate) fn remove_named(&self, name: &str) -> Result<(), PinError> {
        can_be_changed(&self.directory)?;
        remove(&self.directory.join(name)).map(drop)
    }

    /// The names of the pins that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>, PinError> {
        let entries = fs::read_dir(&self.directory).map_err(refused("list", &self.directory))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    /// The interface index of the NIC to which a role's pinned link attaches; 0 if that NIC is
    /// gone, `None` without such a pin.
    ///
    /// # Errors
    /// The link cannot be read.
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

    /// Pins the program that a role's link is about to attach. Opening it by its ID instead would
    /// need CAP_SYS_ADMIN, which the box needs for nothing else.
    pub(super) fn pin_program(&self, role: Role, program: BorrowedFd<'_>) -> Result<(), PinError> {
        pin(program, &self.program_path(role))
    }

    pub(super) fn remove_program(&self, role: Role) -> Result<(), PinError> {
        remove(&self.program_path(role)).map(drop)
    }

    /// Opens the program with this ID, which a role's link attaches.
    pub(super) fn open_program(&self, role: Role, number: u32) -> io::Result<OwnedFd> {
        if let Ok(pinned) = sys::open_pinned(&self.program_path(role))
            && sys::program_number(pinned.as_fd())? == number
        {
            return Ok(pinned);
        }
        sys::open_program(number)
    }

    pub(super) fn pin_drop_counter(
        &self,
        counter: DropCounter,
        link: impl AsFd,
    ) -> Result<(), PinError> {
        pin(link.as_fd(), &self.directory.join(counter.name()))
    }

    pub(super) fn remove_drop_counters(&self) -> Result<(), PinError> {
        for counter in [DropCounter::Unsent, DropCounter::Unredirected] {
            remove(&self.directory.join(counter.name()))?;
        }
        Ok(())
    }

    /// Detaches a role's program from its NIC and removes its pins. Returns whether a link was
    /// pinned.
    ///
    /// # Errors
    /// The link cannot be detached, or the file system refuses a removal.
    pub fn remove_link(&self, role: Role) -> Result<bool, PinError> {
        let path = self.link_path(role);
        // Check the permission first, so that a refusal leaves everything in place.
        can_be_changed(&self.directory)?;
        if let Some(link) = self.link(role)?
            && sys::link_target(link.as_fd())
                .map_err(refused("look at", &path))?
                .ifindex
                != 0
        {
            // Otherwise the kernel detaches it some time after the last reference is gone. If
            // this process ends here, the pin of a detached link remains.
            sys::detach_link(link.as_fd()).map_err(refused("detach", &path))?;
        }
        let was_pinned = remove(&path)?;
        self.remove_program(role)?;
        Ok(was_pinned)
    }

    /// Removes the pinned maps of other layouts; returns those layouts.
    pub(crate) fn remove_other_maps(&self, layout: u32) -> Result<Vec<String>, PinError> {
        let mut others = self.layouts()?;
        others.retain(|other| *other != layout.to_string());
        for other in &others {
            remove_directory(&self.maps(other))?;
        }
        Ok(others)
    }

    /// Pins maps of a layout by name, replacing the previous ones.
    pub(crate) fn pin_maps<'a>(
        &self,
        layout: u32,
        maps: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>,
    ) -> Result<(), PinError> {
        let directory = self.maps(layout);
        make_directory(&directory)?;
        let mut maps = maps.into_iter();
        maps.try_for_each(|(name, map)| pin(map, &directory.join(name)))
    }

    /// The layouts of which maps are pinned.
    fn layouts(&self) -> Result<Vec<String>, PinError> {
        let entries = fs::read_dir(&self.directory).map_err(refused("list", &self.directory))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let layout = |name: OsString| Some(name.to_str()?.strip_prefix(MAPS)?.to_owned());
        Ok(names.filter_map(layout).collect())
    }

    /// The settings to restore on the NIC in this role, if any.
    pub fn undo(&self, role: Role) -> Option<Undo> {
        read_undo(&self.undo, role)
    }

    /// Stores the settings to restore on the NIC in this role; `None` for nothing.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn remember(&self, role: Role, undo: Option<Undo>) -> Result<(), PinError> {
        write_undo(&self.undo, role, undo)
            .map_err(|error| refused("write to", &self.directory.join(UNDO))(as_io(error)))
    }

    /// Changes the owner of the directory and all pins, so that this user can remove them.
    ///
    /// # Errors
    /// The file system refuses a change of owner.
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

    /// Detaches all programs and removes their pins.
    ///
    /// # Errors
    /// As [`Pins::remove_link`].
    pub fn remove_links(&self) -> Result<(), PinError> {
        for role in Role::ALL {
            self.remove_link(role)?;
        }
        self.remove_drop_counters()
    }

    /// Removes what is left after [`Pins::remove_links`]: the maps and the directory.
    ///
    /// # Errors
    /// The file system refuses a removal.
    pub fn remove(self) -> Result<(), PinError> {
        for layout in self.layouts()? {
            remove_directory(&self.maps(layout))?;
        }
        remove(&self.directory.join(UNDO))?;
        match fs::remove_dir(&self.directory) {
            // The parent directory is another user's; an empty directory does no harm there.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            // It has the directories of wires.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            done => done.map_err(refused("remove", &self.directory)),
        }
    }
}

/// Whether the path does not exist. False if this user cannot tell.
fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether the nearest existing ancestor of a path is in a BPF file system.
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

/// Fails unless this user may add and remove entries in a directory.
fn can_be_changed(directory: &Path) -> Result<(), PinError> {
    let how = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(AT_FDCWD, directory, how, AtFlags::AT_EACCESS)
        .map_err(io::Error::from)
        .map_err(refused("change", directory))
}

/// Removes temporary names that a killed process left behind.
fn remove_half_made(directory: &Path) -> Result<(), PinError> {
    let entries = fs::read_dir(directory).map_err(refused("list", directory))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(NEXT) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes a directory with mode 0700: other users may not open or remove the pins in it.
fn make_directory(path: &Path) -> Result<(), PinError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(refused("make", path))
}

/// Makes the directory if it does not exist, and locks it.
fn lock(directory: &Path) -> Result<Flock<File>, PinError> {
    let deadline = Instant::now() + OWNER_TIMEOUT;
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
            // The previous owner may have removed it.
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
