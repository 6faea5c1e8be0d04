"""Who owns the control files of cgroups: those that processes are in, and those above them.

Only ``stat`` is used, through the collector's own cgroup mounts: nothing is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.processes import ProcessRecord
from osmosis.capture.quotas import in_initial_cgroup_namespace, places, resolve
from osmosis.schema import COLUMNS, NO_ID, CgroupVerb, Status

__all__ = ["read_cgroup_files"]

SOURCE = "cgroups"
# Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/*.rst
_V2 = {
    "cgroup.kill": CgroupVerb.KILL,
    "cgroup.freeze": CgroupVerb.FREEZE,
    "cpu.max": CgroupVerb.LIMIT,
    "memory.max": CgroupVerb.LIMIT,
    "pids.max": CgroupVerb.LIMIT,
}
_V1 = {
    "freezer.state": CgroupVerb.FREEZE,
    "cpu.cfs_quota_us": CgroupVerb.LIMIT,
    "memory.limit_in_bytes": CgroupVerb.LIMIT,
    "pids.max": CgroupVerb.LIMIT,
}
_V1_CONTROLLERS = {"freezer", "cpu", "memory", "pids"}


def read_cgroup_files(record: ProcessRecord, *, ledger: Ledger) -> dict[str, NDArray[Any]]:
    """Read table cgroupfile. O(distinct cgroups), a few ``stat`` each.

    A cgroup without a row could not be looked at: it lies outside the collector's cgroup
    namespace, or its hierarchy is not mounted here; the ledger counts those.
    """
    pool = record.pool
    texts = pool.texts(record.text["cgroup"])
    where = places()
    outermost = in_initial_cgroup_namespace()
    out: dict[str, list[Any]] = {n: [] for n, c in COLUMNS.items() if c.table == "cgroupfile"}
    lost = 0
    for controllers, path in sorted(_with_ancestors(texts)):
        place = resolve(where.get(controllers, ()), path)
        if place is None:
            lost += 1
            continue
        files = _V1 if controllers else _V2
        if path == "/" and outermost:
            files = {}  # the root of a hierarchy cannot be killed, frozen or limited
        for name, verb in {".": CgroupVerb.DIRECTORY, **files}.items():
            seen = _stat(place / name)
            if seen is not None:
                row = (pool.add(controllers.encode()), pool.add(os.fsencode(path)), verb, *seen)
                for column, value in zip(out, row, strict=True):
                    out[column].append(value)
    if lost:
        why = "cgroups are outside the collector's cgroup namespace, or not mounted here"
        ledger.add(HOST, SOURCE, Status.PARTIAL, why, lost)
    else:
        ledger.add(HOST, SOURCE, Status.READ)
    return {name: np.array(values, COLUMNS[name].dtype) for name, values in out.items()}


def _with_ancestors(texts: Any) -> set[tuple[str, str]]:
    nodes: set[tuple[str, str]] = set()
    for text in texts:
        for line in text.splitlines():
            _, _, rest = line.partition(b":")
            names, _, path = rest.partition(b":")
            controllers = ",".join(sorted(os.fsdecode(names).split(",")))
            if controllers and not _V1_CONTROLLERS & set(controllers.split(",")):
                continue
            steps = os.fsdecode(path).strip("/").split("/") if path != b"/" else []
            for depth in range(len(steps) + 1):
                nodes.add((controllers, "/" + "/".join(steps[:depth])))
    return nodes


def _stat(file: Path) -> tuple[int, int, int, int] | None:
    """Owner, group, permission bits and Status; None if there is no such file."""
    try:
        st = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return NO_ID, NO_ID, 0, Status.DENIED
    return st.st_uid, st.st_gid, st.st_mode & 0o7777, Status.READ
