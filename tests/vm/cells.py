"""The cells of the matrix: the steps of each; the demo."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import box
import frames
import guest
import packages

# Seconds.
DEMO_TIMEOUT = 200
# Alarms that the frames of `cross` raise: relay frames with a VLAN tag, and of the IP version for
# which there is no next hop.
UNROUTED = {"unrouted_vlan", "unrouted_family"}


class Steps:
    """The steps of a cell, by name. Each depends on the steps before it in matrix.FULL."""

    def __init__(self, machine):
        self.box = machine
        self.cell = machine.cell
        self.result = machine.result
        self.worker = box.LOST_WITH_WORKER if self.cell.has_workers else 0
        if self.cell.needs_process:
            self.worker = 10**9

    def cross(self):
        """Sends every class and compares it byte for byte."""
        self.box.cross("every class")

    def load(self):
        """Sends a steady load without loss, and checks the box's status."""
        self.box.load("load")
        report = self.box.status()
        mismatches = sum(one.get("frames", 0) for one in report["audit"]["mismatches"])
        kinds = {warning["kind"] for warning in report["warnings"]}
        self.result.notes["warnings"] = sorted(kinds)
        self.result.check("audit", f"{mismatches} mismatches" if mismatches else "")
        unaccounted = report["unaccounted_frames"]
        self.result.check("frames accounted for", str(unaccounted) if unaccounted else "")
        warned = "needs_process" in kinds
        self.result.check(
            "status tells whether the policy needs the process",
            "" if warned == self.cell.needs_process else f"warnings: {sorted(kinds)}",
        )
        alarms = [
            warning["text"]
            for warning in report["warnings"]
            if warning["is_alarm"] and warning["kind"] not in UNROUTED
        ]
        self.result.check("no alarm", "; ".join(alarms))

    def stop(self):
        """Stops the process (SIGSTOP) under load, and continues it."""
        def during():
            self.box.signal("STOP")
            time.sleep(1)
            self.box.signal("CONT")

        self.box.load("stopped and continued under load", during, self.worker)
        self.box.until("after it was continued", *box.KINDS)

    def kill(self):
        """Kills the process under load."""
        self.box.load("killed under load", lambda: self.box.signal("KILL"), self.worker)
        if not self.cell.needs_process:
            self.box.cross("every class without the process", frames.without_user_space)
            self.box.load("load without the process")

    def restart(self):
        """Starts another process, which takes over under load."""
        started, output = self.box.load(
            "take-over under load", self.box.start, self.worker, box.START_RATE
        )
        self.result.check("take-over", "" if started else output[-800:])
        self.box.until("after the take-over", *box.KINDS)
        queues = {port["queues"] for port in self.box.status()["ports"]}
        wanted = {self.cell.queues + self.cell.spare}
        self.result.check("queues", "" if queues == wanted else f"{queues}, not {wanted}")
        self.box.cross("every class after the take-over")

    def terminate(self):
        """Terminates the process under load, and starts the next one, as systemd does."""

        def during():
            self.box.guest.check(f"kill $(cat /tmp/pid); {box.GONE}")
            return self.box.start()

        started, output = self.box.load("restart under load", during, self.worker, box.START_RATE)
        self.result.check("restart", "" if started else output[-800:])
        self.box.until("after the restart", *box.KINDS)

    def reload(self):
        """Reloads to audit mode and back, under load."""
        for mode, change in (("audit", frames.audited), ("enforce", lambda case: case)):
            self.box.configure(mode)
            status, output = self.box.exitmark("reload")
            self.result.check(f"reload to {mode}", output if status else "")
            names = ("exit", "exit IPv6", "relay", "relay IPv6", "foreign", "inbound", "incoming")
            self.box.cross(f"in mode {mode}", change, names)

    def link(self):
        """Sets each port's link down and up: on the cable, and with ip-link(8)."""
        self._set_link("i", False)
        self.box.until("incoming without a link: relay frames leave by uplink", *box.KINDS,
                       change=frames.unsteered)  # fmt: skip
        self._set_link("i", True)
        self.box.until("incoming has its link back", *box.KINDS)
        for name in "uh":
            self._set_link(name, False)
            time.sleep(1)
            self._set_link(name, True)
            self.box.until(f"{name}0 has its link back", *box.KINDS)
        for name in "hui":
            self.box.guest.check(f"/t/ip link set {name}0 down && usleep 500000")
            # The IPv4 address stays; its route does not matter here.
            self.box.guest.check(f"/t/ip link set {name}0 up")
            # A driver may lose the program of any port; the box detects it by received frames.
            self.box.until(f"{name}0 set down and up", *box.KINDS, "incoming")
        self.box.cross("every class after the changes of links")
        status, _ = self.box.guest.run("kill -0 $(cat /tmp/pid)")
        log = self.box.guest.run("tail -5 /tmp/log")[1] if status else ""
        self.result.check("the process is there after the changes of links", log)

    def _set_link(self, name, up):
        self.box.set_link(name, up)

    def detach(self):
        """Detaches the box, and checks that the NICs are restored."""
        self.box.guest.run(f"kill $(cat /tmp/pid) 2> /dev/null; {box.GONE}")
        status, output = self.box.exitmark("detach")
        self.result.check("detach", output if status else "")
        after = self.box.guest.check(box.NICS)
        same = after == self.result.notes["NICs before"]
        self.result.check("offloads and promiscuous mode as before", "" if same else after)
        left = self.box.guest.run("ls -A /sys/fs/bpf/exitmark 2> /dev/null")[1]
        self.result.check("no pins left", left)

    def monitor(self):
        """Runs the monitor on uplink instead of the box, and checks that the NIC is restored."""
        status, output = self.box.guest.run(box.MONITOR, box.READY_TIMEOUT)
        pairs = self.cell.queues + self.cell.spare
        listens = not status and f"queues={pairs} " in output
        self.result.check("the monitor binds every queue", "" if listens else output)
        status, output = self.box.guest.run(f"kill $(cat /tmp/pid); {box.GONE}; cat /tmp/log")
        after = self.box.guest.check(box.NICS)
        same = after == self.result.notes["NICs before"]
        self.result.check("the monitor restores the NIC", "" if same else after + output)


