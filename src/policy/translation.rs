//! Translates the hosts' addresses to addresses of the network of `incoming`, for steered traffic.
//!
//! A relay answers from the endpoint on which it listens, and nothing else talks to those addresses;
//! so the relay set takes the place of a table of connections. A segment that opens a connection is
//! never translated inward.

use super::fragments::FragmentTable;
use super::groups::Group;
use super::range_map::{Number, Range, RangeMap};
use super::{Family, GroupNumber, Mode, Rule, Snapshot};
use crate::packet::{
    Address, End, Headers, Packet, PrefixChange, Readdressing, Tcp, is_plain, parse, protocol,
    tag_bytes,
};
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;

/// The bytes of the two tags that a group's frames have at most.
const MOST_TAG_BYTES: usize = 8;

/// A prefix of hosts' addresses, and the prefix of the network of `incoming` in its place. An address
/// keeps the part behind the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    host: IpNet,
    incoming: IpNet,
}

impl Translation {
    /// Of two prefixes of the same IP version and length; `None` for others.
    pub fn new(host: IpNet, incoming: IpNet) -> Option<Self> {
        let is_same = host.addr().is_ipv4() == incoming.addr().is_ipv4()
            && host.prefix_len() == incoming.prefix_len();
        is_same.then(|| Self {
            host: host.trunc(),
            incoming: incoming.trunc(),
        })
    }

    /// The addresses of the hosts.
    pub const fn host(&self) -> IpNet {
        self.host
    }

    /// The addresses of the network of `incoming`.
    pub const fn incoming(&self) -> IpNet {
        self.incoming
    }
}

/// How the addresses of a range are translated, and the group whose hosts have them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translated<A> {
    pub(super) group: GroupNumber,
    pub(super) change: PrefixChange<A>,
}

/// The translations of one direction.
#[derive(Clone, Debug)]
pub(super) struct ByDirection {
    pub(super) v4: RangeMap<u32, Translated<u32>>,
    pub(super) v6: RangeMap<u128, Translated<u128>>,
}

impl ByDirection {
    /// The ranges of `from` of each translation become those of `to`. In audit mode nothing is
    /// steered, so nothing comes back: the addresses are the box's own.
    fn new(
        groups: &[Group],
        from: impl Fn(&Translation) -> IpNet,
        to: impl Fn(&Translation) -> IpNet,
    ) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, group) in groups.iter().enumerate() {
            if group.actions.mode() == Mode::Audit {
                continue;
            }
            let group_number = GroupNumber::of(index);
            for translation in &group.translations {
                match (from(translation), to(translation)) {
                    (IpNet::V4(from), IpNet::V4(to)) => {
                        let ends = (from.network(), from.broadcast());
                        let ends = (u32::from(ends.0), u32::from(ends.1));
                        v4.push(range(ends, u32::from(to.network()), group_number));
                    }
                    (IpNet::V6(from), IpNet::V6(to)) => {
                        let ends = (from.network(), from.broadcast());
                        let ends = (u128::from(ends.0), u128::from(ends.1));
                        v6.push(range(ends, u128::from(to.network()), group_number));
                    }
                    (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => {}
                }
            }
        }
        Self {
            v4: RangeMap::new(v4),
            v6: RangeMap::new(v6),
        }
    }
}

fn range<A: Address + Number>(
    (first, last): (A, A),
    to: A,
    group: GroupNumber,
) -> Range<A, Translated<A>> {
    let change = PrefixChange::between(first, to);
    Range {
        first,
        last,
        value: Translated { group, change },
    }
}

/// The translations of all groups.
#[derive(Clone, Debug)]
pub(super) struct Translations {
    /// By the hosts' addresses.
    pub(super) departures: ByDirection,
    /// By the addresses of the network of `incoming`.
    pub(super) arrivals: ByDirection,
}

impl Translations {
    pub(super) fn new(groups: &[Group]) -> Self {
        Self {
            departures: ByDirection::new(groups, Translation::host, Translation::incoming),
            arrivals: ByDirection::new(groups, Translation::incoming, Translation::host),
        }
    }
}

