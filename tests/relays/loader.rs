//! Loaders that crash, hang, lie or never end. Each costs its load and nothing else: the error
//! says which it was, no process is left behind, and the next load is as good as any.

use crate::site::{LONG, Site, certificates, loader};
use crate::{assert_names_no_address, file, listed};
use exitmark::relays::{Flavor, LoadError, Loader, LoaderFailure, MAX_DOCUMENT};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// What a loader that hangs is given; nothing waits for it to be over but the loads that must.
const SHORT: Duration = Duration::from_millis(400);

/// A script in a loader's place. It writes its number to `$0` first.
struct Script {
    _directory: TempDir,
    pid: PathBuf,
    loader: Loader,
}

impl Script {
    fn new(script: &str, deadline: Duration) -> Self {
        let directory = TempDir::new().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("echo $$ > \"$0\"; {script}");
        let arguments = vec!["-c".into(), script.into(), pid.clone().into()];
        Self {
            loader: Loader::of("/bin/sh".into(), arguments, deadline),
            pid,
            _directory: directory,
        }
    }

    /// How it fails with this document, of which nothing is left then.
    fn failure(self, site: &Site) -> LoaderFailure {
        let (sender, receiver) = mpsc::channel();
        let (loader, sources) = (self.loader.clone(), site.sources());
        std::thread::spawn(move || sender.send(loader.load(&sources)));
        let outcome = receiver.recv_timeout(LONG).expect("a load must end");
        if let Ok(pid) = fs::read_to_string(&self.pid) {
            let process = Path::new("/proc").join(pid.trim());
            assert!(!process.exists(), "neither a process nor a zombie is left");
        }
        match outcome.unwrap_err() {
            LoadError::Loader(failure) => {
                assert_names_no_address(&failure);
                failure
            }
            error => panic!("{error}"),
        }
    }
}

fn is_good_again(site: &Site) {
    assert!(!listed(&loader().load(&site.sources()).unwrap()).is_empty());
}

#[test]
fn a_loader_that_ends_without_an_answer_has_died_of_something() {
    let site = Site::new(Flavor::Ns);
    for (script, code, signal) in [
        ("exit 0", Some(0), None),
        ("exit 3", Some(3), None),
        ("kill -SEGV $$", None, Some(11)),
        ("kill -KILL $$", None, Some(9)),
        ("cat > /dev/null; exit 3", Some(3), None),
        ("cat > /dev/null; kill -ABRT $$", None, Some(6)),
        // It lives on, but nobody will ever hear of it.
        ("exec >&-; exec sleep 1000", None, Some(9)),
        ("exec <&- >&-; exec sleep 1000", None, Some(9)),
    ] {
        match Script::new(script, LONG).failure(&site) {
            LoaderFailure::Died(status) => {
                assert_eq!((status.code(), status.signal()), (code, signal), "{script}");
            }
            other => panic!("{script}: {other}"),
        }
    }
    is_good_again(&site);
}

#[test]
fn a_loader_that_cannot_be_started_says_why() {
    let site = Site::new(Flavor::Ns);
    let nothing = Loader::of("/nonexistent/loader".into(), Vec::new(), LONG);
    let no_program = Loader::of(site.consensus.clone(), Vec::new(), LONG);
    for loader in [nothing, no_program] {
        let error = loader.load(&site.sources()).unwrap_err();
        assert!(
            matches!(error, LoadError::Loader(LoaderFailure::Start(_))),
            "{error}"
        );
    }
    is_good_again(&site);
}

/// A site whose document is as large as one may be, so that it fits in no pipe.
fn large() -> Site {
    let site = Site::new(Flavor::Ns);
    File::create(&site.consensus)
        .unwrap()
        .set_len(MAX_DOCUMENT)
        .unwrap();
    site
}

#[test]
fn a_loader_that_does_not_answer_is_ended() {
    let (small, large) = (Site::new(Flavor::Ns), large());
    for script in [
        "exec sleep 1000",
        // Deaf to whatever can be refused.
        "trap '' TERM INT HUP PIPE; while :; do sleep 0.05; done",
        "cat > /dev/null; exec sleep 1000",
        // Says a little, and then nothing more.
        "printf '{\"set\":'; exec sleep 1000",
        // Never stops, and never gets far.
        "while :; do printf ' '; done",
    ] {
        for site in [&small, &large] {
            match Script::new(script, SHORT).failure(site) {
                LoaderFailure::Slow(deadline) => assert_eq!(deadline, SHORT),
                other => panic!("{script}: {other}"),
            }
        }
    }
    is_good_again(&small);
}

#[test]
fn what_a_loader_leaves_running_holds_up_nobody() {
    let (directory, large) = (TempDir::new().unwrap(), large());
    let path = directory.path().join("child");
    // The child has the same pipes, and reads as little.
    let script = format!("sleep 1000 & echo $! > {}; wait", path.display());
    let failure = Script::new(&script, SHORT).failure(&large);
    let child = fs::read_to_string(&path).unwrap();
    let child = nix::unistd::Pid::from_raw(child.trim().parse().unwrap());
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)
        .expect("it lives on, and the load has ended before it");
    assert!(matches!(failure, LoaderFailure::Slow(_)), "{failure}");
}

