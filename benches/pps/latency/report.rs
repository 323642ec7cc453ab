//! The results of the rounds, as tables and as `latency.json`.
//!
//! Every value is the median of the rounds that have it, null if none has.

use super::delays::Delays;
use super::pace::Trial;
use super::trips::{COMPARED, Percentiles, ROUND_TRIPS};
use super::{Sample, TIMED, burst};
use crate::common::results::{Series, rounded};
use crate::common::rounds::Contest;
use crate::measure::Contestant;
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Row {
    forwarder: &'static str,
    frame_bytes: usize,
    family: &'static str,
    lossless_mpps: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    runs: usize,
    rounds: Vec<Option<f64>>,
    /// Whether in most rounds the generator's full speed lost no frame: the forwarder may handle
    /// more.
    generator_bound: bool,
    latency: Vec<OneWay>,
    round_trip: Option<RoundTrip>,
    /// Round trips at fixed loads, in ascending order.
    round_trips: Vec<FixedLoad>,
    /// The fraction of a core that the forwarder's processes take without frames.
    idle_core: Option<f64>,
    /// The loss at the ladder's loads.
    loss_curve: Vec<Point>,
    /// Every load of every search.
    tried: Vec<Point>,
    burst_frames: Option<f64>,
    /// Whether that is the longest tried burst: the forwarder may handle more.
    burst_is_bound: bool,
    recovery_us: Option<f64>,
    /// The overload from which the forwarder recovered.
    overload: Option<Point>,
}

#[derive(Serialize)]
struct OneWay {
    /// The load as a fraction of the highest without loss.
    load: f64,
    offered_mpps: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    /// Null if every round had too few samples.
    p99_9_us: Option<f64>,
    p99_99_us: Option<f64>,
    max_us: f64,
    /// The samples of all rounds.
    samples: u64,
    loss: f64,
    /// The clock reads per batch of the generator.
    batch: f64,
}

#[derive(Serialize)]
struct RoundTrip {
    /// The load, the same for every forwarder, with batches of one frame.
    offered_mpps: f64,
    batch: f64,
    p50_us: f64,
    p99_us: f64,
    /// The samples of all rounds.
    samples: u64,
    rounds: Vec<Option<f64>>,
}

