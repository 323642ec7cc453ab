//! Runs a program on the frames of many flows, one a run: benches/bpf/feed.bpf.c.

use exitmark_datapath::Buffers;
use exitmark_lab::LabError;
use exitmark_lab::bpf::Programs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

pub(crate) const FEED: &str = "feed.bpf.c";
// Interface to feed.bpf.c.
const SLOT_BYTES: usize = 80;
/// The most passes over the flows of one measurement.
const MOST_PASSES: u32 = 10_000;

/// The flows of one kind.
pub(crate) struct Feed {
    programs: Programs,
    /// The frame before the headers of a flow are written into it.
    frame: Vec<u8>,
    flows: u32,
}

impl Feed {
    /// Loads the compiled [`FEED`] for these frames, which have the same length, and aims its own
    /// `redirect` at loopback.
    pub(crate) fn new(compiled: &[u8], frames: &[Vec<u8>]) -> Result<Self, LabError> {
        let flows = u32::try_from(frames.len()).map_err(|error| LabError(error.to_string()))?;
        let count = flows.to_ne_bytes();
        let programs = Programs::load_prepared(FEED, compiled, &[("flows", flows)], &count)?;
        let slots: Vec<_> = frames
            .iter()
            .map(|frame| {
                let mut slot = [0; SLOT_BYTES];
                let bytes = frame.len().min(SLOT_BYTES);
                slot[..bytes].copy_from_slice(&frame[..bytes]);
                slot
            })
            .collect();
        programs.store_all("flows", slots.iter().map(|slot| slot.as_slice()))?;
        programs.store("ports", 0, &super::LOOPBACK.to_ne_bytes())?;
        let frame = frames.first().cloned().unwrap_or_default();
        Ok(Self {
            programs,
            frame,
            flows,
        })
    }

    /// The ns of a run of its own `redirect`.
    pub(crate) fn time_redirect(&self, least: Duration) -> Result<f64, LabError> {
        let redirect = self.programs.program("redirect")?;
        self.time(redirect.as_fd(), Buffers::One, least)
    }

    /// The ns of a run of this program: of the fastest pass over the flows, of as many as take `least`.
    pub(crate) fn time(
        &self,
        program: BorrowedFd<'_>,
        buffers: Buffers,
        least: Duration,
    ) -> Result<f64, LabError> {
        let (map, suffix) = match buffers {
            Buffers::One => ("timed", ""),
            Buffers::Several => ("timed_frags", "_frags"),
        };
        self.programs
            .store(map, 0, &program.as_raw_fd().to_ne_bytes())?;
        let length = if self.frame.len() < SLOT_BYTES {
            "short"
        } else {
            "long"
        };
        let name = format!("feed_{length}{suffix}");
        let passes = |count: u32| {
            let runs = self.flows.saturating_mul(count).saturating_add(1);
            self.programs.run_often(&name, &self.frame, runs)
        };
        // The first pass fills the caches, and says how long the others take.
        self.programs.store_percpu("position", 0, &position())?;
        passes(1)?;
        let once = self.fastest()?;
        let wanted = least.as_nanos() / once.as_nanos().max(1);
        let count = u32::try_from(wanted).map_or(MOST_PASSES, |count| count.clamp(2, MOST_PASSES));
        self.programs.store_percpu("position", 0, &position())?;
        passes(count)?;
        Ok(self.fastest()?.as_secs_f64() * 1e9 / f64::from(self.flows))
    }

    /// The time of the fastest pass over all flows since [`position`] was stored.
    fn fastest(&self) -> Result<Duration, LabError> {
        let values = self.programs.percpu::<3>("position", 0)?;
        let fastest = values.into_iter().map(|[_, _, fastest]| fastest).min();
        fastest
            .filter(|ns| *ns < u64::MAX)
            .map(Duration::from_nanos)
            .ok_or_else(|| LabError("no pass over the flows has ended".to_owned()))
    }
}

/// `struct position` of feed.bpf.c before the first pass.
fn position() -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[16..].fill(0xff);
    bytes
}
