"""What cgroups limit, and which processors a process is kept to.

Limits are read through the collector's own cgroup mounts, for the cgroups that processes are in
and for those above. Paths in /proc/pid/cgroup, and the roots of cgroup mounts in mountinfo, both
count from the root of the reader's cgroup namespace; what is above or beside it begins "/..".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.pinned import Held, slurp
from osmosis.capture.processes import ProcessRecord
from osmosis.capture.views import cgroup_controllers, mounts
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, QuotaKind, Status

__all__ = [
    "cpu_list",
    "in_initial_cgroup_namespace",
    "limits_of",
    "places",
    "read_quotas",
    "resolve",
]

SOURCE = "quotas"
INITIAL = 0xEFFF_FFFB  # PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
CONTROLLERS = {
    "memory": QuotaKind.PAGE,
    "pids": QuotaKind.PID,
    "cpu": QuotaKind.CPU,
    "blkio": QuotaKind.IO,
}
# Files that limit, the first of which is there if the controller is.
# Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/*.rst
V2 = {
    QuotaKind.PAGE: ("memory.max", "memory.high", "memory.swap.max"),
    QuotaKind.PID: ("pids.max",),
    QuotaKind.CPU: ("cpu.max",),
    QuotaKind.IO: ("io.max",),
}
V1 = {
    QuotaKind.PAGE: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    QuotaKind.PID: ("pids.max",),
    QuotaKind.CPU: ("cpu.cfs_quota_us",),
    QuotaKind.IO: tuple(
        f"blkio.throttle.{way}_{what}_device"
        for way in ("read", "write")
        for what in ("bps", "iops")
    ),
}
# PAGE_COUNTER_MAX in bytes, whatever the page size: what v1 prints for "no limit" is within a
# page of LONG_MAX (mm/page_counter.c).
NO_BYTES = (1 << 63) - (1 << 20)

Place = tuple[str, Path]


def read_quotas(record: ProcessRecord, *, ledger: Ledger) -> dict[str, NDArray[Any]]:
    """Read the tables quota, processor and affinity.

    O(distinct cgroups), some small files each, and one file or call a process.
    """
    out: dict[str, list[Any]] = {
        n: [] for n, c in COLUMNS.items() if c.table in ("quota", "processor", "affinity")
    }
    _read_limits(record, out, ledger)
    _read_processors(record, out, ledger)
    return {name: np.array(values, COLUMNS[name].dtype) for name, values in out.items()}


# -- limits


def places(text: bytes | None = None) -> dict[str, list[Place]]:
    """By hierarchy, the mounts that a mountinfo lists: (cgroup at its root, mount point).

    Without a text those that we see; none if that cannot be read.
    """
    if text is None:
        try:
            text = Path("/proc/self/mountinfo").read_bytes()
        except OSError:
            return {}
    found: dict[str, list[Place]] = {}
    for mount in mounts(text):
        if mount.kind in (b"cgroup", b"cgroup2"):
            name = cgroup_controllers(mount.super_options) if mount.kind == b"cgroup" else ""
            place = (os.fsdecode(mount.root), Path(os.fsdecode(mount.point)))
            found.setdefault(name, []).append(place)
    return found


def resolve(where: Iterable[Place], path: str) -> Path | None:
    """Return the directory of cgroup *path* in one of the mounts; None if none shows it."""
    wanted = _steps(path)
    for root, point in where:
        above = _steps(root)
        rest = wanted[len(above) :]
        # A mount of what is above our root shows us under a name that nothing tells.
        if wanted[: len(above)] == above and ".." not in rest:
            return point.joinpath(*rest)
    return None


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step]


def _chain(path: str) -> list[str]:
    """A cgroup and those above it, as far as the reader's namespace names them."""
    steps = _steps(path)
    lowest = steps.count("..")
    return ["/" + "/".join(steps[:n]) for n in range(lowest, len(steps) + 1)]


def limits_of(kind: int, directory: Path, *, unified: bool) -> str | None:
    """Return what a cgroup limits, as ``file=value`` words; None if it has not the controller.

    Raises
    ------
    PermissionError
        The controller is there and may not be read.

    """
    said = []
    for i, name in enumerate((V2 if unified else V1)[kind]):
        try:
            text = (directory / name).read_text().strip()
        except PermissionError:
            raise
        except OSError:
            if i == 0:
                return None
            continue
        if name == "cpu.cfs_quota_us" and text != "-1":
            text += "/" + (directory / "cpu.cfs_period_us").read_text().strip()
        if _limits(text):
            said.append(f"{name}={';'.join(text.splitlines())}")
    return " ".join(said)


def _limits(text: str) -> bool:
    if not text or text == "-1" or text.startswith("max"):
        return False
    return not (text.isdigit() and int(text) >= NO_BYTES)


def _read_limits(record: ProcessRecord, out: dict[str, list[Any]], ledger: Ledger) -> None:
    where = places()
    texts = record.pool.texts(record.text["cgroup"])
    add, lost = _adder(record, out), 0
    for name, kinds, path in sorted(_wanted(texts)):
        if not path:
            if not in_initial_cgroup_namespace():
                for kind in kinds:
                    add(name, path, kind, None, Status.HIDDEN)
            continue
        directory = resolve(where.get(name, ()), path)
        seen = directory is not None and directory.is_dir()
        lost += not seen
        for kind in kinds:
            if not seen or directory is None:
                add(name, path, kind, None, Status.SKIPPED)
                continue
            try:
                limit = limits_of(kind, directory, unified=not name)
            except PermissionError:
                add(name, path, kind, None, Status.DENIED)
            else:
                if limit is not None:
                    add(name, path, kind, limit, Status.READ)
    if not in_initial_cgroup_namespace():
        why = "limits above the root of the collector's cgroup namespace are not seen"
        ledger.add(HOST, SOURCE, Status.HIDDEN, why)
    if lost:
        why = "cgroups are outside the collector's cgroup namespace, or not mounted here"
        ledger.add(HOST, SOURCE, Status.PARTIAL, why, lost)
    else:
        ledger.add(HOST, SOURCE, Status.READ)