/// Round trips at a load that is the same for every forwarder. Quantiles are of all rounds together.
#[derive(Serialize)]
struct FixedLoad {
    offered_mpps: f64,
    p50_us: f64,
    /// Null if all rounds together had too few samples.
    p99_us: Option<f64>,
    p99_99_us: Option<f64>,
    max_us: f64,
    samples: u64,
    loss: f64,
    /// The fraction of a core that the forwarder's processes took, the median of the rounds.
    core: f64,
    /// The median of each round.
    rounds: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct Point {
    offered_mpps: f64,
    loss: f64,
}

impl Row {
    pub(super) fn new(contest: &Contest<Contestant<'_>, Sample>) -> Self {
        let (samples, Contestant { forwarder, load }) = (&contest.samples, &contest.contestant);
        let rates = |sample: &Sample| Some(sample.best()? / 1e6);
        let rate = Series::new(samples.iter().filter_map(rates));
        // Without loss at full speed, the generator's limit bounds the result.
        let bound = |sample: &&Sample| {
            let found = sample.lossless.as_ref();
            found.is_some_and(|found| found.full.is_lossless())
        };
        let timed = (0..TIMED.len()).filter_map(|number| OneWay::new(samples, number));
        let searches = samples.iter().filter_map(|sample| sample.lossless.as_ref());
        let tried = searches.flat_map(|found| &found.tried);
        let recoveries = samples.iter().filter_map(|one| one.recovery.as_ref());
        let burst = median(samples, |sample| sample.burst.map(f64::from));
        Self {
            forwarder: forwarder.name,
            frame_bytes: load.frame_bytes(),
            family: load.family.name(),
            lossless_mpps: rate.as_ref().map(|rate| rounded(rate.median())),
            min: rate.as_ref().map(|rate| rounded(rate.min())),
            max: rate.as_ref().map(|rate| rounded(rate.max())),
            runs: samples.len(),
            rounds: in_rounds(samples, rates),
            generator_bound: samples.iter().filter(bound).count() * 2 > samples.len(),
            latency: timed.collect(),
            round_trip: RoundTrip::new(samples),
            round_trips: (0..ROUND_TRIPS.len())
                .filter_map(|number| FixedLoad::new(samples, number))
                .collect(),
            idle_core: median(samples, |one| one.idle_core).map(rounded),
            loss_curve: curve(samples),
            tried: tried
                .filter_map(|trial| Point::of([trial].into_iter()))
                .collect(),
            burst_frames: burst,
            burst_is_bound: burst.is_some_and(|frames| frames >= f64::from(burst::LONGEST)),
            recovery_us: median(samples, |one| {
                Some(one.recovery.as_ref()?.time?.as_secs_f64() * 1e6)
            }),
            overload: Point::of(recoveries.map(|recovery| &recovery.overload)),
        }
    }
}

impl OneWay {
    fn new(samples: &[Sample], number: usize) -> Option<Self> {
        let times = samples.iter().filter_map(|one| one.one_way[number]);
        let times: Vec<_> = times.collect();
        let middle = |value: fn(&Percentiles) -> f64| median(&times, |one| Some(value(one)));
        let time = |value: fn(&Percentiles) -> Option<f64>| median(&times, value).map(carried);
        Some(Self {
            load: TIMED[number],
            offered_mpps: rounded(middle(|one| one.trial.offered / 1e6)?),
            p50_us: time(|one| Some(one.p50))?,
            p90_us: time(|one| Some(one.p90))?,
            p99_us: time(|one| Some(one.p99))?,
            p99_9_us: time(|one| one.p99_9),
            p99_99_us: time(|one| one.p99_99),
            max_us: time(|one| Some(one.max))?,
            samples: times.iter().map(|one| one.samples).sum(),
            loss: middle(|one| one.trial.loss())?,
            batch: middle(|one| f64::from(one.batch))?,
        })
    }
}

impl RoundTrip {
    fn new(samples: &[Sample]) -> Option<Self> {
        let of = |one: &Sample| Some(one.round_trips[COMPARED].as_ref()?.percentiles);
        let trips = || samples.iter().filter_map(of);
        let middle = |value: fn(&Percentiles) -> f64| median(samples, |one| Some(value(&of(one)?)));
        Some(Self {
            offered_mpps: rounded(middle(|trip| trip.trial.offered / 1e6)?),
            batch: middle(|trip| f64::from(trip.batch))?,
            p50_us: carried(middle(|trip| trip.p50)?),
            p99_us: carried(middle(|trip| trip.p99)?),
            samples: trips().map(|trip| trip.samples).sum(),
            rounds: in_rounds(samples, |one| Some(carried(of(one)?.p50))),
        })
    }
}

impl FixedLoad {
    fn new(samples: &[Sample], number: usize) -> Option<Self> {
        let of = |one: &'_ Sample| {
            one.round_trips[number]
                .as_ref()
                .map(|trips| trips.percentiles)
        };
        let trips = || {
            samples
                .iter()
                .filter_map(|one| one.round_trips[number].as_ref())
        };
        let all = Delays::sum(trips().map(|trips| &trips.delays))?;
        let each: Vec<_> = trips().collect();
        Some(Self {
            offered_mpps: rounded(median(&each, |one| {
                Some(one.percentiles.trial.offered / 1e6)
            })?),
            p50_us: carried(all.quantile(0.5)),
            p99_us: all.all_but_one_in(100).map(carried),
            p99_99_us: all.all_but_one_in(10_000).map(carried),
            max_us: carried(all.longest()),
            samples: all.count(),
            loss: median(&each, |one| Some(one.percentiles.trial.loss()))?,
            core: rounded(median(&each, |one| Some(one.core))?),
            rounds: in_rounds(samples, |one| Some(carried(of(one)?.p50))),
        })
    }
}

