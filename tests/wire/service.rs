//! The box as a service: its notifications to the service manager, its answers to clients, and
//! reloads, all with dropped privileges.

use crate::craft::{AF11, exit, relay};
use crate::leaks::pins;
use crate::reload::{Tor, listing};
use crate::rig::{
    Case, Config, EXITMARK, Rig, Side, arrives, assert_says, both_engines, capture, eventually,
    exitmark, moved, needs_root, port, silent, timeout, watch,
};
use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::Report;
use exitmark_lab::process::http;
use exitmark_lab::site::{Plan, RELAY_V4, SERVER_V4, Site};
use exitmark_lab::{Capture, FinalState, RawPort, RunningBox, contained};
use exitmark_policy::Endpoint;
use nix::sys::signal::Signal;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Checks that a command has ended with status 0; returns its standard output.
#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    text(&output.stdout)
}

/// Checks that a command has ended with this status, and with these words in its standard error.
#[track_caller]
fn fails(output: &Output, status: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert_says(&text(&output.stderr), words);
}

/// Stops the box, and checks that no system call was blocked that it needs.
fn stop(running: RunningBox) -> FinalState {
    let last = running.stop().unwrap();
    moved(&last);
    assert!(!last.log.contains("not permitted"), "{}", last.log);
    last
}

struct Wire {
    port: RawPort,
    eye: Capture,
    captured: usize,
}

impl Wire {
    fn of(site: &Site) -> Self {
        Self {
            port: port(site, Side::Host),
            eye: watch(site, Side::Clearnet),
            captured: 0,
        }
    }

    /// Sends an exit frame, which must arrive with this ToS byte.
    #[track_caller]
    fn assert_forwarded_as(&mut self, tos: u8) {
        self.port.send(&exit(0, 50).outbound(&[])).unwrap();
        self.captured += 1;
        let (captured, expected) = (self.captured, exit(0, 50).tos(tos).outbound(&[]));
        let arrived = self.eye.wait_until(timeout(), |frames| {
            frames.len() == captured && frames[captured - 1].bytes == expected
        });
        assert!(arrived, "no frame with {tos:#04x}");
    }
}

/// A service manager's notification socket.
struct Manager {
    mailbox: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mailbox = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        mailbox.set_read_timeout(Some(timeout())).unwrap();
        Self { mailbox, directory }
    }

    /// The command that starts a box. `watchdog` is a shell expression for the watched process.
    fn command(&self, configuration: &Path, watchdog: &str) -> Command {
        let script = format!("WATCHDOG_PID={watchdog} exec \"$0\" run --config \"$1\"");
        let mut command = contained("sh");
        command
            .args(["-c", &script, EXITMARK])
            .arg(configuration)
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("WATCHDOG_USEC", "200000");
        command
    }

    fn receive(&self) -> String {
        let mut bytes = [0; 4096];
        let length = loop {
            match self.mailbox.recv(&mut bytes) {
                // A receive with a timeout is not restarted after a signal.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.unwrap(),
            }
        };
        text(&bytes[..length])
    }

    /// All messages up to this one.
    fn receive_until(&self, words: &str) -> Vec<String> {
        let mut received = Vec::new();
        loop {
            received.push(self.receive());
            if received.last().unwrap().contains(words) {
                return received;
            }
        }
    }
}

#[test]
fn notifies_the_service_manager_of_ready_watchdog_and_stopping() {
    needs_root!();
    let site = silent(Plan::default());
    let mut wire = Wire::of(&site);
    let manager = Manager::new();
    let configuration = Config::default().write(manager.directory.path()).unwrap();
    let command = manager.command(&configuration, "$$");
    let running = std::thread::scope(|scope| {
        let start = scope.spawn(|| RunningBox::start_by(&site.middle, command).unwrap());
        let first = manager.receive();
        let begins = first.starts_with("READY=1\nSTATUS=ready: engine=");
        assert!(begins, "{first}");
        // Frames are forwarded at once, in any state of the process.
        wire.assert_forwarded_as(AF11);
        start.join().unwrap()
    });
    for _ in 0..4 {
        assert_eq!(manager.receive(), "WATCHDOG=1\n");
    }
    running.signal(Signal::SIGTERM).unwrap();
    let received = manager.receive_until("STOPPING=1");
    let mut before = received[..received.len() - 1].iter();
    assert!(before.all(|one| one == "WATCHDOG=1\n"), "{received:?}");
    let last = running.stop();
    // It may have ended already.
    if let Ok(last) = last {
        moved(&last);
    }
    // Marking continues.
    wire.assert_forwarded_as(AF11);
    assert_eq!(pins(&site), ["exitmark"]);

    // It ignores a watchdog of another process.
    let command = manager.command(&configuration, "1");
    let running = RunningBox::start_by(&site.middle, command).unwrap();
    wire.assert_forwarded_as(AF11);
    running.counters().unwrap();
    stop(running);
    let received = manager.receive_until("STOPPING=1");
    assert_eq!(received.len(), 2, "{received:?}");
}

