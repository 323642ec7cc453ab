//! Latency histograms of frames in the box.

use crate::observe::LatencyReport;
use exitmark_datapath::DecidedBy;
use hdrhistogram::Histogram;
use std::time::Duration;

/// The longest latency in nanoseconds; longer ones count as this.
const LONGEST_NANOS: u64 = 10_000_000_000;
/// Significant digits of the histogram: the error is at most 1 %.
const DIGITS: u8 = 2;
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];
/// The buckets' upper bounds, in nanoseconds.
const BOUNDS: [u64; 20] = [
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    1_000_000_000,
];

/// The latencies of one engine's frames.
pub struct LatencyHistogram {
    by: DecidedBy,
    /// `None` only if the bounds were invalid, but they are constants.
    histogram: Option<Histogram<u64>>,
    sum: Duration,
}

impl LatencyHistogram {
    /// An empty histogram for this engine.
    pub fn new(by: DecidedBy) -> Self {
        Self {
            by,
            histogram: Histogram::new_with_bounds(1, LONGEST_NANOS, DIGITS).ok(),
            sum: Duration::ZERO,
        }
    }

    /// Adds the latency of one frame.
    pub fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum = self.sum.saturating_add(time);
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(nanos.min(LONGEST_NANOS));
        }
    }

    /// The number, sum, quantiles and buckets of the latencies, in seconds.
    pub fn report(&self) -> LatencyReport {
        let seconds = |nanos| Duration::from_nanos(nanos).as_secs_f64();
        let engine = self.by.engine().to_owned();
        let Some(histogram) = self.histogram.as_ref().filter(|all| !all.is_empty()) else {
            return LatencyReport {
                engine,
                buckets: BOUNDS.map(|bound| (seconds(bound), 0)).to_vec(),
                ..LatencyReport::default()
            };
        };
        LatencyReport {
            engine,
            samples: histogram.len(),
            sum_seconds: self.sum.as_secs_f64(),
            quantiles: QUANTILES
                .map(|part| (part, seconds(histogram.value_at_quantile(part))))
                .to_vec(),
            buckets: BOUNDS
                .map(|bound| (seconds(bound), histogram.count_between(0, bound)))
                .to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_buckets_of_known_times() {
        let mut times = LatencyHistogram::new(DecidedBy::Worker);
        assert_eq!(
            (times.report().samples, times.report().buckets.len()),
            (0, 20)
        );
        for micros in 1..=1000 {
            times.add(Duration::from_micros(micros));
        }
        times.add(Duration::from_secs(3600));
        let report = times.report();
        assert_eq!((report.engine.as_str(), report.samples), ("af_xdp", 1001));
        assert!((report.sum_seconds - 3600.5005).abs() < 1e-9);
        for (part, expected) in [(0.5, 501e-6), (0.9, 901e-6), (1.0, 10.0)] {
            let found = report
                .quantiles
                .iter()
                .find(|(at, _)| *at == part)
                .unwrap()
                .1;
            assert!((found / expected - 1.0).abs() < 0.01, "{part}: {found}");
        }
        let within = |bound: f64| {
            let bucket = report.buckets.iter().find(|(at, _)| *at == bound);
            bucket.unwrap().1
        };
        assert_eq!((within(500e-9), within(1e-6)), (0, 1));
        assert!(within(100e-6).abs_diff(100) <= 1);
        assert_eq!((within(2e-3), within(1.0)), (1000, 1000));
        assert!(report.buckets.is_sorted_by_key(|bucket| bucket.1));
    }
}
