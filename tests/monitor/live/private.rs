//! After its packets are counted, no address of a destination is in the monitor's memory, output or
//! files.

use super::{HOST_V4, HOST_V6, MARK, METRICS, Stage, connection, wait_for};
use crate::needles::{Search, Who};
use exitmark_lab::frames::{extension, tcp};
use exitmark_lab::{needs_root, wait_until};
use exitmark_policy::packet::Tcp;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

/// Marked frames of every shape to destinations that occur nowhere else, and some that do not
/// count.
pub(crate) fn planted() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for who in [Who::Exit, Who::Client] {
        for address in who.addresses() {
            let (source, destination) = match address {
                IpAddr::V4(_) => (format!("{HOST_V4}:40000"), format!("{address}:443")),
                IpAddr::V6(_) => (format!("[{HOST_V6}]:40000"), format!("[{address}]:443")),
            };
            frames.extend(connection(&source, &destination));
            let frame = || tcp(&source, &destination).tos(MARK).payload(20);
            let more = [
                match address {
                    IpAddr::V4(_) => frame().options(8),
                    IpAddr::V6(_) => frame().extensions(&[extension::DESTINATION]),
                },
                frame().tag(0x8100, 7),
                frame().fragment(7, 10, false),
                frame().tos(0).control(Tcp::SYN),
            ];
            frames.extend(more.map(|frame| frame.build()));
        }
    }
    frames
}

/// All readable memory of a process.
pub(crate) fn memory(pid: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| !line.contains("[v")) {
        let range = line.split(' ').next().unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|end| u64::from_str_radix(end, 16).unwrap());
        // Read-only mappings: the program and the tables of countries.
        if line.contains(" r--p ") || line.contains(" r-xp ") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // Rings that the kernel does not let be read hold no packets.
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            all.extend(bytes);
        }
    }
    all
}

/// Checks that memory has the host's configured address: the search covers it.
pub(crate) fn has_known(memory: &[u8]) {
    let clearnet: std::net::Ipv6Addr = HOST_V6.parse().unwrap();
    let known = clearnet.octets();
    assert!(memory.windows(16).any(|bytes| bytes == known));
}

pub(crate) fn files(directory: &Path, all: &mut Vec<u8>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        all.extend(path.display().to_string().bytes());
        match path.is_dir() {
            true => files(&path, all),
            false => all.extend(fs::read(&path).unwrap()),
        }
    }
}

#[test]
fn no_trace_of_a_destination_once_counted() {
    needs_root!();
    let stage = Stage::new();
    let mut running = stage.start("", METRICS).unwrap();
    let frames = planted();
    let search = Search::new();
    let sent = frames.concat();
    search.finds("what is sent", &sent, &[Who::Exit, Who::Client]);
    stage.send(&frames);
    let marked = frames.len() as u64 - 4;
    let counters = wait_for(&running, marked);
    assert_eq!(counters["packets"], marked);
    // After a second answer, a receive has returned nothing in between.
    running.counters().unwrap();

    let memory = memory(running.pid());
    let bytes = memory.len();
    assert!(bytes > 8 << 20, "only {bytes} bytes of memory were read");
    has_known(&memory);
    search.finds("memory", &memory, &[]);
    let metrics = stage.get("GET /metrics");
    search.finds("metrics", metrics.as_bytes(), &[]);
    let (log, printed) = (running.log(), running.printed());
    let last = running.end().unwrap();
    assert!(last.status.success(), "{}", last.log);
    search.finds("the log", format!("{log}{}", last.log).as_bytes(), &[]);
    search.finds("what it prints", printed.as_bytes(), &[]);
    let mut written = Vec::new();
    files(stage.directory.path(), &mut written);
    assert!(written.len() > 500);
    search.finds("files", &written, &[]);
}

#[test]
fn a_monitor_that_crashes_leaves_no_core() {
    needs_root!();
    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let stage = Stage::new();
        let mut running = stage.start("", "").unwrap();
        stage.send(&planted());
        wait_for(&running, 1);
        // The first SIGSEGV sent from outside only removes Rust's stack overflow handler.
        let is_dead = || {
            let _ = running.signal(signal);
            running.has_ended()
        };
        wait_until("the monitor dies", is_dead, || "it lives");
        let ended = running.ended().unwrap();
        assert_eq!(ended.signal(), Some(signal as i32), "{ended}");
        assert!(!ended.core_dumped(), "{ended}");
        let mut written = Vec::new();
        files(stage.directory.path(), &mut written);
        Search::new().finds("what it leaves", &written, &[]);
    }
}
