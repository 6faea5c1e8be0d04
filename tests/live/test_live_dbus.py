"""A real dbus-daemon with real clients: the bus says itself whose connections it has.

It has a system bus's configuration and name of socket, and a folder of its own. Where systemd is
not on it, nobody has power by it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation.base import Stage, below, unmount_below
from children import child
from programs import QUIET, asks, folder, may_ask, running, until

import osmosis
from osmosis.graph.graph import POTENTIAL, Edge
from osmosis.relations.control.table import control

pytestmark = pytest.mark.live

OWNER = "/usr/lib/systemd/systemd-hostnamed"  # a real service of the bus: it answers
NAME = "org.freedesktop.hostname1"
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"""


@dataclass
class Bus:
    pid: int
    path: Path

    @property
    def address(self):
        return f"unix:path={self.path}"

    def call(self, *words):
        """What the bus answers to a method of its own."""
        line = ["gdbus", "call", "--address", self.address, "--dest", "org.freedesktop.DBus"]
        line += ["--object-path", "/org/freedesktop/DBus", "--method"]
        done = subprocess.run([*line, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def pids(self):
        """Processes behind each unique name, as the bus knows them."""
        found = {}
        for name in re.findall(r"'(:[\d.]+)'", self.call("org.freedesktop.DBus.ListNames")):
            try:
                text = self.call("org.freedesktop.DBus.GetConnectionUnixProcessID", name)
            except subprocess.CalledProcessError:
                continue  # gdbus itself, which has gone
            found[name] = int(re.search(r"uint32 (\d+)", text)[1])
        return found

    def owner(self, name):
        try:
            text = self.call("org.freedesktop.DBus.GetConnectionUnixProcessID", name)
        except subprocess.CalledProcessError:
            return None
        return int(re.search(r"uint32 (\d+)", text)[1])


@pytest.fixture
def bus(need):
    for program in ("dbus-daemon", "dbus-monitor", "gdbus"):
        need(shutil.which(program), f"needs {program} (dbus, libglib2.0-bin)")
    need(os.path.exists(OWNER), "needs systemd-hostnamed (systemd)")
    with folder() as work:
        path = work / "system_bus_socket"
        (work / "bus.conf").write_text(CONFIG.format(path=path))
        words = ["dbus-daemon", f"--config-file={work}/bus.conf", "--nofork", "--nopidfile"]
        with running(*words, **QUIET) as daemon:
            until(path.exists, "the bus")
            yield Bus(daemon.pid, path)


def through(model):
    """Pairs of pids that may ask each other through a bus, by potential edges."""
    edges = model.data.edges
    pids = model.pds.pid
    at = (edges.kind == Edge.REQUEST) & ((edges.flags & POTENTIAL) != 0)
    return set(zip(pids[edges.src[at]].tolist(), pids[edges.dst[at]].tolist(), strict=True))


def test_clients_ask_the_bus_for_certain_and_each_other_potentially(bus):
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
    with ExitStack() as stack:
        words = ["dbus-monitor", "--address", bus.address]
        monitor = stack.enter_context(running(*words, **QUIET))
        owner = stack.enter_context(running(OWNER, env=env, **QUIET))
        other = stack.enter_context(child())
        until(lambda: bus.owner(NAME) == owner.pid, "the name of the service")
        clients = {monitor.pid, owner.pid}
        until(lambda: set(bus.pids().values()) >= {owner.pid}, "the clients")
        # A monitor loses its name on the bus and stays connected: gdbus is asked about the rest.
        assert set(bus.pids().values()) - clients <= {bus.pid}
        model = osmosis.capture([bus.pid, other.pid, *clients]).model()
        for pid in clients:
            assert asks(model, pid) == {bus.pid}
            assert may_ask(model, pid) == set()
        assert asks(model, bus.pid) == asks(model, other.pid) == set()
        assert through(model) == set(permutations(clients, 2))
        # The service answers through the bus to whoever asks it.
        line = ["gdbus", "call", "--address", bus.address, "--dest", NAME, "--object-path"]
        line += ["/org/freedesktop/hostname1", "--method", "org.freedesktop.DBus.Peer.Ping"]
        assert subprocess.run(line, capture_output=True, text=True).stdout.strip() == "()"


def test_a_bus_without_systemd_gives_nobody_power(bus):
    """Reaching its socket is allowed to everybody here, and unknown of nobody."""
    user = "raw('setresgid', 9, 9, 9); raw('setresuid', 9, 9, 9); prctl(4, 1)"
    with child() as root, child(user) as reader, child() as target:
        connect = f"s = socket.socket(socket.AF_UNIX); s.connect({str(bus.path)!r})"
        reader.do(connect)
        snap = osmosis.capture()
        names = snap.texts("daemon_name")
        rows = [
            i for i, p in enumerate(snap["daemon_process"]) if snap["process_pid"][p] == bus.pid
        ]
        assert [names[i] for i in rows] == ["dbus-daemon"]
        assert snap["daemon_file"][rows[0]] >= 0  # its socket file was found
        row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
        table = control(snap)
        for a, b in permutations([root.pid, reader.pid, target.pid, bus.pid], 2):
            found = table.finding("daemon", row[a], row[b], effective=True)
            assert "dbus" not in found.reason
            assert found.state is not None or "bus" not in found.reason


# -- systemd on its own system bus -------------------------------------------------------------


@dataclass
class Booted:
    """A container that systemd runs, on an overlay of this host's own root."""

    init: int

    def run(self, *words, uid=None):
        line = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--uts", "--ipc", "--net"]
        line += ["--root", "--wd"]
        if uid is not None:
            line += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return subprocess.run([*line, *words], capture_output=True, text=True, timeout=60)

    def is_on_its_bus(self):
        told = self.run("busctl", "list", "--no-pager", "--acquired").stdout
        return re.search(r"^org.freedesktop.systemd1 +1 systemd ", told, re.MULTILINE)

    @contextmanager
    def sleeper(self, uid):
        """A process inside; its pid as the host has it."""
        line = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--root", "--wd"]
        line += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        with running(*line, "sleep", "1000000", **QUIET) as process:
            pid = until(lambda: below(process.pid, ("sleep",)), "a process inside")
            yield pid
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def booted(need):
    need(shutil.which("systemd-nspawn"), "needs systemd-nspawn (systemd-container)")
    stage = Stage(Path("/var/tmp") / f"osmosis-boot-{os.getpid()}")
    try:
        stage.keep_cgroups("payload", "supervisor")
        root = stage.folder("root")
        stage.on_close("mounts", lambda: unmount_below(root))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root], check=True)
        for name in ("upper", "work", "merged"):
            (root / name).mkdir()
        layers = f"lowerdir=/,upperdir={root}/upper,workdir={root}/work"
        merged = root / "merged"
        line = ["mount", "-t", "overlay", "overlay", "-o", layers, merged]
        subprocess.run(line, check=True)
        (merged / "etc/machine-id").unlink(missing_ok=True)
        words = ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "-D", merged, "-b"]
        spawned = stage.spawn(*words, "systemd.unit=basic.target", log="systemd")
        found = Booted(below(spawned.pid, ("systemd",), 60))
        until(lambda: found.run("systemctl", "start", "dbus").returncode == 0, "its bus", 90)
        until(found.is_on_its_bus, "systemd on its bus")
        yield found
    finally:
        stage.close()
        shutil.rmtree(stage.work, ignore_errors=True)


