"""The scenario `lag`: a link aggregate over two wires, of which a cable is cut under load.

One guest has the network namespaces `host` and `switch`, each with a bond (802.3ad) of the members
m0 and m1. A middle (middles.py) joins the members: cables alone, which show what the bonds
themselves need, or the wires of a box in the guest's first namespace.

     host           first namespace        switch
    ┌──────┬────┐   ┌──────────────┐   ┌────┬──────┐
    │ lag0 │ m0 ├───┤ h0 wire 0 u0 ├───┤ m0 │ lag0 │
    │      │ m1 ├───┤ h1 wire 1 u1 ├───┤ m1 │      │
    └──────┴────┘   └──────────────┘   └────┴──────┘

A cable is a veth pair. If one end is set down, the other loses its carrier; so a cable is cut by
setting the member at its end down.
"""

import dataclasses
import pathlib
import re
import subprocess
import tempfile
import time

import box
import cells
import guest
import matrix
import packages
from middles import ENDS, MEMBERS, MIDDLES

# When a gap ends: before the cut, or after it; or when it begins: after the repair.
PHASES = ("before", "cut", "repair")
MODULES = (*matrix.MODULES, "bonding", "sch_ingress", "cls_matchall", "act_mirred")
# An emulated CPU is slow in reading the HPET, which is Linux 6.1's clock under emulation, and in
# clearing pages. On two cores, XDP programs that join the members forward 22,000 frames per second
# (6.1) and 18,000 to 27,000 (6.18); with these arguments 33,000 to 43,000 and 30,000 to 41,000.
KERNEL_ARGUMENTS = "tsc=reliable init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off"
# Frames per second, both directions together, and flows of each direction.
RATE = 20_000
FLOWS = 10
# The most that a middle may add to the longest gap of the bonds alone, in milliseconds. After the
# repair one bond sends before the other one receives: three steps of their state machines.
ADDED = {"cut": 100, "repair": 300}
# lag.c does not list shorter gaps, in milliseconds.
LEAST_GAP = 10
# The least part of RATE that the guest must send, and the least part of a direction's frames that
# each member must carry before the cut and after the repair.
LEAST_RATE = 0.5
LEAST_SHARE = 0.1
# Seconds of the load: until the emulator has translated the code; before the cut and after the
# repair; without the cable, longer than LACP's timeout; and at most.
WARM_UP = 4
CARRY = 1
DOWN = 4
LONGEST_LOAD = 60
# The timeout until both bonds use both members, in seconds.
PORTS_TIMEOUT = 20

SETUP = """
sysctl -qw net.ipv6.conf.default.disable_ipv6=1
for end in host switch; do
    /t/ip netns add $end || exit 1
    /t/ip netns exec $end sysctl -qw net.ipv6.conf.all.disable_ipv6=1
    /t/ip netns exec $end sysctl -qw net.ipv6.conf.default.disable_ipv6=1
done
"""
MAKE_BOND = """
set -e
ip=/t/ip
$ip link add lag0 address {mac} type bond mode 802.3ad lacp_rate fast miimon 100 \\
    xmit_hash_policy layer3+4
for member in m0 m1; do
    $ip link set $member down
    $ip link set $member master lag0
    $ip link set $member up
done
$ip link set lag0 up
"""
CLEAR = """
for name in h0 h1 u0 u1; do /t/ip link del $name 2> /dev/null; done
/t/ip netns del host; /t/ip netns del switch
true
"""


@dataclasses.dataclass
class Bond:
    """The state of a bond, from /proc/net/bonding."""

    ports: int
    partner: str
    # LACP's port state of each member and of its partner.
    states: list

    @classmethod
    def parse(cls, text):
        """Parses the file."""
        active = text.partition("Active Aggregator Info")[2].partition("Slave Interface")[0]
        ports = re.search(r"Number of ports: (\d+)", active)
        partner = re.search(r"Partner Mac Address: (\S+)", active)
        states = [int(state) for state in re.findall(r"port state: (\d+)", text)]
        return cls(int(ports[1]) if ports else 0, partner[1] if partner else "", states)

    def fault(self, partner):
        """Returns why the bond does not use both members with this partner, or an empty text."""
        # Synchronization, collecting, distributing (IEEE 802.1AX, 6.4.2.3).
        in_use = [state for state in self.states if state & 0x38 == 0x38]
        if self.ports == len(MEMBERS) and self.partner == partner and len(in_use) == 4:
            return ""
        return f"{self.ports} ports, partner {self.partner or 'unknown'}, states {self.states}"


