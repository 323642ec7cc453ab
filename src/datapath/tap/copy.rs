//! One copy: what the writer knew of the frame, and how the copy is finished.

use super::super::contract::{TAP_FLAGS_AT, TAP_IN, TAP_LENGTH_AT, TAP_MARK_AT, TAP_UNJUDGED};
use super::{Direction, TAP_BYTES};
use exitmark_policy::packet::{self, Dscp, Headers};
use exitmark_policy::{Answers, Snapshot, judge_answer};
use std::time::Duration;

/// The beginning of an exit frame. It contains addresses: never log it.
#[derive(Clone)]
pub struct TapCopy {
    bytes: [u8; TAP_BYTES],
    length: usize,
    frame_bytes: usize,
    mark: Dscp,
    direction: Direction,
    is_unjudged: bool,
}

impl TapCopy {
    /// A copy without bytes, from the number about it.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "each field is taken from its place in the number"
    )]
    pub(super) fn of(about: u64) -> Self {
        let flags = u32::from((about >> TAP_FLAGS_AT) as u8);
        Self {
            bytes: [0; TAP_BYTES],
            length: usize::from(about as u16).min(TAP_BYTES),
            frame_bytes: (about >> TAP_LENGTH_AT) as usize,
            mark: Dscp::of((about >> TAP_MARK_AT) as u8),
            direction: match flags & TAP_IN {
                0 => Direction::Out,
                _ => Direction::In,
            },
            is_unjudged: flags & TAP_UNJUDGED != 0,
        }
    }

    pub(super) const fn whole(&mut self) -> &mut [u8; TAP_BYTES] {
        &mut self.bytes
    }

    /// The bytes of the copy: after [`TapCopy::finish`], those that are sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Whether the frame is of a host or an answer to it.
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// The mark that the copy gets.
    pub const fn mark(&self) -> Dscp {
        self.mark
    }

    /// Whether the frame is exit traffic: judges a slow-path frame, which the XDP program does not
    /// parse.
    pub fn is_exit(&mut self, snapshot: &Snapshot, answers: &mut Answers, now: Duration) -> bool {
        if !self.is_unjudged {
            return true;
        }
        let headers = packet::parse(self.bytes(), self.frame_bytes);
        let group = judge_answer(&headers, snapshot, answers, now);
        let Some(group) = group.and_then(|number| snapshot.rules.group(number)) else {
            return false;
        };
        self.mark = group.actions.mark();
        snapshot.rules.tap().copies_answers()
    }

    /// Whether the policy in force is needed to judge the frame.
    pub const fn is_unjudged(&self) -> bool {
        self.is_unjudged
    }

    /// Cuts the copy after its headers, and marks it. The IP header keeps the length of the whole
    /// packet. Returns false if the headers are longer than the copy; a packet that ends within its
    /// headers is finished.
    pub fn finish(&mut self) -> bool {
        let bytes = &mut self.bytes[..self.length];
        let (l3, version, end) = match packet::parse(bytes, self.frame_bytes) {
            Headers::V4(packet) => (
                packet.l3,
                packet.version(),
                packet::headers_end(bytes, &packet),
            ),
            Headers::V6(packet) => (
                packet.l3,
                packet.version(),
                packet::headers_end(bytes, &packet),
            ),
            Headers::NotIp | Headers::Malformed(_) => return false,
        };
        if end > self.length {
            return false;
        }
        packet::set_dscp(bytes, l3, version, self.mark);
        self.length = end;
        true
    }
}
