"""Input frames of the box and the expected output frames, built without exitmark's code."""

import dataclasses
import re
import socket
import struct

HOST, GATEWAY, ROUTER = (bytes.fromhex(f"02005e10000{n}") for n in (1, 2, 3))
# The box's NICs, by wire.
BOX = {wire: bytes.fromhex(f"02005e20000{n}") for n, wire in enumerate("hui", 1)}
BROADCAST = b"\xff" * 6

HOST_4, HOST_6 = "192.0.2.10", "2001:db8:1::10"
WEB_4, WEB_6 = "198.51.100.7", "2001:db8:2::7"
RELAY_4, RELAY_6 = "198.51.100.99", "2001:db8:2::99"
RELAY_PORT = 9001
RESOLVER = "198.51.100.53"
EXEMPT_4 = "203.0.113.77"
STRANGER_4 = "198.51.100.200"
ROUTER_4, BOX_4 = "203.0.113.1", "203.0.113.2"

MARK = 0x28
TAG, OUTER_TAG = (0x8100, 0x2007), (0x88A8, 0x4009)
TCP, UDP, ICMP = 6, 17, 1
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806

# The configuration of the box for these frames.
CONFIGURATION = f"""\
engine = "{{engine}}"
mode = "{{mode}}"
[ports]
host = "h0"
uplink = "u0"
incoming = "i0"
[host]
addresses = ["{HOST_4}", "{HOST_6}"]
listeners = [22]
resolvers = ["{RESOLVER}"]
exempt = ["203.0.113.0/24"]
[mark]
dscp = "af11"
[steer]
next_hop = "{ROUTER_4}"
[relays]
consensus = []
extra = ["{RELAY_4}:{RELAY_PORT}", "[{RELAY_6}]:{RELAY_PORT}"]
state = "/tmp/relays.state"
[datapath]
sample = 1
zero_copy = "{{zero_copy}}"
[pin]
directory = "/sys/fs/bpf/exitmark"
[control]
socket = "/tmp/control.sock"
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A frame that enters by a wire, and the expected wire and frame; wire None: no wire."""

    name: str
    enters: str
    before: bytes
    leaves: str | None
    after: bytes
    # A slow-path frame; without a process it is forwarded unchanged.
    slow: bool = False


def number_of(frame):
    """Returns the number in a frame of these cases; None for other frames."""
    found = re.search(rb"<frame (\d{9})>", frame)
    return int(found[1]) if found else None


def checksum(data):
    """Returns the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(destination, source, kind, payload, tags=()):
    """Builds a frame of at least 60 bytes."""
    header = destination + source + b"".join(struct.pack("!HH", *tag) for tag in tags)
    return (header + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def ipv4(source, destination, protocol, payload, tos=0, **fields):
    """Builds an IPv4 packet. Fields: options, identification, fragment (flags, offset), total."""
    options = fields.get("options", b"")
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        tos,
        fields.get("total", 4 * words + len(payload)),
        fields.get("identification", 0),
        fields.get("fragment", 0),
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6(source, destination, protocol, payload, tos=0):
    """Builds an IPv6 packet with a flow label."""
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in (source, destination))
    first = 6 << 28 | tos << 20 | 0xABCDE
    return struct.pack("!IHBB", first, len(payload), protocol, 64) + addresses + payload


def tcp(source, destination, payload):
    """Builds a TCP segment; its checksum is not computed, and must not change."""
    header = struct.pack("!HHIIBBHHH", source, destination, 1, 2, 0x50, 0x18, 8192, 0xBEEF, 0)
    return header + payload


def udp(source, destination, payload):
    """Builds a UDP datagram, likewise."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0xBEEF) + payload


def arp(operation, sender, target, payload=b""):
    """Builds an ARP packet from pairs of MAC address and IPv4 address."""
    (sender_mac, sender_ip), (target_mac, target_ip) = sender, target
    fixed = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return (
        fixed
        + sender_mac
        + socket.inet_aton(sender_ip)
        + target_mac
        + socket.inet_aton(target_ip)
        + payload
    )


