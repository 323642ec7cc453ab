//! Samples of the decisions, with the frame's bytes before and after.
//!
//! Sampling never blocks: a sample without room is lost and counted. Both engines choose samples in
//! the same way, and record the same fields.

use super::contract::{GOLDEN, SAMPLE_BYTES};
use super::{Outcome, Role};
use crossbeam::queue::ArrayQueue;
use exitmark_policy::Rule;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many unread samples a worker keeps.
const ROOM: usize = 512;

/// The sampling rate, in units of 1/2^64; 0 is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SamplingRate(pub(super) u64);

impl SamplingRate {
    /// The rate of one decision in `number`; 0 turns sampling off.
    pub(super) fn one_in(number: u32) -> Self {
        Self(u64::MAX.checked_div(number.into()).unwrap_or(0))
    }

    /// The sampling interval: one in this many; 0 is off.
    pub(super) fn interval(self) -> u64 {
        u64::MAX.checked_div(self.0).unwrap_or(0)
    }

    /// The phase of the next decision; the first one follows 0. A phase is the decision's sequence
    /// number times the golden ratio. bpf/sample.h explains why.
    #[inline(always)]
    pub(super) const fn next(phase: u64) -> u64 {
        phase.wrapping_add(GOLDEN)
    }

    /// Whether the decision of this phase is sampled.
    #[inline(always)]
    pub(super) const fn has(self, phase: u64) -> bool {
        phase <= self.0
    }
}

/// The engine that decided a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// The XDP program (engine `xdp`).
    Kernel,
    /// A worker in user space (engine `af_xdp`).
    Worker,
}

impl DecidedBy {
    /// The engine's name, as in the configuration.
    pub const fn engine(self) -> &'static str {
        match self {
            Self::Kernel => "xdp",
            Self::Worker => "af_xdp",
        }
    }
}

/// The beginning of a frame, [`SAMPLE_BYTES`] at most.
#[derive(Clone, Copy)]
pub struct Excerpt {
    bytes: [u8; SAMPLE_BYTES],
    length: usize,
}

impl Excerpt {
    /// The first [`SAMPLE_BYTES`] bytes of a frame, or all of it.
    pub fn of(frame: &[u8]) -> Self {
        let length = frame.len().min(SAMPLE_BYTES);
        let mut bytes = [0; SAMPLE_BYTES];
        bytes[..length].copy_from_slice(&frame[..length]);
        Self { bytes, length }
    }
}

impl Deref for Excerpt {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// One sampled decision. Its bytes contain addresses: show them only on request, never log them.
#[derive(Clone, Copy)]
pub struct Sample {
    /// The engine that decided the frame.
    pub by: DecidedBy,
    /// When the frame arrived, by CLOCK_MONOTONIC.
    pub arrived: Duration,
    /// Latency from arrival to decision, if it was measured with the sample.
    pub latency: Option<Duration>,
    /// The port that received the frame.
    pub ingress: Role,
    /// What happened to the frame.
    pub outcome: Outcome,
    /// The rule that matched; outbound frames only.
    pub rule: Option<Rule>,
    /// The generation of the policy in force.
    pub generation: u64,
    /// Length of the whole frame in bytes.
    pub frame_bytes: usize,
    /// The beginning of the frame on arrival.
    pub before: Excerpt,
    /// The beginning of the frame on departure.
    pub after: Excerpt,
}

/// The unread samples of one worker.
#[derive(Debug)]
pub struct Samples {
    decisions: ArrayQueue<Sample>,
    latencies: ArrayQueue<Duration>,
    lost: AtomicU64,
}

impl Default for Samples {
    fn default() -> Self {
        Self {
            decisions: ArrayQueue::new(ROOM),
            latencies: ArrayQueue::new(ROOM),
            lost: AtomicU64::new(0),
        }
    }
}

impl Samples {
    /// Whether there is room for one more sample; counts a lost one if not. Call this before making
    /// a sample, which costs two copies.
    pub(super) fn have_room(&self) -> bool {
        let have_room = !self.decisions.is_full();
        if !have_room {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        have_room
    }

    pub(super) fn push(&self, sample: Sample) {
        if self.decisions.push(sample).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records the latency of a frame, from the XDP program's hand-over until it was sent.
    pub(super) fn record_latency(&self, time: Duration) {
        let _ = self.latencies.push(time);
    }

    /// Takes the oldest unread sample.
    pub fn next(&self) -> Option<Sample> {
        self.decisions.pop()
    }

    /// The number of unread samples.
    pub fn waiting(&self) -> usize {
        self.decisions.len()
    }

    /// Takes the oldest unread latency of a frame in the worker: from the XDP program's hand-over
    /// until it was sent. These frames are chosen independently of the samples.
    pub fn next_latency(&self) -> Option<Duration> {
        self.latencies.pop()
    }

    /// The number of samples lost so far, for lack of room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Omits the bytes, because they contain addresses.
        f.debug_struct("Sample")
            .field("by", &self.by)
            .field("ingress", &self.ingress)
            .field("outcome", &self.outcome)
            .field("rule", &self.rule)
            .field("generation", &self.generation)
            .field("frame_bytes", &self.frame_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_at_the_given_rate_and_aperiodically() {
        for one_in in [1, 2, 64, 4096, 1 << 20] {
            let rate = SamplingRate::one_in(one_in);
            assert_eq!(rate.interval(), u64::from(one_in));
            let all = 64 * u64::from(one_in);
            let mut phase = 0;
            let chosen: Vec<_> = (1..=all)
                .filter(|_| {
                    phase = SamplingRate::next(phase);
                    rate.has(phase)
                })
                .collect();
            assert!(
                chosen.len().abs_diff(64) <= 3,
                "{} of one in {one_in}",
                chosen.len()
            );
            if one_in > 1 {
                let odd = chosen.iter().filter(|&number| number % 2 == 1).count();
                assert!((16..48).contains(&odd), "{odd} odd of one in {one_in}");
            }
        }
        assert_eq!(SamplingRate::one_in(0).interval(), 0);
        assert!((1..100_000).all(|phase| !SamplingRate::one_in(0).has(phase)));
    }

    #[test]
    fn counts_samples_without_room() {
        let samples = Samples::default();
        let sample = Sample {
            by: DecidedBy::Worker,
            arrived: Duration::ZERO,
            latency: None,
            ingress: Role::Host,
            outcome: Outcome::Stack,
            rule: None,
            generation: 1,
            frame_bytes: 60,
            before: Excerpt::of(&[1; 60]),
            after: Excerpt::of(&[2; 600]),
        };
        for _ in 0..ROOM {
            assert!(samples.have_room());
            samples.push(sample);
        }
        assert_eq!(samples.lost(), 0);
        assert!(!samples.have_room());
        samples.push(sample);
        samples.push(sample);
        assert_eq!(samples.lost(), 3);
        let first = samples.next().unwrap();
        assert_eq!((first.before.len(), first.after.len()), (60, SAMPLE_BYTES));
        assert!(!format!("{first:?}").contains("[2, 2"));
        assert_eq!(std::iter::from_fn(|| samples.next()).count(), ROOM - 1);
    }
}
