//! Attaches the programs to cgroups, and pins their links.
//!
//! ```text
//! <directory>/connect4_<id>, connect6_<id>   the links to the cgroup with this ID
//! <directory>/earlier                        connections from before are still to be looked for
//! <directory>/maps-<layout>/…                the programs' maps
//! ```

use super::{Connect, ConnectError, PINNED_MAPS};
use crate::kernel::sys;
use crate::{PinError, Pins};
use libbpf_rs::ProgramMut;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PREFIXES: [&str; 2] = ["connect4_", "connect6_"];
const EARLIER: &str = "earlier";

/// The mount point of the cgroup2 file system: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside a
/// version 1 hierarchy, or wherever it is (cgroup-v2, "Mounting").
///
/// # Errors
/// None is mounted, or /proc/self/mounts cannot be read.
pub fn cgroup_mount() -> Result<PathBuf, ConnectError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|_| ConnectError::NoCgroups)?;
    mount_in(&mounts).ok_or(ConnectError::NoCgroups)
}

fn mount_in(mounts: &str) -> Option<PathBuf> {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        // A space in a path is written as \\040.
        (fields.next()? == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
    };
    mounts.lines().find_map(of_line)
}

/// An open directory of the cgroup2 file system.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

impl Cgroup {
    /// Opens a cgroup by its path in the file system.
    ///
    /// # Errors
    /// It does not exist, or this user cannot read it.
    pub fn open(path: &Path) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Cgroup {
            path: path.to_owned(),
            source,
        };
        let directory = File::open(path).map_err(failed)?;
        let id = directory.metadata().map_err(failed)?.ino();
        Ok(Self {
            path: path.to_owned(),
            directory,
            id,
        })
    }

    /// The names of the pinned links to this cgroup.
    fn links(&self) -> [String; 2] {
        PREFIXES.map(|prefix| format!("{prefix}{}", self.id))
    }
}

/// The open links: they keep the programs attached, also without pins.
#[derive(Debug, Default)]
pub struct ConnectLinks(Vec<(String, OwnedFd)>);

impl ConnectLinks {
    /// Whether the programs are attached to these cgroups and to no others. A cgroup that was
    /// removed keeps its links for as long as a socket of it is open; when it is made again, it is
    /// another one.
    pub fn are_at(&self, cgroups: &[Cgroup]) -> bool {
        let wanted: BTreeSet<_> = cgroups.iter().flat_map(Cgroup::links).collect();
        let is_attached = |link: &OwnedFd| cgroup_of(link.as_fd()) != Some(0);
        let attached = self.0.iter().filter(|(_, link)| is_attached(link));
        wanted == attached.map(|(name, _)| name.clone()).collect()
    }
}

/// The ID of the cgroup to which a link attaches: 0 if that is gone, `None` for another link.
fn cgroup_of(link: BorrowedFd<'_>) -> Option<u64> {
    sys::link_cgroup(link).ok()
}

impl Connect {
    /// Attaches the programs to these cgroups, in place of those that another process left there,
    /// pins the links, and detaches from all other cgroups. Each connection is judged by the
    /// previous programs or by these. Returns the links.
    ///
    /// # Errors
    /// The kernel refuses a program, or a link cannot be pinned.
    pub fn attach(&self, pins: &Pins, cgroups: &[Cgroup]) -> Result<ConnectLinks, ConnectError> {
        let programs = &self.skeleton.progs;
        let programs = [&programs.exitmark_connect4, &programs.exitmark_connect6];
        let mut links = ConnectLinks::default();
        for cgroup in cgroups {
            for (name, program) in cgroup.links().into_iter().zip(programs) {
                let pinned = pins.named(&name)?;
                let alive = pinned.filter(|link| cgroup_of(link.as_fd()) == Some(cgroup.id));
                let link = match alive {
                    Some(link) => {
                        sys::update_link(link.as_fd(), program.as_fd())
                            .map_err(refused(&cgroup.path))?;
                        link
                    }
                    None => {
                        let link = attach(program, cgroup)?;
                        pins.pin_named(&name, link.as_fd())?;
                        link
                    }
                };
                links.0.push((name, link));
            }
        }
        let kept: BTreeSet<_> = links.0.iter().map(|(name, _)| name.clone()).collect();
        remove_links(pins, |name| !kept.contains(name))?;
        Ok(links)
    }

    /// Whether connections from before the programs were attached are still to be looked for: none
    /// is attached yet, or no process since has called [`Connect::has_looked`].
    ///
    /// # Errors
    /// A pin cannot be read, or made.
    pub fn seeks_earlier(&self, pins: &Pins) -> Result<bool, PinError> {
        if !is_connect_attached(pins)? {
            // Any object will do: the name is the information.
            pins.pin_named(EARLIER, self.skeleton.maps.users.as_fd())?;
        }
        Ok(pins.named(EARLIER)?.is_some())
    }

