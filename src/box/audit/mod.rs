//! Audits sampled frames against the policy, measures their latency in the box, and captures them.
//!
//! The caller passes in the samples with their times: this module reads no clock, opens no files,
//! and writes only log lines, which must not contain addresses or bytes of frames. It does not run
//! on the packet path, and cannot block it.

mod auditor;
mod capture;
mod latency;
mod queries;
mod redact;
mod wire;

use crate::observe::{AuditReport, CaptureRequest, LatencyReport};
use crossbeam::channel::Receiver;
use exitmark_datapath::{DecidedBy, Links, Sample};
use exitmark_policy::Snapshot;
use queries::Queries;
use std::sync::Arc;
use std::time::Duration;

pub use auditor::{Auditor, Mismatch};
use capture::Capture;
pub use capture::{CapturePart, CaptureTotals, Moment};
pub use latency::LatencyHistogram;
use redact::Site;

/// Processes samples: audit, latency histograms, DNS statistics, and a capture if one is running.
pub struct Sampler {
    links: Arc<Links>,
    one_in: u32,
    auditor: Auditor,
    queries: Queries,
    kernel: LatencyHistogram,
    worker: LatencyHistogram,
    capture: Option<Capture>,
    knows_relays: bool,
    lost: u64,
}

impl Sampler {
    /// Starts sampling one decision in `one_in`; 0 turns sampling off.
    pub fn new(links: Arc<Links>, snapshot: Arc<Snapshot>, one_in: u32) -> Self {
        links.sample(one_in);
        let mut auditor = Auditor::new(Arc::clone(&links));
        auditor.follow(snapshot);
        Self {
            links,
            one_in,
            auditor,
            queries: Queries::default(),
            kernel: LatencyHistogram::new(DecidedBy::Kernel),
            worker: LatencyHistogram::new(DecidedBy::Worker),
            capture: None,
            knows_relays: false,
            lost: 0,
        }
    }

    /// The auditor. Snapshots and next hops must be added to it before they come into force.
    pub const fn auditor(&mut self) -> &mut Auditor {
        &mut self.auditor
    }

    /// Records the current state of the links. Call this after fetching samples and before passing
    /// them to [`Sampler::add`].
    pub fn look(&mut self, now: Duration) {
        self.auditor.look(now);
    }

    /// As [`Sampler::look`], if no samples were fetched.
    pub fn look_at_next_hops(&mut self, now: Duration) {
        self.auditor.look_at_next_hops(now);
    }

    /// Processes one sample: audits it, measures its latency, and captures it if a capture is
    /// running.
    pub fn add(&mut self, sample: &Sample) {
        self.auditor.check(sample);
        self.queries.add(sample);
        if let Some(time) = sample.latency {
            self.record_latency(sample.by, time);
        }
        if let Some(capture) = &mut self.capture
            && let Some(snapshot) = self.auditor.snapshot()
        {
            let site = Site {
                snapshot,
                knows_relays: self.knows_relays,
                auditor: &self.auditor,
            };
            capture.add(sample, &site);
        }
    }

    /// Adds the latency of one frame.
    pub fn record_latency(&mut self, by: DecidedBy, time: Duration) {
        match by {
            DecidedBy::Kernel => self.kernel.add(time),
            DecidedBy::Worker => self.worker.add(time),
        }
    }

    /// Starts a capture. The receiver gets a pcapng file in pieces, and is disconnected at the end
    /// of the capture. `knows_relays` is whether the relay set is from a document that is not
    /// stale.
    ///
    /// # Errors
    /// A capture is running already, or the request is invalid; the message has the remedy.
    pub fn capture(
        &mut self,
        request: CaptureRequest,
        moment: Moment,
        knows_relays: bool,
    ) -> Result<Receiver<Vec<u8>>, String> {
        self.capture_part(request, CapturePart::default(), moment, knows_relays)
    }

    /// Starts one of the captures of a request, as [`Sampler::capture`]. Each begins with the same
    /// section header and interfaces; the statistics of the one that ends last are those of all.
    ///
    /// # Errors
    /// As [`Sampler::capture`].
    pub fn capture_part(
        &mut self,
        request: CaptureRequest,
        part: CapturePart,
        moment: Moment,
        knows_relays: bool,
    ) -> Result<Receiver<Vec<u8>>, String> {
        if self.is_capturing() {
            return Err(
                "a capture is running already, and there is one at a time; wait until it ends, or \
                 end it"
                    .to_owned(),
            );
        }
        let (capture, pieces) = Capture::begin(request, part, moment, self.lost)?;
        self.capture = Some(capture);
        self.knows_relays = knows_relays;
        self.links.sample(request.one_in);
        Ok(pieces)
    }

    /// Whether a capture is running.
    pub const fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    /// Call this periodically, with the number of samples lost so far. Ends a capture that is over.
    pub fn tick(&mut self, now: Duration, lost: u64) {
        self.lost = lost;
        if self
            .capture
            .as_ref()
            .is_some_and(|capture| capture.is_over(now))
        {
            self.end_capture();
        }
    }

    fn end_capture(&mut self) {
        if let Some(capture) = self.capture.take() {
            self.links.sample(self.one_in);
            capture.end(self.lost);
        }
    }

    /// Ends a running capture, and turns sampling off.
    pub fn end(&mut self) {
        self.end_capture();
        self.links.sample(0);
    }

    /// The report of the audit since this process began.
    pub fn audit(&self) -> AuditReport {
        AuditReport {
            one_in: self.links.one_in(),
            lost: self.lost,
            ..self.auditor.report()
        }
    }

    /// Whether most DNS queries go to many servers that are not configured as resolvers.
    pub const fn has_recursion(&self) -> bool {
        self.queries.are_recursive()
    }

    /// The latency of frames in the box, by engine.
    pub fn latencies(&self) -> Vec<LatencyReport> {
        vec![self.kernel.report(), self.worker.report()]
    }
}
