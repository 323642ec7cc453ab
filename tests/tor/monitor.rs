//! The monitor at a tap on every uplink, and its expected counts.

use crate::exit::Binding;
use crate::ground::Ground;
use crate::web::Web;
use exitmark_lab::RunningBox;
use exitmark_lab::tap::{start_monitor, state_file};
use exitmark_monitor::ledger::Ledger;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const MONITOR: &str = env!("CARGO_BIN_EXE_exitmark-monitor");

/// A running monitor, started before any frame was marked.
pub(crate) struct Monitor {
    running: RunningBox,
    directory: TempDir,
}

impl Monitor {
    pub(crate) fn start(ground: &Ground) -> Self {
        let directory = TempDir::new().unwrap();
        let clearnet = Binding::ALL
            .into_iter()
            .cycle()
            .zip(&ground.lots)
            .flat_map(|(binding, lot)| binding.clearnet(lot).both())
            .map(|address| address.to_string());
        // A period that does not end during the test.
        let configuration = format!(
            "interface = \"mon0\"\naddresses = {:?}\n[period]\nlength = \"30days\"\n\
             directory = \"periods\"\nstate = \"state\"\n[metrics]\nlisten = \"off\"\n",
            clearnet.collect::<Vec<_>>()
        );
        let file = directory.path().join("monitor.toml");
        fs::write(&file, configuration).unwrap();
        fs::create_dir(directory.path().join("periods")).unwrap();
        Self {
            running: start_monitor(&ground.listener, MONITOR, &file).unwrap(),
            directory,
        }
    }

    /// Ends the monitor, and compares its stored state with the connections of the web servers, and
    /// with the number of all marked connections. It counts each SYN, also one that was sent again to
    /// one of the ports `repeated`.
    pub(crate) fn check(
        self,
        web: &Web,
        marked: u64,
        repeated: &[u16],
        complain: &mut impl FnMut(String),
    ) {
        let counters = self.running.counters().unwrap();
        let last = self.running.end().unwrap();
        if !last.status.success() || counters["lost"] != 0 {
            complain(format!("ended with {}: {counters:?}", last.status));
        }
        let begun = marked + u64::try_from(repeated.len()).unwrap();
        if counters["flows"] != begun {
            complain(format!("{begun} SYNs were marked: {counters:?}"));
        }
        let ports = ports(&self.directory.path().join("state"));
        for (port, accepted) in web.accepted() {
            if accepted == 0 {
                complain(format!("no connection to port {port}"));
            }
        }
        let again = |port: u16| repeated.iter().filter(|one| **one == port).count();
        let accepted = web.accepted().map(|(port, accepted)| {
            let again = u64::try_from(again(port)).unwrap();
            (port, accepted + again)
        });
        println!("flows by port, as accepted and as counted: {accepted:?} {ports:?}");
        if ports != accepted {
            complain(format!("accepted {accepted:?}, counted {ports:?}"));
        }
    }
}

/// The flows by port in the stored state: a line of JSON in a single file.
fn ports(state: &Path) -> Vec<(u16, u64)> {
    #[derive(Deserialize)]
    struct Kept {
        ledger: Ledger,
    }
    let text = fs::read_to_string(state_file(state).unwrap()).unwrap();
    let kept: Kept = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let mut ports = BTreeMap::new();
    for (cell, counts) in kept.ledger.cells {
        *ports.entry(cell.port).or_default() += counts.flows;
    }
    // A probe to a relay that a box did not know yet was marked; it opens no connection.
    ports.into_iter().filter(|(_, flows)| *flows > 0).collect()
}
