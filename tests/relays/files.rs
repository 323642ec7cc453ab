//! From paths to a set: what is united, and which files are refused before they are parsed.

use crate::{assert_names_no_address, elements, file, order, small};
use exitmark::lab::consensus::Order;
use exitmark::policy::{Endpoint, MAX_ENDPOINTS};
use exitmark::relays::{DocumentError, Flavor, LoadError, Loaded, MAX_DOCUMENT, load};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// Why this path is refused. A reader that waits for somebody to write fails here instead of
/// hanging the test.
fn load_refusal(path: &Path) -> LoadError {
    let (sender, receiver) = mpsc::channel();
    let sources = [path.to_owned()];
    std::thread::spawn(move || sender.send(load(&sources, &[]).unwrap_err()));
    let error = receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("loading must not block");
    assert_names_no_address(&error);
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "names the file: {error}"
    );
    error
}

#[test]
fn unites_sources_and_extras() {
    let directory = TempDir::new().unwrap();
    let one = order(Flavor::Ns, 100);
    let other = Order {
        seed: 2,
        ..order(Flavor::Microdesc, 50)
    };
    let sources = [
        file(&directory, "cached-consensus", one.write()),
        file(&directory, "cached-microdesc-consensus", other.write()),
    ];
    let extra: Endpoint = "203.0.113.7:9030".parse().unwrap();
    let loaded = load(&sources, &[extra]).unwrap();

    let separate: Vec<_> = sources
        .iter()
        .map(|source| load(std::slice::from_ref(source), &[]).unwrap())
        .collect();
    let mut union: BTreeSet<Endpoint> = separate
        .iter()
        .flat_map(|loaded| loaded.endpoints.iter())
        .collect();
    assert!(union.insert(extra));
    assert_eq!(elements(&loaded.endpoints), union);

    assert_eq!(loaded.sources.len(), 2);
    for ((report, path), alone) in loaded.sources.iter().zip(&sources).zip(&separate) {
        assert_eq!(report.path, *path);
        assert_eq!(report.distinct, alone.endpoints.len());
    }
    assert_eq!(loaded.sources[0].flavor, Flavor::Ns);
    assert_eq!(loaded.sources[1].flavor, Flavor::Microdesc);
    assert_eq!(loaded.sources[0].validity, one.validity);
    assert_eq!(loaded.sources[1].counts.orports, 50);
}

#[test]
fn extras_alone_make_a_set() {
    let extra: Endpoint = "[2001:db8::7]:443".parse().unwrap();
    let loaded = load(&[], &[extra, extra]).unwrap();
    assert_eq!(elements(&loaded.endpoints), BTreeSet::from([extra]));

    let zero = Endpoint::new(extra.address, 0);
    let error = load(&[], &[extra, zero]).unwrap_err();
    assert!(matches!(error, LoadError::ExtraPortZero { position: 2 }));
    assert_names_no_address(&error);
}

#[test]
fn holds_64_000_endpoints_and_refuses_70_000() {
    let directory = TempDir::new().unwrap();
    let large = file(
        &directory,
        "large",
        order(Flavor::Microdesc, 33_000).write(),
    );
    let loaded = load(&[large], &[]).unwrap();
    let count = loaded.endpoints.len();
    assert!((64_000..=MAX_ENDPOINTS).contains(&count), "{count}");

    let huge = file(&directory, "huge", order(Flavor::Microdesc, 36_000).write());
    match load_refusal(&huge) {
        LoadError::Document {
            problem: DocumentError::TooMany { count },
            ..
        } => assert!((70_000..72_000).contains(&count), "{count}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_union_beyond_the_limit_is_refused_as_a_union() {
    let directory = TempDir::new().unwrap();
    let sources = [1, 2].map(|seed| {
        let order = Order {
            seed,
            ..order(Flavor::Microdesc, 20_000)
        };
        file(&directory, &seed.to_string(), order.write())
    });
    let error = load(&sources, &[]).unwrap_err();
    assert!(
        matches!(error, LoadError::TooMany { count } if count > MAX_ENDPOINTS),
        "{error}"
    );
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (fifo.as_path(), "a FIFO"),
        (&link, "a FIFO"),
        (&socket, "a socket"),
        (directory.path(), "a directory"),
        (Path::new("/dev/zero"), "a device"),
    ] {
        match load_refusal(path) {
            LoadError::NotRegular { kind: found, .. } => assert_eq!(found, kind),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing");
    match load_refusal(&missing) {
        LoadError::Read { reason, .. } => {
            assert_eq!(reason.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sparse");
    File::create(&path).unwrap().set_len(40 << 20).unwrap();
    assert!(matches!(load_refusal(&path), LoadError::TooLarge { .. }));

    // At the limit it is read, and the zeros are found.
    File::create(&path).unwrap().set_len(MAX_DOCUMENT).unwrap();
    assert!(matches!(
        load_refusal(&path),
        LoadError::Document {
            problem: DocumentError::Nul { line: 1 },
            ..
        }
    ));
}

#[test]
fn a_bad_file_leaves_the_set_in_use_as_it_was() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", small(Flavor::Ns));
    let sources = [path.clone()];
    let in_use: Loaded = load(&sources, &[]).unwrap();
    let before = elements(&in_use.endpoints);
    fs::write(&path, "").unwrap();
    load(&sources, &[]).unwrap_err();
    assert_eq!(elements(&in_use.endpoints), before);
    fs::write(&path, small(Flavor::Ns)).unwrap();
    let again = load(&sources, &[]).unwrap();
    assert_eq!(elements(&again.endpoints), before);
}

#[test]
fn one_bad_source_among_good_ones_is_the_one_that_is_named() {
    let directory = TempDir::new().unwrap();
    let good = file(&directory, "good", small(Flavor::Ns));
    let bad = file(&directory, "bad", "");
    let error = load(&[good, bad.clone()], &[]).unwrap_err();
    match error {
        LoadError::Document {
            path,
            problem: DocumentError::Empty,
        } => assert_eq!(path, bad),
        other => panic!("{other}"),
    }
}
