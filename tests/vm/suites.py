"""Test suites of the project in guests, on kernels that have what this machine's may lack: VLAN
interfaces. One guest per kernel runs the suites one after the other."""

import dataclasses
import json
import pathlib
import re
import subprocess
import tempfile
import time

import box
import guest
import packages
import verifier

# The suites, each with the filters of its tests; without a filter all of them run. Every start of a
# box takes long here, because the kernel's verifier is emulated too.
SUITES = {
    "connect": (),
    "nic": (),
    "wire": ("trunk", "wires::hosts_with_a_wire_each", "wires::no_frame_crosses"),
}
MODULES = (
    # nf_tables needs it before Linux 6.18, through libcrc32c, which does not name it.
    "crc32c_generic", "veth", "af_packet", "8021q", "bridge", "macvlan", "sch_ingress", "cls_bpf", "nf_tables",
    "nft_objref",
)  # fmt: skip
TOOLS = (*box.TOOLS, "usr/sbin/nft")
# The timeout of a suite in seconds.
TIMEOUT = 1800
# How much longer the tests wait than on a machine that is not emulated.
SLOWNESS = 8
# MiB. A capture has a buffer of 64 MiB, and the archive's files are in memory.
MEMORY = 2048
# In place of clang: prints the object file that was compiled before the guest was started.
CLANG = """#!/bin/sh
[ "$1" != -print-multiarch ] || exec echo
for word; do
    case $word in *.bpf.c) exec cat "/sources/$word" ;; esac
done
echo "this guest has no compiler: $*" >&2
exit 1
"""
# The flags of src/lab/bpf.rs.
FLAGS = ("-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3")


@dataclasses.dataclass(frozen=True)
class Build:
    """Programs without symbols."""

    # Test programs by suite.
    tests: dict
    program: pathlib.Path
    # The path at which the tests expect the program.
    expected: pathlib.Path
    # Object files by the paths of their sources in the project.
    objects: dict


def build(names, directory):
    """Builds suites, the box that they run, and the BPF programs that they compile themselves."""
    command = ["cargo", "test", "--locked", "--no-run", "--message-format=json"]
    for name in names:
        command += ["--test", name]
    built = subprocess.run(
        command, cwd=verifier.ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    artifacts = [json.loads(line) for line in built.stdout.splitlines()]
    made = {one["target"]["name"]: one["executable"] for one in artifacts if one.get("executable")}
    stripped = {name: directory / f"{name}-stripped" for name in (*names, "exitmark")}
    for name, target in stripped.items():
        subprocess.run(["strip", "-o", target, made[name]], check=True)
    objects = {}
    for source in sorted((verifier.ROOT / "tests/bpf").glob("*.bpf.c")):
        place = str(source.relative_to(verifier.ROOT))
        objects[place] = directory / f"{source.name}.o"
        command = ["clang", *FLAGS, verifier.headers(), "-c", place, "-o", objects[place]]
        subprocess.run(command, cwd=verifier.ROOT, check=True)
    program = stripped.pop("exitmark")
    return Build(stripped, program, pathlib.Path(made["exitmark"]), objects)


def write_archive(kernel, built, path):
    """Writes the initramfs of a guest."""
    files = {place: (file.read_bytes(), 0o644) for place, file in built.objects.items()}
    # The file by which the tests find the project's sources.
    files["bpf/exitmark.bpf.c"] = (b"", 0o644)
    files = {f"sources/{place}": content for place, content in files.items()}
    files["t/clang"] = (CLANG.encode(), 0o755)
    # The tests' commands are for a shell that calls ip(8), not busybox's own.
    programs = {**built.tests, "exitmark": built.program, "sh": pathlib.Path("/bin/sh")}
    box.write_initramfs(kernel, programs, path, MODULES, TOOLS, files)


def attempt(machine, name):
    """Runs a suite in a booted guest: a part of its row."""
    machine.check("dmesg -c > /dev/null")
    words = " ".join((name, *SUITES[name], "--test-threads=2"))
    status, _ = machine.run(
        f"cd /sources && EXITMARK_SLOWNESS={SLOWNESS} EXITMARK_REQUIRE_ROOT=1 timeout -s KILL {TIMEOUT} {words} > /tmp/said 2>&1",
        TIMEOUT + 60,
    )
    said = machine.run("tail -c 20000 /tmp/said")[1]
    passed = re.search(r"test result: \w+\. (\d+) passed", said)
    row = {"passed": int(passed[1]) if passed else 0, "complaints": machine.complaints()}
    faults = [*row["complaints"]]
    # The machine's kernel and tools are known, so a skipped test is a fault.
    faults += machine.run("grep SKIPPED /tmp/said | sort | uniq -c")[1].splitlines()
    if status:
        faults.append(f"exit status {status}:\n{said}")
    elif not row["passed"]:
        faults.append(f"no test ran: {words}")
    return row | {"ok": not faults, "said": "\n".join(faults)}


def run(series, built):
    """Runs suites in a guest: a row for each."""
    kernel = packages.kernel(series)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        archive = pathlib.Path(scratch, "initramfs")
        write_archive(kernel, built, archive)
        with guest.Guest(kernel, archive, memory=MEMORY) as machine:
            ended = ""
            for name in built.tests:
                began = time.monotonic()
                row = {"kernel": series, "release": kernel.release, "suite": name, "passed": 0}
                try:
                    if not rows:
                        machine.wait_ready()
                        machine.check(
                            f"mkdir -p {built.expected.parent} && "
                            f"ln -s /t/exitmark {built.expected} && "
                            "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
                        )
                    row |= {"ok": False, "said": ended} if ended else attempt(machine, name)
                except (guest.Died, TimeoutError, RuntimeError) as error:
                    row |= {"ok": False, "said": str(error)}
                    ended = f"not run: the guest was lost in suite {name}"
                row["seconds"] = round(time.monotonic() - began, 1)
                rows.append(row)
    return rows
