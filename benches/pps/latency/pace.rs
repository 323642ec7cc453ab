//! The generator with a clock: loads at a given rate, and what became of them.
//!
//! It is one call of BPF_PROG_RUN for each load, whose program looks at the clock again and again
//! and sends a frame when one is due. The rate that counts is what it sent by the time it took:
//! what was asked for may be more than there is.

use crate::load::{Family, Load};
use crate::measure::Contestant;
use crate::site::{FAR_END, Site, pin_to_generator_cpu};
use crate::traffic::{Counts, Traffic};
use exitmark::lab::LabError;
use libbpf_rs::{MapCore, MapFlags};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::{Pid, gettid};
use std::cell::Cell;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

// Contract with latency.bpf.h.
pub(crate) const STAMP_BYTES: usize = 8;
const FRACTIONS: f64 = 1024.0;
const PACE: &str = "pace";
const PACE_NUMBERS: usize = 12;
const ORDERS: usize = 7;
const PROBES: usize = 10;
const OVER: usize = 11;

/// A call's runs never end by themselves.
const LOOKS: u32 = i32::MAX.unsigned_abs();
/// As many frames at a time as the kernel takes by itself: what gives the highest rates.
pub(super) const FULL_BATCH: u32 = 64;
const STOP: Signal = Signal::SIGUSR1;
/// A trial is so many times shorter than a run of the command `rates`.
const TRIALS_A_RUN: u32 = 16;
/// A trial that times frames has more of them to time: it takes half of such a run, at least this.
const TIMED_SHORTEST: Duration = Duration::from_millis(250);
/// How much longer than it should a load may take: setting it up, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long nothing may have arrived before what is missing counts as lost. A worker of exitmark
/// that finds its port full tries again after 64 ms at the latest.
const QUIET: Duration = Duration::from_millis(100);

/// Frames a second that no generator can do: as fast as it goes.
pub(super) const FULL_SPEED: f64 = f64::INFINITY;

/// A load.
#[derive(Clone, Copy)]
pub(super) struct Order {
    /// Frames a second, at first and after `change`.
    pub(super) rates: [f64; 2],
    pub(super) change: Duration,
    pub(super) length: Duration,
    /// After so many looks at the clock, all that was due leaves.
    pub(super) batch: u32,
    /// Whether exit frames that are timed ask to be sent back.
    pub(super) probe: bool,
    /// Of so many frames one carries the time of its departure, and is timed: it takes the sink
    /// time too.
    pub(super) stamp_every: Option<u64>,
    /// Whether stamped frames are counted by the time of their departure.
    pub(super) keep_moments: bool,
}

impl Order {
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

    /// `struct pace`, of which the last numbers are the program's.
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

/// What became of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// Frames a second that were sent.
    pub(super) offered: f64,
    pub(super) sent: u64,
    pub(super) arrived: u64,
}

impl Trial {
    /// The part of the sent frames that did not arrive.
    pub(super) fn loss(&self) -> f64 {
        number(self.sent.saturating_sub(self.arrived)) / number(self.sent.max(1))
    }

    pub(super) fn is_lossless(&self) -> bool {
        self.sent > 0 && self.arrived >= self.sent
    }
}

/// The generator at one site, and the clocks at its sinks.
pub(super) struct Pacer<'t> {
    pub(super) site: &'t Site,
    pub(super) traffic: &'t Traffic,
    pub(super) load: Load,
    /// How long a trial lasts.
    pub(super) length: Duration,
    /// How long one lasts that times frames.
    pub(super) timed: Duration,
    /// How long after an overload the forwarder is itself again.
    recovers_in: Duration,
    /// Whether anything was lost since the last rest.
    lost: Cell<bool>,
}

impl<'t> Pacer<'t> {
    /// Puts clocks in the place of the sinks' counters. Before any forwarder starts, as there.
    pub(super) fn new(
        site: &'t Site,
        traffic: &'t Traffic,
        one: &Contestant<'_>,
        run: Duration,
    ) -> Result<Self, LabError> {
        let programs = traffic.programs();
        programs.attach("time_uplink", &site.uplink, FAR_END)?;
        programs.attach("time_incoming", &site.incoming, FAR_END)?;
        programs.attach("time_host", &site.host, FAR_END)?;
        Ok(Self {
            site,
            traffic,
            load: one.load,
            length: run / TRIALS_A_RUN,
            timed: TIMED_SHORTEST.max(run / 2),
            recovers_in: one.forwarder.recovers_in(),
            lost: Cell::new(false),
        })
    }

    /// Waits until a forwarder that was overloaded is itself again.
    pub(super) fn rest(&self) {
        thread::sleep(self.recovers_in);
        self.lost.set(false);
    }

    pub(super) fn rest_after_loss(&self) {
        if self.lost.get() {
            self.rest();
        }
    }

    /// Fills caches and pages.
    pub(super) fn warm_up(&self) -> Result<(), LabError> {
        self.trial(FULL_SPEED, self.length / 2).map(|_| ())
    }

