//! Latency of frames at a load: one way, from the host's departure to the arrival at a sink (RFC
//! 2544, 26.2), and the round trip.

use super::core_time;
use super::delays::{Delays, ONE_WAY, ROUND_TRIP};
use super::pace::{FULL_BATCH, LoadParameters, Pacer, Trial};
use crate::common::results::number;
use crate::load::Family;
use crate::site::{BOX_HOST, BOX_UPLINK, HOST_MAC};
use exitmark_lab::LabError;
use std::fmt;
use std::thread;
use std::time::Duration;

/// The clock reads per batch: with fewer, frames leave sooner, but the generator's limit is lower.
const BATCHES: [u32; 4] = [1, 4, 16, FULL_BATCH];
/// The fraction of its best rate that the generator must send with a batch size.
const CARRIED: f64 = 0.97;
/// The shortest trial to decide that.
const SHORTEST: Duration = Duration::from_millis(20);
/// Enough for a quantile of four nines, and too few to slow down a fast forwarder.
const STAMPS_A_SECOND: f64 = 300_000.0;
/// The loads of the round trip in frames per second, the same for all forwarders, and their least
/// lengths: enough for a thousand probes even on a busy machine; relay frames do not come back.
/// Frames leave singly, when they are due.
pub(super) const ROUND_TRIPS: [(f64, Duration); 4] = [
    (1000.0, Duration::from_millis(2500)),
    (5000.0, Duration::from_millis(750)),
    (20_000.0, Duration::from_millis(500)),
    (200_000.0, Duration::from_millis(500)),
];
/// The index of the load whose round trip every size of frames has: each frame is back before the
/// next one leaves.
pub(super) const COMPARED: usize = 1;
const TRIPS_BATCH: u32 = 1;
const TRIPS_WARM_UP: Duration = Duration::from_millis(100);
/// The fraction of probes that must come back for representative times.
const BACK: f64 = 0.99;

/// Latency of one load, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percentiles {
    pub(super) trial: Trial,
    pub(super) batch: u32,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: Option<f64>,
    pub(super) p99_99: Option<f64>,
    pub(super) max: f64,
    pub(super) samples: u64,
}

impl Percentiles {
    /// `None` with too few times for a quantile of two nines.
    fn new(trial: Trial, batch: u32, delays: &Delays) -> Option<Self> {
        let all_but_one_in = |frames| delays.all_but_one_in(frames);
        Some(Self {
            trial,
            batch,
            p50: delays.quantile(0.5),
            p90: delays.quantile(0.9),
            p99: all_but_one_in(100)?,
            p99_9: all_but_one_in(1000),
            p99_99: all_but_one_in(10_000),
            max: delays.longest(),
            samples: delays.count(),
        })
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} us (99 %: {:.1} us)", self.p50, self.p99)
    }
}

/// The length of the measurement without a load.
const IDLE_LENGTH: Duration = Duration::from_secs(1);

/// The latency of a load, or why it was not measured.
type Timed = Result<Result<Percentiles, String>, LabError>;

pub(super) fn one_way(pacer: &Pacer<'_>, rate: f64) -> Timed {
    let parameters = LoadParameters {
        batch: batch_for(pacer, rate)?,
        stamp_every: stamp_every(rate),
        ..LoadParameters::steady(rate, pacer.timed)
    };
    timed(pacer, &parameters, ONE_WAY)
}

/// The round trips of one load.
pub(super) struct Trips {
    pub(super) percentiles: Percentiles,
    pub(super) delays: Delays,
    /// The fraction of a core that the forwarder's processes took.
    pub(super) core: f64,
}

/// Measures the round trip of every exit frame at one of [`ROUND_TRIPS`], after
/// [`prepare_way_back`].
pub(super) fn round_trip(
    pacer: &Pacer<'_>,
    number: usize,
) -> Result<Result<Trips, String>, LabError> {
    let (rate, least) = ROUND_TRIPS[number];
    let parameters = LoadParameters {
        batch: TRIPS_BATCH,
        stamp_every: Some(1),
        probe: true,
        ..LoadParameters::steady(rate, least.mul_f64(pacer.scale.max(1.0)))
    };
    pacer.run(&LoadParameters {
        change: TRIPS_WARM_UP,
        length: TRIPS_WARM_UP,
        ..parameters
    })?;
    pacer.rest_after_loss();
    let before = core_time::of_children()?;
    let found = times(pacer, &parameters, ROUND_TRIP)?;
    let spent = core_time::of_children()?.saturating_sub(before);
    Ok(found.map(|(percentiles, delays)| Trips {
        percentiles,
        delays,
        core: core_time::fraction(spent, parameters.length),
    }))
}