@dataclasses.dataclass
class Load:
    """What became of the flows of one direction, from the output of lag.c. Times: milliseconds."""

    # By flow: frames sent, received, duplicated, reordered, and the highest number plus one.
    flows: dict
    # Flow, begin, length, missing frames.
    gaps: list
    duration: float
    pause: float
    silence: float
    overflow: int
    unlisted: int

    @classmethod
    def parse(cls, text):
        """Parses the output: a load for each of ENDS, which sends it."""
        rows = {"flow": [], "gap": [], "end": []}
        for line in text.splitlines():
            kind, *numbers = line.split()
            if kind not in rows:
                raise box.Wrong(f"the load failed: {text[-500:]}")
            rows[kind].append([int(number) for number in numbers])
        if len(rows["end"]) != len(ENDS):
            raise box.Wrong(f"the load did not end: {text[-500:]}")
        return {
            name: cls(
                {flow: numbers for end, flow, *numbers in rows["flow"] if end == number},
                [(flow, begin / 1e6, length / 1e6, missing)
                 for end, flow, begin, length, missing in rows["gap"] if end == number],
                duration / 1e6, pause / 1e6, silence / 1e6, overflow, unlisted,
            )
            for name, (number, duration, pause, silence, overflow, unlisted)
            in zip(ENDS, rows["end"])
        }  # fmt: skip

    def rows(self, sender, cut, repair):
        """Returns a row for each flow.

        `cut` is the time before the cable is cut, `repair` the time before it is plugged in again.
        A gap is at most as long as its missing frames: the emulator, too, may stop for a while.
        """
        rows = []
        for flow, (sent, received, duplicated, reordered, following) in self.flows.items():
            longest = dict.fromkeys(PHASES, LEAST_GAP)
            interval = self.duration / sent
            for _, begin, length, missing in (gap for gap in self.gaps if gap[0] == flow):
                phase = "before" if begin + length < cut else "cut" if begin < repair else "repair"
                longest[phase] = max(longest[phase], min(length, (missing + 1) * interval))
            # The gap of a flow that has not come back has no end.
            longest["repair"] = max(longest["repair"], (sent - following) * interval)
            rows.append({
                "from": sender, "flow": flow, "sent": sent, "lost": sent - received,
                "duplicated": duplicated, "reordered": reordered,
                "gap_ms": {phase: round(length, 1) for phase, length in longest.items()},
            })  # fmt: skip
        return rows


