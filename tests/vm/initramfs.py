"""Initial RAM file systems for guests, built without root: busybox, kernel modules, files.

Nothing is compressed, because a guest under emulation decompresses slowly.
"""

import lzma
import os
import pathlib
import re
import stat
import struct

import packages

# The guest's process 1. Loads modules in order, then reads commands from the second serial line,
# each a line of base64, and answers with the output and a line with number and status.
INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/t:/bin HOME=/ TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
while read -r module; do
    insmod /modules/$module.ko || echo "exitmark: cannot load $module" > /dev/kmsg
done < /modules/order
ip link set lo up
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty raw -echo
echo "@@ready $(uname -r)@@"
while read -r number command; do
    echo "$command" | base64 -d > /tmp/command
    sh /tmp/command < /dev/null 2>&1
    echo "@@$number $?@@"
done
poweroff -f
"""

FILES = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\ntcpdump:x:100:100::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def section(data, name):
    """Returns the contents of a section of a 64-bit ELF file; empty if there is none."""
    start, size, count, names = (
        struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HHH", data, 58)
    )  # fmt: skip
    headers = [struct.unpack_from("<IIQQQQ", data, start + size * i) for i in range(count)]
    table = headers[names][4]
    for header in headers:
        at = table + header[0]
        if data[at : data.index(b"\0", at)] == name.encode():
            return data[header[4] : header[4] + header[5]]
    return b""


def needed(data):
    """Returns the names of the libraries that a program or library needs, and its loader."""
    dynamic, strings = section(data, ".dynamic"), section(data, ".dynstr")
    names = [
        strings[value : strings.index(b"\0", value)].decode()
        for tag, value in struct.iter_unpack("<QQ", dynamic)
        if tag == 1
    ]
    loader = section(data, ".interp").rstrip(b"\0").decode()
    return names, loader


def ordered_modules(kernel, names):
    """Returns (name, contents) of modules and their dependencies, in load order."""
    found = {
        path.name.split(".ko")[0].replace("-", "_"): path for path in kernel.modules.rglob("*.ko*")
    }
    loaded = {}

    def load(name):
        path = found.get(name.replace("-", "_"))
        # A missing module is built in, or the kernel lacks it.
        if not path or path in loaded:
            return
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        elif path.suffix != ".ko":
            raise RuntimeError(f"{path} has an unknown compression")
        depends = re.search(rb"(?:^|\0)depends=([^\0]*)", section(data, ".modinfo"))
        for other in filter(None, depends[1].decode().split(",") if depends else []):
            load(other)
        loaded[path] = data

    for name in names:
        load(name)
    return [(path.name.split(".ko")[0], data) for path, data in loaded.items()]


class Initramfs:
    """The files of a guest, written as a cpio archive."""

    def __init__(self):
        self.entries = {}
        for name in ("bin", "proc", "sys", "dev", "tmp", "run", "t", "modules", "etc", "var/lib"):
            self.directory(name)
        busybox = packages.ensure(["busybox"])["busybox"]
        self.add("bin/busybox", (busybox / "bin/busybox").read_bytes(), 0o755)
        self.add("init", INIT.encode(), 0o755)
        for name, text in FILES.items():
            self.add(name, text.encode())

    def directory(self, name):
        """Adds a directory and its parents."""
        for parent in reversed(pathlib.PurePath(name).parents[:-1]):
            self.entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b""))
        self.entries.setdefault(name, (stat.S_IFDIR | 0o755, b""))

    def add(self, name, data, mode=0o644):
        """Adds a file."""
        if "/" in name:
            self.directory(os.path.dirname(name))
        self.entries[name] = (stat.S_IFREG | mode, data)

    def program(self, name, path, libraries=()):
        """Adds a program with its libraries: the machine's, or those below the given roots."""
        wanted = [(name, pathlib.Path(path).read_bytes())]
        places = [
            pathlib.Path(str(root) + place)
            for root in ("", *libraries)
            for place in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64")
        ]
        while wanted:
            target, data = wanted.pop()
            self.add(target, data, 0o755)
            names, loader = needed(data)
            if loader and loader[1:] not in self.entries:
                wanted.append((loader[1:], pathlib.Path(loader).read_bytes()))
            for library in names:
                at = f"lib/x86_64-linux-gnu/{library}"
                file = next((p / library for p in places if (p / library).exists()), None)
                if file is None:
                    raise RuntimeError(f"{path} needs {library}, which is not on this machine")
                if at not in self.entries and not library.startswith("ld-linux"):
                    wanted.append((at, file.read_bytes()))

    def modules(self, kernel, names):
        """Adds kernel modules, to be loaded in this order, and their dependencies."""
        ordered = ordered_modules(kernel, names)
        for name, data in ordered:
            self.add(f"modules/{name}.ko", data)
        self.add("modules/order", "".join(f"{name}\n" for name, _ in ordered).encode())

    def write(self, path):
        """Writes the archive (cpio, format newc)."""
        self.entries.setdefault("modules/order", (stat.S_IFREG | 0o644, b""))
        with open(path, "wb") as file:
            entries = sorted(self.entries.items())
            # The kernel needs the console before devtmpfs is mounted.
            entries.append(("dev/console", (stat.S_IFCHR | 0o600, (5, 1))))
            entries.append(("TRAILER!!!", (0, b"")))
            for number, (name, (mode, data)) in enumerate(entries, 1):
                device, data = (data, b"") if isinstance(data, tuple) else ((0, 0), data)
                fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
                file.write(b"070701" + b"".join(b"%08x" % field for field in fields))
                file.write(name.encode() + b"\0")
                file.write(b"\0" * (-file.tell() % 4))
                file.write(data)
                file.write(b"\0" * (-file.tell() % 4))
