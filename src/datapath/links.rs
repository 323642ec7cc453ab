//! Link-layer state of the box's neighbours, and the settings of the XDP program; shared by all
//! workers and the program.

use super::contract::{HAND_OVER_ALL, HAND_OVER_SLOW, ROLES, SEVERAL_CHANGES};
use super::contract::{exitmark_links, index_of};
use super::hosts::{HOST_SLOTS, HostKey, mac_in};
use super::sample::SamplingRate;
use super::{Cells, PerRole, Role};
use exitmark_policy::packet::{self, MacAddr, MacPair};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The cell of a field of `struct exitmark_links`.
macro_rules! cell {
    ($field:ident) => {
        index_of!(exitmark_links, $field)
    };
}

/// The cells of the entries of the host's IP addresses.
const HOSTS: Range<usize> = cell!(hosts)..cell!(hosts) + HOST_SLOTS;
/// The size of the structure, in 64-bit numbers.
pub(super) const LINK_NUMBERS: usize = size_of::<exitmark_links>() / size_of::<u64>();

/// The MAC addresses for rewriting frames, and the settings of the XDP program.
///
/// The host's MAC address may be learned while frames flow, so these are atomic cells: each is one
/// number, and no two of them need to change together.
#[derive(Debug)]
pub struct Links {
    cells: Cells,
    incoming: Option<Role>,
}

/// The egress link of relay traffic.
#[derive(Clone, Copy, Debug)]
pub struct IncomingLink {
    /// `Incoming`, or `Uplink` if one NIC has both roles.
    pub port: Role,
    /// The MAC address of that NIC.
    pub own: MacAddr,
    /// The MAC address of the next hop, if it is known already.
    pub next_hop: Option<MacAddr>,
}

/// The learned MAC addresses of the host.
#[derive(Clone, Debug)]
pub struct LearnedHosts {
    /// The MAC address that was learned last.
    last: MacAddr,
    /// The entries of its IP addresses, as in the cells.
    hosts: Vec<u64>,
}

impl From<MacAddr> for LearnedHosts {
    fn from(last: MacAddr) -> Self {
        let hosts = Vec::new();
        Self { last, hosts }
    }
}

/// How steered frames leave: the port, and the MAC addresses that are written into them.
#[derive(Clone, Copy)]
pub(super) struct Steering {
    pub(super) port: Role,
    pub(super) macs: MacPair,
}

/// When the XDP program handles frames itself that are meant for user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeoverLimits {
    /// Timeout: a worker whose heartbeat is older than this counts as dead.
    pub heartbeat_timeout: Duration,
    /// Backlog watermark in frames: from here on, some flows are handled by the kernel.
    pub soft_watermark: u64,
    /// Backlog watermark in frames: from here on, all flows are handled by the kernel.
    pub hard_watermark: u64,
}

impl Links {
    /// Links in this process' own memory. The host's MAC address is learned if `host` is `None`;
    /// without an `incoming` link nothing is steered.
    pub fn new(host: Option<MacAddr>, incoming: Option<IncomingLink>) -> Self {
        Self::over(Cells::own(LINK_NUMBERS), host, incoming)
    }

    /// Links in cells that are shared, e.g. with the XDP program.
    pub fn over(cells: Cells, host: Option<MacAddr>, incoming: Option<IncomingLink>) -> Self {
        let links = Self {
            cells,
            incoming: incoming.map(|link| link.port),
        };
        links.expect_host(host);
        links.sample_until(Duration::MAX);
        match incoming {
            Some(link) => {
                links.set_incoming_mac(link.own);
                links.steer_to(link.next_hop);
                links.set(cell!(incoming_port), link.port.index() as u64);
            }
            None => links.set(cell!(incoming_port), ROLES.into()),
        }
        links
    }

    /// The host's MAC addresses in the value of a links map, if it is of this network namespace.
    pub(super) fn learned_hosts(value: &[u8], netns: u64) -> Option<LearnedHosts> {
        let (numbers, _) = value.as_chunks::<8>();
        let number = |at: usize| numbers.get(at).map(|bytes| u64::from_ne_bytes(*bytes));
        if number(cell!(netns))? != netns {
            return None;
        }
        Some(LearnedHosts {
            last: MacAddr::from_u64(number(cell!(host_mac))?)?,
            hosts: HOSTS.filter_map(number).collect(),
        })
    }

