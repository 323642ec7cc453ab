//! `FileWatcher`: waits until files may have been replaced.
//!
//! Watches the directories, because replacing a file by a rename makes another file; and compares
//! the files, because directories can be replaced too, and some file systems send no events. The
//! files that match a pattern are searched for each time.

use super::{Sources, Version};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A watch over files that may be replaced, written to, removed, or not exist yet.
pub struct FileWatcher {
    /// `None` if no inotify instance is available: then only the files are compared.
    inotify: Option<Inotify>,
    wake: Arc<EventFd>,
    sources: Sources,
    /// Documents that are found before the others, if too many match.
    first: BTreeSet<PathBuf>,
    /// The consensus and certificate files at the last call of `has_changed`.
    versions: BTreeMap<PathBuf, Option<Version>>,
    /// The directories in which files can match a pattern, then as well.
    directories: Vec<PathBuf>,
    watched: HashSet<WatchDescriptor>,
}

impl FileWatcher {
    /// Watches the files of these sources. All of them count as changed at first.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(sources: &Sources) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Self::with(sources, Arc::new(wake))
    }

    /// Watches other files, with the same waker.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn over(&self, sources: &Sources) -> io::Result<Self> {
        Self::with(sources, self.waker())
    }

    fn with(sources: &Sources, wake: Arc<EventFd>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(error) = &inotify {
            tracing::warn!(
                "changes of the relay files are detected up to a minute late, because inotify is not \
                 available: {error}"
            );
        }
        let mut watch = Self {
            inotify: inotify.ok(),
            wake,
            sources: sources.clone(),
            first: BTreeSet::new(),
            versions: BTreeMap::new(),
            directories: Vec::new(),
            watched: HashSet::new(),
        };
        let (files, directories) = watch.find();
        watch.directories = directories;
        watch.look_at_directories(files.iter());
        Ok(watch)
    }

    /// Finds these documents before the others, if more match than are read.
    pub fn prefer(&mut self, documents: impl IntoIterator<Item = PathBuf>) {
        self.first = documents.into_iter().collect();
    }

    /// The eventfd that ends a wait when any number is written to it.
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Waits until something happens in a directory, the waker is written, or `limit` is over.
    ///
    /// # Errors
    /// The poll fails.
    pub fn wait(&mut self, limit: Duration) -> io::Result<()> {
        // A replaced directory needs a new watch; adding an existing one again is harmless.
        let files: Vec<_> = self.versions.keys().cloned().collect();
        let limit = match self.look_at_directories(files.iter()) {
            // A file may have appeared before the watch did.
            true => Duration::ZERO,
            false => limit,
        };
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut waiting = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        let inotify = self.inotify.as_ref();
        waiting.extend(inotify.map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let _ = self.wake.read();
        // Discard the events: `has_changed` compares the files.
        while inotify
            .is_some_and(|inotify| inotify.read_events().is_ok_and(|events| !events.is_empty()))
        {
        }
        Ok(())
    }

    /// Whether a file has changed, appeared or disappeared since the last call.
    pub fn has_changed(&mut self) -> bool {
        let (files, directories) = self.find();
        self.directories = directories;
        let with_version = |path: PathBuf| {
            let version = Version::at(&path);
            (path, version)
        };
        let now = files.into_iter().map(with_version).collect();
        let before = std::mem::replace(&mut self.versions, now);
        before != self.versions
    }

    /// The consensus and certificate files, and the directories in which files can match a pattern.
    fn find(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let found = self.sources.find(&self.first);
        let files = found.files.into_iter();
        let files = files.flat_map(|files| [files.consensus, files.certificates]);
        (files.collect(), found.directories)
    }

    /// Watches the directories of these files and of the patterns, and no others. Returns whether
    /// there is one among them that was not watched.
    fn look_at_directories<'a>(&mut self, files: impl Iterator<Item = &'a PathBuf>) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        let what = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut watched = HashSet::new();
        // A missing directory is tried again before the next wait.
        let mut watch = |directory: &Path| {
            let directory = match directory == Path::new("") {
                true => Path::new("."),
                false => directory,
            };
            watched.extend(inotify.add_watch(directory, what));
        };
        for directory in &self.directories {
            watch(directory);
        }
        for path in files {
            // The target of a symbolic link may be in another directory.
            let real = path.canonicalize().ok();
            for path in [Some(path), real.as_ref()].into_iter().flatten() {
                watch(path.parent().unwrap_or(Path::new("")));
            }
        }
        for left in self.watched.difference(&watched) {
            let _ = inotify.rm_watch(*left);
        }
        let is_new = !watched.is_subset(&self.watched);
        self.watched = watched;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DocumentPattern, Trust};
    use std::fs;

    #[test]
    fn the_number_of_watched_directories_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let pattern = DocumentPattern::new(directory.path(), Path::new("*/consensus"), None);
        let mut sources = Sources::of(Vec::new(), Trust::Unverified);
        sources.patterns.push(pattern.unwrap());
        let mut watch = FileWatcher::new(&sources).unwrap();
        let mut settle = || {
            watch.has_changed();
            watch.wait(Duration::ZERO).unwrap();
            watch.watched.len()
        };
        // A directory that was renamed and does not match any more keeps its watch in the kernel.
        for number in 0..50 {
            let path = directory.path().join("instance");
            fs::create_dir(&path).unwrap();
            assert_eq!(settle(), 2);
            fs::rename(path, directory.path().join(format!(".{number}"))).unwrap();
            assert_eq!(settle(), 1, "{number}");
        }
        for number in 0..300 {
            fs::create_dir(directory.path().join(format!("{number}"))).unwrap();
        }
        assert_eq!(settle(), 256);
    }
}
