//! Compares the copies that both engines make for the tap.

use crate::LabError;
use crate::kernel::because;
use exitmark_datapath::{Kernel, TapCopy, TapRing};
use exitmark_policy::{Answers, Snapshot};
use std::sync::Arc;
use std::time::Duration;

/// The rings of both engines.
pub(super) struct Copies {
    kernel: Vec<TapRing>,
    rust: TapRing,
    /// By which slow-path frames are judged that the kernel's program has copied.
    snapshot: Option<Arc<Snapshot>>,
    answers: Answers,
}

impl Copies {
    pub(super) fn new(kernel: &Kernel) -> Result<Self, LabError> {
        Ok(Self {
            kernel: kernel.tap_rings().map_err(because)?,
            rust: TapRing::own(),
            snapshot: None,
            answers: Answers::default(),
        })
    }

    /// Begins again with this snapshot; returns the ring for the Rust engine.
    pub(super) fn begin(&mut self, snapshot: &Arc<Snapshot>) -> TapRing {
        for ring in &self.kernel {
            while ring.take().is_some() {}
        }
        self.rust = TapRing::own();
        self.snapshot = Some(Arc::clone(snapshot));
        self.answers = Answers::default();
        self.rust.clone()
    }

    /// The difference between the copies of both engines since the last call, if there is one.
    pub(super) fn compare(&mut self) -> Option<String> {
        // Of headers beyond the copy, only a worker knows that they are an exit packet's.
        let expected: Vec<_> = self.rust.take().and_then(finished).into_iter().collect();
        let mut of_kernel = Vec::new();
        for ring in &self.kernel {
            while let Some(mut copy) = ring.take() {
                let snapshot = self.snapshot.as_ref()?;
                if copy.is_exit(snapshot, &mut self.answers, Duration::ZERO) {
                    of_kernel.extend(finished(copy));
                }
            }
        }
        (of_kernel != expected).then(|| {
            format!("copies for the tap: Rust {expected:02x?}, the kernel {of_kernel:02x?}")
        })
    }
}

/// The copy as it is sent; `None` if its headers are too long.
fn finished(mut copy: TapCopy) -> Option<(&'static str, Vec<u8>)> {
    let direction = copy.direction().name();
    copy.finish().then(|| (direction, copy.bytes().to_vec()))
}
