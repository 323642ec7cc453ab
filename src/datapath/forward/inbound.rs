//! Frames to the hosts: by `uplink`, which is the wire's other direction, and by `incoming`.

use super::super::contract::TAP_IN;
use super::super::sent::replaced;
use super::super::{DropReason, Excerpt, Role};
use super::{Forwarder, Outcome};
use exitmark_policy::judge_answer;
use exitmark_policy::packet::{self, MacAddr, MacPair};
use std::time::Duration;

impl Forwarder {
    /// Decides an inbound frame, and copies it if it answers exit traffic.
    #[inline(always)]
    pub(super) fn inbound(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> Outcome {
        if self.copies.copies_answers() {
            return self.inbound_tapped(ingress, frame, frame_bytes, now);
        }
        self.inbound_untapped(ingress, frame, frame_bytes, now)
    }

    #[inline(always)]
    fn inbound_untapped(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> Outcome {
        match ingress {
            Role::Incoming => self.inbound_by_incoming(frame, frame_bytes, now),
            Role::Host | Role::Uplink => self.inbound_by_uplink(frame),
        }
    }

    #[inline(never)]
    fn inbound_tapped(
        &mut self,
        ingress: Role,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> Outcome {
        // As it arrived: the MAC addresses and the tags are those of its network.
        let headers = packet::parse(frame, frame_bytes);
        let group = judge_answer(&headers, &self.snapshot, &mut self.answers, now);
        let answer = group.map(|group| (group, Excerpt::of(frame)));
        let outcome = self.inbound_untapped(ingress, frame, frame_bytes, now);
        if let Some((group, excerpt)) = answer
            && outcome != Outcome::Stack
        {
            self.copy_to_tap(&excerpt, frame_bytes, TAP_IN, group);
        }
        outcome
    }

    /// The wire's other direction: frames are forwarded unchanged. If this NIC is `incoming` too,
    /// frames sent to its own MAC address for the host get the host's MAC address.
    #[inline]
    fn inbound_by_uplink(&mut self, frame: &mut [u8]) -> Outcome {
        if self.seeks_host {
            self.seek_host(frame);
        }
        match self.links.incoming_port() {
            Some(Role::Uplink) => match self.routed_to_host(frame, None) {
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
    /// the host's IP addresses are forwarded, and those of relays for an address in their place.
    #[inline]
    fn inbound_by_incoming(
        &mut self,
        frame: &mut [u8],
        frame_bytes: usize,
        now: Duration,
    ) -> Outcome {
        self.routed_to_host(frame, Some((frame_bytes, now)))
            .unwrap_or(Outcome::Stack)
    }

    /// The outcome for a frame that a router sent to the box for a host; `None` for any other frame.
    /// Translated addresses count only with the length of the whole frame, and the time.
    fn routed_to_host(
        &mut self,
        frame: &mut [u8],
        translated: Option<(usize, Duration)>,
    ) -> Option<Outcome> {
        self.links.incoming_port()?;
        let own = self.links.incoming_mac()?;
        let rules = &self.snapshot.rules;
        let mut destination = packet::destination(frame)?;
        if MacAddr::destination_of(frame) != Some(own) {
            return None;
        }
        let mut arrival = None;
        let number = match rules.owner(destination) {
            Some(owner) => owner.group(),
            None => {
                let (frame_bytes, now) = translated?;
                let fragments = &mut self.translated;
                let found = self.snapshot.arrival(frame, frame_bytes, fragments, now)?;
                destination = found.host;
                arrival = Some(found);
                found.group
            }
        };
        let group = rules.group(number)?;
        let has_tags = group.has_tags();
        // Sent on another network than that of the group's next hops. A group without tags gets
        // every frame as it is.
        if has_tags && packet::tags(frame) != group.path.vlan {
            return None;
        }
        let mac = group.mac.or_else(|| {
            let is_only_group = rules.groups().len() == 1;
            self.links.host_of(destination, is_only_group)
        });
        let Some(host) = mac else {
            return Some(Outcome::Drop(DropReason::HostMacUnknown));
        };
        if let Some(arrival) = arrival {
            arrival.apply(frame);
            self.tally.translated_back();
        }
        if has_tags {
            let macs = MacPair::new(host, MacAddr::source_of(frame)?);
            let replaced = replaced(frame, group.vlan, None, macs);
            self.retagged = replaced.map(|new| (new, number));
        } else {
            packet::set_destination_mac(frame, host);
        }
        Some(Outcome::Forward(Role::Host))
    }
}
