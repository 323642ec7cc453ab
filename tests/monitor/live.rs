//! Tier: root. The program at a tap: what it counts and reports, that a restart continues, the
//! privileges that it drops, and that no destination is left anywhere.

pub(crate) mod private;
mod restart;

use exitmark_lab::frames::{Frame, tcp, udp};
use exitmark_lab::site::RunningBox;
use exitmark_lab::{LabError, Netns, RawPort, VethEnd, contained, veth};
use exitmark_monitor::cell::Counts;
use exitmark_monitor::ledger::Ledger;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");
const PATIENCE: Duration = Duration::from_secs(20);
const MARK: u8 = 0x28;
const HOST_V4: &str = "192.0.2.10";
const HOST_V6: &str = "2001:db8:1::10";

/// Returns from the test without root.
macro_rules! needs_root {
    () => {
        if !exitmark_lab::is_root() {
            return;
        }
    };
}
use needs_root;

/// The monitor's machine, and the network at its tap; neither sends by itself.
struct Stage {
    listener: Netns,
    network: Netns,
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            listener: Netns::new("listener").unwrap(),
            network: Netns::new("network").unwrap(),
            directory: TempDir::new().unwrap(),
        };
        for netns in [&stage.listener, &stage.network] {
            netns
                .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
                .unwrap();
        }
        let end = |netns, name, mac| VethEnd {
            netns,
            name,
            mac,
            queues: 1,
        };
        veth(
            &end(&stage.listener, "mon0", "02:00:00:00:09:01"),
            &end(&stage.network, "tap0", "02:00:00:00:09:02"),
            1500,
        )
        .unwrap();
        // The user that the monitor changes to must be able to enter.
        let all_users = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(stage.directory.path(), all_users).unwrap();
        fs::create_dir(stage.periods()).unwrap();
        let all_users = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(stage.periods(), all_users).unwrap();
        stage
    }

    fn periods(&self) -> PathBuf {
        self.directory.path().join("periods")
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Starts the monitor with these top-level lines and these tables.
    fn start(&self, top: &str, tables: &str) -> Result<RunningBox, LabError> {
        let configuration = format!(
            "interface = \"mon0\"\naddresses = [\"{HOST_V4}\", \"{HOST_V6}\"]\n{top}\n\
             [period]\nlength = \"30days\"\ndirectory = \"periods\"\nstate = \"state\"\n{tables}"
        );
        let file = self.directory.path().join("monitor.toml");
        fs::write(&file, configuration).unwrap();
        let mut command = contained("sh");
        command
            .args([
                "-c",
                "ulimit -c unlimited && cd \"$1\" && exec \"$2\" capture --config \"$3\"",
                "sh",
            ])
            .arg(self.directory.path())
            .arg(MONITOR)
            .arg(&file)
            .env("RUST_LOG", "trace");
        RunningBox::start_by(&self.listener, command)
    }

    fn send<'a>(&self, frames: impl IntoIterator<Item = &'a Vec<u8>>) {
        let port = RawPort::open(&self.network, "tap0").unwrap();
        for frame in frames {
            port.send(frame).unwrap();
        }
    }

    /// The state that is kept for a restart.
    fn kept(&self) -> Ledger {
        kept(&self.state())
    }
}

fn kept(state: &Path) -> Ledger {
    #[derive(Deserialize)]
    struct Kept {
        ledger: Ledger,
    }
    let files = fs::read_dir(state).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.extension().is_some_and(|is| is == "state"));
    let text = fs::read_to_string(file.unwrap()).unwrap();
    let kept: Kept = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    kept.ledger
}

/// Waits until this many packets are counted.
fn wait_for(running: &RunningBox, packets: u64) -> BTreeMap<String, u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counters = running.counters().unwrap();
        if counters["packets"] >= packets {
            return counters;
        }
        assert!(
            Instant::now() < deadline,
            "{packets} packets: {counters:?}\n{}",
            running.log()
        );
    }
}

/// A segment that opens a connection, and one that does not.
fn connection(source: &str, destination: &str) -> [Vec<u8>; 2] {
    let with = |flags: u8| {
        let frame = tcp(source, destination).tos(MARK).payload(20).build();
        flagged(frame, flags)
    };
    [with(0x02), with(0x10)]
}