def answer_arp(frame):
    """Returns the router's answer to the box's ARP request; None for other frames."""
    asks = arp(1, (BOX["i"], BOX_4), (b"\0" * 6, ROUTER_4))
    if frame[12:14] == struct.pack("!H", ARP) and frame[14:24] == asks[:10]:
        if frame[28:32] == asks[14:18] and frame[38:42] == asks[24:28]:
            reply = arp(2, (ROUTER, ROUTER_4), (BOX["i"], BOX_4))
            return ethernet(BOX["i"], ROUTER, ARP, reply)
    return None


class Builder:
    """Builds cases, each with a unique number in its payload."""

    def __init__(self, first=1, mtu=1500):
        self.mtu = mtu
        self._next = first

    def _label(self, size=0):
        label = b"<frame %09d>" % self._next
        self._next += 1
        return label.ljust(size, b".")

    def up(self, name, make, tos=(0, 0), slow=False, tags=(), size=0):
        """From the host to the uplink. `make` gets the payload and the ToS byte."""
        payload = self._label(size)
        before, after = (ethernet(GATEWAY, HOST, *make(payload, t), tags) for t in tos)
        return Case(name, "h", before, "u", after, slow)

    def exit(self, name, make=None, tos=0, **options):
        """Like `up`, leaving with the mark and its ECN bits."""
        return self.up(name, make or self.to(WEB_4, 443), (tos, MARK | tos & 3), **options)

    def steer(self, name, make=None, tos=(0, 0), slow=False, tags=(), size=0):
        """From the host to the router on incoming."""
        payload = self._label(size)
        make = make or self.to(RELAY_4, RELAY_PORT)
        before = ethernet(GATEWAY, HOST, *make(payload, tos[0]), tags)
        after = ethernet(ROUTER, BOX["i"], *make(payload, tos[1]), tags)
        return Case(name, "h", before, "i", after, slow)

    def down(self, name, kind, make, destination=HOST, tags=(), size=0):
        """From the uplink to the host, unchanged."""
        frame = ethernet(destination, GATEWAY, kind, make(self._label(size)), tags)
        return Case(name, "u", frame, "h", frame)

    def arrive(self, name, kind, make, delivered=True, destination=BOX["i"]):
        """From the router on incoming: to the host, or to the box's own stack."""
        payload = make(self._label())
        before = ethernet(destination, ROUTER, kind, payload)
        if not delivered:
            return Case(name, "i", before, None, b"")
        return Case(name, "i", before, "h", ethernet(HOST, ROUTER, kind, payload))

    @staticmethod
    def to(destination, port, source=None, source_port=40000, protocol=TCP, **fields):
        """Builds a packet of the host to an address and port, for the methods above."""
        transport = tcp if protocol == TCP else udp

        def make(payload, tos):
            segment = transport(source_port, port, payload)
            if ":" in destination:
                return IPV6, ipv6(source or HOST_6, destination, protocol, segment, tos)
            packet = ipv4(source or HOST_4, destination, protocol, segment, tos, **fields)
            return IPV4, packet

        return make

    @staticmethod
    def extended(destination, port, kind, header):
        """Builds a TCP packet behind an IPv6 extension header, whose first byte is free."""

        def make(payload, tos):
            segment = bytes([TCP]) + header + tcp(40000, port, payload)
            return IPV6, ipv6(HOST_6, destination, kind, segment, tos)

        return make

    def all(self):
        """Yields a case for every distinction of the rule."""
        return [*self._fast(), *self._tagged(), *self._slow(), *self._inbound(), *self._arriving()]

    def _fast(self):
        to, full = self.to, self.mtu - 40
        cleared = (MARK | 1, 1)
        yield self.up("non_ip: ARP", lambda p, _: (
            ARP, arp(1, (HOST, HOST_4), (b"\0" * 6, "192.0.2.1"), p)))  # fmt: skip
        yield self.up("non_ip: LLDP", lambda p, _: (0x88CC, p))
        yield self.up("non_ip: experimental", lambda p, _: (0x88B5, p), size=500)
        yield self.up("malformed: beyond frame", to(WEB_4, 443, total=1400))
        yield self.up("malformed: version", lambda p, t: (
            IPV4, b"\x65" + ipv4(HOST_4, WEB_4, TCP, tcp(1, 2, p), t)[1:]))  # fmt: skip
        yield self.up("malformed: header length", lambda p, t: (
            IPV4, b"\x44" + ipv4(HOST_4, WEB_4, TCP, tcp(1, 2, p), t)[1:]))  # fmt: skip
        yield self.up("foreign", to(WEB_4, 443, source=STRANGER_4))
        yield self.up("foreign IPv6", to(WEB_6, 443, source="2001:db8:9::9"))
        yield self.up("foreign, mark cleared", to(WEB_4, 443, source=STRANGER_4), cleared)
        yield self.up("resolver TCP", to(RESOLVER, 853))
        yield self.up("resolver UDP", to(RESOLVER, 53, protocol=UDP))
        yield self.up("reply", to(WEB_4, 50000, source_port=22))
        yield self.up("reply IPv6", to(WEB_6, 50000, source_port=22))
        yield self.up("reply, mark cleared", to(WEB_4, 50000, source_port=22), cleared)
        yield self.up("exempt", to(EXEMPT_4, 443))
        yield self.up("host UDP", to(WEB_4, 4000, protocol=UDP))
        yield self.up("host ICMP", lambda p, t: (
            IPV4, ipv4(HOST_4, WEB_4, ICMP, b"\x08\0\0\0" + p, t)))  # fmt: skip
        yield self.exit("exit")
        yield self.exit("exit IPv6", to(WEB_6, 443))
        for ecn in (1, 2, 3):
            yield self.exit(f"exit, ECN {ecn}", tos=ecn)
        yield self.exit("exit IPv6, ECN 3", to(WEB_6, 443), tos=3)
        yield self.exit("exit, other DSCP", tos=0xB8)
        yield self.exit("exit, marked already", tos=MARK)
        yield self.exit("exit, relay's other port", to(RELAY_4, 443))
        yield self.exit("exit, IPv4 options", to(WEB_4, 80, options=b"\x94\x04\0\0"))
        yield self.exit("exit, full size", size=full)
        yield self.exit("exit IPv6, full size", to(WEB_6, 443), size=full - 20)
        yield self.steer("relay")
        # The next hop is an IPv4 address.
        yield self.up("relay IPv6", to(RELAY_6, RELAY_PORT))
        yield self.steer("relay, mark cleared", tos=cleared)
        yield self.steer("relay, full size", size=full)

    def _tagged(self):
        to, full, both = self.to, self.mtu - 40, (OUTER_TAG, TAG)
        yield self.exit("exit, tag", tags=(TAG,))
        yield self.exit("exit IPv6, QinQ", to(WEB_6, 443), tags=both)
        yield self.exit("exit, tag, full size", size=full, tags=(TAG,))
        yield self.exit("exit, three tags", tags=(OUTER_TAG, TAG, TAG), slow=True)
        relay = to(RELAY_4, RELAY_PORT)
        yield self.up("relay, tag: not routed", relay, tags=(TAG,))
        yield self.up("relay, QinQ: not routed", relay, tags=both)
        yield self.up("resolver, tag", to(RESOLVER, 53, protocol=UDP), tags=(TAG,))

    def _slow(self):
        number = self._next & 0xFFFF
        first = {"identification": number, "fragment": 0x2000}
        rest = {"identification": number, "fragment": 6}
        yield self.exit("exit, first fragment", self.to(WEB_4, 443, **first), size=28, slow=True)
        yield self.exit("exit, later fragment", lambda p, t: (
            IPV4, ipv4(HOST_4, WEB_4, TCP, p, t, **rest)), slow=True)  # fmt: skip
        for name, kind in (("hop-by-hop", 0), ("destination", 60)):
            header = b"\0\x01\x04\0\0\0\0"
            make = self.extended(WEB_6, 443, kind, header)
            yield self.exit(f"exit IPv6, {name} options", make, slow=True)
            make = self.extended(RELAY_6, RELAY_PORT, kind, header)
            yield self.up(f"relay IPv6, {name} options", make, slow=True)
        first, rest = (struct.pack("!BHI", 0, offset, number) for offset in (1, 48))
        make = self.extended(WEB_6, 443, 44, first)
        yield self.exit("exit IPv6, first fragment", make, size=28, slow=True)
        yield self.exit("exit IPv6, later fragment", lambda p, t: (
            IPV6, ipv6(HOST_6, WEB_6, 44, bytes([TCP]) + rest + p, t)), slow=True)  # fmt: skip

    def _inbound(self):
        def reply(payload):
            return ipv4(WEB_4, HOST_4, TCP, tcp(443, 40000, payload), MARK | 1)

        def reply_6(payload):
            return ipv6(WEB_6, HOST_6, TCP, tcp(443, 40000, payload), MARK)

        yield self.down("inbound", IPV4, reply)
        yield self.down("inbound IPv6", IPV6, reply_6)
        yield self.down("inbound, full size", IPV4, reply, size=self.mtu - 40)
        yield self.down("inbound, tag", IPV4, reply, tags=(TAG,))
        yield self.down("inbound, QinQ", IPV6, reply_6, tags=(OUTER_TAG, TAG))
        yield self.down("inbound, later fragment", IPV4, lambda p: ipv4(
            WEB_4, HOST_4, TCP, p, identification=7, fragment=9))  # fmt: skip
        yield self.down("inbound ARP", ARP, lambda p: arp(
            1, (GATEWAY, "192.0.2.1"), (b"\0" * 6, HOST_4), p), BROADCAST)  # fmt: skip
        yield self.down("inbound multicast", 0x88CC, lambda p: p, bytes.fromhex("0180c200000e"))

    def _arriving(self):
        yield self.arrive("incoming", IPV4, from_relay)
        yield self.arrive("incoming IPv6", IPV6, lambda p: ipv6(
            RELAY_6, HOST_6, TCP, tcp(RELAY_PORT, 40000, p)))  # fmt: skip
        yield self.arrive("incoming, not the host's", IPV4, lambda p: ipv4(
            RELAY_4, "203.0.113.99", TCP, tcp(RELAY_PORT, 40000, p)), False)  # fmt: skip
        yield self.arrive("incoming, another MAC", IPV4, from_relay, False, HOST)
        yield self.arrive("incoming broadcast", 0x88B5, lambda p: p, False, BROADCAST)

    def named(self, *names):
        """Returns only the cases with these names."""
        return [case for case in self.all() if case.name in names]

    def stream(self, kind):
        """Returns a case of a kind of the load: "exit", "relay", "inbound" or "incoming"."""
        if kind == "exit":
            return self.exit(kind)
        if kind == "relay":
            return self.steer(kind)
        if kind == "incoming":
            return self.arrive(kind, IPV4, from_relay)
        return self.down(kind, IPV4, lambda p: ipv4(WEB_4, HOST_4, TCP, tcp(443, 40000, p)))


def from_relay(payload):
    """Builds a packet of the relay to the host."""
    return ipv4(RELAY_4, HOST_4, TCP, tcp(RELAY_PORT, 40000, payload))


def without_user_space(case):
    """Returns the case without a process: a slow-path frame is forwarded unchanged."""
    if not case.slow:
        return case
    return dataclasses.replace(case, leaves="u", after=case.before)


def unsteered(case):
    """Returns the case while steering is not possible."""
    if case.leaves != "i":
        return case
    return dataclasses.replace(case, leaves="u", after=case.before)


def audited(case):
    """Returns the case in audit mode: the frame is forwarded unchanged, by the wire."""
    if case.enters != "h":
        return case
    return dataclasses.replace(case, leaves="u", after=case.before)
