"""A guest with a box, and frames on its three wires."""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
import threading
import time

import frames
import guest
import initramfs
import matrix
import packages
import wires

CONFIG = "/tmp/box.toml"
# Frames a second of each kind of the load, and of the load while a process starts.
RATE = 300
START_RATE = 100
# The most frames of the load in transit, fewer than a ring holds, and the seconds after which a
# frame no longer counts as in transit.
WINDOW = 64
FLIGHT_TIMEOUT = 1
KINDS = ("exit", "relay", "inbound")
# Frames of one kind that may be lost when a worker is killed or stopped. A worker counts as dead
# after 8 ms; under emulation its clock may stop for that long and more.
LOST_WITH_WORKER = 30
# Seconds until a port forwards frames again after its link is back.
LINK_TIMEOUT = 25
READY_TIMEOUT = 200
# Programs of the package group `tools` in every guest.
TOOLS = ("sbin/ip", "sbin/ethtool", "usr/bin/tcpdump", "bin/setpriv", "usr/bin/setpriv")
# How often slow-path frames are sent again.
LATE_WAKES = 6
LATE = "no worker woke in time"
# The least number of frames of a kind in a meaningful load.
LEAST = 50

# A guest has the NICs of several cells, identified by MAC addresses. Unused ones are down and named
# h1, u1, i1, h2 and so on. The first kind starts with the MAC addresses of the frames, because
# QEMU's vmxnet3 cannot change its own.
NAME_NICS = """
for nic in /sys/class/net/*; do
    mac=$(cat $nic/address)
    case $mac in 02:00:5e:20:*) ;; *) continue ;; esac
    set -- $(echo $mac | tr : ' ')
    case $6 in 01) wire=h ;; 02) wire=u ;; 03) wire=i ;; esac
    /t/ip link set $(basename $nic) down || exit 1
    /t/ip link set $(basename $nic) name $wire$((0x$5 + 1)) || exit 1
done
"""
# Puts three NICs into use as h0, u0 and i0.
SETUP = """
for wire in h u i; do
    case $wire in h) end=01 ;; u) end=02 ;; i) end=03 ;; esac
    mac=02:00:5e:20:00:$end
    /t/ip link set ${wire}NUMBER name ${wire}0 && /t/ip link set ${wire}0 mtu MTU || exit 1
    [ $(cat /sys/class/net/${wire}0/address) = $mac ] ||
        /t/ip link set ${wire}0 address $mac || exit 1
    sysctl -qw net.ipv6.conf.${wire}0.disable_ipv6=1
done
/t/ip address add 203.0.113.2/24 dev i0
for name in h0 u0 i0; do
    ethtool -L $name combined QUEUES > /dev/null 2>&1
    /t/ip link set $name up || exit 1
done
"""
# Takes the three NICs out of use.
PUT_AWAY = """
for wire in h u i; do
    /t/ip address flush dev ${wire}0
    /t/ip link set ${wire}0 down && /t/ip link set ${wire}0 name ${wire}NUMBER || exit 1
done
"""
# Waits up to ten seconds until all ports have a link.
CARRIER = """
for _ in $(seq 100); do
    [ "$(cat /sys/class/net/[hui]0/carrier 2> /dev/null | tr -d '\\n')" = 111 ] && exit 0
    usleep 100000
done
echo "no link: $(grep . /sys/class/net/[hui]0/carrier)"; exit 1
"""
# Prints the NIC settings that the box may change.
NICS = """
for name in h0 u0 i0; do
    echo $name $(ethtool -k $name | grep -E \
        '^(rx-vlan-offload|rx-vlan-stag-hw-parse|large-receive-offload|rx-gro-hw):')
    /t/ip -d link show $name | grep -Eo 'promiscuity [0-9]+|prog/xdp.*'
done
"""
START = f"""
exitmark run --config {CONFIG} > /tmp/log 2>&1 &
echo $! > /tmp/pid
while kill -0 $(cat /tmp/pid) 2> /dev/null && ! grep -q ^ready /tmp/log; do usleep 50000; done
cat /tmp/log
kill -0 $(cat /tmp/pid) 2> /dev/null
"""
MONITOR = f"""
mkdir -p /tmp/periods
exitmark-monitor capture --interface u0 --address {frames.HOST_4} \\
    --out /tmp/periods > /tmp/log 2>&1 &
echo $! > /tmp/pid
while kill -0 $(cat /tmp/pid) 2> /dev/null && ! grep -q ^ready /tmp/log; do usleep 50000; done
cat /tmp/log
kill -0 $(cat /tmp/pid) 2> /dev/null
"""
# Waits until the process has ended.
GONE = "while kill -0 $(cat /tmp/pid) 2> /dev/null; do usleep 20000; done"


