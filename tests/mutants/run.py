#!/usr/bin/env python3
"""Mutants of the pure parts: runs cargo-mutants on a part of the tree, a cut.

The whole workspace takes minutes to build, and a mutant needs a build. So the pure parts and their
tests are copied into a small workspace, in target/mutants/NAME/tree: the same files at the same
paths, with stubs of the rest from tests/mutants/cut/NAME.

Tests run in stages, the fastest first; a mutant that a stage catches is not built for the next one.
Tests are limited in CPU time, not in wall-clock time, so that a run may be stopped (SIGSTOP) and
continued. Property tests have fewer cases than in `make test`, and always the same ones.

Exit status: 0 if the survivors are exactly the entries of accepted.toml, 1 otherwise.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ACCEPTED = HERE / "accepted.toml"
# Limits of one test program in CPU seconds and KiB of address space: some mutants never end.
CPU_SECONDS = 10
ADDRESS_SPACE = 8 << 20
# cargo's message for a test program that exceeded its CPU time.
OUT_OF_TIME = re.compile(rf"\(signal: {int(signal.SIGXCPU)}\b")
# Only a backstop: wall-clock time passes while a run is stopped.
WALL_SECONDS = 4 * 3600
# The number of mutants per run of cargo-mutants.
PORTION = 40
DEPENDENCIES = """
allocation-counter crossbeam etherparse humantime ipnet jiff libc maxminddb nix proptest rand
rand_chacha serde serde_json sha2 tempfile thiserror toml tor-geoip zeroize
""".split()
# For the crates whose build scripts are copied.
BUILD_DEPENDENCIES = ["bindgen", "libbpf-cargo"]
PROFILE = """
[lints.rust]
dead_code = "allow"
unused_imports = "allow"

[profile.dev]
opt-level = 1
debug = false
incremental = true

