//! Which packets count: those that bear the mark and come from a clearnet address of the Tor host.
//! The same rule as bpf/monitor.bpf.c has, for what comes from files, and to be held against it.

use crate::packet::Dscp;
use std::net::IpAddr;

/// A packet as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Its bytes from the Ethernet header on, at least up to the ports and TCP's flags.
    pub bytes: &'a [u8],
    /// How long the whole frame was; what the bytes lack of that was cut off. `usize::MAX` where
    /// nobody knows, because the kernel, which cut it, has checked it.
    pub whole: usize,
}

/// The rule.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The mark.
    pub dscp: Dscp,
    /// The host's clearnet addresses.
    pub clearnet: Vec<IpAddr>,
}
