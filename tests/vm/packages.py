#!/usr/bin/env python3
"""Debian packages for guests, unpacked outside the tree and never installed.

apt fetches QEMU, kernels, compilers and tools with a configuration of its own (sources, lists,
cache, state), so the machine's package database and sources do not change. The archive's address is
that of the machine's own sources; the suites are listed here. packages.lock pins every package by
version and SHA-256. A version that has left the archive is replaced by the newest of the same
series, verified by apt's signed sums only, with a message on standard error.

    packages.py [GROUP...]   fetch and unpack groups, print their directories (default: all)
    packages.py --renew      pin the newest versions: writes packages.lock

Exit status: 0 done, 1 failed, 77 the packages are not available on this machine (SKIPPED).

The cache is $EXITMARK_VM_CACHE, or exitmark-vm in $XDG_CACHE_HOME, or in ~/.cache. It may be
deleted at any time.
"""

import dataclasses
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

SKIPPED = 77
LOCK = pathlib.Path(__file__).with_name("packages.lock")
# The suites of Debian's archive and of its security archive.
SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bookworm-security",)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Seconds without an answer after which a download is given up.
NETWORK_TIMEOUT = 30


class Unavailable(Exception):
    """The packages are not available on this machine. The text contains the reason."""


class WrongSum(Exception):
    """A package file differs from the pinned one."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Packages that are unpacked into one directory.

    `roots` are pairs of a pattern of package names, of which the newest is used, and its suite.
    With `closure`, their dependencies are part of the group, without the C library and packages
    that only an installation needs.
    """

    roots: tuple
    closure: bool = False


def _kernel(pattern, suite):
    return Group(((pattern, suite),))


def _bookworm(names):
    return Group(tuple((re.escape(name), "bookworm") for name in names.split()))


def _clang(version):
    return _bookworm(
        f"clang-{version} libclang-common-{version}-dev libclang-cpp{version} libllvm{version} "
        "libbsd0 libedit2 libffi8 libicu72 liblzma5 libmd0 libtinfo6 libxml2 libz3-4 libzstd1"
    )


GROUPS = {
    "qemu": Group(
        tuple((f"qemu-system-{part}", "bookworm-backports") for part in ("x86", "common", "data")),
        closure=True,
    ),
    "busybox": _bookworm("busybox-static"),
    "tools": Group(
        tuple(
            (name, "bookworm")
            for name in ("ethtool", "iproute2", "nftables", "tcpdump", "util-linux")
        ),
        closure=True,
    ),
    "clang-14": _clang(14),
    "clang-16": _clang(16),
    "clang-19": _clang(19),
}
for _flavour, _suffix in (("", ""), ("-cloud", "cloud-")):
    GROUPS |= {
        f"kernel-6.1{_flavour}": _kernel(
            rf"linux-image-6\.1\.\d+-\d+-{_suffix}amd64", "bookworm-security"
        ),
        f"kernel-6.12{_flavour}": _kernel(
            rf"linux-image-6\.12\.[\d.]+\+deb12[\d.]*-{_suffix}amd64", "bookworm-backports"
        ),
        f"kernel-6.18{_flavour}": _kernel(
            rf"linux-image-6\.18\.[\d.]+\+deb13[\d.]*-{_suffix}amd64", "trixie-backports"
        ),
        # Since 7.1 the image's package is empty and depends on these two.
        f"kernel-7.3{_flavour}": Group(
            tuple(
                (rf"linux-{part}-7\.3\.[\d.]+\+deb13[\d.]*-{_suffix}amd64", "trixie-backports")
                for part in ("binary", "modules")
            )
        ),
    }

# Excluded from closures: packages that the machine has in a suitable version, and packages that
# only installations need.
_LEFT_OUT = re.compile(
    r"libc6|libcrypt1|libgcc-s1|gcc-.*|adduser|passwd|debconf|libpam.*|libsemanage.*"
)


@dataclasses.dataclass(frozen=True)
class Pin:
    """A line of the lock."""

    group: str
    package: str
    version: str
    suite: str
    sha256: str


