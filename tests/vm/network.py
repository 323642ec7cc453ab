"""The network around a guest with a box: three namespaces with taps, and TCP between them.

    tor host ── h0 │ enp1s0  box  enp2s0 │ u0 ── router, clearnet server, mirror m0 │ enp4s0
                                  enp3s0 │ i0 ── router, relays

The namespaces have unique names, and are removed by `close`. Requires root.
"""

import collections
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
import time

HOST, HOST6 = "192.0.2.10", "2001:db8:1::10"
ROUTER = "192.0.2.1"
SERVER, SERVER6 = "198.51.100.80", "2001:db8:ffff::80"
MARK = 0x28
# The length of an answer in bytes: more than one segment.
ANSWER = 4000
# Seconds after which a connection attempt or an answer counts as failed. A guest is emulated.
TIMEOUT = 60
# The most seconds to wait for frames in the observers' sockets.
DRAIN = 2
# The box's NICs in the order of their PCI slots: namespace, tap, MAC address in the guest.
TAPS = (
    ("host", "h0", "52:54:00:00:00:01"),
    ("up", "u0", "52:54:00:00:00:02"),
    ("in", "i0", "52:54:00:00:00:03"),
    ("up", "m0", "52:54:00:00:00:04"),
)

_TUNSETIFF = 0x400454CA
_TAP, _NO_PI, _VNET_HDR, _MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_libc = ctypes.CDLL(None, use_errno=True)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


