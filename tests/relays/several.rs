//! Several documents, as of a host with many tor instances: each is judged by itself, the newest one
//! decides, older ones are remembered, and a bad one never holds the others back.

use crate::live::{hour, in_hour};
use crate::site::{LONG, authorities, loader, pinned};
use crate::{HOUR, assert_names_no_address};
use exitmark_lab::authorities::Authorities;
use exitmark_lab::consensus::ConsensusBuilder;
use exitmark_lab::{CERTIFICATES, publish, replace};
use exitmark_policy::Endpoint;
use exitmark_relays::{
    Age, DocumentPattern, Flavor, LiveSet, LoadError, Loader, LoaderFailure, Refresh, Refused,
    SourceError, SourceRefusal, Sources, StateFile, Status, Trust, load, load_newest, refresh,
};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const NAME: &str = "cached-microdesc-consensus";
const RETAIN: Duration = Duration::from_secs(28 * 3600);

/// A host with tor instances, and the live set that follows them.
struct Host {
    directory: TempDir,
    sources: Sources,
    live: LiveSet,
    refusals: Vec<SourceRefusal>,
    loader: Loader,
}

impl Host {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = format!("*/{NAME}");
        let pattern = DocumentPattern::new(directory.path(), Path::new(&path), None);
        Self {
            sources: Sources {
                patterns: vec![pattern.unwrap()],
                ..Sources::of(Vec::new(), Trust::Majority(pinned(&authorities())))
            },
            directory,
            live: LiveSet::default(),
            refusals: Vec::new(),
            loader: loader(),
        }
    }

    /// A host with these instances, and documents of these hours with an endpoint of their own,
    /// loaded at this time.
    fn with(instances: &[(&str, u32)], now: SystemTime) -> Self {
        let mut host = Self::new();
        for (name, number) in instances {
            host.publish(name, &listing(*number, name));
        }
        let refresh = host.refresh(now);
        assert!(refresh.is_accepted);
        assert!(host.refusals.is_empty(), "{:?}", host.refusals);
        host
    }

    fn path(&self, instance: &str) -> PathBuf {
        self.directory.path().join(instance).join(NAME)
    }

    fn publish(&self, instance: &str, builder: &ConsensusBuilder) {
        let directory = self.directory.path().join(instance);
        fs::create_dir_all(&directory).unwrap();
        publish(&directory, NAME, builder, &authorities()).unwrap();
    }

    /// Loads the documents, as the daemon does. The refusals are kept in `self`.
    fn refresh(&mut self, now: SystemTime) -> Refresh {
        let before = std::mem::take(&mut self.refusals);
        let mut done = refresh(&mut self.live, &self.sources, &self.loader, &before, now);
        self.live.forget(now, RETAIN);
        for refusal in &done.refusals {
            assert_names_no_address(&refusal.to_string());
        }
        self.refusals = std::mem::take(&mut done.refusals);
        done
    }

    /// The instances of the accepted documents, with whether they are in force.
    fn accepted(&self) -> Vec<(String, bool)> {
        let sources = self.live.sources().iter();
        sources
            .map(|source| {
                let instance = source.path.parent().unwrap().file_name().unwrap();
                let name = instance.to_str().unwrap().to_owned();
                (name, self.live.is_in_force(source))
            })
            .collect()
    }

    /// Asserts that exactly this instance is refused, and returns why.
    #[track_caller]
    fn only_refusal(&self, instance: &str) -> String {
        let [refusal] = self.refusals.as_slice() else {
            panic!("{instance}: {:?}", self.refusals);
        };
        let text = refusal.to_string();
        let directory = self.directory.path().join(instance);
        assert!(text.starts_with(directory.to_str().unwrap()), "{text}");
        assert!(refusal.path.starts_with(&directory), "{:?}", refusal.path);
        text
    }

    fn is_listed(&self, instance: &str) -> bool {
        self.live.counts_as_relay(endpoint(instance))
    }
}

