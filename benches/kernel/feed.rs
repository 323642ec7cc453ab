//! Runs a program on the frames of many flows, one a run: benches/bpf/feed.bpf.c.

use exitmark_datapath::Buffers;
use exitmark_lab::LabError;
use exitmark_lab::bpf::Programs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

pub(crate) const FEED: &str = "feed.bpf.c";
// Interface to feed.bpf.c.
const SLOT_BYTES: usize = 80;

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

    /// The ns of a run of this program, from whole passes over the flows that take about `least`.
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
        let run = |runs| self.programs.time(&name, &self.frame, runs);
        let passes = (least.as_secs_f64() / run(self.flows)?.as_secs_f64()).clamp(1.0, 1e4);
        let mut runs = self.flows;
        while f64::from(runs) < passes * f64::from(self.flows) {
            runs += self.flows;
        }
        Ok(run(runs)?.as_secs_f64() * 1e9 / f64::from(runs))
    }
}
