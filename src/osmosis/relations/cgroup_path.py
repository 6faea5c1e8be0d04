"""What the path of a cgroup tells: the container, the systemd unit, or a monitor of its own."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

__all__ = ["HEX64", "CgroupFacts", "read_cgroup"]

HEX64 = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|scope|socket|mount|swap)")
_SCOPE = re.compile(  # systemd drivers, and Podman's and CRI-O's names with cgroupfs
    r"(?:.*:)?(docker|libpod|libpod-payload|cri-containerd|crio|nerdctl|buildkit)"
    r"[-:]([0-9a-f]{64})(?:\.scope)?"
)
_CONMON = re.compile(r"(libpod|crio)-conmon-([0-9a-f]{64})(?:\.scope)?")
_POD = re.compile(r"pod[0-9a-f][0-9a-f_-]{30,}")
_RUNTIME = {
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",
    "cri-containerd": "containerd",
    "crio": "cri-o",
    "nerdctl": "containerd",
    "buildkit": "docker",
}


class _Found(NamedTuple):
    runtime: str
    ident: str
    at: int  # index of the component
    monitor: bool = False


class CgroupFacts(NamedTuple):
    """What the text of one /proc/pid/cgroup tells."""

    path: str  # the path that names the container, else that of systemd's hierarchy or v2
    unit: str | None  # systemd unit of the system manager
    user_unit: str | None  # unit of a user's own manager, below user@UID.service
    runtime: str | None  # of the container, if the path names one
    container: str | None  # its id or name
    within: str | None  # the service that the container's cgroup is below: who could make it
    monitor: bool  # the path is that of the container's monitor, not of the container


@lru_cache(maxsize=4096)
def read_cgroup(text: str) -> CgroupFacts:
    r"""Read the text of /proc/pid/cgroup, of v1, v2 or both.

    A line is ``hierarchy:controllers:path``; a path cannot hold a newline (cgroup_mkdir).

    >>> read_cgroup("0::/system.slice/ssh.service\n").unit
    'ssh.service'
    """
    paths: dict[str, str] = {}
    for line in text.split("\n"):
        part = line.split(":", 2)
        if len(part) == 3:
            path = part[2].removesuffix(" (deleted)")
            paths["v2" if part[0] == "0" and not part[1] else part[1]] = path
    order: list[str] = [k for k in ("name=systemd", "v2") if k in paths]
    order += sorted(k for k in paths if k not in order)
    unit = user_unit = None
    if order:
        unit, user_unit = _units(_components(paths[order[0]]))
    for k in order:
        parts = _components(paths[k])
        found = _container(parts)
        if found is not None:
            before = parts[: found.at]
            within = next((c for c in before if c.endswith(".service")), None)
            return CgroupFacts(
                paths[k], unit, user_unit, found.runtime, found.ident, within, found.monitor
            )
    path = paths[order[0]] if order else ""
    return CgroupFacts(path, unit, user_unit, None, None, None, monitor=False)


def _components(path: str) -> list[str]:
    """Split a path; ``..`` stands where the reader's cgroup namespace begins lower."""
    return [c for c in path.split("/") if c and c != ".."]


def _container(parts: list[str]) -> _Found | None:
    """Find the outermost component that names a container."""
    for i, c in enumerate(parts):
        before = parts[i - 1] if i else ""
        after = parts[i + 1] if i + 1 < len(parts) else ""
        if m := _SCOPE.fullmatch(c):
            return _Found(_RUNTIME[m[1]], m[2], i)
        if m := _CONMON.fullmatch(c):
            return _Found("podman" if m[1] == "libpod" else "cri-o", m[2], i, monitor=True)
        if HEX64.fullmatch(c):
            # cgroupfs drivers. Only the parent's name tells whose it is.
            if before == "docker":
                return _Found("docker", c, i)
            return _Found("kubepods" if _POD.fullmatch(before) else "oci", c, i)
        if c.startswith(("lxc.payload.", "lxc.monitor.")):
            return _Found("lxc", c[12:], i, monitor=c.startswith("lxc.monitor."))
        if c in ("lxc", "lxc.payload", "lxc.monitor") and after:
            return _Found("lxc", after, i + 1, monitor=c == "lxc.monitor")
        if before == "machine.slice" and (found := _machine(c, after, i)):
            return found
    return None


def _machine(c: str, after: str, i: int) -> _Found | None:
    """Read a unit of machine.slice: ``payload`` is the container, ``supervisor`` nspawn itself."""
    m = re.fullmatch(r"systemd-nspawn@(.+)\.service", c) or re.fullmatch(r"machine-(.+)\.scope", c)
    if m is None:
        return None
    machine = re.sub(r"\\x([0-9a-f]{2})", lambda x: chr(int(x[1], 16)), m[1])
    if machine.startswith("qemu-"):
        return None  # a VMM of libvirt: a process of the host
    if machine.startswith("lxc-"):  # libvirt's: lxc-NUMBER-NAME
        return _Found("libvirt-lxc", re.sub(r"^lxc-\d+-", "", machine), i)
    return _Found("systemd-nspawn", machine, i, monitor=after == "supervisor")


def _units(parts: list[str]) -> tuple[str | None, str | None]:
    """Return the unit, as systemd reads it: slices, then one component that is a unit."""
    found: list[str] = []
    for c in parts:
        c = c.removeprefix("_")  # systemd's escape for names that the kernel owns
        if c.endswith(".slice") or (found and c == "init.scope"):
            continue
        if not _UNIT.fullmatch(c):
            break
        found.append(c)
        if not (c.startswith("user@") and len(found) == 1):
            break
    return (found[0] if found else None, found[1] if len(found) > 1 else None)
