//! Audits sampled frames: compares them with the reference in `policy`, and checks, independently
//! of it, the invariants of frames on the wire.

use super::wire::{self, Wire};
use crate::observe::{AuditReport, MismatchCount};
use exitmark_datapath::{DropReason, Links, Outcome, Role, SAMPLE_BYTES, Sample};
use exitmark_policy::packet::{
    self, Dscp, Headers, MacAddr, Malformed, VlanTags, ipv4_header_checksum_is_good,
};
use exitmark_policy::{
    Arrival, AtUplink, Class, ClassifyBy, Egress, FragmentTable, Group, MAX_NEXT_HOPS, Mode, Rule,
    Rules, Snapshot, SteeredPath, Verdict, judge,
};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How many snapshots are kept: samples lag behind by a fraction of a second.
const SNAPSHOTS: usize = 4;
/// How long a previous MAC address of a neighbour is still accepted in a frame.
const MEMORY: Duration = Duration::from_secs(5);
/// The most MAC addresses that are kept per neighbour.
const NEIGHBOURS: usize = 16;
/// How long further mismatches of a kind are not logged after one was.
const SILENCE: Duration = Duration::from_secs(60);
/// The length of the destination and source MAC addresses.
const MACS: usize = 12;

/// A kind of difference between a frame and the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mismatch {
    /// The frame was counted as another class.
    Class,
    /// The DSCP differs from the one that the policy requires.
    Mark,
    /// The frame left by a wrong port, or should or should not have been dropped.
    Egress,
    /// A MAC address is not the one of the next hop or of the host, or was changed without reason.
    Mac,
    /// Any other byte changed, or the IPv4 header checksum is wrong.
    Bytes,
}

impl Mismatch {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 5] = [
        Self::Class,
        Self::Mark,
        Self::Egress,
        Self::Mac,
        Self::Bytes,
    ];

    /// The kind's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Mark => "mark",
            Self::Egress => "egress",
            Self::Mac => "mac",
            Self::Bytes => "bytes",
        }
    }
}

#[derive(Default)]
struct Mismatches(BTreeSet<Mismatch>);

impl Mismatches {
    fn unless(&mut self, is_right: bool, mismatch: Mismatch) {
        if !is_right {
            self.0.insert(mismatch);
        }
    }
}

/// The recent values of a MAC address, including `None` for "unknown".
#[derive(Debug, Default)]
struct RecentMacs(Vec<(Option<MacAddr>, Duration)>);

impl RecentMacs {
    fn add(&mut self, mac: Option<MacAddr>, now: Duration) {
        self.0
            .retain(|(known, last)| *known != mac && now.saturating_sub(*last) < MEMORY);
        if self.0.len() >= NEIGHBOURS {
            self.0.remove(0);
        }
        self.0.push((mac, now));
    }

    fn was(&self, mac: Option<MacAddr>) -> bool {
        self.0.iter().any(|(known, _)| *known == mac)
    }
}

/// The forwarding that the policy requires for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpectedPath {
    /// Across the wire to this port, with unchanged MAC addresses.
    Across(Role),
    /// By `incoming` to the next hop with this number.
    Steered(usize, SteeredPath),
    /// Across the wire, or dropped: relay traffic that no next hop routes.
    Unrouted,
    /// From a router to a host.
    Delivered(Recipient),
    /// To the box's own network stack (XDP_PASS).
    Stack,
}

/// The host that a frame from a router is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recipient {
    address: IpAddr,
    /// The MAC address, if it is configured.
    mac: Option<MacAddr>,
    /// The tags that the frame gets, if its own are replaced.
    vlan: Option<VlanTags>,
    /// Whether the host's group is the only one.
    is_of_only_group: bool,
}

/// Checks samples, and counts their mismatches.
pub struct Auditor {
    links: Arc<Links>,
    snapshots: VecDeque<Arc<Snapshot>>,
    /// The hosts' MAC addresses now and at the time before, and that of every other address.
    hosts: [(HashMap<IpAddr, MacAddr>, Option<MacAddr>); 2],
    /// By the next hop's number.
    next_hops: Vec<RecentMacs>,
    /// The MAC address of `incoming`.
    owns: RecentMacs,
    /// Required by [`judge`]; frames that would use it are skipped.
    fragments: FragmentTable,
    checked: u64,
    skipped: u64,
    mismatches: [u64; Mismatch::ALL.len()],
    logged: [Option<Duration>; Mismatch::ALL.len()],
}

