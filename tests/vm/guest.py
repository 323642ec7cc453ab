"""A guest: QEMU under emulation, without network access, which ends with this process.

Commands go over a second serial line, so that a guest needs no network for them. KVM is not used:
/dev/kvm may exist and still fail to boot a kernel.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import tempfile
import time

import packages

# The timeout of a boot in seconds, under emulation on a busy machine.
BOOT_TIMEOUT = 300
# On a busy machine an emulated timer is late: do not check it at boot, and report a soft lockup
# only after two minutes. Self-tests of ciphers take seconds.
KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr net.ifnames=0 no_timer_check "
    "watchdog_thresh=60 cryptomgr.notests"
)


class Died(Exception):
    """The guest ended, mostly by a kernel panic. The text contains the end of the console."""


def stop_on_signals():
    """Makes SIGTERM raise an exception, so that guests are ended."""

    def stop(number, _):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)


# Processes that were started and have not ended.
RUNNING = set()


@contextlib.contextmanager
def started(command, **options):
    """Runs a process in a session of its own for the duration of the block."""
    process = subprocess.Popen(
        # The kernel kills it if this thread is killed.
        ["setpriv", "--pdeathsig", "KILL", *command], start_new_session=True, **options
    )
    RUNNING.add(process)
    try:
        yield process
    finally:
        end(process)
        RUNNING.discard(process)


def end(process):
    """Ends a session leader and its children: with SIGTERM, later with SIGKILL."""
    for number, timeout in ((signal.SIGTERM, 5), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
            return


class Guest:
    """A running guest. Use it in a `with` block."""

    def __init__(self, kernel, initramfs, devices=(), cpus=2, memory=1024, arguments=""):
        self._stack = contextlib.ExitStack()
        scratch = tempfile.TemporaryDirectory(prefix="exitmark-vm-")
        self.directory = pathlib.Path(self._stack.enter_context(scratch))
        self._channel = None
        self._received = b""
        self._number = 0
        command, environment = packages.qemu()
        command += [
            "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus),
            "-m", str(memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", f"file:{self.directory}/console",
            "-chardev", f"socket,id=shell,path={self.directory}/shell,server=on,wait=off",
            "-serial", "chardev:shell",
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
            "-kernel", str(kernel.image), "-initrd", str(initramfs), "-append",
            f"{KERNEL_ARGUMENTS} {arguments}", *devices,
        ]  # fmt: skip
        self._output = open(self.directory / "qemu", "w+", encoding="utf-8", errors="replace")
        self._stack.callback(self._output.close)
        self._process = self._stack.enter_context(
            started(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the guest."""
        self._stack.close()

    def console(self):
        """Returns the text of the console."""
        with contextlib.suppress(OSError):
            return (self.directory / "console").read_text(errors="replace")
        return ""

    def _ended(self):
        """Raises Died if QEMU has ended, or the kernel has panicked."""
        if self._process.poll() is None and "Kernel panic" not in self.console():
            return
        self._output.flush()
        said = (self.directory / "qemu").read_text(errors="replace").strip()
        raise Died("\n".join(filter(None, [said, *self.console().splitlines()[-30:]])))

    def wait_ready(self, timeout=BOOT_TIMEOUT):
        """Waits until the guest takes commands. Returns its kernel's release."""
        deadline = time.monotonic() + timeout
        while self._channel is None:
            self._ended()
            channel = socket.socket(socket.AF_UNIX)
            try:
                channel.connect(str(self.directory / "shell"))
                self._channel = self._stack.enter_context(channel)
            except OSError:
                channel.close()
                if time.monotonic() > deadline:
                    raise TimeoutError("QEMU opens no control socket") from None
                time.sleep(0.02)
        self._until(b"@@ready ", deadline)
        return self._until(b"@@", deadline).decode()

    def _until(self, mark, deadline):
        """Returns the guest's output up to a mark."""
        while mark not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"the guest does not answer; it wrote {self._received[-300:]!r}, and on its "
                    f"console {self.console()[-600:]!r}"
                )
            readable, _, _ = select.select([self._channel], [], [], min(left, 0.5))
            data = self._channel.recv(65536) if readable else b""
            if readable and not data:
                # QEMU closes the socket when it ends.
                self._process.wait()
            self._received += data
            if not data:
                self._ended()
        before, _, self._received = self._received.partition(mark)
        return before

    def run(self, script, timeout=60):
        """Runs shell commands in the guest: (status, output)."""
        self._number += 1
        line = f"{self._number} {base64.b64encode(script.encode()).decode()}\n"
        self._channel.sendall(line.encode())
        deadline = time.monotonic() + timeout
        try:
            output = self._until(b"@@%d " % self._number, deadline)
            status = int(self._until(b"@@", deadline))
        except TimeoutError as error:
            raise TimeoutError(f"{script.strip()[:200]!r}, {timeout} s: {error}") from None
        return status, output.decode(errors="replace").replace("\r", "").lstrip("\n")

    def check(self, script, timeout=60):
        """Runs shell commands that must succeed; returns the output."""
        status, output = self.run(script, timeout)
        if status:
            raise RuntimeError(f"in the guest, {script!r} failed ({status}): {output}")
        return output

    def put(self, path, text):
        """Writes a file in the guest."""
        self.check(f"cat > {path} << 'END OF FILE'\n{text}\nEND OF FILE\n")

    def qmp(self, command, **arguments):
        """Sends a command to QEMU's monitor: its answer."""
        with socket.socket(socket.AF_UNIX) as monitor, monitor.makefile("rw") as lines:
            monitor.settimeout(30)
            monitor.connect(str(self.directory / "qmp"))
            lines.readline()
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                lines.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
            if "error" in answer:
                raise RuntimeError(f"QEMU refuses {command} {arguments}: {answer['error']}")
            return answer["return"]

    def complaints(self):
        """Returns lines of the kernel's log that indicate a fault."""
        return self.run(
            "dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|general protection|blocked for more|"
            "lockup|NETDEV WATCHDOG|Unable to handle|refcount_t|Kernel panic' | head -20"
        )[1].splitlines()
