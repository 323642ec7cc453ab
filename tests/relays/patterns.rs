//! Documents that are named by patterns: which paths match, in which order they are found, and
//! directories that others fill.

use crate::assert_names_no_address;
use exitmark_relays::{
    DocumentFiles, DocumentPattern, Found, LoadError, MAX_DOCUMENTS, Sources, Trust,
};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The documents of these patterns below `base`.
fn sources(base: &Path, patterns: &[&str]) -> Sources {
    let pattern = |text: &&str| DocumentPattern::new(base, Path::new(text), None).unwrap();
    Sources {
        patterns: patterns.iter().map(pattern).collect(),
        ..Sources::of(Vec::new(), Trust::Unverified)
    }
}

/// Creates an empty file with its directories.
fn touch(directory: &TempDir, path: impl AsRef<Path>) -> PathBuf {
    let path = directory.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    path
}

fn find(sources: &Sources) -> Found {
    let found = sources.find(&BTreeSet::new());
    for problem in &found.problems {
        assert_names_no_address(problem);
    }
    found
}

fn documents(found: &Found) -> Vec<&Path> {
    let files = found.files.iter();
    files.map(|files| files.consensus.as_path()).collect()
}

#[test]
fn documents_of_instances_are_found_in_order_with_their_certificates() {
    let directory = TempDir::new().unwrap();
    let paths = ["b", "a", "c"].map(|name| touch(&directory, format!("{name}/cached-consensus")));
    touch(&directory, ".hidden/cached-consensus");
    touch(&directory, "no-instance/other");
    touch(&directory, "a-file");
    let found = find(&sources(directory.path(), &["*/cached-consensus"]));
    assert_eq!(documents(&found), [&paths[1], &paths[0], &paths[2]]);
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    for files in &found.files {
        assert_eq!(*files, DocumentFiles::beside(files.consensus.clone()));
    }
    let name = Path::new("?/cached-consensus");
    let elsewhere = DocumentPattern::new(directory.path(), name, Some("/certs".into()));
    let elsewhere = Sources {
        patterns: vec![elsewhere.unwrap()],
        ..Sources::of(Vec::new(), Trust::Unverified)
    };
    let found = find(&elsewhere);
    assert_eq!(found.files.len(), 3);
    assert!(
        found
            .files
            .iter()
            .all(|files| files.certificates == Path::new("/certs"))
    );
}

#[test]
fn a_wildcard_can_be_in_any_name_and_stays_within_it() {
    let directory = TempDir::new().unwrap();
    let deep = touch(&directory, "a/b/cached-consensus");
    let flat = touch(&directory, "a/cached-consensus");
    let other = touch(&directory, "a/cached-microdesc-consensus");
    touch(&directory, "a/unverified-microdesc-consensus");
    for (pattern, expected) in [
        ("*/cached-consensus", vec![&flat]),
        ("*/*/cached-consensus", vec![&deep]),
        ("a/*/cached-consensus", vec![&deep]),
        ("*/b/cached-consensus", vec![&deep]),
        ("*/b/../cached-consensus", vec![&flat]),
        ("a/*consensus", vec![&flat, &other]),
        ("[!b]/cached-*", vec![&flat, &other]),
        ("a/cached-????????????????e*", vec![]),
    ] {
        let found = find(&sources(directory.path(), &[pattern]));
        let real: Vec<_> = documents(&found)
            .iter()
            .map(|path| path.canonicalize().unwrap())
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|path| path.canonicalize().unwrap())
            .collect();
        assert_eq!(real, expected, "{pattern}");
        assert_eq!(
            found.problems.len(),
            usize::from(expected.is_empty()),
            "{pattern}"
        );
    }
}

#[test]
fn paths_match_without_the_files() {
    let sources = sources(
        Path::new("/etc/[x]*"),
        &["/var/lib/tor-instances/*/cached-consensus", "t?r/c*"],
    );
    for (path, expected) in [
        ("/var/lib/tor-instances/a/cached-consensus", true),
        ("/var/lib/tor-instances/cached-consensus", false),
        ("/var/lib/tor-instances/a/b/cached-consensus", false),
        ("/var/lib/tor-instances/.a/cached-consensus", false),
        ("/var/lib/tor-instances/a/cached-consensus/b", false),
        ("/etc/[x]*/tor/c", true),
        ("/etc/x/tor/c", false),
        ("/etc/[x]*/tor/.c", false),
    ] {
        assert_eq!(sources.names(Path::new(path)), expected, "{path}");
    }
    assert!(sources.names_documents());
}

#[test]
fn paths_that_are_no_patterns_of_documents_are_refused() {
    let base = Path::new("/etc");
    for (path, words) in [
        ("/srv/**/cached-consensus", "within one name"),
        ("/srv/a**/cached-consensus", "within one name"),
        ("/srv/[a/cached-consensus", "`[`"),
        ("/srv/*/..", "directory"),
        ("/srv/cached-consensus", "no wildcard"),
    ] {
        let error = DocumentPattern::new(base, Path::new(path), None).unwrap_err();
        assert!(error.contains(words), "{path}: {error}");
    }
    assert!(!DocumentPattern::is_pattern(Path::new(
        "/var/lib/tor/cached-consensus"
    )));
}

