"""The cells of the matrix, as data."""

import dataclasses

KERNELS = ("6.1", "6.12", "6.18", "7.3")

# The steps of a cell, in order; some run `monitor` after them. `load` counts frames; it continues
# during `kill`, `stop` and `restart`.
FULL = (
    "doctor", "cross", "load", "stop", "kill", "restart", "terminate", "reload", "link", "detach",
)  # fmt: skip
# For a NIC whose driver adds queues for XDP, from which slow-path frames are forwarded unchanged.
GROWING = ("doctor", "load", "kill", "restart", "detach", "monitor")
# For cells whose other steps run in another cell of the same kernel, NIC or engine.
LESS = ("doctor", "cross", "load", "stop", "kill", "restart", "detach")
SHORT = ("doctor", "cross", "load", "kill", "detach")

# QEMU's NICs. With an I/O MMU the kernel maps virtio's memory like that of a real NIC, and
# virtio-net supports zero-copy sockets.
DEVICES = {
    "virtio": "virtio-net-pci",
    "virtio-iommu": "virtio-net-pci,disable-legacy=on,iommu_platform=on",
    "igb": "igb",
    "e1000e": "e1000e",
    "vmxnet3": "vmxnet3",
}
# Frames that QEMU's NIC model does not send: it parses the IPv4 header, and drops frames with a
# header length below 20 bytes.
UNSENDABLE = {nic: {"malformed: header length"} for nic in ("igb", "e1000e", "vmxnet3")}
MODULES = ("virtio_pci", "virtio_net", "igb", "e1000e", "vmxnet3", "veth", "af_packet")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One kind of NIC, one configuration, and the expected result."""

    kernel: str
    nic: str
    mode: str  # how frames reach the box: generic, native or zero-copy
    engine: str
    steps: tuple = FULL
    # `right`, or `refused`; `says` is then a required part of the message.
    expect: str = "right"
    says: str = ""
    # The configuration's datapath.zero_copy.
    zero_copy: str = "off"
    # Whether the policy ends with the process: frames may then be lost without it.
    needs_process: bool = False
    # Several queues, or offloads, require a tap and root.
    queues: int = 1
    # Queues of the NIC that are unused until XDP is attached.
    spare: int = 0
    tap: bool = False
    mtu: int = 1500

    @property
    def cpus(self):
        """The guest's CPUs. QEMU's vmxnet3 stalls a guest with two while its link is set up."""
        return 1 if self.nic == "vmxnet3" else 2

    def device(self, wire):
        """QEMU's device on a wire: `+` separates the host's from the others'."""
        first, _, others = self.nic.partition("+")
        return DEVICES[first if wire == "h" or not others else others]

    @property
    def unsendable(self):
        """The names of frames that QEMU's model of one of its NICs drops."""
        return set().union(*(UNSENDABLE.get(nic, ()) for nic in self.nic.split("+")))

    @property
    def has_workers(self):
        """Whether workers decide: engine auto selects them if every port is zero-copy."""
        return self.engine == "af_xdp" or (self.engine, self.mode) == ("auto", "zero-copy")

    @property
    def name(self):
        """The cell's name on the command line and in the results."""
        extra = "" if self.queues == 1 else f"-{self.queues}q"
        extra += f"-{self.spare}spare" if self.spare else ""
        extra += f"-{self.zero_copy}" if self.zero_copy != "off" else ""
        extra += "-tap" if self.tap else ""
        extra += f"-mtu{self.mtu}" if self.mtu != 1500 else ""
        return f"{self.kernel}-{self.nic}-{self.mode}-{self.engine}{extra}"

    @property
    def group(self):
        """The group of cells that can share a guest, which has the NICs of all of them."""
        return (self.kernel, self.queues, self.spare, self.tap, self.cpus)


def _cells():
    for kernel in KERNELS:
        at_an_end = kernel in (KERNELS[0], KERNELS[-1])
        is_newest = kernel == KERNELS[-1]

        def refused(nic, engine, says, queues=1, zero_copy="require"):
            return Cell(
                kernel, nic, "zero-copy" if zero_copy == "require" else "native", engine, SHORT,
                "refused", says, zero_copy, queues=queues, tap=queues > 1,
            )  # fmt: skip

        yield Cell(kernel, "virtio", "native", "xdp", FULL if at_an_end else LESS)
        yield Cell(kernel, "virtio", "native", "af_xdp", FULL if is_newest else LESS)
        yield Cell(kernel, "igb", "native", "xdp", FULL if is_newest else SHORT)
        yield Cell(kernel, "igb", "native", "af_xdp", SHORT)
        yield Cell(kernel, "e1000e", "generic", "xdp", FULL if kernel == "6.1" else SHORT)
        mode = "generic" if kernel == "6.1" else "native"
        yield Cell(kernel, "vmxnet3", mode, "xdp", FULL if is_newest else SHORT)
        if at_an_end:
            yield Cell(kernel, "e1000e", "generic", "af_xdp", SHORT)
            yield Cell(kernel, "vmxnet3", mode, "af_xdp", SHORT)
            for nic in ("e1000e", "vmxnet3"):
                yield refused(nic, "af_xdp", "zero.copy")
            with_monitor = (*SHORT, "monitor")
            yield Cell(kernel, "virtio", "native", "xdp", with_monitor, queues=2, tap=True)
        if kernel in ("6.18", "7.3"):
            required = {"zero_copy": "require", "steps": FULL if is_newest else LESS}
            yield Cell(
                kernel, "virtio-iommu", "zero-copy", "af_xdp", needs_process=True, **required
            )
            yield refused("virtio-iommu", "xdp", "zero.copy")
            yield Cell(kernel, "virtio-iommu", "native", "auto", SHORT, zero_copy="auto")
            yield Cell(kernel, "igb", "zero-copy", "af_xdp", **required)
            yield Cell(kernel, "igb", "zero-copy", "auto", SHORT, zero_copy="auto")
        else:
            for nic in ("virtio-iommu", "igb"):
                yield refused(nic, "af_xdp", "zero.copy")
        if at_an_end:
            yield refused("virtio", "xdp", "queue", 4, "off")
    # An egress without support for redirects, next to a NIC with it.
    for kernel in ("6.1", "6.18"):
        yield Cell(kernel, "igb+e1000e", "generic", "xdp", SHORT)
    for kernel in ("6.12", "7.3"):
        yield Cell(kernel, "virtio", "native", "xdp", GROWING, queues=2, spare=2, tap=True)
    # The largest MTU with one buffer, and frames in several.
    yield Cell("6.1", "virtio", "native", "xdp", SHORT, mtu=3486)
    yield Cell("6.1", "virtio", "native", "xdp", SHORT, "refused", "MTU", mtu=3487)
    for kernel in ("6.12", "7.3"):
        yield Cell(kernel, "virtio", "native", "xdp", SHORT, mtu=9000)


CELLS = tuple(_cells())