impl Auditor {
    /// An auditor of a box with these links, without a policy yet.
    pub fn new(links: Arc<Links>) -> Self {
        let mut auditor = Self {
            links,
            snapshots: VecDeque::new(),
            hosts: Default::default(),
            next_hops: (0..MAX_NEXT_HOPS).map(|_| RecentMacs::default()).collect(),
            owns: RecentMacs::default(),
            fragments: FragmentTable::default(),
            checked: 0,
            skipped: 0,
            mismatches: [0; Mismatch::ALL.len()],
            logged: [None; Mismatch::ALL.len()],
        };
        auditor.look(Duration::ZERO);
        auditor
    }

    /// Adds a snapshot. Call this before any frame is judged by it.
    pub fn follow(&mut self, snapshot: Arc<Snapshot>) {
        // A snapshot that did not come into force has the same generation as its successor.
        self.snapshots
            .retain(|known| known.generation != snapshot.generation);
        if self.snapshots.len() >= SNAPSHOTS {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(snapshot);
    }

    /// The snapshot in force: the last one that was added; `None` before the first.
    pub(super) fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshots.back().map(|snapshot| &**snapshot)
    }

    /// Adds a next hop. Call this before any frame is sent there; otherwise a next hop that is in
    /// use only between two calls of [`Auditor::look`] would be missed.
    pub fn expect_next_hop(&mut self, number: usize, next_hop: Option<MacAddr>, now: Duration) {
        if let Some(recent) = self.next_hops.get_mut(number) {
            recent.add(next_hop, now);
        }
    }

    /// Records the current MAC addresses of the links. Call this before checking samples.
    pub fn look(&mut self, now: Duration) {
        self.look_at_next_hops(now);
        self.hosts.swap(0, 1);
        let hosts = self.links.hosts().into_iter();
        let known = hosts.map(|host| (host.address, host.mac)).collect();
        self.hosts[0] = (known, self.links.other_host());
    }

    /// As [`Auditor::look`], for a time without samples: without the table of the hosts, which is
    /// large.
    pub fn look_at_next_hops(&mut self, now: Duration) {
        for (number, recent) in self.next_hops.iter_mut().enumerate() {
            recent.add(self.links.next_hop(number), now);
        }
        self.owns.add(self.links.incoming_mac(), now);
    }

    /// Whether a MAC address is one of the site's: of a host, the box or a next hop.
    pub(super) fn knows(&self, mac: MacAddr) -> bool {
        let hosts = self.hosts.iter().flat_map(|(known, _)| known.values());
        let configured = self
            .snapshot()
            .into_iter()
            .flat_map(|now| now.rules.groups());
        self.owns.was(Some(mac))
            || self.next_hops.iter().any(|recent| recent.was(Some(mac)))
            || hosts.copied().any(|host| host == mac)
            || configured
                .filter_map(|group| group.mac)
                .any(|host| host == mac)
    }

    /// Checks one sample, and returns its mismatches; none if it has to be skipped.
    pub fn check(&mut self, sample: &Sample) -> Vec<Mismatch> {
        let known = |snapshot: &&Arc<Snapshot>| snapshot.generation == sample.generation;
        let Some(snapshot) = self.snapshots.iter().rev().find(known).cloned() else {
            self.skipped += 1;
            return Vec::new();
        };
        let Some(Mismatches(mut mismatches)) = self.judge(sample, &snapshot) else {
            self.skipped += 1;
            return Vec::new();
        };
        // For an inbound frame the program reads the policy twice; it may be replaced in between.
        let before = |known: &&Arc<Snapshot>| known.generation + 1 == sample.generation;
        if sample.ingress != Role::Host
            && !mismatches.is_empty()
            && let Some(before) = self.snapshots.iter().find(before).cloned()
            && let Some(Mismatches(by_that)) = self.judge(sample, &before)
            && by_that.is_empty()
        {
            mismatches = by_that;
        }
        self.checked += 1;
        for &mismatch in &mismatches {
            self.mismatches[mismatch as usize] += 1;
            self.alarm(mismatch, sample);
        }
        mismatches.into_iter().collect()
    }

