//! How long frames are under way at a load: one way, from the host's departure to the arrival at
//! a sink (RFC 2544, 26.2), and there and back.

use super::delays::{Delays, ONE_WAY, ROUND_TRIP};
use super::pace::{FULL_BATCH, Order, Pacer, Trial, number};
use crate::load::Family;
use crate::site::{BOX_HOST, BOX_UPLINK, HOST_MAC};
use exitmark::lab::LabError;
use std::fmt;
use std::time::Duration;

/// How many looks at the clock a batch may have: the fewer, the sooner a frame leaves, but the
/// less the generator can do.
const BATCHES: [u32; 4] = [1, 4, 16, FULL_BATCH];
/// Of what the generator sends at best with any batch, one that carries a load sends this part.
const CARRIED: f64 = 0.97;
/// Less than this is too short to tell that.
const SHORTEST: Duration = Duration::from_millis(20);
/// Enough for a quantile of four nines, and too few to slow a fast forwarder down.
const STAMPS_A_SECOND: f64 = 300_000.0;
/// The one load at which frames go there and back, the same for all forwarders: frames a second,
/// so few that one is back before the next leaves. Each leaves when it is due, alone.
const TRIPS_A_SECOND: f64 = 5000.0;
const TRIPS_BATCH: u32 = 1;
/// Relay frames do not come back; in this time a thousand others do, on a busy machine too.
const TRIPS_LENGTH: Duration = Duration::from_millis(750);
const TRIPS_WARM_UP: Duration = Duration::from_millis(100);
/// If less than this part of the probes is back, their times are not those of all.
const BACK: f64 = 0.99;
/// Of so many frames beyond a quantile it can be told.
const BEYOND: u64 = 10;

/// Times of one load, in microseconds.
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
    /// None of too few times for a quantile of two nines.
    fn new(trial: Trial, batch: u32, delays: &Delays) -> Option<Self> {
        let samples = delays.count();
        let all_but_one_in = |frames: u32| {
            let part = 1.0 - 1.0 / f64::from(frames);
            (samples >= BEYOND * u64::from(frames)).then(|| delays.quantile(part))
        };
        Some(Self {
            trial,
            batch,
            p50: delays.quantile(0.5),
            p90: delays.quantile(0.9),
            p99: all_but_one_in(100)?,
            p99_9: all_but_one_in(1000),
            p99_99: all_but_one_in(10_000),
            max: delays.longest(),
            samples,
        })
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} us (99 %: {:.1} us)", self.p50, self.p99)
    }
}

pub(super) fn one_way(
    pacer: &Pacer<'_>,
    rate: f64,
) -> Result<Result<Percentiles, String>, LabError> {
    let order = Order {
        batch: batch_for(pacer, rate)?,
        stamp_every: stamp_every(rate),
        ..Order::steady(rate, pacer.timed)
    };
    timed(pacer, &order, ONE_WAY)
}

/// Every exit frame there and back.
pub(super) fn round_trip(pacer: &Pacer<'_>) -> Result<Result<Percentiles, String>, LabError> {
    make_way_back(pacer)?;
    let order = Order {
        batch: TRIPS_BATCH,
        stamp_every: Some(1),
        probe: true,
        ..Order::steady(TRIPS_A_SECOND, TRIPS_LENGTH)
    };
    pacer.run(&Order {
        change: TRIPS_WARM_UP,
        length: TRIPS_WARM_UP,
        ..order
    })?;
    timed(pacer, &order, ROUND_TRIP)
}

fn timed(
    pacer: &Pacer<'_>,
    order: &Order,
    way: u32,
) -> Result<Result<Percentiles, String>, LabError> {
    let programs = pacer.traffic.programs();
    pacer.rest_after_loss();
    Delays::clear(programs, way)?;
    let trial = pacer.run(order)?;
    let delays = Delays::read(programs, way)?;
    let expected = trial.arrived / order.stamp_every.unwrap_or(1);
    if way == ONE_WAY && trial.is_lossless() && delays.count() < expected {
        return Err(LabError(format!(
            "of {expected} frames that should have the time of their departure only {} had it",
            delays.count()
        )));
    }
    let probes = pacer.probes()?;
    if number(delays.count()) < number(probes) * BACK {
        return Ok(Err(format!(
            "of {probes} probes only {} came back",
            delays.count()
        )));
    }
    Ok(
        Percentiles::new(trial, order.batch, &delays).ok_or_else(|| {
            format!(
                "at {:.0} frames a second only {} could be timed: too few to tell what 99 % are",
                trial.offered,
                delays.count()
            )
        }),
    )
}

/// The smallest batch that carries a load, as far as any does.
fn batch_for(pacer: &Pacer<'_>, rate: f64) -> Result<u32, LabError> {
    let mut offered = [0.0; BATCHES.len()];
    for (batch, offered) in BATCHES.into_iter().zip(&mut offered) {
        let order = Order {
            batch,
            stamp_every: stamp_every(rate),
            ..Order::steady(rate, SHORTEST.max(pacer.length / 4))
        };
        *offered = pacer.run(&order)?.offered;
        if *offered >= rate * CARRIED {
            return Ok(batch);
        }
    }
    let most = offered.into_iter().fold(0.0, f64::max);
    let mut tried = BATCHES.into_iter().zip(offered);
    let carries = tried.find(|(_, offered)| *offered >= most * CARRIED);
    Ok(carries.map_or(FULL_BATCH, |(batch, _)| batch))
}

/// An odd number, so that every one of the flows, of which there are a power of two, has its turn.
fn stamp_every(rate: f64) -> Option<u64> {
    Some(one_in(rate, STAMPS_A_SECOND) | 1)
}

/// How many of `all` there are to each of `some`, at least one.
fn one_in(all: f64, some: f64) -> u64 {
    let mut number = 1_u32;
    while f64::from(number) * some < all {
        number += 1;
    }
    number.into()
}

/// What a box has on its own that is plugged in for good: its NIC towards the uplink polls, which
/// a veth does for XDP or GRO alone, and a router knows the host's MAC address.
fn make_way_back(pacer: &Pacer<'_>) -> Result<(), LabError> {
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