#[test]
fn a_reload_switches_from_audit_to_enforce_and_a_refused_one_changes_nothing() {
    both_engines(|| {
        let config = Config::default().top("mode = \"audit\"");
        let rig = Rig::silent(Plan::default(), &config);
        let mut wire = Wire::of(&rig.site);
        let file = rig.configuration.to_str().unwrap();
        let reload = |by: &[&str]| exitmark(&rig.site, &[&["reload"], by].concat());
        wire.assert_forwarded_as(0);
        let counters = rig.running.counters().unwrap();
        let counts = (counters.get("exit"), counters.get("marked"));
        assert_eq!(counts, (Some(&1), None));

        let audit = fs::read_to_string(file).unwrap();
        let enforce = audit.replace("\"audit\"", "\"enforce\"");
        fs::write(file, &enforce).unwrap();
        let output = succeeds(&reload(&["--config", file]));
        assert_eq!(output, "generation 2, changed:\n  mode\n");
        wire.assert_forwarded_as(AF11);
        let output = reload(&["--config", file]);
        assert_eq!(text(&output.stdout), "nothing changed: generation 2\n");

        let broken = format!("{enforce}\n[mark]\ndscp = 64\n");
        let fixed = enforce.replace("\"uplink0\"", "\"uplink9\"");
        let engine = format!("engine = \"auto\"\n{}", enforce.split_once('\n').unwrap().1);
        let refused: [(&str, &[&str]); 3] = [
            (&broken, &["exitmark.toml", "mark.dscp = 64"]),
            (
                &fixed,
                &["ports.uplink", "restart", "systemctl restart exitmark"],
            ),
            (&engine, &["engine", "restart"]),
        ];
        for (number, (text_of_file, words)) in (1..).zip(refused) {
            fs::write(file, text_of_file).unwrap();
            let output = reload(&[]);
            fails(&output, 1, words);
            assert!(output.stdout.is_empty());
            wire.assert_forwarded_as(AF11);
            let report = rig.status();
            assert_eq!((report.reloads, report.reloads_refused), (1, number));
            assert_eq!((report.mode.as_str(), report.generation), ("enforce", 2));
        }
        // A broken configuration does not tell the client where the box is.
        fs::write(file, &broken).unwrap();
        fails(&reload(&["--config", file]), 2, &["mark.dscp = 64"]);
        stop(rig.running);
    });
}

#[test]
fn a_reload_follows_other_relay_files() {
    needs_root!();
    let tor = |address: Ipv4Addr| Tor::with(&listing(Endpoint::new(address.into(), 9001)));
    let [one, other] = [SERVER_V4, RELAY_V4].map(tor);
    let rig = Rig::silent(Plan::default(), &one.config("retain = \"0s\""));
    let file = rig.configuration.to_str().unwrap();
    let text_of_file = fs::read_to_string(file).unwrap();
    let [before, after] = [&one, &other].map(|tor| tor.consensus().display().to_string());
    fs::write(file, text_of_file.replace(&before, &after)).unwrap();
    let reload = || exitmark(&rig.site, &["reload", "--config", file]);
    let output = succeeds(&reload());
    assert_eq!(output, "generation 2, changed:\n  relays.consensus\n");
    arrives(&rig.site, &Case::relay(0, 60));
    // An unusable configuration is refused as a whole, with its reason.
    fs::write(other.consensus(), "").unwrap();
    let nothing = text_of_file.replace(&before, "/nosuch/consensus");
    fs::write(file, nothing).unwrap();
    fails(&reload(), 1, &["/nosuch/consensus"]);
    arrives(&rig.site, &Case::relay(0, 60));
    stop(rig.running);
}

