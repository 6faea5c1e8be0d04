"""System V IPC: objects as parts of their ipc namespace, and who could use them.

Mapped segments are nodes of ``relations.memory``. Semaphores and message queues have no holders:
nothing in the kernel says who used one. Who could, is a potential hold of every member of the
namespace whom the permission bits let through (ipcperms() in ipc/util.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, Edge, Edges, Kind, R, W
from osmosis.graph.names import Block
from osmosis.relations.memory import add_object_holds, device_names, owners_of
from osmosis.relations.parts import Parts
from osmosis.schema import NAMESPACES, NO_ID, FileKind, OpenKind, Status, SysvKind
from osmosis.snapshot import Snapshot

__all__ = ["add_ipc"]

IPC = NAMESPACES.index("ipc")
CAP_IPC_OWNER = np.uint64(1 << 15)  # include/uapi/linux/capability.h
# A message queue is an MQUEUE, as a POSIX one is; semaphores are a type of their own.
_TYPES = {SysvKind.SHM: "SHM", SysvKind.SEM: "SEM", SysvKind.MSG: "MQUEUE"}
_NAMES = {SysvKind.SHM: "SHM_{}_{}", SysvKind.SEM: "SEM_{}_{}", SysvKind.MSG: "MQUEUE_sysv_{}_{}"}
_COUNTS = {SysvKind.SHM: "bytes", SysvKind.SEM: "semaphores", SysvKind.MSG: "bytes_queued"}


def add_ipc(parts: Parts, snap: Snapshot) -> None:
    """Add System V objects that are not mapped, their namespaces, and potential holds.

    After ``add_memory`` and ``add_namespaces``. PD row of process p is p + 1.
    O(objects times the members of their namespace).
    """
    spaces = _spaces(parts, snap)
    segments = _segments(parts, snap)
    _add_doubtful(parts, snap, segments)
    node = _add_objects(parts, snap, segments, spaces)
    within = parts.rule("a System V object is part of its ipc namespace", "/proc/sysvipc")
    at = np.flatnonzero(node >= 0)
    space = spaces[snap["sysv_ipc"][at]]
    parts.edges.append(Edges.of(node[at], space, Edge.SUBSET, rule=within))
    _add_potential(parts, snap, node)
    _add_queues(parts, snap)
    _add_unseen(parts, snap)
    _add_unread(parts, snap)


def _spaces(parts: Parts, snap: Snapshot) -> NDArray[np.int64]:
    """Node of each namespace of kind ipc, by row."""
    node = np.full(len(snap["namespace_kind"]), -1, np.int64)
    rows = np.flatnonzero(snap["namespace_kind"] == IPC)
    first = next(b.first for b in parts.blocks if (b.kind, b.type) == (Kind.SPACE, "IPC"))
    node[rows] = first + np.arange(len(rows))
    return node


def _segments(parts: Parts, snap: Snapshot) -> NDArray[np.int64]:
    """Node of each mapped segment by row of table object; -1 for what is none."""
    node = np.full(len(snap["object_kind"]), -1, np.int64)
    rows = np.flatnonzero(snap["object_kind"] == FileKind.SYSV)
    template = _NAMES[SysvKind.SHM]
    first = next(b.first for b in parts.blocks if b.names.template == template)
    node[rows] = first + np.arange(len(rows))
    return node


def _add_doubtful(parts: Parts, snap: Snapshot, node: NDArray[np.int64]) -> None:
    """A segment that is not sure may be any other one of the same number and key."""
    rows = np.flatnonzero(node >= 0)
    alike: dict[tuple[int, int], list[int]] = {}
    for row in rows.tolist():
        key = int(snap["object_inode"][row]), int(snap["object_path"][row])
        alike.setdefault(key, []).append(row)
    owners = owners_of(snap)
    for found in alike.values():
        for shift in range(1, len(found)):
            other = np.full(len(node), -1, np.int64)
            for i, row in enumerate(found):
                if not snap["object_sure"][row]:
                    other[row] = node[found[(i + shift) % len(found)]]
            if (other >= 0).any():
                add_object_holds(parts, snap, owners, other)


def _add_objects(
    parts: Parts, snap: Snapshot, segments: NDArray[np.int64], spaces: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Node of each row of table sysv, -1 for one that is in no ipc namespace.

    A segment that is mapped has one already.
    """
    kinds, ids, ipc = snap["sysv_kind"], snap["sysv_id"], snap["sysv_ipc"]
    mapped = {
        (int(snap["object_ipc"][row]), int(snap["object_inode"][row])): int(segments[row])
        for row in np.flatnonzero(segments >= 0).tolist()
    }
    node = np.full(len(kinds), -1, np.int64)
    inside = (ipc >= 0) & (np.append(spaces, -1)[ipc] >= 0)
    for i in np.flatnonzero((kinds == SysvKind.SHM) & inside).tolist():
        node[i] = mapped.get((int(ipc[i]), int(ids[i])), -1)

    for kind, node_type in _TYPES.items():
        rows = np.flatnonzero((kinds == kind) & (node < 0) & inside)

        def note(i: int, rows: NDArray[np.intp] = rows, kind: int = kind) -> Mapping[str, Any]:
            row = rows[i]
            return {
                "key": hex(int(snap["sysv_key"][row])),
                "mode": oct(int(snap["sysv_mode"][row])),
                "owner": str(int(snap["sysv_uid"][row])),
                _COUNTS[kind]: str(int(snap["sysv_size"][row])),
            }

        names = Block(_NAMES[kind], (snap["namespace_inode"][ipc[rows]], ids[rows]))
        first = parts.nodes(Kind.RESOURCE, node_type, names, note=note)
        node[rows] = first + np.arange(len(rows))
    return node


