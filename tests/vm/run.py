#!/usr/bin/env python3
"""Tests the box in guests: Linux 6.1 to 7.3, and the NICs that QEMU emulates.

Exit status: 0 as expected, 1 a check failed, 77 no packages for guests (SKIPPED).
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import box
import cells
import guest
import lag
import matrix
import packages
import publish
import suites
import verifier
import waits
import wires

RESULTS = verifier.ROOT / "target/vm.json"
LAG_RESULTS = verifier.ROOT / "target/vm-lag.json"
JOBS = max(1, min(4, (os.cpu_count() or 1) * 3 // 2))
# The timeout of a cell in seconds.
CELL_TIMEOUT = 600
# The most cells per guest: the last guest of a run runs alone.
SHARED = 8


def words(text):
    """Splits an argument at commas."""
    return text.split(",")


@contextlib.contextmanager
def workers(count):
    """A thread pool, one guest per thread. An exception ends all guests."""
    pool = concurrent.futures.ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(guest.RUNNING):
            guest.end(process)
        raise
    finally:
        pool.shutdown()


def load(arguments):
    """The command `load`."""
    suffix = "-cloud" if arguments.cloud else ""
    groups = [f"kernel-{series}{suffix}" for series in arguments.kernels]
    packages.ensure(["qemu", "busybox", *groups])
    rows = []
    with tempfile.TemporaryDirectory(prefix="exitmark-vm-") as scratch:
        loads = verifier.Loads(arguments.bpf, arguments.clang, pathlib.Path(scratch))
        with workers(arguments.jobs) as pool:
            for done in pool.map(lambda s: loads.run(s, arguments.cloud), arguments.kernels):
                verifier.show(done)
                rows += done
    if arguments.json:
        rows_as_data = [dataclasses.asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(rows_as_data, indent=1) + "\n")
    faults = [row.fault() for row in rows if row.fault()]
    for fault in faults:
        print(f"FAILED {fault}")
    return 1 if faults else 0


def run_cells(arguments):
    """The command `cells`: prints a line of JSON per cell when it is done.

    Cells with taps run in a network namespace of their own.
    """
    chosen = [one for one in matrix.CELLS if one.name in arguments.names]
    if not chosen or len({one.group for one in chosen}) != 1:
        print("Name cells of one kernel, with as many queues:", *(one.name for one in matrix.CELLS), sep="\n")
        return 2
    if chosen[0].tap:
        wires.enter_own_namespace()
    good = True
    with open(arguments.json or "/dev/stdout", "w", encoding="ascii", buffering=1) as lines:
        for result in cells.run(chosen, arguments.program.absolute()):
            good &= result.verdict == result.expected
            lines.write(json.dumps(dataclasses.asdict(result)) + "\n")
    return 0 if good else 1


def run_group(group, program, scratch):
    """Runs a group of cells in a process of its own: results."""
    file = scratch / f"{group[0].name}.json"
    command = [sys.executable, __file__, "cells", *(one.name for one in group)]
    command += ["--program", program, "--json", file]
    timeout = CELL_TIMEOUT * len(group)
    with guest.started(command, stderr=subprocess.PIPE, text=True,
                       env=dict(os.environ, TMPDIR=str(scratch))) as process:  # fmt: skip
        try:
            said = process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            said = f"taken down after {timeout} s"
    lines = file.read_text().splitlines() if file.exists() else []
    results = [json.loads(line) for line in lines]
    for one in group[len(results) :]:
        missing = box.Result.of(one)
        missing.check("the cell completed", said[-2000:])
        results.append(dataclasses.asdict(missing))
    return results


def describe(result):
    """Formats a line for a cell, and one per fault."""
    line = f"{result['verdict']:8} {result['name']}, {len(result['checks'])} checks, "
    line += f"{result['seconds']:.0f} s"
    if result["verdict"] != result["expected"]:
        line = f"FAILED   {line} (expected: {result['expected']})"
    faults = [one for one in result["checks"] if not one["ok"]]
    return "\n".join([line, *(f"    {one['name']}: {one['detail']}"[:800] for one in faults)])


def commit():
    """Returns the commit of the tree, with a + if files differ from it."""
    git = ["git", "-C", verifier.ROOT]
    shown = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=False)
    return shown.stdout.strip() + ("+" if changed.stdout else "")


def show(kind, outcome):
    """Prints the result of a job. Returns whether it is as expected."""
    if kind == "cells":
        for result in outcome:
            print(describe(result), flush=True)
        return all(result["verdict"] == result["expected"] for result in outcome)
    if kind == "demo":
        print(f"{'right   ' if outcome['ok'] else 'FAILED  '} demo on Linux {outcome['kernel']}, "
              f"{outcome['seconds']:.0f} s: {outcome.get('numbers')} {outcome.get('said', '')}",
              flush=True)  # fmt: skip
        return outcome["ok"]
    if kind == "suites":
        for row in outcome:
            print(f"{'right   ' if row['ok'] else 'FAILED  '} suite {row['suite']} on Linux "
                  f"{row['release']}, {row['seconds']:.0f} s: {row['passed']} tests passed",
                  *row["said"].splitlines(), sep="\n    ", flush=True)  # fmt: skip
        return all(row["ok"] for row in outcome)
    faults = [row.fault() for row in outcome if row.fault()]
    print(f"{'FAILED  ' if faults else 'right   '} load on Linux {outcome[0].release}",
          *faults, sep="\n    ", flush=True)  # fmt: skip
    return not faults


def groups_of(chosen):
    """Groups cells that share a guest, one NIC after the other."""
    groups = {}
    for one in chosen:
        groups.setdefault(one.group, []).append(one)
    shared = []
    for group in groups.values():
        group.sort(key=lambda one: (one.nic, one.mtu))
        parts = -(-len(group) // SHARED)
        ends = [len(group) * part // parts for part in range(parts + 1)]
        shared += [group[begin:end] for begin, end in zip(ends, ends[1:])]
    return shared


def weight(job):
    """Estimates the time of a job in steps of cells; a boot takes as long as four steps."""
    kind, subject = job
    if kind == "cells":
        return 4 + sum(len(one.steps) for one in subject)
    return {"suites": 64, "demo": 16, "load": 8}[kind]


def run_matrix(arguments):
    """The command `matrix`."""
    chosen = [one for one in matrix.CELLS if re.search(arguments.cells, one.name)]
    everything = arguments.cells == "."
    if os.geteuid():
        for one in [one for one in chosen if one.tap]:
            print(f"SKIPPED {one.name}: a tap device requires root")
            chosen.remove(one)
    kernels = sorted({one.kernel for one in chosen}, key=matrix.KERNELS.index)
    packages.ensure(["qemu", "busybox", "tools", *(f"kernel-{series}" for series in kernels)])
    began = time.monotonic()
    report = {"commit": commit(), "cells": [], "demo": [], "suites": [], "verifier": []}
    good = True
    with tempfile.TemporaryDirectory(prefix="exitmark-vm-") as name:
        scratch = pathlib.Path(name)
        program = cells.strip(arguments.program, scratch)
        loads = verifier.Loads(arguments.bpf, verifier.CLANGS, scratch) if everything else None
        built = suites.build(suites.SUITES, scratch) if everything else None

        def do(kind, subject):
            if kind == "cells":
                return kind, run_group(subject, program, scratch)
            if kind == "suites":
                return kind, suites.run(subject, built)
            return kind, cells.demo(subject, program) if kind == "demo" else loads.run(subject)

        jobs = [("cells", group) for group in groups_of(chosen)]
        if everything:
            jobs += [(kind, one) for kind in ("load", "demo", "suites") for one in kernels]
        # The longest jobs first, so that the last ones are short.
        jobs.sort(key=weight, reverse=True)
        with workers(arguments.jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(do, *job) for job in jobs]):
                kind, outcome = done.result()
                good &= show(kind, outcome)
                if kind == "load":
                    report["verifier"] += [dataclasses.asdict(row) for row in outcome]
                else:
                    report[kind] += [outcome] if kind == "demo" else outcome
    order = [one.name for one in matrix.CELLS]
    report["cells"].sort(key=lambda row: order.index(row["name"]))
    for part in ("demo", "suites", "verifier"):
        report[part].sort(key=lambda row: matrix.KERNELS.index(row["kernel"]))
    report["seconds"] = round(time.monotonic() - began)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(chosen)} cells in {report['seconds']} s: {RESULTS}")
    return 0 if good else 1


def run_suites(arguments):
    """The command `suites`."""
    unknown = set(arguments.only) - set(suites.SUITES)
    if unknown:
        print(f"suites: no suite {', '.join(unknown)}; there are: {', '.join(suites.SUITES)}")
        return 2
    packages.ensure(["qemu", "busybox", "tools", *(f"kernel-{one}" for one in arguments.kernels)])
    with tempfile.TemporaryDirectory(prefix="exitmark-vm-") as name:
        built = suites.build(arguments.only, pathlib.Path(name))
        with workers(arguments.jobs) as pool:
            rows = pool.map(lambda one: suites.run(one, built), arguments.kernels)
            good = [show("suites", row) for row in rows]
    return 0 if all(good) else 1


def run_lag(arguments):
    """The command `lag`: one guest at a time, because gaps are measured."""
    unknown = set(arguments.middles) - set(lag.MIDDLES)
    if unknown:
        print(f"lag: no middle {', '.join(unknown)}; there are: {', '.join(lag.MIDDLES)}")
        return 2
    packages.ensure(["qemu", "busybox", "tools", *(f"kernel-{one}" for one in arguments.kernels)])
    rows = []
    for series in arguments.kernels:
        rows.append(lag.run(series, arguments.middles, arguments.program, arguments.rate))
        print(lag.describe(rows[-1]), flush=True)
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps({"commit": commit(), "lag": rows}, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


def run_waits(arguments):
    """The command `waits`."""
    packages.ensure(["qemu", "busybox", "tools", f"kernel-{arguments.kernel}"])
    with tempfile.TemporaryDirectory(prefix="exitmark-vm-") as scratch:
        program = cells.strip(arguments.program, pathlib.Path(scratch))
        found = waits.run(arguments.kernel, arguments.nic, program, arguments.rate, arguments.rounds)
    waits.show(found)
    return 0


def run_publish(arguments):
    """The command `publish`."""
    if arguments.check:
        return publish.check()
    return publish.publish(json.loads(RESULTS.read_text()))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(required=True)
    path = pathlib.Path

    command = commands.add_parser("load", help="load every BPF program, count instructions")
    command.add_argument("--kernels", type=words, default=verifier.KERNELS)
    command.add_argument("--clang", type=words, default=verifier.CLANGS, help="or: system")
    command.add_argument("--cloud", action="store_true", help="small kernels, fetched faster")
    command.add_argument("--json", type=path, help="write the rows to a file")
    command.set_defaults(run=load)

    everything = commands.add_parser("matrix", help="run every cell, and write target/vm.json")
    everything.add_argument("--cells", default=".", help="a regular expression of names")
    everything.set_defaults(run=run_matrix)
    for one in (command, everything):
        one.add_argument("--bpf", type=path, default=verifier.ROOT / "bpf", help="*.bpf.c")
        one.add_argument("--jobs", type=int, default=JOBS, help="guests at a time")

    command = commands.add_parser("suites", help="run test suites on each kernel")
    command.add_argument("--kernels", type=words, default=matrix.KERNELS)
    command.add_argument("--only", type=words, default=tuple(suites.SUITES), metavar="SUITES",
                         help=", ".join(suites.SUITES))  # fmt: skip
    command.add_argument("--jobs", type=int, default=JOBS, help="guests at a time")
    command.set_defaults(run=run_suites)

    aggregate = commands.add_parser("lag", help="cut the cables of a link aggregate over two wires")
    aggregate.add_argument("--kernels", type=words, default=matrix.KERNELS)
    aggregate.add_argument("--middles", type=words, default=["direct"],
                           help=f"what joins the members: {', '.join(lag.MIDDLES)}")  # fmt: skip
    aggregate.add_argument("--rate", type=int, default=lag.RATE, help="frames per second")
    aggregate.add_argument("--json", type=path, default=LAG_RESULTS, help="where the rows go")
    aggregate.set_defaults(run=run_lag)

    waiting = commands.add_parser("waits", help="latency by the settings of waiting workers")
    waiting.add_argument("--kernel", default="6.18")
    waiting.add_argument("--nic", default="virtio", choices=matrix.DEVICES)
    waiting.add_argument("--rate", type=int, default=waits.RATE, help="frames per second")
    waiting.add_argument("--rounds", type=int, default=waits.ROUNDS)
    waiting.set_defaults(run=run_waits)

    command = commands.add_parser("cells", help="run cells that share a guest")
    command.add_argument("names", nargs="*")
    command.add_argument("--json", type=path, help="write the results to a file, one a line")
    command.set_defaults(run=run_cells)
    for one in (command, everything, aggregate, waiting):
        built = verifier.ROOT / "target/release/exitmark"
        one.add_argument("--program", type=path, default=built, help="the box")

    command = commands.add_parser("publish", help="write docs/kernels.md from target/vm.json")
    command.add_argument("--check", action="store_true", help="compare it with what was published")
    command.set_defaults(run=run_publish)

    arguments = parser.parse_args()
    guest.stop_on_signals()
    try:
        return arguments.run(arguments)
    except packages.Unavailable as reason:
        print(f"SKIPPED guests: {reason}")
        return packages.SKIPPED


if __name__ == "__main__":
    sys.exit(main())