[profile.dev.package."*"]
opt-level = 2
"""


@dataclasses.dataclass(frozen=True)
class Cut:
    """A part of the tree that is built and mutated separately."""

    name: str
    # Files and directories whose code is mutated.
    mutated: list
    # Further copied files and whole directories.
    copied: list
    # Modules of which a copied file's `use` lines are omitted, except those of their modules. A
    # declared module that is not in the cut is omitted with its `use` lines.
    unused: dict
    # The crate whose unit tests are the first stage.
    unit: str
    # The test program of each stage, and the tests that it runs: all if none is named.
    stages: list
    # The number of cases of each property test.
    cases: int


CUTS = [
    Cut(
        name="rule",
        mutated=["src/policy"],
        copied="""src/service/lib.rs src/service/config.rs src/box/lib.rs src/box/settings
            src/nic/next_hop/configured.rs src/relays/authorities.rs src/lab/lib.rs src/lab/cases.rs
            src/lab/cases src/lab/frames.rs src/datapath/lib.rs src/datapath/cells.rs bpf
            src/datapath/build.rs src/datapath/kernel/contract.rs
            src/datapath/counters.rs src/datapath/cut.rs src/datapath/forward.rs
            src/datapath/frame.rs src/datapath/guard.rs src/datapath/hosts.rs
            src/datapath/links.rs src/datapath/memory.rs src/datapath/sample.rs
            src/datapath/tap src/datapath/worker.rs tests/rule""".split(),
        unused={"src/datapath/lib.rs": ["kernel", "tap_sender", "xsk"]},
        unit="exitmark-policy",
        stages=[
            ("--lib", []),
            ("--test=rule", ["answers::", "connections::", "table::", "tap::"]),
            ("--test=rule", ["host_mark::", "oracle::"]),
        ],
        cases=2000,
    ),
    Cut(
        name="monitor",
        mutated=["src/monitor/publish", "src/monitor/tally"],
        copied="""src/policy src/lab/lib.rs src/lab/frames.rs src/lab/random.rs
            src/monitor/lib.rs src/monitor/cell.rs src/monitor/clock.rs src/monitor/filter.rs
            src/monitor/ledger.rs src/monitor/mirror.rs src/monitor/places src/monitor/row.rs
            src/monitor/services.rs src/service/lib.rs tests/monitor/main.rs tests/monitor/count.rs
            tests/monitor/count/directions.rs tests/monitor/count/outsiders.rs tests/monitor/count/parsed.rs
            tests/monitor/count/table.rs tests/monitor/places.rs tests/monitor/published.rs
            tests/monitor/published/noise.rs tests/monitor/published/properties.rs""".split(),
        unused={},
        unit="exitmark-monitor",
        stages=[
            ("--lib", []),
            ("--test=monitor", ["count::", "published::", "--skip=count::outsiders::"]),
            ("--test=monitor", ["count::outsiders::"]),
        ],
        cases=400,
    ),
]


def leave_out(text, module, only_uses=False):
    """Returns a file without the declaration of a module and the uses of it."""
    attributes = r"(?:^#\[[^\n]*\]\n)*"
    if not only_uses:
        text = re.sub(rf"(?m){attributes}^(pub )?mod {module};\n", "", text)
    kept = "(?![a-z])" if only_uses else ""
    return re.sub(rf"(?m){attributes}^(pub(\([a-z]+\))? )?use {module}::{kept}[^;]*;\n", "", text)


def missing_modules(name, text, names):
    """Returns the modules that a file declares and that are not among `names`."""
    path = pathlib.PurePath(name)
    is_root = path.name in ("build.rs", "lib.rs", "main.rs", "mod.rs")
    directory = path.parent if is_root else path.with_suffix("")
    declared = re.findall(r'(?m)^(?:#\[path = "(.*)"\]\n)?(?:pub )?mod (\w+);', text)
    places = {module: [f"{path.parent}/{at}"] if at
              else [f"{directory}/{module}.rs", f"{directory}/{module}/mod.rs"]
              for at, module in declared}
    return [module for module, possible in places.items()
            if not {os.path.normpath(place) for place in possible} & names]


def without_tests(text):
    """Returns a file without its unit tests, which are at its end."""
    return re.split(r"(?m)^#\[cfg\(test\)\]\nmod tests \{", text)[0]


def manifests(names):
    """Returns the manifests of a workspace of these files, with the dependencies' versions of the
    whole.
    """
    crates = sorted({name.split("/")[1] for name in names if name.startswith("src/")})
    whole = tomllib.loads((ROOT / "Cargo.toml").read_text())
    members = [f"exitmark-{crate}" for crate in crates]
    known = {name: whole["workspace"]["dependencies"][name]
             for name in [*DEPENDENCIES, *BUILD_DEPENDENCIES, *members]}
    every = "".join(f"{name}.workspace = true\n" for name in [*DEPENDENCIES, *members])

    def package(name, used):
        return (f'[package]\nname = "{name}"\nversion = "0.0.0"\nedition = "2024"\n\n'
                f"[dependencies]\n{used}")

    found = {"Cargo.toml": package("exitmark", every) + PROFILE + (
        f"\n[workspace]\nmembers = {json.dumps([f'src/{crate}' for crate in crates])}\n"
        "\n[workspace.dependencies]\n"
        + "".join(f"{name} = {inline(value)}\n" for name, value in known.items()))}
    for crate in crates:
        own = tomllib.loads((ROOT / f"src/{crate}/Cargo.toml").read_text())
        used, by_tests, by_build = (
            "".join(f"{name}.workspace = true\n" for name in own.get(kind, {}) if name in known)
            for kind in ("dependencies", "dev-dependencies", "build-dependencies"))
        builds = f"src/{crate}/build.rs" in names
        found[f"src/{crate}/Cargo.toml"] = (
            package(f"exitmark-{crate}", used) + f"\n[dev-dependencies]\n{by_tests}"
            + (f"\n[build-dependencies]\n{by_build}" if builds else "")
            + '\n[lib]\npath = "lib.rs"\n'
            '\n[lints.rust]\ndead_code = "allow"\nunused_imports = "allow"\n')
    return found


def inline(value):
    """Formats a value as TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def files(cut):
    """Returns the files of the cut: paths, each with its text."""
    found = {}
    for path in [*cut.copied, *cut.mutated]:
        start = ROOT / path
        for file in [start] if start.is_file() else sorted(start.rglob("*")):
            if file.is_file():
                name = str(file.relative_to(ROOT))
                text = file.read_text()
                for module in cut.unused.get(name, []):
                    text = leave_out(text, module, only_uses=True)
                is_mutated = any(name.startswith(f"{part}/") for part in cut.mutated)
                is_test = name.startswith("tests/")
                if is_test:
                    text = re.sub(r"(cases: |with_cases\()[\d_]+", rf"\g<1>{cut.cases}", text)
                found[name] = text if is_mutated or is_test else without_tests(text)
    own = HERE / "cut" / cut.name
    for file in sorted(own.rglob("*")) if own.is_dir() else []:
        if file.is_file():
            found[str(file.relative_to(own))] = file.read_text()
    for name in [name for name in found if name.endswith("Cargo.toml")]:
        del found[name]
    for name, text in found.items():
        for module in missing_modules(name, text, set(found)):
            text = leave_out(text, module)
        found[name] = text
    found |= manifests(list(found))
    found["src/lib.rs"] = "//! Only for the tests.\n"
    found[".cargo/config.toml"] = (
        "[target.'cfg(unix)']\n"
        f'runner = ["sh", "-c", "ulimit -S -t {CPU_SECONDS}; ulimit -v {ADDRESS_SPACE}; '
        'exec \\"$0\\" \\"$@\\""]\n'
    )
    return found


