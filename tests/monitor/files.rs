//! Tier: any machine; root to read memory and to change the user. Runs the program on captured
//! files that come through FIFOs, and inspects it in between: the privileges dropped before it
//! reads a byte, and that no destination is left anywhere.

use super::command::{MIDNIGHT, MONITOR, SYN, segment, write_frames};
use super::live::private::{files, has_known, memory, planted};
use super::needles::{Search, Who};
use crate::says;
use exitmark_lab::process::{set_mode, status_of};
use exitmark_lab::{eventually, timeout};
use nix::sys::stat::Mode;
use nix::unistd::{User, mkfifo};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CONFIGURATION: &str = "addresses = [\"192.0.2.10\", \"2001:db8:1::10\"]\n";

/// The program, reading two FIFOs.
struct Counting {
    directory: TempDir,
    process: Child,
    /// The write ends.
    fifos: Vec<File>,
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Counting {
    /// Starts the program with these lines in its configuration, up to its first read.
    fn start(more: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let here = directory.path();
        // The user that it changes to must be able to enter.
        set_mode(here, 0o755).unwrap();
        fs::write(here.join("monitor.toml"), format!("{more}{CONFIGURATION}")).unwrap();
        let mut fifos = Vec::new();
        for name in ["first", "second"] {
            let path = here.join(name);
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            // Opened for reading and writing, so that no open blocks.
            fifos.push(File::options().read(true).write(true).open(&path).unwrap());
        }
        let to = |name| Stdio::from(File::create(here.join(name)).unwrap());
        let process = exitmark_lab::contained(MONITOR)
            .args(["capture", "--config", "monitor.toml", "--out", "periods"])
            .args(["--pcap", "first", "second"])
            .current_dir(here)
            .env("RUST_LOG", "trace")
            .stdout(to("printed"))
            .stderr(to("log"))
            .spawn()
            .unwrap();
        let mut counting = Self {
            directory,
            process,
            fifos,
        };
        // The test process may have a seccomp filter already.
        let filters = |pid| -> u32 {
            let status = status_of(pid).unwrap();
            status["Seccomp_filters"].parse().unwrap()
        };
        let ours = filters(std::process::id());
        counting.wait_until("no privilege is dropped", |counting| {
            filters(counting.process.id()) > ours
        });
        counting
    }

    fn wait_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + timeout();
        while !is_so(self) {
            let ended = self.process.try_wait().unwrap();
            let is_in_time = ended.is_none() && Instant::now() < deadline;
            assert!(is_in_time, "{what}: {}", self.said("log"));
            sleep(Duration::from_millis(2));
        }
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap()
    }

    /// Writes packets of a time into a FIFO, with a file header before the first.
    fn write(&self, fifo: usize, frames: &[(u64, Vec<u8>)]) {
        write_frames(&self.fifos[fifo], frames);
    }

    /// Writes a packet of a day into each FIFO, and waits for the program to exit.
    fn write_two_days(&mut self) -> ExitStatus {
        for (fifo, at) in [MIDNIGHT, MIDNIGHT + 86_400].into_iter().enumerate() {
            self.write(fifo, &[(at, segment(443, SYN, 0x28))]);
        }
        self.end()
    }

    /// Closes the FIFOs and waits for the program to exit.
    fn end(&mut self) -> ExitStatus {
        self.fifos.clear();
        eventually("the end", || {
            let ended = self.process.try_wait().unwrap();
            ended.ok_or_else(|| self.said("log"))
        })
    }
}

#[test]
fn drops_every_privilege_before_reading() {
    let user = User::from_name("nobody").unwrap().unwrap();
    let as_user = nix::unistd::geteuid().is_root();
    for user in [None, Some(user).filter(|_| as_user)] {
        let is_other = user.is_some();
        let more = if is_other { "user = \"nobody\"\n" } else { "" };
        let mut counting = Counting::start(more);
        let status = status_of(counting.process.id()).unwrap();
        let confined = (&*status["Seccomp"], &*status["NoNewPrivs"]);
        assert_eq!(confined, ("2", "1"), "{status:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let kept = u64::from_str_radix(&status[set], 16).unwrap();
            // CAP_IPC_LOCK is kept by every thread if locked memory is limited.
            assert_eq!(kept & !(1 << 14), 0, "{set}");
        }
        let owner = user.map_or(nix::unistd::geteuid(), |user| user.uid);
        let owner = owner.to_string();
        assert!(status["Uid"].split('\t').all(|uid| uid == owner));
        // The program still works with that.
        let ended = counting.write_two_days();
        assert!(ended.success(), "{}", counting.said("log"));
        for day in ["20251121", "20251122"] {
            let file = format!("periods/exit-{day}T000000Z-1.jsonl");
            let file = counting.directory.path().join(file);
            assert_eq!(file.metadata().unwrap().uid().to_string(), owner);
        }
    }
}

#[test]
fn reports_a_directory_that_has_disappeared() {
    let mut counting = Counting::start("");
    fs::remove_dir(counting.directory.path().join("periods")).unwrap();
    let ended = counting.write_two_days();
    let log = counting.said("log");
    assert_eq!(ended.code(), Some(1), "{log}");
    let expected = "periods/exit-20251121T000000Z-1.jsonl: the period cannot be written";
    says(&log, expected);
    assert!(!log.contains("every minute"), "{log}");
}

#[test]
fn no_trace_of_a_destination_in_captured_files() {
    let mut counting = Counting::start("");
    let frames = planted();
    let search = Search::new();
    let all = frames.concat();
    search.finds("what is captured", &all, &[Who::Exit, Who::Client]);
    let frames = frames.into_iter().map(|frame| (MIDNIGHT, frame));
    counting.write(0, &frames.collect::<Vec<_>>());
    // From the next day, so that it is read last; its end is not reached.
    counting.write(1, &[(MIDNIGHT + 86_400, segment(443, SYN, 0x28))]);
    counting.fifos.remove(0);
    counting.wait_until("it counts", |counting| {
        counting.said("log").contains("first is counted")
    });
    if exitmark_lab::is_root() {
        let memory = memory(counting.process.id());
        has_known(&memory);
        search.finds("memory", &memory, &[]);
    }
    let ended = counting.end();
    assert!(ended.success(), "{}", counting.said("log"));
    let printed = counting.said("printed");
    says(&printed, "counted: 21 packets");
    for name in ["log", "printed"] {
        search.finds(name, counting.said(name).as_bytes(), &[]);
    }
    let mut written = Vec::new();
    files(&counting.directory.path().join("periods"), &mut written);
    assert!(written.len() > 500);
    search.finds("files", &written, &[]);
}
