//! Frames in which every field that a sender can derive from an address is derived from it.

use std::net::{Ipv4Addr, Ipv6Addr};

const HOST4: [u8; 4] = [192, 0, 2, 10];
const ROUTER4: [u8; 4] = [203, 0, 113, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IP4: [u8; 2] = [0x08, 0x00];
const IP6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];

fn host6() -> [u8; 16] {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10).octets()
}

/// The side of the box on which a frame is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

use Direction::{Inbound, Outbound};

#[derive(Clone, Copy)]
pub(crate) struct Forger {
    address: u16,
    payload: u16,
}

pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) direction: Direction,
    /// TCP or UDP, whose payload can be captured.
    pub(crate) is_stream: bool,
    /// The payload itself contains the address.
    pub(crate) has_revealing_payload: bool,
    pub(crate) build: fn(Forger) -> Vec<u8>,
}

impl Forger {
    /// Sets the low 16 bits of the other side's address.
    pub(crate) fn with(address: u16) -> Self {
        let payload = 0x5858;
        Self { address, payload }
    }

    pub(crate) fn saying(self, payload: u16) -> Self {
        Self { payload, ..self }
    }

    fn v4(self) -> [u8; 4] {
        let [a, b] = self.address.to_be_bytes();
        Ipv4Addr::new(198, 51, a, b).octets()
    }