    /// Sets the host's MAC address; `None` turns learning on, and keeps the known address until
    /// another is learned.
    pub fn expect_host(&self, host: Option<MacAddr>) {
        self.set(cell!(learns_host), u64::from(host.is_none()));
        if let Some(host) = host {
            self.set(cell!(host_mac), host.to_u64());
        }
    }

    /// Sets the host's learned MAC addresses, unless one is known already.
    pub fn remember_hosts(&self, learned: Option<LearnedHosts>) {
        if let (None, Some(learned)) = (self.host(), learned) {
            self.set(cell!(host_mac), learned.last.to_u64());
            for (cell, entry) in HOSTS.zip(learned.hosts) {
                self.set(cell, entry);
            }
        }
    }

    fn get(&self, number: usize) -> u64 {
        self.cells[number].load(Ordering::Relaxed)
    }

    fn set(&self, number: usize, value: u64) {
        self.cells[number].store(value, Ordering::Relaxed);
    }

    /// Tells the XDP program which ports hand all frames to user space, and when it handles them
    /// itself instead.
    pub fn hand_over(&self, all: PerRole<bool>, limits: TakeoverLimits) {
        let heartbeat_timeout =
            u64::try_from(limits.heartbeat_timeout.as_nanos()).unwrap_or(u64::MAX);
        self.set(cell!(heartbeat_timeout), heartbeat_timeout);
        self.set(cell!(soft_watermark), limits.soft_watermark);
        self.set(cell!(hard_watermark), limits.hard_watermark);
        for (role, &all) in all.iter() {
            let frames = [HAND_OVER_SLOW, HAND_OVER_ALL][usize::from(all)];
            self.set(cell!(hand_over) + role.index(), frames.into());
        }
    }

    /// Tells the XDP program which ports' frames it may decide itself, because they can be
    /// redirected to their egress ports, and the longest such frame in bytes.
    pub fn allow_redirects(&self, from: PerRole<bool>, longest: u32) {
        self.set(cell!(longest_redirect), u64::from(longest));
        for (role, &may) in from.iter() {
            self.set(cell!(decides) + role.index(), u64::from(may));
        }
    }

    /// Tells the XDP program the interface indices of the NICs, 0 for none, and the inode number
    /// of their network namespace.
    pub fn name_nics(&self, netns: u64, nics: PerRole<u32>) {
        self.set(cell!(netns), netns);
        for (role, &nic) in nics.iter() {
            self.set(cell!(nics) + role.index(), u64::from(nic));
        }
    }

    /// Steers to this MAC address from the next batch of frames on. `None` stops steering:
    /// `incoming` has no link, or its next hop is unknown.
    pub fn steer_to(&self, next_hop: Option<MacAddr>) {
        self.set(cell!(next_hop), next_hop.map_or(0, MacAddr::to_u64));
    }

    /// Sets whether relay frames that cannot be steered are dropped; otherwise they leave by the
    /// uplink.
    pub fn drop_unsteered(&self, drops: bool) {
        self.set(cell!(drops_unsteered), u64::from(drops));
    }

    #[inline]
    pub(super) fn drops_unsteered(&self) -> bool {
        self.get(cell!(drops_unsteered)) != 0
    }

    /// Sets whether frames that arrive by `uplink` from an address of the host are counted. If
    /// none arrives by `host`, the two NICs may be swapped.
    pub fn seek_host(&self, seeks: bool) {
        self.set(cell!(seeks_host), u64::from(seeks));
    }

    #[inline]
    pub(super) fn seeks_host(&self) -> bool {
        self.get(cell!(seeks_host)) != 0
    }

    /// Samples one decision in `one_in`; 0 turns sampling off.
    pub fn sample(&self, one_in: u32) {
        self.set(cell!(sample), SamplingRate::one_in(one_in).0);
    }

