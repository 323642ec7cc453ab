#!/usr/bin/env python3
"""The pages' commands on Debian machines: `make vm-install-test` runs it. Requires root.

    install.py FIRST SECOND OUT [RELEASE...]
    install.py --plan        lists the blocks and their checks; fails if one is unknown

FIRST and SECOND are directories with the packages of `make deb`, of two versions; OUT is the result
(JSON), next to which a directory keeps consoles and journals. Each Debian release boots in a guest,
between a Tor host, a clearnet router and a network of relays. Every `sh` block of the installation
in docs/install.md, and of the monitor's page, runs there unchanged; trial.py checks the state
before and after each. Then come reboot, restart, watchdog, kill, upgrade and purge.

Stubs: `editor` is a script that changes lines (trial.EDITS). The image's own repository provides
packages, and tor's documents are files: those of EXITMARK_REAL_DATA, with the guest's clock set to
their date, or synthetic ones, signed by the lab's authorities.

Exit status: 0 all steps passed or nothing can be run here (SKIPPED), 1 a step failed.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import tarfile
import time

import image
import machine
import network
import packages
import pages
from documents import Documents
from trial import CONFIG, FAILURES, Trial, Wrong, require
from verifier import ROOT

# The blocks of the pages in order: the beginning of each, and its check, or why it does not run.
BOX_BLOCKS = (
    ("apt update && apt install -y make", "make has built the packages on this machine"),
    ("apt install -y ./target/deb/exitmark_", Trial.install),
    ("cat > /etc/network/interfaces.d/exitmark", Trial.configure_nics),
    ("apt install -y tor tcpdump", Trial.tor),
    ("exitmark relays /var/lib/tor/", Trial.relays),
    ("cp /usr/share/exitmark/exitmark.example.toml", Trial.run_only),
    ("systemctl start run-bpf-exitmark.mount", Trial.look),
    ("systemctl enable --now exitmark", Trial.start),
    (f"editor {CONFIG}", Trial.enforce),
    ("exitmark capture", Trial.marked_packet),
)
MONITOR_BLOCKS = (
    ("apt install -y ./target/deb/exitmark-monitor_", Trial.install_monitor),
    ("cat > /etc/network/interfaces.d/tap", Trial.configure_tap),
    ("cp /usr/share/exitmark-monitor/exitmark-monitor.example.toml", Trial.run_only),
    ("systemctl enable --now exitmark-monitor", Trial.start_monitor),
    ("exitmark-monitor report", Trial.report),
    ("systemctl enable --now exitmark-monitor-report.timer", Trial.report_timer),
    ("exitmark-monitor capture --pcap", "captured files take no service; tests/monitor has them"),
)
DETACH_BLOCKS = (("systemctl stop exitmark", Trial.detach),)
BEFORE_DETACH = (
    Trial.restart, Trial.watchdog, Trial.kill, Trial.upgrade, Trial.reboot, Trial.stop,
    Trial.keep_the_wire,
)  # fmt: skip
AFTER_DETACH = (Trial.start_again, Trial.purge, Trial.healthy)


def matched(blocks, known, page):
    """Returns blocks with their checks. Raises Wrong if page and table differ."""
    for block, (opening, _) in zip(blocks, known):
        first = block.text.splitlines()[0]
        require(block.text.startswith(opening), f"{block} begins `{first}`, not `{opening}`")
    require(
        len(blocks) == len(known),
        f"{page} has {len(blocks)} blocks, and tests/vm/install.py knows {len(known)}",
    )
    return [(block, how) for block, (_, how) in zip(blocks, known)]


def plan():
    """Returns all blocks of the pages, in the order of execution."""
    box = ROOT / "docs/install.md"
    steps = pages.shell_blocks(box, ("Install", "From nothing to a marked packet"))
    monitor = pages.shell_blocks(ROOT / "docs/monitor.md", ("From a tap to a page",))
    removal = pages.shell_blocks(box, ("Removing the box",))
    return (
        matched(steps, BOX_BLOCKS, "docs/install.md"),
        matched(monitor, MONITOR_BLOCKS, "docs/monitor.md"),
        matched(removal, DETACH_BLOCKS, "docs/install.md"),
    )


def follow(trial, blocks):
    """Runs blocks, each a row."""
    for block, how in blocks:
        name = f"{block}: {block.text.splitlines()[0]}"
        if isinstance(how, str):
            trial.rows.append({"step": name, "ok": True, "seconds": 0, "not run": how})
            continue
        with trial.row(name):
            how(trial, block)


def happen(trial, events):
    """Runs events, each a row."""
    for event in events:
        with trial.row(event.__name__.replace("_", " ")):
            event(trial)


def booted(*parts):
    """Returns a booted machine. Starts QEMU again if it fails by itself.

    QEMU 10 sometimes fails an assertion (`iotlb_to_section`) during PCI enumeration.
    """
    try:
        return machine.Machine(*parts)
    except (RuntimeError, ConnectionError) as error:
        print(f"  the machine is started again: {error}", flush=True)
        return machine.Machine(*parts)


def try_release(release, blocks, documents, first, second, out):
    """Runs all steps on one release. Returns its part of the result."""
    made = image.make(release)
    work = out / release
    work.mkdir(parents=True, exist_ok=True)
    cargo = work / "cargo.tar"
    with tarfile.open(cargo, "w") as tar:
        for deb in first.glob("*.deb"):
            tar.add(deb, f"target/deb/{deb.name}")
        for deb in second.glob("*.deb"):
            tar.add(deb, f"next/{deb.name}")
        for name in ("cached-microdesc-consensus", "cached-certs"):
            tar.add(work.parent / name, f"documents/{name}")
    [newer] = second.glob("exitmark_*.deb")
    version = newer.name.split("_")[1]
    result = {"steps": []}
    began = time.monotonic()
    print(f"{image.RELEASES[release]} ({release})", flush=True)
    with network.Network(documents.relays) as net:
        with booted(made, net, work, cargo, documents.clock) as guest:
            trial = Trial(guest, net, documents, version)
            result["steps"] = trial.rows
            try:
                with trial.row("boot"):
                    guest.run("tar -xf /dev/vdb -C /root")
                    guest.until("systemctl is-system-running --wait", "the machine is not running")
                    result["kernel"] = guest.run("uname -r").strip()
                    trial.facts["kernel"] = result["kernel"]
                way, monitor, detach = blocks
                follow(trial, way)
                # Test the box even if the monitor fails.
                with contextlib.suppress(*FAILURES):
                    follow(trial, monitor)
                happen(trial, BEFORE_DETACH)
                follow(trial, detach)
                happen(trial, AFTER_DETACH)
            except FAILURES:
                pass  # The row records it.
            finally:
                with contextlib.suppress(Exception):
                    journal = guest.attempt("journalctl --no-pager -o short-monotonic")[1]
                    (work / "journal.txt").write_text(journal)
    cargo.unlink()
    result["seconds"] = round(time.monotonic() - began, 1)
    result["ok"] = all(row["ok"] for row in result["steps"]) and len(result["steps"]) > 1
    return result


def main(arguments):
    """Parses the command line and runs the test."""
    try:
        blocks = plan()
    except (Wrong, ValueError) as error:
        print(f"FAILED: {error}")
        return 1
    if arguments == ["--plan"]:
        for block, how in [each for part in blocks for each in part]:
            print(f"{block}: {how if isinstance(how, str) else how.__doc__}")
        return 0
    if len(arguments) < 3:
        print(__doc__)
        return 2
    first, second, result = map(pathlib.Path, arguments[:3])
    releases = arguments[3:] or list(image.RELEASES)
    # Clean up on SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if os.geteuid() != 0:
        print("SKIPPED make vm-install-test: taps and images require root")
        return 0
    out = result.with_suffix("")
    out.mkdir(parents=True, exist_ok=True)
    documents = Documents.find(out)
    (out / "cached-microdesc-consensus").write_bytes(documents.consensus)
    (out / "cached-certs").write_bytes(documents.certificates)
    if documents.authorities:
        print("SKIPPED real documents: EXITMARK_REAL_DATA is unset; synthetic ones are used")
    results = {}
    for release in releases:
        try:
            results[release] = try_release(release, blocks, documents, first, second, out)
        except packages.Unavailable as reason:
            print(f"SKIPPED {release}: {reason}")
            results[release] = {"skipped": str(reason)}
    result.write_text(json.dumps({"documents": documents.source, "releases": results}, indent=2) + "\n")
    failed = [name for name, each in results.items() if not each.get("ok", "skipped" in each)]
    print(f"{result}: {'FAILED ' + ', '.join(failed) if failed else 'no failure'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
