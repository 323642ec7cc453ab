//! Loaders that fail in various ways: the right failure is reported, no process is left, and the
//! next load works.

use crate::site::{LONG, Site, loader};
use crate::{assert_names_no_address, with_value};
use exitmark_relays::{Flavor, LoadError, Loaded, Loader, LoaderFailure};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

/// The timeout for loaders that never answer.
const SHORT: Duration = Duration::from_millis(300);

/// Loads by a shell that runs this script, and asserts that no process is left.
fn by(script: &str, deadline: Duration) -> Result<Loaded, LoadError> {
    let site = Site::new(Flavor::Microdesc);
    let note = site.directory.path().join("pid");
    let script = format!("echo $$ > {}\n{script}", note.display());
    let arguments = vec!["-c".into(), script.clone().into()];
    let outcome = Loader::of("/bin/sh".into(), arguments, deadline).load(&site.sources());
    if let Err(error) = &outcome {
        assert_names_no_address(error);
    }
    // If the shell was killed before it wrote its PID, there is no note.
    let note = fs::read_to_string(&note).unwrap_or_default();
    if let Ok(pid) = note.trim().parse() {
        let left = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        assert_eq!(left, Err(Errno::ECHILD), "{script}: it is still there");
    }
    site.load().unwrap();
    outcome
}

fn failure(script: &str, deadline: Duration) -> LoaderFailure {
    match by(script, deadline) {
        Err(LoadError::Loader(failure)) => failure,
        other => panic!("{script}: {other:?}"),
    }
}

#[test]
fn an_early_exit_is_reported_with_its_status() {
    for (script, code, signal) in [
        ("exit 0", Some(0), None),
        ("exit 7", Some(7), None),
        ("cat > /dev/null; exit 3", Some(3), None),
        ("kill -SEGV $$", None, Some(11)),
        ("kill -KILL $$", None, Some(9)),
    ] {
        let LoaderFailure::Died(status) = failure(script, LONG) else {
            panic!("{script}");
        };
        assert_eq!((status.code(), status.signal()), (code, signal), "{script}");
    }
}

#[test]
fn exhausting_memory_is_reported_as_an_exit() {
    // The dying process closes its output first, so its exit status is a race.
    let failure = failure("ulimit -v 200000; exec tail /dev/zero", LONG);
    assert!(matches!(failure, LoaderFailure::Died(_)), "{failure}");
}

