"""System V IPC: objects as parts of their ipc namespace, and who could use them.

Mapped segments are nodes of ``relations.memory``. Semaphores and message queues have no holders:
nothing in the kernel says who used one. Who could, is a potential hold of every member of the
namespace whom the permission bits let through (ipcperms() in ipc/util.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, Edge, Edges, Kind, R, W
from osmosis.graph.names import Block
from osmosis.relations.files import not_all_read
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
    O(processes + objects times classes of processes with the same rights).
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
    _add_unread(parts, snap, node)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Actors:
    """Who may ask for an object: every process, and each thread that differs from its process."""

    process: NDArray[np.int64]
    ipc: NDArray[np.int64]  # row of the namespace, -1 if not known
    euid: NDArray[np.int64]
    fsgid: NDArray[np.int64]
    belongs: NDArray[np.bool_]  # (actors, gids) its fsgid or one of its groups
    able: NDArray[np.bool_]  # CAP_IPC_OWNER over its ipc namespace, for certain
    perhaps: NDArray[np.bool_]  # the same, possibly

    @classmethod
    def of(cls, snap: Snapshot, gids: NDArray[np.int64]) -> _Actors:
        mine = np.flatnonzero(snap["thread_process"] >= 0)

        def both(name: str) -> NDArray[np.int64]:
            parts = snap[f"process_{name}"], snap[f"thread_{name}"][mine]
            return np.concatenate([part.astype(np.int64) for part in parts])

        fsgid = both("fsgid")
        belongs = fsgid[:, None] == gids[None, :]
        n = snap.n_processes
        for first, indptr, flat in (
            (0, snap["process_group_indptr"], snap["group_gid"]),
            (n, snap["thread_group_indptr"], snap["threadgroup_gid"]),
        ):
            of = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
            if first:
                place = np.full(len(indptr) - 1, -1, np.int64)
                place[mine] = n + np.arange(len(mine))
                of = place[of]
            for at, gid in enumerate(gids.tolist()):
                found = of[flat == gid]
                belongs[found[found >= 0], at] = True
        cap = np.concatenate([snap["process_cap_eff"], snap["thread_cap_eff"][mine]])
        ipc = both("ns_ipc")
        able, perhaps = _able(snap, ipc, both("ns_user"), cap & CAP_IPC_OWNER != 0)
        process = np.concatenate([np.arange(n), snap["thread_process"][mine]])
        return cls(process, ipc, both("euid"), fsgid, belongs, able, perhaps)


def _add_potential(parts: Parts, snap: Snapshot, node: NDArray[np.int64]) -> None:
    """Who may use what: by classes of processes that may use the same, and not by pairs.

    One more node stands for all objects of a type that a class may use in the same way; its
    members hold that, and it maps the objects. O(actors + classes times objects).
    """
    objects = np.flatnonzero(node >= 0)
    if not len(objects):
        return
    names = [snap[f"sysv_{name}"][objects].astype(np.int64) for name in ("gid", "cgid")]
    gids = np.unique(np.concatenate(names))
    owners = np.unique(np.concatenate([snap[f"sysv_{n}"][objects] for n in ("uid", "cuid")]))
    actors = _Actors.of(snap, gids)
    blind = (actors.euid == NO_ID) | (actors.fsgid == NO_ID)
    who = np.where(np.isin(actors.euid, owners.astype(np.int64)), actors.euid, -1)
    key = np.column_stack([actors.ipc, who, blind, actors.able, actors.perhaps, actors.belongs])
    _, first, of = np.unique(key, axis=0, return_index=True, return_inverse=True)
    of = of.reshape(-1)
    rule = parts.rule(
        "a member of the namespace may use an object whose permission bits let it",
        "/proc/sysvipc; ipcperms() in ipc/util.c",
    )
    order = np.argsort(of, kind="stable")
    members = np.split(actors.process[order], np.cumsum(np.bincount(of))[:-1])
    views: dict[str, list[tuple[NDArray[Any], NDArray[Any], int, int]]] = {}
    for one, holders in zip(first.tolist(), members, strict=True):
        rows = objects[snap["sysv_ipc"][objects] == actors.ipc[one]]
        if actors.ipc[one] < 0 or not len(rows):
            continue
        sure, may = _permitted(snap, rows, actors, one, gids)
        for kind, node_type in _TYPES.items():
            of_kind = snap["sysv_kind"][rows] == kind
            for way in np.unique(sure[of_kind].astype(np.int64) << 8 | may[of_kind]).tolist():
                s, m = way >> 8, way & 255
                if m:
                    found = rows[of_kind & (sure == s) & (may == m)]
                    views.setdefault(node_type, []).append((np.unique(holders), found, s, m))
    for node_type, made in views.items():
        numbers = np.arange(1, len(made) + 1)
        view = parts.nodes(Kind.RESOURCE, node_type, Block(f"{node_type}_view_{{}}", (numbers,)))
        for i, (holders, found, s, m) in enumerate(made):
            perm = s | ANY if s else 0
            for src, dst, edge in (
                (holders + 1, np.full(len(holders), view + i), Edge.HOLD),
                (np.full(len(found), view + i), node[found], Edge.MAP),
            ):
                parts.edges.append(
                    Edges.of(src, dst, edge, perm=perm, maybe=m | ANY, flags=POTENTIAL, rule=rule)
                )


def _permitted(
    snap: Snapshot, rows: NDArray[np.intp], actors: _Actors, one: int, gids: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """R and W that one actor has of some objects, certain and possible."""
    mode = snap["sysv_mode"][rows].astype(np.int64)
    # Bits 4 and 2 of each class are read and write (alter), as those of R and W here.
    owner, group, other = ((mode >> n) & (R | W) for n in (6, 3, 0))
    owns = (snap["sysv_uid"][rows] == actors.euid[one]) | (
        snap["sysv_cuid"][rows] == actors.euid[one]
    )
    mine = gids[actors.belongs[one]]
    belongs = np.isin(snap["sysv_gid"][rows], mine) | np.isin(snap["sysv_cgid"][rows], mine)
    sure = np.where(owns, owner, np.where(belongs, group, other)).astype(np.uint8)
    full = np.full(len(rows), R | W, np.uint8)
    blind = NO_ID in (actors.euid[one], actors.fsgid[one])
    may = full if blind or actors.perhaps[one] else sure
    sure = np.zeros_like(full) if blind else sure
    return (full if actors.able[one] else sure), may | (full if actors.able[one] else sure)


def _able(
    snap: Snapshot, ipc: NDArray[np.int64], user: NDArray[np.int64], has: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each actor has CAP_IPC_OWNER over its ipc namespace, for certain and possibly.

    Certain where it is in the user namespace that owns it. Above that, and by owning it, it may.
    """
    owner = np.full(len(ipc), -2, np.int64)
    if len(snap["namespace_user"]):
        owner = np.where(ipc >= 0, snap["namespace_user"][ipc], -2).astype(np.int64)
    initial = np.zeros(len(ipc), bool)
    if len(snap["namespace_parent"]):
        initial = (user >= 0) & (snap["namespace_parent"][user] == -1)
    same = ((owner >= 0) & (owner == user)) | ((owner == -1) & initial)
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
    parts.unseen_by("MQUEUE", not_all_read(snap) + 1, ANY | R | W)


