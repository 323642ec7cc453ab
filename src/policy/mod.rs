//! What shall happen to a frame, and why.
//!
//! Pure functions of bytes, rules, relay set and time. Nothing here asks the system anything,
//! keeps state about a flow, allocates on the packet path, or knows what a NIC is.
//! [`judge`] is the whole of it: headers in, [`Verdict`] out.

mod endpoint;
mod family;
mod fragments;
mod image;
mod judge;
mod prefix;
mod rules;
mod verdict;

use family::Family;
use std::sync::Arc;

pub use endpoint::{Endpoint, EndpointSet, EndpointSetError, MAX_ENDPOINTS};
pub use fragments::{FRAGMENT_LIFETIME, FragmentTable};
pub use image::{IMAGE_BYTES, ImageTooLarge, POLICY_BYTES, image};
pub use judge::{judge, judge_whole_v4, judge_whole_v6};
pub use prefix::{MAX_PREFIXES, PrefixSet};
pub use rules::{
    Actions, AtUplink, ClassifyBy, ExitProtocols, Intent, Listener, MAX_LISTENERS, MAX_RESOLVERS,
    Mode, Rules, Steer,
};
use rules::{Leaves, Listeners};
pub use verdict::{Class, Egress, Remark, Rule, Verdict};

/// All that a verdict depends on besides the frame, published to the workers as one piece.
///
/// A change of rules or of the relay set makes a new snapshot; one in use is never edited.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up by one with each snapshot of a running daemon.
    pub generation: u64,
    /// The operator's rules.
    pub rules: Arc<Rules>,
    /// Where relays listen.
    pub relays: EndpointSet,
    /// Where the host itself listens: what the rules say, and its own relay's ports where the
    /// relay set lists the host's addresses.
    listeners: Listeners,
    /// Whether the host has addresses of both kinds: then source address and relay set each tell
    /// the kind of a flow, and are checked against each other.
    both_kinds: bool,
    /// What is done with a frame, worked out from the rules.
    leaves: Leaves,
}

impl Snapshot {
    /// Puts rules and relay set together.
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
