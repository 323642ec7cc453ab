//! Paths that are not regular files, and files that tor has not verified.

use crate::site::{LONG, Site, certificates, checked, loader, signed, unchecked};
use crate::{assert_names_no_address, file};
use exitmark_relays::{Flavor, LoadError, Loaded, Sources, load};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tempfile::TempDir;

/// Both outcomes. A load that blocks fails here instead of hanging the test.
fn both_ways(sources: Sources) -> [Result<Loaded, LoadError>; 2] {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send([load(&sources), loader().load(&sources)]);
    });
    receiver.recv_timeout(LONG).expect("loading must not block")
}

/// The errors for this path, of both ways of loading.
fn refusals(path: &Path) -> [LoadError; 2] {
    both_ways(unchecked([path])).map(|outcome| {
        let error = outcome.unwrap_err();
        assert_names_no_address(&error);
        let path = path.to_str().unwrap();
        assert!(error.to_string().starts_with(path), "{error}");
        error
    })
}

/// The errors for a good document with these certificates.
fn refused_certificates(path: &Path) -> [LoadError; 2] {
    let site = Site::new(Flavor::Ns);
    let mut sources = site.sources();
    sources.files[0].certificates = path.to_owned();
    both_ways(sources).map(|outcome| outcome.unwrap_err())
}

#[test]
fn refuses_irregular_files_without_blocking() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let link = |name: &str, to: &Path| {
        let path = directory.path().join(name);
        symlink(to, &path).unwrap();
        path
    };
    let zeros = link("zeros", Path::new("/dev/zero"));
    let chain = link("chain", &zeros);
    let to_fifo = link("to_fifo", &fifo);
    for (path, expected) in [
        (directory.path(), "a directory"),
        (&fifo, "a FIFO"),
        (&to_fifo, "a FIFO"),
        (&socket, "a socket"),
        (Path::new("/dev/zero"), "a device"),
        (&zeros, "a device"),
        (&chain, "a device"),
    ] {
        for error in refusals(path) {
            let LoadError::NotRegular(_, kind) = error else {
                panic!("{error}");
            };
            assert_eq!(kind, expected);
        }
        for error in refused_certificates(path) {
            assert!(matches!(error, LoadError::NotRegular { .. }), "{error}");
        }
    }
}

#[test]
fn a_file_of_200_megabytes_is_refused_unread() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sparse");
    File::create(&path).unwrap().set_len(200 << 20).unwrap();
    for error in refusals(&path)
        .into_iter()
        .chain(refused_certificates(&path))
    {
        assert!(matches!(error, LoadError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn reports_missing_files_and_dangling_links() {
    let directory = TempDir::new().unwrap();
    let dangling = directory.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let loop_ = directory.path().join("loop");
    symlink(&loop_, &loop_).unwrap();
    let below_a_file = file(&directory, "file", "x").join("cached-consensus");
    let missing = directory.path().join("missing");
    for path in [missing, dangling, loop_, below_a_file] {
        for error in refusals(&path) {
            assert!(matches!(error, LoadError::Read { .. }), "{error}");
        }
    }
}

#[test]
fn refuses_unverified_documents_under_any_name() {
    let directory = TempDir::new().unwrap();
    file(&directory, "cached-certs", certificates());
    let name = "unverified-microdesc-consensus";
    let unverified = file(&directory, name, signed(Flavor::Microdesc));
    let link = directory.path().join("cached-microdesc-consensus");
    symlink(name, &link).unwrap();
    let chain = directory.path().join("chain");
    symlink("cached-microdesc-consensus", &chain).unwrap();
    // The name of a link is enough, even if its target is good.
    let good = file(&directory, "good", signed(Flavor::Microdesc));
    let named = directory.path().join("unverified-consensus");
    symlink("good", &named).unwrap();
    for path in [unverified, link, chain, named] {
        for outcome in both_ways(checked([&path])) {
            let error = outcome.unwrap_err();
            assert!(matches!(error, LoadError::Unverified { .. }), "{error}");
            assert!(error.to_string().contains("cached-consensus"));
        }
    }
    for outcome in both_ways(checked([&good])) {
        outcome.unwrap();
    }
}

#[test]
fn follows_a_link_to_a_good_file() {
    let site = Site::new(Flavor::Ns);
    let link: PathBuf = site.directory.path().join("link");
    symlink("cached-consensus", &link).unwrap();
    for outcome in both_ways(checked([&link])) {
        let loaded = outcome.unwrap();
        assert_eq!(loaded.sources[0].path, link, "by the name that was given");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    if geteuid().is_root() {
        // Root can read every file, so this test needs another user.
        let said = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"SKIPPED (needs a user who is not root): permission denied\n",
        );
        return said.unwrap();
    }
    let site = Site::new(Flavor::Ns);
    fs::set_permissions(&site.consensus, Permissions::from_mode(0o000)).unwrap();
    for error in refusals(&site.consensus) {
        let LoadError::Read(_, reason) = error else {
            panic!("{error}");
        };
        assert_eq!(reason.kind(), std::io::ErrorKind::PermissionDenied);
    }
}