def _add_unread(parts: Parts, snap: Snapshot, node: NDArray[np.int64]) -> None:
    """Stand in for the objects of namespaces that were not read: their members may use some.

    Who may be in any namespace may use those of all.
    """
    if "sources" not in snap.host and not len(snap["ipcspace_ipc"]):
        return  # a snapshot that was made by hand
    rule = parts.rule("its ipc namespace could not be read", "/proc/sysvipc")
    read = set(snap["ipcspace_ipc"][snap["ipcspace_status"] == Status.READ].tolist())
    mine = snap["thread_process"] >= 0
    of = np.concatenate([snap["process_ns_ipc"], snap["thread_ns_ipc"][mine]])
    process = np.concatenate([np.arange(snap.n_processes), snap["thread_process"][mine]])
    rows = np.array([r for r in np.unique(of).tolist() if r >= 0 and r not in read], np.int64)
    anywhere = np.unique(process[of < 0]) + 1

    def perhaps(src: Any, dst: Any, kind: Edge) -> Edges:
        return Edges.of(src, dst, kind, perm=0, maybe=ANY | R | W, flags=POTENTIAL, rule=rule)

    for kind, node_type in _TYPES.items():
        names = Block(node_type + "_{}_unread", (snap["namespace_inode"][rows],))
        first = parts.nodes(Kind.RESOURCE, node_type, names)
        for i, row in enumerate(rows.tolist()):
            members = np.unique(process[of == row]) + 1
            parts.edges.append(perhaps(members, np.full(len(members), first + i), Edge.HOLD))
        if len(anywhere):
            any_of = Block(node_type + "_anywhere_{}", (np.array([1]),))
            unknown = parts.nodes(Kind.RESOURCE, node_type, any_of)
            read_too = node[(node >= 0) & (snap["sysv_kind"] == kind)]
            every = np.concatenate([first + np.arange(len(rows)), read_too])
            parts.edges.append(perhaps(anywhere, np.full(len(anywhere), unknown), Edge.HOLD))
            parts.edges.append(perhaps(np.full(len(every), unknown), every, Edge.MAP))