class Network:
    """The namespaces, their servers and observers. `relays` are pairs of address and ORPort."""

    def __init__(self, relays, queues=2):
        self.relays, self.queues = relays, queues
        self.prefix = f"exitmark-vm-{os.getpid()}"
        self.counts = collections.Counter()
        self.taps = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads, self._sockets = [], []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stops the servers and removes the namespaces and everything in them."""
        self._closing.set()
        for thread in self._threads:
            thread.join(TIMEOUT + 5)
        for each in self._sockets:
            each.close()
        for tap in self.taps:
            for descriptor in tap:
                os.close(descriptor)
        self.taps = []
        for name in ("host", "up", "in"):
            if os.path.exists(f"/run/netns/{self.prefix}-{name}"):
                _run("ip", "netns", "del", f"{self.prefix}-{name}")

    def inside(self, name, action):
        """Runs `action` in a namespace; sockets that it opens stay there."""
        with open("/proc/thread-self/ns/net", "rb") as home:
            with open(f"/run/netns/{self.prefix}-{name}", "rb") as there:
                self._enter(there)
            try:
                return action()
            finally:
                self._enter(home)

    @staticmethod
    def _enter(namespace):
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    def _ip(self, name, *arguments):
        _run("ip", "-n", f"{self.prefix}-{name}", *arguments)

    def _exec(self, name, *command):
        _run("ip", "netns", "exec", f"{self.prefix}-{name}", *command)

    def _build(self):
        for name in ("host", "up", "in"):
            _run("ip", "netns", "add", f"{self.prefix}-{name}")
            self._exec(
                name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
                "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
                "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.accept_dad=0",
            )
            self._ip(name, "link", "set", "lo", "up")
        for name, tap, _ in TAPS:
            if tap == "m0":
                self._exec(name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            self.taps.append(self.inside(name, lambda tap=tap: self._tap(tap)))
            # Disable checksum offload.
            self._exec(name, "ethtool", "-K", tap, "tx", "off")
            self._ip(name, "link", "set", tap, "up")
        for name, address in (
            ("host", f"{HOST}/24 dev h0"), ("host", f"{HOST6}/64 dev h0 nodad"),
            ("up", f"{ROUTER}/24 dev u0"), ("up", "2001:db8:1::1/64 dev u0 nodad"),
            ("up", f"{SERVER}/32 dev lo"), ("up", f"{SERVER6}/128 dev lo"),
            ("in", "203.0.113.1/24 dev i0"),
        ):  # fmt: skip
            self._ip(name, "address", "add", *address.split())
        self._ip("host", "route", "add", "default", "via", ROUTER)
        self._ip("host", "-6", "route", "add", "default", "via", "2001:db8:1::1")
        # Relays answer by the clearnet, and are reached by it while steering is off.
        _run(
            "ip", "link", "add", "between", "netns", f"{self.prefix}-up",
            "type", "veth", "peer", "name", "between", "netns", f"{self.prefix}-in",
        )  # fmt: skip
        for name, address in (("up", "172.31.0.1/30"), ("in", "172.31.0.2/30")):
            self._ip(name, "address", "add", address, "dev", "between")
            self._ip(name, "link", "set", "between", "up")
        self._ip("in", "route", "add", "default", "via", "172.31.0.1")
        self._ip("up", "route", "add", "203.0.113.0/24", "via", "172.31.0.2")
        for address, _ in self.relays:
            self._ip("in", "address", "add", f"{address}/32", "dev", "lo")
            self._ip("up", "route", "add", f"{address}/32", "via", "172.31.0.2")
        for name, address, port in (
            ("up", SERVER, 80), ("up", SERVER6, 80), ("host", HOST, 9001),
            *(("in", *relay) for relay in self.relays),
        ):  # fmt: skip
            self._serve(name, address, port)
        mirror = self.inside("up", lambda: self._raw("m0"))
        self._observe("up", "u0", mirror)
        self._observe("in", "i0")

    def _tap(self, name):
        descriptors = []
        for _ in range(self.queues):
            tap = os.open("/dev/net/tun", os.O_RDWR)
            flags = _TAP | _NO_PI | _VNET_HDR | _MULTI_QUEUE
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            descriptors.append(tap)
        return descriptors

    def _thread(self, action, *arguments):
        thread = threading.Thread(target=action, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _raw(self, device):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.bind((device, 0))
        self._sockets.append(raw)
        return raw

    # TCP

    def _serve(self, name, address, port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = self.inside(name, lambda: socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        listener.settimeout(0.5)
        self._sockets.append(listener)
        self._thread(self._accept, listener)

    def _accept(self, listener):
        while not self._closing.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        connection.settimeout(0.5)
        with connection:
            while not self._closing.is_set():
                try:
                    asked = connection.recv(1)
                    if not asked:
                        return
                    connection.sendall(asked * ANSWER)
                except TimeoutError:
                    continue
                except OSError:
                    return

    def connect(self, name, address, port):
        """Opens a TCP connection from a namespace, from the Tor host's own address there."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = self.inside(name, lambda: socket.socket(family))
        connection.settimeout(TIMEOUT)
        try:
            connection.connect((address, port))
        except OSError as error:
            connection.close()
            raise RuntimeError(f"{name} to {address} port {port}: {error}") from error
        return connection

    @staticmethod
    def ask(connection):
        """Sends a request and receives the whole answer."""
        connection.sendall(b"x")
        missing = ANSWER
        while missing:
            part = connection.recv(missing)
            if not part:
                raise RuntimeError("the connection ended")
            missing -= len(part)

    def exchange(self):
        """Makes one connection of each kind: exit (IPv4, IPv6), relay, to the host's ORPort."""
        for name, address, port in (
            ("host", SERVER, 80), ("host", SERVER6, 80), ("host", *self.relays[0]),
            ("up", HOST, 9001),
        ):  # fmt: skip
            with self.connect(name, address, port) as connection:
                self.ask(connection)

    # Frames that leave the box

    def _observe(self, name, device, mirror=None):
        raw = self.inside(
            name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        )
        raw.bind((device, _ETH_P_ALL))
        raw.settimeout(0.5)
        self._sockets.append(raw)
        self._thread(self._count, raw, name, mirror)

    def _count(self, raw, name, mirror):
        while not self._closing.is_set():
            try:
                frame, (_, _, kind, _, _) = raw.recvfrom(65536)
            except TimeoutError:
                continue
            if mirror:
                try:
                    mirror.send(frame)
                except OSError:
                    pass
            if kind != socket.PACKET_OUTGOING:
                what = self._class(frame)
                with self._lock:
                    self.counts[f"{name} {what}"] += 1

    def _class(self, frame):
        kind = struct.unpack_from("!H", frame, 12)[0]
        if kind == 0x0800 and len(frame) >= 38:
            tos, protocol = frame[15], frame[23]
            source, to = (socket.inet_ntoa(frame[at : at + 4]) for at in (26, 30))
            ports = 14 + 4 * (frame[14] & 15)
        elif kind == 0x86DD and len(frame) >= 58:
            tos, protocol = struct.unpack_from("!H", frame, 14)[0] >> 4 & 0xFF, frame[20]
            source, to = (
                socket.inet_ntop(socket.AF_INET6, frame[at : at + 16]) for at in (22, 38)
            )
            ports = 54
        else:
            return "other"
        mark = "marked" if tos & 0xFC == MARK else "unmarked"
        if protocol != socket.IPPROTO_TCP or source not in (HOST, HOST6):
            return f"rest {mark}"
        source_port, port = struct.unpack_from("!HH", frame, ports)
        if (to, port) in self.relays:
            return f"relay {mark}"
        if to in (SERVER, SERVER6) and port == 80:
            return f"exit {mark}"
        return f"reply {mark}" if source_port == 9001 else f"rest {mark}"

    def observed(self, action):
        """Counts frames that left the box while `action` ran, by place, class and mark."""
        with self._lock:
            self.counts.clear()
        action()
        # Read frames that are still in the observers' sockets, for a limited time: other traffic
        # may never stop.
        before, deadline = None, time.monotonic() + DRAIN
        while time.monotonic() < deadline:
            with self._lock:
                now = dict(self.counts)
            if now == before:
                break
            before = now
            time.sleep(0.5)
        return now


