"""What joins the members of the two bonds in the scenario `lag`."""

import re

import box
import frames

# The IPv4 address and the MAC address of each end.
ENDS = {"host": (frames.HOST_4, "02:00:5e:10:00:01"), "switch": ("192.0.2.1", "02:00:5e:10:00:02")}
MEMBERS = (0, 1)


class Cables:
    """Cables from member to member."""

    def __init__(self, machine):
        self.guest = machine

    def join(self):
        """Lays the cables."""
        for number in MEMBERS:
            self._lay(f"m{number}", "switch", f"m{number}", "gro on")

    def start(self):
        """Forwards frames, if the members have a cable each."""

    def stop(self):
        """Ends what `start` began."""

    def _lay(self, member, namespace, name, gro, end="host"):
        """Lays a cable from a member of an end to a device in a namespace, or the first one (1).

        A box forwards checksums as they are. A redirect into a veth requires GRO of its peer, which
        since Linux 6.3 must be set before the veth itself is set up.
        """
        single = "numtxqueues 1 numrxqueues 1"
        self.guest.check(
            f"/t/ip link add name {member} netns {end} {single} "
            f"type veth peer name {name} netns {namespace} {single}"
        )
        other = f"/t/ip netns exec {namespace} " if namespace in ENDS else ""
        self.guest.check(
            f"/t/ip netns exec {end} ethtool -K {member} tx off gro on && "
            f"{other}ethtool -K {name} tx off {gro} && "
            f"/t/ip -n {end} link set {member} up && {other}/t/ip link set {name} up"
        )


class Patch(Cables):
    """Two cables from member to member, joined by tc(8): a wire that does not carry link loss.

    Its comparison with `direct` fails: the bond at the end whose cable is not cut waits for the
    timeout of LACP.
    """

    def join(self):
        """Lays the cables."""
        for number in MEMBERS:
            for end, port in (("host", f"h{number}"), ("switch", f"u{number}")):
                self._lay(f"m{number}", 1, port, "gro off", end)

    def start(self):
        """Redirects the frames that one port receives to the other port of its wire."""
        for number in MEMBERS:
            for here, there in ((f"h{number}", f"u{number}"), (f"u{number}", f"h{number}")):
                self.guest.check(
                    f"/t/tc qdisc add dev {here} ingress && /t/tc filter add dev {here} ingress "
                    f"matchall action mirred egress redirect dev {there}"
                )


class Wires(Patch):
    """The wires of a box."""

    CONFIGURATION = (
        'engine = "xdp"\nmode = "enforce"\n'
        + "".join(
            f'[[wire]]\nhost = "h{number}"\nuplink = "u{number}"\nlink_loss = "propagate"\n'
            for number in MEMBERS
        )
        + f"""\
[host]
addresses = ["{frames.HOST_4}"]
listeners = [22]
resolvers = ["{frames.RESOLVER}"]
[mark]
dscp = "af11"
[relays]
consensus = []
extra = ["{frames.RELAY_4}:{frames.RELAY_PORT}"]
state = "/tmp/relays.state"
[pin]
directory = "/sys/fs/bpf/exitmark"
[control]
socket = "/tmp/control.sock"
"""
    )

    def start(self):
        """Starts the program, and waits until it is ready."""
        self.guest.put(box.CONFIG, self.CONFIGURATION)
        status, output = self.guest.run(box.START, box.READY_TIMEOUT)
        ready = re.search("^ready.*", output, re.M)
        if status or not ready:
            raise box.Wrong(f"the box does not start: {output[-1500:]}")
        modes = set(re.findall(r"xdp=(\S+)", ready[0]))
        if modes != {"native"}:
            raise box.Wrong(f"attached as {modes}, not native: {ready[0]}")

    def stop(self):
        """Terminates the program and detaches it."""
        self.guest.run(f"kill $(cat /tmp/pid) 2> /dev/null; {box.GONE}")
        self.guest.check(f"exitmark detach --config {box.CONFIG}")


MIDDLES = {"direct": Cables, "patch": Patch, "box": Wires}
