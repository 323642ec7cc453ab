"""Loads every BPF program in guests, for each kernel and each compiler."""

import dataclasses
import pathlib
import re
import subprocess

import guest
import initramfs
import packages

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ("6.1", "6.12", "6.18", "7.3")
CLANGS = ("14", "16", "19")
# Instructions that the verifier may process for one program, of its 1,000,000.
LIMIT = 60_000
# The flags of bpf/compile.rs.
FLAGS = ("-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86")
# Constants that user space sets before it loads an object, with the most work for the verifier. The
# monitor's are multi_buffer, the mark, both directions, ERSPAN, the port of VXLAN, and the number of
# ranges of the host's addresses of each family, as in src/monitor/tap/program.rs.
CONSTANTS = {"monitor": (1, 0x28, 1, 1, 4789, 1024, 1024)}
# The timeout for all objects in one guest, in seconds.
LOAD_TIMEOUT = 400


@dataclasses.dataclass
class Row:
    """The result of loading one program."""

    kernel: str
    release: str
    clang: str
    object: str
    program: str
    result: int
    instructions: int
    milliseconds: float
    log: str = ""

    def fault(self):
        """Returns the fault, or None."""
        where = f"{self.object}.{self.program}, clang {self.clang}, Linux {self.release}"
        if self.result:
            return f"{where}: refused ({self.result})"
        if self.instructions > LIMIT:
            return f"{where}: {self.instructions:,} instructions, more than {LIMIT:,}"
        return None


def sources(directory):
    """Returns the BPF sources: those of a directory, and the lab's."""
    return sorted(directory.glob("*.bpf.c")) + sorted((ROOT / "src/lab").glob("*.bpf.c"))


def headers():
    """Returns the argument for the directory of this machine's headers."""
    triple = subprocess.run(
        ["gcc", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"-I/usr/include/{triple}"


def compile_objects(directory, clangs, target):
    """Compiles each source with each compiler: triples of compiler, object's name and file."""
    objects = []
    for wanted in clangs:
        version, command, environment = packages.clang(wanted)
        for source in sources(directory):
            name = source.name.removesuffix(".bpf.c")
            file = target / f"{name}-{version}.o"
            subprocess.run(
                [*command, *FLAGS, headers(), "-c", source, "-o", file],
                env=environment,
                check=True,
            )
            objects.append((version, name, file))
    return objects


def build_loader(target):
    """Compiles load.c, with the machine's libbpf."""
    source = pathlib.Path(__file__).with_name("load.c")
    libraries = ["-lbpf", "-lelf", "-lz"]
    subprocess.run(
        ["cc", "-O2", "-Wall", "-static", "-o", target, source, *libraries], check=True
    )


def load(series, objects, loader, cloud, scratch):
    """Loads the objects in a guest; returns rows."""
    kernel = packages.kernel(series, cloud)
    archive = scratch / f"{series}.cpio"
    contents = initramfs.Initramfs()
    contents.add("t/load", loader.read_bytes(), 0o755)
    arguments = []
    for version, name, file in objects:
        contents.add(f"t/{file.name}", file.read_bytes())
        words = ",".join(map(str, CONSTANTS.get(name, ())))
        arguments.append(f"/t/{file.name}" + (f"={words}" if words else ""))
    contents.write(archive)
    names = {file.name: (version, name) for version, name, file in objects}
    with guest.Guest(kernel, archive, cpus=1, memory=512) as machine:
        release = machine.wait_ready()
        _, output = machine.run(f"load {' '.join(arguments)}", LOAD_TIMEOUT)
        complaints = machine.complaints()
    rows = []
    for line in output.splitlines():
        if line.startswith("| ") and rows:
            rows[-1].log += line[2:] + "\n"
        found = re.fullmatch(r"program (\S+) (\S+) (-?\d+) (\d+) (\d+)", line)
        if found:
            version, name = names[found[1].rsplit("/", 1)[-1]]
            result, instructions, microseconds = (int(number) for number in found.groups()[2:])
            took = round(microseconds / 1000, 1)
            rows.append(
                Row(series, release, version, name, found[2], result, instructions, took)
            )
    silent = set(names.values()) - {(row.clang, row.object) for row in rows}
    if complaints or silent:
        raise RuntimeError(f"Linux {release}: {output[-2000:]}\n" + "\n".join(complaints))
    return rows


def show(rows):
    """Prints a line per program."""
    print(f"Linux {rows[0].release}")
    for row in rows:
        verdict = row.fault() and (row.result and "REFUSED" or "TOO LARGE") or "ok"
        print(
            f"  clang {row.clang:3} {row.object + '.' + row.program:32} "
            f"{row.instructions:8,} instructions {row.milliseconds:8,.0f} ms  {verdict}"
        )
        if row.log:
            print("    " + row.log.rstrip().replace("\n", "\n    "))


class Loads:
    """The compiled objects to load, with one guest per kernel."""

    def __init__(self, directory, clangs, scratch):
        self.scratch = scratch
        self.objects = compile_objects(directory, clangs, scratch)
        self.loader = scratch / "load"
        build_loader(self.loader)

    def run(self, series, cloud=False):
        """Loads all objects in a kernel; returns rows."""
        return load(series, self.objects, self.loader, cloud, self.scratch)
