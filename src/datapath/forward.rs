//! Forwards one frame: decides its egress port and rewrites its bytes.
//!
//! Uses no ring, makes no system call, and does not allocate. `explain` runs the same code.

use super::{
    DecidedBy, DropReason, Excerpt, Frame, FrameMemory, Links, PerRole, Role, Sample, Samples,
    Tally, links::Steering, sample::SamplingRate,
};
use exitmark_policy::packet::{self, MacAddr};
use exitmark_policy::{
    Egress, FragmentTable, Rule, Snapshot, Verdict, judge, judge_whole_v4, judge_whole_v6,
};
use std::sync::Arc;
use std::time::Duration;

/// How many frames ahead the headers are prefetched.
const PREFETCH_AHEAD: usize = 8;

/// What happens to a frame after it was decided and rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Leaves by the port of this role.
    Forward(Role),
    /// Goes to the box's own network stack. Only the XDP program can do that; a worker drops the
    /// frame as [`DropReason::NotForHost`].
    Stack,
    /// Is dropped for this reason.
    Drop(DropReason),
}

/// Frames that leave, one queue per port, and dropped frames, which return to the pool.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Frames that leave by each port, in order.
    pub leaving: PerRole<Vec<Frame>>,
    /// Frames that are dropped, of all ports. The caller puts them back into the pool.
    pub dropped: Vec<Frame>,
}

/// Decides and rewrites frames. One per worker, because it holds the fragment table.
pub struct Forwarder {
    snapshot: Arc<Snapshot>,
    links: Arc<Links>,
    fragments: FragmentTable,
    tally: Tally,
    /// How relay frames of this batch leave; `None` if they cannot be steered.
    steering: Option<Steering>,
    /// The host's MAC address as last learned in this batch: the eight bytes of that frame from
    /// [`SOURCE_END`] on.
    last_host: u64,
    /// Whether frames by `uplink` from an address of the host are counted.
    seeks_host: bool,
    /// Where sampled decisions go.
    samples: Option<Arc<Samples>>,
    /// The sampling phase of the last decision, see [`SamplingRate::next`].
    phase: u64,
}

impl Forwarder {
    /// A forwarder that uses this snapshot until [`Forwarder::follow`] replaces it.
    pub fn new(snapshot: Arc<Snapshot>, links: Arc<Links>) -> Self {
        Self {
            snapshot,
            links,
            fragments: FragmentTable::default(),
            tally: Tally::default(),
            steering: None,
            last_host: NO_HOST,
            seeks_host: false,
            samples: None,
            phase: 0,
        }
    }

    /// Sends samples of the decisions there, at the rate that [`Links::sample`] sets.
    #[must_use]
    pub fn sampled_into(mut self, samples: Arc<Samples>) -> Self {
        self.samples = Some(samples);
        self
    }

    /// Where sampled decisions go, if anywhere.
    pub fn samples(&self) -> Option<&Samples> {
        self.samples.as_deref()
    }

