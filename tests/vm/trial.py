"""The steps on a machine with the box, and their checks: the pages' blocks, and events."""

import base64
import contextlib
import json
import re
import shlex
import time

import machine
import network

NICS = ("enp1s0", "enp2s0", "enp3s0", "enp4s0")
CONFIG = "/etc/exitmark/exitmark.toml"

# Lines that the operator changes in a configuration, each of which must exist, by the block that
# opens the editor.
EDITS = {
    "cp /usr/share/exitmark/exitmark.example.toml": [
        ('#mode = "enforce"', 'mode = "audit"'),
        ('#user = "exitmark"', 'user = "exitmark"'),
        ('host = "eth0"', 'host = "enp1s0"'),
        ('uplink = "eth1"', 'uplink = "enp2s0"'),
        ('incoming = "eth2"', 'incoming = "enp3s0"'),
    ],
    f"editor {CONFIG}": [('mode = "audit"', 'mode = "enforce"')],
    "cp /usr/share/exitmark-monitor/exitmark-monitor.example.toml": [
        ('exit = "exit1"', 'exit = "guest"'),
    ],
}


class Wrong(Exception):
    """A check failed."""


# Exceptions that fail a row; all others are faults of this script.
FAILURES = (Wrong, machine.Failed, RuntimeError, OSError, ValueError)


def require(condition, what):
    """Raises Wrong with `what` unless the condition holds."""
    if not condition:
        raise Wrong(what)


