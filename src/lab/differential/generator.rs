//! Random frames near the boundaries of a scenario's verdicts: the ends of its prefixes, its relays
//! with the right and the wrong port, headers truncated at every length.

use super::scenario::some_address;
use super::{GroupScenario, Scenario};
use crate::Random;
use exitmark_datapath::Role;
use exitmark_policy::packet::{Dscp, MacAddr, Tcp, internet_checksum, protocol};
use exitmark_policy::{Endpoint, Listener};
use ipnet::IpNet;
use std::net::IpAddr;

/// The length of the shortest frame that the kernel runs, an Ethernet header.
const ETHERNET: usize = 14;
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const HOST: MacAddr = MacAddr::new([2, 0, 0, 0, 1, 1]);
const OTHER_HOST: MacAddr = MacAddr::new([2, 0, 0, 0, 1, 2]);
const ROUTER: MacAddr = MacAddr::new([2, 0, 0, 0, 2, 2]);

/// The part of a scenario of one address family, with addresses as numbers.
#[derive(Default)]
struct Known {
    addresses: Vec<(u128, u128)>,
    relay_addresses: Vec<(u128, u128)>,
    resolvers: Vec<(u128, u128)>,
    exempt: Vec<(u128, u128)>,
    listeners: Vec<(u128, u16)>,
    relays: Vec<(u128, u16)>,
    /// The addresses in place of the hosts'.
    translated: Vec<(u128, u128)>,
}

/// Generates frames for one scenario.
pub struct Generator {
    v4: Known,
    v6: Known,
    ports: Vec<u16>,
    /// The tags of the groups' networks, if a group has any.
    vlans: Vec<Vec<u16>>,
    /// The longest frame that every port takes, in bytes.
    longest: usize,
    /// The marks of the groups.
    marks: Vec<u8>,
    /// The host's mark, or the box's if the host sets none.
    host_mark: u8,
    /// The MAC address of the box on `incoming`.
    own: Option<MacAddr>,
    /// An earlier frame to splice with.
    earlier: Vec<u8>,
}

