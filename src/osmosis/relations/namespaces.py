"""Namespaces as resource spaces: their members, and which stands within which."""

from __future__ import annotations

import numpy as np

from osmosis.graph.graph import ALL, SERVER, Edge, Edges, Kind
from osmosis.graph.names import Block
from osmosis.relations.parts import Parts
from osmosis.schema import NAMESPACES
from osmosis.snapshot import Snapshot

__all__ = ["add_namespaces"]

THREADS = ("cgroup", "ipc", "mnt", "net", "user", "uts")  # kinds that are read of each thread


def add_namespaces(parts: Parts, snap: Snapshot) -> None:
    """Add a space for each namespace, its members' holds, and the kernel as its server.

    PD row of process p is p + 1. A process whose link was not readable may be in any: it is
    ``unseen``. O(namespaces + 8 P).
    """
    kinds = snap["namespace_kind"]
    node = np.full(len(kinds), -1, np.int64)
    member = parts.rule("a process is a member of its namespaces", "/proc/pid/ns")
    by_thread = parts.rule("a thread of it is in another namespace", "/proc/pid/task/tid/ns")
    within = parts.rule("a namespace stands within its parent", "ioctl NS_GET_PARENT")
    serves = parts.rule("the kernel serves every namespace", "the kernel itself")
    for number, name in enumerate(NAMESPACES):
        space_type = name.upper()
        rows = np.flatnonzero(kinds == number)
        first = parts.nodes(
            Kind.SPACE,
            space_type,
            Block(f"{space_type}_SPACE_{{}}", (snap["namespace_inode"][rows],)),
        )
        node[rows] = first + np.arange(len(rows))
        of = snap[f"process_ns_{name}"]
        known = np.flatnonzero(of >= 0)
        parts.edges.append(Edges.of(known + 1, node[of[known]], Edge.HOLD, perm=ALL, rule=member))
        parts.edges.append(
            Edges.of(np.zeros(len(rows)), node[rows], Edge.HOLD, flags=SERVER, rule=serves)
        )
        unseen = of < 0
        if name in THREADS:
            mine = np.flatnonzero(snap["thread_process"] >= 0)
            process, its = snap["thread_process"][mine], snap[f"thread_ns_{name}"][mine]
            unseen[process[its < 0]] = True
            other = (its >= 0) & (its != of[process])
            holds = np.unique(np.stack([process[other] + 1, node[its[other]]]), axis=1)
            parts.edges.append(Edges.of(holds[0], holds[1], Edge.HOLD, perm=ALL, rule=by_thread))
        parts.unseen_by(space_type, np.flatnonzero(unseen) + 1, ALL)
    parent = snap["namespace_parent"]
    child = np.flatnonzero(parent >= 0)
    parts.edges.append(Edges.of(node[child], node[parent[child]], Edge.SUBSET, rule=within))
