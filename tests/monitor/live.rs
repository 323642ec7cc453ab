//! Tier: root. The program at a tap: what it counts and reports, that a restart continues, the
//! privileges that it drops, and that no destination is left anywhere.

pub(crate) mod private;
mod restart;

use super::published::counts;
use crate::says;
use exitmark_lab::frames::{Frame, tcp, udp};
use exitmark_lab::process::{as_nobody, dumping_in, set_mode, threads_of};
use exitmark_lab::tap::{TAP, TapSite, state_file};
use exitmark_lab::{
    LabError, RawPort, RunningBox, VethEnd, eventually, needs_root, veth, wait_until,
};
use exitmark_monitor::cell::Counts;
use exitmark_monitor::ledger::Ledger;
use exitmark_policy::packet::Tcp;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");
const MARK: u8 = 0x28;
const HOST_V4: &str = "192.0.2.10";
const HOST_V6: &str = "2001:db8:1::10";

/// A table that serves metrics at the port of [`Stage::get`].
const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:9788\"\n";

/// The monitor at its tap, and its files.
struct Stage {
    site: TapSite,
    directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            site: TapSite::build(1, 1500).unwrap(),
            directory: TempDir::new().unwrap(),
        };
        fs::create_dir(stage.periods()).unwrap();
        // The user that the monitor changes to must be able to enter.
        for path in [stage.directory.path(), &stage.periods()] {
            set_mode(path, 0o777).unwrap();
        }
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
        let interface = match tables.contains("interfaces = ") {
            true => String::new(),
            false => format!("interface = \"{TAP}\"\n"),
        };
        let configuration = format!(
            "{interface}addresses = [\"{HOST_V4}\", \"{HOST_V6}\"]\n{top}\n\
             [period]\nlength = \"30days\"\ndirectory = \"periods\"\nstate = \"state\"\n{tables}"
        );
        let file = self.directory.path().join("monitor.toml");
        fs::write(&file, configuration).unwrap();
        let mut command = dumping_in(self.directory.path(), MONITOR);
        command.args(["capture", "--config"]).arg(&file);
        command.env("RUST_LOG", "trace");
        RunningBox::start_by(&self.site.monitor, command)
    }

    fn send<'a>(&self, frames: impl IntoIterator<Item = &'a Vec<u8>>) {
        let port = self.site.port().unwrap();
        for frame in frames {
            port.send(frame).unwrap();
        }
    }

    /// The state that is kept for a restart.
    fn kept(&self) -> Ledger {
        #[derive(Deserialize)]
        struct Kept {
            ledger: Ledger,
        }
        let text = fs::read_to_string(state_file(&self.state()).unwrap()).unwrap();
        let kept: Kept = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        kept.ledger
    }

    fn get(&self, request: &str) -> String {
        self.site.monitor.http(9788, request).unwrap()
    }

    /// Checks that the tap's NIC is as it was.
    #[track_caller]
    fn is_restored(&self) {
        let link = self.site.link().unwrap();
        says(&link, "promiscuity 0");
        assert!(!link.contains("xdp"), "{link}");
    }
}

fn wait_for(running: &RunningBox, packets: u64) -> BTreeMap<String, u64> {
    eventually("packets", || {
        let counters = running.counters().unwrap();
        match counters["packets"] >= packets {
            true => Ok(counters),
            false => Err(format!("{packets}: {counters:?}\n{}", running.log())),
        }
    })
}

/// A segment that opens a connection, and one that does not.
fn connection(source: &str, destination: &str) -> [Vec<u8>; 2] {
    [Tcp::SYN, Tcp::ACK].map(|control| {
        let frame = tcp(source, destination).tos(MARK).payload(20);
        frame.control(control).build()
    })
}

/// Type and help text of every metric family that is served.
fn served(metrics: &str) -> BTreeMap<String, (String, String)> {
    let lines = |what: &'static str| {
        let lines = metrics.lines();
        let lines = lines.filter_map(move |line| line.strip_prefix(what));
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
        let described = (cells[1].to_owned(), cells[3].to_owned());
        (format!("exitmark_{name}"), described)
    });
    rows.collect()
}

