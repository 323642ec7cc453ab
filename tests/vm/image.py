"""Root file systems of Debian releases for guests, made by mmdebstrap and cached.

An image is a plain server: systemd, ifupdown, the release's own kernel, no tor, no exitmark. The
packages that an operator installs later are in a `file:` repository in the image, because a guest
has no Internet access. The mirror is the one of this machine's own apt sources.

    python3 tests/vm/image.py bookworm trixie
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from packages import Unavailable, cache

RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13"}

# The packages of a plain server. The example of docs/install.md uses ifupdown; `apt install` and a
# shell need the rest.
INSTALLED = (
    "systemd-sysv", "dbus", "udev", "kmod", "linux-image-amd64", "initramfs-tools", "zstd",
    "ifupdown", "iproute2", "procps", "apparmor", "ca-certificates", "curl", "less", "xz-utils",
    "bsdutils", "bsdextrautils",
)
# The packages that docs/install.md installs, and those that exitmark's packages recommend.
LATER = ("tor", "tcpdump", "ethtool")

SIZE = "4G"
REPOSITORY = "srv/repository"

# The guest's side of the runner's channel: a shell that reads `NUMBER BASE64-OF-A-SCRIPT` lines
# from a virtio port and answers `NUMBER STATUS BASE64-OF-ITS-OUTPUT`.
AGENT = r"""#!/bin/bash
until [ -e /dev/virtio-ports/runner ]; do sleep 0.2; done
exec 3<>/dev/virtio-ports/runner
cd /root
while read -r number script <&3; do
    base64 -d <<< "$script" > /run/runner-agent.sh
    HOME=/root bash -l /run/runner-agent.sh > /run/runner-agent.out 2>&1 < /dev/null 3>&-
    status=$?
    printf '%s %s %s\n' "$number" "$status" "$(base64 -w0 /run/runner-agent.out)" >&3
done
"""
AGENT_UNIT = r"""[Unit]
Description=Shell of the installation test
[Service]
ExecStart=/usr/local/sbin/runner-agent
Restart=always
[Install]
WantedBy=multi-user.target
"""

FILES = {
    "etc/hostname": "box\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 box\n",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 0\n",
    "etc/apt/sources.list": f"deb [trusted=yes] file:/{REPOSITORY} ./\n",
    # `incoming` is configured like any server NIC, before exitmark is installed.
    "etc/network/interfaces": """source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

auto enp3s0
iface enp3s0 inet static
    address 203.0.113.2/24
    gateway 203.0.113.1
""",
    "usr/local/sbin/runner-agent": AGENT,
    "etc/systemd/system/runner-agent.service": AGENT_UNIT,
}
# The initial RAM disk holds only the modules of the root file system, for a faster boot.
INITRD = {
    "etc/initramfs-tools/conf.d/modules": "MODULES=list\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
}


@dataclasses.dataclass(frozen=True)
class Image:
    """Files of an image: its root file system (raw ext4), kernel and initial RAM disk."""

    release: str
    root: pathlib.Path
    kernel: pathlib.Path
    initrd: pathlib.Path


def mirrors():
    """Returns the URIs of the archive and the security archive (or None) from apt's sources."""
    listed = subprocess.run(
        ["apt-get", "--print-uris", "update"], capture_output=True, text=True, check=False
    ).stdout
    found = {}
    for uri, suite in re.findall(r"^'(\S+?)/dists/(\S+)/InRelease'", listed, re.M):
        if uri.rstrip("/").endswith(("/debian", "/debian-security")):
            found.setdefault(suite.endswith("-security"), uri)
    if False not in found:
        raise Unavailable("apt's sources name no archive of Debian")
    return found[False], found.get(True)


