//! The short way of plain frames through a forwarder: what is the same for all of them is found out
//! once for a batch, and they are counted once.

use super::super::links::Steering;
use super::super::sent::{SentBy, SentPacket, source_end};
use super::super::{Links, Role, Tally};
use exitmark_policy::packet::{self, Dscp, ETHERNET_HEADER_BYTES, Version};
use exitmark_policy::{PlainFrame, PlainHop, Rule, Snapshot};

/// What is the same for the plain frames of a batch, and the counts of those that took the short
/// way.
pub(super) struct ShortWay {
    mark: Dscp,
    /// How frames to relays leave, by IP version.
    to_relays: [ToRelays; 2],
    exits: Count,
    marked: u64,
    relays: Count,
}

#[derive(Clone, Copy)]
enum ToRelays {
    Uplink,
    Steered(Steering),
    /// Not by the short way.
    Rarely,
}

#[derive(Clone, Copy, Default)]
struct Count {
    frames: u64,
    bytes: u64,
}

impl Count {
    #[inline(always)]
    const fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

impl ShortWay {
    /// The short way under this snapshot, with the links as they are now.
    #[inline]
    pub(super) fn of(snapshot: &Snapshot, links: &Links) -> Self {
        let plain = snapshot.plain();
        let to_relays = |version| match plain.hosts(version).hop {
            PlainHop::Uplink => ToRelays::Uplink,
            PlainHop::Unrouted => ToRelays::Rarely,
            PlainHop::Number(number) => links
                .steering(number.into())
                .map_or(ToRelays::Rarely, ToRelays::Steered),
        };
        Self {
            mark: plain.mark,
            to_relays: [Version::V4, Version::V6].map(to_relays),
            exits: Count::default(),
            marked: 0,
            relays: Count::default(),
        }
    }

    /// Rewrites and counts a whole frame from `host` that is plain and was sent by `last`. Returns
    /// the port by which it leaves, or `None`, and then the frame has not been changed.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        frame: &mut [u8],
        snapshot: &Snapshot,
        last: SentBy,
    ) -> Option<Role> {
        if let Some(packet) = packet::fast_path_v4(frame, 0, frame.len()) {
            let what = snapshot.judge_plain_v4(&packet)?;
            return self.carry_out(frame, packet.into(), what, packet.tos, last);
        }
        let packet = packet::fast_path_v6(frame, 0, frame.len())?;
        let what = snapshot.judge_plain_v6(&packet)?;
        self.carry_out(frame, packet.into(), what, packet.tos, last)
    }

    #[inline(always)]
    fn carry_out(
        &mut self,
        frame: &mut [u8],
        sent: SentPacket,
        what: PlainFrame,
        tos: u8,
        last: SentBy,
    ) -> Option<Role> {
        let by = SentBy {
            mac: source_end(frame),
            address: sent.source,
        };
        if by != last {
            return None;
        }
        match what {
            PlainFrame::Exit => {
                self.exits.add(frame.len());
                if Dscp::of(tos) != self.mark {
                    self.marked += 1;
                    packet::set_dscp(frame, ETHERNET_HEADER_BYTES, sent.version, self.mark);
                }
                Some(Role::Uplink)
            }
            PlainFrame::Relay => {
                let port = match self.to_relays[sent.version as usize] {
                    ToRelays::Rarely => return None,
                    ToRelays::Uplink => Role::Uplink,
                    ToRelays::Steered(steering) => {
                        packet::set_macs(frame, steering.macs);
                        steering.port
                    }
                };
                self.relays.add(frame.len());
                Some(port)
            }
        }
    }

    /// Adds the counts to a tally.
    pub(super) const fn count_into(&self, tally: &mut Tally) {
        let Self { exits, relays, .. } = self;
        tally.all_met(Rule::ExitProtocol, exits.frames, exits.bytes);
        tally.all_met(Rule::ToListedRelay, relays.frames, relays.bytes);
        tally.marked(self.marked);
    }
}