/// The fields of a packet under construction.
struct Draft {
    is_v6: bool,
    source: (u128, u16),
    destination: (u128, u16),
    protocol: u8,
    tos: u8,
    mark: u8,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn ranges(prefixes: &[IpNet], is_v6: bool) -> Vec<(u128, u128)> {
    let of_family = prefixes.iter().filter(|net| net.addr().is_ipv6() == is_v6);
    of_family
        .map(|net| (number(net.network()), number(net.broadcast())))
        .collect()
}

impl Known {
    fn of(scenario: &Scenario, is_v6: bool) -> Self {
        let pair = |endpoint: &Endpoint| (number(endpoint.address), endpoint.port);
        let of_family = |endpoint: &&Endpoint| endpoint.address.is_ipv6() == is_v6;
        let named = |listener: &Listener| match listener {
            Listener::Endpoint(endpoint) => Some(*endpoint),
            Listener::Port(_) => None,
        };
        let groups = || scenario.groups.iter();
        let named: Vec<_> = groups()
            .flat_map(|group| group.listeners.iter().filter_map(named))
            .collect();
        let all = |of: fn(&GroupScenario) -> &Vec<IpNet>| {
            groups()
                .flat_map(|group| ranges(of(group), is_v6))
                .collect()
        };
        Self {
            addresses: all(|group| &group.addresses),
            relay_addresses: all(|group| &group.relay_addresses),
            resolvers: all(|group| &group.resolvers),
            exempt: all(|group| &group.exempt),
            listeners: named.iter().filter(of_family).map(pair).collect(),
            relays: scenario.relays.iter().filter(of_family).map(pair).collect(),
            translated: groups()
                .flat_map(|group| &group.translations)
                .flat_map(|(_, incoming)| ranges(&[*incoming], is_v6))
                .collect(),
        }
    }
}

/// An address in a range, at one of its ends, or next to it.
fn near(random: &mut Random, (first, last): (u128, u128)) -> u128 {
    match random.below(8) {
        0 => first,
        1 => last,
        2 => first.wrapping_sub(1),
        3 => last.wrapping_add(1),
        _ => match (last - first).checked_add(1) {
            Some(size) => first + random.double() % size,
            None => random.double(),
        },
    }
}

/// An endpoint, unchanged or with a small change.
fn almost(random: &mut Random, (address, port): (u128, u16)) -> (u128, u16) {
    match random.below(10) {
        0..6 => (address, port),
        6 => (address, port ^ 1 << random.below(16)),
        7 => (address ^ 1 << random.below(32), port),
        8 => (address ^ 1 << random.below(128), port),
        _ => (address.wrapping_add(1), port),
    }
}

impl Generator {
    /// Prepares the boundaries of a scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let port = |listener: &Listener| match listener {
            Listener::Port(port) => *port,
            Listener::Endpoint(endpoint) => endpoint.port,
        };
        let listeners = scenario.groups.iter().flat_map(|group| &group.listeners);
        let mut ports: Vec<_> = listeners.map(port).collect();
        let marks: Vec<_> = scenario.groups.iter().map(|group| group.mark).collect();
        let mark = marks.first().copied().unwrap_or(Dscp::DEFAULT);
        let both = |group: &GroupScenario| [group.vlan.clone(), group.steer_vlan.clone()];
        let vlans: Vec<_> = scenario.groups.iter().flat_map(both).collect();
        ports.extend([53, 853, 443, 9001, 22, 0, u16::MAX]);
        Self {
            v4: Known::of(scenario, false),
            v6: Known::of(scenario, true),
            ports,
            vlans: match vlans.iter().any(|vlan: &Vec<u16>| !vlan.is_empty()) {
                true => vlans,
                false => Vec::new(),
            },
            longest: usize::try_from(scenario.longest.min(9014)).unwrap_or(1514),
            marks: marks.iter().map(|mark| mark.bits() << 2).collect(),
            host_mark: scenario.host_mark.unwrap_or(mark).bits() << 2,
            own: scenario.incoming.map(|link| link.own),
            earlier: Vec::new(),
        }
    }

    /// Overwrites `frame` with the next frame, of at least 14 bytes; returns its ingress port.
    pub fn next(&mut self, random: &mut Random, frame: &mut Vec<u8>) -> Role {
        let ingress = match random.below(100) {
            0..80 => Role::Host,
            80..90 => Role::Uplink,
            _ => Role::Incoming,
        };
        frame.clear();
        self.link_layer(random, ingress, frame);
        if random.percent(2) {
            let bytes = random.below(120);
            frame.extend((0..bytes).map(|_| random.byte()));
        } else {
            self.packet(random, ingress, frame);
        }
        if random.percent(35) {
            for _ in 0..=random.below(2) {
                self.damage(random, frame);
            }
        }
        if frame.len() < ETHERNET {
            frame.resize(ETHERNET, random.byte());
        }
        if random.percent(3) {
            self.earlier.clone_from(frame);
        }
        ingress
    }

    fn link_layer(&self, random: &mut Random, ingress: Role, frame: &mut Vec<u8>) {
        let own = self.own.unwrap_or(ROUTER);
        let (to, from) = match ingress {
            Role::Host if random.percent(5) => (ROUTER, OTHER_HOST),
            Role::Host => (ROUTER, HOST),
            _ if random.percent(75) => (own, ROUTER),
            _ => (HOST, ROUTER),
        };
        frame.extend(to.bytes());
        frame.extend(from.bytes());
        if random.percent(2) {
            // All zeros, one flipped bit, or one random byte.
            let at = random.below(12);
            match random.below(3) {
                0 => frame[at / 6 * 6..][..6].fill(0),
                1 => frame[at] ^= 1 << random.below(8),
                _ => frame[at] = random.byte(),
            }
        }
        if !self.vlans.is_empty() && random.percent(70) {
            let vlan = self.vlans[random.below(self.vlans.len())].iter();
            for id in vlan {
                frame.extend(random.one_of(TAGS).to_be_bytes());
                frame.extend((random.half() & 0xf000 | id).to_be_bytes());
            }
            return;
        }
        let tags = match random.below(100) {
            0..70 => 0,
            70..82 => 1,
            82..92 => 2,
            92..95 => 3,
            95..98 => 4,
            _ => 5,
        };
        for _ in 0..tags {
            frame.extend(random.one_of(TAGS).to_be_bytes());
            frame.extend(random.half().to_be_bytes());
        }
    }

    fn draft(&self, random: &mut Random, ingress: Role) -> Draft {
        let is_v6 = random.percent(45);
        let known = if is_v6 { &self.v6 } else { &self.v4 };
        let port = |random: &mut Random| match random.percent(60) {
            true => random.pick(&self.ports).unwrap_or(0),
            false => random.half(),
        };
        let anywhere = |random: &mut Random| (number(some_address(random)), port(random));
        let in_ranges = |random: &mut Random, ranges: &[(u128, u128)]| {
            let range = random.pick(ranges)?;
            Some((near(random, range), port(random)))
        };
        let endpoint = |random: &mut Random, endpoints: &[(u128, u16)]| {
            random.pick(endpoints).map(|one| almost(random, one))
        };
        let host = |random: &mut Random| match random.below(100) {
            _ if ingress == Role::Incoming && random.percent(60) => {
                in_ranges(random, &known.translated).or_else(|| in_ranges(random, &known.addresses))
            }
            0..55 => in_ranges(random, &known.addresses),
            55..75 => in_ranges(random, &known.relay_addresses),
            75..88 => endpoint(random, &known.listeners),
            88..93 => endpoint(random, &known.relays),
            _ => None,
        };
        let other = |random: &mut Random| match random.below(100) {
            _ if ingress == Role::Incoming && random.percent(50) => endpoint(random, &known.relays),
            0..35 => endpoint(random, &known.relays),
            35..55 => in_ranges(random, &known.resolvers),
            55..75 => in_ranges(random, &known.exempt),
            75..85 => in_ranges(random, &known.addresses),
            _ => None,
        };
        let mark = random.pick(&self.marks).unwrap_or_default();
        let (source, destination) = match ingress {
            Role::Host => (host(random), other(random)),
            _ => (other(random), host(random)),
        };
        Draft {
            is_v6,
            source: source.unwrap_or_else(|| anywhere(random)),
            destination: destination.unwrap_or_else(|| anywhere(random)),
            protocol: match random.below(100) {
                0..62 => protocol::TCP,
                62..82 => protocol::UDP,
                82..88 => 1,
                88..92 => 58,
                _ => random.byte(),
            },
            mark,
            tos: match random.below(10) {
                0..3 => mark | random.byte() & 0b11,
                3..6 => self.host_mark | random.byte() & 0b11,
                6..8 => 0,
                _ => random.byte(),
            },
        }
    }

    fn packet(&self, random: &mut Random, ingress: Role, frame: &mut Vec<u8>) {
        let draft = self.draft(random, ingress);
        let payload = match random.below(200) {
            0..30 => random.below(9),
            30..190 => 4 + random.below(60),
            190..196 => random.below(1461),
            196..198 => random.below(9000),
            // About as long as a port takes.
            _ => {
                let header = if draft.is_v6 { 42 } else { 22 };
                (self.longest + random.below(25)).saturating_sub(frame.len() + header + 12)
            }
        };
        if draft.is_v6 {
            v6(random, &draft, payload, frame);
        } else {
            v4(random, &draft, payload, frame);
        }
        let start = frame.len();
        frame.extend(draft.source.1.to_be_bytes());
        frame.extend(draft.destination.1.to_be_bytes());
        frame.resize(start + payload, random.byte());
        if draft.protocol == protocol::TCP {
            control(random, &mut frame[start..]);
        }
        if matches!(draft.protocol, 1 | 58) && random.percent(80) {
            self.quote(random, &draft, &mut frame[start..]);
        }
        if random.percent(15) {
            frame.resize(frame.len() + random.below(30), random.byte());
        }
    }

    /// Makes an ICMP error of a possibly truncated packet: it quotes a segment that its destination
    /// may have sent to a relay.
    fn quote(&self, random: &mut Random, draft: &Draft, icmp: &mut [u8]) {
        let known = if draft.is_v6 { &self.v6 } else { &self.v4 };
        let relay = random.pick(&known.relays);
        let relay = relay.map_or((0, 0), |relay| almost(random, relay));
        let quoted = Draft {
            is_v6: draft.is_v6,
            source: match random.percent(90) {
                true => draft.destination,
                false => almost(random, draft.destination),
            },
            destination: relay,
            protocol: match random.percent(90) {
                true => protocol::TCP,
                false => random.byte(),
            },
            tos: random.byte(),
            mark: 0,
        };
        let kind = random.one_of([1, 2, 3, 4, 5, 8, 11, 12]);
        let mut bytes = vec![
            kind,
            random.byte(),
            random.byte(),
            random.byte(),
            0,
            0,
            5,
            20,
        ];
        // An IP header behind an EtherType.
        let mut header = Vec::new();
        if draft.is_v6 {
            v6(random, &quoted, 20, &mut header);
        } else {
            v4(random, &quoted, 20, &mut header);
        }
        bytes.extend_from_slice(&header[2..]);
        bytes.extend(quoted.source.1.to_be_bytes());
        bytes.extend(quoted.destination.1.to_be_bytes());
        for (byte, new) in icmp.iter_mut().zip(bytes) {
            *byte = new;
        }
    }

    fn damage(&self, random: &mut Random, frame: &mut Vec<u8>) {
        let headers = frame.len().min(100);
        match random.below(12) {
            0..3 => frame.truncate(ETHERNET + random.below(headers.max(ETHERNET) - ETHERNET + 1)),
            3 => frame.truncate(ETHERNET + random.below(frame.len().max(ETHERNET) - ETHERNET + 1)),
            4..7 => {
                let at = random.below(headers);
                frame[at] ^= 1 << random.below(8);
            }
            7..9 => {
                let at = random.below(headers);
                frame[at] = random.one_of([0, 0xff, 0x45, 0x60, 6, 17, 44, 0x46, 0x4f, 0x81]);
            }
            // Words that may hold a header's lengths.
            9 | 10 => {
                let at = 14 + random.below(14);
                let word = match random.percent(50) {
                    true => random.half(),
                    false => u16::try_from(random.below(90)).unwrap_or(0),
                };
                for (byte, new) in frame.iter_mut().skip(at).zip(word.to_be_bytes()) {
                    *byte = new;
                }
            }
            _ => {
                let at = random.below(headers.min(self.earlier.len()) + 1);
                frame.truncate(at);
                frame.extend_from_slice(&self.earlier[at.min(self.earlier.len())..]);
            }
        }
        if frame.is_empty() {
            frame.push(0);
        }
    }
}