class Measurement:
    """The measurement of one middle."""

    def __init__(self, machine, middle, rate):
        self.guest, self.middle, self.rate = machine, middle, rate
        self.row = {"faults": [], "cuts": []}

    def _fault(self, text):
        self.row["faults"].append(text)

    def _bonds(self):
        """Returns the faults of both bonds, joined, and their states."""
        faults = []
        for end, other in (("host", "switch"), ("switch", "host")):
            text = self.guest.check(f"/t/ip netns exec {end} cat /proc/net/bonding/lag0")
            fault = Bond.parse(text).fault(ENDS[other][1])
            if fault:
                faults.append(f"{end}: {fault}")
        return "; ".join(faults)

    def _until_joined(self):
        """Waits until both bonds use both members: (seconds, fault)."""
        began = time.monotonic()
        while True:
            fault = self._bonds()
            took = time.monotonic() - began
            if not fault or took > PORTS_TIMEOUT:
                return round(took, 1), fault
            time.sleep(0.2)

    def _carry(self):
        """Returns the frames per second that each member of each bond sends."""
        samples = []
        for pause in (CARRY, 0):
            text = self.guest.check("lag now; " + "; ".join(
                f"/t/ip netns exec {end} cat /sys/class/net/m{number}/statistics/tx_packets"
                for end in ENDS for number in MEMBERS
            ))  # fmt: skip
            samples.append([int(word) for word in text.split()])
            time.sleep(pause)
        began, ended = samples
        seconds = (ended[0] - began[0]) / 1e9
        names = (f"{end} m{number}" for end in ENDS for number in MEMBERS)
        return {
            name: round((after - before) / seconds)
            for name, before, after in zip(names, began[1:], ended[1:])
        }

    def run(self):
        """Sets up the site, and cuts each cable once: the row."""
        self.guest.check(SETUP)
        self.middle.join()
        try:
            self.middle.start()
            # The bonds come last: after 6 s without an answer a bond asks every 30 s only.
            for end, (_, mac) in ENDS.items():
                self.guest.put("/tmp/bond", MAKE_BOND.format(mac=mac))
                self.guest.check(f"/t/ip netns exec {end} sh /tmp/bond")
            self.row["lacp_s"], fault = self._until_joined()
            if fault:
                raise box.Wrong(f"LACP is not up after {PORTS_TIMEOUT} s: {fault}")
            self._start_load()
            time.sleep(WARM_UP)
            self._end_load()
            for end in ENDS:
                for number in MEMBERS:
                    self.row["cuts"].append(self.cut(end, f"m{number}"))
            self.middle.stop()
        except box.Wrong as error:
            self._fault(str(error))
        self.guest.check(CLEAR)
        self._sum_up()
        return self.row

    def _start_load(self):
        ends = (f"{end},lag0,{mac},{address}" for end, (address, mac) in ENDS.items())
        self.guest.check(
            f"(lag {FLOWS} {self.rate} {LONGEST_LOAD} {' '.join(ends)} & echo $! > /tmp/load.pid; "
            "wait $!; touch /tmp/load.ended) > /tmp/load 2>&1 < /dev/null &"
        )

    def _end_load(self):
        """Returns the load of each end."""
        self.guest.run("kill $(cat /tmp/load.pid)")
        self.guest.check("while [ ! -e /tmp/load.ended ]; do usleep 50000; done; rm /tmp/load.*")
        return Load.parse(self.guest.check("cat /tmp/load"))

    def _stamped(self, command):
        """Runs a command: the guest's time before it, in milliseconds."""
        return int(self.guest.check(f"lag now && {command}")) / 1e6

    def cut(self, end, member):
        """Cuts the cable of a member under load, and repairs it: what became of the flows."""
        self._start_load()
        carried = {"before": self._carry()}
        cut = self._stamped(f"/t/ip -n {end} link set {member} down")
        time.sleep(DOWN)
        repair = self._stamped(f"/t/ip -n {end} link set {member} up")
        back, fault = self._until_joined()
        carried["repair"] = self._carry()
        loads = self._end_load()
        flows = [row for name, load in loads.items() for row in load.rows(name, cut, repair)]
        rate = sum(row["sent"] for row in flows) / max(one.duration for one in loads.values()) * 1e3
        name = f"{end} {member}"
        if fault:
            self._fault(f"{name}: not back after {PORTS_TIMEOUT} s: {fault}")
        for phase, rates in carried.items():
            for one, sent in rates.items():
                if sent < rate / 2 * LEAST_SHARE:
                    self._fault(f"{name}: {phase}: {one} sends {sent} frames per second")
        if rate < self.rate * LEAST_RATE:
            self._fault(f"{name}: the guest sends only {rate:.0f} frames per second")
        for one, load in loads.items():
            if load.overflow or load.unlisted:
                self._fault(f"{name}: frames from {one} were read too late: {load.overflow} "
                            f"dropped, {load.unlisted} gaps not listed")  # fmt: skip
        missing = sum(gap[3] for load in loads.values() for gap in load.gaps)
        lost = sum(row["lost"] for row in flows)
        return {
            "cable": name,
            "rate": round(rate),
            # The sender's longest pause, and the longest time between two frames of a flow.
            "pause_ms": round(max(load.pause for load in loads.values()), 1),
            "silence_ms": round(max(load.silence for load in loads.values()), 1),
            # By the end that sends.
            "gap_ms": {
                sender: {
                    phase: max(row["gap_ms"][phase] for row in flows if row["from"] == sender)
                    for phase in PHASES
                }
                for sender in ENDS
            },
            "lost": lost,
            "lost_outside_gaps": lost - missing,
            "duplicated": sum(row["duplicated"] for row in flows),
            "reordered": sum(row["reordered"] for row in flows),
            "back_s": back,
            # Frames per second that each member sends.
            "carried": carried,
            "flows": flows,
        }

    def _sum_up(self):
        cuts = self.row["cuts"]
        gaps = [one for cut in cuts for one in cut["gap_ms"].values()]
        self.row["gap_ms"] = {
            phase: max((one[phase] for one in gaps), default=None) for phase in PHASES
        }
        for key in ("lost", "lost_outside_gaps", "duplicated", "reordered"):
            self.row[key] = sum(cut[key] for cut in cuts)
        self.row["rate"] = min((cut["rate"] for cut in cuts), default=0)
        self.row["back_s"] = max((cut["back_s"] for cut in cuts), default=None)
        if self.row["duplicated"]:
            self._fault(f"{self.row['duplicated']} frames duplicated")


