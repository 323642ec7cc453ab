//! The benches' result files. A missing file is listed in the report; an invalid one is an error.

use super::point::Rate;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The size limit of a file; every bench writes less.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) machines: Vec<(&'static str, Machine)>,
    pub(crate) rates: Vec<Rate>,
    pub(crate) growth: Vec<Growth>,
    pub(crate) latency: Vec<Latency>,
    pub(crate) tcp: Vec<Tcp>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) kernel: Vec<KernelDecision>,
    pub(crate) worker: Vec<WorkerPacket>,
    pub(crate) monitor: Vec<Counted>,
    pub(crate) unmeasured: Vec<Missing>,
    /// The names of missing files.
    pub(crate) missing: Vec<&'static str>,
    /// The text of each file by its name.
    pub(crate) texts: BTreeMap<&'static str, String>,
}

/// The benches that describe the machine when they run, and the files of their descriptions.
const MACHINES: [(&str, &str); 7] = [
    ("rates", "machine.json"),
    ("latency", "latency-machine.json"),
    ("growth", "growth-machine.json"),
    ("TCP", "tcp-machine.json"),
    ("kernel's decision", "kernel-machine.json"),
    ("worker", "worker-machine.json"),
    ("decision", "decision-machine.json"),
];

/// A machine as described by a bench; unknown fields are omitted.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) caches: Option<String>,
    pub(crate) memory: Option<String>,
    pub(crate) hypervisor: Option<String>,
    pub(crate) mitigations: Option<String>,
    pub(crate) governor: Option<String>,
    pub(crate) rustc: Option<String>,
    pub(crate) clang: Option<String>,
    pub(crate) nft: Option<String>,
    pub(crate) tc: Option<String>,
    pub(crate) testpmd: Option<String>,
    pub(crate) commit: Option<String>,
    pub(crate) date: String,
    pub(crate) busy: f64,
}

/// A row of `growth.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Growth {
    pub(crate) axis: String,
    pub(crate) value: u64,
    pub(crate) forwarder: String,
    pub(crate) frame_bytes: u32,
    pub(crate) family: String,
    pub(crate) mpps: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) loss: f64,
    pub(crate) rounds: Vec<f64>,
}

/// A row of `latency.json`. Values that no round determined are null.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Latency {
    pub(crate) forwarder: String,
    pub(crate) frame_bytes: u32,
    pub(crate) family: String,
    pub(crate) lossless_mpps: Option<f64>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    pub(crate) rounds: Vec<Option<f64>>,
    pub(crate) latency: Vec<Percentiles>,
    pub(crate) round_trip: Option<RoundTrip>,
    /// Of the smallest frames only.
    #[serde(default)]
    pub(crate) round_trips: Vec<FixedLoad>,
    /// The fraction of a core that the forwarder's processes take without frames.
    pub(crate) idle_core: Option<f64>,
    #[serde(default)]
    pub(crate) loss_curve: Vec<LossPoint>,
    pub(crate) burst_frames: Option<f64>,
    /// Whether the longest tried burst lost no frame.
    #[serde(default)]
    pub(crate) burst_is_bound: bool,
    /// Whether the generator's limit bounds the lossless rate.
    #[serde(default)]
    pub(crate) generator_bound: bool,
    pub(crate) overload: Option<LossPoint>,
    /// `None` if the overload lost no frame.
    pub(crate) recovery_us: Option<f64>,
}

/// Latency from sender to receiver at a fraction of the lossless rate.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) load: f64,
    pub(crate) offered_mpps: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p90_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p99_9_us: Option<f64>,
    pub(crate) p99_99_us: Option<f64>,
    pub(crate) max_us: Option<f64>,
    pub(crate) samples: u64,
    /// The number of clock reads per batch of the generator.
    pub(crate) batch: Option<f64>,
}

impl Percentiles {
    /// The percentiles from the median to the maximum.
    pub(crate) fn times(&self) -> [Option<f64>; 6] {
        [
            self.p50_us,
            self.p90_us,
            self.p99_us,
            self.p99_9_us,
            self.p99_99_us,
            self.max_us,
        ]
    }
}

