//! Samples: a few of the decisions, with the bytes before and after, for whoever watches.
//!
//! Whoever decides waits for nobody: a sample for which there is no room is lost, and counted.
//! Both engines choose in the same way, and tell the same.

use super::{Outcome, Role};
use crate::policy::Rule;
use crossbeam::queue::ArrayQueue;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How much of a frame's beginning a sample has. As in bpf/exitmark.h.
pub const SAMPLE_BYTES: usize = 192;
/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Samples of one worker that wait to be read.
const ROOM: usize = 512;

/// Which decisions are samples, as a part of 2^64; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part(pub(super) u64);

impl Part {
    /// One in so many; 0 is none.
    pub(super) fn one_in(number: u32) -> Self {
        Self(u64::MAX.checked_div(number.into()).unwrap_or(0))
    }

    /// In how many there is one.
    pub(super) fn is_one_in(self) -> u64 {
        u64::MAX.checked_div(self.0).unwrap_or(0)
    }

    /// The phase of the decision after the one of this phase; the first one comes after 0. A phase
    /// is the decision's number times the golden ratio. bpf/sample.h says why numbers are mixed.
    #[inline(always)]
    pub(super) const fn next(phase: u64) -> u64 {
        phase.wrapping_add(GOLDEN)
    }

    /// Whether the decision of this phase is one of them.
    #[inline(always)]
    pub(super) const fn has(self, phase: u64) -> bool {
        phase <= self.0
    }
}

/// Who decided a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// The XDP program.
    Kernel,
    /// A worker.
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

/// The beginning of a frame.
#[derive(Clone, Copy)]
pub struct Excerpt {
    bytes: [u8; SAMPLE_BYTES],
    length: usize,
}

impl Excerpt {
    /// As much as there is room for.
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

/// One decision. Its bytes hold addresses: they are for those who ask for them, and for no log.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Who made it.
    pub by: DecidedBy,
    /// When the frame came, by CLOCK_MONOTONIC.
    pub arrived: Duration,
    /// From then to the decision, where that was measured with it.
    pub residence: Option<Duration>,
    /// The port that received it.
    pub ingress: Role,
    /// Where it went.
    pub outcome: Outcome,
    /// The rule that an outbound frame met.
    pub rule: Option<Rule>,
    /// The generation of the policy in force.
    pub generation: u64,
    /// How long the frame was, all of it.
    pub frame_bytes: usize,
    /// How it began when it came ...
    pub before: Excerpt,
    /// ... and when it left.
    pub after: Excerpt,
}

/// What one worker tells, until somebody reads it.
#[derive(Debug)]
pub struct Samples {
    decisions: ArrayQueue<Sample>,
    residences: ArrayQueue<Duration>,
    lost: AtomicU64,
}

impl Default for Samples {
    fn default() -> Self {
        Self {
            decisions: ArrayQueue::new(ROOM),
            residences: ArrayQueue::new(ROOM),
            lost: AtomicU64::new(0),
        }
    }
}

impl Samples {
    /// Whether there is room for one more; counts the one that is left out. To be asked before a
    /// sample is made, which costs two copies.
    pub(super) fn have_room(&self) -> bool {
        let have_room = !self.decisions.is_full();
        if !have_room {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        have_room
    }

    pub(super) fn tell(&self, sample: Sample) {
        if self.decisions.push(sample).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// From when the XDP program handed a frame over until it was sent.
    pub(super) fn resided(&self, time: Duration) {
        let _ = self.residences.push(time);
    }

    /// The oldest sample that nobody has read.
    pub fn next(&self) -> Option<Sample> {
        self.decisions.pop()
    }

    /// How many samples wait to be read.
    pub fn waiting(&self) -> usize {
        self.decisions.len()
    }

    /// The oldest time that a frame spent with the worker: from when the XDP program handed it
    /// over until it was sent. Frames are chosen for this apart from samples.
    pub fn next_residence(&self) -> Option<Duration> {
        self.residences.pop()
    }

    /// How many samples there was no room for, so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the bytes, and so without addresses.
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
    fn one_in_so_many_is_a_sample_and_none_keeps_step() {
        for one_in in [1, 2, 64, 4096, 1 << 20] {
            let part = Part::one_in(one_in);
            assert_eq!(part.is_one_in(), u64::from(one_in));
            let all = 64 * u64::from(one_in);
            let mut phase = 0;
            let chosen: Vec<_> = (1..=all)
                .filter(|_| {
                    phase = Part::next(phase);
                    part.has(phase)
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
        assert_eq!(Part::one_in(0).is_one_in(), 0);
        assert!((1..100_000).all(|phase| !Part::one_in(0).has(phase)));
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let samples = Samples::default();
        let sample = Sample {
            by: DecidedBy::Worker,
            arrived: Duration::ZERO,
            residence: None,
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
            samples.tell(sample);
        }
        assert_eq!(samples.lost(), 0);
        assert!(!samples.have_room());
        samples.tell(sample);
        samples.tell(sample);
        assert_eq!(samples.lost(), 3);
        let first = samples.next().unwrap();
        assert_eq!((first.before.len(), first.after.len()), (60, SAMPLE_BYTES));
        assert!(!format!("{first:?}").contains("[2, 2"));
        assert_eq!(std::iter::from_fn(|| samples.next()).count(), ROOM - 1);
    }
}