#[test]
fn counts_and_reports_only_marked_packets() {
    needs_root!();
    let stage = Stage::new();
    let running = stage.start("", METRICS).unwrap();
    let ready = &running.ready;
    let expected = "ready interface=tap0 queues=1 period=";
    assert!(ready.starts_with(expected), "{ready}");
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
    let plain = |frame: Frame| frame.payload(20).control(Tcp::SYN).build();
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
    // Five IPv4 packets of 40 bytes, three IPv6 packets of 60.
    let expected = [8, 3, 0, 5 * 40 + 3 * 60];
    let names = ["packets", "flows", "lost", "bytes"];
    assert_eq!(names.map(|name| counters[name]), expected);

    let metrics = stage.get("GET /metrics");
    for line in [
        "exitmark_monitor_packets_total 8",
        "exitmark_monitor_flows_total 3",
        "exitmark_monitor_counted_bytes_total 380",
        "exitmark_monitor_down_packets_total 0",
        "exitmark_monitor_down_bytes_total 0",
        "exitmark_monitor_lost_packets_total{interface=\"tap0\"} 0",
        "exitmark_monitor_tap_frames_total{interface=\"tap0\",fate=\"passed\"} 8",
        "exitmark_monitor_tap_frames_total{interface=\"tap0\",fate=\"unmarked\"} 8",
        "exitmark_monitor_tap_frames_total{interface=\"tap0\",fate=\"other_source\"} 2",
        "exitmark_monitor_tap_frames_total{interface=\"tap0\",fate=\"inbound\"} 2",
        "exitmark_monitor_tap_frames_total{interface=\"tap0\",fate=\"not_ip\"} 2",
        "exitmark_monitor_cells_percent 10",
        "exitmark_monitor_spilling 0",
        "exitmark_monitor_unpublished_periods 0",
    ] {
        let is_there = metrics.lines().any(|found| found == line);
        assert!(is_there, "{line}\n{metrics}");
    }
    assert_eq!(served(&metrics), documented());
    assert!(stage.get("POST /metrics").contains(" 405 "));
    assert!(stage.get("GET /").contains(" 404 "));

    let last = running.end().unwrap();
    assert!(last.status.success(), "{}", last.log);
    let notices = last.log.matches("set `tap.directions = \"both\"`").count();
    assert_eq!(notices, 1, "{}", last.log);
    let cells: Vec<_> = stage.kept().cells;
    let of = |port: u16| -> Vec<Counts> {
        let cells = cells.iter().filter(|(cell, _)| cell.port == port);
        cells.map(|(_, counts)| *counts).collect()
    };
    assert_eq!(of(80), [counts(1, 80, 2)]);
    assert_eq!(of(443), [counts(1, 120, 3), counts(1, 180, 3)]);
    assert_eq!(cells.len(), 3);
    // A running period is not published.
    assert_eq!(fs::read_dir(stage.periods()).unwrap().count(), 0);
}