    fn v6(self) -> [u8; 16] {
        Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0x5054, 0xff, 0xfe12, self.address).octets()
    }

    /// Pseudo-random bits derived from the address, different for each `salt`.
    fn bits(self, salt: u64) -> u64 {
        let seed = u64::from(self.address) << 8 | salt;
        (seed ^ seed >> 7).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn half(self, salt: u64) -> [u8; 2] {
        self.bits(salt).to_be_bytes()[..2].try_into().unwrap()
    }

    fn word(self, salt: u64) -> [u8; 4] {
        self.bits(salt).to_be_bytes()[..4].try_into().unwrap()
    }

    fn hops(self, is_from_host: bool) -> u8 {
        match is_from_host {
            true => 64,
            false => self.half(3)[0] % 32 + 32,
        }
    }

    fn ipv4(
        self,
        source: [u8; 4],
        to: [u8; 4],
        protocol: u8,
        options: &[u8],
        data: &[u8],
    ) -> Vec<u8> {
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let bytes = u16::try_from(20 + options.len() + data.len()).unwrap();
        let mut header = vec![0x40 | words, 0];
        header.extend(bytes.to_be_bytes());
        header.extend(self.half(1));
        header.extend([0, 0, self.hops(source == HOST4), protocol, 0, 0]);
        header.extend([source, to].concat());
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        [&header, data].concat()
    }

    fn ipv6(self, source: [u8; 16], to: [u8; 16], next: u8, data: &[u8]) -> Vec<u8> {
        let label = self.word(2);
        let mut header = vec![0x60, label[0] & 0x0f, label[1], label[2]];
        header.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        header.extend([next, self.hops(source == host6())]);
        header.extend([source, to].concat());
        [&header, data].concat()
    }

    /// A TCP segment without its checksum.
    fn segment(self, direction: Direction, payload: &[u8]) -> Vec<u8> {
        let (ports, mss, scale) = match direction {
            Outbound => ([[0x9c, 0x40], [1, 0xbb]], [5, 0xb4], 7),
            Inbound => ([[1, 0xbb], [0x9c, 0x40]], self.half(4), self.half(15)[0]),
        };
        let mut bytes = ports.concat();
        bytes.extend([self.word(5), self.word(6)].concat());
        bytes.extend([0xf0, 0x12]);
        bytes.extend([self.half(7), [0, 0], self.half(8)].concat());
        bytes.extend([[2, 4], mss, [4, 2], [8, 10]].concat());
        bytes.extend([self.word(9), self.word(10)].concat());
        bytes.extend([3, 3, scale, 1]);
        bytes.resize(60, 0);
        bytes.extend(payload);
        bytes
    }

    fn datagram(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let header = [ports[0], ports[1], length, 0].map(u16::to_be_bytes);
        [header.as_flattened(), payload].concat()
    }

    /// A packet between the host and the other side, with every checksum right.
    fn packet4(self, direction: Direction, protocol: u8, data: Vec<u8>) -> Vec<u8> {
        let (source, to) = match direction {
            Outbound => (HOST4, self.v4()),
            Inbound => (self.v4(), HOST4),
        };
        let data = summed(&source, &to, protocol, data);
        self.ipv4(source, to, protocol, &[], &data)
    }

    fn packet6(self, direction: Direction, protocol: u8, data: Vec<u8>) -> Vec<u8> {
        let (source, to) = match direction {
            Outbound => (host6(), self.v6()),
            Inbound => (self.v6(), host6()),
        };
        self.ipv6(source, to, protocol, &summed(&source, &to, protocol, data))
    }

    fn tcp4(self, direction: Direction) -> Vec<u8> {
        let segment = self.segment(direction, &self.payload.to_be_bytes());
        self.packet4(direction, TCP, segment)
    }

    fn tcp6(self, direction: Direction) -> Vec<u8> {
        let segment = self.segment(direction, &self.payload.to_be_bytes());
        self.packet6(direction, TCP, segment)
    }

    fn udp(self, direction: Direction) -> Vec<u8> {
        let ports = match direction {
            Outbound => [40_000, 443],
            Inbound => [443, 40_000],
        };
        Self::datagram(ports, &self.payload.to_be_bytes())
    }

    /// A packet of the host to the other side, in a frame to the router.
    fn out4(self, protocol: u8, data: Vec<u8>) -> Vec<u8> {
        out(IP4, &self.packet4(Outbound, protocol, data))
    }

    fn out6(self, protocol: u8, data: Vec<u8>) -> Vec<u8> {
        out(IP6, &self.packet6(Outbound, protocol, data))
    }

    /// A packet of the other side to the host, in a frame of the router.
    fn into4(self, protocol: u8, data: Vec<u8>) -> Vec<u8> {
        into(IP4, &self.packet4(Inbound, protocol, data))
    }

    fn into6(self, protocol: u8, data: Vec<u8>) -> Vec<u8> {
        into(IP6, &self.packet6(Inbound, protocol, data))
    }

    /// A group with the same 16 bits, of all nodes that solicit them.
    fn solicited(self) -> [u8; 16] {
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, self.address).octets()
    }

    /// A group of IPv4 with the same 16 bits.
    fn group(self) -> [u8; 4] {
        let [_, _, c, d] = self.v4();
        [239, 51, c, d]
    }

    /// An ICMP error of this type with a packet in it.
    fn error(kind: u8, quoted: &[u8]) -> Vec<u8> {
        [&[kind, 3, 0, 0, 0, 0, 0, 0], quoted].concat()
    }

    fn arp(self, operation: u8, sender: ([u8; 6], [u8; 4]), target: [u8; 4]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &sender.0, &sender.1, &[0; 6], &target].concat()
    }

    /// A neighbour's MAC address that matches its IPv6 address: EUI-64 (RFC 4291, appendix A).
    fn mac_of_v6(self) -> [u8; 6] {
        let [a, b] = self.address.to_be_bytes();
        [0x52, 0x54, 0, 0x12, a, b]
    }

    /// A neighbour's MAC address derived from its IPv4 address, as in container networks.
    fn mac_of_v4(self) -> [u8; 6] {
        let [a, b, c, d] = self.v4();
        [2, 0x42, a, b, c, d]
    }

    /// A group's MAC address has 23 bits of its IPv4 address (RFC 1112 section 6.4).
    fn group_mac(self) -> [u8; 6] {
        let [_, _, c, d] = self.v4();
        [1, 0, 0x5e, 51, c & 0x7f, d]
    }
}

/// Sets the checksum of a transport header (RFC 9293, section 3.1; RFC 768; RFC 792; RFC 4443).
fn summed(source: &[u8], to: &[u8], protocol: u8, mut data: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let pseudo = [source, to, &length, &[0, 0, 0, protocol]].concat();
    let (at, pseudo) = match protocol {
        TCP => (16, pseudo),
        UDP => (6, pseudo),
        ICMPV6 => (2, pseudo),
        ICMP => (2, Vec::new()),
        _ => return data,
    };
    let sum = checksum(&[&pseudo, &data[..]].concat());
    data[at..at + 2].copy_from_slice(&sum);
    data
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u64::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: &[u8], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, kind, payload].concat()
}

fn out(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    ethernet(ROUTER_MAC, HOST_MAC, &kind, payload)
}

fn into(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, ROUTER_MAC, &kind, payload)
}

const fn kind(name: &'static str, direction: Direction, build: fn(Forger) -> Vec<u8>) -> Kind {
    Kind {
        name,
        direction,
        is_stream: false,
        has_revealing_payload: false,
        build,
    }
}

const fn stream(name: &'static str, direction: Direction, build: fn(Forger) -> Vec<u8>) -> Kind {
    Kind {
        is_stream: true,
        ..kind(name, direction, build)
    }
}