def test_systemd_on_the_bus_is_asked_by_root_and_asks_polkit_about_others(booted):
    assert booted.is_on_its_bus()
    ask = ["busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]
    ask += ["org.freedesktop.systemd1.Manager", "ResetFailed"]
    assert booted.run(*ask).returncode == 0
    refused = booted.run(*ask, uid=9)
    assert re.search("authentication required|denied", refused.stderr, re.IGNORECASE), refused
    with ExitStack() as stack:
        user, root = (stack.enter_context(booted.sleeper(uid)) for uid in (9, 0))
        outside = stack.enter_context(
            child("raw('setresgid', 9, 9, 9); raw('setresuid', 9, 9, 9); prctl(4, 1)")
        )
        snap = osmosis.capture()
        row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
        table = control(snap)

        def daemon(a, b):
            return table.finding("daemon", row[a], row[b], effective=True)

        for target in (root, booted.init):
            assert daemon(root, target).state is True or target == root
            assert daemon(user, target).state is None
            assert "polkit" in daemon(user, target).reason
            assert daemon(outside.pid, target).state is False  # it does not see the socket
        # Nobody else is in doubt about it: who is, is an ordinary user in the container.
        relation = table.relation("daemon", effective=True)
        here = os.stat(f"/proc/{booted.init}/ns/mnt").st_ino
        for pid, i in row.items():
            with suppress(OSError):
                apart = os.stat(f"/proc/{pid}/ns/mnt").st_ino != here
                ordinary = os.stat(f"/proc/{pid}/task").st_uid != 0
                if apart and ordinary and pid != booted.init:
                    assert relation.state(i, row[booted.init]) is False, pid
