//! DPDK's `testpmd`, which forwards frames between ports without parsing them, over DPDK's two
//! drivers for NICs that the kernel keeps. The upper bound of that library, as `wire` is that of
//! the kernel.

use super::{Forwarder, Job, Running, Started};
use crate::load::Load;
use crate::site::{BOX_HOST, BOX_UPLINK, Site, forwarder_cpus};
use crate::traffic::Traffic;
use exitmark_lab::{Child, LabError, contained};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

const PROGRAM: &str = "dpdk-testpmd";
/// The last text of its output once it forwards.
const READY: &str = "Press enter to exit";
const PATIENCE: Duration = Duration::from_secs(20);
/// The number of output lines in an error.
const LAST_LINES: usize = 20;
/// Buffers per port: twice the entries of all rings of a port.
const BUFFERS: usize = 8192;

/// `testpmd`, by the driver of its ports.
pub(super) enum Testpmd {
    AfXdp,
    AfPacket,
}

impl Forwarder for Testpmd {
    fn name(&self) -> &'static str {
        match self {
            Self::AfXdp => "testpmd-af_xdp",
            Self::AfPacket => "testpmd-af_packet",
        }
    }

    fn job(&self) -> Job {
        Job::Wire
    }

    fn missing(&self) -> Option<String> {
        let found = Command::new(PROGRAM).arg("--help").output();
        found
            .err()
            .map(|error| format!("the command {PROGRAM} (Debian package dpdk-dev): {error}"))
    }

    fn start(&self, site: &Site, traffic: &Traffic, load: &Load) -> Started {
        if let Self::AfPacket = self {
            // The AF_XDP driver attaches a program of its own.
            traffic.attach_pass(site)?;
        }
        let failed = |error| LabError(format!("cannot keep what {PROGRAM} says: {error}"));
        let log = NamedTempFile::new().map_err(failed)?;
        let words = log.reopen().map_err(failed)?;
        // Without stdbuf, output to a file is fully buffered.
        let mut command = contained("stdbuf");
        command
            .args(["-oL", PROGRAM])
            .args(self.arguments(load))
            // Attach its programs directly, without libxdp's dispatcher.
            .env("LIBXDP_SKIP_DISPATCHER", "1")
            .stdin(Stdio::piped())
            .stdout(words.try_clone().map_err(failed)?)
            .stderr(words);
        let mut process = Process {
            child: site.middle.start(command)?,
            log,
        };
        process.wait_until_ready()?;
        Ok(Box::new(process))
    }
}

impl Testpmd {
    /// The command line: a thread per queue, on the cores that the generators leave, and a main
    /// thread. No huge pages, no PCI, no files: it leaves the machine unchanged.
    fn arguments(&self, load: &Load) -> Vec<String> {
        let (queues, cpus) = (load.queues, forwarder_cpus(load.queues));
        let devices = self.devices(queues);
        let mut arguments: Vec<_> = ["--no-huge", "--no-shconf", "--no-pci", "--no-telemetry"]
            .into_iter()
            .map(str::to_owned)
            .collect();
        arguments.push(format!(
            "--lcores=(0-{queues})@({}-{})",
            cpus.start,
            cpus.end - 1
        ));
        let buffers = BUFFERS * devices.len();
        // Megabytes; a buffer takes a page, because it must not cross a page boundary.
        arguments.extend(["-m".to_owned(), (buffers / 128).to_string()]);
        for device in devices {
            arguments.extend(["--vdev".to_owned(), device]);
        }
        arguments.push("--".to_owned());
        arguments.push("--forward-mode=io".to_owned());
        arguments.push("--auto-start".to_owned());
        arguments.push("--no-mlockall".to_owned());
        arguments.push(format!("--total-num-mbufs={buffers}"));
        arguments.push(format!("--nb-cores={queues}"));
        // exitmark's batch size and ring size.
        for option in ["--burst=256", "--rxd=2048", "--txd=2048"] {
            arguments.push(option.to_owned());
        }
        if let Self::AfPacket = self {
            arguments.push(format!("--rxq={queues}"));
            arguments.push(format!("--txq={queues}"));
        }
        arguments
    }

    /// Its ports; frames go between the first and the second, the third and the fourth.
    fn devices(&self, queues: u32) -> Vec<String> {
        let ports = [BOX_HOST, BOX_UPLINK];
        match self {
            // The driver detects only one queue of a veth, but accepts any queue number.
            Self::AfXdp => (0..queues)
                .flat_map(|queue| {
                    ports.map(|port| {
                        format!("net_af_xdp_{port}_{queue},iface={port},start_queue={queue}")
                    })
                })
                .collect(),
            Self::AfPacket => ports
                .map(|port| format!("net_af_packet_{port},iface={port},qpairs={queues}"))
                .to_vec(),
        }
    }
}

/// A running `testpmd`.
struct Process {
    child: Child,
    log: NamedTempFile,
}

impl Process {
    fn wait_until_ready(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        while !self.words().contains(READY) {
            let ended = self.child.process().try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                return Err(self.failed("does not begin to forward"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn words(&self) -> String {
        fs::read(self.log.path()).map_or_else(
            |_| String::new(),
            |words| String::from_utf8_lossy(&words).into_owned(),
        )
    }

    fn failed(&self, what: &str) -> LabError {
        // With arguments that it does not understand, it continues with the defaults.
        let words = self.words();
        let reason = words.split("Usage:").next().unwrap_or_default();
        let lines: Vec<_> = reason.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        LabError(format!("{PROGRAM} {what}; it said: {last}"))
    }
}

impl Running for Process {
    fn stop(mut self: Box<Self>) -> Result<(), LabError> {
        // Any line of input ends it; if it has ended already, its status says so.
        if let Some(mut stdin) = self.child.process().stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        match self.child.wait(PATIENCE) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(&format!("stopped with {status}"))),
            Err(error) => Err(self.failed(&format!("does not stop: {error}"))),
        }
    }
}
