#!/usr/bin/env python3
"""The box in guests: Linux 6.1 to 7.3, and the NICs that QEMU emulates.

Exit status: 0 all right, 1 something is wrong, 77 there are no packages for guests (SKIPPED).
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import box
import guest
import matrix
import packages
import publish
import verifier

RESULTS = verifier.ROOT / "target/vm.json"
JOBS = max(1, min(2, os.cpu_count() or 1))
# Seconds after which a cell is taken down.
CELL_TIMEOUT = 400


def words(text):
    """A list of an argument's parts."""
    return text.split(",")


def load(arguments):
    """The command `load`."""
    suffix = "-cloud" if arguments.cloud else ""
    groups = [f"kernel-{series}{suffix}" for series in arguments.kernels]
    packages.ensure(["qemu", "busybox", *groups])
    rows = []
    with tempfile.TemporaryDirectory(prefix="exitmark-vm-") as scratch:
        loads = verifier.Loads(arguments.bpf, arguments.clang, pathlib.Path(scratch))
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
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


def cell(arguments):
    """The command `cell`."""
    chosen = next((one for one in matrix.CELLS if one.name == arguments.name), None)
    if chosen is None:
        print("\n".join(one.name for one in matrix.CELLS))
        return 2
    result = dataclasses.asdict(box.run(chosen, arguments.program.absolute()))
    if arguments.json:
        arguments.json.write_text(json.dumps(result))
    else:
        print(json.dumps(result, indent=1))
    return 0 if result["verdict"] == chosen.expect else 1


def run_cell(chosen, program, scratch):
    """Runs a cell in a process of its own; one that needs taps, in a network namespace as well."""
    file = scratch / f"{chosen.name}.json"
    command = [sys.executable, __file__, "cell", chosen.name]
    command += ["--program", program, "--json", file]
    if chosen.tap:
        command = ["unshare", "--net", "--kill-child", "--fork", *command]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        said = process.communicate(timeout=CELL_TIMEOUT)[1]
    except subprocess.TimeoutExpired:
        said = f"taken down after {CELL_TIMEOUT} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if file.exists():
        return json.loads(file.read_text())
    failed = box.Result.of(chosen)
    failed.check("the cell ran to its end", said[-2000:])
    return dataclasses.asdict(failed)


def describe(result):
    """A line about a cell, and one for each fault."""
    line = f"{result['verdict']:8} {result['name']}, {len(result['checks'])} checks, "
    line += f"{result['seconds']:.0f} s"
    if result["verdict"] != result["expected"]:
        line = f"FAILED   {line} (expected: {result['expected']})"
    faults = [one for one in result["checks"] if not one["ok"]]
    return "\n".join([line, *(f"    {one['name']}: {one['detail']}"[:800] for one in faults)])


def commit():
    """The commit of the tree, with a + where files differ from it."""
    git = ["git", "-C", verifier.ROOT]
    shown = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=False)
    return shown.stdout.strip() + ("+" if changed.stdout else "")


def run_matrix(arguments):
    """The command `matrix`."""
    cells = [one for one in matrix.CELLS if re.search(arguments.cells, one.name)]
    everything = arguments.cells == "."
    if os.geteuid():
        for one in [one for one in cells if one.tap]:
            print(f"SKIPPED {one.name}: it takes root for a tap device")
            cells.remove(one)
    kernels = sorted({one.kernel for one in cells}, key=matrix.KERNELS.index)
    groups = ["qemu", "busybox", "tools", *(f"kernel-{series}" for series in kernels)]
    if everything:
        groups += [f"clang-{version}" for version in verifier.CLANGS if version != "14"]
    packages.ensure(groups)
    began = time.monotonic()
    report = {"commit": commit(), "cells": [], "demo": [], "verifier": []}
    good = True
    with tempfile.TemporaryDirectory(prefix="exitmark-vm-") as name:
        scratch = pathlib.Path(name)
        program = box.strip(arguments.program, scratch)
        loads = verifier.Loads(arguments.bpf, verifier.CLANGS, scratch) if everything else None

        def do(job):
            kind, subject = job
            if kind == "cell":
                return job, run_cell(subject, program, scratch)
            return job, box.demo(subject, program) if kind == "demo" else loads.run(subject)

        jobs = [("cell", one) for one in sorted(cells, key=lambda one: -len(one.steps))]
        if everything:
            jobs = [(kind, one) for kind in ("load", "demo") for one in kernels] + jobs
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(do, job) for job in jobs]):
                (kind, subject), outcome = done.result()
                if kind == "cell":
                    report["cells"].append(outcome)
                    good &= outcome["verdict"] == subject.expect
                    print(describe(outcome), flush=True)
                elif kind == "demo":
                    report["demo"].append(outcome)
                    good &= outcome["ok"]
                    verdict = "right   " if outcome["ok"] else "FAILED  "
                    print(f"{verdict} demo on {outcome['release']}: {outcome.get('numbers')} "
                          f"{outcome.get('said', '')}", flush=True)  # fmt: skip
                else:
                    report["verifier"] += [dataclasses.asdict(row) for row in outcome]
                    faults = [row.fault() for row in outcome if row.fault()]
                    good &= not faults
                    print(f"{'FAILED  ' if faults else 'right   '} load on {outcome[0].release}",
                          *faults, sep="\n    ", flush=True)  # fmt: skip
    order = [one.name for one in matrix.CELLS]
    report["cells"].sort(key=lambda row: order.index(row["name"]))
    for part in ("demo", "verifier"):
        report[part].sort(key=lambda row: matrix.KERNELS.index(row["kernel"]))
    report["seconds"] = round(time.monotonic() - began)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(cells)} cells in {report['seconds']} s: {RESULTS}")
    return 0 if good else 1


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

    command = commands.add_parser("cell", help="run one cell, and print its result")
    command.add_argument("name")
    command.add_argument("--json", type=path, help="write the result to a file")
    command.set_defaults(run=cell)
    for one in (command, everything):
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