def lay_out(cut, tree):
    """Writes the cut; files that are up to date are not touched."""
    wanted = files(cut)
    for file in sorted(tree.rglob("*")):
        name = str(file.relative_to(tree))
        if file.is_file() and name not in wanted and not re.match(r"target/|Cargo\.lock$", name):
            file.unlink()
    for name, text in wanted.items():
        file = tree / name
        if not file.is_file() or file.read_text() != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    shutil.copy(ROOT / "Cargo.lock", tree / "Cargo.lock")


@dataclasses.dataclass
class Mutant:
    """One change of the code, and its status."""

    # The name that cargo-mutants gives it, without its position.
    name: str
    file: str
    # The line that is changed, and its number.
    number: int
    line: str
    # missed, caught, timeout or unviable; None before it is tried.
    status: str | None = None


def environment():
    """Configures property tests: the same cases in every run, without shrinking."""
    return {
        **os.environ,
        "PROPTEST_RNG_SEED": "1",
        "PROPTEST_MAX_SHRINK_ITERS": "0",
    }


def cargo(arguments, **options):
    """Runs cargo; returns its exit status."""
    return subprocess.run(["cargo", *arguments], env=environment(), check=False, **options)


def listed(cut, tree):
    """Returns all mutants of a cut, by their full names."""
    globs = [f"--file={part}/**" for part in cut.mutated]
    output = cargo(["mutants", "--workspace", "--list", "--json", "--dir", tree, *globs],
                   stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for mutant in json.loads(output):
        start = mutant["span"]["start"]["line"]
        line = (tree / mutant["file"]).read_text().splitlines()[start - 1].strip()
        name = re.sub(r"^(\S+?):\d+:\d+:", r"\1:", mutant["name"])
        found[mutant["name"]] = Mutant(name, mutant["file"], start, line)
    return found


def outcomes(out):
    """Returns the results of a stage: full names, each with a status."""
    found = {}
    file = out / "mutants.out/outcomes.json"
    for outcome in json.loads(file.read_text())["outcomes"] if file.is_file() else []:
        if outcome["scenario"] == "Baseline":
            continue
        status = {"CaughtMutant": "caught", "MissedMutant": "missed", "Unviable": "unviable",
                  "Timeout": "timeout"}[outcome["summary"]]
        log = out / "mutants.out" / outcome["log_path"]
        if status == "caught" and OUT_OF_TIME.search(log.read_text(errors="replace")):
            status = "timeout"
        found[outcome["scenario"]["Mutant"]["name"]] = status
    return found


def prepare(cut, tree):
    """Writes a cut, builds it, so that later builds are incremental, and runs its tests."""
    tree.mkdir(parents=True, exist_ok=True)
    lay_out(cut, tree)
    for program, tests in cut.stages:
        tested = cargo(["test", "--quiet", *build(cut, program), "--", *tests], cwd=tree,
                       stdout=subprocess.PIPE, text=True)
        if tested.returncode != 0:
            sys.exit(f"{tested.stdout}\nthe cut {cut.name} does not build, or a test fails without "
                     f"mutants: see CUTS in {__file__}")


def build(cut, program):
    """Returns cargo's arguments to build a test program."""
    return [f"--package={cut.unit if program == '--lib' else 'exitmark'}", program]


def stage(cut, program, tests, names, directory):
    """Tries mutants in one tree; returns the status of each."""
    tree, out, config = directory / "tree", directory / "out", directory / "mutants.toml"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    exact = [f"^{re.escape(name)}$" for name in names]
    # By file too: cargo-mutants does not apply expressions to deleted fields, and tries those of the
    # file again. Their results of an earlier stage hold.
    files_of = sorted({name.split(":")[0] for name in names})
    config.write_text(f"examine_re = {json.dumps(exact)}\n")
    with (directory / "log").open("w") as log:
        status = cargo([
            "mutants", "--workspace", "--in-place", "--dir", tree, "--config", config, "--output", out,
            "--no-shuffle", "--timeout", str(WALL_SECONDS), "--colors=never",
            # cargo-mutants would build the package of the mutants in place of that of the tests.
            "--baseline=skip",
            "--annotations=none", *(f"--file={file}" for file in files_of),
            f"--test-workspace={json.dumps(program != '--lib')}", f"--cargo-arg={program}",
            "--", "--", *tests,
        ], stdout=log, stderr=subprocess.STDOUT).returncode
    # 2: a mutant was missed; 3: a test timed out.
    if status not in (0, 2, 3):
        sys.exit(f"cargo mutants ended with {status}: see {directory / 'log'}")
    return {name: status for name, status in outcomes(out).items() if name in names}


def run(cut, jobs, goes_on):
    """Writes a cut and runs its stages, in one tree per job."""
    directory = ROOT / "target/mutants" / cut.name
    known = directory / "known.json"
    trees = [directory / str(job) / "tree" for job in range(jobs)]
    for tree in trees:
        if not tree.is_dir() and tree != trees[0]:
            # Reuse the built dependencies.
            shutil.copytree(trees[0], tree)
        prepare(cut, tree)
    mutants = listed(cut, trees[0])
    statuses = {}
    if goes_on:
        statuses = json.loads(known.read_text()) if known.is_file() else {}
        for tree in trees:
            # Results of an interrupted run.
            found = outcomes(tree.parent / "out").items()
            statuses.update((name, status) for name, status in found if status != "missed")
    for program, tests in cut.stages:
        names = [name for name in mutants if statuses.get(name, "missed") == "missed"]
        print(f"{cut.name}: {len(names)} mutants by cargo test {program}", flush=True)
        free = queue.SimpleQueue()
        for tree in trees:
            free.put(tree.parent)

        def portion(part, program=program, tests=tests, free=free):
            place = free.get()
            try:
                return stage(cut, program, tests, part, place)
            finally:
                free.put(place)

        pool = concurrent.futures.ThreadPoolExecutor(jobs)
        parts = [names[start:start + PORTION] for start in range(0, len(names), PORTION)]
        try:
            for done in concurrent.futures.as_completed(pool.submit(portion, one) for one in parts):
                statuses.update(done.result())
                known.write_text(json.dumps(statuses, indent=1))
                left = sum(status == "missed" for status in statuses.values())
                print(f"{cut.name}: {len(statuses)} tried, {left} of them survive", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    for name, mutant in mutants.items():
        mutant.status = statuses.get(name)
    return list(mutants.values())


def figures(mutants):
    """Counts mutants by status."""
    order = ["caught", "timeout", "missed", "unviable"]
    return {"total": len(mutants),
            **{status: sum(one.status == status for one in mutants) for status in order}}


def unexplained(mutants):
    """Returns messages about survivors without reasons, and reasons without survivors."""
    wrong = [f"not tried: {one.file}:{one.number}: {one.name}" for one in mutants
             if one.status is None]
    # A line may have several mutants of the same name.
    survivors = collections.Counter((one.name, one.line) for one in mutants
                                    if one.status == "missed")
    accepted = {}
    for entry in tomllib.loads(ACCEPTED.read_text()).get("survivor", []):
        key = entry["mutant"], entry["line"]
        if key in accepted or not entry["reason"].strip():
            wrong.append(f"duplicate, or without a reason: {key[0]}")
        accepted[key] = entry.get("count", 1)
    for (name, line), count in survivors.items():
        if accepted.get((name, line)) != count:
            wrong.append(f"survives without a reason; as an entry:\n[[survivor]]\n"
                         f"mutant = {inline(name)}\nline = {inline(line)}\n"
                         + (f"count = {count}\n" if count > 1 else "") + 'reason = ""\n')
    tried = {one.file for one in mutants}
    for name, line in accepted:
        if name.split(":")[0] in tried and (name, line) not in survivors:
            wrong.append(f"no longer survives: {name}, at `{line}`")
    return wrong


def main():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cuts", nargs="*", metavar="CUT",
                        help="which: " + ", ".join(cut.name for cut in CUTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--continue", dest="goes_on", action="store_true",
                        help="only mutants that no earlier run caught, such as after tests were added")
    options = parser.parse_args()
    chosen = [cut for cut in CUTS if not options.cuts or cut.name in options.cuts]
    start = time.monotonic()
    mutants, report = [], {}
    for cut in chosen:
        of_cut = run(cut, options.jobs, options.goes_on)
        for part in cut.mutated:
            report[part] = figures([one for one in of_cut if one.file.startswith(f"{part}/")])
        mutants += of_cut
    report["all"] = figures(mutants)
    report["seconds"] = round(time.monotonic() - start)
    (ROOT / "target/mutants.json").write_text(json.dumps(report, indent=1) + "\n")
    for part, numbers in report.items():
        print(f"{part}: {numbers}")
    wrong = unexplained(mutants)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
