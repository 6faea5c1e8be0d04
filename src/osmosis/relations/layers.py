"""What separates PDs, layer by layer: the facts that ``isolation(x, y)`` compares.

A fact puts every PD into a class, and says for each two classes whether the layer separates
them, or may. A process acts through any of its threads, so one whose threads differ is
separated only if each of them is. What was not read is a class of its own, which is
separated from nobody and may be from all, itself included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.cmdline import basename, words
from osmosis.relations.parts import Parts
from osmosis.relations.quotas import KINDS, charged
from osmosis.relations.roles import Roles
from osmosis.schema import NAMESPACES, NO_ID
from osmosis.snapshot import Snapshot

__all__ = ["add_layers"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

UIDS = ("ruid", "euid", "suid", "fsuid")
INITIAL_USER = 0xEFFF_FFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h
# Hypervisors: the process is the machine, what runs within is not a process of this host.
VMMS = words(
    "firecracker cloud-hypervisor crosvm lkvm stratovirt dragonball qemu-kvm kvm "
    "VBoxHeadless VirtualBoxVM vmware-vmx"
)
_QEMU = re.compile(r"qemu-system-[\w-]+")
# Directories that only root fills; elsewhere the name of a program is its owner's word.
_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/opt/", "/snap/")
_PERMISSIVE = re.compile(r"unconfined|.* \((complain|unconfined)\)", re.DOTALL)


class Fact(NamedTuple):
    """One layer: PDs by class, and the classes by pair."""

    of: NDArray[np.int32]  # (P + 1,) class by PD row
    separated: Bools  # (K, K) for certain
    maybe: Bools  # (K, K) separated, or not known
    says: tuple[str, ...]  # (K,)


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
    parts.layers[layer] = {
        "value": fact.of,
        "separated": fact.separated,
        "maybe": fact.maybe,
        "says": fact.says,
        "source": source,
    }


# -- facts out of values


def _by_value(
    values: Sequence[int] | NDArray[Any],
    names: Mapping[int, str],
    more: Mapping[int, Iterable[int]] | None = None,
) -> Fact:
    """Equal is shared, different is separated, -1 is not known.

    Parameters
    ----------
    values
        (P,) one value a process.
    names
        What each value is called.
    more
        By process row, the values that it has beside that one.

    """
    values = np.asarray(values, np.int64)
    more = more or {}
    extra = {v for found in more.values() for v in found}
    distinct = np.array(sorted({-1, *np.unique(values).tolist(), *extra}), np.int64)
    known = distinct != -1
    differ = ~np.eye(len(distinct), dtype=bool) & known[:, None] & known[None, :]
    says = tuple(names.get(v, str(v)) if v != -1 else "not known" for v in distinct.tolist())
    one = Fact(
        np.searchsorted(distinct, values).astype(np.int32),
        differ,
        differ | ~(known[:, None] & known[None, :]),
        says,
    )
    sets = {p: np.searchsorted(distinct, sorted(set(found))) for p, found in more.items()}
    return _with_kernel(_folded(one, {p: set(s.tolist()) for p, s in sets.items()}))


def _folded(fact: Fact, more: Mapping[int, set[int]]) -> Fact:
    """Give processes that are in several classes a class for that set: all pairs decide."""
    of = fact.of.copy()
    number: dict[frozenset[int], int] = {}
    for p, classes in more.items():
        key = frozenset({int(of[p]), *classes})
        if len(key) > 1:
            of[p] = number.setdefault(key, len(fact.says) + len(number))
    if not number:
        return fact
    sets = [sorted(key) for key in number]

    def extended(one: Bools) -> Bools:
        rows: Bools = np.vstack([one, *(one[s].all(axis=0, keepdims=True) for s in sets)])
        return np.hstack([rows, *(rows[:, s].all(axis=1, keepdims=True) for s in sets)])

    says = tuple(", ".join(fact.says[k] for k in s) for s in sets)
    return Fact(of, extended(fact.separated), extended(fact.maybe), fact.says + says)


def _with_kernel(fact: Fact) -> Fact:
    """Put PD row 0 before the processes: it is asked for nowhere, and not known here."""
    size = len(fact.says)
    separated = np.zeros((size + 1, size + 1), bool)
    maybe = np.ones((size + 1, size + 1), bool)
    separated[:size, :size], maybe[:size, :size] = fact.separated, fact.maybe
    of = np.concatenate([[size], fact.of]).astype(np.int32)
    return Fact(of, separated, maybe, (*fact.says, "the kernel"))


def _by_thread(snap: Snapshot, column: str) -> dict[int, set[int]]:
    """Values of a column of table thread, by process row."""
    found: dict[int, set[int]] = {}
    values = snap[f"thread_{column}"].tolist()
    for p, value in zip(snap["thread_process"].tolist(), values, strict=True):
        found.setdefault(p, set()).add(value)
    return found


# -- the layers


def _namespace(snap: Snapshot, kind: str) -> Fact:
    rows = np.flatnonzero(snap["namespace_kind"] == NAMESPACES.index(kind))
    inodes = snap["namespace_inode"][rows].tolist()
    names = {r: f"{kind.upper()}_SPACE_{n}" for r, n in zip(rows.tolist(), inodes, strict=True)}
    own = np.maximum(snap[f"process_ns_{kind}"].astype(np.int64), -1)
    more = _by_thread(snap, f"ns_{kind}") if kind in ("mnt", "user", "net") else {}
    return _by_value(own, names, {p: {max(v, -1) for v in found} for p, found in more.items()})


def _cgroup(snap: Snapshot) -> Fact:
    """Separated if memory, processes, CPU time or I/O is charged to different cgroups.

    The cgroup namespace only hides names, and is not asked. In one and the same cgroup nothing
    is separated, whatever could be read of it.
    """
    places, names = charged(snap)
    texts = snap["process_cgroup"].astype(np.int64)[:, None]
    distinct, of = np.unique(np.hstack([places, texts]), axis=0, return_inverse=True)
    separated = np.zeros((len(distinct),) * 2, bool)
    maybe = separated.copy()
    for k in range(len(KINDS)):
        a = distinct[:, k]
        both = (a[:, None] >= 0) & (a[None, :] >= 0)
        separated |= both & (a[:, None] != a[None, :])
        maybe |= ~both
    one = np.flatnonzero(distinct[:, -1] >= 0)
    maybe[one, one] = False
    says = tuple(_places(row, names, snap) for row in distinct.tolist())
    return _with_kernel(Fact(of.reshape(-1).astype(np.int32), separated, maybe | separated, says))


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
    separated = np.zeros((4, 4), bool)
    separated[0, 1:3] = separated[1:3, 0] = True
    maybe = separated.copy()
    maybe[3, :] = maybe[:, 3] = True
    maybe[1:3, 1:3] = True
    maybe[1, 1] = False

    def mode(values: NDArray[Any]) -> NDArray[np.int32]:
        values = values.astype(np.int32)
        return np.where((values < 0) | (values > 2), 3, values).astype(np.int32)

    own = Fact(mode(snap["process_seccomp"]), separated, maybe, says)
    more: dict[int, set[int]] = {}
    threads = mode(snap["thread_seccomp"]).tolist()
    for p, value in zip(snap["thread_process"].tolist(), threads, strict=True):
        more.setdefault(p, set()).add(value)
    return _with_kernel(_folded(own, more))


def _rootfs(snap: Snapshot) -> Fact:
    """Separated by different root directories, whatever else their mount namespaces show."""
    pairs = np.stack([snap["process_root_dev"], snap["process_root_inode"]], axis=1)
    distinct, of = np.unique(pairs, axis=0, return_inverse=True)
    names = {}
    values = np.arange(len(distinct))
    for k, (dev, inode) in enumerate(distinct.tolist()):
        names[k] = f"root directory {inode} of device {dev >> 8 & 0xFFF:x}:{dev & 0xFF:x}"
        if not inode:
            values[k] = -1
    return _by_value(values[of.reshape(-1)], names)


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
        elif row < 0:
            what = "?"
        elif name in VMMS or _QEMU.fullmatch(name):
            pid = int(snap["process_pid"][p])
            trusted = exe.startswith(_SYSTEM) and root[p] == host
            what = f"the virtual machine of {name} ({pid})" if trusted else "?"
        values.append(-1 if what == "?" else number.setdefault(what, len(number)) if what else 0)
    return _by_value(values, {v: k for k, v in number.items()})