class Pings:
    """Pings from the Tor host to its router through the box, twenty a second, each counted.

    A context manager; `lost`, `sent` and `silence`, the longest time in seconds without an answer,
    are valid afterwards. An answer may take `timeout` seconds.
    """

    INTERVAL = 0.05

    def __init__(self, network, timeout=TIMEOUT):
        self._timeout = timeout
        self._raw = network.inside(
            "host", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        self._missing, self._ended = set(), threading.Event()
        self._threads = []
        self.sent = 0
        self.silence = 0.0

    def __enter__(self):
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._raw.close()

    @property
    def lost(self):
        """The number of unanswered pings."""
        return len(self._missing)

    def _send(self):
        while not self._ended.wait(self.INTERVAL):
            header = struct.pack("!BBHHH", 8, 0, 0, 0x4558, self.sent & 0xFFFF)
            total = sum(struct.unpack("!4H", header))
            total = (total & 0xFFFF) + (total >> 16)
            packet = header[:2] + struct.pack("!H", ~total & 0xFFFF) + header[4:]
            self._missing.add(self.sent & 0xFFFF)
            self._raw.sendto(packet, (ROUTER, 0))
            self.sent += 1

    def _receive(self):
        deadline = None
        answered = time.monotonic()
        while True:
            if self._ended.is_set():
                deadline = deadline or time.monotonic() + self._timeout
                if not self._missing or time.monotonic() > deadline:
                    return
            if not select.select([self._raw], [], [], 0.2)[0]:
                continue
            packet = self._raw.recv(2048)
            at = 4 * (packet[0] & 15)
            kind, _, _, identifier, number = struct.unpack_from("!BBHHH", packet, at)
            if kind == 0 and identifier == 0x4558:
                self._missing.discard(number)
                now = time.monotonic()
                self.silence, answered = max(self.silence, now - answered), now


class Stream:
    """One exit connection of the Tor host that is never idle for long. A context manager.

    `requests` counts answered requests. Leaving the context fails if the connection has ended or
    an answer took longer than TIMEOUT.
    """

    def __init__(self, network):
        self._network, self._ended, self._error = network, threading.Event(), None
        self._connection = network.connect("host", SERVER, 80)
        self._thread = threading.Thread(target=self._ask)
        self.requests = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        self._ended.set()
        self._thread.join()
        self._connection.close()
        if self._error and kind is None:
            raise RuntimeError(f"the exit connection failed: {self._error}")

    def _ask(self):
        try:
            while not self._ended.wait(0.05):
                self._network.ask(self._connection)
                self.requests += 1
        except (OSError, RuntimeError) as error:
            self._error = error
