//! The watch over files: whatever way a file takes to be another one, it is told, and told once.

use crate::site::LONG;
use crate::{file, names_an_address};
use exitmark::lab::replace;
use exitmark::relays::Watch;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// A watch that waits on a thread of its own, and says when it has seen a change.
struct Watching {
    changes: mpsc::Receiver<()>,
    waker: std::sync::Arc<nix::sys::eventfd::EventFd>,
}

impl Watching {
    /// `look` is how long it waits before it looks by itself.
    fn new(files: &[&Path], look: Duration) -> Self {
        let mut watch = Watch::new(files.iter().map(|path| path.to_path_buf()).collect()).unwrap();
        assert!(watch.has_changed(), "everything is new at first");
        assert!(!watch.has_changed());
        let (sender, changes) = mpsc::channel();
        let waker = watch.waker();
        thread::spawn(move || {
            loop {
                watch.wait(look).unwrap();
                // Nobody listens any more: the test is over.
                if watch.has_changed() && sender.send(()).is_err() {
                    return;
                }
            }
        });
        Self { changes, waker }
    }

    fn expect_change(&self, what: &str) {
        self.changes.recv_timeout(LONG).expect(what);
    }

    /// More than one may be seen of one that is made in several steps.
    fn forget(&self) {
        while self.changes.try_recv().is_ok() {}
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.waker.write(1);
    }
}

/// So long that nothing is found by looking: what is found was told.
const TOLD: Duration = Duration::from_secs(3600);

#[test]
fn a_file_that_is_replaced_rewritten_or_removed_is_told() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let watching = Watching::new(&[&path], TOLD);
    replace(&path, "two").unwrap();
    watching.expect_change("renamed over");
    // Of the same length, so that only the time differs.
    fs::write(&path, "owt").unwrap();
    watching.expect_change("written in place");
    watching.forget();
    fs::remove_file(&path).unwrap();
    watching.expect_change("removed");
    watching.forget();
    fs::write(&path, "two").unwrap();
    watching.expect_change("there again");
}

#[test]
fn any_of_several_files_is_told() {
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let paths = [
        file(&one, "cached-consensus", "one"),
        one.path().join("cached-certs"),
        file(&other, "cached-consensus", "one"),
    ];
    let watching = Watching::new(&paths.each_ref().map(PathBuf::as_path), TOLD);
    for path in &paths {
        replace(path, "two").unwrap();
        watching.expect_change("each of them");
        watching.forget();
    }
}

#[test]
fn where_a_link_leads_is_followed() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let target = file(&there, "cached-consensus", "one");
    let link = here.path().join("cached-consensus");
    symlink(&target, &link).unwrap();
    let watching = Watching::new(&[&link], TOLD);
    replace(&target, "two").unwrap();
    watching.expect_change("the target was renamed over");
    watching.forget();
    // Another target, and then it is this one that counts.
    let other = file(&there, "other", "three");
    let beside = here.path().join("beside");
    symlink(&other, &beside).unwrap();
    fs::rename(&beside, &link).unwrap();
    watching.expect_change("the link leads elsewhere");
    watching.forget();
    replace(&other, "four").unwrap();
    watching.expect_change("the other target was renamed over");
}

#[test]
fn a_directory_that_is_made_anew_is_found_again() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("tor");
    let path = directory.join("cached-consensus");
    fs::create_dir(&directory).unwrap();
    fs::write(&path, "one").unwrap();
    // Nothing tells of a directory that is not there: it is looked for.
    let watching = Watching::new(&[&path], Duration::from_millis(10));
    fs::remove_dir_all(&directory).unwrap();
    watching.expect_change("gone");
    watching.forget();
    fs::create_dir(&directory).unwrap();
    fs::write(&path, "one").unwrap();
    watching.expect_change("there again");
    watching.forget();
    replace(&path, "two").unwrap();
    watching.expect_change("renamed over in the new directory");
    watching.forget();
    // Moved away as a whole, and another one in its place.
    fs::rename(&directory, parent.path().join("old")).unwrap();
    watching.expect_change("moved away");
    watching.forget();
    fs::create_dir(&directory).unwrap();
    fs::write(&path, "three").unwrap();
    watching.expect_change("another directory");
}

#[test]
fn a_waker_ends_a_wait_and_changes_nothing() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = Watch::new(vec![path]).unwrap();
    watch.has_changed();
    let waker = watch.waker();
    let waiting = thread::spawn(move || {
        watch.wait(TOLD).unwrap();
        watch
    });
    waker.write(1).unwrap();
    let mut watch = waiting.join().unwrap();
    assert!(!watch.has_changed());
    // Woken before the wait counts too, and once.
    waker.write(1).unwrap();
    waker.write(1).unwrap();
    watch.wait(TOLD).unwrap();
    watch.wait(Duration::ZERO).unwrap();
    assert!(!names_an_address(&format!("{waker:?}")));
}

#[test]
fn what_happens_to_its_neighbours_is_no_change() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = Watch::new(vec![path.clone()]).unwrap();
    watch.has_changed();
    file(&directory, "lock", "x");
    watch.wait(TOLD).unwrap();
    assert!(!watch.has_changed());
    replace(&path, "two").unwrap();
    watch.wait(TOLD).unwrap();
    assert!(watch.has_changed());
    assert!(!watch.has_changed());
}