/// Sets the flags of a frame that ends with a TCP header of 20 bytes.
fn flagged(mut frame: Vec<u8>, flags: u8) -> Vec<u8> {
    let tcp = frame.len() - 20;
    frame[tcp + 12] = 0x50;
    frame[tcp + 13] = flags;
    frame
}

/// The answer of an HTTP server on a loopback port of the monitor's machine.
fn get(stage: &Stage, port: u16, request: &str) -> String {
    let request = format!("{request} HTTP/1.0\r\n\r\n");
    stage.listener.run(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

/// Type and help text of every metric family that is served.
fn served(metrics: &str) -> BTreeMap<String, (String, String)> {
    let lines = |what: &'static str| {
        let lines = metrics
            .lines()
            .filter_map(move |line| line.strip_prefix(what));
        lines.map(|line| line.split_once(' ').unwrap())
    };
    let kinds: BTreeMap<_, _> = lines("# TYPE ").collect();
    let families = lines("# HELP ").map(|(name, help)| {
        let kind = kinds[name].to_owned();
        let meaning = help.trim_end_matches('.').to_owned();
        (name.to_owned(), (kind, meaning))
    });
    families.collect()
}

/// The same, as docs/monitor.md documents it.
fn documented() -> BTreeMap<String, (String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitor.md");
    let text = fs::read_to_string(page).unwrap();
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `exitmark_"));
    let rows = rows.map(|row| {
        let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
        let name = cells[0].trim_end_matches('`');
        let name = name.trim_end_matches("_total").trim_end_matches("_info");
        (
            format!("exitmark_{name}"),
            (cells[1].to_owned(), cells[3].to_owned()),
        )
    });
    rows.collect()
}