fn in_force(name: &str) -> (String, bool) {
    (name.to_owned(), true)
}

fn older(name: &str) -> (String, bool) {
    (name.to_owned(), false)
}

/// An endpoint that only the documents of this instance list.
fn endpoint(instance: &str) -> Endpoint {
    let port = 1000 + u16::from(instance.as_bytes()[0]);
    format!("203.0.113.1:{port}").parse().unwrap()
}

/// A document of this hour, with an endpoint that only this instance lists.
fn listing(number: u32, instance: &str) -> ConsensusBuilder {
    ConsensusBuilder {
        listed: vec![endpoint(instance)],
        ..in_hour(Flavor::Microdesc, number, 50)
    }
}

#[test]
fn the_newest_decides_and_older_ones_are_remembered() {
    let mut host = Host::with(&[("a", 9), ("b", 11), ("c", 10)], hour(11));
    assert_eq!(host.accepted(), [older("a"), in_force("b"), older("c")]);
    let newest = host.live.counts().0;
    assert_eq!(host.live.counts(), (newest, 2));
    assert!(["a", "b", "c"].iter().all(|name| host.is_listed(name)));
    assert_eq!(host.live.age(hour(11)), Some(Age::Fresh));
    assert_eq!(host.live.decisions(), (1, 0));
    // The next one of another instance: what was in force is remembered.
    host.publish("c", &listing(12, "d"));
    host.refresh(hour(12));
    assert_eq!(host.accepted(), [older("a"), older("b"), in_force("c")]);
    assert_eq!(host.live.counts(), (newest, 3));
    assert!(["a", "b", "c", "d"].iter().all(|name| host.is_listed(name)));

    // What an old document lists is not remembered for ever, although its file stays.
    host.refresh(hour(20));
    assert!(host.refusals.is_empty(), "expired, and not stale");
    let end = hour(9) + 3 * HOUR + RETAIN;
    host.publish("b", &listing(40, "b"));
    host.publish("c", &listing(40, "c"));
    host.refresh(end - Duration::from_secs(1));
    assert!(host.is_listed("a"));
    for now in [end, end + HOUR] {
        host.refresh(now);
        assert!(!host.is_listed("a"), "{now:?}");
    }
}

#[test]
fn documents_of_the_same_time_are_in_force_together() {
    let mut host = Host::with(&[("a", 10), ("b", 10), ("c", 9)], hour(10));
    assert_eq!(host.accepted(), [in_force("a"), in_force("b"), older("c")]);
    let (listed, departed) = host.live.counts();
    assert_eq!(departed, 1);
    // The same in another order of reading, and again.
    for _ in 0..2 {
        let before = host.live.clone();
        host.refresh(hour(10));
        assert_eq!(host.live.counts(), before.counts());
        assert_eq!(host.live.sources().len(), 3);
    }
    fs::remove_dir_all(host.directory.path().join("a")).unwrap();
    host.refresh(hour(10));
    assert_eq!(host.accepted(), [in_force("b"), older("c")]);
    assert_eq!(host.live.counts(), (listed - 1, 2));
    assert!(host.is_listed("a"));
}

/// How the document of an instance is spoiled, and a part of the refusal.
type Spoil = (&'static str, fn(&Host, &Path), &'static str);

