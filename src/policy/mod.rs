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
pub use judge::judge;
pub use prefix::{MAX_PREFIXES, PrefixSet};
use rules::Listeners;
pub use rules::{
    Actions, AtUplink, ClassifyBy, ExitProtocols, Intent, Listener, MAX_LISTENERS, MAX_RESOLVERS,
    Mode, Rules,
};
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
            rules,
            relays,
            listeners,
        }
    }
}