def compare(row):
    """Returns the faults of a kernel's row: of each middle, and of its gaps against `direct`."""
    middles = row["middles"]
    faults = [f"{name}: {fault}" for name, one in middles.items() for fault in one["faults"]]
    direct = middles.get("direct")
    if not direct or not direct["cuts"]:
        return [*faults, "nothing to compare with: `direct` was not measured"]
    for name, one in middles.items():
        for phase, added in ADDED.items() if one["cuts"] else ():
            gap, limit = one["gap_ms"][phase], direct["gap_ms"][phase] + added
            if gap > limit:
                faults.append(f"{name}: {phase}: a gap of {gap:.0f} ms, more than {limit:.0f} ms")
    return faults


def build(target):
    """Compiles lag.c."""
    source = pathlib.Path(__file__).with_name("lag.c")
    subprocess.run(
        ["cc", "-O2", "-Wall", "-Werror", "-static", "-pthread", "-o", target, source], check=True
    )


def run(series, middles, program, rate):
    """Runs the scenario with each middle in a guest: a row."""
    kernel = packages.kernel(series)
    began = time.monotonic()
    row = {"kernel": series, "release": kernel.release, "asked": rate, "flows": 2 * FLOWS,
           "middles": {}, "faults": []}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        archive = pathlib.Path(scratch, "initramfs")
        programs = {"lag": pathlib.Path(scratch, "lag")}
        build(programs["lag"])
        if "box" in middles:
            programs["exitmark"] = cells.strip(program, pathlib.Path(scratch))
        box.write_initramfs(kernel, programs, archive, MODULES, (*box.TOOLS, "sbin/tc"))
        with guest.Guest(kernel, archive, arguments=KERNEL_ARGUMENTS) as machine:
            try:
                row["release"] = machine.wait_ready()
                for name in middles:
                    row["middles"][name] = Measurement(machine, MIDDLES[name](machine), rate).run()
                row["faults"] += machine.complaints()
            except (guest.Died, TimeoutError, RuntimeError) as error:
                row["faults"].append(f"{type(error).__name__}: {error}")
    row["faults"] += compare(row)
    row["ok"] = not row["faults"] and set(row["middles"]) == set(middles)
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def describe(row):
    """Formats a line for a kernel, one for each middle, and one for each fault."""
    lines = [f"{'right   ' if row['ok'] else 'FAILED  '} lag on Linux {row['release']}, "
             f"{row['seconds']:.0f} s"]  # fmt: skip
    for name, one in row["middles"].items():
        if one["cuts"]:
            gap = one["gap_ms"]
            lines.append(
                f"    {name:6} LACP up in {one['lacp_s']} s; {one['rate']} frames/s; "
                f"longest gap: cut {gap['cut']:.0f} ms, repair "
                f"{gap['repair']:.0f} ms (before: {gap['before']:.0f} ms); {one['lost']} lost, "
                f"{one['duplicated']} duplicated, {one['reordered']} reordered; "
                f"two ports again after {one['back_s']} s"
            )
    return "\n".join([*lines, *(f"    {fault}"[:800] for fault in row["faults"])])
