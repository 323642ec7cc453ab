//! Forwards one frame: decides its egress port and rewrites its bytes.
//!
//! Uses no ring, makes no system call, and does not allocate. `explain` runs the same code.

mod inbound;
mod short_way;

use super::counters::Unrouted;
use super::groups::{GroupCounts, GroupTallies};
use super::sent::{NO_HOST, SentBy, SentPacket, replaced, retag, source_end};
use super::{
    Counters, DecidedBy, DropReason, Excerpt, Frame, FrameMemory, Links, PerRole, Role,
    SAMPLE_BYTES, Sample, Samples, Tally, TapRing, contract::TAP_OUT, links::Steering,
    sample::SamplingRate,
};
use exitmark_policy::packet::{self, Headers, Retagged, VlanTags};
use exitmark_policy::{
    Answers, Class, Egress, FragmentTable, Group, GroupNumber, Rule, Snapshot, Tap, Verdict, judge,
    judge_whole_v4, judge_whole_v6,
};
use short_way::ShortWay;
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
    /// The first fragments that relays sent to a translated address.
    translated: FragmentTable,
    tally: Tally,
    /// The counts of each group, if there are several.
    groups: GroupTallies,
    /// How the relay frames of this batch leave that have the next hop with this number; `None` if
    /// they cannot be steered.
    steering: (usize, Option<Steering>),
    /// The host that was learned last in this batch.
    last_host: SentBy,
    /// The new beginning of the frame that was decided last, if its VLAN tags are replaced.
    retagged: Option<(Retagged, GroupNumber)>,
    /// Whether frames by `uplink` from an address of the host are counted.
    seeks_host: bool,
    /// Where copies of exit frames go, and which are copied.
    tap: Option<TapRing>,
    copies: Tap,
    /// The first fragments of answers.
    answers: Answers,
    /// Where sampled decisions go.
    samples: Option<Arc<Samples>>,
    /// The sampling phase of the last decision, see [`SamplingRate::next`].
    phase: u64,
}

impl Forwarder {
    /// A forwarder that uses this snapshot until [`Forwarder::follow`] replaces it.
    pub fn new(snapshot: Arc<Snapshot>, links: Arc<Links>) -> Self {
        Self {
            groups: GroupTallies::of(&snapshot),
            snapshot,
            links,
            fragments: FragmentTable::default(),
            translated: FragmentTable::default(),
            tally: Tally::default(),
            steering: (NO_HOP, None),
            last_host: NO_HOST,
            retagged: None,
            seeks_host: false,
            tap: None,
            copies: Tap::Off,
            answers: Answers::default(),
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

    /// Copies exit frames into this ring, as the rules say.
    #[must_use]
    pub fn tapped_into(mut self, ring: TapRing) -> Self {
        self.tap = Some(ring);
        self.copies = self.snapshot.rules.tap();
        self
    }

    /// Where sampled decisions go, if anywhere.
    pub fn samples(&self) -> Option<&Samples> {
        self.samples.as_deref()
    }

    /// Uses another snapshot from the next frame on. Returns the old one, so that the caller frees
    /// it off the packet path.
    pub fn follow(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        self.groups.follow(&snapshot);
        if self.tap.is_some() {
            self.copies = snapshot.rules.tap();
        }
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// The snapshot in use, by which the next frame is decided.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The counts since the last [`Forwarder::publish`].
    pub const fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// The counts of the groups since the last [`Forwarder::publish`], which begin again at 0; none
    /// if there is only one group.
    pub fn take_group_counts(&mut self) -> Vec<GroupCounts> {
        self.groups.take()
    }

    /// Adds the counts to these counters, and begins again at 0. Only the worker that owns the
    /// counters may call this.
    pub fn publish(&mut self, counters: &Counters) {
        counters.publish(&mut self.tally);
        self.groups.publish(counters);
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
        let mut short_way =
            (ingress == Role::Host).then(|| ShortWay::of(&self.snapshot, &self.links));
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
                let mut outcome = self.decide_rarely(ingress, frame, frame_bytes, now, is_sampled);
                packets -= parts - 1;
                bytes += frame_bytes;
                let mut first = frames.next();
                if let Some((retagged, group)) = self.retagged.take() {
                    first = first.map(|frame| {
                        let (frame, done) = retag(frame, &retagged, memory);
                        outcome = self.after_retag(ingress, outcome, group, done);
                        frame
                    });
                }
                let queue = self.queue(outcome, outbox);
                queue.extend(first);
                queue.extend(frames.by_ref().take(parts - 1));
                continue;
            }
            if let Some(short_way) = &mut short_way {
                let frame = memory.bytes(first);
                let port = short_way.take(frame, &self.snapshot, self.last_host);
                if let Some(port) = port {
                    if let Some(frame) = frames.next() {
                        outbox.leaving[port].push(frame);
                    }
                    continue;
                }
            }
            bytes += first.length();
            let queue = self.decide_whole(ingress, memory.bytes(first), now, outbox);
            let Some(frame) = frames.next() else {
                continue;
            };
            match self.retagged {
                None => queue.push(frame),
                Some(_) => self.push_retagged(ingress, frame, memory, outbox),
            }
        }
        drop(frames);
        self.phase = phase;
        if let Some(short_way) = short_way {
            short_way.count_into(&mut self.tally);
        }
        self.tally.received(ingress, packets as u64);
        if ingress != Role::Host {
            self.tally.inbound(ingress, bytes as u64);
        }
        packets as u64
    }

    /// Replaces the tags of a frame that was just decided, and puts it into its queue.
    #[cold]
    #[inline(never)]
    fn push_retagged(
        &mut self,
        ingress: Role,
        frame: Frame,
        memory: &mut impl FrameMemory,
        outbox: &mut Outbox,
    ) {
        let (Some((retagged, group)), Some(incoming)) =
            (self.retagged.take(), self.links.incoming_port())
        else {
            return outbox.dropped.push(frame);
        };
        let (frame, done) = retag(frame, &retagged, memory);
        let outcome = Outcome::Forward(match ingress {
            Role::Host => incoming,
            Role::Uplink | Role::Incoming => Role::Host,
        });
        let outcome = self.after_retag(ingress, outcome, group, done);
        self.queue(outcome, outbox).push(frame);
    }

    /// The outcome for a frame whose tags were to be replaced, which may have failed.
    fn after_retag(
        &mut self,
        ingress: Role,
        outcome: Outcome,
        group: GroupNumber,
        done: bool,
    ) -> Outcome {
        let rules = &self.snapshot.rules;
        match (done, ingress) {
            (true, _) => outcome,
            // It has the source address of the other network.
            (false, Role::Host) if rules.group(group).is_some_and(Group::translates) => {
                Outcome::Drop(DropReason::NoEgress)
            }
            (false, Role::Host) => self.unsteered(group),
            (false, _) => Outcome::Drop(DropReason::NoEgress),
        }
    }

    /// Loads the state that is the same for all frames of a batch.
    fn begin(&mut self) {
        self.steering = (NO_HOP, None);
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
            Role::Uplink | Role::Incoming => self.inbound(ingress, frame, frame.len(), now),
        };
        self.queue(outcome, outbox)
    }