/// Round trips of single frames.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RoundTrip {
    pub(crate) offered_mpps: Option<f64>,
    pub(crate) batch: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) samples: u64,
    pub(crate) rounds: Vec<Option<f64>>,
}

/// Round trips at a load that is the same for every forwarder.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FixedLoad {
    pub(crate) offered_mpps: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p99_99_us: Option<f64>,
    pub(crate) max_us: f64,
    pub(crate) samples: u64,
    /// The fraction of a core that the forwarder's processes took.
    pub(crate) core: f64,
}

/// The fraction of lost frames at an offered load.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct LossPoint {
    pub(crate) offered_mpps: f64,
    pub(crate) loss: f64,
}

/// A row of `tcp.json`: `direction` determines which of the three figures is present.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tcp {
    pub(crate) forwarder: String,
    pub(crate) direction: String,
    pub(crate) gbit_per_s: Option<f64>,
    pub(crate) retransmits: Option<u64>,
    pub(crate) connections_per_s: Option<f64>,
    pub(crate) round_trip_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) streams: u32,
    pub(crate) rounds: Vec<f64>,
}

/// A row of `decision.json`: one decision in user space.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Decision {
    pub(crate) kind: String,
    pub(crate) set: String,
    pub(crate) ns: f64,
    /// The ns more than a pass that moves the same frames without reading their headers.
    pub(crate) over_nothing: f64,
    pub(crate) rounds: Vec<f64>,
}

/// A row of `worker.json`: one packet in a worker over ports in memory, or in testpmd.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct WorkerPacket {
    pub(crate) kind: String,
    pub(crate) ns: f64,
    /// Cycles of the time stamp counter; `None` if testpmd was not there to state its frequency.
    pub(crate) cycles: Option<f64>,
    pub(crate) rounds: Vec<f64>,
}

/// A row of `kernel.json`: one decision of an XDP program.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct KernelDecision {
    pub(crate) kind: String,
    pub(crate) frame_bytes: u32,
    pub(crate) set: String,
    pub(crate) program: String,
    /// The ns more than a redirect that does nothing else.
    pub(crate) over_redirect: f64,
    pub(crate) rounds: Vec<f64>,
}

/// `monitor.json`.
#[derive(Debug, Deserialize)]
struct Monitor {
    machine: Machine,
    rows: Vec<Counted>,
}

/// A row of `monitor.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Counted {
    pub(crate) name: String,
    /// Absent if the row is about memory, or about a tap.
    pub(crate) mpps: Option<f64>,
    pub(crate) rounds: Vec<f64>,
}

/// A row of `missing.json`: a measurement that failed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Missing {
    pub(crate) bench: String,
    pub(crate) forwarder: String,
    pub(crate) reason: String,
}

impl Sources {
    pub(crate) fn read(directory: &Path) -> Result<Self, String> {
        let mut sources = Self::default();
        for (bench, name) in MACHINES {
            // Only the first description is required.
            let machine = sources.file(directory, name, name == MACHINES[0].1)?;
            let machine = machine.map(|machine| (bench, machine));
            sources.machines.extend(machine);
        }
        sources.rates = sources.rows(directory, "pps.json")?;
        sources.growth = sources.rows(directory, "growth.json")?;
        sources.latency = sources.rows(directory, "latency.json")?;
        sources.tcp = sources.rows(directory, "tcp.json")?;
        sources.decisions = sources.rows(directory, "decision.json")?;
        sources.kernel = sources.rows(directory, "kernel.json")?;
        sources.worker = sources.rows(directory, "worker.json")?;
        if let Some(monitor) = sources.file::<Monitor>(directory, "monitor.json", true)? {
            sources.machines.push(("monitor", monitor.machine));
            sources.monitor = monitor.rows;
        }
        let unmeasured = sources.file(directory, "missing.json", false)?;
        sources.unmeasured = unmeasured.unwrap_or_default();
        if sources.texts.is_empty() {
            return Err(format!(
                "no result was found in {}; measure first: `make bench`",
                directory.display()
            ));
        }
        sources.check()?;
        Ok(sources)
    }