/// The fraction of a core that the forwarder's processes take while no frame arrives.
pub(super) fn idle_core() -> Result<f64, LabError> {
    let before = core_time::of_children()?;
    thread::sleep(IDLE_LENGTH);
    let spent = core_time::of_children()?.saturating_sub(before);
    Ok(core_time::fraction(spent, IDLE_LENGTH))
}

fn timed(pacer: &Pacer<'_>, parameters: &LoadParameters, way: u32) -> Timed {
    Ok(times(pacer, parameters, way)?.map(|(percentiles, _)| percentiles))
}

fn times(
    pacer: &Pacer<'_>,
    parameters: &LoadParameters,
    way: u32,
) -> Result<Result<(Percentiles, Delays), String>, LabError> {
    let programs = &pacer.traffic.programs;
    pacer.rest_after_loss();
    Delays::clear(programs, way)?;
    let trial = pacer.run(parameters)?;
    let delays = Delays::read(programs, way)?;
    let expected = trial.arrived / parameters.stamp_every.unwrap_or(1);
    if way == ONE_WAY && trial.is_lossless() && delays.count() < expected {
        return Err(LabError(format!(
            "of {expected} frames that should have the time of their departure only {} had it",
            delays.count()
        )));
    }
    let probes = pacer.probes()?;
    if number(delays.count()) < number(probes) * BACK {
        let back = delays.count();
        return Ok(Err(format!("of {probes} probes only {back} came back")));
    }
    let (offered, timed) = (trial.offered, delays.count());
    let too_few = || {
        format!(
            "at {offered:.0} frames a second only {timed} could be timed: too few to tell what \
             99 % are"
        )
    };
    let percentiles = Percentiles::new(trial, parameters.batch, &delays);
    Ok(percentiles
        .map(|percentiles| (percentiles, delays))
        .ok_or_else(too_few))
}

/// The smallest batch size that sustains a load, or the best one.
fn batch_for(pacer: &Pacer<'_>, rate: f64) -> Result<u32, LabError> {
    let mut offered = [0.0; BATCHES.len()];
    for (batch, offered) in BATCHES.into_iter().zip(&mut offered) {
        let parameters = LoadParameters {
            batch,
            stamp_every: stamp_every(rate),
            ..LoadParameters::steady(rate, SHORTEST.max(pacer.length / 4))
        };
        *offered = pacer.run(&parameters)?.offered;
        if *offered >= rate * CARRIED {
            return Ok(batch);
        }
    }
    let most = offered.into_iter().fold(0.0, f64::max);
    let mut tried = BATCHES.into_iter().zip(offered);
    let carries = tried.find(|(_, offered)| *offered >= most * CARRIED);
    Ok(carries.map_or(FULL_BATCH, |(batch, _)| batch))
}

/// An odd number, so that stamps cover all flows, whose number is a power of two.
fn stamp_every(rate: f64) -> Option<u64> {
    Some(one_in(rate, STAMPS_A_SECOND) | 1)
}

/// The ratio of `all` to `some`, at least 1.
fn one_in(all: f64, some: f64) -> u64 {
    let mut number = 1_u32;
    while f64::from(number) * some < all {
        number += 1;
    }
    number.into()
}

/// Prepares the return path as on a real box: the NIC towards the uplink polls, which a veth does
/// only with XDP or GRO, and a router knows the host's MAC address.
pub(super) fn prepare_way_back(pacer: &Pacer<'_>) -> Result<(), LabError> {
    let middle = &pacer.site.middle;
    middle.command("ethtool", &["-K", BOX_UPLINK, "gro", "on"])?;
    let load = &pacer.load;
    let (ip, is_router) = match load.family {
        Family::Ipv4 => ("-4", true),
        Family::Ipv6 => ("-6", !middle.ip("-6 address show")?.is_empty()),
    };
    if is_router {
        for host in load.host_prefixes().take(1) {
            middle.ip(&format!(
                "{ip} neighbour replace {host} lladdr {HOST_MAC} nud permanent dev {BOX_HOST}"
            ))?;
        }
    }
    Ok(())
}
