//! Loading paths into a set: sources are united, and some files are refused before parsing.

use crate::site::{loader, unchecked};
use crate::{assert_names_no_address, builder, elements, file, listed, small};
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_policy::{Endpoint, MAX_ENDPOINTS};
use exitmark_relays::{DocumentError, Flavor, LoadError, Loaded, MAX_DOCUMENT, Sources, load};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use tempfile::TempDir;

fn load_refusal(path: &Path) -> LoadError {
    let error = load(&unchecked([path])).unwrap_err();
    assert_names_no_address(&error);
    let is_named = error.to_string().contains(path.to_str().unwrap());
    assert!(is_named, "names the file: {error}");
    error
}

#[test]
fn unites_sources_and_extras() {
    let directory = TempDir::new().unwrap();
    let one = builder(Flavor::Ns, 100);
    let other = ConsensusBuilder {
        seed: 2,
        ..builder(Flavor::Microdesc, 50)
    };
    let sources = [
        file(&directory, "cached-consensus", one.write()),
        file(&directory, "cached-microdesc-consensus", other.write()),
    ];
    let extra: Endpoint = "203.0.113.7:9030".parse().unwrap();
    let loaded = load(&unchecked(&sources)).unwrap();

    let separate = sources
        .each_ref()
        .map(|source| load(&unchecked([source])).unwrap());
    let mut union: BTreeSet<Endpoint> = separate.iter().flat_map(listed).collect();
    assert_eq!(listed(&loaded), union);
    assert!(union.insert(extra));
    assert_eq!(elements(&loaded.with(&[extra]).unwrap()), union);

    assert_eq!(loaded.sources.len(), 2);
    for ((report, path), alone) in loaded.sources.iter().zip(&sources).zip(&separate) {
        assert_eq!(report.path, *path);
        assert_eq!(report.distinct, alone.listed.len());
    }
    assert_eq!(loaded.sources[0].flavor, Flavor::Ns);
    assert_eq!(loaded.sources[1].flavor, Flavor::Microdesc);
    assert_eq!(loaded.sources[0].validity, one.validity);
    assert_eq!(loaded.sources[1].counts.orports, 50);
}

#[test]
fn extras_alone_make_a_set() {
    let extra: Endpoint = "[2001:db8::7]:443".parse().unwrap();
    let of = |extra: &[Endpoint]| Sources {
        extra: extra.to_vec(),
        ..unchecked::<&Path>([])
    };
    let loaded = load(&of(&[extra, extra])).unwrap();
    let set = loaded.with(&[extra, extra]).unwrap();
    assert_eq!(elements(&set), BTreeSet::from([extra]));
    assert!(loader().load(&of(&[extra])).unwrap().listed.is_empty());

    let zero = Endpoint::new(extra.address, 0);
    let bad = of(&[extra, zero]);
    for refused in [load(&bad), loader().load(&bad)] {
        let error = refused.unwrap_err();
        assert!(matches!(error, LoadError::ExtraPortZero(2)));
        assert_names_no_address(&error);
    }
}

#[test]
fn holds_64_000_endpoints_and_refuses_70_000() {
    let directory = TempDir::new().unwrap();
    let text = builder(Flavor::Microdesc, 48_500).write();
    let sources = unchecked([file(&directory, "large", text)]);
    let loaded = load(&sources).unwrap();
    let count = loaded.with(&[]).unwrap().len();
    let by_loader = loader().load(&sources).unwrap();
    assert_eq!(listed(&by_loader), listed(&loaded));
    assert!((64_000..=MAX_ENDPOINTS).contains(&count), "{count}");

    let huge = file(
        &directory,
        "huge",
        builder(Flavor::Microdesc, 53_200).write(),
    );
    match load_refusal(&huge) {
        LoadError::Document(_, DocumentError::TooMany(count)) => {
            assert!((70_000..72_000).contains(&count), "{count}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_union_beyond_the_limit_is_refused_as_a_union() {
    let directory = TempDir::new().unwrap();
    let sources = [1, 2].map(|seed| {
        let builder = ConsensusBuilder {
            seed,
            ..builder(Flavor::Microdesc, 26_000)
        };
        file(&directory, &seed.to_string(), builder.write())
    });
    let sources = unchecked(&sources);
    for refused in [load(&sources), loader().load(&sources)] {
        match refused.unwrap_err() {
            LoadError::TooMany(count) => assert!(count > MAX_ENDPOINTS, "{count}"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing");
    match load_refusal(&missing) {
        LoadError::Read(_, reason) => {
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

    // At the limit the file is read, and the zeros are refused.
    File::create(&path).unwrap().set_len(MAX_DOCUMENT).unwrap();
    assert!(matches!(
        load_refusal(&path),
        LoadError::Document(_, DocumentError::Nul(1))
    ));
}

#[test]
fn a_bad_file_does_not_change_the_set_in_use() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "cached-consensus", small(Flavor::Ns));
    let sources = unchecked([&path]);
    let in_use: Loaded = load(&sources).unwrap();
    let before = listed(&in_use);
    fs::write(&path, "").unwrap();
    load(&sources).unwrap_err();
    assert_eq!(listed(&in_use), before);
    fs::write(&path, small(Flavor::Ns)).unwrap();
    assert_eq!(listed(&load(&sources).unwrap()), before);
}

#[test]
fn reports_the_one_bad_source() {
    let directory = TempDir::new().unwrap();
    let good = file(&directory, "good", small(Flavor::Ns));
    let bad = file(&directory, "bad", "");
    let error = load(&unchecked([&good, &bad])).unwrap_err();
    match error {
        LoadError::Document(path, DocumentError::Empty) => assert_eq!(path, bad),
        other => panic!("{other}"),
    }
}