    fn alarm(&mut self, mismatch: Mismatch, sample: &Sample) {
        let last = &mut self.logged[mismatch as usize];
        if last.is_some_and(|last| sample.arrived.saturating_sub(last) < SILENCE) {
            return;
        }
        *last = Some(sample.arrived);
        let class = sample.rule.map_or("inbound", |rule| rule.class().name());
        let rule = sample.rule.map_or("toward the host", Rule::describe);
        tracing::error!(
            kind = mismatch.name(),
            class,
            rule,
            engine = sample.by.engine(),
            generation = sample.generation,
            "ALARM: a frame did not leave as the policy says (for a minute, further ones are \
             counted but not logged); restart exitmark, and report this"
        );
    }

    /// The counts so far. The caller adds the fields about the sampling.
    pub fn report(&self) -> AuditReport {
        AuditReport {
            checked: self.checked,
            skipped: self.skipped,
            mismatches: Mismatch::ALL
                .map(|mismatch| MismatchCount {
                    kind: mismatch.name().to_owned(),
                    frames: self.mismatches[mismatch as usize],
                })
                .to_vec(),
            ..AuditReport::default()
        }
    }

    /// How many samples were skipped: later fragments, frames cut within their headers, and frames
    /// that were judged by an unknown policy.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    fn judge(&mut self, sample: &Sample, snapshot: &Snapshot) -> Option<Mismatches> {
        let mut mismatches = Mismatches::default();
        let mut expected = sample.before.to_vec();
        let mut arrival = None;
        let mut departs = false;
        let path = match (sample.ingress, sample.rule) {
            // The kernel did not parse this frame; only the invariants can be checked.
            (Role::Host, Some(Rule::NoUserSpace)) => {
                self.check_path(ExpectedPath::Across(Role::Uplink), sample, &mut mismatches);
                check_truths(&sample.before, sample, &snapshot.rules, &mut mismatches);
                return Some(mismatches);
            }
            (Role::Host, _) => {
                let verdict = self.verdict(sample, snapshot)?;
                let claimed = sample.rule.map(Rule::class);
                mismatches.unless(claimed == Some(verdict.class()), Mismatch::Class);
                if let Some(remark) = verdict.remark {
                    packet::set_dscp(&mut expected, remark.l3, remark.version, remark.dscp);
                }
                let group = snapshot.rules.group(verdict.group);
                match (verdict.egress, group) {
                    (Egress::Incoming, Some(group))
                        if group.translates()
                            && !snapshot.depart(&mut expected.clone(), sample.frame_bytes) =>
                    {
                        ExpectedPath::Unrouted
                    }
                    (Egress::Incoming, Some(group)) => {
                        departs = group.translates() && self.left_by_incoming(sample);
                        let version = packet::source(&sample.before)?.is_ipv6();
                        let number = group.path.next_hops[usize::from(version)];
                        ExpectedPath::Steered(usize::from(number), group.path)
                    }
                    (Egress::Unrouted, _) => ExpectedPath::Unrouted,
                    _ => ExpectedPath::Across(Role::Uplink),
                }
            }
            // Unless one NIC is both `uplink` and `incoming`.
            (Role::Uplink, _) if self.links.incoming_port() != Some(Role::Uplink) => {
                ExpectedPath::Across(Role::Host)
            }
            _ if is_translated_fragment(sample, &snapshot.rules) => return None,
            _ if let Some((address, group)) = self.routed(sample, snapshot, &mut arrival) => {
                ExpectedPath::Delivered(Recipient {
                    address,
                    mac: group.mac,
                    vlan: group.has_tags().then_some(group.vlan),
                    is_of_only_group: snapshot.rules.groups().len() == 1,
                })
            }
            (Role::Uplink, _) => ExpectedPath::Across(Role::Host),
            _ => ExpectedPath::Stack,
        };
        self.check_path(path, sample, &mut mismatches);
        let mut before = sample.before.to_vec();
        let tags = match path {
            ExpectedPath::Steered(_, path)
                if self.left_by_incoming(sample) && self.is_rewritten(sample) =>
            {
                Some((path.vlan, path.priority))
            }
            ExpectedPath::Delivered(host) => host.vlan.map(|vlan| (vlan, None)),
            _ => None,
        };
        for frame in [&mut expected, &mut before] {
            if departs {
                snapshot.depart(frame, sample.frame_bytes);
            }
            if let Some(arrival) = &arrival {
                arrival.apply(frame);
            }
        }
        if let Some((vlan, priority)) = tags {
            wire::retag(&mut expected, vlan, priority);
            wire::retag(&mut before, vlan, priority);
        }
        check_bytes(&expected, sample, &mut mismatches);
        check_truths(&before, sample, &snapshot.rules, &mut mismatches);
        Some(mismatches)
    }

    /// The reference's verdict on an outbound frame; `None` if the sample is not enough for it.
    fn verdict(&mut self, sample: &Sample, snapshot: &Snapshot) -> Option<Verdict> {
        let headers = packet::parse(&sample.before, sample.frame_bytes);
        let is_cut = sample.before.len() < sample.frame_bytes;
        let is_elsewhere = match &headers {
            Headers::V4(packet) => packet.ports_are_elsewhere(),
            Headers::V6(packet) => packet.ports_are_elsewhere(),
            Headers::Malformed(
                Malformed::ShortHeader | Malformed::ShortExtension | Malformed::ShortTransport,
            ) => is_cut,
            _ => false,
        };
        if is_elsewhere {
            return None;
        }
        Some(judge(
            &headers,
            snapshot,
            &mut self.fragments,
            sample.arrived,
        ))
    }

    /// Whether a frame was sent by `incoming`.
    fn left_by_incoming(&self, sample: &Sample) -> bool {
        let port = self.links.incoming_port();
        port.is_some_and(|port| sample.outcome == Outcome::Forward(port))
    }

    /// The host's address and group of a frame that was sent to the box for a host; `arrival` is set
    /// if it was sent to an address in place of the host's.
    fn routed<'s>(
        &self,
        sample: &Sample,
        snapshot: &'s Snapshot,
        arrival: &mut Option<Arrival>,
    ) -> Option<(IpAddr, &'s Group)> {
        self.links.incoming_port()?;
        let rules = &snapshot.rules;
        let to = MacAddr::destination_of(&sample.before)?;
        let mut address = packet::destination(&sample.before)?;
        let number = match rules.owner(address) {
            Some(owner) => owner.group(),
            // On the uplink, the box's own stack could not answer for such an address.
            None if sample.ingress == Role::Uplink => return None,
            None => {
                let (frame, bytes) = (&sample.before, sample.frame_bytes);
                let mut unused = FragmentTable::default();
                let found = snapshot.arrival(frame, bytes, &mut unused, sample.arrived)?;
                address = found.host;
                *arrival = Some(found);
                found.group
            }
        };
        let group = rules.group(number)?;
        let is_of_network =
            !group.has_tags() || wire::ids(&sample.before) == wire::ids_of(group.path.vlan);
        if !(self.owns.was(Some(to)) && is_of_network) {
            *arrival = None;
            return None;
        }
        Some((address, group))
    }

    /// Whether the MAC addresses of a frame were replaced: with `uplink` as `incoming` too, only
    /// they tell a steered frame from one that stayed on the wire.
    fn is_rewritten(&self, sample: &Sample) -> bool {
        sample.before.get(..MACS) != sample.after.get(..MACS)
    }

    /// Whether a host has this learned MAC address, or had it a moment ago; `None`: unknown.
    fn has_mac(&self, host: Recipient, mac: Option<MacAddr>) -> bool {
        let known = |(known, other): &(HashMap<IpAddr, MacAddr>, Option<MacAddr>)| {
            let other = other.filter(|_| host.is_of_only_group);
            known.get(&host.address).copied().or(other) == mac
        };
        let now = self.links.host_of(host.address, host.is_of_only_group);
        now == mac || self.hosts.iter().any(known)
    }

    fn check_path(&self, path: ExpectedPath, sample: &Sample, mismatches: &mut Mismatches) {
        let (before, after) = (&sample.before, &sample.after);
        let macs_stay = before.get(..MACS) == after.get(..MACS);
        let to = MacAddr::destination_of(after);
        match (path, sample.outcome) {
            // The egress NIC could not accept the frame.
            (_, Outcome::Drop(DropReason::NoEgress)) => {}
            (_, Outcome::Drop(reason)) if reason.port().is_some() => {}
            (ExpectedPath::Unrouted, Outcome::Drop(DropReason::SteerUnavailable)) => {}
            (ExpectedPath::Unrouted, Outcome::Forward(by)) => {
                mismatches.unless(by == Role::Uplink, Mismatch::Egress);
                mismatches.unless(macs_stay, Mismatch::Mac);
            }
            (ExpectedPath::Across(port), Outcome::Forward(by)) => {
                mismatches.unless(by == port, Mismatch::Egress);
                mismatches.unless(macs_stay, Mismatch::Mac);
            }
            (ExpectedPath::Steered(number, _), Outcome::Forward(by)) => {
                let by_incoming = self.links.incoming_port() == Some(by);
                let from = MacAddr::source_of(after);
                let is_steered = by_incoming
                    && to.is_some()
                    && self.next_hops[number].was(to)
                    && from.is_some()
                    && self.owns.was(from);
                let is_spared = by == Role::Uplink && macs_stay && self.may_not_steer(number);
                let mismatch = match by_incoming {
                    true => Mismatch::Mac,
                    false => Mismatch::Egress,
                };
                mismatches.unless(is_steered || is_spared, mismatch);
            }
            (ExpectedPath::Steered(number, _), Outcome::Drop(DropReason::SteerUnavailable)) => {
                mismatches.unless(self.may_not_steer(number), Mismatch::Egress);
            }
            (ExpectedPath::Delivered(host), Outcome::Forward(Role::Host)) => {
                let is_delivered = to.is_some()
                    && match host.mac {
                        Some(_) => host.mac == to,
                        None => self.has_mac(host, to),
                    };
                let source_stays = before.get(6..MACS) == after.get(6..MACS);
                mismatches.unless(is_delivered && source_stays, Mismatch::Mac);
            }
            (ExpectedPath::Delivered(host), Outcome::Drop(DropReason::HostMacUnknown)) => {
                let is_unknown = host.mac.is_none() && self.has_mac(host, None);
                mismatches.unless(is_unknown, Mismatch::Egress);
            }
            (ExpectedPath::Stack, Outcome::Stack | Outcome::Drop(DropReason::NotForHost)) => {
                mismatches.unless(macs_stay, Mismatch::Mac);
            }
            _ => mismatches.unless(false, Mismatch::Egress),
        }
    }

    /// Whether steering may have been impossible recently.
    fn may_not_steer(&self, number: usize) -> bool {
        self.links.incoming_port().is_none() || self.next_hops[number].was(None)
    }
}

