//! The events that happen to the box under load.

use crate::expect::{Event, Link};
use crate::flows::place;
use crate::sets::publish;
use crate::stage::{EXITMARK, Stage};
#[cfg(target_arch = "x86_64")]
use exitmark_lab::process::copy_program;
use exitmark_lab::{Ending, RunningBox, killed_at, steps};
use exitmark_lab::{LabError, Netns, timeout};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::thread;
use std::time::{Duration, Instant};

/// The time for which a box is stopped, or a link down, under load.
const STOPPED: Duration = Duration::from_millis(400);
const DOWN: Duration = Duration::from_millis(200);
/// The number of replacements by large sets, and by small ones.
const SWAPS: usize = 6;
const MANY_SWAPS: usize = 250;
const RELOADS: usize = 100;

/// Performs an event. For a link that came back, returns the number of a frame that was sent after
/// every flow had arrived again.
pub(crate) fn happen(stage: &mut Stage<'_>, event: Event) -> Result<Option<u64>, LabError> {
    match event {
        Event::Nothing | Event::FullRings => {}
        Event::Kill => kill(stage)?,
        Event::Stop => pause(stage)?,
        Event::StopAndContinue => {
            pause(stage)?;
            running(stage)?.signal(Signal::SIGCONT)?;
        }
        Event::OutOfMemory => starve(stage)?,
        Event::Terminate => terminate(stage)?,
        Event::Restart => {
            terminate(stage)?;
            start(stage, EXITMARK)?;
        }
        Event::RestartAfterKill => {
            kill(stage)?;
            start(stage, EXITMARK)?;
        }
        Event::KillAtEveryStep => kill_at_every_step(stage)?,
        Event::Upgrade => upgrade(stage)?,
        Event::Swap => swap(stage, &stage.sets.large, SWAPS)?,
        Event::ManySwaps => swap(stage, &stage.sets.small, MANY_SWAPS)?,
        Event::Reloads => reload(stage)?,
        Event::LinkDown(link) => return flap(stage, link).map(Some),
        Event::PortBack(port) => return away(stage, port).map(Some),
        Event::Renamed => rename(stage)?,
    }
    Ok(None)
}

fn no_box() -> LabError {
    LabError("there is no box".to_owned())
}

fn running<'a>(stage: &'a Stage<'_>) -> Result<&'a RunningBox, LabError> {
    stage.running.as_ref().ok_or_else(no_box)
}

/// Repeats an attempt until it succeeds; fails with its last error.
fn wait<T>(mut attempt: impl FnMut() -> Result<T, LabError>) -> Result<T, LabError> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(_) if begin.elapsed() < timeout() => thread::sleep(Duration::from_millis(1)),
            outcome => return outcome,
        }
    }
}

/// Waits until the box has said these words this number of times.
fn said(running: &RunningBox, words: &str, times: usize) -> Result<(), LabError> {
    wait(|| {
        let log = running.log();
        match log.matches(words).count() >= times {
            true => Ok(()),
            false => Err(LabError(format!("not {times} times {words:?}: {log}"))),
        }
    })
}

fn start(stage: &mut Stage<'_>, exitmark: impl AsRef<OsStr>) -> Result<(), LabError> {
    stage.running = Some(stage.site.run(exitmark, stage.configuration)?);
    Ok(())
}

fn kill(stage: &mut Stage<'_>) -> Result<(), LabError> {
    running(stage)?.signal(Signal::SIGKILL)?;
    // Dropping the box waits for its end.
    stage.running = None;
    Ok(())
}

fn pause(stage: &Stage<'_>) -> Result<(), LabError> {
    running(stage)?.signal(Signal::SIGSTOP)?;
    stage.load.go_on(STOPPED)
}

fn terminate(stage: &mut Stage<'_>) -> Result<(), LabError> {
    let running = stage.running.take().ok_or_else(no_box)?;
    running.stop_well().map(drop)
}

