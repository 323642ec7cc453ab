//! DPDK's `testpmd`, which forwards frames between ports without parsing them, over DPDK's two
//! drivers for NICs that the kernel keeps. The upper bound of that library, as `wire` is that of
//! the kernel.

use super::{Forwarder, Job, Started};
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
const TIMEOUT: Duration = Duration::from_secs(20);
/// The number of output lines in an error.
const LAST_LINES: usize = 20;
/// Buffers per port: twice the entries of all rings of a port.
const BUFFERS: usize = 8192;

/// `testpmd` with each of its drivers.
pub(super) fn forwarders() -> [Forwarder; 2] {
    [
        ("testpmd-af_xdp", Driver::AfXdp),
        ("testpmd-af_packet", Driver::AfPacket),
    ]
    .map(|(name, driver)| Forwarder {
        missing,
        ..Forwarder::new(name, Job::Wire, move |site, traffic, load| {
            driver.start(site, traffic, load)
        })
    })
}

fn missing() -> Option<String> {
    let error = Command::new(PROGRAM).arg("--help").output().err()?;
    let what = format!("the command {PROGRAM} (Debian package dpdk-dev)");
    Some(format!("{what}: {error}"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    AfXdp,
    AfPacket,
}

impl Driver {
    fn start(self, site: &Site, traffic: &Traffic, load: &Load) -> Started {
        // The AF_XDP driver attaches a program of its own.
        if self == Self::AfPacket {
            traffic.attach_pass(site)?;
        }
        let failed = |error| LabError(format!("cannot keep what {PROGRAM} says: {error}"));
        let log = NamedTempFile::new().map_err(failed)?;
        let output = log.reopen().map_err(failed)?;
        // Without stdbuf, output to a file is fully buffered.
        let mut command = contained("stdbuf");
        command
            .args(["-oL", PROGRAM])
            .args(self.arguments(load))
            // Attach its programs directly, without libxdp's dispatcher.
            .env("LIBXDP_SKIP_DISPATCHER", "1")
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output);
        let mut process = Process {
            child: site.middle.start(command)?,
            log,
        };
        process.wait_until_ready()?;
        Ok(Box::new(|| process.stop()))
    }

    /// The command line: a thread per queue, on the cores that the generators leave, and a main
    /// thread. No huge pages, no PCI, no files: it leaves the machine unchanged.
    fn arguments(self, load: &Load) -> Vec<String> {
        let (queues, cpus) = (load.queues, forwarder_cpus(load.queues));
        let devices = self.devices(queues);
        let buffers = BUFFERS * devices.len();
        // Megabytes; a buffer takes a page, because it must not cross a page boundary.
        let megabytes = buffers / 128;
        let (first, last) = (cpus.start, cpus.end - 1);
        let mut line = format!(
            "--no-huge --no-shconf --no-pci --no-telemetry --lcores=(0-{queues})@({first}-{last}) \
             -m {megabytes}"
        );
        for device in devices {
            line += &format!(" --vdev {device}");
        }
        // exitmark's batch size and ring size.
        line += &format!(
            " -- --forward-mode=io --auto-start --no-mlockall --total-num-mbufs={buffers} \
             --nb-cores={queues} --burst=256 --rxd=2048 --txd=2048"
        );
        if self == Self::AfPacket {
            line += &format!(" --rxq={queues} --txq={queues}");
        }
        line.split(' ').map(str::to_owned).collect()
    }

    /// Its ports; frames go between the first and the second, the third and the fourth.
    fn devices(self, queues: u32) -> Vec<String> {
        let ports = [BOX_HOST, BOX_UPLINK];
        match self {
            // The driver detects only one queue of a veth, but accepts any queue number.
            Self::AfXdp => {
                let device = |queue, port| {
                    format!("net_af_xdp_{port}_{queue},iface={port},start_queue={queue}")
                };
                let devices = |queue| ports.map(|port| device(queue, port));
                (0..queues).flat_map(devices).collect()
            }
            Self::AfPacket => ports
                .map(|port| format!("net_af_packet_{port},iface={port},qpairs={queues}"))
                .to_vec(),
        }
    }
}

struct Process {
    child: Child,
    log: NamedTempFile,
}

impl Process {
    fn wait_until_ready(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + TIMEOUT;
        while !self.output().contains(READY) {
            let ended = self.child.process().try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                return Err(self.failed("does not begin to forward"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn output(&self) -> String {
        let output = fs::read(self.log.path()).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    }

    fn failed(&self, what: &str) -> LabError {
        // With arguments that it does not understand, it continues with the defaults.
        let output = self.output();
        let reason = output.split("Usage:").next().unwrap_or_default();
        let lines: Vec<_> = reason.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        LabError(format!("{PROGRAM} {what}; it said: {last}"))
    }

    fn stop(mut self) -> Result<(), LabError> {
        // Any line of input ends it; if it has ended already, its status says so.
        if let Some(mut stdin) = self.child.process().stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        match self.child.wait(TIMEOUT) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(&format!("stopped with {status}"))),
            Err(error) => Err(self.failed(&format!("does not stop: {error}"))),
        }
    }
}
