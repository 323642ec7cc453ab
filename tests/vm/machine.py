"""A Debian server in QEMU: boots an image with the NICs of a network, and runs commands in it."""

import base64
import pathlib
import socket
import subprocess
import time

import network
import packages

# The timeout of a boot in seconds, from power-on or reboot to an answer of the guest's shell.
BOOT_TIMEOUT = 900
MEMORY = "1536"
# The clock may be in the past, so skip the file system check. The kernel's timer check fails if the
# emulator gets too little CPU time.
COMMAND_LINE = (
    "root=/dev/vda ro console=ttyS0 fsck.mode=skip no_timer_check "
    "systemd.mask=serial-getty@ttyS0.service systemd.clock_usec={clock}000000"
)


class Failed(Exception):
    """A command in the guest ended with a status other than 0."""


class Machine:
    """A running guest. `cargo` is a tar file, /dev/vdb in the guest. Each boot sets the guest's
    clock to `clock`, a datetime.

    The guest's disk persists over reboots, but not beyond the process.
    """

    def __init__(self, image, net, work: pathlib.Path, cargo: pathlib.Path, clock):
        self.work = work
        self._number = 0
        self._channel, self._pending = None, b""
        command, environment = packages.qemu()
        command += [
            "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max",
            "-smp", "2", "-m", MEMORY, "-display", "none", "-nodefaults", "-no-user-config",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd),
            "-append", COMMAND_LINE.format(clock=int(clock.timestamp())),
            "-drive", f"file={image.root},format=raw,if=none,id=root,snapshot=on",
            "-device", "virtio-blk-pci,drive=root,addr=0x10",
            "-drive", f"file={cargo},format=raw,if=none,id=cargo,readonly=on",
            "-device", "virtio-blk-pci,drive=cargo,addr=0x11",
            "-rtc", f"base={clock:%Y-%m-%dT%H:%M:%S},clock=vm",
            "-chardev", f"file,id=console,path={work}/console.log", "-serial", "chardev:console",
            "-device", "virtio-serial-pci,addr=0x12",
            "-chardev", f"socket,id=agent,path={work}/agent,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=runner",
        ]  # fmt: skip
        passed = []
        for slot, (descriptors, (_, _, mac)) in enumerate(zip(net.taps, network.TAPS), 1):
            passed += descriptors
            queues = ":".join(map(str, descriptors))
            command += [
                "-device", f"pcie-root-port,port={slot},chassis={slot},id=port{slot},addr={slot}",
                "-netdev", f"tap,id=net{slot},fds={queues},vhost=off",
                "-device", f"virtio-net-pci,netdev=net{slot},mac={mac},bus=port{slot},mq=on,"
                f"vectors={2 * len(descriptors) + 2}",
            ]  # fmt: skip
        with open(work / "qemu.log", "wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=environment, pass_fds=passed,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the guest like a power failure."""
        if self._channel:
            self._channel.close()
            self._channel = None
        self._process.kill()
        self._process.wait()

    def _wait(self):
        deadline = time.monotonic() + BOOT_TIMEOUT
        while self._channel is None:
            self._alive(deadline)
            channel = socket.socket(socket.AF_UNIX)
            try:
                channel.connect(str(self.work / "agent"))
                self._channel = channel
            except OSError:
                channel.close()
                time.sleep(0.1)
        while True:
            self._alive(deadline)
            try:
                self._ask("true", 3)
                return
            except TimeoutError:
                continue

    def _alive(self, deadline):
        if self._process.poll() is not None:
            said = (self.work / "qemu.log").read_text(errors="replace").strip()
            raise RuntimeError(f"QEMU ended with status {self._process.returncode}: {said}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the guest did not boot in {BOOT_TIMEOUT} s: {self.last_words()}")

    def last_words(self):
        """Returns the end of the console."""
        text = (self.work / "console.log").read_text(errors="replace")
        return " / ".join(text.strip().splitlines()[-5:])

    def _ask(self, script, timeout):
        self._number += 1
        line = f"{self._number} {base64.b64encode(script.encode()).decode()}\n"
        self._channel.settimeout(timeout)
        self._channel.sendall(line.encode())
        deadline = time.monotonic() + timeout
        while True:
            while b"\n" not in self._pending:
                self._channel.settimeout(max(deadline - time.monotonic(), 0.01))
                part = self._channel.recv(1 << 16)
                if not part:
                    raise RuntimeError(f"the guest is gone: {self.last_words()}")
                self._pending += part
            answer, self._pending = self._pending.split(b"\n", 1)
            fields = answer.decode().split()
            # Skip late answers to commands that timed out.
            if fields and fields[0] == str(self._number):
                output = base64.b64decode(fields[2]) if len(fields) > 2 else b""
                return int(fields[1]), output.decode(errors="replace")

    def attempt(self, script, timeout=900):
        """Runs a script in a login shell of root; returns status and output."""
        try:
            return self._ask(script, timeout)
        except TimeoutError:
            first = script.strip().splitlines()[0]
            raise Failed(f"no answer in {timeout} s to: {first} ({self.last_words()})") from None

    def run(self, script, timeout=900):
        """Runs a script whose every command must succeed; returns its output."""
        status, output = self.attempt(f"set -e\n{script}\n", timeout)
        if status:
            raise Failed(f"status {status} of:\n{script.strip()}\n{output.strip()}")
        return output

    def until(self, script, what, timeout=300):
        """Repeats a script until it succeeds, and returns its output."""
        deadline = time.monotonic() + timeout
        while True:
            status, output = self.attempt(script)
            if status == 0:
                return output
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {timeout} s: {output.strip()}")
            time.sleep(0.5)

    def reboot(self):
        """Reboots with systemd, and waits until the guest is up again."""
        identity = "cat /proc/sys/kernel/random/boot_id"
        before = self.run(identity)
        self.run("systemctl reboot --no-block")
        deadline = time.monotonic() + BOOT_TIMEOUT
        while True:
            self._alive(deadline)
            try:
                status, output = self._ask(identity, 3)
                if status == 0 and output != before:
                    return
            except TimeoutError:
                continue
