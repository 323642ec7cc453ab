//! Reads the XDP program's sampled decisions from its ring buffer.

use super::contract::{self, ROLES, SAMPLE_BYTES, exitmark_sample, index_of};
use super::{COUNTERS, Kernel, KernelError, ONLY, map_error, sums};
use crate::{DecidedBy, DropReason, Excerpt, Outcome, Role, Sample};
use exitmark_policy::Rule;
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use std::mem::offset_of;
use std::sync::mpsc;
use std::time::Duration;

/// A reader of the program's samples.
pub struct KernelSamples {
    ring: RingBuffer<'static>,
    read: mpsc::Receiver<Sample>,
    counters: MapHandle,
}

impl Kernel {
    /// Opens the program's samples. Only one reader may exist at a time.
    ///
    /// # Errors
    /// The ring buffer cannot be mapped.
    pub fn samples(&self) -> Result<KernelSamples, KernelError> {
        let (found, read) = mpsc::channel();
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&self.skeleton.maps.samples, move |record| {
                if let Some(sample) = sample(record) {
                    let _ = found.send(sample);
                }
                0
            })
            .map_err(map_error("samples"))?;
        Ok(KernelSamples {
            ring: builder.build().map_err(map_error("samples"))?,
            read,
            counters: MapHandle::try_from(&self.skeleton.maps.counters)
                .map_err(map_error(COUNTERS))?,
        })
    }
}

impl Kernel {
    /// Zeroes the per-CPU sample scratch, after sampling has stopped.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn forget_samples(&self) -> Result<(), KernelError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(map_error("sample_scratch"))?;
        let scratch = &self.skeleton.maps.sample_scratch;
        let nothing = vec![vec![0; scratch.value_size() as usize]; cpus];
        scratch
            .update_percpu(&ONLY, &nothing, MapFlags::ANY)
            .map_err(map_error("sample_scratch"))
    }
}

impl KernelSamples {
    /// Takes the oldest unread samples, at most `limit`.
    pub fn take(&mut self, limit: usize) -> impl Iterator<Item = Sample> {
        // A negative number is an error of the callback, which returns none.
        let _ = self.ring.consume_raw_n(limit);
        self.read.try_iter()
    }

    /// How many samples were lost, by the program's counters: the ring buffer was full, or a CPU
    /// reached its limit between two reads by user space ([`Links::sample_until`]).
    ///
    /// [`Links::sample_until`]: crate::Links::sample_until
    pub fn lost(&self) -> u64 {
        sums::<{ super::COUNTS }>(&self.counters)
            .map_or(0, |sums| sums[index_of!(exitmark_counts, samples_lost)])
    }
}

fn number(record: &[u8], at: usize) -> Option<u64> {
    let bytes = record.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

fn sample(record: &[u8]) -> Option<Sample> {
    let byte = |at: usize| record.get(at).copied();
    let time = |at| number(record, at).map(Duration::from_nanos);
    let length = |at: usize| {
        let bytes = record.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_ne_bytes(*bytes)).ok()
    };
    let frame_bytes = length(offset_of!(exitmark_sample, bytes))?;
    let bytes_after = length(offset_of!(exitmark_sample, bytes_after))?;
    let excerpt = |at: usize, bytes: usize| {
        let kept = bytes.min(SAMPLE_BYTES);
        Some(Excerpt::of(record.get(at..at + kept)?))
    };
    let rule = byte(offset_of!(exitmark_sample, rule))?;
    Some(Sample {
        by: DecidedBy::Kernel,
        arrived: time(offset_of!(exitmark_sample, arrived))?,
        latency: Some(time(offset_of!(exitmark_sample, latency))?),
        ingress: *Role::ALL.get(usize::from(byte(offset_of!(exitmark_sample, ingress))?))?,
        outcome: outcome(byte(offset_of!(exitmark_sample, outcome))?)?,
        rule: Rule::ALL.get(usize::from(rule)).copied(),
        generation: number(record, offset_of!(exitmark_sample, generation))?,
        frame_bytes,
        before: excerpt(offset_of!(exitmark_sample, before), frame_bytes)?,
        after: excerpt(offset_of!(exitmark_sample, after), bytes_after)?,
    })
}

fn outcome(number: u8) -> Option<Outcome> {
    match u32::from(number) {
        role @ ..ROLES => Some(Outcome::Forward(Role::ALL[role as usize])),
        contract::OUTCOME_STACK => Some(Outcome::Stack),
        contract::OUTCOME_HOST_MAC_UNKNOWN => Some(Outcome::Drop(DropReason::HostMacUnknown)),
        contract::OUTCOME_NO_EGRESS => Some(Outcome::Drop(DropReason::NoEgress)),
        contract::OUTCOME_STEER_UNAVAILABLE => Some(Outcome::Drop(DropReason::SteerUnavailable)),
        _ => None,
    }
}
