//! Latency of frames: reads the sinks' buckets into a histogram.

use crate::common::results::number;
use exitmark_lab::LabError;
use exitmark_lab::bpf::Programs;
use hdrhistogram::Histogram;
use libbpf_rs::{MapCore, MapFlags};

// Interface to latency.bpf.h.
const DELAYS: &str = "delays";
const BUCKETS: usize = 2048;
const NUMBERS: usize = BUCKETS + 1;
pub(super) const ONE_WAY: u32 = 0;
pub(super) const ROUND_TRIP: u32 = 1;

/// A time longer than any bucket, in nanoseconds.
const LONGEST: u64 = 1 << 36;

/// The number of times beyond a quantile that make it meaningful.
const BEYOND: u64 = 10;

/// Times in nanoseconds, each with a precision of 1/128.
pub(super) struct Delays {
    times: Histogram<u64>,
    longest: u64,
}

impl Delays {
    pub(super) fn clear(programs: &Programs, way: u32) -> Result<(), LabError> {
        let values = libbpf_rs::num_possible_cpus()
            .map(|cpus| vec![vec![0; NUMBERS * size_of::<u64>()]; cpus]);
        values
            .and_then(|values| {
                let map = programs.map(DELAYS).map_err(std::io::Error::other)?;
                map.update_percpu(&way.to_ne_bytes(), &values, MapFlags::ANY)
            })
            .map_err(|error| LabError(format!("cannot clear the sinks' times: {error}")))
    }

    pub(super) fn read(programs: &Programs, way: u32) -> Result<Self, LabError> {
        let failed =
            |why: &dyn std::fmt::Display| LabError(format!("cannot read the sinks' times: {why}"));
        let values = programs
            .map(DELAYS)?
            .lookup_percpu(&way.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| failed(&error))?;
        let mut times = Histogram::new_with_bounds(1, LONGEST, 3).map_err(|e| failed(&e))?;
        let mut longest = 0;
        for value in values.iter().flatten() {
            let (numbers, _) = value.as_chunks::<8>();
            let mut numbers = numbers.iter().copied().map(u64::from_ne_bytes);
            for (bucket, count) in (0..).zip(numbers.by_ref().take(BUCKETS)) {
                let middle = middle(bucket);
                times.record_n(middle, count).map_err(|e| failed(&e))?;
            }
            longest = longest.max(numbers.next().unwrap_or(0));
        }
        Ok(Self { times, longest })
    }

    pub(super) fn count(&self) -> u64 {
        self.times.len()
    }

    /// The quantile `part` in microseconds.
    pub(super) fn quantile(&self, part: f64) -> f64 {
        microseconds(self.times.value_at_quantile(part).min(self.longest))
    }

    /// The time in microseconds that all but one in `frames` were below; `None` with too few times.
    pub(super) fn all_but_one_in(&self, frames: u32) -> Option<f64> {
        let part = 1.0 - 1.0 / f64::from(frames);
        (self.count() >= BEYOND * u64::from(frames)).then(|| self.quantile(part))
    }

    /// The distribution of all delays of several distributions; `None` without any.
    pub(super) fn sum<'d>(each: impl IntoIterator<Item = &'d Self>) -> Option<Self> {
        let mut each = each.into_iter();
        let first = each.next()?;
        let mut sum = Self {
            times: first.times.clone(),
            longest: first.longest,
        };
        for one in each {
            // All have the same bounds.
            sum.times.add(&one.times).ok()?;
            sum.longest = sum.longest.max(one.longest);
        }
        Some(sum)
    }

    /// The longest measured time, in microseconds.
    pub(super) fn longest(&self) -> f64 {
        microseconds(self.longest)
    }
}

/// The middle of a bucket: 64 of them share a power of two from 64 on.
fn middle(bucket: u64) -> u64 {
    match bucket / 64 {
        0 => bucket,
        power => {
            let width = 1 << (power - 1);
            (64 + bucket % 64) * width + width / 2
        }
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    number(nanoseconds) / 1e3
}
