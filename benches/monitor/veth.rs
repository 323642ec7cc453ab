//! Whether the tap hears every marked packet: frames at a given rate into its cable, a veth, held
//! against what was received.
//!
//! One core makes the frames, and the kernel receives and sorts them on that same core; another
//! one counts.

use exitmark::lab::bpf::{Programs, compile, interface_index};
use exitmark::lab::frames::tcp;
use exitmark::lab::{LabError, Netns, VethEnd, veth};
use exitmark::monitor::tap::{Tap, TapCounters, TapError, TapSettings};
use exitmark::packet::Dscp;
use libbpf_rs::{MapCore, MapFlags};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const LOADS: &str = "loads";
const ONLY: [u8; 4] = 0_u32.to_ne_bytes();
const HOST: &str = "192.0.2.10";

/// A load, in the order of the table.
struct Load {
    /// Of each frame, without the FCS.
    bytes: usize,
    /// Of so many frames one is marked.
    every: u64,
    /// Frames a second, in millions; none: as fast as it goes.
    rate: Option<f64>,
}

const TABLE: [Load; 8] = [
    load(60, 1, Some(0.5)),
    load(60, 1, Some(1.0)),
    load(60, 1, None),
    load(60, 2, Some(0.5)),
    load(60, 2, Some(1.0)),
    load(60, 2, None),
    load(1514, 1, Some(0.5)),
    load(1514, 2, Some(1.0)),
];

const fn load(bytes: usize, every: u64, rate: Option<f64>) -> Load {
    Load { bytes, every, rate }
}

/// What became of one load.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    sent: u64,
    marked: u64,
    counted: u64,
    tap: TapCounters,
}

/// Measures every load and prints the table.
///
/// # Errors
/// No privilege, or a kernel that cannot do it.
pub(crate) fn run(quick: bool) -> Result<(), LabError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bpf/tapped.bpf.c");
    let compiled = compile(&source)?;
    let rounds = if quick { 1 } else { ROUNDS };
    println!("from a veth; rates are medians of {rounds} runs, frames the sums of all\n");
    println!("bytes  marked  offered Mpps  counted Mpps  marked frames  counted  lost  by the tap");
    for load in &TABLE {
        let samples = (0..rounds)
            .map(|_| measure(&compiled, load, quick))
            .collect::<Result<Vec<_>, _>>()?;
        print(load, &samples);
    }
    Ok(())
}

fn print(load: &Load, samples: &[Sample]) {
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
    let median = |of: fn(&Sample) -> u64| {
        let mut rates: Vec<_> = samples
            .iter()
            .map(|sample| millions(of(sample)) / sample.seconds)
            .collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (marked, counted) = (sum(|sample| sample.marked), sum(|sample| sample.counted));
    println!(
        "{:5}  {:5}%  {:12.3}  {:12.3}  {marked:13}  {counted:7}  {:4}  {:10}",
        load.bytes,
        100 / load.every,
        median(|sample| sample.sent),
        median(|sample| sample.counted),
        marked - counted,
        sum(|sample| sample.tap.lost()),
    );
}

/// A million is 1.
#[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52 frames")]
fn millions(frames: u64) -> f64 {
    frames as f64 / 1e6
}

fn measure(compiled: &[u8], load: &Load, quick: bool) -> Result<Sample, LabError> {
    let monitor = Netns::new("monitor")?;
    let network = Netns::new("network")?;
    for netns in [&monitor, &network] {
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    }
    let end = |netns, name, mac| VethEnd {
        netns,
        name,
        mac,
        queues: 1,
    };
    veth(
        &end(&monitor, "tap0", "02:00:00:00:09:01"),
        &end(&network, "span0", "02:00:00:00:09:02"),
        1500,
    )?;
    let tap = monitor.run(open).map_err(failed)?;
    let programs = Programs::load("tapped.bpf.c", compiled)?;
    let interface = network.run(|| interface_index("span0"))?;
    let interval = load.rate.map_or(0.0, |rate| 1024.0 * 1e3 / rate);
    let order = [whole(interval), load.every, interface.into(), 0, 0, 0];
    programs.store(LOADS, 0, order.map(u64::to_ne_bytes).as_flattened())?;

    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let counter = monitor.spawn("counter", move || count(tap, &stop))?;
    let frames = whole(load.rate.unwrap_or(1.0) * if quick { 1e5 } else { 1e6 });
    let frame = tcp(&format!("{HOST}:40000"), "198.51.100.7:443")
        .payload(load.bytes - 34)
        .build();
    let generator = programs.clone();
    let generator = network.spawn("generator", move || {
        pin(0)?;
        let begin = Instant::now();
        let repeat = u32::try_from(frames).unwrap_or(u32::MAX);
        generator.run_live("generate", &frame, repeat, 64)?;
        Ok::<_, LabError>(begin.elapsed())
    })?;
    let elapsed = generator.join();
    is_over.store(true, Ordering::Relaxed);
    let panicked = |_| LabError("a thread panicked".to_owned());
    let (counted, tap) = counter.join().map_err(panicked)??;
    let elapsed = elapsed.map_err(panicked)??;
    let [_, _, _, _, sent, marked] = numbers(&programs)?;
    Ok(Sample {
        seconds: elapsed.as_secs_f64(),
        sent,
        marked,
        counted,
        tap,
    })
}

fn open() -> Result<Tap, TapError> {
    Tap::open(&TapSettings {
        interface: "tap0".to_owned(),
        dscp: Dscp::AF11,
        clearnet: vec![std::net::Ipv4Addr::new(192, 0, 2, 10).into()],
        ring: TapSettings::RING,
    })
}

/// Counts until it is over and nothing is left.
fn count(mut tap: Tap, is_over: &AtomicBool) -> Result<(u64, TapCounters), LabError> {
    pin(1)?;
    let mut counted = 0;
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        let taken = tap
            .receive(Duration::from_millis(10), |batch| {
                std::hint::black_box(batch);
            })
            .map_err(failed)?;
        counted += taken as u64;
        if was_over && taken == 0 {
            break;
        }
    }
    let counters = tap.counters().map_err(failed)?;
    tap.close().map_err(failed)?;
    Ok((counted, counters))
}

fn failed(error: TapError) -> LabError {
    LabError(error.to_string())
}

/// Keeps the calling thread on this core, where there is such a one.
fn pin(core: usize) -> Result<(), LabError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(core % cores)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| LabError(format!("cannot keep a thread on core {core}: {error}")))
}

/// The numbers of a load, as its program has them.
fn numbers(programs: &Programs) -> Result<[u64; 6], LabError> {
    let value = programs
        .map(LOADS)?
        .lookup(&ONLY, MapFlags::ANY)
        .map_err(|error| LabError(format!("cannot read the map {LOADS}: {error}")))?
        .unwrap_or_default();
    let mut numbers = [0; 6];
    for (number, bytes) in numbers.iter_mut().zip(value.as_chunks().0) {
        *number = u64::from_ne_bytes(*bytes);
    }
    Ok(numbers)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive numbers"
)]
const fn whole(number: f64) -> u64 {
    number as u64
}