impl Point {
    /// `None` without trials.
    fn of<'t>(trials: impl Iterator<Item = &'t Trial>) -> Option<Self> {
        let trials: Vec<_> = trials.collect();
        Some(Self {
            offered_mpps: rounded(median(&trials, |one| Some(one.offered / 1e6))?),
            loss: median(&trials, |one| Some(one.loss()))?,
        })
    }
}

/// The steps of the ladder that any round reached.
fn curve(samples: &[Sample]) -> Vec<Point> {
    (0..)
        .map_while(|step| Point::of(samples.iter().filter_map(|one| one.curve.get(step))))
        .collect()
}

/// The median, not rounded, to distinguish a few lost frames in millions from none.
fn median<T>(values: &[T], value: impl Fn(&T) -> Option<f64>) -> Option<f64> {
    Series::new(values.iter().filter_map(value)).map(|series| series.median())
}

/// A time rounded to the three digits of the sinks' buckets.
fn carried(time: f64) -> f64 {
    let unit = match time {
        time if time < 10.0 => 100.0,
        time if time < 100.0 => 10.0,
        _ => 1.0,
    };
    (time * unit).round() / unit
}

fn in_rounds(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Vec<Option<f64>> {
    let value = |sample| value(sample).map(rounded);
    samples.iter().map(value).collect()
}

pub(super) fn print(rows: &[Row]) {
    println!(
        "\n{:<22} {:>5}  {:>8}  (min .. max)    {:>6}  {:>12}  there and back: {:>8}  {:>8}",
        "forwarder", "bytes", "lossless", "burst", "recovery", "50 %", "99 %"
    );
    for row in rows {
        let trip = row.round_trip.as_ref();
        println!(
            "{:<22} {:>5}  {:>8}  ({} .. {})  {:>6}  {:>9} us  {:>25}  {:>5} us",
            row.forwarder,
            row.frame_bytes,
            shown(row.lossless_mpps, 3),
            shown(row.min, 3),
            shown(row.max, 3),
            burst(row),
            shown(row.recovery_us, 0),
            plain(trip.map(|trip| trip.p50_us)),
            plain(trip.map(|trip| trip.p99_us)),
        );
    }
    print_round_trips(rows);
    println!(
        "\n{:<22} {:>5}  load    Mpps  one way, us: 50 %    90 %    99 %  99.9 % 99.99 %     max  batch  loss",
        "forwarder", "bytes"
    );
    for row in rows {
        for times in &row.latency {
            println!(
                "{:<22} {:>5}  {:>4.1}  {:>6.3}  {:>17} {:>7} {:>7} {:>7} {:>7} {:>7}  {:>5.0}  {:.4} %",
                row.forwarder,
                row.frame_bytes,
                times.load,
                times.offered_mpps,
                times.p50_us,
                times.p90_us,
                times.p99_us,
                plain(times.p99_9_us),
                plain(times.p99_99_us),
                times.max_us,
                times.batch,
                times.loss * 100.0,
            );
        }
    }
}

fn print_round_trips(rows: &[Row]) {
    println!(
        "\n{:<22} {:>5}  frames/s  there and back, us: 50 %    99 %  99.99 %     max  core, %  idle, %",
        "forwarder", "bytes"
    );
    for row in rows {
        for trips in &row.round_trips {
            println!(
                "{:<22} {:>5}  {:>8.0}  {:>24} {:>7} {:>8} {:>7}  {:>7.1}  {:>7}",
                row.forwarder,
                row.frame_bytes,
                trips.offered_mpps * 1e6,
                trips.p50_us,
                plain(trips.p99_us),
                plain(trips.p99_99_us),
                trips.max_us,
                trips.core * 100.0,
                shown(row.idle_core.map(|core| core * 100.0), 2),
            );
        }
    }
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn plain(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Formats a burst, with a mark if it is the longest tried one.
fn burst(row: &Row) -> String {
    let at_least = if row.burst_is_bound { ">=" } else { "" };
    at_least.to_owned() + &shown(row.burst_frames, 0)
}