#[test]
fn a_pattern_without_a_match_is_a_problem() {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("instance")).unwrap();
    for pattern in [
        "*/cached-consensus",
        "instance/cached-*",
        "missing/*/cached-consensus",
    ] {
        let sources = sources(directory.path(), &[pattern]);
        let found = find(&sources);
        assert!(found.files.is_empty());
        let [LoadError::NoMatch(path)] = found.problems.as_slice() else {
            panic!("{pattern}: {:?}", found.problems);
        };
        assert_eq!(*path, directory.path().join(pattern));
        let error = exitmark_relays::load(&sources).unwrap_err();
        assert!(matches!(error, LoadError::NoMatch(_)), "{error}");
    }
}

#[test]
fn a_document_is_found_once_however_many_paths_lead_to_it() {
    let directory = TempDir::new().unwrap();
    let path = touch(&directory, "instances/a/cached-consensus");
    let instances = directory.path().join("instances");
    symlink("a", instances.join("alias")).unwrap();
    // The link leads back to the directories that are searched.
    symlink(".", instances.join("loop")).unwrap();
    symlink("..", instances.join("a/up")).unwrap();
    let patterns = [
        "*/cached-consensus",
        "*/*/cached-consensus",
        "*/*/*/cached-consensus",
    ];
    let found = find(&sources(&instances, &patterns));
    assert_eq!(documents(&found), [&path]);
    // One that has a path of its own is not found again.
    let named = Sources {
        files: vec![DocumentFiles::beside(
            instances.join("alias/cached-consensus"),
        )],
        ..sources(&instances, &["*/cached-consensus"])
    };
    let found = find(&named);
    assert_eq!(
        documents(&found),
        [instances.join("alias/cached-consensus")]
    );
    assert!(found.problems.is_empty(), "{:?}", found.problems);
}

#[test]
fn names_that_would_disturb_a_log_do_not_match() {
    let directory = TempDir::new().unwrap();
    for name in [
        &b"line\nfeed"[..],
        b"esc\x1b[2J",
        b"\xff\xfe",
        "c1\u{9b}".as_bytes(),
    ] {
        touch(
            &directory,
            Path::new(OsStr::from_bytes(name)).join("cached-consensus"),
        );
    }
    let good = touch(&directory, "gut-\u{e4}/cached-consensus");
    let found = find(&sources(directory.path(), &["*/cached-consensus"]));
    assert_eq!(documents(&found), [&good]);
}

#[test]
fn of_10_000_matches_64_are_read_and_those_of_the_set_first() {
    let directory = TempDir::new().unwrap();
    for number in 0..10_000 {
        let path = directory.path().join(format!("{number:05}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("cached-consensus"), "").unwrap();
    }
    let sources = sources(directory.path(), &["*/cached-consensus"]);
    let path = |number: usize| {
        directory
            .path()
            .join(format!("{number:05}/cached-consensus"))
    };
    let found = find(&sources);
    let expected: Vec<_> = (0..MAX_DOCUMENTS).map(path).collect();
    assert_eq!(documents(&found), expected);
    let [problem @ LoadError::TooManyMatches(_, 10_000)] = found.problems.as_slice() else {
        panic!("{:?}", found.problems);
    };
    let text = problem.to_string();
    assert!(
        text.contains("10000 files") && text.contains("64 documents"),
        "{text}"
    );

    let found = sources.find(&BTreeSet::from([path(9_999), path(5_000)]));
    let (others, preferred) = (0..MAX_DOCUMENTS - 2, [5_000, 9_999]);
    let expected: Vec<_> = others.chain(preferred).map(path).collect();
    assert_eq!(documents(&found), expected);
}

#[test]
fn a_search_ends_after_a_limit_of_names() {
    let directory = TempDir::new().unwrap();
    for number in 0..130 {
        symlink(".", directory.path().join(format!("{number}"))).unwrap();
    }
    // 130 links to the same directory, three times: two million names.
    let found = find(&sources(directory.path(), &["*/*/*/cached-consensus"]));
    let [LoadError::TooManyNames(_, limit)] = found.problems.as_slice() else {
        panic!("{:?}", found.problems);
    };
    assert!(*limit < 20_000, "{limit}");
}

#[test]
fn of_many_unreadable_directories_16_are_reported() {
    let directory = TempDir::new().unwrap();
    for number in 0..100 {
        let name = format!("{number}");
        symlink(&name, directory.path().join(&name)).unwrap();
    }
    let found = find(&sources(directory.path(), &["*/*/cached-consensus"]));
    assert_eq!(found.problems.len(), 16);
}