#[test]
fn status_is_correct_as_text_and_as_json() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let mut wire = Wire::of(&rig.site);
    wire.assert_forwarded_as(AF11);
    let json = succeeds(&exitmark(&rig.site, &["status", "--json"]));
    let report: Report = serde_json::from_str(&json).unwrap();
    let of = |class: &str| report.classes.iter().find(|one| one.class == class);
    let [exit, relay] = ["exit", "relay"].map(|class| of(class).unwrap().frames);
    assert_eq!((exit, relay, report.frames.marked), (1, 0, 1));
    // The rig's relays are extras, which is a warning.
    let kinds: Vec<_> = report.warnings.iter().map(|one| &one.kind).collect();
    assert_eq!(kinds, ["configuration"]);
    // The JSON contains the whole report.
    let printed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_value(&report).unwrap(), printed);
    let output = succeeds(&exitmark(&rig.site, &["status"]));
    assert!(output.starts_with("exitmark"), "{output}");

    let status_becomes = |status: i32, words: &str| {
        eventually(words, || {
            let output = exitmark(&rig.site, &["status"]);
            let shown = text(&output.stdout);
            match output.status.code() == Some(status) && shown.contains(words) {
                true => Ok(()),
                false => Err(format!("{output:?}")),
            }
        });
    };
    rig.site.clearnet.ip("link set eth0 down").unwrap();
    status_becomes(1, "uplink0 (uplink) has no link");
    rig.site.clearnet.ip("link set eth0 up").unwrap();
    status_becomes(0, "exitmark");
    stop(rig.running);
}

#[test]
fn answers_many_concurrent_clients() {
    needs_root!();
    let rig = Rig::silent(Plan::default(), &Config::default());
    let clients: Vec<_> = (0..32)
        .map(|number| {
            let ask = move || match number % 2 {
                0 => Client::new(DEFAULT_SOCKET).metrics().unwrap(),
                _ => http(9787, "GET /metrics").unwrap(),
            };
            rig.site.middle.spawn("clients", ask).unwrap()
        })
        .collect();
    for one in clients {
        assert_says(&one.join().unwrap(), &["exitmark_"]);
    }
    stop(rig.running);
}

#[test]
fn a_capture_of_a_running_box_describes_the_outcome_of_each_frame() {
    both_engines(|| {
        let rig = Rig::silent(Plan::default(), &Config::default());
        let port = rig.port(Side::Host);
        let out = capture(&rig, &["--frames", "20"], || {
            port.send(&exit(0, 50).outbound(&[])).unwrap();
            port.send(&relay(1, 50).outbound(&[])).unwrap();
        });
        assert_eq!(fs::metadata(&out).unwrap().mode() & 0o777, 0o600);
        let bytes = fs::read(&out).unwrap();
        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let mut comments = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.unwrap() {
                let comment = packet.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Comment(comment) => Some(comment.to_string()),
                    _ => None,
                });
                comments.push(comment.expect("every frame has a comment"));
            }
        }
        println!("{}", comments[0]);
        assert_says(&comments.concat(), &["exit", "relay"]);
        stop(rig.running);
    });
}

/// The control socket's device, inode and mode, if it is there.
fn socket(site: &Site) -> Option<(u64, u64, u32)> {
    site.middle.run(|| {
        let found = fs::symlink_metadata(DEFAULT_SOCKET).ok()?;
        assert!(found.file_type().is_socket());
        Some((found.dev(), found.ino(), found.mode() & 0o777))
    })
}

#[test]
fn the_control_socket_belongs_to_one_box_and_ends_with_it() {
    needs_root!();
    let site = silent(Plan::default());
    assert_eq!(socket(&site), None);
    let rig = Rig::on(site, &Config::default());
    let mine = socket(&rig.site).unwrap();
    assert_eq!(mine.2, 0o660);
    let other = tempfile::tempdir().unwrap();
    let own = "[pin]\ndirectory = \"/sys/fs/bpf/other\"\n[metrics]\nlisten = \"off\"\n";
    let configuration = Config::default().more(own).write(other.path()).unwrap();
    let file = configuration.to_str().unwrap();
    let output = exitmark(&rig.site, &["run", "--config", file]);
    fails(&output, 1, &["another exitmark answers at"]);
    assert_eq!(socket(&rig.site), Some(mine));
    assert_eq!(pins(&rig.site), ["exitmark"]);
    assert_eq!(exitmark(&rig.site, &["status"]).status.code(), Some(0));

    // A killed box leaves its socket, and the next one replaces it.
    let mut killed = rig.running;
    killed.signal(Signal::SIGKILL).unwrap();
    killed.ended().unwrap();
    assert_eq!(socket(&rig.site), Some(mine));
    let output = exitmark(&rig.site, &["status"]);
    fails(&output, 1, &["no exitmark answers"]);
    let next = Rig::on(rig.site, &Config::default());
    let its = socket(&next.site).unwrap();
    assert_ne!(its, mine);
    assert_eq!(exitmark(&next.site, &["status"]).status.code(), Some(0));
    stop(next.running);
    assert_eq!(socket(&next.site), None);
}
