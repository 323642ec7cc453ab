//! `Watch`: whatever is done to a file ends a wait, and only another content counts as new.

use crate::file;
use crate::site::LONG;
use exitmark::lab::replace;
use exitmark::relays::Watch;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A watch that has seen what is there.
fn watch(files: &[&Path]) -> Watch {
    let mut watch = Watch::new(files.iter().map(|&path| path.to_owned()).collect()).unwrap();
    assert!(watch.has_changed(), "at first everything is new");
    assert!(!watch.has_changed());
    watch
}

/// Waits until something happened; to wait in vain is the fault that this is about.
fn wait(watch: &Watch) {
    let started = Instant::now();
    watch.wait(LONG).unwrap();
    assert!(started.elapsed() < LONG, "nobody told");
}

/// Waits for a change that is under way.
fn wait_for_change(watch: &mut Watch) {
    wait(watch);
    // Of a change in several steps, the first may come alone.
    while !watch.has_changed() {
        wait(watch);
    }
}

#[test]
fn whatever_is_done_to_a_file_is_told() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = watch(&[&path]);
    let doings: [(&str, fn(&Path)); 6] = [
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
        // All that this doing told is told.
        watch.wait(Duration::ZERO).unwrap();
        watch.has_changed();
        println!("{what}: told");
    }
}

#[test]
fn a_wait_that_has_begun_ends() {
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
        wait(&watch);
    });
    assert!(!watch.has_changed(), "to be woken is no news");
}

#[test]
fn another_file_beside_it_is_no_news() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", "one");
    let mut watch = watch(&[&path]);
    file(&directory, "cached-descriptors", "x");
    wait(&watch);
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
fn where_a_link_leads_is_watched_and_where_it_leads_now() {
    let directories = [(); 3].map(|()| TempDir::new().unwrap());
    let targets = [1, 2].map(|index| file(&directories[index], "cached-consensus", "one"));
    let link: PathBuf = directories[0].path().join("cached-consensus");
    symlink(&targets[0], &link).unwrap();
    let mut watch = watch(&[&link]);
    replace(&targets[0], "two").unwrap();
    wait_for_change(&mut watch);
    // Turned to the other.
    let new = directories[0].path().join("new");
    symlink(&targets[1], &new).unwrap();
    fs::rename(&new, &link).unwrap();
    wait_for_change(&mut watch);
    watch.wait(Duration::ZERO).unwrap();
    replace(&targets[1], "two").unwrap();
    wait_for_change(&mut watch);
}

#[test]
fn a_directory_that_is_not_there_yet_is_found_later() {
    let directory = TempDir::new().unwrap();
    let inner = directory.path().join("tor");
    let path = inner.join("cached-consensus");
    let mut watch = watch(&[&path]);
    fs::create_dir(&inner).unwrap();
    fs::write(&path, "one").unwrap();
    // Nobody told, for nothing was watched; whoever looks sees it, and watches from now on.
    watch.wait(Duration::ZERO).unwrap();
    assert!(watch.has_changed());
    // The whole directory is another one.
    fs::rename(&inner, directory.path().join("old")).unwrap();
    fs::create_dir(&inner).unwrap();
    fs::write(&path, "two").unwrap();
    wait_for_change(&mut watch);
    watch.wait(Duration::ZERO).unwrap();
    replace(&path, "three").unwrap();
    wait_for_change(&mut watch);
}