class Wrong(Exception):
    """The cell cannot go on."""


@dataclasses.dataclass
class Result:
    """The result of a cell: a row of target/vm.json."""

    name: str
    kernel: str
    nic: str
    mode: str
    engine: str
    zero_copy: str
    queues: int
    spare: int
    mtu: int
    steps: tuple
    expected: str
    release: str = ""
    verdict: str = "wrong"
    message: str = ""
    checks: list = dataclasses.field(default_factory=list)
    notes: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0
    # How often slow-path frames were sent again, because the worker woke late.
    late: int = 0

    @classmethod
    def of(cls, cell):
        """Returns an empty result."""
        return cls(
            cell.name, cell.kernel, cell.nic, cell.mode, cell.engine, cell.zero_copy, cell.queues,
            cell.spare, cell.mtu, cell.steps, cell.expect,
        )  # fmt: skip

    def check(self, name, fault):
        """Records a check. `fault` is empty if it passed."""
        self.checks.append({"name": name, "ok": not fault, "detail": fault or ""})
        return not fault

    def faults(self):
        """Returns the failed checks."""
        return [check for check in self.checks if not check["ok"]]


def build_initramfs(kernel, program, path):
    """Writes the initramfs of a guest with the box in it."""
    names = ("exitmark", "exitmark-demo", "exitmark-monitor")
    files = {name: program.with_name(name) for name in names}
    write_initramfs(kernel, {name: file for name, file in files.items() if file.exists()}, path)


def write_initramfs(kernel, programs, path, modules=matrix.MODULES, wanted=TOOLS, files=None):
    """Writes the initramfs of a guest with these programs, by their names there, and the tools.

    `files` are others, by their paths: contents and mode.
    """
    contents = initramfs.Initramfs()
    contents.modules(kernel, modules)
    tools = packages.ensure(["tools"])["tools"]
    for name in wanted:
        if (tools / name).exists():
            contents.program(f"t/{name.rsplit('/', 1)[1]}", tools / name, [tools])
    for name, file in programs.items():
        contents.program(f"t/{name}", file)
    for name, (data, mode) in (files or {}).items():
        contents.add(name, data, mode)
    contents.write(path)