const fn revealing(name: &'static str, direction: Direction, build: fn(Forger) -> Vec<u8>) -> Kind {
    Kind {
        has_revealing_payload: true,
        ..kind(name, direction, build)
    }
}

pub(crate) fn frames() -> Vec<Kind> {
    let all = [
        streams(),
        errors_and_tunnels(),
        of_the_link(),
        rare_headers(),
    ];
    all.into_iter().flatten().collect()
}

#[rustfmt::skip]
fn streams() -> Vec<Kind> {
    vec![
        stream("TCP over IPv4 out", Outbound, |f| out(IP4, &f.tcp4(Outbound))),
        stream("TCP over IPv4 in", Inbound, |f| into(IP4, &f.tcp4(Inbound))),
        stream("TCP over IPv6 out", Outbound, |f| out(IP6, &f.tcp6(Outbound))),
        stream("TCP over IPv6 in", Inbound, |f| into(IP6, &f.tcp6(Inbound))),
        stream("UDP over IPv4 out", Outbound, |f| f.out4(UDP, f.udp(Outbound))),
        stream("UDP over IPv4 in", Inbound, |f| f.into4(UDP, f.udp(Inbound))),
        stream("UDP over IPv6 out", Outbound, |f| f.out6(UDP, f.udp(Outbound))),
        stream("UDP over IPv6 in", Inbound, |f| f.into6(UDP, f.udp(Inbound))),
        stream("a tag", Outbound, |f| {
            let kind = [0x81, 0, 0xb0, 0x64, 8, 0];
            ethernet(ROUTER_MAC, HOST_MAC, &kind, &f.tcp4(Outbound))
        }),
        stream("two tags", Inbound, |f| {
            let kind = [0x88, 0xa8, 0x70, 7, 0x81, 0, 0xb0, 0x64, 0x86, 0xdd];
            ethernet(HOST_MAC, ROUTER_MAC, &kind, &f.tcp6(Inbound))
        }),
        revealing("a name server's answer", Inbound, |f| {
            let answer = [&[0x12, 0x34, 0x81, 0x80][..], &[0; 8], &f.v4()].concat();
            let data = Forger::datagram([53, 40_000], &answer);
            let data = summed(&[9, 9, 9, 9], &HOST4, UDP, data);
            into(IP4, &f.ipv4([9, 9, 9, 9], HOST4, UDP, &[], &data))
        }),
        revealing("a packet in UDP", Outbound, |f| {
            f.out4(UDP, Forger::datagram([4789, 4789], &f.tcp4(Outbound)[..40]))
        }),
        revealing("a request by name", Outbound, |f| {
            let text = format!("Host: {}", Ipv4Addr::from(f.v4()));
            // Fixed width, because the length of a name would reveal it too.
            let text = format!("{text:24}");
            f.out4(TCP, f.segment(Outbound, text.as_bytes()))
        }),
    ]
}

#[rustfmt::skip]
fn errors_and_tunnels() -> Vec<Kind> {
    vec![
        kind("an ICMP error of the host's", Outbound, |f| {
            f.out4(ICMP, Forger::error(3, &f.tcp4(Inbound)[..28]))
        }),
        kind("an ICMP error of a router's", Inbound, |f| {
            let quoted = &f.tcp4(Outbound)[..28];
            let data = summed(&ROUTER4, &HOST4, ICMP, Forger::error(11, quoted));
            into(IP4, &f.ipv4(ROUTER4, HOST4, ICMP, &[], &data))
        }),
        kind("an ICMPv6 error of the host's", Outbound, |f| {
            f.out6(ICMPV6, Forger::error(1, &f.tcp6(Inbound)[..60]))
        }),
        kind("an ICMPv6 error of the other side's", Inbound, |f| {
            f.into6(ICMPV6, Forger::error(3, &f.tcp6(Outbound)[..60]))
        }),
        kind("an echo request", Outbound, |f| {
            f.out4(ICMP, [&[8, 0, 0, 0][..], &f.word(20)].concat())
        }),
        kind("an echo request over IPv6", Inbound, |f| {
            f.into6(ICMPV6, [&[128, 0, 0, 0][..], &f.word(20)].concat())
        }),
        kind("IPv4 in IPv4", Outbound, |f| f.out4(4, f.tcp4(Outbound))),
        kind("IPv6 in IPv4", Outbound, |f| f.out4(41, f.tcp6(Outbound))),
        kind("IPv4 in IPv6", Inbound, |f| f.into6(4, f.tcp4(Inbound))),
        kind("GRE", Outbound, |f| {
            let head = [&[0xb0, 0, 8, 0][..], &f.word(21), &f.word(22)].concat();
            f.out4(47, [head, f.tcp4(Outbound)].concat())
        }),
        kind("ESP", Outbound, |f| f.out4(50, [f.word(23), f.word(24)].concat())),
        kind("AH", Inbound, |f| {
            let head = [&[6, 4, 0, 0][..], &f.word(25), &f.word(26)].concat();
            f.into6(51, [head, f.tcp6(Inbound)].concat())
        }),
        kind("SCTP", Outbound, |f| {
            f.out4(132, [&[0x9c, 0x40, 1, 0xbb][..], &f.word(27), &f.word(28)].concat())
        }),
    ]
}

