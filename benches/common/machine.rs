//! The machine that the numbers are from, and how busy it was with something else.

use serde::Serialize;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// Above this part of all cores' time, rates get low and uneven, and forwarders that need a
/// core of their own suffer more than those that live in interrupts.
const QUIET: f64 = 0.05;

/// What `machine.json` says.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    date: String,
    /// The part of all cores' time that others used, at worst, before a round.
    busy: f64,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
            .map_or("unknown", |(_, model)| model.trim());
        let date = Command::new("date").args(["-u", "+%FT%TZ"]).output();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.to_owned(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            date: date.map_or_else(
                |_| "unknown".to_owned(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            ),
            busy: 0.0,
        }
    }

    /// Looks, while nothing of the bench runs, how busy the machine is; warns when it is.
    pub(crate) fn listen(&mut self) {
        let before = cpu_time();
        thread::sleep(Duration::from_millis(300));
        let now = cpu_time();
        let part = |(used, all): (f64, f64)| if all > 0.0 { used / all } else { 0.0 };
        let busy = part((now.0 - before.0, now.1 - before.1));
        self.busy = self.busy.max((busy * 100.0).round() / 100.0);
        if busy > QUIET {
            eprintln!(
                "  something else uses {:.0} % of this machine: compare only what ran together",
                busy * 100.0
            );
        }
    }
}

/// The time that all cores together were used, and all of it, in ticks since boot.
fn cpu_time() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|number| number.parse().ok())
        .collect();
    let all: f64 = ticks.iter().sum();
    // user nice system idle iowait irq softirq steal
    let unused: f64 = ticks.iter().skip(3).take(2).sum();
    (all - unused, all)
}
