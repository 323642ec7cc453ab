//! One frame's way through the box: bytes in, changed bytes and a port out.
//!
//! No ring, no system call, no allocation. This is the code that `explain` runs too.

use super::{
    DecidedBy, DropReason, Excerpt, Frame, Links, Memory, PerRole, Role, Sample, Samples, Tally,
    links::Steering, sample::Part,
};
use crate::packet::{self, MacAddr};
use crate::policy::{
    Egress, FragmentTable, Rule, Snapshot, Verdict, judge, judge_whole_v4, judge_whole_v6,
};
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
    /// How relay frames of this batch leave, if they can.
    steering: Option<Steering>,
    /// What this batch has shown of the host's MAC address: the bytes of the last frame that was
    /// looked at, from [`SOURCE_END`] on.
    host_seen: u64,
    /// Whether the host may be behind `uplink`.
    seeks_host: bool,
    /// Who is told of some of the decisions.
    samples: Option<Arc<Samples>>,
    /// Where their choice has come to.
    phase: u64,
}

impl Forwarder {
    /// A forwarder that follows this snapshot until another is published.
    pub fn new(snapshot: Arc<Snapshot>, links: Arc<Links>) -> Self {
        Self {
            snapshot,
            links,
            fragments: FragmentTable::default(),
            tally: Tally::default(),
            steering: None,
            host_seen: NO_HOST,
            seeks_host: false,
            samples: None,
            phase: 0,
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
        // A loop for each port, so that no frame asks where it came from.
        match ingress {
            Role::Host => self.process(Role::Host, arrived, memory, outbox, now),
            Role::Uplink => self.process(Role::Uplink, arrived, memory, outbox, now),
            Role::Incoming => self.process(Role::Incoming, arrived, memory, outbox, now),
        }
    }

    #[inline(always)]
    fn process(
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
        self.begin();
        let sampled = self.links.sampled();
        if reads_headers {
            for frame in arrived.iter().take(PREFETCH_AHEAD) {
                memory.prefetch(frame);
            }
        }
        let mut phase = self.phase;
        let mut packets = whole;
        let mut bytes = 0;
        let mut frames = arrived.drain(..whole);
        while let Some(first) = frames.as_slice().first() {
            if reads_headers && let Some(ahead) = frames.as_slice().get(PREFETCH_AHEAD) {
                memory.prefetch(ahead);
            }
            phase = Part::next(phase);
            let told = sampled.has(phase);
            if told || first.has_more() {
                let (parts, frame_bytes) = extent(frames.as_slice());
                let frame = memory.bytes(first);
                let outcome = self.decide_rarely(ingress, frame, frame_bytes, now, told);
                packets -= parts - 1;
                bytes += frame_bytes;
                let queue = self.queue(outcome, outbox);
                queue.extend(frames.by_ref().take(parts));
                continue;
            }
            bytes += first.length();
            let queue = self.decide_whole(ingress, memory.bytes(first), now, outbox);
            if let Some(frame) = frames.next() {
                queue.push(frame);
            }
        }
        drop(frames);
        self.phase = phase;
        self.tally.received(ingress, packets as u64);
        if ingress != Role::Host {
            self.tally.inbound(ingress, bytes as u64);
        }
        packets as u64
    }

    /// Looks once at what is the same for all frames of a batch.
    fn begin(&mut self) {
        self.steering = self.links.steering();
        self.host_seen = NO_HOST;
        self.seeks_host = self.links.seeks_host();
    }

    /// Where the frames of a packet go; counts it, if that is nowhere.
    #[inline(always)]
    fn queue<'outbox>(
        &mut self,
        outcome: Outcome,
        outbox: &'outbox mut Outbox,
    ) -> &'outbox mut Vec<Frame> {
        let reason = match outcome {
            Outcome::Forward(role) => return &mut outbox.leaving[role],
            Outcome::Stack => DropReason::NotForHost,
            Outcome::Drop(reason) => reason,
        };
        self.tally.dropped(reason, 1);
        &mut outbox.dropped
    }

    /// Decides a packet that is in one frame, and tells nobody. Gives the queue for it.
    #[inline(always)]
    fn decide_whole<'outbox>(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        now: Duration,
        outbox: &'outbox mut Outbox,
    ) -> &'outbox mut Vec<Frame> {
        let outcome = match ingress {
            Role::Host => {
                let frame_bytes = frame.len();
                return self.outbound(frame, frame_bytes, now, |forwarder, outcome, _| {
                    forwarder.queue(outcome, outbox)
                });
            }
            Role::Uplink => self.inbound_by_uplink(frame),
            Role::Incoming => self.inbound_by_incoming(frame),
        };
        self.queue(outcome, outbox)
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
        self.begin();
        self.decide(ingress, frame, frame_bytes, now)
    }

    fn decide(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> (Outcome, Option<Verdict>) {
        match ingress {
            Role::Host => self.outbound(frame, frame_bytes, now, |_, outcome, verdict| {
                (outcome, Some(verdict))
            }),
            Role::Uplink => (self.inbound_by_uplink(frame), None),
            Role::Incoming => (self.inbound_by_incoming(frame), None),
        }
    }

    /// Decides a packet that is in several frames, or one that is told of.
    #[cold]
    #[inline(never)]
    fn decide_rarely(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
        told: bool,
    ) -> Outcome {
        let told = told && self.samples().is_some_and(Samples::have_room);
        let before = told.then(|| Excerpt::of(frame));
        let (outcome, verdict) = self.decide(ingress, frame, frame_bytes, now);
        if let (Some(before), Some(samples)) = (before, &self.samples) {
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

    /// Decides a frame of the host's, and ends with `end`. Each branch is compiled for its kind of
    /// frame alone, up to there: offsets and family are constants.
    #[inline(always)]
    fn outbound<T>(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
        end: impl FnOnce(&mut Self, Outcome, Verdict) -> T,
    ) -> T {
        if let Some(packet) = packet::plain_v4(frame, 0, frame_bytes) {
            let verdict = judge_whole_v4(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else if let Some(packet) = packet::plain_v6(frame, 0, frame_bytes) {
            let verdict = judge_whole_v6(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else if packet::tag_bytes(frame) > 0 {
            self.outbound_tagged(frame, frame_bytes, now, end)
        } else {
            self.outbound_any(frame, frame_bytes, now, end)
        }
    }

    /// The same for a frame with tags. Apart, so that it takes no registers from those without.
    #[cold]
    #[inline(never)]
    fn outbound_tagged<T>(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
        end: impl FnOnce(&mut Self, Outcome, Verdict) -> T,
    ) -> T {
        let tags = packet::tag_bytes(frame);
        if let Some(packet) = packet::plain_v4(frame, tags, frame_bytes) {
            let verdict = judge_whole_v4(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else if let Some(packet) = packet::plain_v6(frame, tags, frame_bytes) {
            let verdict = judge_whole_v6(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else {
            self.outbound_any(frame, frame_bytes, now, end)
        }
    }

    /// The same for any frame, whatever it is.
    #[cold]
    #[inline(never)]
    fn outbound_any<T>(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
        end: impl FnOnce(&mut Self, Outcome, Verdict) -> T,
    ) -> T {
        let headers = packet::parse(frame, frame_bytes);
        let verdict = judge(&headers, &self.snapshot, &mut self.fragments, now);
        self.carry_out(frame, frame_bytes, verdict, end)
    }

    #[inline(always)]
    fn carry_out<T>(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        verdict: Verdict,
        end: impl FnOnce(&mut Self, Outcome, Verdict) -> T,
    ) -> T {
        if let Some(remark) = verdict.remark {
            packet::set_dscp(frame, remark.l3, remark.version, remark.dscp);
            self.tally.remarked(remark.dscp);
        }
        self.tally.met(verdict.rule, frame_bytes as u64);
        if verdict.disagreement {
            self.tally.disagreed();
        }
        // Of frames from one MAC address, one of a batch tells where the host is as well as all do.
        if source_end(frame) != self.host_seen {
            self.see_host(frame, verdict.rule);
        }
        match verdict.egress {
            Egress::Uplink => end(self, Outcome::Forward(Role::Uplink), verdict),
            Egress::Incoming => match self.steering {
                Some(steering) => {
                    packet::set_macs(frame, steering.macs);
                    match steering.port {
                        Role::Uplink => end(self, Outcome::Forward(Role::Uplink), verdict),
                        port => end(self, Outcome::Forward(port), verdict),
                    }
                }
                None => {
                    let outcome = self.unsteered();
                    end(self, outcome, verdict)
                }
            },
            Egress::Unrouted => {
                let outcome = self.unrouted(frame);
                end(self, outcome, verdict)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn see_host(&mut self, frame: &[u8], rule: Rule) {
        if rule as usize > Rule::ForeignSource as usize {
            self.links.learn_host(frame);
            self.host_seen = source_end(frame);
        }
    }

    /// What becomes of a relay frame that the next hop does not route.
    #[cold]
    #[inline(never)]
    fn unrouted(&mut self, frame: &[u8]) -> Outcome {
        self.tally.unrouted(packet::tag_bytes(frame) > 0);
        self.unsteered()
    }

    /// What becomes of a relay frame that cannot be steered.
    #[cold]
    fn unsteered(&mut self) -> Outcome {
        if self.links.drops_unsteered() {
            return Outcome::Drop(DropReason::SteerUnavailable);
        }
        self.tally.unsteered();
        Outcome::Forward(Role::Uplink)
    }

    /// The wire's other direction. Nothing changes, but where this NIC is `incoming` too, what
    /// was sent to its own address for the host goes to the host's.
    #[inline]
    fn inbound_by_uplink(&mut self, frame: &mut [u8]) -> Outcome {
        if self.seeks_host {
            self.seek_host(frame);
        }
        match self.links.incoming_port() {
            Some(Role::Uplink) => match self.routed_to_host(frame) {
                Some(outcome) => outcome,
                None => Outcome::Forward(Role::Host),
            },
            _ => Outcome::Forward(Role::Host),
        }
    }

    #[cold]
    #[inline(never)]
    fn seek_host(&mut self, frame: &[u8]) {
        let rules = &self.snapshot.rules;
        if packet::source(frame).is_some_and(|source| rules.is_host(source)) {
            self.tally.host_by_uplink();
        }
    }

    /// `incoming` is a member of another network: only what was sent to the box's MAC address
    /// for the host's IP addresses goes on.
    #[inline]
    fn inbound_by_incoming(&self, frame: &mut [u8]) -> Outcome {
        self.routed_to_host(frame).unwrap_or(Outcome::Stack)
    }

    /// What becomes of a frame that a router sent to the box for the host; none if it is not
    /// such a frame.
    fn routed_to_host(&self, frame: &mut [u8]) -> Option<Outcome> {
        self.links.incoming_port()?;
        let own = self.links.incoming_mac()?;
        let rules = &self.snapshot.rules;
        let destination = packet::destination(frame)?;
        if MacAddr::destination_of(frame) != Some(own) || !rules.is_host(destination) {
            return None;
        }
        Some(match self.links.host_of(destination) {
            Some(host) => {
                packet::set_destination_mac(frame, host);
                Outcome::Forward(Role::Host)
            }
            None => Outcome::Drop(DropReason::HostMacUnknown),
        })
    }
}

/// Where the eight bytes begin that end with the source MAC address.
const SOURCE_END: usize = 4;
/// Those of no host: the source would be multicast.
const NO_HOST: u64 = u64::MAX;

/// The eight bytes of a frame that end with its source MAC address: one load, one comparison.
#[inline(always)]
fn source_end(frame: &[u8]) -> u64 {
    let bytes = frame.get(SOURCE_END..).and_then(<[u8]>::first_chunk);
    bytes.map_or(NO_HOST, |bytes| u64::from_ne_bytes(*bytes))
}

/// How many frames, and bytes, the first packet of these takes.
#[cold]
fn extent(frames: &[Frame]) -> (usize, usize) {
    let last = frames.iter().position(|frame| !frame.has_more());
    let parts = last.map_or(frames.len(), |last| last + 1);
    let bytes = frames[..parts].iter().map(Frame::length).sum();
    (parts, bytes)
}