/// Sets sequence number and control bits of a possibly truncated TCP header, mostly to values that
/// change a verdict.
fn control(random: &mut Random, header: &mut [u8]) {
    let sequence = match random.percent(30) {
        true => 0,
        false => random.wide(),
    };
    let bits = match random.below(10) {
        0..3 => Tcp::ACK,
        3 => Tcp::SYN,
        4 => Tcp::SYN | Tcp::ACK,
        5 => Tcp::RST,
        6 | 7 => Tcp::RST | Tcp::ACK,
        _ => random.byte(),
    };
    for (byte, new) in header.iter_mut().skip(4).zip(sequence.to_be_bytes()) {
        *byte = new;
    }
    if let Some(byte) = header.get_mut(13) {
        *byte = bits;
    }
}

/// The low `N` bytes of a number in network byte order.
fn low<const N: usize>(number: u128) -> [u8; N] {
    let bytes = number.to_be_bytes();
    std::array::from_fn(|at| bytes[16 - N + at])
}

fn be16(number: usize) -> [u8; 2] {
    low(number as u128)
}

fn v4(random: &mut Random, draft: &Draft, payload: usize, frame: &mut Vec<u8>) {
    frame.extend([0x08, 0x00]);
    let start = frame.len();
    let has_options = random.percent(10);
    let options = if has_options { random.below(11) } else { 0 };
    let header = 20 + options * 4;
    let [_, version_and_length] = be16(0x40 + header / 4);
    frame.extend([version_and_length, draft.tos]);
    frame.extend(be16(header + payload));
    frame.extend(random.half().to_be_bytes());
    // DF, none, the reserved bit, MF, some offset, or random.
    let flags = match random.below(100) {
        0..50 => 0x4000,
        50..92 => 0,
        92 => 0x8000,
        93..95 => 0x2000,
        95..97 => 1 << random.below(13),
        _ => random.half(),
    };
    frame.extend(flags.to_be_bytes());
    frame.extend([64, draft.protocol, 0, 0]);
    frame.extend(low::<4>(draft.source.0));
    frame.extend(low::<4>(draft.destination.0));
    frame.resize(start + header, random.byte());
    let sum = match random.below(10) {
        0 => random.one_of([0, u16::MAX, 1, 0xfffe]).to_be_bytes(),
        1 => random.half().to_be_bytes(),
        2 => barely_carried(random, draft, version_and_length),
        _ => internet_checksum(&frame[start..]).to_be_bytes(),
    };
    frame[start + 10..start + 12].copy_from_slice(&sum);
}

