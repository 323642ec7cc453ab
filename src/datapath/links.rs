//! What the box knows of its neighbours on the link layer, shared by all workers.

use super::Role;
use crate::packet::MacAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The MAC addresses that frames are rewritten with.
///
/// The host's may be learnt while frames flow, so these are atomic cells: each is one number,
/// and no two of them need to change together.
#[derive(Debug)]
pub struct Links {
    host: AtomicU64,
    host_is_configured: bool,
    incoming: Option<IncomingLink>,
}

/// The way out for relay traffic.
#[derive(Debug)]
pub(super) struct IncomingLink {
    /// `Incoming`, or `Uplink` where one NIC plays both.
    pub(super) port: Role,
    /// That NIC's own address.
    pub(super) own: MacAddr,
    next_hop: AtomicU64,
}

impl Links {
    /// Links without a way to steer. The host's MAC address is learnt where it is not given.
    pub fn new(host: Option<MacAddr>) -> Self {
        Self {
            host: AtomicU64::new(host.map_or(0, MacAddr::to_u64)),
            host_is_configured: host.is_some(),
            incoming: None,
        }
    }

    /// Adds the way out for relay traffic: the port that plays `incoming` (`Role::Incoming`, or
    /// `Role::Uplink` where one NIC plays both), its own address, and the next hop's.
    #[must_use]
    pub fn with_incoming(mut self, port: Role, own: MacAddr, next_hop: MacAddr) -> Self {
        self.incoming = Some(IncomingLink {
            port,
            own,
            next_hop: AtomicU64::new(next_hop.to_u64()),
        });
        self
    }

    /// The host's MAC address, if it is known.
    #[inline]
    pub fn host(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.host.load(Ordering::Relaxed))
    }

    /// Takes note of the source MAC address of a frame that the host sent from an address of its
    /// own. A configured address is never replaced.
    #[inline]
    pub(super) fn learn_host(&self, frame: &[u8]) {
        if let Some(source) = MacAddr::source_of(frame)
            && self.host.load(Ordering::Relaxed) != source.to_u64()
        {
            self.learn_new_host(source);
        }
    }

    #[cold]
    fn learn_new_host(&self, source: MacAddr) {
        if !self.host_is_configured && source.is_unicast() {
            self.host.store(source.to_u64(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) const fn incoming(&self) -> Option<&IncomingLink> {
        self.incoming.as_ref()
    }
}

impl IncomingLink {
    #[inline]
    pub(super) fn next_hop(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.next_hop.load(Ordering::Relaxed))
    }
}