    /// Uses another snapshot from the next frame on. Returns the old one, so that the caller frees
    /// it off the packet path.
    pub fn follow(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// The snapshot in use, by which the next frame is decided.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The counts since the last [`super::Counters::publish`].
    pub const fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Forwards every whole packet in `arrived`, and leaves there the beginning of one whose end
    /// has not arrived. Returns the number of packets. `now` counts from any fixed moment.
    #[inline(never)]
    pub fn process_batch(
        &mut self,
        ingress: Role,
        arrived: &mut Vec<Frame>,
        memory: &mut impl FrameMemory,
        outbox: &mut Outbox,
        now: Duration,
    ) -> u64 {
        // One loop per port, so that the ingress port is a constant in each.
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
        memory: &mut impl FrameMemory,
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
            phase = SamplingRate::next(phase);
            let is_sampled = sampled.has(phase);
            if is_sampled || first.has_more() {
                let (parts, frame_bytes) = extent(frames.as_slice());
                let frame = memory.bytes(first);
                let outcome = self.decide_rarely(ingress, frame, frame_bytes, now, is_sampled);
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

    /// Loads the state that is the same for all frames of a batch.
    fn begin(&mut self) {
        self.steering = self.links.steering();
        self.last_host = NO_HOST;
        self.seeks_host = self.links.seeks_host();
    }

    /// The queue for the frames of a packet. Counts the packet if it is dropped.
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

    /// Decides a packet that is in one frame and not sampled. Returns the queue for it.
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

    /// Decides one frame and rewrites it. `frame` is the part with the headers, `frame_bytes` the
    /// length of the whole frame. Returns the verdict too for outbound frames.
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

    /// Decides a packet that is in several frames, or one that is sampled.
    #[cold]
    #[inline(never)]
    fn decide_rarely(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
        is_sampled: bool,
    ) -> Outcome {
        let is_sampled = is_sampled && self.samples().is_some_and(Samples::have_room);
        let before = is_sampled.then(|| Excerpt::of(frame));
        let (outcome, verdict) = self.decide(ingress, frame, frame_bytes, now);
        if let (Some(before), Some(samples)) = (before, &self.samples) {
            samples.push(Sample {
                by: DecidedBy::Worker,
                arrived: now,
                latency: None,
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

    /// Decides a frame from the host, and calls `end` with the result. Each branch is compiled for
    /// one kind of frame, `end` included: offsets and family are constants.
    #[inline(always)]
    fn outbound<T>(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
        end: impl FnOnce(&mut Self, Outcome, Verdict) -> T,
    ) -> T {
        if let Some(packet) = packet::fast_path_v4(frame, 0, frame_bytes) {
            let verdict = judge_whole_v4(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else if let Some(packet) = packet::fast_path_v6(frame, 0, frame_bytes) {
            let verdict = judge_whole_v6(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else if packet::tag_bytes(frame) > 0 {
            self.outbound_tagged(frame, frame_bytes, now, end)
        } else {
            self.outbound_any(frame, frame_bytes, now, end)
        }
    }

    /// The same for a frame with VLAN tags; a separate function, so that the untagged path keeps
    /// its registers.
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
        if let Some(packet) = packet::fast_path_v4(frame, tags, frame_bytes) {
            let verdict = judge_whole_v4(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else if let Some(packet) = packet::fast_path_v6(frame, tags, frame_bytes) {
            let verdict = judge_whole_v6(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, verdict, end)
        } else {
            self.outbound_any(frame, frame_bytes, now, end)
        }
    }

    /// The slow path: the same for any frame.
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
        // One frame per batch and source MAC address is enough to learn the host's.
        if source_end(frame) != self.last_host {
            self.learn_host(frame, verdict.rule);
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
    fn learn_host(&mut self, frame: &[u8], rule: Rule) {
        if rule as usize > Rule::ForeignSource as usize {
            self.links.learn_host(frame);
            self.last_host = source_end(frame);
        }
    }

    /// The outcome for a relay frame that the next hop does not route.
    #[cold]
    #[inline(never)]
    fn unrouted(&mut self, frame: &[u8]) -> Outcome {
        self.tally.unrouted(packet::tag_bytes(frame) > 0);
        self.unsteered()
    }

    /// The outcome for a relay frame that cannot be steered.
    #[cold]
    fn unsteered(&mut self) -> Outcome {
        if self.links.drops_unsteered() {
            return Outcome::Drop(DropReason::SteerUnavailable);
        }
        self.tally.unsteered();
        Outcome::Forward(Role::Uplink)
    }

    /// The wire's other direction: frames are forwarded unchanged. If this NIC is `incoming` too,
    /// frames sent to its own MAC address for the host get the host's MAC address.
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

    /// `incoming` is a member of another network: only frames sent to the box's MAC address for
    /// the host's IP addresses are forwarded.
    #[inline]
    fn inbound_by_incoming(&self, frame: &mut [u8]) -> Outcome {
        self.routed_to_host(frame).unwrap_or(Outcome::Stack)
    }

    /// The outcome for a frame that a router sent to the box for the host; `None` for any other
    /// frame.
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

/// The offset of the eight bytes that end with the source MAC address.
const SOURCE_END: usize = 4;
/// A value that no host has: its source MAC address would be multicast.
const NO_HOST: u64 = u64::MAX;

/// The eight bytes of a frame that end with its source MAC address: one load, one comparison.
#[inline(always)]
fn source_end(frame: &[u8]) -> u64 {
    let bytes = frame.get(SOURCE_END..).and_then(<[u8]>::first_chunk);
    bytes.map_or(NO_HOST, |bytes| u64::from_ne_bytes(*bytes))
}

/// The number of frames and of bytes of the first packet.
#[cold]
fn extent(frames: &[Frame]) -> (usize, usize) {
    let last = frames.iter().position(|frame| !frame.has_more());
    let parts = last.map_or(frames.len(), |last| last + 1);
    let bytes = frames[..parts].iter().map(Frame::length).sum();
    (parts, bytes)
}
