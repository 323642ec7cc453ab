"""The documents that tor would have fetched, for a guest without an Internet."""

import dataclasses
import datetime
import ipaddress
import lzma
import os
import pathlib
import re
import subprocess

from verifier import ROOT


@dataclasses.dataclass(frozen=True)
class Documents:
    """A consensus as tor keeps it, and what the test needs to know of it."""

    consensus: bytes
    certificates: bytes
    # To what the guest's clock is set when it boots.
    clock: datetime.datetime
    relays: list
    # Identities of the authorities where they are not those of Tor.
    authorities: list
    source: str

    @staticmethod
    def find(out):
        """Real ones where EXITMARK_REAL_DATA is set, else ones that are made up in `out`."""
        real = os.environ.get("EXITMARK_REAL_DATA")
        if not real:
            return Documents.make(out)
        directory = pathlib.Path(real, "consensus")
        newest = max(directory.glob("*-consensus-microdesc.xz"), default=None)
        certificates = max(directory.glob("*-cached-certs.xz"), default=None)
        if not (newest and certificates):
            raise FileNotFoundError(f"EXITMARK_REAL_DATA is set, and {directory} lacks documents")
        return Documents.of(
            lzma.decompress(newest.read_bytes()), lzma.decompress(certificates.read_bytes()),
            [], f"real, {newest.name}",
        )  # fmt: skip

    @staticmethod
    def make(out):
        """Made-up ones that are valid now."""
        done = subprocess.run(
            ["cargo", "run", "--locked", "--quiet", "--example", "consensus", "--", str(out)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        read = [(out / name).read_bytes() for name in ("cached-microdesc-consensus", "cached-certs")]
        return Documents.of(*read, done.stdout.split(), "made up: EXITMARK_REAL_DATA is unset")

    @staticmethod
    def of(consensus, certificates, authorities, source):
        """Documents with what is read out of them."""
        text = consensus.decode()
        valid_after = re.search(r"(?m)^valid-after (.*)$", text)[1]
        endpoints = re.findall(r"(?m)^r (?:\S+ ){4}(\S+) (\d+) \d+$", text)
        relays = [
            (address, int(port))
            for address, port in endpoints
            if authorities or ipaddress.ip_address(address).is_global
        ]
        clock = datetime.datetime.fromisoformat(f"{valid_after}+00:00")
        clock += datetime.timedelta(minutes=10)
        return Documents(consensus, certificates, clock, relays[:2], authorities, source)