#[test]
fn a_loader_that_answers_nonsense_or_without_end_is_not_believed() {
    let site = Site::new(Flavor::Ns);
    for script in [
        "echo hello",
        "echo",
        "echo '{}'",
        "echo null",
        "printf '\\0\\377\\376'",
        "echo '{\"set\":{\"sources\":[]'",
        "echo '{\"set\":{\"sources\":[],\"endpoints\":[]}}'",
        "echo '{\"set\":{\"sources\":[],\"endpoints\":[]},\"refused\":1}'",
        "echo '{\"refused\":{\"source\":1,\"of_certificates\":false,\"reason\":\"\"}}'",
        "echo '{\"refused\":{\"source\":-1,\"of_certificates\":false,\"reason\":\"\"}}'",
        "exec cat /dev/zero",
        "exec yes",
        "yes '[' | tr -d '\\n' | head -c 4000000",
    ] {
        let failure = Script::new(script, LONG).failure(&site);
        assert!(
            matches!(failure, LoaderFailure::Nonsense(_)),
            "{script}: {failure}"
        );
    }
    is_good_again(&site);
}

/// What the real loader answers about a site.
fn answer(site: &Site) -> Value {
    let files = [&site.consensus, &site.certificates].map(|path| fs::read(path).unwrap());
    let request = json!({
        "files": [[files[0].len(), files[1].len()]],
        "authorities": crate::site::authorities().identities(),
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .arg("load-relays")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{request}").unwrap();
    for bytes in &files {
        stdin.write_all(bytes).unwrap();
    }
    drop(stdin);
    serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn a_set_that_no_document_makes_is_not_believed() {
    let site = Site::new(Flavor::Ns);
    let answer = answer(&site);
    let load = |answer: &Value| {
        let directory = TempDir::new().unwrap();
        let path = file(&directory, "answer", answer.to_string());
        let script = format!("cat > /dev/null; exec cat {}", path.display());
        Script::new(&script, LONG).loader.load(&site.sources())
    };
    // As it is, it is fine, whoever says it.
    let believed = load(&answer).unwrap();
    assert_eq!(listed(&believed), listed(&site.load().unwrap()));
    let set = |pointer: &str, value: Value| {
        let mut answer = answer.clone();
        *answer.pointer_mut(&format!("/set/{pointer}")).unwrap() = value;
        answer
    };
    let endpoints = answer["set"]["endpoints"].as_array().unwrap();
    let mut reversed = endpoints.clone();
    reversed.reverse();
    let mut twice = endpoints.clone();
    twice.insert(0, twice[0].clone());
    let mut foreign = endpoints.clone();
    foreign.push("[2001:db8:ffff::1]:1".into());
    for lie in [
        set("sources", json!([])),
        set("sources/0/signatures", Value::Null),
        set("sources/0/signatures", json!({"good": 1, "needed": 2})),
        set("sources/0/signatures", json!({"good": 1, "needed": 1})),
        set("sources/0/signatures", json!({"good": 4, "needed": 2})),
        set("sources/0/distinct", json!(0)),
        set("sources/0/distinct", json!(endpoints.len() + 1)),
        set("sources/0/counts/orports", json!(0)),
        set("sources/0/counts/orports", json!(-1)),
        set("sources/0/counts/orports", json!(u64::MAX)),
        set("sources/0/validity/valid_until", json!(0)),
        set("sources/0/validity/valid_until", json!(u64::MAX)),
        set("sources/0/flavor", json!("shiny")),
        set("endpoints", json!([])),
        set("endpoints", reversed.into()),
        set("endpoints", twice.into()),
        set("endpoints", foreign.into()),
        set("endpoints/0", json!("192.0.2.1:0")),
        set("endpoints/0", json!("relay.example:9001")),
        set("endpoints/0", json!(1)),
    ] {
        let error = load(&lie).unwrap_err();
        assert!(
            matches!(error, LoadError::Loader(LoaderFailure::Nonsense(_))),
            "{lie}: {error}"
        );
        assert_names_no_address(&error);
    }
    is_good_again(&site);
}

#[test]
fn what_a_loader_says_of_a_file_is_shown_without_what_terminals_obey() {
    let site = Site::new(Flavor::Ns);
    let reason = format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(100_000));
    let answer = json!({"refused": {"source": 0, "of_certificates": true, "reason": reason}});
    let directory = TempDir::new().unwrap();
    let path = file(&directory, "answer", answer.to_string());
    let script = format!("exec cat {}", path.display());
    let error = Script::new(&script, LONG).loader.load(&site.sources());
    let said = error.unwrap_err().to_string();
    assert!(said.starts_with(&*site.certificates.to_string_lossy()));
    assert!(said.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    assert!(said.len() < 1_000);
}

#[test]
fn many_loads_leave_neither_processes_nor_open_files() {
    // Other tests have children and files too: what counts is what stays.
    let zombies = || {
        let mine = format!(" {} ", std::process::id());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| {
                fs::read_to_string(entry.path().join("stat"))
                    .is_ok_and(|stat| stat.contains(&format!(") Z{mine}")))
            })
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    let site = Site::holding("hello\n", certificates());
    for _ in 0..10 {
        loader().load(&site.sources()).unwrap_err();
    }
    // Whoever of these is another test's is waited for by it.
    for zombie in zombies() {
        while fs::read_to_string(zombie.join("stat")).is_ok_and(|stat| stat.contains(") Z")) {
            std::thread::yield_now();
        }
    }
}
