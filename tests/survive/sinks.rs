//! The kernel's part: the checking sinks at the far ends, and the generator's program.

use crate::flows::{FLOWS, HEADER_BYTES, SEQUENCES, Sink, flows, place};
use exitmark_lab::bpf::{self, Programs};
use exitmark_lab::{LabError, Netns};
use libbpf_rs::{MapCore, MapFlags, ProgramInput};

// Interface to tests/bpf/survive.bpf.c.
const CHUNK_BYTES: usize = 512 * 8;
const CHUNK_BITS: u32 = 512 * 64;
const CHUNKS_PER_FLOW: u32 = SEQUENCES / CHUNK_BITS;
/// Two headers, and the number of a sink.
const FLOW_BYTES: usize = 2 * HEADER_BYTES + 4;

/// `BPF_F_TEST_XDP_LIVE_FRAMES` of linux/bpf.h: frames are really redirected.
const LIVE_FRAMES: u32 = 1 << 1;

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

/// The loaded programs of one run.
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
        interface: &'static str,
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
        for (sink, interface) in [
            (Sink::Uplink, "uplink0"),
            (Sink::Incoming, "incoming0"),
            (Sink::Host, "host0"),
        ] {
            self.programs.aim("ways", sink.number(), netns, interface)?;
        }
        self.programs.attach("faultless", netns, "host0")?;
        self.programs.attach("faultless", netns, "uplink0")
    }

    /// The counters of a sink so far.
    pub(crate) fn tally(&self, sink: Sink) -> Result<Tally, LabError> {
        let value = self.value("tallies", sink.number())?;
        let [
            arrived,
            mismarked,
            missteered,
            duplicated,
            reordered,
            garbled,
            foreign,
        ] = numbers(&value);
        Ok(Tally {
            arrived,
            mismarked,
            missteered,
            duplicated,
            reordered,
            garbled,
            foreign,
        })
    }

    /// The sum of the counters of all sinks so far.
    pub(crate) fn total(&self) -> Result<Tally, LabError> {
        let mut total = Tally::default();
        for sink in Sink::ALL {
            let one = self.tally(sink)?;
            total.arrived += one.arrived;
            total.mismarked += one.mismarked;
            total.missteered += one.missteered;
            total.duplicated += one.duplicated;
            total.reordered += one.reordered;
            total.garbled += one.garbled;
            total.foreign += one.foreign;
        }
        Ok(total)
    }

    fn progress(&self) -> Result<Vec<[u64; 2]>, LabError> {
        (0..FLOWS)
            .map(|flow| self.value("progress", flow).map(|value| numbers(&value)))
            .collect()
    }

    /// The number of distinct received frames of each flow so far.
    pub(crate) fn arrived(&self) -> Result<Vec<u64>, LabError> {
        Ok(self
            .progress()?
            .iter()
            .map(|&[arrived, _]| arrived)
            .collect())
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
            let bytes: Vec<_> = chunks.map(|chunk| self.value("seen", chunk)).collect();
            memory.push(bytes.into_iter().collect::<Result<Vec<_>, _>>()?.concat());
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
        let input = ProgramInput {
            data_in: Some(&template),
            flags: LIVE_FRAMES,
            repeat: frames,
            ..Default::default()
        };
        self.programs
            .program("generate")?
            .test_run(input)
            .map(drop)
            .map_err(|error| LabError(format!("the generator failed: {error}")))
    }

    /// The number of frames that the generator has sent.
    pub(crate) fn generated(&self) -> Result<u64, LabError> {
        self.value("sent", 0).map(|value| {
            let [sent] = numbers(&value);
            sent
        })
    }

    fn value(&self, map: &str, key: u32) -> Result<Vec<u8>, LabError> {
        self.programs
            .map(map)?
            .lookup(&key.to_ne_bytes(), MapFlags::ANY)
            .ok()
            .flatten()
            .ok_or_else(|| LabError(format!("cannot read the map {map}")))
    }
}

/// The first numbers of a map's value.
fn numbers<const N: usize>(value: &[u8]) -> [u64; N] {
    let (words, _) = value.as_chunks::<8>();
    std::array::from_fn(|index| words.get(index).map_or(0, |word| u64::from_ne_bytes(*word)))
}

/// Compiles `tests/bpf/survive.bpf.c` and returns the object's bytes.
pub(crate) fn compile() -> Result<Vec<u8>, LabError> {
    bpf::compile("tests/bpf/survive.bpf.c")
}