/// An inbound packet to a translated address, that belongs to a connection with a relay.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The group of the host.
    pub group: GroupNumber,
    /// The host's own address.
    pub host: IpAddr,
    change: Change,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    V4(Readdressing<u32>),
    V6(Readdressing<u128>),
}

impl Arrival {
    /// Writes the host's address into the frame, and into the packet that an ICMP error quotes.
    pub fn apply(&self, frame: &mut [u8]) {
        match &self.change {
            Change::V4(change) => change.apply(frame),
            Change::V6(change) => change.apply(frame),
        }
    }
}

impl Snapshot {
    /// Replaces the source address of a frame of a group that translates. Returns false, and changes
    /// nothing, if that is impossible: TCP's checksum is not in the frame.
    pub fn depart(&self, frame: &mut [u8], frame_bytes: usize) -> bool {
        let done = match parse(frame, frame_bytes) {
            Headers::V4(packet) => self.departure(frame, &packet).map(|to| to.apply(frame)),
            Headers::V6(packet) => self.departure(frame, &packet).map(|to| to.apply(frame)),
            Headers::NotIp | Headers::Malformed(_) => None,
        };
        done.is_some()
    }

    fn departure<F: Family>(&self, frame: &[u8], packet: &Packet<F>) -> Option<Readdressing<F>> {
        let translations = F::translations(&self.rules.translations().departures);
        let change = translations.find(packet.source)?.change;
        Readdressing::of_segment(frame, packet, End::Source, change)
    }

    /// What a frame that arrives at `incoming` is, if its destination is a translated address:
    /// `None` if it belongs to no connection with a relay. Then it is for the box itself.
    ///
    /// `fragments` remembers first fragments of such segments; `now` counts from any fixed moment.
    /// Of IPv6 packets with extension headers, only fragments of TCP are translated; of frames with
    /// more than two VLAN tags, none.
    pub fn arrival(
        &self,
        frame: &[u8],
        frame_bytes: usize,
        fragments: &mut FragmentTable,
        now: Duration,
    ) -> Option<Arrival> {
        if tag_bytes(frame) > MOST_TAG_BYTES {
            return None;
        }
        match parse(frame, frame_bytes) {
            Headers::V4(packet) => self.arrival_of(frame, &packet, fragments, now, Change::V4),
            Headers::V6(packet) => self.arrival_of(frame, &packet, fragments, now, Change::V6),
            Headers::NotIp | Headers::Malformed(_) => None,
        }
    }

    fn arrival_of<F: Family>(
        &self,
        frame: &[u8],
        packet: &Packet<F>,
        fragments: &mut FragmentTable,
        now: Duration,
        change_of: impl FnOnce(Readdressing<F>) -> Change,
    ) -> Option<Arrival> {
        let translations = F::translations(&self.rules.translations().arrivals);
        let translated = translations.find(packet.destination)?;
        if !is_plain(frame, packet) {
            return None;
        }
        let change = translated.change;
        let readdressing = if packet.protocol == protocol::TCP {
            if !self.is_answer(packet, fragments, now) {
                return None;
            }
            let change = Readdressing::of_segment(frame, packet, End::Destination, change)?;
            if let Some(fragment) = packet.fragment.filter(|fragment| fragment.first) {
                fragments.remember(packet, fragment, Rule::ToListedRelay, now);
            }
            change
        } else {
            let is_relay = |address, port| self.relays.lists(address, port);
            Readdressing::of_error(frame, packet, change, is_relay)?
        };
        Some(Arrival {
            group: translated.group,
            host: change.of(packet.destination).to_ip(),
            change: change_of(readdressing),
        })
    }

    /// Whether a relay sent this segment on a connection of a host, or this fragment of one.
    fn is_answer<F: Family>(
        &self,
        packet: &Packet<F>,
        fragments: &FragmentTable,
        now: Duration,
    ) -> bool {
        if let Some(fragment) = packet.fragment.filter(|fragment| !fragment.first) {
            return fragments.recall(packet, fragment, now).is_some();
        }
        self.relays.lists(packet.source, packet.ports.source) && !opens(packet.tcp)
    }
}

/// Whether a segment opens a connection: SYN without ACK and RST.
const fn opens(tcp: Tcp) -> bool {
    tcp.control & (Tcp::SYN | Tcp::ACK | Tcp::RST) == Tcp::SYN
}
