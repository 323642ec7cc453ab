"""How the box's workers wait for frames: the round trip through a guest, and the core time.

Frames enter the guest one at a time, at a fixed rate, and their time ends when they are back in this
process. Under emulation all of it is slow: only the ratios of the settings say something.
"""

import dataclasses
import itertools
import statistics
import time

import box
import frames
import matrix

# The lines of [datapath] by the name of a setting. `in the kernel` has another engine, and no worker.
SETTINGS = {
    "in the kernel": "",
    "sleep": 'spin = 0\ncpu_latency = "off"',
    "default": "",
    "spin 1000": "spin = 1000",
}
RATE = 5000
FRAMES = 10_000
WARM_UP = 500
ROUNDS = 5
# The sum over all threads, in nanoseconds.
CORE_TIME = """
for thread in /proc/$(cat /tmp/pid)/task/*/schedstat; do read -r ran _ < $thread; echo $ran; done
"""
IDLE_DRIVER = "cat /sys/devices/system/cpu/cpuidle/current_driver 2> /dev/null || echo none"


@dataclasses.dataclass
class Round:
    """One run of a setting: times in microseconds, and the part of a core that the box took."""

    p50: float
    p99: float
    core: float
    lost: int
    rate: float


class Trips:
    """The times of frames from their departure into the host's wire until the uplink's."""

    def __init__(self, machine):
        self._machine = machine
        self._arrived = {}

    def _arrives(self, frame):
        number = frames.number_of(frame)
        if number is not None:
            self._arrived.setdefault(number, time.perf_counter())

    def send(self, count, rate):
        """Sends exit frames at a rate; returns the times of those that arrived, and the real rate."""
        cases = [self._machine.numbers.stream("exit") for _ in range(count)]
        host, uplink = self._machine.wires["h"], self._machine.wires["u"]
        sent = {}
        with uplink.watched(self._arrives):
            begin = time.perf_counter()
            for place, case in enumerate(cases):
                rest = begin + place / rate - time.perf_counter()
                if rest > 0:
                    time.sleep(rest)
                sent[frames.number_of(case.before)] = time.perf_counter()
                host.send(case.before)
            length = time.perf_counter() - begin
            deadline = time.monotonic() + 3
            while len(self._arrived) < count and time.monotonic() < deadline:
                time.sleep(0.02)
        times = [self._arrived[number] - at for number, at in sent.items() if number in self._arrived]
        self._arrived = {}
        return times, count / length


def core_time(machine):
    """Returns the core time of the box in seconds."""
    return sum(map(int, machine.guest.check(CORE_TIME).split())) / 1e9


def measure(machine, lines, engine, rate):
    """Starts the box with these lines in [datapath], measures it, and ends it."""
    values = {"engine": engine, "mode": "enforce", "zero_copy": machine.cell.zero_copy}
    text = frames.CONFIGURATION.format(**values).replace("sample = 1\n", f"{lines}\n")
    machine.guest.put(box.CONFIG, text)
    ready, output = machine.start()
    if not ready:
        raise box.Wrong(output)
    machine.until("first frames", "exit")
    trips = Trips(machine)
    trips.send(WARM_UP, rate)
    before = core_time(machine)
    times, real = trips.send(FRAMES, rate)
    spent = core_time(machine) - before
    machine.guest.run(f"kill $(cat /tmp/pid); {box.GONE}")
    machine.exitmark("detach")
    if len(times) < FRAMES / 2:
        raise box.Wrong(f"of {FRAMES} frames only {len(times)} arrived")
    cuts = statistics.quantiles(times, n=100)
    return Round(cuts[49] * 1e6, cuts[98] * 1e6, spent / (FRAMES / real), FRAMES - len(times), real)


def run(kernel, nic, program, rate=RATE, rounds=ROUNDS, settings=None):
    """Measures every setting in alternating rounds: a list of rounds by setting."""
    cell = matrix.Cell(kernel, nic, "native", "af_xdp")
    machine = box.Box([cell], program)
    found = {}
    try:
        machine.boot()
        machine.turn_to(cell, box.Result.of(cell))
        driver = machine.guest.check(IDLE_DRIVER).strip()
        print(f"Linux {machine.release}, {nic}, driver of idle states: {driver}", flush=True)
        for number, (name, lines) in itertools.product(range(rounds), (settings or SETTINGS).items()):
            engine = "xdp" if name == "in the kernel" else "af_xdp"
            one = measure(machine, lines, engine, rate)
            found.setdefault(name, []).append(one)
            print(f"  round {number + 1}, {name}: {one.p50:.0f} us, 99 % {one.p99:.0f} us, "
                  f"{one.core:.0%} of a core, {one.rate:.0f}/s, {one.lost} lost", flush=True)  # fmt: skip
    finally:
        machine.close()
    return found


def show(found):
    """Prints the medians, and the ratios to the first setting within each round."""
    first = next(iter(found.values()))
    print(f"{'setting':16} {'50 %, us':>9} {'99 %, us':>9} {'core':>6} {'ratio':>6}")
    for name, rounds in found.items():
        middle = lambda key: statistics.median(getattr(one, key) for one in rounds)
        ratio = statistics.median(one.p50 / its.p50 for one, its in zip(rounds, first))
        print(f"{name:16} {middle('p50'):9.0f} {middle('p99'):9.0f} {middle('core'):6.0%} {ratio:6.2f}")
