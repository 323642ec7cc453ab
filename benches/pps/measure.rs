//! One run of one contestant: a fresh site, one forwarder, a load at full speed, and a check that
//! the forwarder did its job.

use crate::common::results::number;
use crate::load::Load;
use crate::peers::{Forwarder, Job};
use crate::sample::Sample;
use crate::site::{self, Site};
use crate::traffic::{Counts, Traffic};
use exitmark_lab::LabError;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

/// The frames of the warm-up, enough to fill caches and touch pages.
const WARM_UP_FRAMES: u32 = 100_000;
const SAMPLING: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
pub(crate) struct Contestant<'f> {
    pub(crate) forwarder: &'f Forwarder,
    pub(crate) load: Load,
}

impl<'f> Contestant<'f> {
    pub(crate) fn all(forwarders: &'f [Forwarder], load: Load) -> impl Iterator<Item = Self> {
        let forwarders = forwarders.iter();
        forwarders.map(move |forwarder| Self { forwarder, load })
    }

    pub(crate) fn run(&self, compiled: &[u8], length: Duration) -> Result<Sample, LabError> {
        let Self { forwarder, load } = *self;
        let site = site::build(load.queues)?;
        let traffic = Traffic::new(compiled, &site, load, forwarder.next_hop)?;
        let running = forwarder.start(&site, &traffic, &load)?;
        // Losses during the warm-up, or while the forwarder changes its mode, do count.
        let before = (traffic.counts()?, site.dropped()?);
        let frames = frames_for(&site, &traffic, length)?;
        traffic.drained()?;
        let rate = steady_rate(&site, &traffic, frames)?;
        let counts = traffic.drained()?.since(&before.0);
        let dropped = site.dropped()?.since(&before.1);
        running()?;
        check(forwarder.job, load, &counts)?;
        Ok(Sample::new(rate, &counts, &dropped))
    }
}

impl fmt::Display for Contestant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.forwarder.name, self.load)
    }
}

/// The number of frames that take about this long to send, from increasing loads. A call of
/// BPF_PROG_RUN is limited by repetitions, not by time, and takes milliseconds to set up.
fn frames_for(site: &Site, traffic: &Traffic, length: Duration) -> Result<u32, LabError> {
    let time = |frames| {
        let begin = Instant::now();
        traffic.send(site, frames)?.finish()?;
        Ok::<_, LabError>(begin.elapsed())
    };
    let set_up = time(64)?;
    let mut frames = WARM_UP_FRAMES;
    loop {
        let sending = time(frames)?.saturating_sub(set_up);
        if sending >= length / 10 {
            let wanted = f64::from(frames) * length.as_secs_f64() / sending.as_secs_f64();
            return whole(wanted);
        }
        frames = whole(f64::from(frames) * 3.0)?;
    }
}

/// A number of frames, if one call can send this many.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be within the range of the type"
)]
fn whole(frames: f64) -> Result<u32, LabError> {
    match (0.0..=f64::from(i32::MAX)).contains(&frames) {
        true => Ok(frames as u32),
        false => Err(LabError(format!(
            "{frames:.0} frames are more than one run can have"
        ))),
    }
}

/// Sends a load and returns the rate of arrival in frames per second, without the generators'
/// set-up and without the time after the first generator has finished.
fn steady_rate(site: &Site, traffic: &Traffic, frames: u32) -> Result<f64, LabError> {
    let start = traffic.counts()?;
    let sending = traffic.send(site, frames)?;
    let mut samples: Vec<Counts> = Vec::new();
    loop {
        thread::sleep(SAMPLING);
        let counts = traffic.counts()?.since(&start);
        if !sending.is_on() {
            break;
        }
        samples.push(counts);
    }
    sending.finish()?;
    let frames = u64::from(frames);
    let mut steady = samples.iter().filter(|counts| counts.sent > frames / 20);
    match (steady.next(), steady.next_back()) {
        (Some(first), Some(last)) => {
            let time = last.at.duration_since(first.at);
            Ok(number(last.arrived() - first.arrived()) / time.as_secs_f64())
        }
        _ => Err(LabError(
            "the load was over too soon to tell a rate; give it more seconds".to_owned(),
        )),
    }
}

/// Fails if the forwarder did not mark or steer as its job requires: it then has no rate.
pub(crate) fn check(job: Job, load: Load, counts: &Counts) -> Result<(), LabError> {
    let (uplink, incoming) = (&counts.uplink, &counts.incoming);
    let (some_exit, some_relay) = load.kinds();
    let fine = match job {
        Job::Wire => {
            uplink.exit_marked + uplink.relay_marked + incoming.arrived() == 0
                && (uplink.exit_unmarked > 0) == some_exit
                && (uplink.relay_unmarked > 0) == some_relay
        }
        Job::MarkAll => {
            uplink.exit_unmarked + uplink.relay_unmarked + incoming.arrived() == 0
                && (uplink.exit_marked > 0) == some_exit
                && (uplink.relay_marked > 0) == some_relay
        }
        Job::Mark => {
            uplink.exit_unmarked + uplink.relay_marked + incoming.arrived() == 0
                && (uplink.exit_marked > 0) == some_exit
                && (uplink.relay_unmarked > 0) == some_relay
        }
        Job::MarkAndSteer => {
            uplink.arrived() == uplink.exit_marked
                && incoming.arrived() == incoming.relay_unmarked
                && (uplink.exit_marked > 0) == some_exit
                && (incoming.relay_unmarked > 0) == some_relay
        }
    };
    if fine && uplink.astray + incoming.astray == 0 {
        Ok(())
    } else {
        Err(LabError(format!(
            "it did not do its job ({job:?}); of {} frames there arrived at the uplink {uplink:?}, \
             at the incoming network {incoming:?}",
            counts.sent
        )))
    }
}
