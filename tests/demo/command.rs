//! Tier: root. `exitmark demo` as run by a user: its output, and that it leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    reason = "a test's ground that is missing is the test's failure"
)]

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const DEMO: &str = env!("CARGO_BIN_EXE_exitmark-demo");

/// A demo whose processes, namespaces and files can be identified: by an environment variable,
/// which children inherit, and by a temporary directory of its own.
struct Demo {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    word: String,
    directory: tempfile::TempDir,
}

/// The box's program, which cargo builds beside the demo.
fn exitmark() -> PathBuf {
    let path = Path::new(DEMO).with_file_name("exitmark");
    assert!(
        path.exists(),
        "there is no {}: `cargo build`",
        path.display()
    );
    path
}

impl Demo {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let word = format!("EXITMARK_DEMO_TEST={}", directory.path().display());
        let (name, value) = word.split_once('=').unwrap();
        let mut child = Command::new(exitmark())
            .args(["demo", "--json"])
            .env(name, value)
            .env("TMPDIR", directory.path())
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            stderr,
            word,
            directory,
        }
    }

    /// Reads its progress up to a line with this beginning.
    fn read_until(&mut self, beginning: &str) {
        let mut line = String::new();
        while !line.starts_with(beginning) {
            line.clear();
            assert_ne!(
                self.stderr.read_line(&mut line).unwrap(),
                0,
                "no line `{beginning}`"
            );
        }
    }

    /// Every process with the variable in its environment.
    fn processes(&self) -> Vec<PathBuf> {
        (processes().into_iter())
            .filter(|process| {
                fs::read(process.join("environ")).is_ok_and(|variables| {
                    (variables.split(|&byte| byte == 0)).any(|it| it == self.word.as_bytes())
                })
            })
            .collect()
    }

    /// The network namespaces of all its threads and processes, except the one of this test.
    fn namespaces(&self) -> BTreeSet<PathBuf> {
        let mut found: BTreeSet<_> = (self.processes().iter())
            .flat_map(|process| namespaces_of(process))
            .collect();
        for own in namespaces_of(Path::new("/proc/self")) {
            found.remove(&own);
        }
        found
    }

    fn end(&mut self) -> (ExitStatus, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stderr.read_to_string(&mut err).unwrap();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut out).unwrap();
        (self.child.wait().unwrap(), out, err)
    }

    fn assert_gone(&self, namespaces: &BTreeSet<PathBuf>) {
        let left = |namespaces: &BTreeSet<PathBuf>| {
            let everywhere: BTreeSet<_> = (processes().iter())
                .flat_map(|process| namespaces_of(process))
                .collect();
            everywhere.intersection(namespaces).count()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while left(namespaces) > 0 || !self.processes().is_empty() {
            assert!(
                Instant::now() < deadline,
                "left behind: {} namespaces, {:?}",
                left(namespaces),
                self.processes()
            );
            std::thread::yield_now();
        }
        let files: Vec<_> = fs::read_dir(self.directory.path()).unwrap().collect();
        assert!(files.is_empty(), "left behind: {files:?}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn processes() -> Vec<PathBuf> {
    (fs::read_dir("/proc").unwrap().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.join("environ").exists() && !path.ends_with("self"))
        .collect()
}

fn namespaces_of(process: &Path) -> Vec<PathBuf> {
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten();
    (tasks.flatten())
        .filter_map(|task| fs::read_link(task.path().join("ns/net")).ok())
        .collect()
}

#[test]
fn the_demo_succeeds_and_leaves_nothing_behind() {
    if !exitmark_lab::is_root() {
        return;
    }
    let mut demo = Demo::start();
    demo.read_until("sending");
    let namespaces = demo.namespaces();
    assert_eq!(namespaces.len(), 4);
    let (status, out, err) = demo.end();
    println!("{out}{err}");
    assert_eq!(status.code(), Some(0));
    assert_eq!(out.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let number = |path: &str| json.pointer(path).unwrap().as_u64().unwrap();
    for none in [
        "/lost",
        "/exit/unmarked",
        "/relay/leaked",
        "/relay/marked",
        "/other/changed",
    ] {
        assert_eq!(number(none), 0, "{none}");
    }
    assert_eq!(number("/exit/sent"), number("/exit/marked"));
    assert_eq!(number("/relay/sent"), number("/relay/steered"));
    // Three and two parcels of 500 kB in frames of at most 1,514 bytes.
    assert!(number("/exit/sent") > 3 * 500_000 / 1500);
    assert!(number("/relay/sent") > 2 * 500_000 / 1500);
    assert!(number("/other/sent") > 2 * 500_000 / 1500 + 100);
    assert!(json["gbit_per_s"].as_f64().unwrap() > 0.0);
    assert!(number("/rtt_us/p50") <= number("/rtt_us/p99"));
    demo.assert_gone(&namespaces);
}

#[test]
fn a_signal_ends_the_demo_and_nothing_is_left_behind() {
    if !exitmark_lab::is_root() {
        return;
    }
    // Ctrl-C in a terminal reaches the whole process group, `kill` only the demo itself.
    for (signal, to_group, moment, code) in [
        (Signal::SIGINT, true, "sending", 130),
        (Signal::SIGTERM, false, "timing", 143),
        (Signal::SIGINT, false, "building", 130),
        (Signal::SIGINT, true, "loading", 130),
    ] {
        let mut demo = Demo::start();
        demo.read_until(moment);
        let namespaces = demo.namespaces();
        let pid = Pid::from_raw(i32::try_from(demo.child.id()).unwrap());
        if to_group {
            killpg(pid, signal).unwrap();
        } else {
            kill(pid, signal).unwrap();
        }
        let (status, out, err) = demo.end();
        assert_eq!(status.code(), Some(code), "{moment}: {err}");
        assert_eq!(out, "");
        demo.assert_gone(&namespaces);
    }
}

#[test]
fn refuses_to_run_without_root() {
    if !exitmark_lab::is_root() {
        return;
    }
    // A directory from which another user can run it.
    let directory = tempfile::tempdir().unwrap();
    let world_readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), world_readable).unwrap();
    let program = directory.path().join("exitmark");
    // Not copied by this process: a child that another test starts meanwhile would hold the file
    // open for writing, and running it would fail (ETXTBSY).
    let copied = Command::new("cp")
        .args([exitmark(), DEMO.into()])
        .arg(directory.path())
        .status();
    assert!(copied.unwrap().success());
    let output = Command::new(program)
        .arg("demo")
        .uid(65_534)
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("requires root"), "{message}");
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    if !exitmark_lab::is_root() {
        return;
    }
    let path = std::env::var_os("PATH").unwrap();
    for (missing, package) in [
        ("ip", "iproute2"),
        ("ethtool", "ethtool"),
        ("tcpdump", "tcpdump"),
        ("setpriv", "util-linux"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        for program in ["ip", "ethtool", "tcpdump", "setpriv"] {
            let found = std::env::split_paths(&path)
                .map(|directory| directory.join(program))
                .find(|path| path.exists())
                .unwrap();
            if program != missing {
                symlink(found, directory.path().join(program)).unwrap();
            }
        }
        let output = Command::new(exitmark())
            .arg("demo")
            .env("PATH", directory.path())
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains(&format!("`{missing}` is not installed")),
            "{message}"
        );
        assert!(
            message.contains(&format!("apt install {package}")),
            "{message}"
        );
    }
}
