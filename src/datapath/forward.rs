//! One frame's way through the box: bytes in, changed bytes and a port out.
//!
//! No ring, no system call, no allocation. This is the code that `explain` runs too.

use super::{
    DecidedBy, DropReason, Excerpt, Frame, Links, Memory, PerRole, Role, Sample, Samples, Tally,
};
use crate::packet::{self, Dscp, MacAddr};
use crate::policy::{Egress, FragmentTable, Rule, Snapshot, Verdict, judge};
use std::sync::Arc;
use std::time::Duration;

/// How many frames ahead the headers are fetched.
const PREFETCH_AHEAD: usize = 8;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Out of this port.
    Forward(Role),
    /// To the box's own network stack. Only the kernel can do that, and does before user space
    /// sees such a frame.
    Stack,
    /// Nowhere.
    Drop(DropReason),
}

/// Frames on their way out, one queue a port, and those on their way back to the pool.
#[derive(Debug, Default)]
pub struct Outbox {
    /// What leaves by each port, in order.
    pub leaving: PerRole<Vec<Frame>>,
    /// What leaves by none.
    pub dropped: Vec<Frame>,
}

/// Decides and rewrites. One per worker: it holds the memory of fragments.
pub struct Forwarder {
    snapshot: Arc<Snapshot>,
    links: Arc<Links>,
    fragments: FragmentTable,
    tally: Tally,
    /// Whether this batch has shown the host's MAC address.
    host_seen: bool,
    /// Who is told of some of the decisions.
    samples: Option<Arc<Samples>>,
    /// How many there were, to choose by.
    decisions: u64,
}

impl Forwarder {
    /// A forwarder that follows this snapshot until another is published.
    pub fn new(snapshot: Arc<Snapshot>, links: Arc<Links>) -> Self {
        Self {
            snapshot,
            links,
            fragments: FragmentTable::default(),
            tally: Tally::default(),
            host_seen: false,
            samples: None,
            decisions: 0,
        }
    }

    /// With somebody who is told of as many decisions as the links say.
    #[must_use]
    pub fn witnessed(mut self, samples: Arc<Samples>) -> Self {
        self.samples = Some(samples);
        self
    }

    /// Who is told of decisions, if anybody.
    pub fn samples(&self) -> Option<&Samples> {
        self.samples.as_deref()
    }