    /// Decides one frame and rewrites it. `frame` is the part with the headers, `frame_bytes` the
    /// length of the whole frame. Returns the verdict too for outbound frames.
    pub fn forward(
        &mut self,
        ingress: Role,
        frame: &mut Vec<u8>,
        frame_bytes: usize,
        now: Duration,
    ) -> (Outcome, Option<Verdict>) {
        // A batch of one.
        self.begin();
        let decided = self.decide(ingress, frame, frame_bytes, now);
        if let Some((retagged, _)) = self.retagged.take() {
            let (beginning, replaced) = retagged.parts();
            frame.splice(..replaced, beginning.iter().copied());
        }
        decided
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
            Role::Uplink | Role::Incoming => (self.inbound(ingress, frame, frame_bytes, now), None),
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
                after: self.excerpt_after(frame),
            });
        }
        outcome
    }

    /// The beginning of the frame that was decided last, as it leaves.
    fn excerpt_after(&self, frame: &[u8]) -> Excerpt {
        let Some((retagged, _)) = &self.retagged else {
            return Excerpt::of(frame);
        };
        let (beginning, replaced) = retagged.parts();
        let rest = frame.get(replaced..).unwrap_or_default();
        let mut bytes = [0; SAMPLE_BYTES];
        let new = beginning.iter().chain(rest);
        let length = bytes
            .iter_mut()
            .zip(new)
            .map(|(byte, new)| *byte = *new)
            .count();
        Excerpt::of(&bytes[..length])
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
            self.carry_out(frame, frame_bytes, packet.into(), verdict, end)
        } else if let Some(packet) = packet::fast_path_v6(frame, 0, frame_bytes) {
            let verdict = judge_whole_v6(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, packet.into(), verdict, end)
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
            self.carry_out(frame, frame_bytes, packet.into(), verdict, end)
        } else if let Some(packet) = packet::fast_path_v6(frame, tags, frame_bytes) {
            let verdict = judge_whole_v6(packet, &self.snapshot);
            self.carry_out(frame, frame_bytes, packet.into(), verdict, end)
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
        let sent = match headers {
            Headers::V4(packet) => packet.into(),
            Headers::V6(packet) => packet.into(),
            Headers::NotIp | Headers::Malformed(_) => SentPacket::default(),
        };
        self.carry_out(frame, frame_bytes, sent, verdict, end)
    }

    #[inline(always)]
    fn carry_out<T>(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        sent: SentPacket,
        verdict: Verdict,
        end: impl FnOnce(&mut Self, Outcome, Verdict) -> T,
    ) -> T {
        if self.copies.copies_out() && verdict.class() == Class::Exit {
            self.copy_to_tap(frame, frame_bytes, TAP_OUT, verdict.group);
        }
        if let Some(remark) = verdict.remark {
            packet::set_dscp(frame, remark.l3, remark.version, remark.dscp);
            self.tally.remarked(remark.dscp);
        }
        self.tally.met(verdict.rule, frame_bytes as u64);
        if verdict.disagreement {
            self.tally.disagreed();
        }
        if self.groups.are_several() {
            self.groups.count(&verdict, frame_bytes as u64);
        }
        // One frame per batch is enough to learn the MAC address of an address.
        let by = SentBy {
            mac: source_end(frame),
            address: sent.source,
        };
        if by != self.last_host {
            self.learn_host(frame, &verdict, sent.vlan, by);
        }
        match verdict.egress {
            Egress::Uplink => end(self, Outcome::Forward(Role::Uplink), verdict),
            Egress::Incoming => {
                let group = self.snapshot.rules.group(verdict.group);
                let path = group.map(|group| group.path).unwrap_or_default();
                let translates = group.is_some_and(Group::translates);
                let number = path.next_hop(sent.version);
                if number != self.steering.0 {
                    self.steering = (number, self.links.steering(number));
                }
                let steering = self.steering.1;
                let can = !translates || steering.is_none() || self.depart(frame, frame_bytes);
                match steering.filter(|_| can) {
                    Some(steering) => {
                        if sent.has_tags || path.vlan != VlanTags::UNTAGGED {
                            let replaced = replaced(frame, path.vlan, path.priority, steering.macs);
                            self.retagged = replaced.map(|new| (new, verdict.group));
                        } else {
                            packet::set_macs(frame, steering.macs);
                        }
                        match steering.port {
                            Role::Uplink => end(self, Outcome::Forward(Role::Uplink), verdict),
                            port => end(self, Outcome::Forward(port), verdict),
                        }
                    }
                    None => {
                        let outcome = self.unsteered(verdict.group);
                        end(self, outcome, verdict)
                    }
                }
            }
            Egress::Unrouted => {
                let outcome = self.unrouted(sent, verdict);
                end(self, outcome, verdict)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn learn_host(&mut self, frame: &[u8], verdict: &Verdict, vlan: VlanTags, by: SentBy) {
        let group = self.snapshot.rules.group(verdict.group);
        // In another VLAN, another machine may have the address.
        let is_of_host = group.is_none_or(|group| !group.has_tags() || group.vlan == vlan);
        if verdict.rule as usize > Rule::ForeignSource as usize && is_of_host {
            self.links.learn_host(frame);
            self.last_host = by;
        }
    }

    /// Replaces the source address of a frame; false if that is impossible.
    #[inline(never)]
    fn depart(&mut self, frame: &mut [u8], frame_bytes: usize) -> bool {
        let done = self.snapshot.depart(frame, frame_bytes);
        if done {
            self.tally.translated();
        }
        done
    }

    /// The outcome for a relay frame that no next hop routes.
    #[cold]
    #[inline(never)]
    fn unrouted(&mut self, sent: SentPacket, verdict: Verdict) -> Outcome {
        let group = self.snapshot.rules.group(verdict.group);
        let steer = group.map(|group| group.actions.intent().steer);
        let why = if !group.is_some_and(|group| group.vlan == sent.vlan) {
            Unrouted::Vlan
        } else if steer.is_some_and(|steer| steer.routes(sent.version)) {
            Unrouted::Source
        } else {
            Unrouted::Family
        };
        self.tally.unrouted(why);
        self.groups.unrouted(verdict.group, why);
        self.unsteered(verdict.group)
    }

    #[inline(never)]
    fn copy_to_tap(&mut self, frame: &[u8], frame_bytes: usize, flags: u32, group: GroupNumber) {
        let (Some(ring), Some(group)) = (&self.tap, self.snapshot.rules.group(group)) else {
            return;
        };
        if !ring.push(frame, frame_bytes, flags, group.actions.mark()) {
            self.tally.tap_full(1);
        }
    }

    /// The outcome for a relay frame that cannot be steered.
    #[cold]
    fn unsteered(&mut self, group: GroupNumber) -> Outcome {
        if self.links.drops_unsteered() {
            return Outcome::Drop(DropReason::SteerUnavailable);
        }
        self.tally.unsteered();
        self.groups.unsteered(group);
        Outcome::Forward(Role::Uplink)
    }
}

/// The number of no next hop.
const NO_HOP: usize = usize::MAX;

/// The number of frames and of bytes of the first packet.
#[cold]
fn extent(frames: &[Frame]) -> (usize, usize) {
    let last = frames.iter().position(|frame| !frame.has_more());
    let parts = last.map_or(frames.len(), |last| last + 1);
    let bytes = frames[..parts].iter().map(Frame::length).sum();
    (parts, bytes)
}