#[test]
fn counts_and_reports_only_marked_packets() {
    needs_root!();
    let stage = Stage::new();
    let running = stage
        .start("", "[metrics]\nlisten = \"127.0.0.1:9788\"\n")
        .unwrap();
    assert!(
        running
            .ready
            .starts_with("ready interface=mon0 queues=1 period="),
        "{}",
        running.ready
    );
    let [v4, v6] = [
        (format!("{HOST_V4}:40000"), "198.51.100.7:443"),
        (format!("[{HOST_V6}]:40000"), "[2001:db8:51::7]:443"),
    ];
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for (source, destination) in [&v4, &v6] {
        let [first, next] = connection(source, destination);
        frames.extend([first, next.clone(), next]);
    }
    let web = connection(&v4.0, "198.51.100.7:80");
    frames.extend(web);
    // None of these counts: unmarked, another mark, another source, to the host, not IP.
    let plain = |frame: Frame| flagged(frame.payload(20).build(), 0x02);
    let others = [
        plain(tcp(&v4.0, v4.1)),
        plain(tcp(&v6.0, v6.1)),
        plain(tcp(&v4.0, v4.1).tos(MARK ^ 0x04)),
        plain(tcp("192.0.2.11:40000", v4.1).tos(MARK)),
        plain(tcp(v4.1, &v4.0).tos(MARK)),
        udp(&v4.0, "198.51.100.7:53").payload(20).build(),
        vec![0xff; 60],
    ];
    stage.send(others.iter().chain(&frames).chain(&others));
    let counters = wait_for(&running, 8);
    assert_eq!(
        (counters["packets"], counters["flows"], counters["lost"]),
        (8, 3, 0),
        "{counters:?}"
    );
    // Five IPv4 packets of 40 bytes, three IPv6 packets of 60.
    assert_eq!(counters["bytes"], 5 * 40 + 3 * 60);

    let metrics = get(&stage, 9788, "GET /metrics");
    for line in [
        "exitmark_monitor_packets_total 8",
        "exitmark_monitor_flows_total 3",
        "exitmark_monitor_counted_bytes_total 380",
        "exitmark_monitor_lost_packets_total 0",
        "exitmark_monitor_tap_frames_total{fate=\"passed\"} 8",
        "exitmark_monitor_tap_frames_total{fate=\"unmarked\"} 8",
        "exitmark_monitor_tap_frames_total{fate=\"other_source\"} 4",
        "exitmark_monitor_tap_frames_total{fate=\"not_ip\"} 2",
        "exitmark_monitor_cells_percent 10",
        "exitmark_monitor_spilling 0",
        "exitmark_monitor_unpublished_periods 0",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
    assert_eq!(served(&metrics), documented());
    assert!(get(&stage, 9788, "POST /metrics").contains(" 405 "));
    assert!(get(&stage, 9788, "GET /").contains(" 404 "));

    let last = running.end().unwrap();
    assert!(last.status.success(), "{}", last.log);
    let cells: Vec<_> = stage.kept().cells;
    let of = |port: u16| -> Vec<Counts> {
        let cells = cells.iter().filter(|(cell, _)| cell.port == port);
        cells.map(|(_, counts)| *counts).collect()
    };
    let counts = |flows, bytes, packets| Counts {
        flows,
        bytes,
        packets,
    };
    assert_eq!(of(80), [counts(1, 80, 2)]);
    assert_eq!(of(443), [counts(1, 120, 3), counts(1, 180, 3)]);
    assert_eq!(cells.len(), 3);
    // A running period is not published.
    assert_eq!(fs::read_dir(stage.periods()).unwrap().count(), 0);
}

#[test]
fn a_refused_start_says_why_and_cleans_up() {
    needs_root!();
    let stage = Stage::new();
    stage
        .listener
        .ip("addr add 192.0.2.99/24 dev mon0")
        .unwrap();
    let words = |top: &str, tables: &str| match stage.start(top, tables) {
        Ok(_) => panic!("it runs"),
        Err(error) => error.to_string(),
    };
    let refused = words("", "");
    assert!(
        refused.contains("mon0") && refused.contains("192.0.2.99"),
        "{refused}"
    );
    stage.listener.ip("addr flush dev mon0").unwrap();
    for (top, tables, expected) in [
        (
            "user = \"nobody-of-that-name\"",
            "",
            "there is no such user",
        ),
        ("", "[places]\nsystems = \"missing.mmdb\"\n", "missing.mmdb"),
        (
            "",
            "[metrics]\nlisten = \"192.0.2.1:1\"\n",
            "metrics.listen",
        ),
        ("", "[noise]\nepsilon = 0\n", "noise.epsilon"),
        (
            "",
            "[publish]\nthreshold_flows = 1\n",
            "publish.threshold_flows",
        ),
    ] {
        let refused = words(top, tables);
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    let link = stage.listener.ip("-details link show mon0").unwrap();
    assert!(
        link.contains("promiscuity 0") && !link.contains("xdp"),
        "{link}"
    );
}

#[test]
fn drops_privileges_that_it_does_not_need() {
    needs_root!();
    for user in ["", "user = \"nobody\""] {
        let stage = Stage::new();
        let mut running = stage
            .start(user, "[metrics]\nlisten = \"127.0.0.1:9788\"\n")
            .unwrap();
        let tasks = format!("/proc/{}/task", running.pid());
        let threads = |tasks: &str| {
            let mut threads = Vec::new();
            for task in fs::read_dir(tasks).unwrap() {
                let task = task.unwrap().path();
                let name = fs::read_to_string(task.join("comm")).unwrap();
                let status = fs::read_to_string(task.join("status")).unwrap();
                let field = |key: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(key));
                    line.unwrap().trim().to_owned()
                };
                assert_eq!(field("Seccomp:"), "2", "{name}");
                assert_eq!(field("NoNewPrivs:"), "1", "{name}");
                if !user.is_empty() {
                    assert!(field("Uid:").starts_with("65534"), "{name}");
                }
                let kept = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
                threads.push((name.trim().to_owned(), kept & !(1 << 14)));
            }
            threads.sort();
            threads
        };
        let net_admin = 1 << 12;
        let expected = [
            ("exitmark-monito".to_owned(), net_admin),
            ("monitor-books".to_owned(), 0),
            ("monitor-metrics".to_owned(), 0),
        ];
        // A thread drops its capabilities and takes its name first, but only once it runs.
        let deadline = Instant::now() + PATIENCE;
        while threads(&tasks) != expected {
            assert!(Instant::now() < deadline, "{:?}", threads(&tasks));
        }
        let mem = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(["--inh-caps", "-all", "cat"])
            .arg(format!("/proc/{}/maps", running.pid()))
            .output()
            .unwrap();
        assert!(!mem.status.success());
        assert!(running.end().unwrap().status.success());
        let link = stage.listener.ip("-details link show mon0").unwrap();
        assert!(
            link.contains("promiscuity 0") && !link.contains("xdp"),
            "{link}"
        );
    }
}
