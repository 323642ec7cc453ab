//! The time after an overload during which frames are still lost (RFC 2544, 26.5).
//!
//! The generator sends twice the forwarder's lossless load, or its own limit, then at once half of
//! the lossless load. Sent and received frames are counted by departure time; if the numbers
//! differ, frames of that time were lost.

use super::pace::{LoadParameters, Pacer, Trial};
use crate::common::results::number;
use exitmark_lab::LabError;
use std::time::Duration;

// Interface to latency.bpf.h.
const MOMENTS: &str = "moments";
const MOMENT_NANOSECONDS: u64 = 1 << 16;

/// The longest overload, otherwise as long as a trial: there are 32,768 moments.
const OVERLOAD: Duration = Duration::from_millis(250);
/// The time without loss that ends the recovery, in trials, but at most a second. With runs of two
/// seconds that is five eighths of a second.
const CLEAN_TRIALS: u32 = 5;
const CLEAN: Duration = Duration::from_secs(1);

pub(super) struct Recovery {
    pub(super) overload: Trial,
    /// From the end of the overload to the departure of the first frame after which none is lost.
    /// `None` if the overload lost no frame.
    pub(super) time: Option<Duration>,
}

/// Measures recovery, once per site: the moments are not cleared.
pub(super) fn after_overload(
    pacer: &Pacer<'_>,
    lossless: f64,
) -> Result<Result<Recovery, String>, LabError> {
    let overload = moments_in(pacer.length.min(OVERLOAD));
    let clean = moments_in((pacer.length * CLEAN_TRIALS).min(CLEAN));
    // The time to recover is as long as the overload.
    let all = overload * 2 + clean;
    pacer.run(&LoadParameters {
        rates: [lossless * 2.0, lossless / 2.0],
        change: moment() * overload,
        stamp_every: Some(1),
        keep_moments: true,
        ..LoadParameters::steady(lossless, moment() * all)
    })?;
    let programs = &pacer.traffic.programs;
    let (mut sent, mut arrived) = (0, 0);
    for at in 0..overload {
        let [departed, taken] = programs.numbers(MOMENTS, at)?;
        sent += departed;
        arrived += taken;
    }
    let overloaded = Trial {
        offered: number(sent) / (moment() * overload).as_secs_f64(),
        sent,
        arrived,
    };
    let recovery = |time| Recovery {
        overload: overloaded,
        time,
    };
    if overloaded.is_lossless() {
        return Ok(Ok(recovery(None)));
    }
    let mut recovered = overload;
    for at in overload..all {
        let [departed, taken] = programs.numbers(MOMENTS, at)?;
        if taken < departed {
            recovered = at + 1;
        } else if at + 1 - recovered >= clean {
            let time = moment() * (recovered - overload);
            return Ok(Ok(recovery(Some(time))));
        }
    }
    Ok(Err(
        "after the overload it still lost frames at half the load that it takes".to_owned(),
    ))
}

fn moment() -> Duration {
    Duration::from_nanos(MOMENT_NANOSECONDS)
}

/// The number of moments in a time, at least one.
fn moments_in(time: Duration) -> u32 {
    let moments = time.as_nanos() / u128::from(MOMENT_NANOSECONDS);
    u32::try_from(moments).unwrap_or(u32::MAX).max(1)
}
