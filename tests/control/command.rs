//! The commands that connect to a running box: their output, files and exit status.

use super::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

fn exitmark(arguments: &[&str], socket: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .args(arguments)
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn status_is_text_or_json() {
    let rig = Rig::new(Puppet::default());
    let text = exitmark(&["status"], &rig.socket);
    assert_eq!(code(&text), 0, "{text:?}");
    assert!(out(&text).starts_with("exitmark    1.2.3"), "{text:?}");
    let json = exitmark(&["status", "--json"], &rig.socket);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["generation"], u64::MAX);
}

#[test]
fn status_exits_with_one_for_an_alarm_and_zero_for_a_warning() {
    for (is_alarm, expected) in [(true, 1), (false, 0)] {
        let rig = Rig::new(Puppet {
            warnings: vec![Warning {
                kind: "relay-set".to_owned(),
                is_alarm,
                text: "look at it".to_owned(),
            }],
            ..Puppet::default()
        });
        let output = exitmark(&["status"], &rig.socket);
        assert_eq!(code(&output), expected, "{output:?}");
        assert!(out(&output).contains("relay-set: look at it"));
    }
}

#[test]
fn commands_exit_with_one_without_a_box() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    for arguments in [&["status"][..], &["reload"], &["capture", "--out", "-"]] {
        let output = exitmark(arguments, &socket);
        assert_eq!(code(&output), 1, "{output:?}");
        let words = "no exitmark answers at";
        assert!(err(&output).contains(words), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn reload_prints_what_changed_or_why_nothing_did() {
    let (say, reloads) = unbounded();
    let reloaded = |changed: &[&str]| Reloaded {
        generation: 7,
        changed: changed.iter().map(|key| (*key).to_owned()).collect(),
    };
    say.send(Ok(reloaded(&["mark.dscp", "host.exempt"])))
        .unwrap();
    say.send(Ok(reloaded(&[]))).unwrap();
    say.send(Err("mark.dscp: 77 is no DSCP".to_owned()))
        .unwrap();
    let rig = Rig::reloading(reloads);
    let output = exitmark(&["reload"], &rig.socket);
    let changed = "generation 7, changed:\n  mark.dscp\n  host.exempt\n";
    assert_eq!(out(&output), changed);
    let output = exitmark(&["reload"], &rig.socket);
    assert_eq!(out(&output), "nothing changed: generation 7\n");
    assert_eq!(code(&output), 0);
    let output = exitmark(&["reload"], &rig.socket);
    assert_eq!(code(&output), 1);
    assert_eq!(err(&output), "exitmark: mark.dscp: 77 is no DSCP\n");
}

#[test]
fn a_capture_goes_to_a_private_file_or_standard_output() {
    let rig = Rig::with_captures((0..3).map(|_| {
        let (part, receiver) = bounded(1);
        part.send(b"bytes".to_vec()).unwrap();
        receiver
    }));
    let path = rig.directory.path().join("frames.pcapng");
    let name = path.to_str().unwrap();
    let output = exitmark(&["capture", "--out", name], &rig.socket);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(fs::read(&path).unwrap(), b"bytes");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(err(&output).contains("5 bytes of pcapng to "), "{output:?}");

    let output = exitmark(&["capture", "--out", name], &rig.socket);
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(err(&output).contains("--force"), "{output:?}");
    fs::write(&path, "old").unwrap();
    let output = exitmark(&["capture", "--out", name, "--force"], &rig.socket);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(fs::read(&path).unwrap(), b"bytes");

    let output = exitmark(&["capture", "--out", "-"], &rig.socket);
    assert_eq!(output.stdout, b"bytes");
}

#[test]
fn an_interrupted_capture_is_kept() {
    let (rig, part) = Rig::capturing(1);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("frames.pcapng");
    let mut child = Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .args(["capture", "--out"])
        .arg(&path)
        .arg("--socket")
        .arg(&rig.socket)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    part.send(b"bytes".to_vec()).unwrap();
    // The capture has begun when the bytes are in its temporary file.
    let begun = Instant::now();
    let has_come = || {
        let mut entries = fs::read_dir(directory.path()).unwrap();
        entries.any(|entry| entry.unwrap().metadata().is_ok_and(|file| file.len() == 5))
    };
    while !has_come() {
        assert!(begun.elapsed() < LONG, "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read(&path).unwrap(), b"bytes");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_capture_that_fails_leaves_nothing() {
    let rig = Rig::new(Puppet::default());
    let path = rig.directory.path().join("frames.pcapng");
    let name = path.to_str().unwrap();
    let output = exitmark(&["capture", "--out", name], &rig.socket);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("the box is stopping"), "{output:?}");
    let mut left: Vec<_> = fs::read_dir(rig.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["control.sock", "control.sock.lock"]);
    for (argument, value, word) in [
        ("--one-in", "3", "--one-in is 3; give a power of two"),
        ("--frames", "0", "--frames is 0"),
        ("--seconds", "9999", "--seconds is 9999"),
    ] {
        let output = exitmark(&["capture", "--out", name, argument, value], &rig.socket);
        assert_eq!(code(&output), 2, "{output:?}");
        assert!(err(&output).contains(word), "{output:?}");
    }
}

#[test]
fn help_warns_of_what_a_capture_exposes() {
    let help = Command::new(env!("CARGO_BIN_EXE_exitmark"))
        .args(["capture", "--help"])
        .output()
        .unwrap();
    assert_eq!(out(&help).matches("EXPOSES").count(), 2, "{help:?}");
}

#[test]
fn top_needs_a_terminal() {
    let rig = Rig::new(Puppet::default());
    let output = exitmark(&["top"], &rig.socket);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("`exitmark status`"), "{output:?}");
}
