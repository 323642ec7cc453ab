//! Decides what happens to a frame, and why.
//!
//! [`judge`] takes headers and returns a [`Verdict`], from rules, relay set and time only. This
//! module makes no system calls, keeps no state per flow except the rules of first fragments, does
//! not allocate on the packet path, and does not know NICs.

#![forbid(unsafe_code)]

mod answer;
mod connection;
mod endpoint;
mod family;
mod fragments;
mod groups;
pub mod image;
mod judge;
mod owners;
pub mod packet;
mod plain;
mod prefix;
mod range_map;
mod rules;
mod translation;
mod verdict;

use family::Family;
use std::sync::Arc;

pub use answer::{Answers, judge_answer};
pub use connection::{ConnectionVerdict, judge_connection};
pub use endpoint::{Endpoint, EndpointSet, EndpointSetError, MAX_ENDPOINTS};
pub use fragments::{FRAGMENT_LIFETIME, FragmentTable};
pub use groups::{Group, GroupNumber, MAX_GROUPS, MAX_NEXT_HOPS, SteeredPath};
pub use image::{IMAGE_BYTES, ImageTooLarge, POLICY_BYTES, image};
pub use judge::{judge, judge_whole_v4, judge_whole_v6};
pub use owners::{AddressKind, Owner};
pub use plain::{Plain, PlainFrame, PlainHop, PlainHosts};
pub use prefix::{MAX_PREFIXES, PrefixSet};
pub use rules::{
    Actions, AtUplink, ClassifyBy, ExitProtocols, Intent, Listener, MAX_LISTENERS, MAX_RESOLVERS,
    Mode, Rules, SocketRules, Steer, Tap,
};
use rules::{Leaves, Listeners};
pub use translation::{Arrival, Translation};
pub use verdict::{Class, Egress, Remark, Rule, Verdict};

/// Everything besides the frame that a verdict depends on, published to the workers as a whole.
///
/// A change of rules or of the relay set makes a new snapshot; a snapshot is never modified.
#[derive(Debug)]
pub struct Snapshot {
    /// Incremented for each snapshot of a running daemon.
    pub generation: u64,
    /// The operator's rules, shared with the snapshots that a new relay set makes.
    pub rules: Arc<Rules>,
    /// The relay set: the endpoints on which relays listen.
    pub relays: EndpointSet,
    /// The hosts' listeners: those of the rules, and their own relays' endpoints in the relay set.
    listeners: Listeners,
    /// What is precomputed for each group, and at the end for frames of no group.
    groups: Box<[ForGroup]>,
    /// The hosts whose most common frames are decided in few steps.
    plain: Plain,
}

/// What a snapshot has precomputed for a group.
#[derive(Debug)]
struct ForGroup {
    /// The group has clearnet and relay addresses.
    both_kinds: bool,
    /// The source addresses of its steered frames are translated.
    translates: bool,
    /// Egress and DSCP per rule.
    leaves: Leaves,
}

impl Snapshot {
    /// Makes a snapshot of rules and relay set.
    pub fn new(generation: u64, rules: Arc<Rules>, relays: EndpointSet) -> Self {
        let own = relays
            .iter()
            .filter(|endpoint| rules.is_host(endpoint.address));
        let listeners = Listeners::new(rules.groups(), own.map(|endpoint| endpoint.port));
        let for_group = |group: Option<&Group>| ForGroup {
            both_kinds: group.is_some_and(Group::has_both_kinds),
            translates: group.is_some_and(Group::translates),
            leaves: Leaves::new(&rules, group),
        };
        let of_groups = rules.groups().iter().map(Some);
        Self {
            generation,
            groups: of_groups.chain([None]).map(for_group).collect(),
            plain: Plain::of(&rules, &listeners),
            rules,
            relays,
            listeners,
        }
    }

    /// What is precomputed for this group.
    #[inline]
    fn group(&self, number: GroupNumber) -> &ForGroup {
        let last = self.groups.len() - 1;
        &self.groups[usize::from(number.to_u8()).min(last)]
    }
}