def attempt(cell, machine, result):
    """Runs a cell's steps."""
    machine.guest.check("dmesg -c > /dev/null; rm -f /tmp/relays.state")
    result.notes["NICs before"] = machine.guest.check(box.NICS)
    machine.configure()
    doctor, advice = machine.exitmark("doctor")
    result.notes["doctor"] = advice
    began = time.monotonic()
    ready, output = machine.start()
    result.notes["ready"] = f"{time.monotonic() - began:.1f} s"
    result.notes["log"] = output
    if "doctor" in cell.steps:
        # Before Linux 6.3 the kernel does not report XDP features, and doctor says so.
        is_unknown = not ready and "Linux before 6.3 does not report" in advice
        fault = "" if (doctor == 0) == ready or is_unknown else f"exit status {doctor}: {advice}"
        result.check("doctor predicts whether the box starts", fault)
    if not ready:
        result.message = output.strip().splitlines()[-1] if output.strip() else ""
        same = machine.guest.check(box.NICS) == result.notes["NICs before"]
        result.check("a refused start leaves the NICs as they were", "" if same else "changed")
        if cell.expect == "refused":
            said = re.search(cell.says, output, re.I)
            result.check("the refusal names the reason", "" if said else output)
        return
    line = next(line for line in output.splitlines() if line.startswith("ready"))
    result.message = line
    result.check("carrier", machine.guest.run(box.CARRIER)[1])
    modes = set(re.findall(r"xdp=(\S+)", line))
    wanted = "generic" if cell.mode == "generic" else "native"
    result.check("attached as expected", "" if modes == {wanted} else line)
    machine.until("first frames", *box.KINDS)
    report = machine.status()
    sockets = {port["sockets"] for port in report["ports"]}
    wanted = "zero-copy" if cell.mode == "zero-copy" else "copy"
    result.check("sockets as expected", "" if sockets == {wanted} else str(sockets))
    steps = Steps(machine)
    for step in cell.steps:
        if step != "doctor":
            getattr(steps, step)()


def booted(cells, program, result):
    """Returns a booted guest. Boots again if the kernel panics before the first command.

    Under emulation Linux 7.3 does so occasionally, in its scheduler.
    """
    for last in (False, True):
        machine = box.Box(cells, program)
        try:
            machine.boot()
            return machine
        except BaseException as error:
            machine.close()
            if last or not isinstance(error, guest.Died):
                raise
            result.notes["the first boot"] = str(error)[-500:]


def run(cells, program):
    """Runs cells of one group, one after the other: a result each.

    They share a guest; each cell ends with a check that the guest is restored. A guest in which a
    check failed is not used again. Errors of a guest never raise.
    """
    shared = None
    try:
        for cell in cells:
            result = box.Result.of(cell)
            began = time.monotonic()
            try:
                if shared is None:
                    shared = booted(cells, program, result)
                result.release = shared.release
                shared.turn_to(cell, result)
                attempt(cell, shared, result)
                result.check("kernel log", "\n".join(shared.guest.complaints()))
            except (guest.Died, TimeoutError, RuntimeError, box.Wrong) as error:
                result.check("the cell completed", f"{type(error).__name__}: {error}")
                result.notes["console"] = shared.guest.console()[-3000:] if shared else ""
            result.seconds = round(time.monotonic() - began, 1)
            if not result.faults():
                result.verdict = "right" if result.message.startswith("ready") else "refused"
            elif shared:
                shared.close()
                shared = None
            yield result
    finally:
        if shared:
            shared.close()


def demo(series, program):
    """Runs `exitmark demo` in a guest: a row of numbers."""
    kernel = packages.kernel(series)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        archive = pathlib.Path(scratch, "initramfs")
        box.build_initramfs(kernel, program, archive)
        with guest.Guest(kernel, archive) as machine:
            row = {"kernel": series, "release": machine.wait_ready()}
            try:
                status, output = machine.run("exitmark demo --json 2> /tmp/said", DEMO_TIMEOUT)
                row["ok"] = status == 0
                row["numbers"] = json.loads(output) if output.startswith("{") else None
                row["said"] = machine.run("tail -20 /tmp/said")[1] if status else ""
                row["complaints"] = machine.complaints()
            except (guest.Died, TimeoutError, ValueError) as error:
                row |= {"ok": False, "said": str(error)}
    row["ok"] = row["ok"] and not row.get("complaints")
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def strip(program, directory):
    """Copies of the programs without symbols, small enough for an initramfs: the box's path."""
    for file in (program, *map(program.with_name, ("exitmark-demo", "exitmark-monitor"))):
        if file.exists() and shutil.which("strip"):
            subprocess.run(["strip", "-o", directory / file.name, file], check=True)
        elif file.exists():
            shutil.copy(file, directory / file.name)
    return directory / program.name
