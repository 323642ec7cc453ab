//! `FileWatcher`: waits until files may have been replaced.
//!
//! Watches the directories, because replacing a file by a rename makes another file; and compares
//! the files, because directories can be replaced too, and some file systems send no events.

use super::Version;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
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
    files: Vec<PathBuf>,
    versions: Vec<Option<Version>>,
}

impl FileWatcher {
    /// Watches these files. All of them count as changed at first.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(files: Vec<PathBuf>) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Self::with(files, Arc::new(wake))
    }

    /// Watches other files, with the same waker.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn over(&self, files: Vec<PathBuf>) -> io::Result<Self> {
        Self::with(files, self.waker())
    }

    fn with(files: Vec<PathBuf>, wake: Arc<EventFd>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(error) = &inotify {
            tracing::warn!(
                "changes of the relay files are detected up to a minute late, because inotify is not \
                 available: {error}"
            );
        }
        let watch = Self {
            inotify: inotify.ok(),
            wake,
            versions: Vec::new(),
            files,
        };
        watch.look_at_directories();
        Ok(watch)
    }

    /// The eventfd that ends a wait when any number is written to it.
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Waits until something happens in a directory, the waker is written, or `limit` is over.
    ///
    /// # Errors
    /// The poll fails.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        // A replaced directory needs a new watch; adding an existing one again is harmless.
        self.look_at_directories();
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

    /// Whether a file has changed since the last call.
    pub fn has_changed(&mut self) -> bool {
        let now: Vec<_> = self.files.iter().map(|path| Version::at(path)).collect();
        let before = std::mem::replace(&mut self.versions, now);
        before != self.versions
    }

    fn look_at_directories(&self) {
        let Some(inotify) = &self.inotify else {
            return;
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
        for path in &self.files {
            // The target of a symbolic link may be in another directory.
            let real = path.canonicalize().ok();
            for path in [Some(path), real.as_ref()].into_iter().flatten() {
                let directory = match path.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                // A missing directory is tried again before the next wait.
                let _ = inotify.add_watch(directory, what);
            }
        }
    }
}
