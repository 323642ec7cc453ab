//! What the box knows of its neighbours on the link layer, shared by all workers and the XDP
//! program.

use super::hosts::{HOST_SLOTS, HostKey, SEVERAL_CHANGES, mac_in};
use super::sample::Part;
use super::{Cells, PerRole, Role};
use crate::packet::{self, MacAddr, MacPair};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

// `struct exitmark_links` in bpf/exitmark.h, in 64-bit numbers.
const HOST_MAC: usize = 0;
const NEXT_HOP: usize = 1;
const INCOMING_MAC: usize = 2;
const INCOMING_PORT: usize = 3;
const LEARNS_HOST: usize = 4;
const LONGEST_REDIRECT: usize = 5;
const HAND_OVER: usize = 6;
const DECIDES: usize = 9;
const PATIENCE: usize = 12;
const CREDIT: usize = 13;
const HARD_CREDIT: usize = 14;
const NETNS: usize = 15;
const NICS: usize = 16;
const DROPS_UNSTEERED: usize = 19;
const SAMPLE: usize = 20;
const SAMPLE_UNTIL: usize = 21;
const SEEKS_HOST: usize = 22;
const HOST_CHANGES: usize = 23;
const HOSTS_SETTLED: usize = 24;
const HOSTS: usize = 25;
/// How many numbers there are.
pub(super) const LINK_NUMBERS: usize = HOSTS + HOST_SLOTS;

const NO_PORT: u64 = 3;

/// The MAC addresses that frames are rewritten with, and where the XDP program decides.
///
/// The host's may be learnt while frames flow, so these are atomic cells: each is one number,
/// and no two of them need to change together.
#[derive(Debug)]
pub struct Links {
    cells: Cells,
    /// Which port plays `incoming`.
    incoming: Option<Role>,
}

/// The way out for relay traffic.
#[derive(Clone, Copy, Debug)]
pub struct IncomingLink {
    /// `Incoming`, or `Uplink` where one NIC plays both.
    pub port: Role,
    /// That NIC's own address.
    pub own: MacAddr,
    /// The router's there, as far as it is known at first.
    pub next_hop: Option<MacAddr>,
}

/// What was learnt of the host's MAC addresses.
#[derive(Clone, Debug)]
pub struct LearntHosts {
    /// The one that was seen last.
    last: MacAddr,
    /// Those of its addresses, as in the cells.
    hosts: Vec<u64>,
}

impl From<MacAddr> for LearntHosts {
    fn from(last: MacAddr) -> Self {
        let hosts = Vec::new();
        Self { last, hosts }
    }
}

/// How steered frames leave.
#[derive(Clone, Copy)]
pub(super) struct Steering {
    pub(super) port: Role,
    pub(super) macs: MacPair,
}

/// When the XDP program decides frames by itself that are meant for user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spill {
    /// A worker without a sign of life for this long counts as dead.
    pub patience: Duration,
    /// With so many frames under way to a worker, some flows are decided in the kernel.
    pub credit: u64,
    /// With so many, all are.
    pub hard_credit: u64,
}

impl Links {
    /// Links of this process' own. The host's MAC address is learnt where it is not given;
    /// without a link to `incoming` nothing is steered.
    pub fn new(host: Option<MacAddr>, incoming: Option<IncomingLink>) -> Self {
        Self::over(Cells::own(LINK_NUMBERS), host, incoming)
    }