#[rustfmt::skip]
fn of_the_link() -> Vec<Kind> {
    vec![
        kind("an ARP request", Outbound, |f| {
            let asks = f.arp(1, (HOST_MAC, HOST4), f.v4());
            ethernet([0xff; 6], HOST_MAC, &ARP, &asks)
        }),
        kind("an ARP reply", Inbound, |f| {
            let says = f.arp(2, (f.mac_of_v4(), f.v4()), HOST4);
            ethernet(HOST_MAC, f.mac_of_v4(), &ARP, &says)
        }),
        kind("a neighbour solicitation", Outbound, |f| {
            let [a, b] = f.address.to_be_bytes();
            let group = f.solicited();
            let data = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &f.v6(), &[1, 1], &HOST_MAC].concat();
            let data = summed(&host6(), &group, ICMPV6, data);
            let packet = f.ipv6(host6(), group, ICMPV6, &data);
            ethernet([0x33, 0x33, 0xff, 0x12, a, b], HOST_MAC, &IP6, &packet)
        }),
        kind("a neighbour advertisement", Inbound, |f| {
            let head = [136, 0, 0, 0, 0, 0, 0, 0];
            let data = [&head[..], &f.v6(), &[2, 1], &f.mac_of_v6()].concat();
            ethernet(HOST_MAC, f.mac_of_v6(), &IP6, &f.packet6(Inbound, ICMPV6, data))
        }),
        kind("a multicast listener's report", Outbound, |f| {
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).octets();
            let data = [&[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0][..], &f.solicited()].concat();
            let data = summed(&host6(), &all, ICMPV6, data);
            let packet = f.ipv6(host6(), all, ICMPV6, &data);
            ethernet([0x33, 0x33, 0, 0, 0, 0x16], HOST_MAC, &IP6, &packet)
        }),
        stream("to a neighbour, IPv6", Outbound, |f| {
            ethernet(f.mac_of_v6(), HOST_MAC, &IP6, &f.tcp6(Outbound))
        }),
        stream("from a neighbour, IPv6", Inbound, |f| {
            ethernet(HOST_MAC, f.mac_of_v6(), &IP6, &f.tcp6(Inbound))
        }),
        stream("to a neighbour, IPv4", Outbound, |f| {
            ethernet(f.mac_of_v4(), HOST_MAC, &IP4, &f.tcp4(Outbound))
        }),
        stream("to a group", Outbound, |f| {
            let data = summed(&HOST4, &f.group(), UDP, f.udp(Outbound));
            let packet = f.ipv4(HOST4, f.group(), UDP, &[], &data);
            ethernet(f.group_mac(), HOST_MAC, &IP4, &packet)
        }),
        kind("a group's query", Inbound, |f| {
            let data = [&[17, 0, 0, 0][..], &f.group()].concat();
            let data = summed(&ROUTER4, &f.group(), ICMP, data);
            let packet = f.ipv4(ROUTER4, f.group(), 2, &[0x94, 4, 0, 0], &data);
            ethernet(f.group_mac(), ROUTER_MAC, &IP4, &packet)
        }),
        kind("LLDP", Inbound, |f| {
            ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], ROUTER_MAC, &[0x88, 0xcc], &f.v4())
        }),
        kind("PPPoE", Outbound, |f| {
            let head = [0x11, 0, 0, 1, 0, 62, 0, 0x21];
            out([0x88, 0x64], &[&head[..], &f.tcp4(Outbound)].concat())
        }),
        kind("MPLS", Outbound, |f| {
            out([0x88, 0x47], &[&[0, 1, 1, 64][..], &f.tcp4(Outbound)].concat())
        }),
        kind("802.3", Outbound, |f| {
            let head = [0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
            out([0, 70], &[&head[..], &f.tcp4(Outbound)].concat())
        }),
        kind("five tags", Outbound, |f| {
            let mut kind = [0x81, 0, 0, 1].repeat(5);
            kind.extend(IP4);
            ethernet(ROUTER_MAC, HOST_MAC, &kind, &f.tcp4(Outbound))
        }),
    ]
}

