//! Groups of hosts behind the box. Each group has its own addresses and its own policy.

use super::owners::AddressKind;
use super::range_map::{Range, RangeMap};
use super::{Actions, ClassifyBy, ExitProtocols, Listener, Owner, PrefixSet, Translation};
use crate::packet::{Dscp, MacAddr, Version, VlanTags};
use std::net::Ipv4Addr;

/// The most groups of one box; the XDP program has room for this many.
pub const MAX_GROUPS: usize = 64;
/// The most next hops of one box: one for each group and IP version.
pub const MAX_NEXT_HOPS: usize = 2 * MAX_GROUPS;

/// The number of a group, from 0 in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupNumber(u8);

impl GroupNumber {
    /// The number of frames of no group: those without a valid IP header, and foreign ones.
    #[allow(clippy::cast_possible_truncation, reason = "there are 64")]
    pub const NONE: Self = Self(MAX_GROUPS as u8);

    /// The number of a group at this index; [`GroupNumber::NONE`] from [`MAX_GROUPS`] on.
    pub fn of(index: usize) -> Self {
        u8::try_from(index).map_or(Self::NONE, Self::from_u8)
    }

    pub(super) const fn from_u8(number: u8) -> Self {
        match number < Self::NONE.0 {
            true => Self(number),
            false => Self::NONE,
        }
    }

    /// The group's index, 0 to [`MAX_GROUPS`]; that is [`GroupNumber::NONE`].
    #[inline]
    pub const fn to_u8(self) -> u8 {
        self.0
    }

    /// The group's index in a list of the groups, `None` for frames of no group.
    pub const fn index(self) -> Option<usize> {
        match self.0 < Self::NONE.0 {
            true => Some(self.0 as usize),
            false => None,
        }
    }

    /// The address that stands for all addresses of the group in a set of listeners. 0.0.0.0/8
    /// ("this network", RFC 1122, section 3.2.1.3) holds no host's address.
    pub(super) const fn as_address(self) -> Ipv4Addr {
        Ipv4Addr::new(0, 0, 0, self.0)
    }
}

/// Hosts with the same policy.
#[derive(Clone, Debug)]
pub struct Group {
    /// The name in counters and explanations.
    pub name: String,
    /// The clearnet addresses of the hosts.
    pub addresses: PrefixSet,
    /// The addresses of the hosts that carry Tor traffic only.
    pub relay_addresses: PrefixSet,
    /// The listeners of the hosts, besides their own relays' endpoints.
    pub listeners: Box<[Listener]>,
    /// The DNS resolvers of the hosts; every address, if a host has a recursive resolver. Only
    /// their ports 53 and 853 match, over TCP and UDP.
    pub resolvers: PrefixSet,
    /// Destinations whose traffic is the hosts' own, never exit traffic.
    pub exempt: PrefixSet,
    /// The protocols from a clearnet address that count as exit.
    pub exit_protocols: ExitProtocols,
    /// The action on a frame, by the rule that it matched.
    pub actions: Actions,
    /// The MAC address of all the hosts' addresses; if `None`, each one's is learned.
    pub mac: Option<MacAddr>,
    /// The tags of the hosts' frames on the wire.
    pub vlan: VlanTags,
    /// How steered frames leave.
    pub path: SteeredPath,
    /// The source addresses of steered frames, in place of the hosts': all addresses of an IP
    /// version that is steered are translated, or no address is.
    pub translations: Box<[Translation]>,
}

/// How the steered frames of a group leave `incoming`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteeredPath {
    /// The numbers of the next hops for IPv4 and IPv6, below [`MAX_NEXT_HOPS`]; without a meaning
    /// for an IP version that is not steered.
    pub next_hops: [u8; 2],
    /// The tags of the network of the next hops.
    pub vlan: VlanTags,
    /// The priority (PCP) of the tags, 0 to 7; if `None`, it is the arriving frame's.
    pub priority: Option<u8>,
}

impl SteeredPath {
    /// The number of the next hop for an IP version.
    #[inline]
    pub const fn next_hop(&self, version: Version) -> usize {
        self.next_hops[version as usize] as usize
    }
}

impl Group {
    /// A group without addresses, listeners, resolvers and exempt prefixes, and untagged.
    pub fn new(name: &str, actions: Actions) -> Self {
        Self {
            name: name.to_owned(),
            addresses: PrefixSet::default(),
            relay_addresses: PrefixSet::default(),
            listeners: [].into(),
            resolvers: PrefixSet::default(),
            exempt: PrefixSet::default(),
            exit_protocols: ExitProtocols::default(),
            actions,
            mac: None,
            vlan: VlanTags::UNTAGGED,
            path: SteeredPath::default(),
            translations: [].into(),
        }
    }

    /// The same group with [`Actions::passing`].
    pub fn passing(&self) -> Self {
        Self {
            actions: self.actions.passing(),
            ..self.clone()
        }
    }

    /// Whether frames of the group have tags on the wire or behind the next hops.
    pub fn has_tags(&self) -> bool {
        self.vlan != VlanTags::UNTAGGED || self.path.vlan != VlanTags::UNTAGGED
    }

    /// Whether steered frames leave with another source address than the host's.
    pub fn translates(&self) -> bool {
        !self.translations.is_empty()
    }

    /// Whether the group has clearnet and relay addresses. If so, source address and relay set each
    /// determine the kind of a flow, and are checked against each other.
    pub(super) fn has_both_kinds(&self) -> bool {
        !self.addresses.is_empty() && !self.relay_addresses.is_empty()
    }
}

/// The owners of all addresses.
#[derive(Clone, Debug)]
pub(super) struct ByFamily {
    pub(super) v4: RangeMap<u32, Owner>,
    pub(super) v6: RangeMap<u128, Owner>,
}

impl ByFamily {
    pub(super) fn new(groups: &[Group]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, group) in groups.iter().enumerate() {
            for (kind, prefixes) in [
                (AddressKind::Clearnet, &group.addresses),
                (AddressKind::Relay, &group.relay_addresses),
            ] {
                let owner = Owner::new(GroupNumber::of(index), kind);
                v4.extend(owned(prefixes.v4(), owner));
                v6.extend(owned(prefixes.v6(), owner));
            }
        }
        Self {
            v4: RangeMap::new(v4),
            v6: RangeMap::new(v6),
        }
    }
}

fn owned<N: Copy>(
    ranges: &[(N, N)],
    value: Owner,
) -> impl Iterator<Item = Range<N, Owner>> + use<'_, N> {
    let owned = move |&(first, last)| Range { first, last, value };
    ranges.iter().map(owned)
}

/// A set of code points, one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DscpSet(u64);

impl DscpSet {
    /// The marks of all groups, and the host's mark.
    pub(super) fn of_marks(classify_by: ClassifyBy, groups: &[Group]) -> Self {
        let marks = groups.iter().map(|group| group.actions.mark());
        let host_mark = match classify_by {
            ClassifyBy::RelaySet => None,
            ClassifyBy::HostMark(mark) => Some(mark),
        };
        // 0 needs no clearing.
        let marks = marks.chain(host_mark).filter(|mark| *mark != Dscp::DEFAULT);
        Self(marks.fold(0, |set, mark| set | 1 << mark.bits()))
    }

    pub(super) const fn contains(self, dscp: Dscp) -> bool {
        self.0 >> dscp.bits() & 1 == 1
    }

    pub(super) const fn to_u64(self) -> u64 {
        self.0
    }
}
