//! The operator's rules, compiled to what the packet path asks.

use super::{Endpoint, EndpointSet, EndpointSetError, Family, PrefixSet};
use crate::packet::Dscp;

/// Everything in a verdict that is the operator's to say.
#[derive(Debug)]
pub struct Rules {
    /// Act, or only count.
    pub mode: Mode,
    /// The host's clearnet addresses.
    pub addresses: PrefixSet,
    /// The host's addresses that carry Tor traffic only.
    pub relay_addresses: PrefixSet,
    /// Where the host itself accepts connections.
    pub listeners: Listeners,
    /// The host's DNS resolvers.
    pub resolvers: PrefixSet,
    /// Destinations whose traffic is the host's own, never exit traffic.
    pub exempt: PrefixSet,
    /// What exit frames are marked with, and where.
    pub mark: Mark,
    /// Whether relay frames go to `incoming`; otherwise they go, unmarked, to `uplink`.
    pub steer: bool,
}

/// Whether verdicts are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Mark and steer.
    #[default]
    Enforce,
    /// Classify and count; change and steer nothing.
    Audit,
}

/// How exit traffic is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The code point that means exit, and nothing else, on the uplink.
    pub dscp: Dscp,
    /// Which protocols from a clearnet address count as exit.
    pub protocols: ExitProtocols,
    /// Whether the uplink shows the mark.
    pub at_uplink: AtUplink,
}

/// Which protocols from a clearnet address count as exit. Tor exits carry TCP only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExitProtocols {
    /// TCP.
    #[default]
    Tcp,
    /// TCP and UDP.
    TcpUdp,
    /// Every IP protocol.
    All,
}

/// Whether the mark leaves the box by the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtUplink {
    /// Exit frames leave marked.
    #[default]
    Keep,
    /// No frame leaves marked.
    Strip,
}

/// Where the host accepts TCP connections: ports on any of its addresses, or exact endpoints.
#[derive(Debug)]
pub struct Listeners {
    ports: Box<[u16]>,
    endpoints: EndpointSet,
}

impl Listeners {
    /// Builds the set.
    ///
    /// # Errors
    /// A port of 0.
    pub fn new(
        ports: impl IntoIterator<Item = u16>,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Result<Self, EndpointSetError> {
        let mut ports: Vec<u16> = ports.into_iter().collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.first() == Some(&0) {
            return Err(EndpointSetError::PortZero);
        }
        Ok(Self {
            ports: ports.into_boxed_slice(),
            endpoints: EndpointSet::new(endpoints)?,
        })
    }

    /// Whether the host accepts connections at this address and port.
    #[inline]
    pub(super) fn contains<F: Family>(&self, address: F, port: u16) -> bool {
        // A handful: a scan beats a search.
        self.ports.contains(&port)
            || !self.endpoints.is_empty() && self.endpoints.lists(address, port)
    }
}