    fn rows<T: DeserializeOwned>(
        &mut self,
        directory: &Path,
        name: &'static str,
    ) -> Result<Vec<T>, String> {
        Ok(self.file(directory, name, true)?.unwrap_or_default())
    }

    fn file<T: DeserializeOwned>(
        &mut self,
        directory: &Path,
        name: &'static str,
        wanted: bool,
    ) -> Result<Option<T>, String> {
        let path = directory.join(name);
        let broken = |what: String| {
            format!(
                "{} {what}; it is written by `make bench`: remove it or measure again",
                path.display()
            )
        };
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if wanted {
                    self.missing.push(name);
                }
                return Ok(None);
            }
            Err(error) => return Err(broken(format!("cannot be read: {error}"))),
            Ok(file) if file.len() > MOST_BYTES => {
                return Err(broken(format!(
                    "has {} bytes, and no bench writes more than {MOST_BYTES}",
                    file.len()
                )));
            }
            Ok(_) => (),
        }
        let text = fs::read_to_string(&path)
            .map_err(|error| broken(format!("cannot be read: {error}")))?;
        let content = serde_json::from_str(&text)
            .map_err(|error| broken(format!("is not what the bench writes: {error}")))?;
        self.texts.insert(name, text);
        Ok(Some(content))
    }

    /// The benches that are measured in rounds, and the smallest number of rounds of their rows.
    pub(crate) fn fewest_rounds(&self) -> [(&'static str, usize); 8] {
        let rates = self.rates.iter().map(|row| row.rounds.len());
        let latency = self.latency.iter().map(|row| row.rounds.len());
        let growth = self.growth.iter().map(|row| row.rounds.len());
        let tcp = self.tcp.iter().map(|row| row.rounds.len());
        let kernel = self.kernel.iter().map(|row| row.rounds.len());
        let worker = self.worker.iter().map(|row| row.rounds.len());
        let decision = self.decisions.iter().map(|row| row.rounds.len());
        let monitor = self.monitor.iter().map(|row| row.rounds.len());
        [
            ("pps.json", rates.min()),
            ("latency.json", latency.min()),
            ("growth.json", growth.min()),
            ("tcp.json", tcp.min()),
            ("kernel.json", kernel.min()),
            ("worker.json", worker.min()),
            ("decision.json", decision.min()),
            ("monitor.json", monitor.min()),
        ]
        .map(|(file, fewest)| (file, fewest.unwrap_or(0)))
    }

    /// Whether the generators use all cores, so that forwarders' processes share them.
    pub(crate) fn cores_are_shared(&self, queues: u64) -> bool {
        let mut machines = self.machines.iter();
        machines.any(|(_, one)| u64::try_from(one.cores).is_ok_and(|cores| queues >= cores))
    }

    /// Fails if a row has no rounds, or values that are negative or not finite.
    fn check(&self) -> Result<(), String> {
        let mut rows = Vec::new();
        for row in &self.rates {
            rows.push(("pps.json", &row.forwarder, &row.rounds));
        }
        for row in &self.growth {
            rows.push(("growth.json", &row.forwarder, &row.rounds));
        }
        for row in &self.tcp {
            rows.push(("tcp.json", &row.forwarder, &row.rounds));
        }
        for row in &self.kernel {
            rows.push(("kernel.json", &row.program, &row.rounds));
        }
        for row in &self.worker {
            rows.push(("worker.json", &row.kind, &row.rounds));
        }
        for row in &self.decisions {
            rows.push(("decision.json", &row.kind, &row.rounds));
        }
        for row in &self.monitor {
            rows.push(("monitor.json", &row.name, &row.rounds));
        }
        for (file, forwarder, rounds) in rows {
            let is_bad = |value: &f64| !value.is_finite() || *value < 0.0;
            if rounds.is_empty() || rounds.iter().any(is_bad) {
                return Err(format!(
                    "{file}: a row of {forwarder} has rounds {rounds:?}; every row has at least one, and none is below 0"
                ));
            }
        }
        Ok(())
    }
}
