//! Watches the box at work: are frames on the wire what the policy says, how long are they in the
//! box, and what do they look like?
//!
//! Lives on samples that others hand in, with their times: it reads no clock, opens nothing and
//! writes nothing but log lines, in which no address and no byte of a frame may stand. Nothing
//! here is on the packet path, and nothing here can hold it up.

mod audit;
mod capture;
mod queries;
mod redact;
mod residence;
mod wire;

use crate::datapath::{DecidedBy, Links, Sample};
use crate::observe::{AuditReport, CaptureRequest, Residence};
use crate::policy::Snapshot;
use crossbeam::channel::Receiver;
use queries::Queries;
use std::sync::Arc;
use std::time::Duration;

pub use audit::{Auditor, Fault};
use capture::Capture;
pub use capture::Moment;
use redact::Site;
pub use residence::Residences;

/// Auditor, histograms and, at times, a capture: what becomes of each sample.
pub struct Witness {
    links: Arc<Links>,
    one_in: u32,
    auditor: Auditor,
    queries: Queries,
    kernel: Residences,
    worker: Residences,
    capture: Option<Capture>,
    knows_relays: bool,
    lost: u64,
}

impl Witness {
    /// A witness that has one decision in so many told of; 0 is none.
    pub fn new(links: Arc<Links>, snapshot: Arc<Snapshot>, one_in: u32) -> Self {
        links.sample(one_in);
        let mut auditor = Auditor::new(Arc::clone(&links));
        auditor.follow(snapshot);
        Self {
            links,
            one_in,
            auditor,
            queries: Queries::default(),
            kernel: Residences::new(DecidedBy::Kernel),
            worker: Residences::new(DecidedBy::Worker),
            capture: None,
            knows_relays: false,
            lost: 0,
        }
    }

    /// The auditor, to be told of snapshots and next hops before they come into force.
    pub const fn auditor(&mut self) -> &mut Auditor {
        &mut self.auditor
    }

    /// Takes note of the links as they are now. To be called after samples were fetched, and
    /// before they are handed in.
    pub fn look(&mut self, now: Duration) {
        self.auditor.look(now);
    }

    /// One sample.
    pub fn see(&mut self, sample: &Sample) {
        self.auditor.check(sample);
        self.queries.see(sample);
        if let Some(time) = sample.residence {
            self.resided(sample.by, time);
        }
        if let Some(capture) = &mut self.capture
            && let Some(snapshot) = self.auditor.snapshot()
        {
            let own = self.links.incoming_mac();
            let macs = [self.links.host(), own, self.links.next_hop()];
            let site = Site {
                snapshot,
                knows_relays: self.knows_relays,
                macs,
            };
            capture.see(sample, &site);
        }
    }

    /// How long a frame was in the box.
    pub fn resided(&mut self, by: DecidedBy, time: Duration) {
        match by {
            DecidedBy::Kernel => self.kernel.add(time),
            DecidedBy::Worker => self.worker.add(time),
        }
    }

    /// Begins a capture. What is received is a pcapng file, piece by piece; it ends where the
    /// capture does. `knows_relays` tells that the relay set has what a document lists that is not
    /// stale.
    ///
    /// # Errors
    /// There is one already, or the request makes no sense; says why, and what to do.
    pub fn capture(
        &mut self,
        request: CaptureRequest,
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
        let (capture, pieces) = Capture::begin(request, moment, self.lost)?;
        self.capture = Some(capture);
        self.knows_relays = knows_relays;
        self.links.sample(request.one_in);
        Ok(pieces)
    }

    /// Whether a capture is running.
    pub const fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    /// To be called now and then, with how many samples have been lost so far. Ends a capture
    /// whose time has come.
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

    /// Nobody watches any more, and nothing is told of.
    pub fn end(&mut self) {
        self.end_capture();
        self.links.sample(0);
    }

    /// What the audit has found.
    pub fn audit(&self) -> AuditReport {
        AuditReport {
            one_in: self.links.one_in(),
            lost: self.lost,
            ..self.auditor.report()
        }
    }

    /// Whether most DNS queries go to many servers that are not named.
    pub const fn sees_recursion(&self) -> bool {
        self.queries.are_recursive()
    }

    /// How long frames are in the box, by engine.
    pub fn residences(&self) -> Vec<Residence> {
        vec![self.kernel.report(), self.worker.report()]
    }
}
