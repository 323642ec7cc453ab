#!/usr/bin/env python3
"""The box in guests: Linux 6.1 to 7.3, and the NICs that QEMU emulates.

Exit status: 0 all right, 1 something is wrong, 77 there are no packages for guests (SKIPPED).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

import guest
import packages
import verifier

JOBS = max(1, min(2, os.cpu_count() or 1))


def words(text):
    """A list of an argument's parts."""
    return text.split(",")


def load(arguments):
    """The command `load`."""
    rows = verifier.run(
        arguments.kernels, arguments.clang, arguments.cloud, arguments.bpf, arguments.jobs
    )
    if arguments.json:
        rows_as_data = [dataclasses.asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(rows_as_data, indent=1) + "\n")
    faults = [row.fault() for row in rows if row.fault()]
    for fault in faults:
        print(f"FAILED {fault}")
    return 1 if faults else 0


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("load", help="load every BPF program, count instructions")
    command.add_argument("--kernels", type=words, default=verifier.KERNELS)
    command.add_argument("--clang", type=words, default=verifier.CLANGS, help="or: system")
    command.add_argument("--cloud", action="store_true", help="small kernels, fetched faster")
    command.add_argument(
        "--bpf", type=pathlib.Path, default=verifier.ROOT / "bpf", help="directory of *.bpf.c"
    )
    command.add_argument("--json", type=pathlib.Path, help="write the rows to a file")
    command.set_defaults(run=load)
    for command in commands.choices.values():
        command.add_argument("--jobs", type=int, default=JOBS, help="guests at a time")
    arguments = parser.parse_args()
    guest.stop_on_signals()
    try:
        return arguments.run(arguments)
    except packages.Unavailable as reason:
        print(f"SKIPPED guests: {reason}")
        return packages.SKIPPED


if __name__ == "__main__":
    sys.exit(main())