#[test]
fn a_bad_document_is_refused_and_the_others_are_used() {
    let spoils: [Spoil; 11] = [
        (
            "empty",
            |_, path| replace(path, "").unwrap(),
            "the file is empty",
        ),
        (
            "cut",
            |_, path| {
                let text = fs::read_to_string(path).unwrap();
                replace(path, &text[..text.len() / 2]).unwrap();
            },
            "cut off",
        ),
        (
            "changed",
            |_, path| {
                let text = fs::read_to_string(path).unwrap();
                replace(
                    path,
                    &text.replacen("valid-after 2023", "valid-after 2024", 1),
                )
                .unwrap();
            },
            "",
        ),
        (
            "without certificates",
            |_, path| fs::remove_file(path.with_file_name(CERTIFICATES)).unwrap(),
            "cannot be read",
        ),
        (
            "a directory",
            |_, path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            },
            "a directory",
        ),
        (
            "a link to itself",
            |_, path| {
                fs::remove_file(path).unwrap();
                symlink(NAME, path).unwrap();
            },
            "symbolic links",
        ),
        (
            "an instance that is a link to itself",
            |host, path| {
                fs::remove_dir_all(path.parent().unwrap()).unwrap();
                symlink("a", host.directory.path().join("a")).unwrap();
            },
            "symbolic links",
        ),
        (
            "signed by one of three",
            |_, path| {
                let text = listing(12, "x").sign(&Authorities::new(1));
                replace(path, &text).unwrap();
            },
            "2 are needed",
        ),
        (
            "signed by others",
            |host, path| {
                let strangers = Authorities::family(1, 3);
                let directory = path.parent().unwrap();
                publish(directory, NAME, &listing(12, "x"), &strangers).unwrap();
                assert!(host.path("a").exists());
            },
            "authorities that are known",
        ),
        (
            "of the future",
            |host, _| host.publish("a", &listing(14, "x")),
            "set the clock",
        ),
        (
            "implausible",
            |host, _| host.publish("a", &in_hour(Flavor::Microdesc, 12, 10)),
            "less than half",
        ),
    ];
    for (what, spoil, words) in spoils {
        // At a start, and with a set in force.
        for is_start in [true, false] {
            let mut host = Host::new();
            host.publish("a", &listing(10, "a"));
            host.publish("b", &listing(11, "b"));
            if !is_start {
                host.refresh(hour(11));
            }
            spoil(&host, &host.path("a"));
            host.publish("c", &listing(11, "c"));
            let refresh = host.refresh(hour(12));
            assert!(refresh.is_accepted, "{what}");
            let text = host.only_refusal("a");
            println!("{what}: {text}");
            assert!(text.contains(words), "{what}: {text}");
            assert_eq!(host.accepted(), [in_force("b"), in_force("c")], "{what}");
            assert!(!host.is_listed("x"), "{what}");
            assert!(host.is_listed("b") && host.is_listed("c"), "{what}");
            assert_eq!(host.is_listed("a"), !is_start, "{what}");
            // Once it is good again, it decides.
            let directory = host.directory.path().join("a");
            let _ = fs::remove_file(&directory).or_else(|_| fs::remove_dir_all(&directory));
            host.publish("a", &listing(12, "a"));
            host.refresh(hour(12));
            assert!(host.refusals.is_empty(), "{what}: {:?}", host.refusals);
            assert_eq!(host.accepted(), [in_force("a"), older("b"), older("c")]);
        }
    }
}

#[test]
fn a_refused_newer_document_leaves_the_decision_to_an_older_one_with_a_refusal() {
    let mut host = Host::with(&[("a", 10), ("b", 10)], hour(10));
    // Newer than what is in force, and refused; an older one is newer than what is in force.
    host.publish("a", &in_hour(Flavor::Microdesc, 12, 10));
    host.publish("b", &listing(11, "d"));
    assert!(host.refresh(hour(12)).is_accepted);
    assert!(host.only_refusal("a").contains("less than half"));
    let [refusal] = host.refusals.as_slice() else {
        panic!("{:?}", host.refusals);
    };
    let is_shrunk = matches!(refusal.error, SourceError::Refused(Refused::Shrunk { .. }));
    assert!(is_shrunk && !refusal.may_pass(), "{refusal:?}");
    assert_eq!(host.accepted(), [in_force("b")]);
    assert!(host.is_listed("d") && host.is_listed("a"));
    // The same again is refused again.
    host.refresh(hour(12));
    host.only_refusal("a");
    assert_eq!(host.accepted(), [in_force("b")]);
}

