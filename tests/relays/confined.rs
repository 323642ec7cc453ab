//! What a loader has given up by the time that it waits for its request, as the kernel tells it.

use exitmark::relays::LOADER_COMMAND;
use nix::unistd::{User, geteuid, getgid, getuid};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A loader that waits for its request.
struct Waiting {
    child: Child,
    process: PathBuf,
}

impl Waiting {
    fn new(arguments: &[String]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_exitmark"))
            .arg(LOADER_COMMAND)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let waiting = Self { child, process };
        // The filter is what it gives itself last.
        while waiting.status()["Seccomp"] == "0" {
            std::thread::yield_now();
        }
        waiting
    }

    fn status(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.process.join("status")).unwrap();
        text.lines()
            .filter_map(|line| line.split_once(":\t"))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// Hard and soft limit of a resource, as `/proc` writes them.
    fn limit(&self, name: &str) -> [String; 2] {
        let text = fs::read_to_string(self.process.join("limits")).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let mut fields = line[name.len()..].split_whitespace();
        [(); 2].map(|()| fields.next().unwrap().to_owned())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_is_confined(waiting: &Waiting) {
    let status = waiting.status();
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    assert_eq!(status["Threads"], "1");
    let first_to_go = fs::read_to_string(waiting.process.join("oom_score_adj")).unwrap();
    assert_eq!(first_to_go, "1000\n");
    for (name, expected) in [
        ("Max address space", "536870912"),
        ("Max cpu time", "10"),
        ("Max core file size", "0"),
        ("Max file size", "0"),
        ("Max open files", "8"),
    ] {
        assert_eq!(waiting.limit(name), [expected; 2], "{name}");
    }
}

#[test]
fn a_loader_has_given_up_all_that_it_can() {
    let waiting = Waiting::new(&[]);
    assert_is_confined(&waiting);
    let status = waiting.status();
    let four = |id: u32| [id.to_string().as_str(); 4].join("\t");
    assert_eq!(status["Uid"], four(getuid().as_raw()), "as whom it started");
    assert_eq!(status["Gid"], four(getgid().as_raw()));
}

#[test]
fn a_loader_of_root_becomes_another_user_with_no_capability_within_reach() {
    if !geteuid().is_root() {
        let said = std::io::stderr()
            .write_all(b"SKIPPED (needs root): a loader that becomes another user\n");
        return said.unwrap();
    }
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    let waiting = Waiting::new(&[format!("--uid={uid}"), format!("--gid={gid}")]);
    assert_is_confined(&waiting);
    let status = waiting.status();
    let four = |id: u32| [id.to_string().as_str(); 4].join("\t");
    assert_eq!(status["Uid"], four(uid));
    assert_eq!(status["Gid"], four(gid));
    assert_eq!(status["Groups"].trim(), "");
    assert_eq!(status["CapBnd"], "0000000000000000");
    // Of a process that can be dumped this would be its user's.
    let environ = fs::metadata(waiting.process.join("environ")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&environ), 0);
}

#[test]
fn a_loader_holds_three_files() {
    if !geteuid().is_root() {
        let said = std::io::stderr()
            .write_all(b"SKIPPED (needs root): which files a loader holds\n");
        return said.unwrap();
    }
    // A file that is not closed on exec, as a library may leave one.
    let script = format!(
        "exec 3</dev/null 7</dev/null; exec '{}' {LOADER_COMMAND}",
        env!("CARGO_BIN_EXE_exitmark")
    );
    let child = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let waiting = Waiting { child, process };
    while waiting.status()["Seccomp"] == "0" {
        std::thread::yield_now();
    }
    let mut held: Vec<_> = fs::read_dir(waiting.process.join("fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    held.sort();
    assert_eq!(held, ["0", "1", "2"]);
}

#[test]
fn a_loader_that_cannot_be_confined_reads_nothing() {
    if geteuid().is_root() {
        let said = std::io::stderr()
            .write_all(b"SKIPPED (needs a user who is not root): a change of user that fails\n");
        return said.unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .args([LOADER_COMMAND, "--uid=0", "--gid=0"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}