/// A checksum whose update, for setting or clearing the mark, has a sum of three words at or next
/// to all ones, where it carries (RFC 1624 section 4).
fn barely_carried(random: &mut Random, draft: &Draft, first: u8) -> [u8; 2] {
    let dscp = if random.percent(50) { draft.mark } else { 0 };
    let old = u16::from_ne_bytes([first, draft.tos]);
    let new = u16::from_ne_bytes([first, dscp | draft.tos & 0b11]);
    let sum = random.one_of([u16::MAX, 0xfffe, 0xfffd, 0, 1]);
    let inverted = sum.wrapping_sub(!old).wrapping_sub(new);
    (!inverted).to_ne_bytes()
}

fn v6(random: &mut Random, draft: &Draft, payload: usize, frame: &mut Vec<u8>) {
    const KINDS: [u8; 4] = [0, 43, 44, 60];
    frame.extend([0x86, 0xdd]);
    let is_extended = random.percent(8);
    let extensions = if is_extended { 1 + random.below(10) } else { 0 };
    let mut kind = match extensions {
        0 => draft.protocol,
        _ => random.one_of(KINDS),
    };
    frame.extend([0x60 | draft.tos >> 4, draft.tos << 4 | random.byte() >> 4]);
    frame.extend(random.half().to_be_bytes());
    frame.extend(be16(extensions * 8 + payload));
    frame.extend([kind, 64]);
    frame.extend(low::<16>(draft.source.0));
    frame.extend(low::<16>(draft.destination.0));
    for left in (0..extensions).rev() {
        let next = match left {
            0 => draft.protocol,
            _ => random.one_of(KINDS),
        };
        match kind {
            44 => frame.extend([next, 0, random.byte() & 1, random.byte() & 0xf9]),
            _ => frame.extend([next, 0, 1, 4]),
        }
        frame.extend(random.half().to_be_bytes());
        frame.extend(random.half().to_be_bytes());
        kind = next;
    }
}
