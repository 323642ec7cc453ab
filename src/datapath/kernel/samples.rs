//! Reads the XDP program's sampled decisions from its ring buffer.

use super::{COUNTERS, COUNTS, Kernel, KernelError, ONLY, map_error, sums};
use crate::{DecidedBy, DropReason, Excerpt, Outcome, Role, SAMPLE_BYTES, Sample};
use exitmark_policy::Rule;
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use std::sync::mpsc;
use std::time::Duration;

// `struct exitmark_sample` in bpf/exitmark.h, in bytes.
const ARRIVED: usize = 0;
const RESIDENCE: usize = 8;
const GENERATION: usize = 16;
const BYTES: usize = 24;
const INGRESS: usize = 28;
const OUTCOME: usize = 29;
const RULE: usize = 30;
const BEFORE: usize = 32;
const AFTER: usize = BEFORE + SAMPLE_BYTES;
/// The size of one record in bytes.
pub(super) const RECORD_BYTES: usize = AFTER + SAMPLE_BYTES;

const ROLES: usize = Role::ALL.len();

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
        let cpus = libbpf_rs::num_possible_cpus().map_err(map_error("sketch"))?;
        let sketch = &self.skeleton.maps.sketch;
        let size = usize::try_from(sketch.value_size()).unwrap_or(RECORD_BYTES);
        let nothing = vec![vec![0; size]; cpus];
        sketch
            .update_percpu(&ONLY, &nothing, MapFlags::ANY)
            .map_err(map_error("sketch"))
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
        sums(&self.counters).map_or(0, |sums| sums[COUNTS - 1])
    }
}

fn number(record: &[u8], at: usize) -> Option<u64> {
    let bytes = record.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

fn sample(record: &[u8]) -> Option<Sample> {
    let bytes = u32::from_ne_bytes(*record.get(BYTES..)?.first_chunk()?);
    let frame_bytes = usize::try_from(bytes).ok()?;
    let kept = frame_bytes.min(SAMPLE_BYTES);
    let time = |at| number(record, at).map(Duration::from_nanos);
    Some(Sample {
        by: DecidedBy::Kernel,
        arrived: time(ARRIVED)?,
        residence: Some(time(RESIDENCE)?),
        ingress: *Role::ALL.get(usize::from(*record.get(INGRESS)?))?,
        outcome: outcome(usize::from(*record.get(OUTCOME)?))?,
        rule: Rule::ALL.get(usize::from(*record.get(RULE)?)).copied(),
        generation: number(record, GENERATION)?,
        frame_bytes,
        before: Excerpt::of(record.get(BEFORE..BEFORE + kept)?),
        after: Excerpt::of(record.get(AFTER..AFTER + kept)?),
    })
}

/// `enum exitmark_outcome`.
fn outcome(number: usize) -> Option<Outcome> {
    const OTHERS: [Outcome; 4] = [
        Outcome::Stack,
        Outcome::Drop(DropReason::HostMacUnknown),
        Outcome::Drop(DropReason::NoEgress),
        Outcome::Drop(DropReason::SteerUnavailable),
    ];
    match number.checked_sub(ROLES) {
        None => Some(Outcome::Forward(Role::ALL[number])),
        Some(other) => OTHERS.get(other).copied(),
    }
}