    /// Sets until when user space reads samples; the program makes none afterwards. `until` is
    /// CLOCK_MONOTONIC.
    pub fn sample_until(&self, until: Duration) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.set(cell!(sample_until), nanos);
    }

    /// The sampling interval: one decision in this many; 0 if sampling is off.
    pub fn one_in(&self) -> u64 {
        self.sampled().interval()
    }

    #[inline]
    pub(super) fn sampled(&self) -> SamplingRate {
        SamplingRate(self.get(cell!(sample)))
    }

    /// The host's MAC address, if it is known.
    #[inline]
    pub fn host(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(cell!(host_mac)))
    }

    /// Learns the source MAC address of a frame that the host sent from one of its addresses. A
    /// configured MAC address is never replaced.
    pub(super) fn learn_host(&self, frame: &[u8]) {
        let (Some(mac), Some(address)) = (MacAddr::source_of(frame), packet::source(frame)) else {
            return;
        };
        let key = HostKey::of(address);
        let (cell, entry) = (HOSTS.start + key.slot(), key.entry(mac));
        let last = self.get(cell!(host_mac));
        if last == mac.to_u64() && self.get(cell) == entry || !mac.is_unicast() {
            return;
        }
        self.set(cell, entry);
        if last == mac.to_u64() {
            return;
        }
        if last != 0 {
            self.set(cell!(host_changes), self.host_changes() + 1);
        }
        if self.get(cell!(learns_host)) != 0 {
            self.set(cell!(host_mac), mac.to_u64());
        }
    }

    /// The destination MAC address of frames for this address of the host, if known. A configured
    /// MAC address serves every address. An address that has sent no frame yet gets the MAC
    /// address learned last, unless there are several hosts.
    pub(super) fn host_of(&self, address: IpAddr) -> Option<MacAddr> {
        let last = self.host();
        if self.get(cell!(learns_host)) == 0 {
            return last;
        }
        let key = HostKey::of(address);
        match key.read(self.get(HOSTS.start + key.slot())) {
            Some(mac) => last.and(Some(mac)),
            None => last.filter(|_| !self.has_several_hosts()),
        }
    }

    /// How many frames from the host had another MAC address than the last one learned, or than the
    /// configured one if there is one.
    pub fn host_changes(&self) -> u64 {
        self.get(cell!(host_changes))
    }

    /// Attributes the changes so far to a single host: [`Links::has_several_hosts`] ignores them.
    pub fn settle_hosts(&self) {
        self.set(cell!(hosts_settled), self.host_changes());
    }

    /// Whether the MAC address has changed too often for a single host.
    pub fn has_several_hosts(&self) -> bool {
        let settled = self.get(cell!(hosts_settled));
        self.host_changes().wrapping_sub(settled) >= SEVERAL_CHANGES
    }

    /// Whether an address of the host has this MAC address.
    pub fn has_learned(&self, mac: MacAddr) -> bool {
        let entries = self.cells[HOSTS].iter();
        let mut macs = entries.map(|cell| mac_in(cell.load(Ordering::Relaxed)));
        macs.any(|known| known == Some(mac))
    }

    /// All learned state of the host, for comparison.
    pub fn learned(&self) -> Vec<u64> {
        let cells = [cell!(host_mac), cell!(host_changes)].into_iter();
        let cells = cells.chain(HOSTS);
        cells.map(|cell| self.get(cell)).collect()
    }

    /// The port that is `incoming`, if there is one.
    #[inline]
    pub const fn incoming_port(&self) -> Option<Role> {
        self.incoming
    }

    /// The current MAC address of the `incoming` NIC.
    #[inline]
    pub fn incoming_mac(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(cell!(incoming_mac)))
    }

    /// Sets the MAC address of the `incoming` NIC, after it has changed.
    pub fn set_incoming_mac(&self, own: MacAddr) {
        self.set(cell!(incoming_mac), own.to_u64());
    }

    /// How steered frames leave now; `None` if they cannot be steered.
    pub(super) fn steering(&self) -> Option<Steering> {
        Some(Steering {
            port: self.incoming?,
            macs: MacPair::new(self.next_hop()?, self.incoming_mac()?),
        })
    }

    /// The current next hop of steered frames.
    #[inline]
    pub fn next_hop(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(cell!(next_hop)))
    }
}
