"""The documents that tor would have fetched, for a guest without Internet access."""

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
    """A consensus in tor's file format, and its properties that the test needs."""

    consensus: bytes
    certificates: bytes
    # The guest's clock at boot.
    clock: datetime.datetime
    relays: list
    # Identities of the authorities, if they are not Tor's.
    authorities: list
    source: str

    @staticmethod
    def find(out):
        """Returns real documents if EXITMARK_REAL_DATA is set, else synthetic ones in `out`."""
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
        """Returns synthetic documents that are valid now."""
        done = subprocess.run(
            ["cargo", "run", "--locked", "--quiet", "--bin", "consensus", "--", str(out)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        read = [(out / name).read_bytes() for name in ("cached-microdesc-consensus", "cached-certs")]
        return Documents.of(*read, done.stdout.split(), "synthetic: EXITMARK_REAL_DATA is unset")

    @staticmethod
    def of(consensus, certificates, authorities, source):
        """Returns documents with the properties parsed from them."""
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
