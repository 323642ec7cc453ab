//! Inspects a `load-relays` process that waits for the rest of its request: what it has given up
//! before it reads the first byte.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::geteuid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The user and group ID of `nobody`.
const NOBODY: &str = "65534";

/// A loader that is confined, and waits for more input.
struct Waiting(Child);

impl Waiting {
    fn new() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_exitmark"));
        command.arg("load-relays");
        if geteuid().is_root() {
            command.args([format!("--uid={NOBODY}"), format!("--gid={NOBODY}")]);
        }
        let mut child = command
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The first part of a document of 10 MB, more than a pipe holds: when it is written, the
        // loader is reading.
        let pipe = child.stdin.as_mut().unwrap();
        let request = "{\"files\":[[10000000,null]],\"authorities\":null}\n";
        pipe.write_all(request.as_bytes()).unwrap();
        pipe.write_all(&vec![b'x'; 1_000_000]).unwrap();
        Self(child)
    }

    fn proc(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.0.id()).into()
    }

    /// Parses /proc/PID/status, with lines of `Name: values`.
    fn status(&self) -> BTreeMap<String, Vec<String>> {
        let text = fs::read_to_string(self.proc("status")).unwrap();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, values)| (name.to_owned(), words(values)))
            .collect()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn runs_as_nobody_without_capabilities() {
    let loader = Waiting::new();
    let status = loader.status();
    let mut names = vec!["CapInh", "CapPrm", "CapEff", "CapAmb"];
    if geteuid().is_root() {
        for name in ["Uid", "Gid"] {
            assert_eq!(status[name], [NOBODY; 4], "{name}");
        }
        assert!(status["Groups"].is_empty(), "{:?}", status["Groups"]);
        names.push("CapBnd");
    } else {
        let what = "SKIPPED (needs root): that a loader becomes nobody";
        let _ = writeln!(std::io::stderr(), "{what}");
    }
    for name in names {
        assert_eq!(status[name], ["0000000000000000"], "{name}");
    }
    assert_eq!(status["NoNewPrivs"], ["1"]);
    assert_eq!(status["Seccomp"], ["2"]);
    assert_eq!(status["Threads"], ["1"]);
}

#[test]
fn memory_time_and_files_are_limited() {
    let loader = Waiting::new();
    let limits = fs::read_to_string(loader.proc("limits")).unwrap();
    for (name, limit) in [
        ("Max address space", "536870912"),
        ("Max cpu time", "10"),
        ("Max core file size", "0"),
        ("Max file size", "0"),
        ("Max open files", "8"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, [limit; 2], "{name}, soft and hard");
    }
    let score = fs::read_to_string(loader.proc("oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "1000", "the OOM killer's first choice");
}

#[test]
fn closes_inherited_files_except_three() {
    // A descriptor that a library left open across exec.
    let leak = File::open("/dev/null").unwrap();
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let loader = Waiting::new();
    // Only root can inspect a process that is not dumpable.
    let Ok(open) = fs::read_dir(loader.proc("fd")) else {
        assert!(!geteuid().is_root());
        return;
    };
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
}

#[test]
fn half_a_request_gets_no_answer() {
    let mut loader = Waiting::new();
    drop(loader.0.stdin.take());
    let mut answer = String::new();
    let mut out = loader.0.stdout.take().unwrap();
    out.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
    assert_eq!(loader.0.wait().unwrap().code(), Some(1));
}

#[test]
fn a_user_without_a_group_is_wrong_usage() {
    for argument in ["--uid=1", "--gid=1"] {
        let status = Command::new(env!("CARGO_BIN_EXE_exitmark"))
            .args(["load-relays", argument])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert_eq!(status.unwrap().code(), Some(2));
    }
}