def cache():
    """Returns the directory of all fetched and built files."""
    own = os.environ.get("EXITMARK_VM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(own or os.path.join(base, "exitmark-vm")).absolute()


def say(text):
    """Prints progress and warnings to standard error."""
    print(f"packages: {text}", file=sys.stderr, flush=True)


def read_lock():
    """Returns the pins by group."""
    pins = {}
    for line in LOCK.read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Pin(*line.split())
            pins.setdefault(pin.group, []).append(pin)
    return pins


class Apt:
    """apt with sources, lists, cache and state of its own."""

    def __init__(self, home):
        self.home = home
        self.updated = False
        for directory in ("lists/partial", "archives/partial", "state"):
            (home / directory).mkdir(parents=True, exist_ok=True)
        (home / "state/status").touch()
        (home / "preferences").write_text(
            "".join(
                f"Package: *\nPin: release n={suite}\nPin-Priority: {priority}\n\n"
                for suite, priority in (
                    ("bookworm*", 990),
                    ("trixie*", 100),
                )
            )
        )
        (home / "debian.sources").write_text(self._sources())
        settings = [
            'Dir::Etc::main "/dev/null";',
            f'Dir::Etc::parts "{home}/none";',
            f'Dir::Etc::sourcelist "{home}/debian.sources";',
            f'Dir::Etc::sourceparts "{home}/none";',
            f'Dir::Etc::preferences "{home}/preferences";',
            f'Dir::Etc::preferencesparts "{home}/none";',
            f'Dir::State "{home}/state";',
            f'Dir::State::lists "{home}/lists";',
            f'Dir::State::status "{home}/state/status";',
            f'Dir::Cache "{home}";',
            f'Dir::Cache::archives "{home}/archives";',
            'APT::Sandbox::User "root";',
            'APT::Architecture "amd64";',
            'Acquire::Languages "none";',
            f'Acquire::http::Timeout "{NETWORK_TIMEOUT}";',
            f'Acquire::https::Timeout "{NETWORK_TIMEOUT}";',
        ]
        (home / "none").mkdir(exist_ok=True)
        (home / "apt.conf").write_text("\n".join(self._transport() + settings) + "\n")

    @staticmethod
    def _transport():
        """Returns the machine's settings to reach its archives (proxies, certificates)."""
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
        wanted = re.compile(r"Acquire::(https?|Check-|Retries|AllowInsecure|proxy)", re.I)
        return [line for line in dump.stdout.splitlines() if wanted.match(line)]

    @staticmethod
    def _sources():
        """Returns the machine's own archives, with the required suites."""
        listed = subprocess.run(
            ["apt-get", "--print-uris", "update"], capture_output=True, text=True, check=False
        ).stdout
        archives = {}
        for base, suite in re.findall(r"^'(\S+?)/dists/(\S+)/InRelease'", listed, re.M):
            path = urllib.parse.urlsplit(base).path.rstrip("/")
            kind = "security" if suite.endswith(("-security", "/updates")) else "main"
            if path.endswith(("/debian", "/debian-security")):
                archives.setdefault(kind, base)
        if "main" not in archives:
            raise Unavailable("apt's sources name no archive of Debian")
        signed = f"Signed-By: {KEYRING}\n" if os.path.exists(KEYRING) else ""
        kinds = [("main", SUITES), ("security", SECURITY_SUITES)]
        return "\n".join(
            f"Types: deb\nURIs: {archives[kind]}\nSuites: {' '.join(suites)}\n"
            f"Components: main\n{signed}"
            for kind, suites in kinds
            if kind in archives
        )

    def run(self, *command, cwd=None):
        """Returns standard output of an apt command. Raises Unavailable with its error."""
        environment = dict(os.environ, APT_CONFIG=str(self.home / "apt.conf"), LC_ALL="C")
        done = subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Unavailable(f"{' '.join(command)}: {' '.join(said[-3:])}")
        return done.stdout

    def update(self):
        """Fetches the lists, once per process."""
        if not self.updated:
            say("fetching package lists")
            self.run("apt-get", "update", "-q", "--error-on=any")
            self.updated = True

    def newest(self, pattern, suite):
        """Returns name and version of the newest package whose name matches."""
        self.update()
        names = self.run("apt-cache", "pkgnames", re.match(r"[a-z-]*", pattern)[0]).split()
        found = [self.version(name, suite) for name in names if re.fullmatch(pattern, name)]
        found = [(name, version) for name, version in found if version]
        best = None
        for candidate in found:
            if best is None or self._later(candidate, best):
                best = candidate
        if best is None:
            raise Unavailable(f"the archive has no package {pattern} in {suite}")
        return best

    @staticmethod
    def _later(one, other):
        compared = ["dpkg", "--compare-versions", one[1], "gt", other[1]]
        if one[1] == other[1]:
            return one[0] > other[0]
        return subprocess.run(compared, check=False).returncode == 0

    def listed(self, name):
        """Returns the versions of a package in the archive with their suites, newest first."""
        lines = self.run("apt-cache", "madison", name).splitlines()
        fields = [[field.strip() for field in line.split("|")] for line in lines]
        return [(version, re.search(r" (\S+)/main", place)[1]) for _, version, place in fields]

    def version(self, name, suite):
        """Returns the name and its newest version in a suite, or None."""
        return name, next((found for found, place in self.listed(name) if place == suite), None)

    def closure(self, roots):
        """Returns (name, version) of the roots, given as (name, suite), and their dependencies."""
        listed = self.run(
            "apt-get", "--print-uris", "-qq", "-y", "--no-install-recommends", "install",
            *(f"{name}/{suite}" for name, suite in roots),
        )  # fmt: skip
        files = re.findall(r"^'\S+' (\S+)_(\S+)_\S+\.deb ", listed, re.M)
        found = {name: urllib.parse.unquote(version) for name, version in files}
        return sorted(
            (name, version) for name, version in found.items() if not _LEFT_OUT.fullmatch(name)
        )

    def sha256(self, name, version):
        """Returns the SHA-256 of the package file, from the signed lists."""
        shown = self.run("apt-cache", "show", f"{name}={version}")
        return re.search(r"^SHA256: (\S+)", shown, re.M)[1]

    def download(self, pins, directory):
        """Downloads package files, by name; apt verifies them with its signed lists."""
        wanted = [f"{pin.package}={pin.version}" for pin in pins]
        self.run("apt-get", "download", "-q", *wanted, cwd=directory)
        return {pin.package: next(directory.glob(f"{pin.package}_*.deb")) for pin in pins}


def resolve(apt, group):
    """Returns the newest packages of a group, as pins."""
    apt.update()
    chosen = GROUPS[group]
    packages = [apt.newest(pattern, suite) for pattern, suite in chosen.roots]
    if chosen.closure:
        packages = apt.closure(chosen.roots)
    return [
        Pin(group, name, version, dict(apt.listed(name))[version], apt.sha256(name, version))
        for name, version in packages
    ]


def unpack(apt, pins, target):
    """Downloads, verifies and unpacks packages. Raises Unavailable if a version is gone."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="new-") as scratch:
        files = pathlib.Path(scratch, "files")
        root = pathlib.Path(scratch, "root")
        files.mkdir()
        root.mkdir()
        downloaded = apt.download(pins, files)
        for pin in pins:
            file = downloaded[pin.package]
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != pin.sha256:
                raise WrongSum(
                    f"{pin.package} {pin.version} has the sum {found}, and the lock has "
                    f"{pin.sha256}: the archive has another file under the same version"
                )
            subprocess.run(["dpkg", "-x", str(file), str(root)], check=True)
        (root / ".packages").write_text(
            "".join(f"{pin.package} {pin.version}\n" for pin in pins)
        )
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)


def ensure(groups):
    """Returns the directories of unpacked groups, by name; fetches missing ones.

    Raises Unavailable if a group is not available.
    """
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise Unavailable(f"there is no {tool}; the packages are Debian's")
    if os.uname().machine != "x86_64":
        raise Unavailable(f"the guests are x86-64, and this machine is {os.uname().machine}")
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    lock = read_lock()
    paths = {}
    apt = None
    with open(home / "lock", "w", encoding="ascii") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for group in groups:
            pins = lock[group]
            sums = hashlib.sha256("".join(pin.sha256 for pin in pins).encode()).hexdigest()[:12]
            target = home / f"{group}-{sums}"
            if not target.exists():
                apt = apt or Apt(home / "apt")
                apt.update()
                say(f"fetching {group}: {len(pins)} packages")
                try:
                    unpack(apt, pins, target)
                except Unavailable as gone:
                    say(f"WARNING: {group} is not available as pinned: {gone}")
                    newer = resolve(apt, group)
                    for pin in newer:
                        if pin not in pins:
                            say(f"WARNING: {group}: {pin.package} {pin.version} instead")
                    unpack(apt, newer, target)
            paths[group] = target
    return paths


def qemu():
    """Returns QEMU's command with its firmware directory, and its environment."""
    root = ensure(["qemu"])["qemu"]
    libraries = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
    environment = dict(
        os.environ,
        LD_LIBRARY_PATH=":".join(map(str, libraries)),
        QEMU_MODULE_DIR=str(libraries[0] / "qemu"),
    )
    command = [str(root / "usr/bin/qemu-system-x86_64")]
    for firmware in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"):
        command += ["-L", str(root / firmware)]
    return command, environment


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An unpacked kernel."""

    release: str
    image: pathlib.Path
    modules: pathlib.Path


def kernel(series, cloud=False):
    """Returns a kernel of a series ("6.1"). The cloud flavour has virtio NICs only."""
    group = f"kernel-{series}{'-cloud' if cloud else ''}"
    root = ensure([group])[group]
    modules = next(
        path
        for place in ("lib/modules", "usr/lib/modules")
        for path in root.glob(f"{place}/*")
    )
    images = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    image = next(path for path in images if path.is_file() and not path.is_symlink())
    return Kernel(modules.name, image, modules)


def clang(version):
    """Returns version, command, environment of a clang ("16"), or the machine's ("system")."""
    own = shutil.which("clang")
    if own:
        said = subprocess.run([own, "--version"], capture_output=True, text=True, check=True)
        number = re.search(r"version (\d+)", said.stdout)[1]
        if version in ("system", number):
            return number, [own], dict(os.environ)
    if version == "system":
        raise Unavailable("there is no clang")
    group = f"clang-{version}"
    if group not in GROUPS:
        raise Unavailable(f"there is no clang {version} among the packages")
    root = ensure([group])[group]
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib/llvm-{version}/lib"
    command = [f"{root}/usr/lib/llvm-{version}/bin/clang"]
    return version, command, dict(os.environ, LD_LIBRARY_PATH=libraries)


def renew():
    """Pins the newest version of every package."""
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    apt = Apt(home / "apt")
    lines = [
        "# What tests/vm/packages.py fetches: group package version suite sha256.",
        "# Written by tests/vm/packages.py --renew.",
    ]
    for group in GROUPS:
        lines += [" ".join(dataclasses.astuple(pin)) for pin in resolve(apt, group)]
    LOCK.write_text("\n".join(lines) + "\n")


def main(arguments):
    """Parses the command line and runs it."""
    try:
        if arguments == ["--renew"]:
            renew()
            return 0
        unknown = [name for name in arguments if name not in GROUPS]
        if unknown:
            say(f"there is no group {', '.join(unknown)}; there are: {', '.join(GROUPS)}")
            return 2
        for group, path in ensure(arguments or GROUPS).items():
            print(group, path)
        return 0
    except Unavailable as reason:
        print(f"SKIPPED packages for guests: {reason}")
        return SKIPPED
    except WrongSum as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