/// One tap shows what leaves the host, the other what comes to it.
#[test]
fn counts_both_directions_at_two_taps_in_one_period() {
    needs_root!();
    let stage = Stage::new();
    let end = |netns, name, mac| VethEnd::new(netns, name, mac);
    veth(
        &end(&stage.site.monitor, "tap1", "02:00:00:00:09:11"),
        &end(&stage.site.network, "span1", "02:00:00:00:09:12"),
        1500,
    )
    .unwrap();
    let tables = "[tap]\ninterfaces = [\"tap0\", \"tap1\"]\ndirections = \"both\"\n";
    let running = stage.start("", &format!("{tables}{METRICS}")).unwrap();
    let ready = &running.ready;
    assert!(
        ready.starts_with("ready interface=tap0,tap1 queues=2 "),
        "{ready}"
    );
    let (host, web) = (format!("{HOST_V4}:40000"), "198.51.100.7:443");
    let [first, next] = connection(&host, web);
    stage.send([&first, &next]);
    wait_for(&running, 2);
    // Cut behind its transport header, as at the tap port of exitmark.
    let down = tcp(web, &host).tos(MARK).payload(1420).build()[..54].to_vec();
    let port = RawPort::open(&stage.site.network, "span1").unwrap();
    for _ in 0..3 {
        port.send(&down).unwrap();
    }
    let counters = eventually("packets down", || {
        let counters = running.counters().unwrap();
        match counters["down_packets"] {
            3 => Ok(counters),
            _ => Err(format!("{counters:?}\n{}", running.log())),
        }
    });
    let names = ["packets", "bytes", "flows", "lost", "down_bytes"];
    assert_eq!(names.map(|name| counters[name]), [2, 80, 1, 0, 3 * 1440]);
    let metrics = stage.get("GET /metrics");
    for line in [
        "exitmark_monitor_packets_total 2",
        "exitmark_monitor_down_packets_total 3",
        "exitmark_monitor_down_bytes_total 4320",
        "exitmark_monitor_tap_frames_total{interface=\"tap0\",fate=\"passed\"} 2",
        "exitmark_monitor_tap_frames_total{interface=\"tap1\",fate=\"passed\"} 3",
        "exitmark_monitor_lost_packets_total{interface=\"tap1\"} 0",
    ] {
        let is_there = metrics.lines().any(|found| found == line);
        assert!(is_there, "{line}\n{metrics}");
    }
    let last = running.end().unwrap();
    assert!(last.status.success(), "{}", last.log);
    assert!(!last.log.contains("tap.directions"), "{}", last.log);
    let counted: Vec<_> = stage
        .kept()
        .cells
        .iter()
        .map(|(_, counts)| *counts)
        .collect();
    assert_eq!(counted, [[1, 80, 2, 4320, 3].into()]);
    stage.is_restored();
}

#[test]
fn a_refused_start_says_why_and_cleans_up() {
    needs_root!();
    let stage = Stage::new();
    let monitor = &stage.site.monitor;
    monitor.ip("addr add 192.0.2.99/24 dev tap0").unwrap();
    let words = |top: &str, tables: &str| match stage.start(top, tables) {
        Ok(_) => panic!("it runs"),
        Err(error) => error.to_string(),
    };
    let refused = words("", "");
    says(&refused, "tap0");
    says(&refused, "192.0.2.99");
    monitor.ip("addr flush dev tap0").unwrap();
    #[rustfmt::skip]
    let table = [
        ("user = \"nobody-of-that-name\"", "", "there is no such user"),
        ("", "[places]\nsystems = \"missing.mmdb\"\n", "missing.mmdb"),
        ("", "[metrics]\nlisten = \"192.0.2.1:1\"\n", "metrics.listen"),
        ("", "[noise]\nepsilon = 0\n", "noise.epsilon"),
        ("", "[publish]\nthreshold_flows = 1\n", "publish.threshold_flows"),
    ];
    for (top, tables, expected) in table {
        says(&words(top, tables), expected);
    }
    stage.is_restored();
}

#[test]
fn drops_privileges_that_it_does_not_need() {
    needs_root!();
    for user in ["", "user = \"nobody\""] {
        let stage = Stage::new();
        let mut running = stage.start(user, METRICS).unwrap();
        let pid = running.pid();
        let threads = || {
            let mut threads = Vec::new();
            for status in threads_of(pid).unwrap() {
                let name = status["Name"].clone();
                let confined = (&*status["Seccomp"], &*status["NoNewPrivs"]);
                assert_eq!(confined, ("2", "1"), "{name}");
                if !user.is_empty() {
                    assert!(status["Uid"].starts_with("65534"), "{name}");
                }
                let kept = u64::from_str_radix(&status["CapEff"], 16).unwrap();
                threads.push((name, kept & !(1 << 14)));
            }
            threads.sort();
            threads
        };
        let net_admin = 1 << 12;
        let expected = [
            ("exitmark-monito".to_owned(), net_admin),
            ("monitor-metrics".to_owned(), 0),
            ("monitor-totals".to_owned(), 0),
        ];
        // A thread drops its capabilities and takes its name first, but only once it runs.
        let dropped = || threads() == expected;
        wait_until("each has dropped them", dropped, || {
            format!("{:?}", threads())
        });
        let maps = format!("/proc/{pid}/maps");
        let read = as_nobody("cat").arg(maps).output().unwrap();
        assert!(!read.status.success());
        assert!(running.end().unwrap().status.success());
        stage.is_restored();
    }
}