#[test]
fn an_older_document_never_replaces_what_is_in_force() {
    let mut host = Host::with(&[("a", 12), ("b", 10)], hour(12));
    let listed = host.live.counts().0;
    let in_force_before = [in_force("a"), older("b")];
    // The newest is gone, with its instance; it was matched and is no longer.
    fs::remove_dir_all(host.directory.path().join("a")).unwrap();
    let refresh = host.refresh(hour(12));
    assert!(refresh.is_accepted && host.refusals.is_empty());
    assert_eq!(host.accepted(), in_force_before);
    host.publish("b", &listing(11, "b"));
    host.refresh(hour(12));
    assert_eq!(host.accepted(), in_force_before);
    assert_eq!(host.live.counts(), (listed, 1));
    assert_eq!(host.live.decisions(), (1, 0), "no other set was accepted");
    // An older one in the same place is refused, as if it were the only document.
    host.publish("a", &listing(11, "a"));
    host.refresh(hour(12));
    assert!(
        host.only_refusal("a")
            .contains("older than what is in force")
    );
    assert_eq!(host.accepted(), in_force_before);
    // Neither is anything left to load.
    fs::remove_dir_all(host.directory.path().join("a")).unwrap();
    fs::remove_dir_all(host.directory.path().join("b")).unwrap();
    let before = host.live.clone();
    assert!(!host.refresh(hour(12)).is_accepted);
    assert_eq!(host.live, before);
    let [refusal] = host.refusals.as_slice() else {
        panic!("{:?}", host.refusals);
    };
    assert!(refusal.to_string().contains("matches no file"), "{refusal}");
    assert!(refusal.may_pass());
    host.publish("b", &listing(13, "b"));
    host.refresh(hour(13));
    assert_eq!(host.accepted(), [in_force("b")]);
}

#[test]
fn a_stale_document_is_refused_beside_a_newer_one_and_accepted_alone() {
    let mut host = Host::new();
    host.publish("a", &listing(10, "a"));
    // A day after 13:00.
    assert!(host.refresh(hour(38)).is_accepted);
    assert_eq!(host.live.age(hour(38)), Some(Age::Stale));
    host.publish("b", &listing(37, "b"));
    host.publish("c", &listing(11, "c"));
    host.refresh(hour(38));
    assert_eq!(host.accepted(), [in_force("b"), older("c")]);
    let text = host.only_refusal("a");
    assert!(text.contains("was valid until"), "{text}");
    assert_eq!(host.live.age(hour(38)), Some(Age::Fresh));
}

#[test]
fn a_restart_keeps_the_set_in_force() {
    let mut host = Host::with(&[("a", 11), ("b", 10)], hour(11));
    host.live.believe(&host.sources.trust);
    let state = StateFile::new(host.directory.path().join("relays.state"));
    state.save(&host.live).unwrap();
    let stored = || state.load().unwrap().unwrap();
    fs::remove_dir_all(host.directory.path().join("a")).unwrap();
    host.live = stored().for_sources(&host.sources, hour(12)).unwrap();
    assert_eq!(host.live, stored());
    host.refresh(hour(12));
    assert_eq!(host.accepted(), [in_force("a"), older("b")]);
    // A pattern that does not match them drops them.
    let other = DocumentPattern::new(host.directory.path(), Path::new("x*/cached"), None);
    let other = Sources {
        patterns: vec![other.unwrap()],
        ..host.sources.clone()
    };
    assert_eq!(stored().for_sources(&other, hour(12)), None);
}