    /// Follows another snapshot from the next frame on; the old one is handed back, so that it
    /// is freed elsewhere.
    pub fn follow(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The counts since they were last published.
    pub const fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Forwards every whole packet in `arrived`; what is left there is the beginning of one
    /// whose end has not arrived. Returns how many packets there were. `now` counts from any fixed
    /// moment.
    #[inline(never)]
    pub fn process_batch(
        &mut self,
        ingress: Role,
        arrived: &mut Vec<Frame>,
        memory: &mut impl Memory,
        outbox: &mut Outbox,
        now: Duration,
    ) -> u64 {
        let whole = arrived
            .iter()
            .rposition(|frame| !frame.has_more())
            .map_or(0, |last| last + 1);
        let reads_headers = ingress != Role::Uplink;
        self.host_seen = false;
        let sampled = self.links.sampled();
        if reads_headers {
            for frame in arrived.iter().take(PREFETCH_AHEAD) {
                memory.prefetch(frame);
            }
        }
        let mut packets = 0;
        let mut bytes = 0;
        let mut frames = arrived.drain(..whole);
        while let Some(first) = frames.as_slice().first() {
            packets += 1;
            if reads_headers && let Some(ahead) = frames.as_slice().get(PREFETCH_AHEAD) {
                memory.prefetch(ahead);
            }
            let (parts, frame_bytes) = if first.has_more() {
                extent(frames.as_slice())
            } else {
                (1, first.length())
            };
            bytes += frame_bytes;
            let frame = memory.bytes(first);
            self.decisions = self.decisions.wrapping_add(1);
            let outcome = if sampled.has(self.decisions) {
                self.decide_and_tell(ingress, frame, frame_bytes, now)
            } else {
                self.decide(ingress, frame, frame_bytes, now).0
            };
            let queue = match outcome {
                Outcome::Forward(role) => &mut outbox.leaving[role],
                Outcome::Stack => {
                    self.tally.dropped(DropReason::NotForHost, 1);
                    &mut outbox.dropped
                }
                Outcome::Drop(reason) => {
                    self.tally.dropped(reason, 1);
                    &mut outbox.dropped
                }
            };
            for part in frames.by_ref().take(parts) {
                queue.push(part);
            }
        }
        self.tally.received(ingress, packets);
        if ingress != Role::Host {
            self.tally.inbound(ingress, bytes as u64);
        }
        packets
    }

    /// Decides one frame and rewrites it. `frame` is the part with the headers, `frame_bytes`
    /// the length of all of it. Outbound frames come with their verdict.
    #[inline]
    pub fn forward(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> (Outcome, Option<Verdict>) {
        // A batch of one.
        self.host_seen = false;
        self.decide(ingress, frame, frame_bytes, now)
    }

    #[inline]
    fn decide(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> (Outcome, Option<Verdict>) {
        match ingress {
            Role::Host => {
                let (outcome, verdict) = self.outbound(frame, frame_bytes, now);
                (outcome, Some(verdict))
            }
            Role::Uplink => (self.inbound_by_uplink(frame), None),
            Role::Incoming => (self.inbound_by_incoming(frame), None),
        }
    }

    #[cold]
    #[inline(never)]
    fn decide_and_tell(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> Outcome {
        let before = Excerpt::of(frame);
        let (outcome, verdict) = self.decide(ingress, frame, frame_bytes, now);
        if let Some(samples) = &self.samples {
            samples.tell(Sample {
                by: DecidedBy::Worker,
                arrived: now,
                residence: None,
                ingress,
                outcome,
                rule: verdict.map(|verdict| verdict.rule),
                generation: self.snapshot.generation,
                frame_bytes,
                before,
                after: Excerpt::of(frame),
            });
        }
        outcome
    }

    #[inline]
    fn outbound(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> (Outcome, Verdict) {
        let headers = packet::parse(frame, frame_bytes);
        let verdict = judge(&headers, &self.snapshot, &mut self.fragments, now);
        self.count(&verdict, frame_bytes);
        // One frame of a batch tells where the host is as well as all of them do.
        if !self.host_seen && verdict.rule as usize > Rule::ForeignSource as usize {
            self.links.learn_host(frame);
            self.host_seen = true;
        }
        if let Some(remark) = verdict.remark {
            packet::set_dscp(frame, remark.l3, remark.version, remark.dscp);
        }
        let egress = match verdict.egress {
            Egress::Uplink => Role::Uplink,
            Egress::Incoming => match (self.links.incoming(), self.links.next_hop()) {
                (Some(link), Some(next_hop)) => {
                    packet::set_macs(frame, next_hop, link.own);
                    link.port
                }
                _ => return (self.unsteered(), verdict),
            },
        };
        (Outcome::Forward(egress), verdict)
    }

    /// What becomes of a relay frame while `incoming` cannot be used.
    #[cold]
    fn unsteered(&mut self) -> Outcome {
        if self.links.drops_unsteered() {
            return Outcome::Drop(DropReason::SteerUnavailable);
        }
        self.tally.unsteered();
        Outcome::Forward(Role::Uplink)
    }

    #[inline]
    fn count(&mut self, verdict: &Verdict, frame_bytes: usize) {
        self.tally.met(verdict.rule, frame_bytes as u64);
        match verdict.remark {
            Some(remark) if remark.dscp == Dscp::DEFAULT => self.tally.cleared(),
            Some(_) => self.tally.marked(),
            None => {}
        }
        if verdict.disagreement {
            self.tally.disagreed();
        }
    }

    /// The wire's other direction. Nothing changes, but where this NIC is `incoming` too, what
    /// was sent to its own address for the host goes to the host's.
    #[inline]
    fn inbound_by_uplink(&self, frame: &mut [u8]) -> Outcome {
        match self.links.incoming() {
            Some(link) if link.port == Role::Uplink => match self.routed_to_host(frame, link.own) {
                Some(outcome) => outcome,
                None => Outcome::Forward(Role::Host),
            },
            _ => Outcome::Forward(Role::Host),
        }
    }

    /// `incoming` is a member of another network: only what was sent to the box's MAC address
    /// for the host's IP addresses goes on.
    #[inline]
    fn inbound_by_incoming(&self, frame: &mut [u8]) -> Outcome {
        self.links
            .incoming()
            .and_then(|link| self.routed_to_host(frame, link.own))
            .unwrap_or(Outcome::Stack)
    }

    /// What becomes of a frame that a router sent to the box for the host; none if it is not
    /// such a frame.
    fn routed_to_host(&self, frame: &mut [u8], own: MacAddr) -> Option<Outcome> {
        let rules = &self.snapshot.rules;
        let destination = packet::destination(frame)?;
        if MacAddr::destination_of(frame) != Some(own)
            || !rules.addresses.contains(destination)
                && !rules.relay_addresses.contains(destination)
        {
            return None;
        }
        Some(match self.links.host() {
            Some(host) => {
                packet::set_destination_mac(frame, host);
                Outcome::Forward(Role::Host)
            }
            None => Outcome::Drop(DropReason::HostMacUnknown),
        })
    }
}

/// How many frames, and bytes, the first packet of these takes.
#[cold]
fn extent(frames: &[Frame]) -> (usize, usize) {
    let last = frames.iter().position(|frame| !frame.has_more());
    let parts = last.map_or(frames.len(), |last| last + 1);
    let bytes = frames[..parts].iter().map(Frame::length).sum();
    (parts, bytes)
}