class Box:
    """A guest with three wires of each kind of NIC, and the operations on it.

    One kind is in use at a time, that of the current cell.
    """

    def __init__(self, cells, program):
        self.cell = self.result = self.numbers = None
        self.release = ""
        self._kinds = list(dict.fromkeys(cell.nic for cell in cells))
        self._stack = contextlib.ExitStack()
        scratch = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        kernel = packages.kernel(cells[0].kernel)
        archive = scratch / "initramfs"
        build_initramfs(kernel, program, archive)
        self._wires, devices = {}, []
        for number, kind in enumerate(self._kinds, 1):
            cell = next(cell for cell in cells if cell.nic == kind)
            for end, name in enumerate("hui", 1):
                self._wires[kind, name], parts = self._wire(cell, name, f"{name}{number}", scratch)
                port = f"pcie-root-port,id=port-{name}{number}"
                port += f",chassis={3 * number + end},slot={3 * number + end}"
                mac = f"02:00:5e:20:{number - 1:02x}:{end:02x}"
                devices += ["-netdev", parts[0], "-device", port]
                devices += ["-device", f"{parts[1]},bus=port-{name}{number},mac={mac}"]
        self.guest = self._stack.enter_context(
            guest.Guest(kernel, archive, devices, cpus=cells[0].cpus)
        )

    def _wire(self, cell, name, id_, scratch):
        """Returns a wire of a cell, and QEMU's arguments for its backend and its NIC."""
        answer = frames.answer_arp if name == "i" else None
        pairs = cell.queues + cell.spare
        if cell.tap:
            wire = wires.Tap(id_, pairs, answer)
        else:
            wire = wires.Datagrams(scratch, id_, answer)
        self._stack.enter_context(contextlib.closing(wire))
        device = f"{cell.device(name)},id=nic-{id_},netdev={id_}"
        if pairs > 1:
            device += f",mq=on,vectors={2 * pairs + 2}"
        return wire, (wire.backend, device)

    def close(self):
        """Ends the guest."""
        self._stack.close()

    def boot(self):
        """Waits until the guest takes commands."""
        self.release = self.guest.wait_ready()
        self.guest.check(NAME_NICS)

    def turn_to(self, cell, result):
        """Puts the NICs of a cell into use and sets them up."""
        before, self.cell, self.result = self.cell, cell, result
        self.numbers = frames.Builder(mtu=cell.mtu)
        if before and (before.nic, before.mtu) == (cell.nic, cell.mtu):
            return
        if before:
            self.guest.check(PUT_AWAY.replace("NUMBER", self._number(before)))
        setup = SETUP.replace("QUEUES", str(cell.queues)).replace("MTU", str(cell.mtu))
        self.guest.check(setup.replace("NUMBER", self._number(cell)))
        self.guest.check(CARRIER)

    def _number(self, cell):
        return str(self._kinds.index(cell.nic) + 1)

    @property
    def wires(self):
        """Returns the wires in use by name."""
        return {name: self._wires[self.cell.nic, name] for name in "hui"}

    def set_link(self, name, up):
        """Sets a wire's link down or up."""
        self.guest.qmp("set_link", name=f"{name}{self._number(self.cell)}", up=up)

    # The program.

    def configure(self, mode="enforce"):
        """Writes the configuration."""
        values = {"engine": self.cell.engine, "mode": mode, "zero_copy": self.cell.zero_copy}
        self.guest.put(CONFIG, frames.CONFIGURATION.format(**values))

    def exitmark(self, command, timeout=90):
        """Runs a command of the program: (status, output)."""
        return self.guest.run(f"exitmark {command} --config {CONFIG}", timeout)

    def start(self):
        """Starts the box: (whether it is ready, its output)."""
        status, output = self.guest.run(START, READY_TIMEOUT)
        return status == 0 and "ready" in output, output

    def status(self):
        """Returns the report of the running box. On a busy machine the query may time out."""
        for _ in range(5):
            status, output = self.exitmark("status --json")
            with contextlib.suppress(ValueError):
                return json.loads(output)
        raise Wrong(f"exitmark status --json ({status}): {output[-500:]}")

    def signal(self, name):
        """Sends the process a signal."""
        self.guest.check(f"kill -{name} $(cat /tmp/pid)")

    # Frames.

    def transfer(self, cases, wait=3):
        """Sends frames; returns those that did not arrive as expected, with the difference."""
        for wire in self.wires.values():
            wire.take()
        for case in cases:
            self.wires[case.enters].send(case.before)
            time.sleep(0.002)
        missing = {frames.number_of(case.before) for case in cases if case.leaves}
        arrived = {}
        deadline = time.monotonic() + wait
        # Frames that must reach no wire get as long as the others take, and a little longer.
        while missing - arrived.keys() and time.monotonic() < deadline:
            time.sleep(0.02)
            self._collect(arrived)
        time.sleep(0.1)
        self._collect(arrived)
        return [
            (case, fault)
            for case in cases
            for fault in [_fault_or_late(case, arrived.get(frames.number_of(case.before), []))]
            if fault
        ]

    def _collect(self, arrived):
        for name, wire in self.wires.items():
            for frame in wire.take():
                arrived.setdefault(frames.number_of(frame), []).append((name, frame))

    def cross(self, name, change=lambda case: case, only=None):
        """Checks every class of frames, or the named ones."""
        cases = self.numbers.named(*only) if only else self.numbers.all()
        cases = [case for case in cases if case.name not in self.cell.unsendable]
        bad = self.transfer([change(case) for case in cases])
        late = {case.name for case, fault in bad if fault == LATE}
        bad = [(case, fault) for case, fault in bad if fault != LATE]
        if self.cell.spare:
            # From a queue without a worker they are always forwarded unchanged.
            late = set()
        # If a worker wakes late, as under emulation, slow-path frames are forwarded unchanged: send
        # these again. Any other difference is a fault.
        for _ in range(LATE_WAKES if late else 0):
            slow = [change(case) for case in self.numbers.all() if case.slow]
            again = [(case, fault) for case, fault in self.transfer(slow) if case.name in late]
            bad += [(case, fault) for case, fault in again if fault != LATE]
            late = {case.name for case, fault in again if fault == LATE}
            self.result.late += 1
            if not late:
                break
        faults = [f"{case.name}: {fault}" for case, fault in bad]
        faults += [f"{name}: {LATE}, each time" for name in sorted(late)]
        return self.result.check(f"{name} ({len(cases)} frames)", "; ".join(faults))

    def until(self, name, *kinds, change=lambda case: case):
        """Waits until frames of these kinds arrive as expected."""
        began = time.monotonic()
        bad = True
        while bad and time.monotonic() < began + LINK_TIMEOUT:
            bad = self.transfer([change(self.numbers.stream(kind)) for kind in kinds], 0.5)
        detail = "; ".join(f"{case.name}: {fault}" for case, fault in bad)
        self.result.notes[name] = f"{time.monotonic() - began:.1f} s"
        return self.result.check(name, detail)

    def load(self, name, during=None, allowed=0, rate=RATE, seconds=1.5, kinds=KINDS):
        """Sends a steady load while an action runs, and counts lost and wrong frames."""
        for wire in self.wires.values():
            wire.take()
        done = threading.Event()
        outcome = []

        def work():
            try:
                time.sleep(0.5)
                outcome.append(during())
            except Exception as error:
                outcome.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=work if during else done.set)
        thread.start()
        sent, arrived, flying = [], {}, {}
        last = time.monotonic()
        end = last + seconds
        while (now := time.monotonic()) < end or not done.is_set():
            if not done.is_set():
                end = max(end, now + 0.5)
            self._collect(arrived)
            flying = {
                number: since
                for number, since in flying.items()
                if number not in arrived and since > now - FLIGHT_TIMEOUT
            }
            # Do not flood a guest that has stalled, as emulated ones do on a busy machine.
            due = min(int((now - last) * rate * len(kinds)) if sent else 1, WINDOW - len(flying))
            for _ in range(due):
                case = self.numbers.stream(kinds[len(sent) % len(kinds)])
                self.wires[case.enters].send(case.before)
                sent.append(case)
                flying[frames.number_of(case.before)] = last = now
            time.sleep(0.002)
        thread.join()
        deadline = time.monotonic() + 3
        while len(arrived) < len(sent) and time.monotonic() < deadline:
            time.sleep(0.02)
            self._collect(arrived)
        lost, wrong = dict.fromkeys(kinds, 0), []
        for case in sent:
            got = arrived.get(frames.number_of(case.before), [])
            lost[case.name] += not got
            if got:
                wrong += filter(None, [_fault(case, got)])
        said = f"{len(sent)} sent, lost {lost}, wrong {len(wrong)}"
        self.result.notes[name] = said
        few = len(sent) < LEAST * len(kinds)
        bad = few or max(lost.values()) > allowed or wrong
        self.result.check(name, f"{said}: {wrong[:3]}" if bad else "")
        if outcome and isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0] if outcome else None


def _fault_or_late(case, got):
    """Like `_fault`, but returns LATE if no worker woke for a slow-path frame."""
    fault = _fault(case, got)
    if fault and case.slow and not _fault(frames.without_user_space(case), got):
        return LATE
    return fault


def _fault(case, got):
    """Returns the difference between the received and the expected frame, or None."""
    if case.leaves is None:
        return f"left by {got[0][0]}" if got else None
    if not got:
        return "lost"
    wire, frame = got[0]
    if len(got) > 1:
        return f"arrived {len(got)} times"
    if wire != case.leaves:
        return f"left by {wire}, not by {case.leaves}"
    if frame != case.after:
        pairs = zip(frame, case.after)
        at = next((n for n, (one, other) in enumerate(pairs) if one != other), len(frame))
        return (
            f"{len(frame)} bytes for {len(case.after)}, other from byte {at} on: "
            f"{frame[at : at + 4].hex()} for {case.after[at : at + 4].hex()}"
        )
    return None
