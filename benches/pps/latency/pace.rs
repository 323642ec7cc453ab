//! The paced generator: loads at a given rate, and their results.
//!
//! Each load is one call of BPF_PROG_RUN, whose program reads the clock repeatedly and sends a
//! frame when one is due. The rate is computed from the sent frames and the elapsed time: the
//! requested one may not be reached.

use crate::common::results::number;
use crate::load::{Family, Load};
use crate::measure::Contestant;
use crate::site::{FAR_END, Site, pin_to_generator_cpu};
use crate::traffic::{Counts, Traffic};
use exitmark_lab::{LabError, join};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::{Pid, gettid};
use std::cell::Cell;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

// Interface to latency.bpf.h.
pub(crate) const STAMP_BYTES: usize = 8;
const FRACTIONS: f64 = 1024.0;
const PACE: &str = "pace";
const PACE_NUMBERS: usize = 12;
const ORDERS: usize = 7;
const PROBES: usize = 10;
const OVER: usize = 11;

/// The repetitions of a call, so many that it never ends by itself.
const LOOKS: u32 = i32::MAX.unsigned_abs();
/// The kernel's default batch size, which gives the highest rates.
pub(super) const FULL_BATCH: u32 = 64;
const STOP: Signal = Signal::SIGUSR1;
/// The ratio of the length of a run of the command `rates` to that of a trial.
const TRIALS_A_RUN: u32 = 16;
/// The least length of a trial that times frames; it lasts half of such a run, to time more frames.
const TIMED_SHORTEST: Duration = Duration::from_millis(250);
/// The timeout of a load beyond its length, for set-up and a busy machine.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The time without arrivals after which missing frames count as lost. A worker of exitmark that
/// finds its port full retries after 64 ms at the latest.
const QUIET: Duration = Duration::from_millis(100);

/// A rate beyond any generator's limit: full speed.
pub(super) const FULL_SPEED: f64 = f64::INFINITY;

#[derive(Clone, Copy)]
pub(super) struct LoadParameters {
    /// Frames a second, at first and after `change`.
    pub(super) rates: [f64; 2],
    pub(super) change: Duration,
    pub(super) length: Duration,
    /// The number of clock reads after which all due frames are sent.
    pub(super) batch: u32,
    /// Whether timed exit frames ask to be sent back.
    pub(super) probe: bool,
    /// One frame in this number is stamped and timed, which costs the sink time too.
    pub(super) stamp_every: Option<u64>,
    /// Whether stamped frames are counted by departure time.
    pub(super) keep_moments: bool,
}

impl LoadParameters {
    pub(super) fn steady(rate: f64, length: Duration) -> Self {
        Self {
            rates: [rate; 2],
            change: length,
            length,
            batch: FULL_BATCH,
            probe: false,
            stamp_every: None,
            keep_moments: false,
        }
    }

    /// The bytes of `struct pace`, whose last fields the program writes.
    fn bytes(&self) -> Result<Vec<u8>, LabError> {
        let mut numbers = [0; PACE_NUMBERS];
        numbers[..ORDERS].copy_from_slice(&[
            interval(self.rates[0])?,
            nanoseconds(self.change)?,
            interval(self.rates[1])?,
            nanoseconds(self.length)?,
            self.probe.into(),
            self.stamp_every.unwrap_or(0),
            self.keep_moments.into(),
        ]);
        Ok(numbers.iter().flat_map(|n: &u64| n.to_ne_bytes()).collect())
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// Sent frames per second.
    pub(super) offered: f64,
    pub(super) sent: u64,
    pub(super) arrived: u64,
}

impl Trial {
    /// The fraction of sent frames that did not arrive.
    pub(super) fn loss(&self) -> f64 {
        number(self.sent.saturating_sub(self.arrived)) / number(self.sent.max(1))
    }

    pub(super) fn is_lossless(&self) -> bool {
        self.sent > 0 && self.arrived >= self.sent
    }
}

/// The generator at one site, and the timing sinks.
pub(super) struct Pacer<'t> {
    pub(super) site: &'t Site,
    pub(super) traffic: &'t Traffic,
    pub(super) load: Load,
    pub(super) length: Duration,
    /// The length of a trial that times frames.
    pub(super) timed: Duration,
    /// The length of a run in seconds, by which lengths that are not parts of it are scaled.
    pub(super) scale: f64,
    /// The time until the forwarder is back in its normal mode after an overload.
    recovers_in: Duration,
    /// Whether frames were lost since the last rest.
    lost: Cell<bool>,
}

impl<'t> Pacer<'t> {
    /// Replaces the sinks' counters by timing ones. Must precede the start of any forwarder.
    pub(super) fn new(
        site: &'t Site,
        traffic: &'t Traffic,
        one: &Contestant<'_>,
        run: Duration,
    ) -> Result<Self, LabError> {
        let programs = &traffic.programs;
        programs.attach("time_uplink", &site.clearnet, FAR_END)?;
        programs.attach("time_incoming", &site.tornet, FAR_END)?;
        programs.attach("time_host", &site.host, FAR_END)?;
        Ok(Self {
            site,
            traffic,
            load: one.load,
            length: run / TRIALS_A_RUN,
            timed: TIMED_SHORTEST.max(run / 2),
            scale: run.as_secs_f64(),
            recovers_in: one.forwarder.recovers_in,
            lost: Cell::new(false),
        })
    }

    /// Waits until an overloaded forwarder is back in its normal mode.
    pub(super) fn rest(&self) {
        thread::sleep(self.recovers_in);
        self.lost.set(false);
    }

    pub(super) fn rest_after_loss(&self) {
        if self.lost.get() {
            self.rest();
        }
    }