class Trial:
    """One release: its guest, its network, and the rows of the result."""

    def __init__(self, guest, net, documents, second):
        self.guest, self.net, self.documents = guest, net, documents
        # The version of the upgrade.
        self.second = second
        self.rows, self.facts = [], {}
        # The state of each NIC before a box or a monitor was attached.
        self.before = {}

    @contextlib.contextmanager
    def row(self, name):
        """Adds a row to the result: passed unless the block raises."""
        row = {"step": name, "ok": False}
        self.rows.append(row)
        self.facts = row
        began = time.monotonic()
        try:
            yield row
            row["ok"] = True
        except Exception as error:
            row["error"] = str(error)
            raise
        finally:
            row["seconds"] = round(time.monotonic() - began, 1)
            said = "ok" if row["ok"] else f"FAILED: {row['error']}"
            more = ", ".join(
                f"{key} {value}" for key, value in row.items()
                if key not in ("step", "ok", "seconds", "error")
            )  # fmt: skip
            print(f"  {row['seconds']:6.1f} s  {name}: {said}{f' ({more})' if more else ''}", flush=True)

    # State of the machine

    def pid(self, unit="exitmark"):
        """Returns the PID of the service."""
        return int(self.guest.run(f"systemctl show -p MainPID --value {unit}"))

    def active(self, unit, other_than=0):
        """Waits until the service runs as another process than this one; returns its PID."""
        return int(
            self.guest.until(
                f"systemctl is-active --quiet {unit} || exit 1\n"
                f"pid=$(systemctl show -p MainPID --value {unit})\n"
                f'[ "$pid" != {other_than} ] && echo "$pid"',
                f"{unit} is not active", 300,
            )
        )  # fmt: skip

    def nic_state(self, nics):
        """Returns the NIC state that a detach must restore."""
        state = {}
        for nic in nics:
            [link] = json.loads(self.guest.run(f"ip -d -j link show dev {nic}"))
            kept = {key: link.get(key) for key in ("flags", "promiscuity", "xdp", "mtu")}
            state[nic] = kept | {"offloads": self.guest.run(f"ethtool -k {nic}").splitlines()}
        return state

    def nics_are_as_before(self, nics):
        """Fails if the state of NICs differs from the earlier one."""
        now = self.nic_state(nics)
        for nic in nics:
            before = self.before[nic]
            differs = [
                f"{key} {before[key]} and now {now[nic][key]}"
                for key in before if key != "offloads" and before[key] != now[nic][key]
            ] + sorted(set(now[nic]["offloads"]) - set(before["offloads"]))  # fmt: skip
            require(not differs, f"{nic} differs: {'; '.join(differs)}")
            require(now[nic]["xdp"] is None, f"{nic} has an XDP program: {now[nic]['xdp']}")

    def settled(self):
        """Waits until the box steers, and fails if it has an alarm."""
        self.guest.until(
            "curl -s http://127.0.0.1:9787/metrics | grep -qx 'exitmark_steering_up 1' || "
            "{ exitmark status; false; }",
            "steering is not up",
        )
        self.guest.run("exitmark status")

    def wire_is_dark(self):
        """Fails if the Tor host's router answers a ping."""
        with network.Pings(self.net, timeout=2) as pings:
            while pings.sent < 10:
                time.sleep(0.05)
        require(pings.lost == pings.sent, f"{pings.sent - pings.lost} pings were answered")

    # Checks of the traffic

    def audits(self):
        """Traffic is forwarded unchanged: not marked or steered, and each class is counted."""
        seen = self.net.observed(self.net.exchange)
        marked = [what for what in seen if what.endswith(" marked")]
        require(not marked, f"marked in audit mode: {seen}")
        require("up exit unmarked" in seen and "up relay unmarked" in seen, f"seen: {seen}")
        require("in relay unmarked" not in seen, f"steered in audit mode: {seen}")

    def marks(self):
        """Exit traffic leaves marked by the uplink, relay traffic unmarked by incoming."""
        seen = self.net.observed(self.net.exchange)
        wanted = {"up exit marked", "up reply unmarked", "in relay unmarked"}
        require(wanted <= seen.keys(), f"not all of {sorted(wanted)}: {seen}")
        wrong = seen.keys() - wanted - {"up rest unmarked", "up other", "in other", "in rest unmarked"}
        require(not wrong, f"{sorted(wrong)}: {seen}")
        self.facts["marked"] = seen["up exit marked"]
        self.facts["steered"] = seen["in relay unmarked"]

    @contextlib.contextmanager
    def nothing_lost(self):
        """While the block runs, no ping is lost and an exit connection stays open and marked."""
        with network.Stream(self.net) as stream, network.Pings(self.net) as pings:
            self.net.observed(lambda: None)
            yield
            before = stream.requests
            deadline = time.monotonic() + network.TIMEOUT
            while stream.requests < before + 5 and time.monotonic() < deadline:
                time.sleep(0.05)
            seen = dict(self.net.counts)
        self.facts |= {"pings": pings.sent, "lost": pings.lost}
        self.facts["unmarked"] = seen.get("up exit unmarked", 0)
        require(pings.lost == 0, f"{pings.lost} of {pings.sent} pings lost")
        require(self.facts["unmarked"] == 0, f"exit frames left unmarked: {seen}")
        require(seen.get("up exit marked"), f"no exit frame seen: {seen}")

    # Blocks of the pages

    def run_block(self, block, keys=None):
        """Runs a block unchanged. `keys` is typed when a full-screen program has started."""
        for opening, edits in EDITS.items():
            if block.text.startswith(opening):
                self.install_editor(edits + self.more_edits(opening))
        text = block.text
        if self.documents.authorities and text.startswith("exitmark relays /var/lib/tor"):
            named = "".join(f" --authority {each}" for each in self.documents.authorities)
            text = text.rstrip("\n") + named + "\n"
        if keys is None:
            return self.guest.run(text, 1800)
        self.put("/run/block", f"set -e\n{text}".encode())
        return self.guest.run(
            f"""
            rm -f /run/keys /run/screen; mkfifo /run/keys
            TERM=xterm script -qefc 'stty rows 50 cols 160; bash /run/block' /run/screen \
                < /run/keys > /dev/null &
            exec 4> /run/keys
            until grep -qF $'\\e[?1049h' /run/screen || ! kill -0 $! 2> /dev/null; do sleep 0.2; done
            printf %s {shlex.quote(keys)} >&4 || true
            wait $! || {{ status=$?; cat /run/screen; exit $status; }}
            cat /run/screen
            """,
            1800,
        )

    def more_edits(self, opening):
        """Returns the edits for a private Tor network."""
        if opening.startswith("cp /usr/share/exitmark/") and self.documents.authorities:
            named = json.dumps(self.documents.authorities)
            example = '#authorities = ["F533C81CEF0BC0267857C99B2F471ADF249FA232"]'
            return [(example, f"authorities = {named}")]
        return []

    def install_editor(self, edits):
        """Installs a program `editor` that makes exactly these edits."""
        lines = ["#!/bin/sh", "set -e"]
        for old, new in edits:
            lines.append(f'grep -qxF -- {shlex.quote(old)} "$1"')
            pattern = re.sub(r"([][\\.*^$/])", r"\\\1", old)
            replacement = re.sub(r"([\\&/])", r"\\\1", new)
            lines.append(f'sed -i {shlex.quote(f"s/^{pattern}$/{replacement}/")} "$1"')
        self.put("/usr/local/bin/editor", "\n".join(lines).encode() + b"\n")
        self.guest.run("chmod 755 /usr/local/bin/editor")

    def put(self, path, content):
        """Writes a file in the guest."""
        quoted = base64.b64encode(content).decode()
        self.guest.run(f"base64 -d > {shlex.quote(path)} <<'END'\n{quoted}\nEND")

    # Blocks of docs/install.md

    def install(self, block):
        """The service does not run yet, and the NICs are free."""
        self.run_block(block)
        self.facts["version"] = self.guest.run("exitmark --version").strip()
        require(self.guest.attempt("systemctl is-active exitmark")[0] != 0, "the service runs")
        require(self.guest.attempt("systemctl is-enabled exitmark")[0] != 0, "it is enabled")

    def configure_nics(self, block):
        """Up, without an address."""
        self.run_block(block)
        for nic in NICS[:2]:
            [link] = json.loads(self.guest.run(f"ip -j address show dev {nic}"))
            require("UP" in link["flags"], f"{nic} is not up: {link['flags']}")
            require(not link["addr_info"], f"{nic} has addresses: {link['addr_info']}")
        self.before |= self.nic_state(NICS[:3])

    def tor(self, block):
        """tor runs; the documents that it would fetch are copied to its cache directory."""
        self.run_block(block)
        self.guest.until("systemctl is-active --quiet tor@default", "tor is not active")
        owner = self.guest.run("stat -c '%U:%G %a' /var/lib/tor").strip()
        require(re.fullmatch("debian-tor:debian-tor 2?7[05]0", owner), f"/var/lib/tor is {owner}")
        self.guest.run("install -o debian-tor -g debian-tor -m 600 -t /var/lib/tor documents/*")
        self.facts["documents"] = self.documents.source

    def relays(self, block):
        """The document is accepted."""
        said = self.run_block(block)
        listed = re.search(r"\d[\d,]* endpoints|\d[\d,]* relays", said)
        self.facts["relays"] = listed[0] if listed else said.strip().splitlines()[0]

    def run_only(self, block):
        """The block succeeds."""
        self.run_block(block)

    def look(self, block):
        """check and doctor find no fault."""
        said = self.run_block(block)
        faults = [line for line in said.splitlines() if line.startswith("fault")]
        require(not faults, "; ".join(faults))

    def start(self, block):
        """The service runs, in audit mode; top ends with q."""
        said = self.run_block(block, keys="q")
        require("audit" in said, f"status says nothing of audit mode: {said}")
        self.settled()
        self.audits()

    def enforce(self, block):
        """The reload makes the box mark and steer, without loss."""
        with network.Pings(self.net) as pings:
            self.run_block(block)
        require(pings.lost == 0, f"{pings.lost} of {pings.sent} pings lost")
        self.settled()
        self.marks()

    def marked_packet(self, block):
        """The capture contains a marked packet of an open connection."""
        with network.Stream(self.net):
            said = self.run_block(block)
        shown = [line for line in said.splitlines() if "tos 0x28" in line]
        require(len(shown) == 3, f"tcpdump shows {len(shown)} marked packets: {said}")

    def detach(self, block):
        """The NICs are restored, and nothing is forwarded."""
        self.run_block(block)
        self.nics_are_as_before(NICS[:3])
        self.wire_is_dark()

    # Blocks of the monitor's page

    def install_monitor(self, block):
        """The monitor does not run yet."""
        self.run_block(block)
        require(self.guest.attempt("systemctl is-active exitmark-monitor")[0] != 0, "it runs")

    def configure_tap(self, block):
        """Up, without an address."""
        self.run_block(block)
        self.before |= self.nic_state(NICS[3:])

    def start_monitor(self, block):
        """The monitor counts exactly the marked packets of the exit connections."""
        self.run_block(block)
        self.net.exchange()
        counted = self.guest.until(
            "curl -s http://127.0.0.1:9788/metrics > /run/metrics\n"
            "grep -E '^exitmark_monitor_packets_total [1-9]' /run/metrics || "
            "{ cat /run/metrics; false; }",
            "the monitor counts nothing",
        )
        self.facts["packets"] = int(float(counted.split()[-1]))

    def report(self, block):
        """After the clock is set past midnight, the period's file is written."""
        self.guest.run("date -s \"$(date -d tomorrow +%F) 00:05\"")
        self.guest.until("ls /var/lib/exitmark-monitor/*.jsonl", "no period's file")
        self.run_block(block)
        self.guest.run("test -s /srv/www/exits/index.html")

    def report_timer(self, block):
        """The timer generates the page at its time."""
        self.run_block(block)
        self.guest.run("date -s 00:15:01")
        self.guest.until("test -s /var/cache/exitmark-monitor/index.html", "no page")

    # Events of a machine

    def reboot(self):
        """The wire is up before networking; later the service marks and steers."""
        with network.Pings(self.net) as pings:
            self.guest.reboot()
            self.active("exitmark")
        # In seconds: without an answer, and from the kernel's start to the plain wire.
        self.facts["silence"] = round(pings.silence, 1)
        wired, network_up = (
            int(self.guest.run(f"systemctl show -P {what}"))
            for what in (
                "ExecMainExitTimestampMonotonic exitmark-wire",
                "ExecMainStartTimestampMonotonic networking",
            )
        )
        self.facts["wire after"] = round(wired / 1e6, 1)
        require(0 < wired < network_up, f"a wire after {wired}, networking after {network_up} us")
        self.settled()
        self.marks()

    def restart(self):
        """systemctl restart loses no frame."""
        pid = self.pid()
        with self.nothing_lost():
            self.guest.run("systemctl restart exitmark")
            self.active("exitmark", pid)
        self.settled()
        self.marks()

    def stop(self):
        """systemctl stop loses no frame: the kernel marks by the last policy until a start."""
        with self.nothing_lost():
            self.guest.run("systemctl stop exitmark")
            self.guest.run("systemctl start exitmark")
            self.active("exitmark")
        self.settled()
        self.marks()

    def keep_the_wire(self):
        """detach --keep-wire leaves a plain wire, and the service takes it over again."""
        with network.Pings(self.net) as pings:
            self.guest.run(
                f"systemctl stop exitmark && exitmark detach --keep-wire --config {CONFIG}"
            )
            seen = self.net.observed(self.net.exchange)
            self.guest.run("systemctl start exitmark")
            self.active("exitmark")
        self.facts |= {"pings": pings.sent, "lost": pings.lost, "silence": round(pings.silence, 1)}
        require(pings.lost == 0, f"{pings.lost} of {pings.sent} pings lost")
        marked = [what for what in seen if what.endswith(" marked")]
        require(not marked, f"a plain wire marks: {seen}")
        require("up exit unmarked" in seen and "up relay unmarked" in seen, f"seen: {seen}")
        self.settled()
        self.marks()

    def watchdog(self):
        """A stopped process is replaced by systemd; the kernel marks meanwhile."""
        self._replaced("STOP")
        self.guest.run("journalctl -b -u exitmark | grep -i 'watchdog timeout'")

    def kill(self):
        """A killed process is replaced by systemd; the kernel marks meanwhile."""
        self._replaced("KILL")

    def _replaced(self, signal):
        pid = self.pid()
        with self.nothing_lost():
            self.guest.run(f"kill -{signal} {pid}")
            self.active("exitmark", pid)
        self.settled()
        self.marks()

    def upgrade(self):
        """Newer packages restart the running services, without loss."""
        units = ("exitmark", "exitmark-monitor")
        pids = {unit: pid for unit in units if (pid := self.pid(unit))}
        with self.nothing_lost():
            self.guest.run("apt install -y ./next/*.deb", 1800)
            for unit, pid in pids.items():
                self.active(unit, pid)
        for package in units:
            version = self.guest.run(f"dpkg-query -Wf '${{Version}}' {package}")
            self.facts["version"] = version
            require(version == self.second, f"{package} is {version}, not {self.second}")
        self.settled()
        self.marks()

    def start_again(self):
        """A start after a detach attaches the box again."""
        self.guest.run("systemctl start exitmark")
        self.settled()
        self.marks()

    def purge(self):
        """No program, pin, process or file is left; the NICs are restored.

        The wire is dead once the programs are detached: `lost` counts the pings until the end.
        """
        with network.Pings(self.net, timeout=2) as pings:
            self.guest.run("apt purge -y exitmark exitmark-monitor", 1800)
        self.facts |= {"pings": pings.sent, "lost": pings.lost}
        self.nics_are_as_before(NICS)
        self.wire_is_dark()
        left = self.guest.run(
            "pgrep -a exitmark || true\n"
            "mount | grep exitmark || true\n"
            "find /run /etc /usr /var/lib /var/cache -xdev -name '*exitmark*' "
            "| grep -v -e '^/etc/network' -e '^/var/lib/systemd/' || true\n"
            "getent group debian-tor | grep exitmark || true"
        )
        require(not left, f"left: {left}")

    def healthy(self):
        """The journal of all boots has no fault of kernel, AppArmor or seccomp."""
        found = self.guest.run(
            "journalctl --no-pager -o cat _TRANSPORT=kernel + _TRANSPORT=audit | grep -E "
            "'WARNING: |BUG: |Oops|Call Trace|Kernel panic|type=1326|DENIED.*exitmark' || true"
        )
        require(not found, found)
        failed = self.guest.run("systemctl --failed --no-legend --plain")
        require(not failed, failed)
