"""Writes the tables of docs/kernels.md from the results of the matrix."""

import json
import sys

import matrix
import verifier

PAGE = verifier.ROOT / "docs/kernels.md"
DATA = verifier.ROOT / "docs/kernels/results.json"
BEGIN, END = "<!-- guests: begin -->\n", "<!-- guests: end -->\n"


def condense(report):
    """Returns the published part of a report."""
    keys = ("name", "kernel", "nic", "mode", "engine", "zero_copy", "queues", "spare", "mtu", "verdict",
            "expected")  # fmt: skip
    cells = []
    for row in report["cells"]:
        cell = {key: row[key] for key in keys}
        cell["checks"] = len(row["checks"])
        if row["verdict"] == "refused":
            cell["message"] = row["message"]
        if row["verdict"] == "wrong":
            cell["faults"] = [one["name"] for one in row["checks"] if not one["ok"]]
        cells.append(cell)
    demo = [
        {"kernel": row["kernel"], "ok": row["ok"], "numbers": row.get("numbers")}
        for row in report["demo"]
    ]
    suites = [
        {key: row[key] for key in ("kernel", "suite", "ok", "passed")} for row in report["suites"]
    ]
    kept = ("kernel", "clang", "object", "program", "result", "instructions")
    return {
        "commit": report["commit"],
        "seconds": report["seconds"],
        "releases": {row["kernel"]: row["release"] for row in report["verifier"]},
        "cells": cells,
        "demo": demo,
        "suites": suites,
        "verifier": [{key: row[key] for key in kept} for row in report["verifier"]],
    }


def _table(head, rows):
    lines = [head, ["---", *(["---:"] if head[0] == "program" else ["---"]) * (len(head) - 1)]]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in [*lines, *rows])


def _cells(data):
    rows, notes = {}, []
    for cell in data["cells"]:
        settings = f"`{cell['engine']}`"
        if cell["zero_copy"] != "off":
            settings += f", zero_copy `{cell['zero_copy']}`"
        if cell["queues"] > 1:
            settings += f", {cell['queues']} queues"
        if cell["spare"]:
            settings += f" and {cell['spare']} to spare"
        if cell["mtu"] != 1500:
            settings += f", MTU {cell['mtu']}"
        text = cell["verdict"]
        if text == "right":
            text += f", {cell['checks']}"
        else:
            note = cell.get("message") or "; ".join(cell.get("faults", []))
            if note not in notes:
                notes.append(note)
            text += f" [{notes.index(note) + 1}]"
        rows.setdefault((cell["nic"], cell["mode"], settings), {})[cell["kernel"]] = text
    table = _table(
        ["NIC", "frames", "engine", *(f"Linux {kernel}" for kernel in matrix.KERNELS)],
        [[*key, *(row.get(kernel, "") for kernel in matrix.KERNELS)] for key, row in rows.items()],
    )
    return table + "\n" + "".join(f"[{n}] {note}\n\n" for n, note in enumerate(notes, 1))


def _demo(data):
    rows = []
    for row in data["demo"]:
        numbers = row["numbers"]
        if numbers is None:
            rows.append([f"Linux {row['kernel']}", "failed", "", "", ""])
            continue
        rows.append([
            f"Linux {row['kernel']}", numbers["lost"], numbers["relay"]["leaked"],
            numbers["exit"]["unmarked"], numbers["other"]["changed"],
        ])  # fmt: skip
    return _table(["`exitmark demo`", "lost", "leaked", "unmarked", "changed"], rows)


def _suites(data):
    rows = {}
    for row in data.get("suites", []):
        text = f"{row['passed']} passed" + ("" if row["ok"] else ", with faults")
        rows.setdefault(f"`{row['suite']}`", {})[row["kernel"]] = text
    if not rows:
        return ""
    return "\n" + _table(
        ["suite", *(f"Linux {kernel}" for kernel in matrix.KERNELS)],
        [[name, *(row.get(kernel, "") for kernel in matrix.KERNELS)] for name, row in rows.items()],
    )


def _verifier(data):
    found = {}
    for row in data["verifier"]:
        key = (f"`{row['object']}.{row['program']}`", f"clang {row['clang']}")
        text = f"{row['instructions']:,}" if not row["result"] else "refused"
        found.setdefault(key, {})[row["kernel"]] = text
    return _table(
        ["program", "compiler", *(f"Linux {kernel}" for kernel in matrix.KERNELS)],
        [[*key, *(row.get(kernel, "") for kernel in matrix.KERNELS)]
         for key, row in sorted(found.items())],
    )  # fmt: skip


def render(data):
    """Returns the generated part of the page."""
    releases = ", ".join(f"{kernel} is {name}" for kernel, name in data["releases"].items())
    return (
        f"{BEGIN}Kernels of Debian: {releases}. `make vm-test` took "
        f"{data['seconds'] / 60:.0f} minutes on 2 cores.\n\n"
        f"{_cells(data)}{_demo(data)}{_suites(data)}\n"
        "Instructions that the verifier processes, of 1,000,000; the monitor's with 64 addresses "
        f"of each family:\n\n{_verifier(data)}{END}"
    )


def _page(data):
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return page, before + render(data) + after


def publish(report):
    """Writes the page and its data, if every cell was run, all with one commit."""
    missing = {cell.name for cell in matrix.CELLS} - {row["name"] for row in report["cells"]}
    if missing or not all(report[part] for part in ("demo", "suites", "verifier")):
        print(f"publish: not all of the matrix was run: {', '.join(sorted(missing)) or 'rows'}")
        return 1
    if report["commit"].endswith("+"):
        print("publish: files differed from the commit when the matrix was run; commit them first")
        return 1
    data = condense(report)
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(data, indent=1) + "\n")
    PAGE.write_text(_page(data)[1])
    return 0


def check():
    """Fails if the page differs from the one generated from its data, or from empty tables."""
    if DATA.exists():
        found, made = _page(json.loads(DATA.read_text()))
    else:
        found = PAGE.read_text()
        made = found if BEGIN + END in found else ""
    if found != made:
        print(f"{PAGE} is not made from {DATA}: run make vm-publish", file=sys.stderr)
        return 1
    return 0
