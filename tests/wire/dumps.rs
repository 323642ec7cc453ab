//! The memory of a box contains packets: core dumps omit it, and other processes cannot read it.

use crate::private::{Load, start};
use crate::rig::{Config, Rig, Side, eventually, needs_root, silence};
use exitmark_lab::site::{Plan, Site};
use exitmark_lab::{LabError, Netns, contained};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// The anonymous memory that a process shares with the kernel, by size, and whether core dumps omit
/// it: `/proc/PID/smaps`.
fn shared_memory(pid: u32) -> Vec<(u64, bool)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut found = Vec::new();
    let mut size = None;
    for line in smaps.lines() {
        if line.contains(" rw-s ") {
            size = line.ends_with("/dev/zero (deleted)").then_some(0);
        } else if let (Some(bytes), Some(kilobytes)) = (&mut size, line.strip_prefix("Size:")) {
            *bytes = kilobytes
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap()
                << 10;
        } else if let (Some(bytes), Some(flags)) = (size, line.strip_prefix("VmFlags:")) {
            found.push((bytes, flags.split_whitespace().any(|flag| flag == "dd")));
            size = None;
        }
    }
    found
}

/// Whether the user nobody can open this file of a process' directory in /proc.
fn nobody_opens(pid: u32, file: &str) -> bool {
    Command::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--inh-caps",
            "-all",
        ])
        .args([
            "sh",
            "-c",
            "exec 3< \"$1\"",
            "sh",
            &format!("/proc/{pid}/{file}"),
        ])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

const SECRETS: [&str; 4] = ["mem", "maps", "environ", "auxv"];

#[test]
fn no_other_process_of_its_user_can_read_the_memory_of_a_box() {
    needs_root!();
    // A process of the user nobody that does not protect its memory, for comparison.
    let mut command = contained("setpriv");
    command.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "sleep",
        "1000",
    ]);
    let nowhere = Netns::new("nowhere").unwrap();
    let mut open = nowhere.start(command).unwrap();
    let pid = open.process().id();
    eventually("it sleeps", || {
        match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) if name == "sleep\n" => Ok(()),
            other => Err(LabError(format!("{other:?}"))),
        }
    });
    let opened = SECRETS.map(|file| nobody_opens(pid, file));
    println!("the user nobody can open {SECRETS:?} of its own ordinary process: {opened:?}");
    assert!(opened.contains(&true));
    for user in ["", "user = \"nobody\""] {
        let config = Config {
            top: user,
            ..Config::default()
        };
        let mut rig = Rig::silent(Plan::default(), &config);
        let pid = rig.running.pid();
        for file in SECRETS {
            assert!(!nobody_opens(pid, file), "{file} of a box with {user:?}");
        }
        let memory = shared_memory(pid);
        println!("shared memory, and whether dumps omit it: {memory:?}");
        assert!(
            memory.iter().any(|(bytes, _)| *bytes > 1 << 20),
            "no packet memory: {memory:?}"
        );
        assert!(
            memory.iter().all(|(_, is_left_out)| *is_left_out),
            "{memory:?}"
        );
    }
}

#[test]
fn a_box_that_crashes_leaves_no_core() {
    needs_root!();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let site = Site::build(Plan::default()).unwrap();
        silence(&site);
        let mut rig = start(site, &Config::default());
        let load = Load::new(&rig);
        load.send();
        rig.wait_for("every frame", |counters| {
            counters.get("host_received") == Some(&load.of(Side::Host))
        });
        // Another process that is killed like this does leave a core.
        let script = format!(
            "ulimit -c unlimited && cd \"$1\" && kill -{} $$",
            signal as i32
        );
        let victim = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(rig.directory.path())
            .status()
            .unwrap();
        assert_eq!(victim.signal(), Some(signal as i32));
        match victim.core_dumped() {
            true => {}
            false => println!("this machine dumps no cores: core_pattern is {pattern}"),
        }
        assert!(
            victim.core_dumped() || pattern.starts_with('|'),
            "{pattern}"
        );
        let files = || -> BTreeSet<_> {
            let entries = fs::read_dir(rig.directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        let before = files();
        if !pattern.starts_with(['|', '/']) {
            assert!(
                before
                    .iter()
                    .any(|name| name.to_string_lossy().starts_with("core")),
                "{before:?}"
            );
            for core in before
                .iter()
                .filter(|name| name.to_string_lossy().starts_with("core"))
            {
                fs::remove_file(rig.directory.path().join(core)).unwrap();
            }
        }
        let before = files();
        // The first SIGSEGV without a fault only removes Rust's stack overflow handler.
        eventually("it dies", || {
            let _ = rig.running.signal(signal);
            match rig.running.has_ended() {
                true => Ok(()),
                false => Err(LabError("it lives".to_owned())),
            }
        });
        let ended = rig.running.ended().unwrap();
        assert_eq!(ended.signal(), Some(signal as i32), "{ended}");
        assert!(!ended.core_dumped(), "{ended}");
        assert_eq!(files(), before);
    }
}