/// Each start continues from the state that the killed one left.
#[cfg(target_arch = "x86_64")]
fn kill_at_every_step(stage: &mut Stage<'_>) -> Result<(), LabError> {
    let configuration = stage.configuration.to_string_lossy().into_owned();
    let words = [EXITMARK, "run", "--config", &configuration];
    for step in steps() {
        terminate(stage)?;
        let ending = killed_at(&stage.site.middle, &words, step)?;
        start(stage, EXITMARK)?;
        match ending {
            Ending::Killed(_) => {}
            Ending::Itself(0, _) => break,
            Ending::Itself(status, said) => {
                return Err(LabError(format!("step {step}: {status}: {said}")));
            }
        }
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn kill_at_every_step(_: &Stage<'_>) -> Result<(), LabError> {
    Err(LabError("it takes the registers of x86_64".to_owned()))
}

/// The next version, the same binary under another name, starts while the old one ends.
fn upgrade(stage: &mut Stage<'_>) -> Result<(), LabError> {
    let next = stage.directory.join("exitmark-next");
    copy_program(EXITMARK.as_ref(), &next)
        .map_err(|error| LabError(format!("cannot copy the binary: {error}")))?;
    let old = stage.running.take().ok_or_else(no_box)?;
    old.signal(Signal::SIGTERM)?;
    start(stage, &next)?;
    old.stop_well().map(drop)
}

/// Lowers the box's memory limit to its usage and makes it allocate more, until the kernel has
/// killed it. The document loader is killed first, repeatedly.
fn starve(stage: &mut Stage<'_>) -> Result<(), LabError> {
    publish(stage.consensus, &stage.sets.large[1])?;
    let begin = Instant::now();
    let gone = |stage: &mut Stage<'_>| stage.running.as_mut().is_none_or(RunningBox::has_ended);
    while !gone(stage) {
        if begin.elapsed() > timeout() {
            let log = running(stage)?.log();
            return Err(LabError(format!("the kernel does not kill it: {log}")));
        }
        if let Some(cgroup) = &stage.cgroup {
            cgroup.squeeze();
        }
        // It may have ended by now.
        let _ = running(stage)?.signal(Signal::SIGHUP);
        let requested_at = Instant::now();
        while !gone(stage) && requested_at.elapsed() < Duration::from_millis(200) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    stage.running = None;
    match stage.cgroup.as_ref().map_or(0, |cgroup| cgroup.kills()) {
        0 => Err(LabError("it ended, but not by the OOM killer".to_owned())),
        _ => Ok(()),
    }
}

/// Replaces the relay set this number of times, each time after the last one is in force.
fn swap(stage: &Stage<'_>, sets: &[String; 2], times: usize) -> Result<(), LabError> {
    let running = running(stage)?;
    for number in 1..=times {
        publish(stage.consensus, &sets[number % 2])?;
        running.signal(Signal::SIGHUP)?;
        said(running, "relay set replaced", number)?;
    }
    Ok(())
}

/// Changes the configuration repeatedly, each time after the last one is in force.
fn reload(stage: &Stage<'_>) -> Result<(), LabError> {
    let running = running(stage)?;
    let failed = |error: std::io::Error| LabError(format!("cannot change it: {error}"));
    let first = std::fs::read_to_string(stage.configuration).map_err(failed)?;
    for number in 1..=RELOADS {
        // A prefix without a flow of the test.
        let text = first.replace("[host]", &format!("[host]\nexempt = [\"10.9.0.{number}\"]"));
        std::fs::write(stage.configuration, text).map_err(failed)?;
        running.signal(Signal::SIGHUP)?;
        said(running, "configuration replaced", number)?;
    }
    Ok(())
}

/// Sets a link down and up, and waits until every flow arrives again.
fn flap(stage: &Stage<'_>, link: Link) -> Result<u64, LabError> {
    let (netns, interface) = match link {
        Link::IncomingAtBox => (&stage.site.middle, "incoming0"),
        Link::IncomingAtFarEnd => (&stage.site.tornet, "eth0"),
        Link::UplinkAtBox => (&stage.site.middle, "uplink0"),
        Link::UplinkAtFarEnd => (&stage.site.clearnet, "eth0"),
    };
    netns.ip(&format!("link set {interface} down"))?;
    stage.load.go_on(DOWN)?;
    netns.ip(&format!("link set {interface} up"))?;
    arrived_again(stage)
}

/// Moves a NIC of the box to another network namespace and back: this removes it from the kernel's
/// maps and sockets, but keeps its far end with the sink.
fn away(stage: &Stage<'_>, port: &str) -> Result<u64, LabError> {
    let (here, there) = (&stage.site.middle, Netns::new("away")?);
    here.ip(&format!("link set {port} netns {}", there.path()))?;
    stage.load.go_on(DOWN)?;
    // Without an address, as before: a stack with an address sends.
    here.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    there.ip(&format!("link set {port} netns {}", here.path()))?;
    here.ip(&format!("link set {port} up"))?;
    let number = arrived_again(stage)?;
    // The message follows the attachment of the last port; frames may be forwarded earlier.
    said(running(stage)?, "the ports are set up again", 1)?;
    Ok(number)
}

/// Renames the uplink while it forwards, and restores its name.
fn rename(stage: &Stage<'_>) -> Result<(), LabError> {
    let netns = &stage.site.middle;
    netns.ip("link set uplink0 name wan0")?;
    stage.load.go_on(DOWN)?;
    let log = running(stage)?.log();
    netns.ip("link set wan0 name uplink0")?;
    match log.contains("ALARM: uplink0 (uplink) is called wan0 now") {
        true => Ok(()),
        false => Err(LabError(format!("no alarm: {log}"))),
    }
}

/// Waits until a frame of each flow, sent from now on, has arrived; returns the number of a frame
/// sent after that.
fn arrived_again(stage: &Stage<'_>) -> Result<u64, LabError> {
    let flows = stage.rhythm.flows();
    let up = place(stage.load.number(), flows).1;
    wait(|| {
        let next = stage.sinks.next()?;
        let mut missing: Vec<_> = (0..flows).collect();
        missing.retain(|&flow| next[flow as usize] <= u64::from(up) + 1);
        match missing.is_empty() {
            true => Ok(stage.load.number()),
            false => Err(LabError(format!(
                "the link is up again, but nothing arrives of the flows {missing:?}"
            ))),
        }
    })
}