    /// Remembers that the connections from before have been looked for.
    ///
    /// # Errors
    /// The file system refuses the change.
    pub fn has_looked(&self, pins: &Pins) -> Result<(), PinError> {
        pins.remove_named(EARLIER)
    }

    /// Pins the maps of these programs, which are attached now, in place of their predecessors'.
    ///
    /// # Errors
    /// The file system refuses a pin.
    pub fn pin_maps(&self, pins: &Pins) -> Result<(), ConnectError> {
        let maps = &self.skeleton.maps;
        let pinned = [
            maps.policies.as_fd(),
            maps.users.as_fd(),
            maps.connections.as_fd(),
        ];
        pins.pin_maps(self.layout, PINNED_MAPS.into_iter().zip(pinned))?;
        pins.remove_other_maps(self.layout)?;
        Ok(())
    }

    /// Restores the pins if any is missing: removed by hand, or with its file system. The programs
    /// stay attached meanwhile. Returns whether any was missing.
    ///
    /// # Errors
    /// The file system refuses a change.
    pub fn pin_again(&self, pins: &mut Pins, links: &ConnectLinks) -> Result<bool, ConnectError> {
        let maps = pins.maps(self.layout);
        let is_complete =
            pins.is_in_place() && PINNED_MAPS.iter().all(|map| maps.join(map).exists()) && {
                let names = pins.names("connect")?;
                links.0.iter().all(|(name, _)| names.contains(name))
            };
        if is_complete {
            return Ok(false);
        }
        pins.renew()?;
        for (name, link) in &links.0 {
            pins.pin_named(name, link.as_fd())?;
        }
        self.pin_maps(pins)?;
        Ok(true)
    }
}

fn attach(program: &ProgramMut<'_>, cgroup: &Cgroup) -> Result<OwnedFd, ConnectError> {
    let link = program
        .attach_cgroup(cgroup.directory.as_raw_fd())
        .map_err(io::Error::other)
        .map_err(refused(&cgroup.path))?;
    link.as_fd()
        .try_clone_to_owned()
        .map_err(refused(&cgroup.path))
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> ConnectError {
    let path = path.to_owned();
    move |source| {
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "; it takes CAP_BPF and CAP_NET_ADMIN, and another program there that allows no \
                 further one forbids it (`bpftool cgroup tree` lists them)"
            }
            _ => "",
        };
        ConnectError::Attach { path, source, hint }
    }
}

/// Whether programs of engine connect are attached by links pinned in this directory.
///
/// # Errors
/// The directory cannot be listed, or a pin cannot be opened.
pub fn is_connect_attached(pins: &Pins) -> Result<bool, PinError> {
    for name in names(pins)? {
        if pins
            .named(&name)?
            .is_some_and(|link| cgroup_of(link.as_fd()).is_some_and(|id| id != 0))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The number of cgroups to which links pinned in this directory attach programs, as far as this user
/// may read it. Changes nothing and takes no lock.
pub fn connect_cgroups(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_attached = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIXES[0].as_bytes())
            && sys::open_pinned(&entry.path())
                .is_ok_and(|link| cgroup_of(link.as_fd()).is_some_and(|id| id != 0))
    };
    entries.filter(is_attached).count()
}

/// Detaches the programs of engine connect and removes the links' pins.
///
/// # Errors
/// A link cannot be detached, or its pin not removed.
pub fn detach_connect(pins: &Pins) -> Result<(), PinError> {
    remove_links(pins, |_| true)?;
    pins.remove_named(EARLIER)
}

fn names(pins: &Pins) -> Result<Vec<String>, PinError> {
    let mut names = Vec::new();
    for prefix in PREFIXES {
        names.extend(pins.names(prefix)?);
    }
    Ok(names)
}

fn remove_links(pins: &Pins, goes: impl Fn(&str) -> bool) -> Result<(), PinError> {
    for name in names(pins)?.into_iter().filter(|name| goes(name)) {
        // The pin is the last reference unless a process holds another: detached at once in any
        // case.
        if let Some(link) = pins.named(&name)?
            && let Err(error) = sys::detach_link(link.as_fd())
        {
            tracing::warn!("a link to a cgroup cannot be detached at once: {error}");
        }
        pins.remove_named(&name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found_in_both_layouts() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(mount_in(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            mount_in("none /mnt/a\\040b cgroup2 rw 0 0\n"),
            Some("/mnt/a b".into())
        );
        assert_eq!(mount_in("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"), None);
        assert_eq!(mount_in("short\n"), None);
    }
}
