//! The command `latency`: the measurements of RFC 2544 besides the rate.
//!
//! For every forwarder and frame size, in this order: the round trip at a low load that is the same
//! for all, the highest load without loss (26.1), the longest burst without loss (26.4), the loss
//! at loads around the highest (26.3), latency at fractions of it (26.2), and recovery from an
//! overload (26.5). Trials are a hundred times shorter than the RFC's, so that forwarders can
//! alternate.
//!
//! The round trip precedes any overload. A forwarder that changes its mode for a while after an
//! overload gets a pause before the timed loads, and after any of them that lost frames. It gets
//! none within the search, the bursts and the ladder, which measure it in any mode.
//!
//! Limits of the harness: the generator is a BPF program on one core, and the kernel receives,
//! forwards and counts on that same core, between two batches of frames. So a forwarder in the
//! kernel slows its own load down instead of losing frames: its highest load is that of generator
//! and forwarder together, its bursts are as long as this bench tries, and it can hardly be
//! overloaded. Rows say so: `generator_bound`, `burst_is_bound`, and no time of recovery if the
//! overload lost no frame. A forwarder in a process has a core of its own and drops excess frames.
//!
//! A frame's time begins when the program writes it, not when it was due: a late generator offers
//! less, and the offered load is measured, never assumed. The time includes that of the harness,
//! two cables and the rest of the generator's batch. The row of the wire shows this part: with
//! batches of one, about a microsecond one way on a quiet machine.

mod burst;
mod core_time;
mod delays;
mod lossless;
mod pace;
mod recovery;
mod report;
mod trips;

use crate::common::{bpf, rounds};
use crate::load::{Family, Load};
use crate::measure::{Contestant, check};
use crate::peers;
use crate::site;
use crate::traffic::Traffic;
use exitmark_lab::LabError;
use lossless::Lossless;
use pace::{Pacer, Trial};
use recovery::Recovery;
use std::fmt;
use std::time::Duration;
use trips::{COMPARED, Percentiles, ROUND_TRIPS, Trips};

/// The loads at which frames are timed, as fractions of the highest without loss.
const TIMED: [f64; 3] = [0.1, 0.5, 0.9];

const BENCH: &str = "latency";

#[derive(clap::Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    options: rounds::Options,
    /// Frame sizes in bytes, without the FCS; with the time stamp behind the headers at least 62
    /// bytes for IPv4 and 82 for IPv6
    #[arg(long, value_delimiter = ',', default_value = "64,1514",
          value_parser = clap::value_parser!(u16).range(62..=1514))]
    sizes: Vec<u16>,
    /// Address families
    #[arg(long, value_delimiter = ',', default_value = "ipv4")]
    families: Vec<Family>,
    /// Only the round trips at fixed loads
    #[arg(long)]
    round_trips: bool,
    /// A row more for engine `af_xdp` with these lines in `[datapath]`; may be given repeatedly
    #[arg(long, value_name = "LINES")]
    datapath: Vec<String>,
}

/// Runs the bench; returns false if a forwarder failed.
pub(crate) fn bench(arguments: &Latency) -> Result<bool, LabError> {
    let options = &arguments.options;
    let (mut forwarders, missing) = peers::chosen(BENCH, options, peers::all())?;
    let more = arguments.datapath.iter();
    forwarders.extend(more.map(|lines| peers::with_datapath(lines)));
    let compiled = bpf::compile(bpf::TRAFFIC)?;
    pace::let_signals_interrupt()?;
    let loads = arguments.families.iter().flat_map(|&family| {
        arguments.sizes.iter().map(move |&size| Load {
            family,
            size: usize::from(size).max(family.header_bytes() + pace::STAMP_BYTES),
            ..Load::BASE
        })
    });
    let contestants = loads.flat_map(|load| Contestant::all(&forwarders, load));
    let every_load = arguments.sizes.first().copied().map(usize::from);
    let outcome = rounds::run(BENCH, options, contestants, |one, length| {
        let steps = Steps {
            every_load: Some(one.load.size) <= every_load,
            only_round_trips: arguments.round_trips,
        };
        run(&compiled, one, length, steps)
    })?;
    let rows: Vec<_> = outcome.contests.iter().map(report::Row::new).collect();
    report::print(&rows);
    let files = match arguments.round_trips {
        false => ["latency.json", "latency-machine.json"],
        true => ["round-trips.json", "round-trips-machine.json"],
    };
    outcome.write(BENCH, files, &rows, missing)
}

