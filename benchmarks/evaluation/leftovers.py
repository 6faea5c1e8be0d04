"""What a machine holds that a container runtime can leave behind: looked at before and after."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.evaluation import firewall
from benchmarks.evaluation.base import PATH, cgroup_roots

__all__ = ["Inventory", "appeared", "inventory"]

Inventory = frozenset[tuple[str, str]]  # (what it is, its name)

ACCOUNTS = ("passwd", "group", "subuid", "subgid")
# Whose entries are looked at: images, volumes, layers and sockets of every runtime are below.
FOLDERS = ("/run", "/run/user", "/run/netns", "/run/docker", "/run/containerd", "/run/systemd")
FOLDERS += ("/var/lib", "/var/lib/docker", "/var/lib/containers", "/var/lib/cni", "/etc/cni/net.d")
OURS = re.compile(r"osm-[a-z0-9_]{8}")  # in /var/tmp, which all may use
EMPTY = re.compile(rf":({'|'.join(firewall.BUILT_IN)}) ACCEPT")  # a table that was looked at
PATIENCE = 15.0  # seconds for what was told to end


def inventory() -> Inventory:
    """Return mounts, accounts, cgroups, links, firewall rules, folders and network settings."""
    return frozenset(_things())


def appeared(before: Inventory, patience: float = PATIENCE) -> list[str]:
    """Return what is there now and was not, waiting *patience* seconds for it to go away."""
    until = time.monotonic() + patience
    while True:
        found = sorted(inventory() - before)
        if not found or time.monotonic() > until:
            return [f"{kind} {name}" for kind, name in found]
        time.sleep(0.2)


def _things() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        yield "mount", line.split(" ")[4]
    for name in ACCOUNTS:
        with contextlib.suppress(OSError):
            for line in Path("/etc", name).read_text(errors="replace").splitlines():
                yield f"line of /etc/{name}", line.split(":")[0]
    for root in cgroup_roots():
        for folder, _, _ in os.walk(root):
            yield "cgroup", folder
    for link in os.listdir("/sys/class/net"):
        yield "link", link
    for folder in (*FOLDERS, str(Path.home())):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if not name.endswith(".lock"):
                    yield "file", f"{folder}/{name}"
    for name in os.listdir("/var/tmp"):
        if OURS.fullmatch(name):
            yield "file", f"/var/tmp/{name}"
    for tool in ("iptables", "ip6tables"):
        with contextlib.suppress(OSError):
            for line in firewall.save(tool, PATH).splitlines():
                if line.startswith((":", "-")) and not EMPTY.match(line):
                    yield f"rule of {tool}", line.split(" [")[0]
    for setting in Path("/proc/sys/net").glob("ipv[46]/conf/all/*forward*"):
        with contextlib.suppress(OSError):
            yield "setting", f"{setting}={setting.read_text().strip()}"
    with contextlib.suppress(OSError):
        yield "mode", f"{os.stat('/dev/net/tun').st_mode & 0o7777:o} /dev/net/tun"