#[test]
fn a_loader_that_dies_at_one_document_loses_only_that_one() {
    let mut host = Host::with(&[("a", 10), ("b", 10)], hour(10));
    let order = host.directory.path().join("order");
    // Dies at what the instance a has, and tells in which order the documents came.
    let script = format!(
        "cat > {order}.in; if grep -q deadly {order}.in; then echo a >> {order}; kill -SEGV $$; fi\n\
         echo b >> {order}; exec {} load-relays < {order}.in",
        env!("CARGO_BIN_EXE_exitmark"),
        order = order.display(),
    );
    host.loader = Loader::of("/bin/sh".into(), vec!["-c".into(), script.into()], LONG);
    replace(&host.path("a"), "deadly").unwrap();
    host.publish("b", &listing(11, "b"));
    for expected in ["a\nb\n", "a\nb\nb\na\n"] {
        assert!(host.refresh(hour(11)).is_accepted);
        let text = host.only_refusal("a");
        assert!(text.contains("the process that reads"), "{text}");
        let [refusal] = host.refusals.as_slice() else {
            panic!("{:?}", host.refusals);
        };
        let is_failure = matches!(
            refusal.error,
            SourceError::Load(LoadError::Loader(LoaderFailure::Died(_)))
        );
        assert!(is_failure && refusal.may_pass(), "{refusal:?}");
        assert_eq!(host.accepted(), [in_force("b")]);
        // The second time it is read last, so that it cannot delay the others.
        assert_eq!(fs::read_to_string(&order).unwrap(), expected);
    }
}

#[test]
fn a_document_that_changes_while_it_is_read_never_mixes() {
    let mut host = Host::with(&[("a", 10), ("b", 10)], hour(10));
    let listed = host.live.counts().0;
    let (path, over) = (host.path("a"), AtomicBool::new(false));
    let texts = [listing(10, "a"), listing(9, "x")].map(|one| one.sign(&authorities()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for text in texts.iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                fs::write(&path, text).unwrap();
            }
        });
        for _ in 0..20 {
            assert!(host.refresh(hour(10)).is_accepted);
            let accepted = host.accepted();
            assert!(accepted.contains(&in_force("b")), "{accepted:?}");
            assert!((listed - 1..=listed).contains(&host.live.counts().0));
            if !host.refusals.is_empty() {
                host.only_refusal("a");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn matches_beyond_the_limit_are_refused_and_do_not_displace_the_set() {
    let mut host = Host::with(&[("z", 10)], hour(10));
    for number in 0..100 {
        let directory = host.directory.path().join(format!("{number:03}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(NAME), "").unwrap();
    }
    host.publish("z", &listing(11, "z"));
    assert!(host.refresh(hour(11)).is_accepted);
    assert_eq!(host.accepted(), [in_force("z")]);
    assert_eq!(host.live.age(hour(11)), Some(Age::Fresh));
    let texts: Vec<_> = host.refusals.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 64, "63 documents, and the count");
    assert!(texts[0].contains("matches 101 files"), "{}", texts[0]);
}

#[test]
fn the_newest_documents_can_be_loaded_without_a_live_set() {
    let host = Host::with(&[("a", 10), ("b", 11), ("c", 11)], hour(11));
    let newest = |host: &Host| {
        let loaded = load_newest(&host.sources).unwrap();
        let has = |name: &&str| loaded.listed.contains(&endpoint(name));
        ["a", "b", "c"].into_iter().filter(has).collect::<Vec<_>>()
    };
    assert_eq!(newest(&host), ["b", "c"]);
    assert_eq!(
        load(&host.sources).unwrap().sources.len(),
        3,
        "all are merged"
    );
    replace(&host.path("b"), "").unwrap();
    assert_eq!(newest(&host), ["c"]);
    assert!(load(&host.sources).is_err());
    replace(&host.path("c"), "").unwrap();
    assert_eq!(newest(&host), ["a"]);
    replace(&host.path("a"), "").unwrap();
    let error = load_newest(&host.sources).unwrap_err();
    assert!(error.to_string().contains("the file is empty"), "{error}");
}

#[test]
fn the_status_tells_older_documents_from_those_in_force() {
    let host = Host::with(&[("a", 9), ("b", 10)], hour(10));
    let status = Status::new(&host.live, &[], hour(10));
    let text = status.to_string();
    assert_eq!(
        text.matches("older, its endpoints are remembered").count(),
        1
    );
    let json = status.json(None);
    assert_eq!(json["sources"][0]["in_force"], false);
    assert_eq!(json["sources"][1]["in_force"], true);
}