def recipe(release, archive, security):
    """Returns mmdebstrap's arguments without the target, and the files written afterwards."""
    later = " ".join(LATER)
    arguments = [
        "--mode=root", "--variant=important", "--format=directory",
        "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=APT::Install-Recommends \"false\"",
        f"--include={','.join(INSTALLED)}",
    ]
    for path, text in INITRD.items():
        arguments.append(
            f'--essential-hook=mkdir -p "$1/{os.path.dirname(path)}" '
            f"&& printf '{text.encode('unicode_escape').decode()}' > \"$1/{path}\""
        )
    arguments += [
        '--customize-hook=chroot "$1" apt-get clean',
        "--customize-hook=chroot \"$1\" apt-get install -qy --download-only -o "
        f"APT::Install-Recommends=true {later} </dev/null",
        f"--customize-hook=mkdir -p \"$1/{REPOSITORY}\" "
        f"&& mv \"$1\"/var/cache/apt/archives/*.deb \"$1/{REPOSITORY}/\"",
        release, "TARGET", archive,
    ]
    if security:
        arguments.append(f"deb {security} {release}-security main")
    return arguments


def make(release: str) -> Image:
    """Returns the release's image, from the cache or newly created (root; some minutes)."""
    arguments = recipe(release, *mirrors())
    key = hashlib.sha256(repr((arguments, FILES, SIZE)).encode()).hexdigest()[:16]
    target = cache() / f"{release}-{key}"
    image = Image(release, target / "root.ext4", target / "vmlinuz", target / "initrd")
    if target.is_dir():
        return image
    if os.geteuid() != 0:
        raise Unavailable(f"no image of {release} is in {cache()}, and only root can make one")
    for tool in ("mmdebstrap", "dpkg-scanpackages", "mkfs.ext4"):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is not installed")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f".{release}-") as work:
        tree, out = pathlib.Path(work, "tree"), pathlib.Path(work, "out")
        out.mkdir()
        arguments[arguments.index("TARGET")] = str(tree)
        log = cache() / f"{release}.log"
        with log.open("w") as output:
            # Its mounts and children end with it, even if it is killed.
            apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            status = subprocess.run(
                [*apart, "mmdebstrap", *arguments],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False,
            ).returncode  # fmt: skip
        if status != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise Unavailable(f"mmdebstrap {release} failed: {last[0]} (all of it: {log})")
        finish(tree)
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            [found] = tree.glob(f"boot/{pattern}")
            shutil.copyfile(found, out / name)
        with open(out / "root.ext4", "wb") as raw:
            raw.truncate(int(SIZE[:-1]) << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, out / "root.ext4"], check=True)
        out.rename(target)
    return image


def finish(tree: pathlib.Path):
    """Makes mmdebstrap's installation a bootable server."""
    repository = tree / REPOSITORY
    with open(repository / "Packages", "w") as index:
        subprocess.run(
            ["dpkg-scanpackages", "-m", "."],
            cwd=repository, stdout=index, stderr=subprocess.DEVNULL, check=True,
        )
    for path in (tree / "etc/apt").glob("sources.list*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tree / "etc/apt/sources.list.d").mkdir()
    # Remove mmdebstrap's settings of apt: a server installs recommended packages.
    for path in (tree / "etc/apt/apt.conf.d").glob("99mmdebstrap"):
        path.unlink()
    for path, text in FILES.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "usr/local/sbin/runner-agent").chmod(0o755)
    (tree / "var/log/journal").mkdir(exist_ok=True)
    wanted = tree / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    (wanted / "runner-agent.service").symlink_to("/etc/systemd/system/runner-agent.service")
    # Rebuilding the manual's index takes minutes under emulation.
    (tree / "var/lib/man-db/auto-update").unlink(missing_ok=True)
    # Real documents are from the past; systemd does not set the clock before this file's time.
    epoch = tree / "usr/lib/clock-epoch"
    epoch.touch()
    os.utime(epoch, (1_600_000_000, 1_600_000_000))
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer"):
        (tree / "etc/systemd/system" / timer).symlink_to("/dev/null")
    subprocess.run(
        ["chroot", tree, "apt-get", "update", "-q"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or RELEASES:
        try:
            made = make(name)
        except Unavailable as error:
            sys.exit(f"image: {error}")
        print(f"{name}: {made.root} ({made.root.stat().st_blocks // 2048} MiB)")
