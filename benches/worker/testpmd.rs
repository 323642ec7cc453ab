//! DPDK's `testpmd` between two ports without a NIC (net_null), in mode `io`, which forwards
//! without reading: the least that a poll-mode forwarder costs. Its driver allocates a buffer for
//! each packet received and frees that of each packet sent, as drivers of NICs do.

use super::{BATCH, CPU, FRAMES, RING};
use exitmark_lab::{LabError, contained};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = "dpdk-testpmd";
/// In front of its figure, with `--record-core-cycles`: the cycles of the time stamp counter in the
/// loops that forwarded packets, divided by these packets.
const CYCLES: &str = "CPU cycles/packet=";
/// Behind it: the frequency of that counter in MHz.
const CLOCK: &str = " MHz Clock";
/// How long it has to start; the figure is of its loops alone.
const START: Duration = Duration::from_secs(1);
/// How long its end may take.
const TIMEOUT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(10);

/// What this machine lacks for it.
pub(crate) fn missing() -> Option<String> {
    let mut probe = Command::new(PROGRAM);
    probe.arg("--version").stdout(Stdio::null());
    let error = probe.stderr(Stdio::null()).status().err()?;
    Some(format!(
        "the command {PROGRAM} (Debian package dpdk-dev): {error}"
    ))
}

/// A measurement by testpmd itself.
pub(crate) struct Measured {
    /// Cycles of the time stamp counter for a packet.
    pub(crate) cycles: f64,
    /// The frequency of that counter, in MHz.
    pub(crate) mhz: f64,
}

/// Forwards frames of this length for this time.
pub(crate) fn measure(bytes: usize, length: Duration) -> Result<Measured, LabError> {
    let failed = |error: std::io::Error| LabError(format!("{PROGRAM}: {error}"));
    let mut process = Process(
        contained(PROGRAM)
            .args(arguments(bytes).split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?,
    );
    // It prints nothing into a pipe before it ends, which it does when it reads a line.
    thread::sleep(START + length);
    let mut stdin = process.0.stdin.take();
    if let Some(stdin) = &mut stdin {
        stdin.write_all(b"\n").map_err(failed)?;
    }
    process.wait()?;
    let mut said = String::new();
    if let Some(stdout) = &mut process.0.stdout {
        stdout.read_to_string(&mut said).map_err(failed)?;
    }
    figures(&said).ok_or_else(|| LabError(format!("{PROGRAM} gives no cycles; it said: {said}")))
}

/// The figures in its output.
fn figures(said: &str) -> Option<Measured> {
    let (_, behind) = said.split_once(CYCLES)?;
    let (before_clock, _) = behind.split_once(CLOCK)?;
    let cycles = behind.split_whitespace().next()?.parse().ok()?;
    let mhz = before_clock.rsplit(' ').next()?.parse().ok()?;
    let is_possible = |figure: f64| figure.is_finite() && figure > 0.0;
    (is_possible(cycles) && is_possible(mhz)).then_some(Measured { cycles, mhz })
}

/// No huge pages, no PCI, no files: it leaves the machine unchanged. The main thread sleeps on the
/// same core until a line arrives.
fn arguments(bytes: usize) -> String {
    format!(
        "--no-huge --no-shconf --no-pci --no-telemetry --lcores=0@{CPU},1@{CPU} -m 128 --vdev \
         net_null0,size={bytes} --vdev net_null1,size={bytes} -- --auto-start --forward-mode=io \
         --record-core-cycles --no-mlockall --total-num-mbufs={FRAMES} --nb-cores=1 \
         --burst={BATCH} --rxd={RING} --txd={RING}"
    )
}

/// Ends with its owner.
struct Process(Child);

impl Process {
    /// Waits for its end. It says less than a pipe holds.
    fn wait(&mut self) -> Result<(), LabError> {
        let failed = |error| LabError(format!("{PROGRAM}: {error}"));
        let begun = Instant::now();
        while self.0.try_wait().map_err(failed)?.is_none() {
            if begun.elapsed() > TIMEOUT {
                return Err(LabError(format!("{PROGRAM} did not end")));
            }
            thread::sleep(STEP);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