/// Whether a frame is a fragment to an address in place of a host's: the auditor does not know the
/// ports of its first fragment.
fn is_translated_fragment(sample: &Sample, rules: &Rules) -> bool {
    let is_fragment = match packet::parse(&sample.before, sample.frame_bytes) {
        Headers::V4(packet) => packet.fragment.is_some(),
        Headers::V6(packet) => packet.fragment.is_some(),
        Headers::NotIp | Headers::Malformed(_) => false,
    };
    let to = packet::destination(&sample.before);
    is_fragment && to.is_some_and(|to| rules.owner(to).is_none() && rules.translated(to).is_some())
}

const fn has_left(sample: &Sample) -> bool {
    matches!(sample.outcome, Outcome::Forward(_) | Outcome::Stack)
}

/// Compares the bytes after the MAC addresses with those of the reference.
fn check_bytes(expected: &[u8], sample: &Sample, mismatches: &mut Mismatches) {
    if !has_left(sample) {
        return;
    }
    let (mut expected, mut after) = (expected.to_vec(), sample.after.to_vec());
    if let Some(wire) = Wire::of(&expected)
        && wire.ip.is_some()
        && Wire::of(&after) == Some(wire)
        && wire.dscp(&expected) != wire.dscp(&after)
    {
        mismatches.unless(false, Mismatch::Mark);
        wire.blank_mark(&mut expected);
        wire.blank_mark(&mut after);
    }
    mismatches.unless(is_same(&expected, &after, sample), Mismatch::Bytes);
}

