"""What separates PDs, layer by layer: the facts that ``isolation(x, y)`` compares.

A fact puts every PD into a class, and says for each two classes whether the layer separates
them, or may. A process acts through any of its threads, so one whose threads differ is
separated only if each of them is. What was not read is a class of its own, which is
separated from nobody and may be from all, itself included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.cmdline import SYSTEM, basename, is_hypervisor
from osmosis.relations.parts import Parts
from osmosis.relations.quotas import KINDS, charged
from osmosis.relations.roles import Roles
from osmosis.schema import COLUMNS, NAMESPACES, NO_ID
from osmosis.snapshot import Snapshot

__all__ = ["add_layers"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

UIDS = ("ruid", "euid", "suid", "fsuid")
INITIAL_USER = 0xEFFF_FFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h
_PERMISSIVE = re.compile(r"unconfined|.* \((complain|unconfined)\)", re.DOTALL)


Compare = Callable[[Ints, Ints], tuple[Bools, Bools]]


class Fact(NamedTuple):
    """One layer: classes of PDs, each a set of ids, and what separates two ids."""

    of: NDArray[np.int32]  # (P + 1,) class by PD row
    sets: list[tuple[int, ...]]  # (K,) ids of each class: those of its threads
    compare: Compare  # ids that broadcast -> separated, maybe separated
    name: Callable[[int], str]  # of an id

    def matrix(self, classes: NDArray[Any]) -> tuple[Bools, Bools, tuple[str, ...]]:
        """Separated and maybe, (n, n), between some classes, and what to call these.

        Two classes are separated if every two of their ids are.
        """
        chosen = [self.sets[k] for k in classes.tolist()]
        ids = np.array([i for found in chosen for i in found], np.int64)
        starts = np.cumsum([0, *map(len, chosen)])[:-1]
        says = tuple(", ".join(map(self.name, found)) for found in chosen)
        separated, maybe = self.compare(ids[:, None], ids[None, :])
        if len(ids) > len(chosen):
            separated, maybe = (_every(one, starts) for one in (separated, maybe))
        return separated, maybe, says


def _every(pairs: Bools, starts: NDArray[Any]) -> Bools:
    rows = np.logical_and.reduceat(pairs, starts, axis=0)
    out: Bools = np.logical_and.reduceat(rows, starts, axis=1)
    return out


def add_layers(parts: Parts, snap: Snapshot, named: Roles) -> None:
    """Fill ``parts.layers``, in the shape that ``query.isolation`` reads.

    O(P + K**2) for each layer, K being its distinct facts. *named* are the roles of the
    processes: a sandbox is known by its container.
    """
    for kind in NAMESPACES:
        if kind != "cgroup":
            _add(parts, kind, _namespace(snap, kind), "/proc/pid/ns")
    _add(parts, "cgroup", _cgroup(snap), "/proc/pid/cgroup, and the files of cgroupfs")
    _add(parts, "uid", _uid(snap), "/proc/pid/status: Uid")
    _add(parts, "mac", _mac(snap), "/proc/pid/attr/current")
    _add(parts, "seccomp", _seccomp(snap), "/proc/pid/status: Seccomp")
    _add(parts, "rootfs", _rootfs(snap), "/proc/pid/root")
    _add(parts, "vm", _vm(snap, named), "/proc/pid/exe, and the roles of processes")


def _add(parts: Parts, layer: str, fact: Fact, source: str) -> None:
    parts.layers[layer] = {"value": fact.of, "matrix": fact.matrix, "source": source}


# -- facts out of values


def _differ(a: Ints, b: Ints) -> tuple[Bools, Bools]:
    """Equal is shared, different is separated, -1 is not known."""
    unknown = (a == -1) | (b == -1)
    return (a != b) & ~unknown, (a != b) | unknown


def _classes(
    values: NDArray[Any],
    more: Mapping[int, set[int]],
    compare: Compare,
    name: Callable[[int], str],
) -> Fact:
    """Put processes with equal ids into one class; the kernel, row 0, into one of its own.

    *values* is one id a process, *more* further ones by process row.
    """
    distinct, of = np.unique(np.asarray(values, np.int64), return_inverse=True)
    sets: list[tuple[int, ...]] = [(v,) for v in distinct.tolist()]
    of = of.reshape(-1)
    number: dict[tuple[int, ...], int] = {}
    for p, found in more.items():
        ids = tuple(sorted({*sets[of[p]], *found}))
        if len(ids) > 1:
            of[p] = number.setdefault(ids, len(sets) + len(number))
    sets += [*number, (-1,)]
    return Fact(np.concatenate([[len(sets) - 1], of]).astype(np.int32), sets, compare, name)


def _by_value(
    values: Sequence[int] | NDArray[Any],
    names: Mapping[int, str],
    more: Mapping[int, set[int]] | None = None,
) -> Fact:
    return _classes(np.asarray(values), more or {}, _differ, {-1: "not known", **names}.__getitem__)


def _by_thread(snap: Snapshot, column: str) -> dict[int, set[int]]:
    """Values of a column of table thread, by process row."""
    found: dict[int, set[int]] = {}
    values = snap[f"thread_{column}"].tolist()
    for p, value in zip(snap["thread_process"].tolist(), values, strict=True):
        if p >= 0:
            found.setdefault(p, set()).add(value)
    return found


# -- the layers


def _namespace(snap: Snapshot, kind: str) -> Fact:
    rows = np.flatnonzero(snap["namespace_kind"] == NAMESPACES.index(kind))
    inodes = snap["namespace_inode"][rows].tolist()
    names = {r: f"{kind.upper()}_SPACE_{n}" for r, n in zip(rows.tolist(), inodes, strict=True)}
    own = np.maximum(snap[f"process_ns_{kind}"].astype(np.int64), -1)
    more = _by_thread(snap, f"ns_{kind}") if f"thread_ns_{kind}" in COLUMNS else {}
    return _by_value(own, names, {p: {max(v, -1) for v in found} for p, found in more.items()})


def _cgroup(snap: Snapshot) -> Fact:
    """Separated if memory, processes, CPU time or I/O is charged to different cgroups.

    The cgroup namespace only hides names, and is not asked. In one and the same cgroup nothing
    is separated, whatever could be read of it.
    """
    places, names = charged(snap)
    texts = np.where((places >= 0).all(axis=1), -2, snap["process_cgroup"].astype(np.int64))
    distinct, of = np.unique(np.hstack([places, texts[:, None]]), axis=0, return_inverse=True)
    unknown = np.full((1, len(KINDS) + 1), -1, np.int64)
    distinct = np.vstack([distinct, unknown])  # id -1, by its place

    def compare(a: Ints, b: Ints) -> tuple[Bools, Bools]:
        shape = np.broadcast_shapes(a.shape, b.shape)
        separated, maybe = np.zeros(shape, bool), np.zeros(shape, bool)
        for k in range(len(KINDS)):
            mine, its = distinct[a, k], distinct[b, k]
            known = (mine >= 0) & (its >= 0)
            separated |= known & (mine != its)
            maybe |= ~known
        return separated, separated | (maybe & ((a != b) | (distinct[a, -1] == -1)))

    return _classes(
        of.reshape(-1), {}, compare, lambda i: _places(distinct[i].tolist(), names, snap)
    )


def _places(row: list[int], names: Mapping[int, str], snap: Snapshot) -> str:
    *found, text = row
    said = ", ".join(names[v] for v in found if v >= 0)
    return said or (snap.text(text).replace("\n", " ").strip() if text >= 0 else "not known")


def _uid(snap: Snapshot) -> Fact:
    """Separated if no id of the one, real, effective, saved or filesystem, is one of the other.

    Each of them counts for something: signals compare real and effective ids with real and saved
    ones, files the filesystem's. Ids are the host's: 0 in a user namespace is what it maps to.
    """
    unknown = {NO_ID}
    if snap.host.get("user_ns") != INITIAL_USER:  # unmapped ids all read as this one
        unknown.add(snap.host.get("overflow_uid") or 65534)
    users: Mapping[str, Any] = snap.host.get("users") or {}
    ids = np.stack([snap[f"process_{name}"] for name in UIDS], axis=1).astype(np.int64)
    own = np.where(np.isin(ids, list(unknown)), -1, ids)
    several = np.flatnonzero((own != own[:, :1]).any(axis=1)).tolist()
    more: dict[int, set[int]] = {p: set(own[p].tolist()) for p in several}
    for name in UIDS:
        for p, found in _by_thread(snap, name).items():
            more.setdefault(p, set()).update(-1 if v in unknown else v for v in found)
    all_ids = {*np.unique(own).tolist(), *(v for found in more.values() for v in found)}
    names = {v: f"{users[str(v)]} ({v})" if str(v) in users else str(v) for v in all_ids}
    return _by_value(own[:, 1], names, more)


def _mac(snap: Snapshot) -> Fact:
    """Separated by different labels; those that only log (AppArmor's complain) are one.

    Without an LSM that gives labels the file reads as an error of its own, which is no gap of
    the capture: nothing separates then.
    """
    denied = {
        int(p)
        for p, source in zip(snap["ledger_process"], snap.texts("ledger_source"), strict=True)
        if source == "label"
    }
    number: dict[str, int] = {"no label": 0}
    values = []
    rows = snap["process_label"].tolist()
    for p, (row, text) in enumerate(zip(rows, snap.texts("process_label"), strict=True)):
        if row < 0 and p in denied:
            values.append(-1)
            continue
        label = "no label" if row < 0 or not text else text
        if _PERMISSIVE.fullmatch(label):
            label = "unconfined"
        values.append(number.setdefault(label, len(number)))
    return _by_value(values, {v: k for k, v in number.items()})


def _seccomp(snap: Snapshot) -> Fact:
    """Separated if one is under a filter and the other is not.

    What a filter lets through is not in /proc: two filters may be one and the same.
    """
    says = ("no filter", "strict mode", "a filter", "not known")

    def compare(a: Ints, b: Ints) -> tuple[Bools, Bools]:
        known = (a >= 0) & (b >= 0)
        separated = known & ((a == 0) != (b == 0))
        return separated, separated | ~known | ((a > 0) & (b > 0) & ((a != 1) | (b != 1)))

    def mode(values: NDArray[Any]) -> Ints:
        return np.where(values > 2, -1, values).astype(np.int64)

    more = {
        p: {v if v <= 2 else -1 for v in found} for p, found in _by_thread(snap, "seccomp").items()
    }
    return _classes(mode(snap["process_seccomp"]), more, compare, says.__getitem__)


def _rootfs(snap: Snapshot) -> Fact:
    """Separated by different root directories, whatever else their mount namespaces show."""
    n = snap.n_processes
    pairs = np.stack(
        [
            np.concatenate([snap[f"process_{name}"], snap[f"thread_{name}"]])
            for name in ("root_dev", "root_inode")
        ],
        axis=1,
    )
    distinct, of = np.unique(pairs, axis=0, return_inverse=True)
    names = {}
    values = np.arange(len(distinct))
    for k, (dev, inode) in enumerate(distinct.tolist()):
        names[k] = f"root directory {inode} of device {dev >> 8 & 0xFFF:x}:{dev & 0xFF:x}"
        if not inode:
            values[k] = -1
    own = values[of.reshape(-1)]
    more: dict[int, set[int]] = {}
    for p, value in zip(snap["thread_process"].tolist(), own[n:].tolist(), strict=True):
        if p >= 0:
            more.setdefault(p, set()).add(value)
    return _by_value(own[:n], names, more)


def _vm(snap: Snapshot, named: Roles) -> Fact:
    """Separated by the boundary of a virtual machine or of gVisor's kernel.

    A sandbox counts whole, its file server (gofer) with it. A hypervisor by name counts where
    only root could put it; elsewhere the name decides nothing.
    """
    number: dict[str, int] = {"the host's kernel alone": 0}
    values = []
    roots = zip(snap["process_root_dev"].tolist(), snap["process_root_inode"].tolist(), strict=True)
    root = list(roots)
    outside = Counter(
        one for one, c in zip(root, named.container, strict=True) if c is None and one[1]
    )
    host = outside.most_common(1)[0][0] if outside else None
    exes = zip(snap["process_exe"].tolist(), snap.texts("process_exe"), strict=True)
    for p, (row, exe) in enumerate(exes):
        name, what = basename(exe), ""
        if named.container_runtime[p] == "gvisor":
            what = f"the sandbox of {named.container[p]}"
        elif row < 0 or name.startswith("runsc"):  # so it says: see relations.roles
            what = "?"
        elif is_hypervisor(name):
            pid = int(snap["process_pid"][p])
            trusted = exe.startswith(SYSTEM) and root[p] == host
            what = f"the virtual machine of {name} ({pid})" if trusted else "?"
        values.append(-1 if what == "?" else number.setdefault(what, len(number)) if what else 0)
    return _by_value(values, {v: k for k, v in number.items()})