def _add_potential(parts: Parts, snap: Snapshot, node: NDArray[np.int64]) -> None:
    rule = parts.rule(
        "a member of the namespace may use an object whose permission bits let it",
        "/proc/sysvipc; ipcperms() in ipc/util.c",
    )
    able, perhaps = _able(snap)
    for i, target in enumerate(node.tolist()):
        members = np.flatnonzero(snap["process_ns_ipc"] == snap["sysv_ipc"][i])
        if target < 0 or not len(members):
            continue
        sure, may = _permitted(snap, i, members)
        full = np.uint8(R | W)
        sure = np.where(able[members], full, sure)
        may = np.where(perhaps[members], full, may) | sure
        use = may != 0
        parts.edges.append(
            Edges.of(
                members[use] + 1,
                target,
                Edge.HOLD,
                perm=np.where(sure != 0, sure | ANY, 0)[use],
                maybe=(may | ANY)[use],
                flags=POTENTIAL,
                rule=rule,
            )
        )


def _permitted(
    snap: Snapshot, i: int, members: NDArray[np.intp]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """R and W of the permission bits, certain and possible, for some processes."""
    mode = int(snap["sysv_mode"][i])
    # Bits 4 and 2 of each class are read and write (alter), as those of R and W here.
    owner, group, other = ((mode >> n) & (R | W) for n in (6, 3, 0))
    euid, fsgid = snap["process_euid"][members], snap["process_fsgid"][members]
    owns = np.isin(euid, [snap["sysv_uid"][i], snap["sysv_cuid"][i]])
    gids = np.array([snap["sysv_gid"][i], snap["sysv_cgid"][i]])
    of = np.repeat(np.arange(snap.n_processes), np.diff(snap["process_group_indptr"]))
    within = np.zeros(snap.n_processes, bool)
    within[of[np.isin(snap["group_gid"], gids)]] = True
    belongs = np.isin(fsgid, gids) | within[members]
    sure = np.where(owns, owner, np.where(belongs, group, other)).astype(np.uint8)
    unknown = (euid == NO_ID) | (fsgid == NO_ID)
    return np.where(unknown, 0, sure).astype(np.uint8), np.where(unknown, R | W, sure).astype(
        np.uint8
    )


def _able(snap: Snapshot) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each process has CAP_IPC_OWNER over its ipc namespace, for certain and possibly.

    Certain where it is in the user namespace that owns it. Above that, and by owning it, it may.
    """
    ipc = snap["process_ns_ipc"]
    owner = np.full(len(ipc), -2, np.int64)
    if len(snap["namespace_user"]):
        owner = np.where(ipc >= 0, snap["namespace_user"][ipc], -2).astype(np.int64)
    user = snap["process_ns_user"]
    initial = np.zeros(len(ipc), bool)
    if len(snap["namespace_parent"]):
        initial = (user >= 0) & (snap["namespace_parent"][user] == -1)
    same = ((owner >= 0) & (owner == user)) | ((owner == -1) & initial)
    has = (snap["process_cap_eff"] & CAP_IPC_OWNER) != 0
    inside = (owner == -1) & ~initial & (user >= 0)  # below the owner: no capability reaches up
    return has & same, (has & ~inside) | (~same & ~inside)


def _add_queues(parts: Parts, snap: Snapshot) -> None:
    """POSIX message queues: held by their descriptors, as files are."""
    rows = np.flatnonzero(snap["open_kind"] == OpenKind.MQUEUE)
    dev, inode = snap["open_dev"][rows], snap["open_inode"][rows]

    def note(i: int) -> Mapping[str, Any]:
        name = snap["open_name"][rows[i]]
        return {"path": snap.text(name)} if name >= 0 else {}

    names = Block("MQUEUE_{}_{}", (device_names(dev), inode))
    first = parts.nodes(Kind.RESOURCE, "MQUEUE", names, note=note)
    node = np.full(len(snap["open_kind"]), -1, np.int64)
    node[rows] = first + np.arange(len(rows))
    fd = np.flatnonzero(np.isin(snap["fd_open"], rows))
    rule = parts.rule("an open message queue is held as it was opened", "/proc/pid/fd")
    triples = np.unique(
        np.stack(
            [
                snap["fd_process"][fd] + 1,
                node[snap["fd_open"][fd]],
                snap["fd_access"][fd].astype(np.int64) & (R | W) | ANY,
            ]
        ),
        axis=1,
    )
    parts.edges.append(Edges.of(triples[0], triples[1], Edge.HOLD, perm=triples[2], rule=rule))


def _add_unseen(parts: Parts, snap: Snapshot) -> None:
    """Processes whose descriptors were not read may hold queues."""
    status = np.full(snap.n_processes, Status.SKIPPED, np.uint8)
    if "sources" not in snap.host and not len(snap["fdtable_process"]):
        status[:] = Status.READ  # a snapshot that was made by hand
    status[snap["fdtable_process"]] = snap["fdtable_status"]
    parts.unseen_by("MQUEUE", np.flatnonzero(status != Status.READ) + 1, ANY | R | W)


def _add_unread(parts: Parts, snap: Snapshot) -> None:
    """Stand in for the objects of namespaces that were not read: their members may use some."""
    if "sources" not in snap.host and not len(snap["ipcspace_ipc"]):
        return  # a snapshot that was made by hand
    rule = parts.rule("its ipc namespace could not be read", "/proc/sysvipc")
    read = set(snap["ipcspace_ipc"][snap["ipcspace_status"] == Status.READ].tolist())
    of = snap["process_ns_ipc"]
    rows = np.array([r for r in np.unique(of).tolist() if r >= 0 and r not in read], np.int64)
    for node_type in _TYPES.values():
        names = Block(node_type + "_{}_unread", (snap["namespace_inode"][rows],))
        first = parts.nodes(Kind.RESOURCE, node_type, names)
        for i, row in enumerate(rows.tolist()):
            members = np.flatnonzero(of == row) + 1
            parts.edges.append(
                Edges.of(
                    members,
                    first + i,
                    Edge.HOLD,
                    perm=0,
                    maybe=ANY | R | W,
                    flags=POTENTIAL,
                    rule=rule,
                )
            )
