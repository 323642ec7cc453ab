//! Link-layer state of the box's neighbours, and the settings of the XDP program; shared by all
//! workers and the program.

use super::contract::{HAND_OVER_ALL, HAND_OVER_SLOW, ROLES, exitmark_links, index_of};
use super::hosts::{
    self, ActiveHost, ENTRY, HOST_SLOTS, HostAges, HostKey, Hosts, KnownHost, Lesson,
};
use super::sample::SamplingRate;
use super::{Cells, PerRole, Role};
use exitmark_policy::MAX_NEXT_HOPS;
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

/// The cells of the table of host addresses.
const HOSTS: Range<usize> = cell!(hosts)..cell!(hosts) + HOST_SLOTS * ENTRY;
/// The size of the structure, in 64-bit numbers.
pub(super) const LINK_NUMBERS: usize = size_of::<exitmark_links>() / size_of::<u64>();

/// The MAC addresses for rewriting frames, and the settings of the XDP program.
///
/// The hosts' MAC addresses are learned while frames flow, so these are atomic cells: each is one
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
    /// The MAC address of the next hop with number 0, if it is known already.
    pub next_hop: Option<MacAddr>,
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
    /// Links in this process' own memory; without an `incoming` link nothing is steered.
    pub fn new(incoming: Option<IncomingLink>) -> Self {
        Self::over(Cells::own(LINK_NUMBERS), incoming)
    }

    /// Links in cells that are shared, e.g. with the XDP program.
    pub fn over(cells: Cells, incoming: Option<IncomingLink>) -> Self {
        let links = Self {
            cells,
            incoming: incoming.map(|link| link.port),
        };
        links.sample_until(Duration::MAX);
        match incoming {
            Some(link) => {
                links.set_incoming_mac(link.own);
                links.steer_to(0, link.next_hop);
                links.set(cell!(incoming_port), link.port.index() as u64);
            }
            None => links.set(cell!(incoming_port), ROLES.into()),
        }
        links
    }

    /// The hosts in the value of a links map, if it is of this network namespace.
    pub(super) fn learned_hosts(value: &[u8], netns: u64) -> Vec<KnownHost> {
        let (numbers, _) = value.as_chunks::<8>();
        let numbers: Vec<_> = numbers.iter().copied().map(u64::from_ne_bytes).collect();
        match (numbers.get(cell!(netns)), numbers.get(HOSTS)) {
            (Some(there), Some(table)) if *there == netns => hosts::known_among(table).collect(),
            _ => Vec::new(),
        }
    }

    /// Notes what is known of the hosts already. None of them is active by this.
    pub fn remember_hosts(&self, known: impl IntoIterator<Item = KnownHost>) {
        for host in known {
            self.note_host(HostKey::of(host.address), host.mac, false);
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
        self.settle_straight();
    }

    /// Tells the XDP program which ports' frames it may decide itself, because they can be
    /// redirected to their egress ports, and the longest such frame in bytes.
    pub fn allow_redirects(&self, from: PerRole<bool>, longest: u32) {
        self.set(cell!(longest_redirect), u64::from(longest));
        for (role, &may) in from.iter() {
            self.set(cell!(decides) + role.index(), u64::from(may));
        }
        self.settle_straight();
    }

    /// Sums up for the program which frames only the policy decides about, so that it compares one
    /// number: those from a port of which no worker gets every frame, and which is not watched. For
    /// the moment until then the program may forward by the former number. One thread at a time
    /// may call this.
    fn settle_straight(&self) {
        for role in Role::ALL {
            let of_role = |field: usize| self.get(field + role.index());
            let decides =
                of_role(cell!(decides)) != 0 && of_role(cell!(hand_over)) != HAND_OVER_ALL.into();
            let is_watched =
                role == Role::Uplink && (self.seeks_host() || self.incoming == Some(Role::Uplink));
            let longest = match decides && !is_watched {
                true => self.get(cell!(longest_redirect)),
                false => 0,
            };
            self.set(cell!(straight) + role.index(), longest);
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

    /// Steers the frames for a next hop, by its number, to this MAC address from the next frame on.
    /// `None` stops steering them: `incoming` has no link, or the next hop's MAC address is unknown.
    pub fn steer_to(&self, number: usize, next_hop: Option<MacAddr>) {
        if number < MAX_NEXT_HOPS {
            let mac = next_hop.map_or(0, MacAddr::to_u64);
            self.set(cell!(next_hops) + number, mac);
        }
    }

    /// Stops steering to every next hop.
    pub fn stop_steering(&self) {
        (0..MAX_NEXT_HOPS).for_each(|number| self.steer_to(number, None));
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
        self.settle_straight();
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

    fn table(&self) -> Hosts<'_> {
        Hosts::at(&self.cells, HOSTS.start)
    }

    /// Learns the source MAC address of a frame that a host sent from one of its addresses.
    pub(super) fn learn_host(&self, frame: &[u8]) {
        let (Some(mac), Some(address)) = (MacAddr::source_of(frame), packet::source(frame)) else {
            return;
        };
        let key = HostKey::of(address);
        if mac.is_unicast() && !self.table().has_seen(key, mac) {
            self.note_host(key, mac, true);
        }
    }

    #[cold]
    fn note_host(&self, key: HostKey, mac: MacAddr, is_seen: bool) {
        match self.table().learn(key, mac, is_seen) {
            Lesson::Known => {}
            Lesson::Full => self.set(cell!(hosts_full), self.hosts_full() + 1),
            // A host whose MAC address has changed, or another host.
            Lesson::New { before } => match self.common_host() {
                Some(common) if before != Some(common) => {
                    if mac != common {
                        self.set(cell!(several_macs), 1);
                    }
                }
                _ => self.set(cell!(host_mac), mac.to_u64()),
            },
        }
    }

    /// The MAC address of the hosts, if all have the same as far as is known.
    fn common_host(&self) -> Option<MacAddr> {
        MacAddr::from_u64(self.get(cell!(host_mac)))
    }

    /// Whether the hosts have several MAC addresses.
    pub fn has_several_macs(&self) -> bool {
        self.get(cell!(several_macs)) != 0
    }

    /// Finds out again whether the hosts have several MAC addresses: one of two may be gone.
    /// `others` are those of hosts behind other wires; `None` if such hosts are not known yet.
    pub fn settle_hosts(&self, others: Option<&[MacAddr]>) {
        let Some(others) = others else {
            self.set(cell!(several_macs), 1);
            return;
        };
        let table = self.table();
        let own = table.known().map(|host| host.mac);
        let mut macs = own.chain(others.iter().copied());
        let Some(first) = macs.next() else {
            return;
        };
        let has_several = macs.any(|mac| mac != first);
        if !has_several {
            self.set(cell!(host_mac), first.to_u64());
        }
        self.set(cell!(several_macs), u64::from(has_several));
    }

    /// The learned MAC address for this address of a host. An address that has sent no frame yet
    /// gets that of the hosts, if all have the same and there is only one group: another group may
    /// be another host, or in another VLAN.
    pub fn host_of(&self, address: IpAddr, is_only_group: bool) -> Option<MacAddr> {
        let found = self.table().find(HostKey::of(address));
        found.or_else(|| self.other_host().filter(|_| is_only_group))
    }

    /// The MAC address for an address of a host that has sent no frame yet.
    pub fn other_host(&self) -> Option<MacAddr> {
        self.common_host().filter(|_| !self.has_several_macs())
    }

    /// The addresses of the hosts that have sent a frame, in no particular order.
    pub fn hosts(&self) -> Vec<KnownHost> {
        self.table().known().collect()
    }

    /// The addresses of the hosts, each with whether it has sent a frame since the last call. Call it
    /// regularly: it also frees the entries of removed addresses, seconds after their removal. `now`
    /// counts from any fixed moment.
    pub fn take_activity(&self, now: Duration) -> Vec<ActiveHost> {
        self.table().free_forgotten(now);
        self.table().take_activity(now).collect()
    }

    /// Forgets the MAC address of an address, until its next frame. Its entry is free for another
    /// address seconds later, when no thread uses it any more. `now` is that of
    /// [`Links::take_activity`].
    pub fn forget_host(&self, address: IpAddr, now: Duration) {
        self.table().forget(HostKey::of(address), now);
    }

    /// Forgets addresses that have sent nothing for ten minutes, if three quarters of the table are
    /// in use: otherwise it would be full one day. Returns how many. `activity` is what
    /// [`Links::take_activity`] has returned at `now`; call this at least every few minutes.
    pub fn age_hosts(&self, ages: &mut HostAges, activity: &[ActiveHost], now: Duration) -> usize {
        let idle = ages.idle(activity, now);
        for address in &idle {
            self.forget_host(*address, now);
        }
        idle.len()
    }

    /// How many frames came from an address for which the table had no entry left.
    pub fn hosts_full(&self) -> u64 {
        self.get(cell!(hosts_full))
    }

    /// All learned state of the hosts, for comparison.
    pub fn learned(&self) -> Vec<u64> {
        let cells = self.lesson(None).into_iter();
        cells.chain(HOSTS.map(|cell| self.get(cell))).collect()
    }

    /// The learned state that a frame from this address can have changed, for comparison.
    pub fn lesson(&self, address: Option<IpAddr>) -> [u64; 4] {
        let of_address = address.map(|address| self.table().entry_of(HostKey::of(address)));
        [
            self.get(cell!(host_mac)),
            self.get(cell!(several_macs)),
            self.get(cell!(hosts_full)),
            of_address.unwrap_or_default(),
        ]
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

    /// How the frames for a next hop leave now; `None` if they cannot be steered.
    #[inline]
    pub(super) fn steering(&self, number: usize) -> Option<Steering> {
        Some(Steering {
            port: self.incoming?,
            macs: MacPair::new(self.next_hop(number)?, self.incoming_mac()?),
        })
    }

    /// The current MAC address of a next hop, by its number.
    #[inline]
    pub fn next_hop(&self, number: usize) -> Option<MacAddr> {
        match number < MAX_NEXT_HOPS {
            true => MacAddr::from_u64(self.get(cell!(next_hops) + number)),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TakeoverLimits = TakeoverLimits {
        heartbeat_timeout: Duration::from_millis(8),
        soft_watermark: 64,
        hard_watermark: 128,
    };

    fn straight(links: &Links) -> [u64; 2] {
        [Role::Host, Role::Uplink].map(|role| links.get(cell!(straight) + role.index()))
    }

    fn links(incoming: Option<Role>) -> Links {
        let link = |port| IncomingLink {
            port,
            own: MacAddr::new([2, 0, 0, 0, 3, 1]),
            next_hop: None,
        };
        let links = Links::new(incoming.map(link));
        links.hand_over(PerRole::from_fn(|_| false), LIMITS);
        links.allow_redirects(PerRole::from_fn(|_| true), 1514);
        links
    }

    #[test]
    fn frames_go_straight_unless_a_worker_or_a_count_comes_first() {
        let links = links(Some(Role::Incoming));
        assert_eq!(straight(&links), [1514, 1514]);
        links.seek_host(true);
        assert_eq!(straight(&links), [1514, 0]);
        links.seek_host(false);
        links.hand_over(PerRole::from_fn(|role| role == Role::Host), LIMITS);
        assert_eq!(straight(&links), [0, 1514]);
        links.hand_over(PerRole::from_fn(|_| false), LIMITS);
        links.allow_redirects(PerRole::from_fn(|role| role == Role::Host), 9014);
        assert_eq!(straight(&links), [9014, 0]);
    }

    #[test]
    fn frames_from_an_uplink_that_is_also_incoming_do_not_go_straight() {
        assert_eq!(straight(&links(Some(Role::Uplink))), [1514, 0]);
        assert_eq!(straight(&links(None)), [1514, 1514]);
    }
}