    /// Links in cells that others see.
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
                links.set(INCOMING_PORT, link.port.index() as u64);
            }
            None => links.set(INCOMING_PORT, NO_PORT),
        }
        links
    }

    /// The host's MAC addresses in a map's value, if it is of this network namespace.
    pub(super) fn learnt_hosts(value: &[u8], netns: u64) -> Option<LearntHosts> {
        let (numbers, _) = value.as_chunks::<8>();
        let number = |at: usize| numbers.get(at).map(|bytes| u64::from_ne_bytes(*bytes));
        if number(NETNS)? != netns {
            return None;
        }
        Some(LearntHosts {
            last: MacAddr::from_u64(number(HOST_MAC)?)?,
            hosts: (HOSTS..LINK_NUMBERS).filter_map(number).collect(),
        })
    }

    /// Takes this for the host's MAC address from now on; or learns it, beginning with what is
    /// known.
    pub fn expect_host(&self, host: Option<MacAddr>) {
        self.set(LEARNS_HOST, u64::from(host.is_none()));
        if let Some(host) = host {
            self.set(HOST_MAC, host.to_u64());
        }
    }

    /// Takes note of the host's MAC addresses, unless one is known.
    pub fn remember_hosts(&self, learnt: Option<LearntHosts>) {
        if let (None, Some(learnt)) = (self.host(), learnt) {
            self.set(HOST_MAC, learnt.last.to_u64());
            for (cell, entry) in (HOSTS..LINK_NUMBERS).zip(learnt.hosts) {
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

    /// Tells the XDP program which ports' frames are all for user space, and when it takes them
    /// on itself.
    pub fn hand_over(&self, all: PerRole<bool>, spill: Spill) {
        let patience = u64::try_from(spill.patience.as_nanos()).unwrap_or(u64::MAX);
        self.set(PATIENCE, patience);
        self.set(CREDIT, spill.credit);
        self.set(HARD_CREDIT, spill.hard_credit);
        for (role, &all) in all.iter() {
            self.set(HAND_OVER + role.index(), u64::from(all));
        }
    }

    /// Tells the XDP program from which ports it may decide frames at all, because they can be
    /// redirected to where they leave, and how long in bytes such a frame may be.
    pub fn allow_redirects(&self, from: PerRole<bool>, longest: u32) {
        self.set(LONGEST_REDIRECT, u64::from(longest));
        for (role, &may) in from.iter() {
            self.set(DECIDES + role.index(), u64::from(may));
        }
    }

    /// Tells the XDP program by which numbers, in which network namespace, the kernel knows the
    /// NICs; 0 is none.
    pub fn name_nics(&self, netns: u64, nics: PerRole<u32>) {
        self.set(NETNS, netns);
        for (role, &nic) in nics.iter() {
            self.set(NICS + role.index(), u64::from(nic));
        }
    }

    /// Steers to this MAC address from the next batch of frames on; or to none, because `incoming`
    /// has no link or its next hop is not known.
    pub fn steer_to(&self, next_hop: Option<MacAddr>) {
        self.set(NEXT_HOP, next_hop.map_or(0, MacAddr::to_u64));
    }

    /// Whether relay frames that cannot be steered are dropped; otherwise they leave by the
    /// uplink.
    pub fn drop_unsteered(&self, drops: bool) {
        self.set(DROPS_UNSTEERED, u64::from(drops));
    }

    #[inline]
    pub(super) fn drops_unsteered(&self) -> bool {
        self.get(DROPS_UNSTEERED) != 0
    }

    /// Whether frames that arrive by `uplink` from an address of the host are counted: while none
    /// arrives by `host`, the two may be swapped.
    pub fn seek_host(&self, seeks: bool) {
        self.set(SEEKS_HOST, u64::from(seeks));
    }

    #[inline]
    pub(super) fn seeks_host(&self) -> bool {
        self.get(SEEKS_HOST) != 0
    }

    /// Tells of one decision in so many; 0 is none.
    pub fn sample(&self, one_in: u32) {
        self.set(SAMPLE, Part::one_in(one_in).0);
    }

    /// Says until when somebody reads what the program tells: afterwards it tells nothing. `until`
    /// is CLOCK_MONOTONIC.
    pub fn sample_until(&self, until: Duration) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.set(SAMPLE_UNTIL, nanos);
    }

    /// One decision in how many is told of.
    pub fn one_in(&self) -> u64 {
        self.sampled().is_one_in()
    }

    #[inline]
    pub(super) fn sampled(&self) -> Part {
        Part(self.get(SAMPLE))
    }

    /// The host's MAC address, if it is known.
    #[inline]
    pub fn host(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(HOST_MAC))
    }

    /// Takes note of the source MAC address of a frame that the host sent from an address of its
    /// own. A configured address is never replaced.
    pub(super) fn learn_host(&self, frame: &[u8]) {
        let (Some(mac), Some(address)) = (MacAddr::source_of(frame), packet::source(frame)) else {
            return;
        };
        let key = HostKey::of(address);
        let (cell, entry) = (HOSTS + key.slot(), key.entry(mac));
        let last = self.get(HOST_MAC);
        if last == mac.to_u64() && self.get(cell) == entry || !mac.is_unicast() {
            return;
        }
        self.set(cell, entry);
        if last == mac.to_u64() {
            return;
        }
        if last != 0 {
            self.set(HOST_CHANGES, self.host_changes() + 1);
        }
        if self.get(LEARNS_HOST) != 0 {
            self.set(HOST_MAC, mac.to_u64());
        }
    }

    /// The MAC address to which a frame for this address of the host goes, if it is known. One
    /// that is configured is every address'. An address of which no frame was seen has the MAC
    /// address that was seen last, unless that is one of several.
    pub(super) fn host_of(&self, address: IpAddr) -> Option<MacAddr> {
        let last = self.host();
        if self.get(LEARNS_HOST) == 0 {
            return last;
        }
        let key = HostKey::of(address);
        match key.read(self.get(HOSTS + key.slot())) {
            Some(mac) => last.and(Some(mac)),
            None => last.filter(|_| !self.has_several_hosts()),
        }
    }

    /// How often a frame of the host's came from another MAC address than the one before; or than
    /// the configured one, where there is one.
    pub fn host_changes(&self) -> u64 {
        self.get(HOST_CHANGES)
    }

    /// Takes the changes so far for those of one host.
    pub fn settle_hosts(&self) {
        self.set(HOSTS_SETTLED, self.host_changes());
    }

    /// Whether the MAC address has changed too often for one host.
    pub fn has_several_hosts(&self) -> bool {
        let settled = self.get(HOSTS_SETTLED);
        self.host_changes().wrapping_sub(settled) >= SEVERAL_CHANGES
    }

    /// Whether an address of the host has this MAC address.
    pub fn has_learnt(&self, mac: MacAddr) -> bool {
        let entries = self.cells[HOSTS..LINK_NUMBERS].iter();
        let mut macs = entries.map(|cell| mac_in(cell.load(Ordering::Relaxed)));
        macs.any(|known| known == Some(mac))
    }

    /// All that was learnt of the host, to be compared.
    pub fn learnt(&self) -> Vec<u64> {
        let cells = [HOST_MAC, HOST_CHANGES].into_iter();
        let cells = cells.chain(HOSTS..LINK_NUMBERS);
        cells.map(|cell| self.get(cell)).collect()
    }

    /// The port that plays `incoming`, if one does.
    #[inline]
    pub const fn incoming_port(&self) -> Option<Role> {
        self.incoming
    }

    /// That NIC's own MAC address, as it is now.
    #[inline]
    pub fn incoming_mac(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(INCOMING_MAC))
    }

    /// Takes another MAC address for that NIC's own, because it has changed.
    pub fn set_incoming_mac(&self, own: MacAddr) {
        self.set(INCOMING_MAC, own.to_u64());
    }

    /// How steered frames leave now, if they can.
    pub(super) fn steering(&self) -> Option<Steering> {
        Some(Steering {
            port: self.incoming?,
            macs: MacPair::new(self.next_hop()?, self.incoming_mac()?),
        })
    }

    /// Where steered frames are sent now.
    #[inline]
    pub fn next_hop(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(NEXT_HOP))
    }
}