    /// Sends a short load to fill caches and touch pages.
    pub(super) fn warm_up(&self) -> Result<(), LabError> {
        self.trial(FULL_SPEED, self.length / 2).map(|_| ())
    }

    pub(super) fn trial(&self, rate: f64, length: Duration) -> Result<Trial, LabError> {
        self.run(&LoadParameters::steady(rate, length))
    }

    /// Sends a load, and waits until no more of it arrives.
    pub(super) fn run(&self, parameters: &LoadParameters) -> Result<Trial, LabError> {
        let before = self.traffic.counts()?;
        self.traffic.programs.store(PACE, 0, &parameters.bytes()?)?;
        let (id, generator) = self.start(parameters.batch)?;
        let in_time = self.wait(parameters.length, &generator);
        stop(id, &generator)?;
        join(generator, "the generator")??;
        if !in_time? {
            return Err(LabError(format!(
                "a load of {:?} was not over after {TIMEOUT:?} more; is the machine busy?",
                parameters.length
            )));
        }
        let counts = self.settled(&before)?;
        if counts.arrived() < counts.sent {
            self.lost.set(true);
        }
        Ok(Trial {
            offered: number(counts.sent) / parameters.length.as_secs_f64(),
            sent: counts.sent,
            arrived: counts.arrived(),
        })
    }

    fn start(&self, batch: u32) -> Result<(Pid, Generator), LabError> {
        let (programs, frame) = (
            self.traffic.programs.clone(),
            Arc::clone(&self.traffic.frame),
        );
        let program = match self.load.family {
            Family::Ipv4 => "paced_ipv4",
            Family::Ipv6 => "paced_ipv6",
        };
        let (sender, receiver) = mpsc::channel();
        let generator = self.site.host.spawn("generator", move || {
            pin_to_generator_cpu(0)?;
            // The receiver is dropped when the bench ends.
            let _ = sender.send(gettid());
            programs.run_live(program, &frame, LOOKS, batch)
        })?;
        match receiver.recv() {
            Ok(id) => Ok((id, generator)),
            Err(_) => Err(LabError("the generator ended before it began".to_owned())),
        }
    }

    /// Waits until the program has finished its load; returns false on timeout.
    fn wait(&self, length: Duration, generator: &Generator) -> Result<bool, LabError> {
        let deadline = Instant::now() + length + TIMEOUT;
        thread::sleep(length);
        while !generator.is_finished() {
            if self.parameters()?[OVER] != 0 {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(true)
    }

    pub(super) fn probes(&self) -> Result<u64, LabError> {
        Ok(self.parameters()?[PROBES])
    }

    fn parameters(&self) -> Result<[u64; PACE_NUMBERS], LabError> {
        self.traffic.programs.numbers(PACE, 0)
    }

    /// Waits until all frames have arrived, or none has for a while, at most a second: later
    /// arrivals would hide losses of the next load.
    pub(super) fn settled(&self, before: &Counts) -> Result<Counts, LabError> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut counts = self.traffic.counts()?.since(before);
        let mut changed = Instant::now();
        while counts.arrived() < counts.sent
            && changed.elapsed() < QUIET
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(5));
            let next = self.traffic.counts()?.since(before);
            if next.arrived() != counts.arrived() {
                changed = Instant::now();
            }
            counts = next;
        }
        if counts.arrived() > counts.sent {
            return Err(LabError(format!(
                "of {} frames that were sent {} arrived; frames of the load before came late, or \
                 the forwarder doubles some",
                counts.sent,
                counts.arrived()
            )));
        }
        Ok(counts)
    }
}

type Generator = JoinHandle<Result<(), LabError>>;

/// Installs an empty handler for the signal that interrupts a load.
pub(super) fn let_signals_interrupt() -> Result<(), LabError> {
    signal_hook::flag::register(STOP as i32, Arc::default())
        .map(|_| ())
        .map_err(|error| LabError(format!("cannot handle {STOP}: {error}")))
}

/// Interrupts the generator's call with a timer signal to its thread, until it has ended.
fn stop(id: Pid, generator: &Generator) -> Result<(), LabError> {
    if generator.is_finished() {
        return Ok(());
    }
    let event = SigEvent::new(SigevNotify::SigevThreadId {
        signal: STOP,
        thread_id: id.as_raw(),
        si_value: 0,
    });
    let often = Expiration::Interval(TimeSpec::from_duration(Duration::from_millis(1)));
    let armed = Timer::new(ClockId::CLOCK_MONOTONIC, event).and_then(|mut timer| {
        timer.set(often, TimerSetTimeFlags::empty())?;
        Ok(timer)
    });
    let deadline = Instant::now() + TIMEOUT;
    while !generator.is_finished() {
        match &armed {
            Ok(_) if Instant::now() < deadline => thread::sleep(Duration::from_micros(500)),
            Ok(_) => return Err(LabError("the generator does not end".to_owned())),
            // It ended first.
            Err(_) if generator.is_finished() => {}
            Err(error) => return Err(LabError(format!("cannot end the generator: {error}"))),
        }
    }
    Ok(())
}

/// The interval between frames, in the program's units.
fn interval(rate: f64) -> Result<u64, LabError> {
    Duration::try_from_secs_f64(FRACTIONS / rate)
        .map_err(|error| LabError(format!("{rate} frames a second cannot be: {error}")))
        .and_then(nanoseconds)
}

fn nanoseconds(time: Duration) -> Result<u64, LabError> {
    u64::try_from(time.as_nanos()).map_err(|_| LabError(format!("{time:?} is too long")))
}
