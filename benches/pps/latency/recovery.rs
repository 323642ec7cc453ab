//! How long after an overload frames are still lost (RFC 2544, 26.5).
//!
//! The generator sends twice what the forwarder takes, or what it can, then at once half of what
//! the forwarder takes. Frames are counted by the time of their departure, those that were sent
//! and those that arrived; where the numbers differ, frames of that time were lost.

use super::pace::{Order, Pacer, Trial, number};
use exitmark::lab::LabError;
use std::time::Duration;

// Contract with latency.bpf.h.
const MOMENTS: &str = "moments";
const MOMENT_NANOSECONDS: u64 = 1 << 16;

/// As long as a trial, but no longer than this: the moments are 32,768.
const OVERLOAD: Duration = Duration::from_millis(250);
/// For how long nothing may be lost any more: so many trials, but no longer than a second. With
/// runs of two seconds that is five eighths of a second.
const CLEAN_TRIALS: u32 = 5;
const CLEAN: Duration = Duration::from_secs(1);

pub(super) struct Recovery {
    pub(super) overload: Trial,
    /// From its end to the departure of the first frame from which on nothing is lost. None when
    /// the overload lost nothing: there is nothing to recover from.
    pub(super) time: Option<Duration>,
}

/// Once for each site: the moments are not cleared.
pub(super) fn after_overload(
    pacer: &Pacer<'_>,
    lossless: f64,
) -> Result<Result<Recovery, String>, LabError> {
    let overload = moments_in(pacer.length.min(OVERLOAD));
    let clean = moments_in((pacer.length * CLEAN_TRIALS).min(CLEAN));
    // As long as the overload, once more, is the time to recover in.
    let all = overload * 2 + clean;
    pacer.run(&Order {
        rates: [lossless * 2.0, lossless / 2.0],
        change: moment() * overload,
        stamp_every: Some(1),
        keep_moments: true,
        ..Order::steady(lossless, moment() * all)
    })?;
    let (mut sent, mut arrived) = (0, 0);
    for at in 0..overload {
        let [departed, taken] = pacer.numbers(MOMENTS, at)?;
        sent += departed;
        arrived += taken;
    }
    let overloaded = Trial {
        offered: number(sent) / (moment() * overload).as_secs_f64(),
        sent,
        arrived,
    };
    if overloaded.is_lossless() {
        return Ok(Ok(Recovery {
            overload: overloaded,
            time: None,
        }));
    }
    let mut recovered = overload;
    for at in overload..all {
        let [departed, taken] = pacer.numbers(MOMENTS, at)?;
        if taken < departed {
            recovered = at + 1;
        } else if at + 1 - recovered >= clean {
            return Ok(Ok(Recovery {
                overload: overloaded,
                time: Some(moment() * (recovered - overload)),
            }));
        }
    }
    Ok(Err(
        "after the overload it still lost frames at half the load that it takes".to_owned(),
    ))
}

fn moment() -> Duration {
    Duration::from_nanos(MOMENT_NANOSECONDS)
}

/// How many moments a time has, at least one.
fn moments_in(time: Duration) -> u32 {
    let moments = time.as_nanos() / u128::from(MOMENT_NANOSECONDS);
    u32::try_from(moments).unwrap_or(u32::MAX).max(1)
}