def _adder(record: ProcessRecord, out: dict[str, list[Any]]) -> Any:
    pool = record.pool

    def add(name: str, path: str, kind: int, limit: str | None, status: int) -> None:
        out["quota_hierarchy"].append(pool.add(name.encode()))
        out["quota_path"].append(pool.add(os.fsencode(path)))
        out["quota_kind"].append(kind)
        out["quota_limit"].append(pool.add(None if limit is None else limit.encode()))
        out["quota_status"].append(status)

    return add


def _wanted(texts: Iterable[bytes]) -> set[tuple[str, tuple[int, ...], str]]:
    """(hierarchy, kinds that it counts, path) of cgroups in use, and "" for what is above."""
    lines = {tuple(line.split(b":", 2)[1:]) for text in texts for line in text.splitlines()}
    named: dict[str, set[str]] = {}
    for names, path in (line for line in lines if len(line) == 2):
        hierarchy = ",".join(sorted(os.fsdecode(names).split(",")))
        named.setdefault(hierarchy, set()).add(os.fsdecode(path))
    kinds = {
        name: tuple(sorted(CONTROLLERS[c] for c in name.split(",") if c in CONTROLLERS))
        for name in named
        if name
    }
    taken = {kind for found in kinds.values() for kind in found}
    kinds[""] = tuple(kind for kind in sorted(CONTROLLERS.values()) if kind not in taken)
    return {
        (name, kinds[name], one)
        for name, paths in named.items()
        if kinds[name]
        for path in paths
        for one in ("", *_chain(path))
    }


def in_initial_cgroup_namespace() -> bool:
    """Whether we are in the first cgroup namespace: nothing is above what we see."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino == INITIAL
    except OSError:
        return False


# -- processors


def cpu_list(text: str) -> frozenset[int]:
    """Read a list such as ``0-3,8``; empty for an empty one."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _sys(name: str) -> str:
    with suppress(OSError):
        return Path("/sys/devices/system", name).read_text()
    return ""


def _nodes() -> Iterator[tuple[int, int]]:
    with suppress(OSError):
        for path in Path("/sys/devices/system/node").iterdir():
            if found := re.fullmatch(r"node(\d+)", path.name):
                for cpu in cpu_list(_sys(f"node/{path.name}/cpulist")):
                    yield cpu, int(found[1])


def _read_processors(record: ProcessRecord, out: dict[str, list[Any]], ledger: Ledger) -> None:
    """Fill processor and affinity.

    Only a process that cannot run everywhere is told of: everybody else shares every processor.
    """
    online = sorted(cpu_list(_sys("cpu/online")) or os.sched_getaffinity(0))
    node = dict(_nodes())
    out["processor_number"] += online
    out["processor_node"] += [node.get(cpu, -1) for cpu in online]
    row = {cpu: i for i, cpu in enumerate(online)}
    # Isolated ones (isolcpus=) are nobody's unless asked for.
    everywhere = frozenset(online) - cpu_list(_sys("cpu/isolated"))
    lost = 0
    for i, text in enumerate(record.cpus):
        try:
            allowed = _allowed(record.held[i], text, everywhere)
        except (OSError, ProcessGone):
            lost += 1
            out["affinity_process"].append(i)
            out["affinity_processor"].append(-1)
            continue
        if allowed >= everywhere:
            continue
        kept = sorted(row[cpu] for cpu in allowed if cpu in row)
        out["affinity_process"] += [i] * len(kept)
        out["affinity_processor"] += kept
    if lost:
        ledger.add(HOST, SOURCE, Status.GONE, "processes whose affinity was not readable", lost)


def _allowed(held: Held, text: bytes | None, everywhere: frozenset[int]) -> frozenset[int]:
    """CPUs on which one of its threads may run, *text* being where the one that was read may.

    The others are asked only if that matters, below the pinned directory: a pid may be
    another's by now, and another namespace's.
    """
    allowed = _list_of(text)
    if allowed >= everywhere:
        return allowed
    found = set(allowed)
    try:
        for tid in _tasks(held):
            with suppress(FileNotFoundError, ProcessLookupError):
                status = slurp(held.leaderfd, f"task/{tid}/status")
                found |= _list_of(
                    status.partition(b"\nCpus_allowed_list:\t")[2].partition(b"\n")[0]
                )
    finally:
        held.release()
    return frozenset(found)


def _tasks(held: Held) -> list[str]:
    fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held.leaderfd)
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries]
    finally:
        os.close(fd)


def _list_of(text: bytes | None) -> frozenset[int]:
    if not text:
        raise ProcessGone(0, "its status has no Cpus_allowed_list")
    return _known_list(text)


@lru_cache(maxsize=1024)
def _known_list(text: bytes) -> frozenset[int]:
    return cpu_list(text.decode())
