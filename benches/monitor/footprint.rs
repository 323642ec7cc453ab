//! Memory of the whole program: at a tap, with both databases, a full table of cells restored from
//! a state, continuous traffic, and a save.

use crate::systems::{self, Databases};
use crate::traffic::{Kind, Traffic, clearnet};
use crate::{Row, Sample, Unit};
use exitmark_lab::tap::{TAP, TapSite, state_file};
use exitmark_lab::{LabError, RunningBox};
use exitmark_monitor::ledger::Ledger;
use exitmark_monitor::tally::DEFAULT_CELLS;
use serde::Deserialize;
use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");
const FIELDS: [(&str, &str); 2] = [("memory-now", "VmRSS:"), ("memory-at-most", "VmHWM:")];
/// Each packet begins a connection to another port and place: enough to fill the table, with thousands to spare.
const PACKETS: u32 = 200_000;
/// The program saves once a minute.
const TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) fn rows(databases: &Databases) -> impl Iterator<Item = Row> {
    // Takes a minute, and gives the same result every time.
    let measured = Rc::new(OnceCell::new());
    FIELDS.into_iter().map(move |(name, field)| {
        let (databases, measured) = (databases.clone(), Rc::clone(&measured));
        Row {
            name,
            measure: Box::new(move |_| {
                let status = match measured.get() {
                    Some(status) => status,
                    None => {
                        let status = status(&databases)?;
                        measured.get_or_init(|| status)
                    }
                };
                mebibytes(status, field)
            }),
        }
    })
}

fn mebibytes(status: &str, field: &str) -> Result<Sample, LabError> {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    let kib = kib.ok_or_else(|| LabError(format!("the process reports no {field}")))?;
    Ok(Sample {
        value: kib / 1024.0,
        unit: Unit::Mebibytes,
    })
}

/// The kernel's status of the program in that state.
fn status(databases: &Databases) -> Result<String, LabError> {
    let stage = Stage::new()?;
    let kind = Kind {
        v6: 30,
        worst: true,
        syn: 100,
    };
    let mut traffic = Traffic::new(databases, kind);
    let first = stage.start()?;
    stage.send(&mut traffic, &first)?;
    first.end()?;
    let state = state_file(&stage.directory.path().join("state"))?;
    let cells = cells(&state);
    if cells != DEFAULT_CELLS {
        return Err(LabError(format!("{cells} cells are no full table")));
    }
    let mut running = stage.start()?;
    stage.send(&mut traffic, &running)?;
    let saved = |path: &Path| fs::metadata(path).map(|file| file.ino()).ok();
    let before = saved(&state);
    let deadline = Instant::now() + TIMEOUT;
    while saved(&state).is_none_or(|now| Some(now) == before) {
        if Instant::now() > deadline {
            return Err(LabError(format!("nothing was saved: {}", running.log())));
        }
        thread::sleep(Duration::from_millis(100));
    }
    let status = format!("/proc/{}/status", running.pid());
    let status = fs::read_to_string(status).map_err(|error| LabError(error.to_string()))?;
    running.end()?;
    Ok(status)
}

fn cells(state: &Path) -> usize {
    #[derive(Deserialize)]
    struct Kept {
        ledger: Ledger,
    }
    let text = fs::read_to_string(state).unwrap();
    let kept: Kept = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    kept.ledger.cells.len()
}

/// The monitor's machine, and the network at its tap.
struct Stage {
    site: TapSite,
    directory: TempDir,
}

impl Stage {
    fn new() -> Result<Self, LabError> {
        let stage = Self {
            site: TapSite::build(1, 1500)?,
            directory: TempDir::new().unwrap(),
        };
        let clearnet = clearnet().map(|address| address.to_string());
        let directory = stage.directory.path();
        fs::create_dir(directory.join("periods")).unwrap();
        fs::write(directory.join("systems.csv"), systems::csv()).unwrap();
        let configuration = format!(
            "interface = \"{TAP}\"\naddresses = {clearnet:?}\n\
             [places]\nsystems = \"systems.csv\"\n\
             [period]\nlength = \"30days\"\ndirectory = \"periods\"\nstate = \"state\"\n"
        );
        fs::write(directory.join("monitor.toml"), configuration).unwrap();
        Ok(stage)
    }

    fn start(&self) -> Result<RunningBox, LabError> {
        self.site
            .start(MONITOR, &self.directory.path().join("monitor.toml"))
    }

    /// Sends packets, slowly enough to lose none, and waits until they are counted.
    fn send(&self, traffic: &mut Traffic<'_>, running: &RunningBox) -> Result<(), LabError> {
        let before = running.counters()?["packets"];
        let port = self.site.port()?;
        for _ in 0..PACKETS {
            let (mut frame, whole) = traffic.next();
            frame.resize(whole, 0);
            port.send(&frame)?;
        }
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let counters = running.counters()?;
            if counters["packets"] + counters["lost"] >= before + u64::from(PACKETS) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LabError(format!("not all were counted: {counters:?}")));
            }
        }
    }
}
