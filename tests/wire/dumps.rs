//! The memory of a box contains packets: core dumps omit it, and other processes cannot read it.

use crate::private::{Load, start};
use crate::rig::{Config, Rig, Side, needs_root, wait_until};
use exitmark_lab::Netns;
use exitmark_lab::process::{as_nobody, dumping_in};
use exitmark_lab::site::Plan;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

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
            let kilobytes = kilobytes.trim().trim_end_matches(" kB");
            *bytes = kilobytes.parse::<u64>().unwrap() << 10;
        } else if let (Some(bytes), Some(flags)) = (size, line.strip_prefix("VmFlags:")) {
            found.push((bytes, flags.split_whitespace().any(|flag| flag == "dd")));
            size = None;
        }
    }
    found
}

/// Whether the user nobody can open this file of a process' directory in /proc.
fn nobody_opens(pid: u32, file: &str) -> bool {
    let mut command = as_nobody("sh");
    command.args(["-c", "exec 3< \"$1\"", "sh"]);
    command.arg(format!("/proc/{pid}/{file}"));
    command.stderr(Stdio::null()).status().unwrap().success()
}

const SECRETS: [&str; 4] = ["mem", "maps", "environ", "auxv"];

#[test]
fn no_other_process_of_its_user_can_read_the_memory_of_a_box() {
    needs_root!();
    // A process of the user nobody that does not protect its memory, for comparison.
    let mut command = as_nobody("sleep");
    command.arg("1000");
    let nowhere = Netns::new("nowhere").unwrap();
    let mut open = nowhere.start(command).unwrap();
    let pid = open.process().id();
    let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    wait_until("it sleeps", || name() == "sleep\n", name);
    let opened = SECRETS.map(|file| nobody_opens(pid, file));
    println!("the user nobody can open {SECRETS:?} of its own ordinary process: {opened:?}");
    assert!(opened.contains(&true));
    for user in ["", "user = \"nobody\""] {
        let mut rig = Rig::silent(Plan::default(), &Config::default().top(user));
        let pid = rig.running.pid();
        for file in SECRETS {
            assert!(!nobody_opens(pid, file), "{file} of a box with {user:?}");
        }
        let memory = shared_memory(pid);
        println!("shared memory, and whether dumps omit it: {memory:?}");
        let has_packets = memory.iter().any(|(bytes, _)| *bytes > 1 << 20);
        assert!(has_packets, "no packet memory: {memory:?}");
        let is_left_out = memory.iter().all(|(_, is_left_out)| *is_left_out);
        assert!(is_left_out, "{memory:?}");
    }
}

#[test]
fn a_box_that_crashes_leaves_no_core() {
    needs_root!();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let mut rig = start(&Config::default());
        let load = Load::new(&rig);
        load.send();
        rig.counts("host_received", load.of(Side::Host));
        // Another process that is killed like this does leave a core.
        let mut victim = dumping_in(rig.directory.path(), "sh");
        victim.args(["-c", &format!("kill -{} $$", signal as i32)]);
        let victim = victim.status().unwrap();
        assert_eq!(victim.signal(), Some(signal as i32));
        if !victim.core_dumped() {
            println!("this machine dumps no cores: core_pattern is {pattern}");
            assert!(pattern.starts_with('|'), "{pattern}");
        }
        let files = || -> BTreeSet<_> {
            let entries = fs::read_dir(rig.directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        let before = files();
        if !pattern.starts_with(['|', '/']) {
            let is_core = |name: &&OsString| name.to_string_lossy().starts_with("core");
            let cores: Vec<_> = before.iter().filter(is_core).collect();
            assert!(!cores.is_empty(), "{before:?}");
            for core in cores {
                fs::remove_file(rig.directory.path().join(core)).unwrap();
            }
        }
        let before = files();
        // The first SIGSEGV without a fault only removes Rust's stack overflow handler.
        let is_dead = || {
            let _ = rig.running.signal(signal);
            rig.running.has_ended()
        };
        wait_until("it dies", is_dead, || "it lives");
        let ended = rig.running.ended().unwrap();
        assert_eq!(ended.signal(), Some(signal as i32), "{ended}");
        assert!(!ended.core_dumped(), "{ended}");
        assert_eq!(files(), before);
    }
}
