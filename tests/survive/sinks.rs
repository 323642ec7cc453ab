//! The kernel's part: the checking sinks at the far ends, and the generator's program.

use crate::flows::{FLOWS, HEADER_BYTES, SEQUENCES, Sink, flows, place};
use exitmark_lab::bpf::{self, Programs, numbers};
use exitmark_lab::{LabError, Netns};
use std::thread;
use std::time::{Duration, Instant};

// Interface to tests/bpf/survive.bpf.c.
const CHUNK_BYTES: usize = 512 * 8;
const CHUNK_BITS: u32 = 512 * 64;
const CHUNKS_PER_FLOW: u32 = SEQUENCES / CHUNK_BITS;
/// Two headers, and the number of a sink.
const FLOW_BYTES: usize = 2 * HEADER_BYTES + 4;

/// The frames after which the generator's frames leave, the kernel's default.
const BATCH: u32 = 64;
/// The time without arrivals after which missing frames count as lost.
const SILENCE: Duration = Duration::from_millis(300);

/// The counters of one sink, or of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Frames of the test.
    pub(crate) arrived: u64,
    pub(crate) mismarked: u64,
    pub(crate) missteered: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Frames of the test, but of no flow.
    pub(crate) garbled: u64,
    /// Frames not of the test.
    pub(crate) foreign: u64,
}

impl Tally {
    #[rustfmt::skip]
    const fn of(counts: [u64; 7]) -> Self {
        let [arrived, mismarked, missteered, duplicated, reordered, garbled, foreign] = counts;
        Self { arrived, mismarked, missteered, duplicated, reordered, garbled, foreign }
    }
}

#[derive(Clone)]
pub(crate) struct Sinks {
    programs: Programs,
}

impl Sinks {
    /// Loads the output of [`compile`].
    pub(crate) fn load(program: &[u8]) -> Result<Self, LabError> {
        let sinks = Self {
            programs: Programs::load("survive.bpf.c", program)?,
        };
        for (number, flow) in (0_u32..).zip(flows()) {
            let mut value = Vec::with_capacity(FLOW_BYTES);
            value.extend_from_slice(&flow.before[..HEADER_BYTES]);
            value.extend_from_slice(&flow.after[..HEADER_BYTES]);
            value.extend_from_slice(&flow.sink.number().to_ne_bytes());
            sinks.programs.store("flows", number, &value)?;
        }
        Ok(sinks)
    }

    /// Makes an interface a sink, for the lifetime of the interface.
    pub(crate) fn attach(
        &self,
        sink: Sink,
        netns: &Netns,
        interface: &str,
    ) -> Result<(), LabError> {
        let name = match sink {
            Sink::Uplink => "sink_uplink",
            Sink::Incoming => "sink_incoming",
            Sink::Host => "sink_host",
        };
        self.programs.attach(name, netns, interface)
    }

    /// Attaches the faultless box between the interfaces of the middle.
    pub(crate) fn attach_faultless(&self, netns: &Netns) -> Result<(), LabError> {
        for (sink, interface) in Sink::ALL.into_iter().zip(["uplink0", "incoming0", "host0"]) {
            self.programs
                .aim("egresses", sink.number(), netns, interface)?;
        }
        self.programs.attach("faultless", netns, "host0")?;
        self.programs.attach("faultless", netns, "uplink0")
    }

    pub(crate) fn tally(&self, sink: Sink) -> Result<Tally, LabError> {
        let counts = self.programs.numbers("tallies", sink.number())?;
        Ok(Tally::of(counts))
    }

    /// The sum of the counters of all sinks so far.
    pub(crate) fn total(&self) -> Result<Tally, LabError> {
        let mut total = [0; 7];
        for sink in Sink::ALL {
            let counts: [u64; 7] = self.programs.numbers("tallies", sink.number())?;
            for (sum, count) in total.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        Ok(Tally::of(total))
    }

    /// Waits until `is_all` accepts the number of frames that have arrived, or none arrives any more;
    /// returns that number.
    pub(crate) fn settle(
        &self,
        is_all: impl Fn(u64) -> Result<bool, LabError>,
    ) -> Result<u64, LabError> {
        let (mut arrived, mut since) = (self.total()?.arrived, Instant::now());
        while since.elapsed() < SILENCE && !is_all(arrived)? {
            thread::sleep(Duration::from_millis(1));
            let now = self.total()?.arrived;
            if now != arrived {
                (arrived, since) = (now, Instant::now());
            }
        }
        Ok(arrived)
    }

    fn progress(&self) -> Result<Vec<[u64; 2]>, LabError> {
        let flows = 0..FLOWS;
        flows
            .map(|flow| self.programs.numbers("progress", flow))
            .collect()
    }

    /// The number of distinct received frames of each flow so far.
    pub(crate) fn arrived(&self) -> Result<Vec<u64>, LabError> {
        let progress = self.progress()?.into_iter();
        Ok(progress.map(|[arrived, _]| arrived).collect())
    }

    /// The number of distinct received frames so far.
    pub(crate) fn distinct(&self) -> Result<u64, LabError> {
        Ok(self.progress()?.iter().map(|[arrived, _]| arrived).sum())
    }

    /// One more than the highest received sequence number of each flow so far.
    pub(crate) fn next(&self) -> Result<Vec<u64>, LabError> {
        Ok(self.progress()?.iter().map(|&[_, next]| next).collect())
    }

    /// The numbers of frames below `sent`, of a load of `flows` flows, that have not arrived.
    pub(crate) fn missing(&self, sent: u64, flows: u32) -> Result<Vec<u64>, LabError> {
        let mut memory = Vec::with_capacity(flows as usize);
        let used = place(sent, flows).1 / CHUNK_BITS + 1;
        for flow in 0..flows {
            let first = flow * CHUNKS_PER_FLOW;
            let chunks = first..first + used.min(CHUNKS_PER_FLOW);
            let bytes = chunks.map(|chunk| self.programs.value("received", chunk));
            memory.push(bytes.collect::<Result<Vec<_>, _>>()?.concat());
            debug_assert!(memory.iter().all(|flow| flow.len() % CHUNK_BYTES == 0));
        }
        let is_missing = |number: &u64| {
            let (flow, sequence) = place(*number, flows);
            // Read whole words: the position of a bit's byte depends on the byte order.
            let word = sequence as usize / 64 * 8;
            let [bits] = numbers(&memory[flow as usize][word..word + 8]);
            bits >> (sequence % 64) & 1 == 0
        };
        Ok((0..sent).filter(is_missing).collect())
    }

    /// Sets the interface, in its namespace, on which the generator sends.
    pub(crate) fn aim(&self, netns: &Netns, interface: &'static str) -> Result<(), LabError> {
        self.programs.aim("exit_by", 0, netns, interface)
    }

    /// Generates this many frames at once, on the calling thread and in its namespace.
    pub(crate) fn generate(&self, frames: u32) -> Result<(), LabError> {
        let template = flows().swap_remove(0).before;
        self.programs.run_live("generate", &template, frames, BATCH)
    }

    /// The number of frames that the generator has sent.
    pub(crate) fn generated(&self) -> Result<u64, LabError> {
        self.programs.numbers("sent", 0).map(|[sent]| sent)
    }
}

/// Compiles `tests/bpf/survive.bpf.c` and returns the object's bytes.
pub(crate) fn compile() -> Result<Vec<u8>, LabError> {
    bpf::compile("tests/bpf/survive.bpf.c")
}
