//! A description of the machine, and its load by other processes.

use super::facts;
use serde::Serialize;
use std::fs;
use std::thread;
use std::time::Duration;

/// The fraction of all cores' time, used by other processes, above which rates are low and uneven,
/// more so for forwarders that need a core of their own than for those in interrupts.
const QUIET: f64 = 0.05;

/// The content of `machine.json` and similar files; unknown values are null.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    caches: Option<String>,
    memory: Option<String>,
    hypervisor: Option<String>,
    mitigations: Option<String>,
    governor: Option<String>,
    rustc: Option<String>,
    clang: Option<String>,
    nft: Option<String>,
    tc: Option<String>,
    testpmd: Option<String>,
    commit: Option<String>,
    date: String,
    /// The largest fraction of all cores' time that other processes used before a round.
    busy: f64,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let or_unknown = |fact: Option<String>| fact.unwrap_or_else(|| "unknown".to_owned());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        Self {
            kernel: or_unknown(kernel.map(|release| release.trim().to_owned())),
            cpu: or_unknown(facts::processor("model name")),
            cores: thread::available_parallelism().map_or(0, usize::from),
            caches: facts::caches(),
            memory: facts::memory(),
            hypervisor: facts::hypervisor(),
            mitigations: facts::mitigations(),
            governor: facts::governor(),
            rustc: facts::version("rustc", "--version"),
            clang: facts::version("clang", "--version"),
            nft: facts::version("nft", "--version"),
            tc: facts::version("tc", "-V"),
            testpmd: facts::testpmd(),
            commit: facts::commit(),
            date: or_unknown(facts::date()),
            busy: 0.0,
        }
    }

    /// Measures the machine's load while the bench is idle; warns if it is busy.
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

/// The busy and the total time of all cores, in ticks since boot.
fn cpu_time() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers = stat.split_whitespace().skip(1).take(8);
    let ticks: Vec<f64> = numbers.filter_map(|number| number.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    // user nice system idle iowait irq softirq steal
    let unused: f64 = ticks.iter().skip(3).take(2).sum();
    (all - unused, all)
}
