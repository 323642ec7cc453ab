//! What the rounds found out, for people and for programs: the tables and `latency.json`.
//!
//! Every value is the median of the rounds that have it, null when none has.

use super::pace::Trial;
use super::trips::Percentiles;
use super::{Sample, TIMED};
use crate::common::results::{Series, rounded};
use crate::common::rounds::Contest;
use crate::measure::Contestant;
use serde::Serialize;

/// All rounds of one forwarder with one load.
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
    latency: Vec<OneWay>,
    round_trip: Option<RoundTrip>,
    /// By the ladder's loads.
    loss_curve: Vec<Point>,
    /// Every load of every search.
    tried: Vec<Point>,
    burst_frames: Option<f64>,
    recovery_us: Option<f64>,
    /// What the forwarder recovered from.
    overload: Option<Point>,
}

#[derive(Serialize)]
struct OneWay {
    /// As a part of the highest load without loss.
    load: f64,
    offered_mpps: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p99_9_us: f64,
    p99_99_us: f64,
    max_us: f64,
    /// Of all rounds.
    samples: u64,
    loss: f64,
    /// How many looks at the clock the generator's batches had.
    batch: f64,
}

#[derive(Serialize)]
struct RoundTrip {
    p50_us: f64,
    p99_us: f64,
    /// Of all rounds.
    samples: u64,
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
        let rates = |sample: &Sample| Some(sample.lossless.as_ref()?.best.offered / 1e6);
        let rate = Series::new(samples.iter().filter_map(rates));
        Self {
            forwarder: forwarder.name(),
            frame_bytes: load.frame_bytes(),
            family: load.family.name(),
            lossless_mpps: rate.as_ref().map(|rate| rounded(rate.median())),
            min: rate.as_ref().map(|rate| rounded(rate.min())),
            max: rate.as_ref().map(|rate| rounded(rate.max())),
            runs: samples.len(),
            rounds: in_rounds(samples, rates),
            latency: (0..TIMED.len())
                .filter_map(|number| OneWay::new(samples, number))
                .collect(),
            round_trip: RoundTrip::new(samples),
            loss_curve: curve(samples),
            tried: samples
                .iter()
                .filter_map(|sample| sample.lossless.as_ref())
                .flat_map(|found| &found.tried)
                .filter_map(|trial| Point::of([trial].into_iter()))
                .collect(),
            burst_frames: median(samples, |sample| sample.burst.map(f64::from)),
            recovery_us: median(samples, |one| {
                Some(one.recovery.as_ref()?.time.as_secs_f64() * 1e6)
            }),
            overload: Point::of(
                samples
                    .iter()
                    .filter_map(|one| Some(&one.recovery.as_ref()?.overload)),
            ),
        }
    }
}

impl OneWay {
    fn new(samples: &[Sample], number: usize) -> Option<Self> {
        let times: Vec<_> = samples
            .iter()
            .filter_map(|one| one.one_way[number])
            .collect();
        let middle = |value: fn(&Percentiles) -> f64| median(&times, |one| Some(value(one)));
        Some(Self {
            load: TIMED[number],
            offered_mpps: rounded(middle(|one| one.trial.offered / 1e6)?),
            p50_us: middle(|one| one.p50)?,
            p90_us: middle(|one| one.p90)?,
            p99_us: middle(|one| one.p99)?,
            p99_9_us: middle(|one| one.p99_9)?,
            p99_99_us: middle(|one| one.p99_99)?,
            max_us: middle(|one| one.max)?,
            samples: times.iter().map(|one| one.samples).sum(),
            loss: middle(|one| one.trial.loss())?,
            batch: middle(|one| f64::from(one.batch))?,
        })
    }
}

impl RoundTrip {
    fn new(samples: &[Sample]) -> Option<Self> {
        let trips = || samples.iter().filter_map(|one| one.round_trip);
        Some(Self {
            p50_us: median(samples, |one| Some(one.round_trip?.p50))?,
            p99_us: median(samples, |one| Some(one.round_trip?.p99))?,
            samples: trips().map(|trip| trip.samples).sum(),
            rounds: in_rounds(samples, |one| Some(one.round_trip?.p50)),
        })
    }
}

impl Point {
    /// None of no trials.
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

/// Loss is not rounded: few lost frames of millions are to be told from none.
fn median<T>(values: &[T], value: impl Fn(&T) -> Option<f64>) -> Option<f64> {
    Series::new(values.iter().filter_map(value)).map(|series| series.median())
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
            shown(row.burst_frames, 0),
            shown(row.recovery_us, 0),
            shown(trip.map(|trip| trip.p50_us), 1),
            shown(trip.map(|trip| trip.p99_us), 1),
        );
    }
    println!(
        "\n{:<22} {:>5}  load    Mpps  one way, us: 50 %    90 %    99 %  99.9 % 99.99 %     max  batch  loss",
        "forwarder", "bytes"
    );
    for row in rows {
        for times in &row.latency {
            println!(
                "{:<22} {:>5}  {:>4.1}  {:>6.3}  {:>17.1} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>7.1}  {:>5.0}  {:.4} %",
                row.forwarder,
                row.frame_bytes,
                times.load,
                times.offered_mpps,
                times.p50_us,
                times.p90_us,
                times.p99_us,
                times.p99_9_us,
                times.p99_99_us,
                times.max_us,
                times.batch,
                times.loss * 100.0,
            );
        }
    }
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}