#[rustfmt::skip]
fn rare_headers() -> Vec<Kind> {
    vec![
        stream("a source route", Outbound, |f| {
            let options = [&[0x83, 11, 4][..], &f.v4(), &f.v4(), &[0]].concat();
            let data = summed(&HOST4, &f.v4(), TCP, f.segment(Outbound, b"XX"));
            out(IP4, &f.ipv4(HOST4, f.v4(), TCP, &options, &data))
        }),
        stream("a routing header", Outbound, |f| {
            let head = [&[TCP, 2, 2, 1, 0, 0, 0, 0][..], &f.v6()].concat();
            let data = summed(&host6(), &f.v6(), TCP, f.segment(Outbound, b"XX"));
            out(IP6, &f.ipv6(host6(), f.v6(), 43, &[head, data].concat()))
        }),
        stream("options in both kinds of headers", Inbound, |f| {
            let hops = [&[60, 0, 5, 4][..], &f.word(30)].concat();
            let home = [&[TCP, 2, 0xc9, 16][..], &f.v6(), &[1, 2], &f.half(31)].concat();
            let data = summed(&f.v6(), &host6(), TCP, f.segment(Inbound, b"XX"));
            into(IP6, &f.ipv6(f.v6(), host6(), 0, &[hops, home, data].concat()))
        }),
        stream("a first fragment", Outbound, |f| {
            let head = [&[TCP, 0, 0, 1][..], &f.word(32)].concat();
            let data = summed(&host6(), &f.v6(), TCP, f.segment(Outbound, b"XXXX"));
            out(IP6, &f.ipv6(host6(), f.v6(), 44, &[head, data].concat()))
        }),
        kind("a later fragment", Outbound, |f| {
            let mut packet = f.packet4(Outbound, TCP, f.tcp4(Outbound));
            packet[7] = 9;
            packet[10..12].fill(0);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum);
            out(IP4, &packet)
        }),
        kind("multipath TCP, and options that are no list", Outbound, |f| {
            let mut segment = f.segment(Outbound, b"");
            segment[20..24].copy_from_slice(&[30, 8, 0x30, 1]);
            segment[24..28].copy_from_slice(&f.v4());
            segment[28..30].copy_from_slice(&[99, 200]);
            f.out4(TCP, segment)
        }),
        kind("fast open's cookie", Outbound, |f| {
            let mut segment = f.segment(Outbound, b"");
            segment[40..42].copy_from_slice(&[34, 10]);
            segment[42..50].copy_from_slice(&[f.word(11), f.word(12)].concat());
            f.out4(TCP, segment)
        }),
        kind("selective acknowledgements", Inbound, |f| {
            let mut segment = f.segment(Inbound, b"");
            segment[20..22].copy_from_slice(&[5, 10]);
            segment[22..30].copy_from_slice(&[f.word(13), f.word(14)].concat());
            segment[30..32].copy_from_slice(&[8, 10]);
            segment[40..].fill(0);
            f.into4(TCP, segment)
        }),
        kind("a signed segment", Outbound, |f| {
            let mut segment = f.segment(Outbound, b"");
            segment[20..22].copy_from_slice(&[19, 18]);
            f.out4(TCP, segment)
        }),
        stream("padding", Outbound, |f| [f.out4(UDP, f.udp(Outbound)), f.v4().to_vec()].concat()),
        kind("a length that is wrong", Outbound, |f| {
            let mut packet = f.tcp4(Outbound);
            packet[2..4].fill(0);
            out(IP4, &packet)
        }),
        kind("another version", Outbound, |f| out(IP6, &f.tcp4(Outbound))),
        stream("between two others, out", Outbound, |f| {
            let data = summed(&f.v4(), &ROUTER4, TCP, f.segment(Inbound, b"XX"));
            let packet = f.ipv4(f.v4(), ROUTER4, TCP, &[], &data);
            ethernet(ROUTER_MAC, f.mac_of_v4(), &IP4, &packet)
        }),
        stream("between two others, in", Inbound, |f| {
            let data = summed(&ROUTER4, &f.v4(), TCP, f.segment(Inbound, b"XX"));
            let packet = f.ipv4(ROUTER4, f.v4(), TCP, &[], &data);
            ethernet(f.mac_of_v4(), ROUTER_MAC, &IP4, &packet)
        }),
    ]
}