/// The results of one run. `None` could not be measured; `reasons` says why.
#[derive(Default)]
pub(crate) struct Sample {
    lossless: Option<Lossless>,
    /// The loads of the ladder in order.
    curve: Vec<Trial>,
    /// One for each of [`TIMED`].
    one_way: [Option<Percentiles>; TIMED.len()],
    /// One for each of [`ROUND_TRIPS`].
    round_trips: [Option<Trips>; ROUND_TRIPS.len()],
    /// The fraction of a core that the forwarder's processes take without frames.
    idle_core: Option<f64>,
    burst: Option<u32>,
    recovery: Option<Recovery>,
    reasons: Vec<String>,
}

/// The steps of a run.
#[derive(Clone, Copy)]
struct Steps {
    /// Whether round trips are measured at every load, or only at the compared one.
    every_load: bool,
    only_round_trips: bool,
}

/// One run: a fresh site, one forwarder, all steps, and a check that the forwarder did its job.
fn run(
    compiled: &[u8],
    one: &Contestant<'_>,
    length: Duration,
    chosen: Steps,
) -> Result<Sample, LabError> {
    let Contestant { forwarder, load } = *one;
    let site = site::build(load.queues)?;
    let traffic = Traffic::new(compiled, &site, load, forwarder.next_hop)?;
    let pacer = Pacer::new(&site, &traffic, one, length)?;
    let running = forwarder.start(&site, &traffic, &load)?;
    let before = traffic.counts()?;
    let sample = steps(&pacer, chosen)?;
    let counts = traffic.drained()?.since(&before);
    running()?;
    check(forwarder.job, load, &counts)?;
    Ok(sample)
}

fn steps(pacer: &Pacer<'_>, chosen: Steps) -> Result<Sample, LabError> {
    let mut sample = Sample::default();
    // Before any overload.
    trips::prepare_way_back(pacer)?;
    for number in 0..ROUND_TRIPS.len() {
        if chosen.every_load || number == COMPARED {
            let found = trips::round_trip(pacer, number)?;
            sample.round_trips[number] = sample.keep(found);
        }
    }
    if chosen.every_load {
        sample.idle_core = Some(trips::idle_core()?);
    }
    if chosen.only_round_trips {
        return Ok(sample);
    }
    pacer.warm_up()?;
    let mut found = lossless::search(pacer)?;
    let frames = burst::longest(pacer)?;
    sample.burst = sample.keep(frames);
    sample.curve = lossless::ladder(pacer, &mut found)?;
    let best = found.best;
    sample.lossless = Some(found);
    let Some(rate) = best.map(|best| best.offered) else {
        let reason = "it lost frames at every load".to_owned();
        sample.reasons.push(reason);
        return Ok(sample);
    };
    pacer.rest();
    for (number, part) in TIMED.into_iter().enumerate() {
        let found = trips::one_way(pacer, rate * part)?;
        sample.one_way[number] = sample.keep(found);
    }
    pacer.rest_after_loss();
    let found = recovery::after_overload(pacer, rate)?;
    sample.recovery = sample.keep(found);
    Ok(sample)
}

impl Sample {
    /// The highest load without loss, in frames a second.
    fn best(&self) -> Option<f64> {
        Some(self.lossless.as_ref()?.best?.offered)
    }

    /// Returns the result, or stores the error for the report.
    fn keep<T>(&mut self, found: Result<T, String>) -> Option<T> {
        found.map_err(|reason| self.reasons.push(reason)).ok()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.best(), &self.lossless) {
            (Some(best), _) => write!(f, "{:.3} Mpps without loss", best / 1e6)?,
            (None, Some(_)) => write!(f, "no load without loss")?,
            (None, None) => write!(f, "round trips only")?,
        }
        if let Some(times) = &self.one_way[0] {
            write!(f, ", {times} at a tenth of it")?;
        }
        for trips in self.round_trips.iter().flatten() {
            let (times, offered) = (&trips.percentiles, trips.percentiles.trial.offered);
            let core = trips.core * 100.0;
            write!(
                f,
                ", there and back {times} at {offered:.0}/s with {core:.1} % of a core"
            )?;
        }
        if let Some(frames) = self.burst {
            write!(f, ", bursts of {frames}")?;
        }
        if let Some(Recovery { overload, time }) = &self.recovery {
            let (loss, rate) = (overload.loss() * 100.0, overload.offered / 1e6);
            match time {
                Some(time) => write!(f, ", {time:?} after {loss:.1} % were lost")?,
                None => write!(f, ", nothing lost")?,
            }
            write!(f, " at {rate:.3} Mpps")?;
        }
        for reason in &self.reasons {
            write!(f, "\n    not measured: {reason}")?;
        }
        Ok(())
    }
}
