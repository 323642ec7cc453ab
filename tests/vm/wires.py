"""The cables of a guest's NICs, with their far ends in this process."""

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
import time

LONGEST_FRAME = 20_000
# <linux/if_packet.h>
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_PACKET_OUTGOING = 4
_TP_STATUS_VLAN_VALID = 1 << 4
_TP_STATUS_VLAN_TPID_VALID = 1 << 6
# <linux/sched.h>
_CLONE_NEWNET = 0x40000000


def enter_own_namespace():
    """Moves the calling thread into a new network namespace, which ends with it and its children.

    Raises OSError without root.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"no network namespace for taps: {os.strerror(error)}")


class Wire:
    """One cable: frames from the guest are queued until they are taken.

    `answer` gets each frame first; if it returns a frame, that is sent back instead.
    """

    def __init__(self, answer=None):
        self._answer = answer
        self._frames = []
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._receive_all, daemon=True)
        self._thread.start()

    def _receive_all(self):
        while not self._stopped:
            readable, _, _ = select.select([self._socket], [], [], 0.2)
            frames = []
            while readable and len(frames) < 256:
                try:
                    frame = self._receive()
                except BlockingIOError:
                    break
                if frame is None:
                    continue
                answer = self._answer and self._answer(frame)
                if answer:
                    self.send(answer)
                else:
                    frames.append(frame)
            with self._lock:
                self._frames += frames

    def take(self):
        """Returns the frames received since the last call, in order."""
        with self._lock:
            frames, self._frames = self._frames, []
        return frames

    @contextlib.contextmanager
    def watched(self, look):
        """Calls `look` with each frame at once when it arrives, while the block runs."""
        before, self._answer = self._answer, look
        try:
            yield
        finally:
            self._answer = before

    def close(self):
        """Ends the cable."""
        self._stopped = True
        self._thread.join()
        self._socket.close()


class Datagrams(Wire):
    """A cable over Unix sockets, one datagram per frame. It requires no privileges."""

    def __init__(self, directory, name, answer=None):
        self._far = f"{directory}/{name}-guest"
        near = f"{directory}/{name}-here"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(near)
        self._socket.setblocking(False)
        self.backend = (
            f"dgram,id={name},local.type=unix,local.path={self._far},"
            f"remote.type=unix,remote.path={near}"
        )
        super().__init__(answer)

    def _receive(self):
        return self._socket.recv(LONGEST_FRAME)

    def send(self, frame):
        """Sends a frame to the guest. The frame is lost if the NIC accepts none for a second."""
        for _ in range(500):
            try:
                self._socket.sendto(frame, self._far)
                return
            except BlockingIOError:
                time.sleep(0.002)


class Tap(Wire):
    """A cable over a tap device, which offers a guest offloads and several queues.

    The device is in the calling thread's network namespace: see `enter_own_namespace`.
    """

    def __init__(self, name, queues=1, answer=None):
        device = f"tap-{name}"
        options = ["vnet_hdr"] + (["multi_queue"] if queues > 1 else [])
        for command in (
            ["ip", "tuntap", "add", "dev", device, "mode", "tap", *options],
            ["sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1"],
            ["ip", "link", "set", "dev", device, "mtu", "9000", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((device, 0))
        self._socket.setblocking(False)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.backend = f"tap,id={name},ifname={device},script=no,downscript=no,vhost=off" + (
            f",queues={queues}" if queues > 1 else ""
        )
        super().__init__(answer)

    def _receive(self):
        frame, ancillary, _, address = self._socket.recvmsg(LONGEST_FRAME, 256)
        if address[2] == _PACKET_OUTGOING:
            return None
        for level, kind, data in ancillary:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(data) >= 20:
                status, tag, protocol = struct.unpack_from("I12xHH", data)
                # The kernel has removed the outermost tag.
                if status & _TP_STATUS_VLAN_VALID:
                    known = status & _TP_STATUS_VLAN_TPID_VALID
                    tag = struct.pack("!HH", protocol if known else 0x8100, tag)
                    frame = frame[:12] + tag + frame[12:]
        return frame

    def send(self, frame):
        """Sends a frame to the guest."""
        self._socket.send(frame)
