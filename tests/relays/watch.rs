//! `FileWatcher`: any operation on a file ends a wait, but only a new version counts as a change.

use crate::file;
use crate::site::{LONG, unchecked};
use exitmark_lab::replace;
use exitmark_relays::{DocumentPattern, FileWatcher, Sources, Trust};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A watch that has seen the current files.
fn watch(files: &[&Path]) -> FileWatcher {
    let mut watch = FileWatcher::new(&unchecked(files)).unwrap();
    assert!(watch.has_changed(), "at first every file is new");
    assert!(!watch.has_changed());
    watch
}

/// Waits for an event; fails on timeout.
fn wait(watch: &mut FileWatcher) {
    let started = Instant::now();
    watch.wait(LONG).unwrap();
    assert!(started.elapsed() < LONG, "no event");
}

fn wait_for_change(watch: &mut FileWatcher) {
    wait(watch);
    // A change may cause several events.
    while !watch.has_changed() {
        wait(watch);
    }
}

#[test]
fn every_operation_on_a_file_ends_the_wait() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = watch(&[&path]);
    type Doing = fn(&Path);
    let doings: [(&str, Doing); 6] = [
        ("replaced", |path| replace(path, "two").unwrap()),
        ("replaced by the same", |path| replace(path, "two").unwrap()),
        ("written", |path| fs::write(path, "three").unwrap()),
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("made", |path| fs::write(path, "four").unwrap()),
        ("moved away", |path| {
            fs::rename(path, path.with_extension("old")).unwrap()
        }),
    ];
    for (what, doing) in doings {
        doing(&path);
        wait_for_change(&mut watch);
        // All events of this operation have been received.
        watch.wait(Duration::ZERO).unwrap();
        watch.has_changed();
        println!("{what}: notified");
    }
}

#[test]
fn a_blocked_wait_is_ended() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = watch(&[&path]);
    std::thread::scope(|scope| {
        scope.spawn(|| replace(&path, "two").unwrap());
        wait_for_change(&mut watch);
    });
    let waker = watch.waker();
    std::thread::scope(|scope| {
        scope.spawn(|| waker.write(1).unwrap());
        wait(&mut watch);
    });
    assert!(!watch.has_changed(), "a wake-up is not a change");
}

#[test]
fn another_file_in_the_directory_is_not_a_change() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = watch(&[&path]);
    file(&directory, "cached-descriptors", "x");
    wait(&mut watch);
    assert!(!watch.has_changed());
}

#[test]
fn one_of_several_files_is_enough() {
    let directories = [(); 2].map(|()| TempDir::new().unwrap());
    let paths = [0, 1].map(|index| file(&directories[index], "cached-consensus", "one"));
    let mut watch = watch(&[&paths[0], &paths[1]]);
    for path in &paths {
        replace(path, "two").unwrap();
        wait_for_change(&mut watch);
    }
}

#[test]
fn watches_the_current_target_of_a_link() {
    let directories = [(); 3].map(|()| TempDir::new().unwrap());
    let targets = [1, 2].map(|index| file(&directories[index], "cached-consensus", "one"));
    let link: PathBuf = directories[0].path().join("cached-consensus");
    symlink(&targets[0], &link).unwrap();
    let mut watch = watch(&[&link]);
    replace(&targets[0], "two").unwrap();
    wait_for_change(&mut watch);
    // The link now leads to the other directory.
    let new = directories[0].path().join("new");
    symlink(&targets[1], &new).unwrap();
    fs::rename(&new, &link).unwrap();
    wait_for_change(&mut watch);
    watch.wait(Duration::ZERO).unwrap();
    replace(&targets[1], "two").unwrap();
    wait_for_change(&mut watch);
}

#[test]
fn a_missing_directory_is_found_later() {
    let directory = TempDir::new().unwrap();
    let inner = directory.path().join("tor");
    let path = inner.join("cached-consensus");
    let mut watch = watch(&[&path]);
    fs::create_dir(&inner).unwrap();
    fs::write(&path, "one").unwrap();
    // Nothing was watched, so there is no event; the next check sees it, and watches from then on.
    watch.wait(Duration::ZERO).unwrap();
    assert!(watch.has_changed());
    // The whole directory is replaced.
    fs::rename(&inner, directory.path().join("old")).unwrap();
    fs::create_dir(&inner).unwrap();
    fs::write(&path, "two").unwrap();
    wait_for_change(&mut watch);
    watch.wait(Duration::ZERO).unwrap();
    replace(&path, "three").unwrap();
    wait_for_change(&mut watch);
}

/// The watch of the documents of all instances in a directory.
fn watch_instances(directory: &Path) -> FileWatcher {
    let pattern = DocumentPattern::new(directory, Path::new("*/cached-consensus"), None);
    let sources = Sources {
        patterns: vec![pattern.unwrap()],
        ..Sources::of(Vec::new(), Trust::Unverified)
    };
    let mut watch = FileWatcher::new(&sources).unwrap();
    watch.has_changed();
    assert!(!watch.has_changed());
    watch
}

#[test]
fn instances_are_followed_when_they_come_and_go() {
    let directory = TempDir::new().unwrap();
    let mut watch = watch_instances(directory.path());
    for name in ["a", "b"] {
        let instance = directory.path().join(name);
        fs::create_dir(&instance).unwrap();
        // The directory alone is not a change, but it is watched then.
        wait(&mut watch);
        assert!(!watch.has_changed(), "{name}");
        watch.wait(Duration::ZERO).unwrap();
        assert!(!watch.has_changed(), "{name}");
        let path = instance.join("cached-consensus");
        fs::write(&path, "one").unwrap();
        wait_for_change(&mut watch);
        watch.wait(Duration::ZERO).unwrap();
        watch.has_changed();
        replace(&path, "two").unwrap();
        wait_for_change(&mut watch);
        // The certificates beside it.
        watch.wait(Duration::ZERO).unwrap();
        watch.has_changed();
        fs::write(instance.join("cached-certs"), "three").unwrap();
        wait_for_change(&mut watch);
    }
    fs::rename(directory.path().join("a"), directory.path().join(".a")).unwrap();
    wait_for_change(&mut watch);
    fs::remove_dir_all(directory.path().join("b")).unwrap();
    wait_for_change(&mut watch);
}

#[test]
fn a_file_in_a_new_directory_is_found_although_it_came_before_the_watch() {
    let directory = TempDir::new().unwrap();
    let mut watch = watch_instances(directory.path());
    let instance = directory.path().join("a");
    fs::create_dir(&instance).unwrap();
    wait(&mut watch);
    assert!(!watch.has_changed());
    // Nothing watches the new directory yet.
    fs::write(instance.join("cached-consensus"), "one").unwrap();
    wait_for_change(&mut watch);
}