#[test]
fn a_loader_that_closes_its_output_is_killed() {
    let failure = failure("exec >&-; exec sleep 1000000", LONG);
    let LoaderFailure::Died(status) = failure else {
        panic!("{failure}");
    };
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn a_loader_without_an_answer_in_time_is_killed() {
    for script in [
        // Does not read.
        "exec sleep 1000000",
        // Reads everything, but does not answer.
        "cat > /dev/null; exec sleep 1000000",
        // Sends half an answer.
        "echo '{\"set\":'; exec sleep 1000000",
        // Keeps sending a little.
        "while echo; do sleep 0.01; done",
        // Ignores signals.
        "trap '' TERM INT HUP PIPE; while :; do sleep 0.01; done",
        // Is stopped.
        "kill -STOP $$",
    ] {
        let failure = failure(script, SHORT);
        assert!(matches!(failure, LoaderFailure::Slow(SHORT)), "{failure}");
    }
}

#[test]
fn a_loader_that_does_not_read_a_full_pipe_is_killed() {
    // More than a pipe holds, so that the writer blocks.
    let site = Site::holding("x".repeat(5_000_000), "y".repeat(5_000_000));
    for (script, deadline) in [("exec sleep 1000000", SHORT), ("exit 1", LONG)] {
        let arguments = vec!["-c".into(), script.into()];
        let loader = Loader::of("/bin/sh".into(), arguments, deadline);
        let error = loader.load(&site.sources()).unwrap_err();
        let LoadError::Loader(LoaderFailure::Slow(_) | LoaderFailure::Died(_)) = error else {
            panic!("{error}");
        };
    }
}

#[test]
fn refuses_invalid_answers() {
    for script in [
        "echo",
        "echo hello",
        "echo null",
        "echo '{}'",
        "echo '{\"set\":{}}'",
        "echo '{\"refused\":{}}'",
        "echo '[]'",
        "printf '\\000\\377'",
        // Never ends.
        "exec cat /dev/zero",
        "exec yes",
    ] {
        let failure = failure(script, LONG);
        assert!(matches!(failure, LoaderFailure::Nonsense(_)), "{failure}");
    }
}

#[test]
fn reports_a_loader_that_cannot_be_started() {
    let site = Site::new(Flavor::Ns);
    for program in ["/nonexistent/loader", "/etc/passwd", "/"] {
        let loader = Loader::of(program.into(), Vec::new(), LONG);
        let error = loader.load(&site.sources()).unwrap_err();
        let LoadError::Loader(LoaderFailure::Start(_)) = error else {
            panic!("{error}");
        };
    }
}

/// Loads by a program that sends this answer to any request.
fn load_answer(site: &Site, answer: &Value) -> Result<Loaded, LoadError> {
    let path = site.directory.path().join("answer");
    fs::write(&path, answer.to_string()).unwrap();
    let loader = Loader::of("/bin/cat".into(), vec![path.into()], LONG);
    loader.load(&site.sources())
}

/// The correct answer for this document, as JSON.
fn truth(loaded: &Loaded) -> Value {
    let endpoints: Vec<_> = loaded.listed.iter().map(ToString::to_string).collect();
    json!({"set": {"sources": loaded.sources, "endpoints": endpoints}})
}

#[test]
fn refuses_sets_that_no_document_can_make() {
    let site = Site::new(Flavor::Microdesc);
    let loaded = site.load().unwrap();
    let truth = truth(&loaded);
    assert_eq!(load_answer(&site, &truth).unwrap().listed, loaded.listed);
    let set = &truth["set"];
    let (source, endpoints) = (&set["sources"][0], &set["endpoints"]);
    let last = loaded.listed.len() - 1;
    let mut swapped = endpoints.as_array().unwrap().clone();
    swapped.swap(0, last);
    let max = json!(u64::MAX);
    for (what, path, value) in [
        ("unsigned", "sources/0/signatures", Value::Null),
        ("too few good", "sources/0/signatures/good", json!(1)),
        (
            "fewer needed",
            "sources/0/signatures",
            json!({"good": 1, "needed": 1}),
        ),
        (
            "more good than there are",
            "sources/0/signatures/good",
            json!(4),
        ),
        ("more distinct", "sources/0/distinct", json!(last + 2)),
        ("fewer distinct", "sources/0/distinct", json!(last)),
        ("fewer counted", "sources/0/counts/orports", json!(0)),
        (
            "counts that overflow",
            "sources/0/counts/orports",
            max.clone(),
        ),
        ("no times", "sources/0/validity/valid_until", json!(0)),
        (
            "a time that no clock shows",
            "sources/0/validity/valid_until",
            max,
        ),
        ("port 0", "endpoints/0", json!("0.0.0.1:0")),
        ("out of order", "endpoints", swapped.into()),
        ("twice the same", "endpoints/1", endpoints[0].clone()),
        (
            "another number of files",
            "sources",
            json!([source, source]),
        ),
        ("a word too many", "more", json!(1)),
    ] {
        let answer = with_value(truth.clone(), &format!("/set/{path}"), value);
        assert_ne!(answer, truth, "{what}");
        let error = load_answer(&site, &answer).unwrap_err();
        let LoadError::Loader(LoaderFailure::Nonsense(_)) = error else {
            panic!("{what}: {error}");
        };
        assert_names_no_address(&error);
    }
    // Nothing may follow the answer.
    let path = site.directory.path().join("two");
    fs::write(&path, format!("{truth}{truth}")).unwrap();
    let two = Loader::of("/bin/cat".into(), vec![path.into()], LONG);
    let error = two.load(&site.sources()).unwrap_err();
    assert!(error.to_string().contains("invalid answer"), "{error}");
}

#[test]
fn refuses_too_many_endpoints() {
    let site = Site::new(Flavor::Ns);
    let loaded = site.load().unwrap();
    let mut answer = truth(&loaded);
    let many = (0..70_000_u32).map(|n| format!("{}:1", std::net::Ipv4Addr::from(n)));
    answer["set"]["endpoints"] = many.collect();
    let error = load_answer(&site, &answer).unwrap_err();
    assert!(matches!(error, LoadError::TooMany(70_000)), "{error}");
}

#[test]
fn reports_printable_reasons_about_requested_files_only() {
    let site = Site::new(Flavor::Ns);
    let refused = |source: u64, of_certificates: bool, reason: &str| {
        let answer = json!({"refused": {
            "source": source, "of_certificates": of_certificates, "reason": reason,
        }});
        load_answer(&site, &answer).unwrap_err()
    };
    let named = |error: LoadError, expected: &Path| match error {
        LoadError::Reported(path, reason) => {
            assert_eq!(path, expected);
            reason
        }
        other => panic!("{other}"),
    };
    assert_eq!(named(refused(0, false, "why"), &site.consensus), "why");
    assert_eq!(named(refused(0, true, "why"), &site.certificates), "why");
    let wild = named(refused(0, false, "\u{1b}[2J\n\r\u{202e}x"), &site.consensus);
    assert_eq!(wild, "?[2J???x");
    let long = named(refused(0, false, &"x".repeat(1 << 20)), &site.consensus);
    assert_eq!(long.len(), 500);
    for number in [1, u64::MAX] {
        let error = refused(number, false, "why");
        assert!(error.to_string().contains("invalid answer"), "{error}");
    }
}

#[test]
fn a_loader_works_repeatedly() {
    let site = Site::new(Flavor::Ns);
    let first = site.load().unwrap();
    let loader = loader();
    for _ in 0..20 {
        assert_eq!(loader.load(&site.sources()).unwrap().listed, first.listed);
    }
}