/// Whether two frames are the same behind their MAC addresses, as far as the sample has them: tags
/// may have been pushed or popped in front of its end.
fn is_same(expected: &[u8], after: &[u8], sample: &Sample) -> bool {
    let is_whole = expected.len() <= SAMPLE_BYTES && sample.before.len() == sample.frame_bytes;
    let common = match is_whole {
        true => expected.len().max(after.len()),
        false => expected.len().min(after.len()),
    };
    expected.get(MACS..common) == after.get(MACS..common)
}

/// Checks the invariants of frames on the wire by the class under which the frame was counted. Uses
/// neither the reference nor the code that rewrites frames.
/// `before` is the frame on arrival, with the tags and addresses that it has to leave with.
fn check_truths(before: &[u8], sample: &Sample, rules: &Rules, mismatches: &mut Mismatches) {
    if !has_left(sample) {
        return;
    }
    let (mut before, mut after) = (before.to_vec(), sample.after.to_vec());
    let class = sample.rule.map(Rule::class);
    let source = packet::source(&sample.before);
    let owner = source.and_then(|address| rules.owner(address));
    let group = owner.and_then(|owner| rules.group(owner.group()));
    // By `incoming` leave only relay frames, with the tags of the group's next hops.
    let tags = group.map_or(VlanTags::UNTAGGED, |group| group.path.vlan);
    let has_other_tags = wire::ids(&after) != wire::ids_of(tags);
    if class != Some(Class::Relay) || has_other_tags {
        let by_incoming = sample.outcome == Outcome::Forward(Role::Incoming);
        mismatches.unless(!by_incoming, Mismatch::Egress);
    }
    let wire = match class {
        None | Some(Class::NonIp | Class::Malformed) => None,
        Some(_) => Wire::of(&before).filter(|wire| wire.ip.is_some()),
    };
    if let (Some(wire), Some(class)) = (wire, class) {
        let has_deep_tags = sample.rule == Some(Rule::NoUserSpace) && wire.tags > 2;
        let received = wire.dscp(&before);
        let sent = wire.dscp(&after);
        let is_right = match (received, sent) {
            // The kernel does not parse that many tags.
            _ if has_deep_tags => received == sent,
            (Some(received), Some(sent)) => may_carry(class, received, sent, (rules, group)),
            _ => false,
        };
        mismatches.unless(is_right, Mismatch::Mark);
        if received != sent {
            let is_good = |frame| {
                let header = wire.v4_header(frame);
                header.is_none_or(ipv4_header_checksum_is_good)
            };
            mismatches.unless(!is_good(&before) || is_good(&after), Mismatch::Bytes);
            // ECN and the time to live are not blanked.
            if Wire::of(&after) == Some(wire) {
                wire.blank_mark(&mut before);
                wire.blank_mark(&mut after);
            }
        }
    }
    mismatches.unless(is_same(&before, &after, sample), Mismatch::Bytes);
}

/// Whether a frame of this class that arrived with DSCP `received` may leave with `sent`.
fn may_carry(
    class: Class,
    received: Dscp,
    sent: Dscp,
    (rules, group): (&Rules, Option<&Group>),
) -> bool {
    if rules.mode() == Mode::Audit {
        return sent == received;
    }
    let intent = group.map(|group| group.actions.intent());
    if let (Class::Exit, Some(intent)) = (class, intent)
        && intent.at_uplink == AtUplink::Keep
    {
        return sent == intent.mark;
    }
    // On the wire a mark means exit; the host's mark is cleared by the box.
    let mut marks = rules.groups().iter().map(|group| group.actions.mark());
    if marks.any(|mark| mark == received) || rules.classify_by == ClassifyBy::HostMark(received) {
        sent == Dscp::DEFAULT
    } else {
        sent == received
    }
}

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auditor")
            .field("checked", &self.checked)
            .field("skipped", &self.skipped)
            .field("mismatches", &self.mismatches)
            .finish_non_exhaustive()
    }
}
