//! Checks that every marked packet at a tap is counted: sends frames at a given rate into its
//! cable, a veth, with all or every second one marked, and compares the count.
//!
//! One core makes the frames, and the kernel receives and filters them on the same core; another
//! core counts.

use crate::systems::Databases;
use crate::{Offered, Row, Sample, Unit};
use exitmark_lab::bpf::{Programs, interface_index};
use exitmark_lab::frames::tcp;
use exitmark_lab::tap::{SPAN, TAP, TapSite};
use exitmark_lab::{LabError, join, pin_to};
use exitmark_monitor::filter::Filter;
use exitmark_monitor::tally::{Counter, DEFAULT_CELLS};
use exitmark_monitor::tap::{Tap, TapCounters, TapError, TapSettings};
use exitmark_policy::packet::Dscp;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LOADS: &str = "loads";
const HOST: &str = "192.0.2.10";

#[derive(Clone, Copy)]
struct Load {
    /// Frame size in bytes, without the FCS.
    bytes: usize,
    /// One of this many frames is marked.
    every: u64,
    /// Millions of frames per second; `None` is the maximum rate. Higher than the rate in the name,
    /// because the sender is late at times and catches up little: the named rate is the least that
    /// is offered.
    rate: Option<f64>,
}

const TABLE: [(&str, usize, u64, Option<f64>); 6] = [
    ("veth/64 B, all, 0.5 Mpps", 60, 1, Some(0.55)),
    ("veth/64 B, all, 1 Mpps", 60, 1, Some(1.1)),
    ("veth/64 B, half, 1 Mpps", 60, 2, Some(1.1)),
    ("veth/64 B, half, flat out", 60, 2, None),
    ("veth/1518 B, all, 0.5 Mpps", 1514, 1, Some(0.55)),
    ("veth/1518 B, all, flat out", 1514, 1, None),
];

pub(crate) fn rows(databases: &Databases) -> impl Iterator<Item = Row> {
    TABLE.into_iter().map(|(name, bytes, every, rate)| {
        let databases = databases.clone();
        let load = Load { bytes, every, rate };
        Row {
            name,
            measure: Box::new(move |length| measure(&databases, &load, length)),
        }
    })
}

/// In millions.
#[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52 frames")]
fn millions(frames: u64) -> f64 {
    frames as f64 / 1e6
}

/// Sends for about `length`, and counts.
fn measure(databases: &Databases, load: &Load, length: Duration) -> Result<Sample, LabError> {
    let TapSite { monitor, network } = TapSite::build(1, 1500)?;
    let tap = monitor.run(open).map_err(failed)?;
    let programs = Programs::build("benches/bpf/tapped.bpf.c")?;
    let interface = network.run(|| interface_index(SPAN))?;
    let interval = load.rate.map_or(0.0, |rate| 1024.0 * 1e3 / rate);
    let order = [whole(interval), load.every, interface.into(), 0, 0, 0];
    programs.store(LOADS, 0, order.map(u64::to_ne_bytes).as_flattened())?;

    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let filter = filter();
    let places = Arc::clone(&databases.places);
    let counter = Counter::new(filter, places, DEFAULT_CELLS);
    let counter = monitor.spawn("counter", move || count(tap, counter, &stop))?;
    let frames = whole(load.rate.unwrap_or(1.0) * 1e6 * length.as_secs_f64());
    let frame = tcp(&format!("{HOST}:40000"), "198.51.100.7:443")
        .payload(load.bytes - 34)
        .build();
    let generator = programs.clone();
    let generator = network.spawn("generator", move || {
        stay_on(0)?;
        let begin = Instant::now();
        let repeat = u32::try_from(frames).unwrap_or(u32::MAX);
        generator.run_live("generate", &frame, repeat, 64)?;
        Ok::<_, LabError>(begin.elapsed())
    })?;
    let elapsed = join(generator, "a thread");
    is_over.store(true, Ordering::Relaxed);
    let (counted, tap) = join(counter, "a thread")??;
    let elapsed = elapsed??;
    let [_, _, _, _, sent, marked] = programs.numbers(LOADS, 0)?;
    if marked - counted != tap.lost() {
        return Err(LabError(format!(
            "{marked} frames were marked, {counted} counted, and the tap knows of {} lost ones",
            tap.lost()
        )));
    }
    let seconds = elapsed.as_secs_f64();
    Ok(Sample {
        value: millions(counted) / seconds,
        unit: Unit::Tap(Offered {
            rate: millions(sent) / seconds,
            marked,
            lost: tap.lost(),
        }),
    })
}

fn open() -> Result<Tap, TapError> {
    Tap::open(&TapSettings {
        interface: TAP.to_owned(),
        filter: filter(),
        ring: TapSettings::RING,
    })
}

fn filter() -> Filter {
    let address: Option<IpAddr> = HOST.parse().ok();
    Filter::outbound(Dscp::AF11, address.into_iter().collect())
}

/// Counts until the sender is done and nothing is left.
fn count(
    mut tap: Tap,
    mut counter: Counter,
    is_over: &AtomicBool,
) -> Result<(u64, TapCounters), LabError> {
    stay_on(1)?;
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        let taken = tap
            .receive(Duration::from_millis(10), |batch| counter.count(batch))
            .map_err(failed)?;
        if was_over && taken == 0 {
            break;
        }
    }
    let counters = tap.counters().map_err(failed)?;
    tap.close().map_err(failed)?;
    let [(_, v4), (_, v6)] = counter.tally().totals();
    Ok((v4.packets + v6.packets, counters))
}

fn failed(error: TapError) -> LabError {
    LabError(error.to_string())
}

/// Pins the calling thread to this core, if it exists.
fn stay_on(core: usize) -> Result<(), LabError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    pin_to([core % cores])
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive numbers"
)]
const fn whole(number: f64) -> u64 {
    number as u64
}
