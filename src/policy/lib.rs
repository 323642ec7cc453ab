//! Decides what happens to a frame, and why.
//!
//! [`judge`] takes headers and returns a [`Verdict`], from rules, relay set and time only. This
//! module makes no system calls, keeps no state per flow except the rules of first fragments, does
//! not allocate on the packet path, and does not know NICs.

#![forbid(unsafe_code)]

mod connection;
mod endpoint;
mod family;
mod fragments;
pub mod image;
mod judge;
pub mod packet;
mod prefix;
mod rules;
mod verdict;

use family::Family;
use std::sync::Arc;

pub use connection::{ConnectionVerdict, judge_connection};
pub use endpoint::{Endpoint, EndpointSet, EndpointSetError, MAX_ENDPOINTS};
pub use fragments::{FRAGMENT_LIFETIME, FragmentTable};
pub use image::{IMAGE_BYTES, ImageTooLarge, POLICY_BYTES, image};
pub use judge::{judge, judge_whole_v4, judge_whole_v6};
pub use prefix::{MAX_PREFIXES, PrefixSet};
pub use rules::{
    Actions, AtUplink, ClassifyBy, ExitProtocols, Intent, Listener, MAX_LISTENERS, MAX_RESOLVERS,
    Mode, Rules, SocketRules, Steer,
};
use rules::{Leaves, Listeners};
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
    /// The host's listeners: those of the rules, and its own relay's endpoints in the relay set.
    listeners: Listeners,
    /// Whether the host has clearnet and relay addresses. If so, source address and relay set each
    /// determine the kind of a flow, and are checked against each other.
    both_kinds: bool,
    /// Egress and DSCP per rule, precomputed.
    leaves: Leaves,
}

impl Snapshot {
    /// Makes a snapshot of rules and relay set.
    pub fn new(generation: u64, rules: Arc<Rules>, relays: EndpointSet) -> Self {
        let own = relays.iter().filter(|endpoint| {
            rules.addresses.contains(endpoint.address)
                || rules.relay_addresses.contains(endpoint.address)
        });
        let listeners = Listeners::new(&rules.listeners, own.map(|endpoint| endpoint.port));
        Self {
            generation,
            both_kinds: !rules.addresses.is_empty() && !rules.relay_addresses.is_empty(),
            leaves: Leaves::new(&rules),
            rules,
            relays,
            listeners,
        }
    }
}
