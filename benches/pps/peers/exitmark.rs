//! `exitmark run` itself, as it is shipped, with a process and a configuration file of its own.

use super::{Forwarder, Job, Running};
use crate::site::{
    BOX_HOST, BOX_INCOMING, BOX_UPLINK, HOST_ADDRESS, INCOMING_MAC, Site, UPLINK_MAC,
    forwarder_cpus,
};
use crate::traffic::{Traffic, relays};
use exitmark::lab::{Child, LabError, contained};
use exitmark::packet::MacAddr;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct AfXdp;

impl Forwarder for AfXdp {
    fn name(&self) -> &'static str {
        "exitmark-af_xdp"
    }

    fn job(&self) -> Job {
        Job::MarkAndSteer
    }

    fn next_hop(&self) -> MacAddr {
        UPLINK_MAC
    }

    fn start(&self, site: &Site, _: &Traffic) -> Result<Box<dyn Running>, LabError> {
        let failed = |error| LabError(format!("cannot write exitmark's configuration: {error}"));
        let directory = tempfile::tempdir().map_err(failed)?;
        let path = directory.path().join("exitmark.toml");
        std::fs::write(&path, configuration("af_xdp")).map_err(failed)?;
        let words = File::create(directory.path().join("stderr")).map_err(failed)?;
        let mut command = contained("taskset");
        command
            .args(["-c", &forwarder_cpus(), env!("CARGO_BIN_EXE_exitmark")])
            .args(["run", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(words);
        let child = site.middle.start(command)?;
        let mut process = Process { child, directory };
        process.wait_until_ready()?;
        Ok(Box::new(process))
    }
}

fn configuration(engine: &str) -> String {
    let relays: Vec<_> = relays()
        .map(|relay| format!("    \"{relay}\",\n"))
        .collect();
    format!(
        "engine = \"{engine}\"

[ports]
host = \"{BOX_HOST}\"
uplink = \"{BOX_UPLINK}\"
incoming = \"{BOX_INCOMING}\"

[host]
addresses = [\"{HOST_ADDRESS}\"]

[mark]
dscp = \"af11\"

[steer]
next_hop = \"{INCOMING_MAC}\"

[relays]
extra = [
{}]
",
        relays.concat()
    )
}

struct Process {
    child: Child,
    directory: TempDir,
}

impl Process {
    /// exitmark prints a line that begins with `ready` when its workers run.
    fn wait_until_ready(&mut self) -> Result<(), LabError> {
        let (seen, ready) = mpsc::channel();
        let stdout = self.child.process().stdout.take();
        thread::spawn(move || {
            // Read to the end: a process whose pipe is closed would die of its next word.
            for line in BufReader::new(stdout?).lines().map_while(Result::ok) {
                if line.starts_with("ready") {
                    let _ = seen.send(());
                }
            }
            Some(())
        });
        ready
            .recv_timeout(PATIENCE)
            .map_err(|_| self.complaint("`exitmark run` did not become ready"))
    }

    fn complaint(&self, what: &str) -> LabError {
        let path = self.directory.path().join("stderr");
        let words = std::fs::read_to_string(path).unwrap_or_default();
        match words.trim() {
            "" => LabError(format!("{what} and said nothing")),
            words => LabError(format!("{what}; it said: {words}")),
        }
    }
}

impl Running for Process {
    fn stop(mut self: Box<Self>) -> Result<(), LabError> {
        let already_gone = self.child.process().try_wait();
        if !matches!(already_gone, Ok(None)) {
            return Err(self.complaint("`exitmark run` ended by itself"));
        }
        self.child.signal(Signal::SIGTERM)?;
        let status = self.child.wait(PATIENCE)?;
        if status.success() {
            Ok(())
        } else {
            Err(self.complaint(&format!("`exitmark run` stopped with {status}")))
        }
    }
}