    pub(super) fn trial(&self, rate: f64, length: Duration) -> Result<Trial, LabError> {
        self.run(&Order::steady(rate, length))
    }

    /// Sends a load, waits until nothing of it arrives any more.
    pub(super) fn run(&self, order: &Order) -> Result<Trial, LabError> {
        let before = self.traffic.counts()?;
        self.traffic.programs().store(PACE, 0, &order.bytes()?)?;
        let (id, generator) = self.start(order.batch)?;
        let in_time = self.wait(order.length, &generator);
        stop(id, &generator)?;
        generator
            .join()
            .map_err(|_| LabError("the generator panicked".to_owned()))??;
        if !in_time? {
            return Err(LabError(format!(
                "a load of {:?} was not over after {PATIENCE:?} more; is the machine busy?",
                order.length
            )));
        }
        let counts = self.settled(&before)?;
        if counts.arrived() < counts.sent {
            self.lost.set(true);
        }
        Ok(Trial {
            offered: number(counts.sent) / order.length.as_secs_f64(),
            sent: counts.sent,
            arrived: counts.arrived(),
        })
    }

    fn start(&self, batch: u32) -> Result<(Pid, Generator), LabError> {
        let (programs, frame) = (self.traffic.programs().clone(), self.traffic.blank());
        let program = match self.load.family {
            Family::Ipv4 => "paced_ipv4",
            Family::Ipv6 => "paced_ipv6",
        };
        let (tell, told) = mpsc::channel();
        let generator = self.site.host.spawn("generator", move || {
            pin_to_generator_cpu(0)?;
            // Nobody listens when the bench is at its end.
            let _ = tell.send(gettid());
            programs.run_live(program, &frame, LOOKS, batch)
        })?;
        match told.recv() {
            Ok(id) => Ok((id, generator)),
            Err(_) => Err(LabError("the generator ended before it began".to_owned())),
        }
    }

    /// Waits until the program says that its load is over; false when it takes too long.
    fn wait(&self, length: Duration, generator: &Generator) -> Result<bool, LabError> {
        let deadline = Instant::now() + length + PATIENCE;
        thread::sleep(length);
        while !generator.is_finished() {
            if self.is_over()? {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(true)
    }

    fn is_over(&self) -> Result<bool, LabError> {
        let order: [u64; PACE_NUMBERS] = self.numbers(PACE, 0)?;
        Ok(order[OVER] != 0)
    }

    /// How many frames of the last load asked to be sent back.
    pub(super) fn probes(&self) -> Result<u64, LabError> {
        let order: [u64; PACE_NUMBERS] = self.numbers(PACE, 0)?;
        Ok(order[PROBES])
    }

    /// The numbers of an entry that all CPUs share.
    pub(super) fn numbers<const N: usize>(
        &self,
        map: &str,
        key: u32,
    ) -> Result<[u64; N], LabError> {
        let value = self
            .traffic
            .programs()
            .map(map)?
            .lookup(&key.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| LabError(format!("cannot read the map {map}: {error}")))?
            .unwrap_or_default();
        let mut numbers = [0; N];
        for (number, bytes) in numbers.iter_mut().zip(value.as_chunks().0) {
            *number = u64::from_ne_bytes(*bytes);
        }
        Ok(numbers)
    }

    /// Waits until all has arrived, or nothing has for a while, at most a second: what comes later
    /// would hide that the next load loses frames.
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

/// From now on the signal that ends a load does nothing else.
pub(super) fn let_signals_interrupt() -> Result<(), LabError> {
    signal_hook::flag::register(STOP as i32, Arc::default())
        .map(|_| ())
        .map_err(|error| LabError(format!("cannot handle {STOP}: {error}")))
}

/// Interrupts the generator's call, by a timer that aims at its thread, until it has ended.
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
    let deadline = Instant::now() + PATIENCE;
    while !generator.is_finished() {
        match &armed {
            Ok(_) if Instant::now() < deadline => thread::sleep(Duration::from_micros(500)),
            Ok(_) => return Err(LabError("the generator does not end".to_owned())),
            // It was quicker.
            Err(_) if generator.is_finished() => {}
            Err(error) => return Err(LabError(format!("cannot end the generator: {error}"))),
        }
    }
    Ok(())
}

/// From one frame to the next, in the program's units.
fn interval(rate: f64) -> Result<u64, LabError> {
    Duration::try_from_secs_f64(FRACTIONS / rate)
        .map_err(|error| LabError(format!("{rate} frames a second cannot be: {error}")))
        .and_then(nanoseconds)
}

fn nanoseconds(time: Duration) -> Result<u64, LabError> {
    u64::try_from(time.as_nanos()).map_err(|_| LabError(format!("{time:?} is too long")))
}

pub(super) fn number(count: u64) -> f64 {
    // No run sends 2^32 frames.
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
