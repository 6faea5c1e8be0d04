"""Quotas: the cgroups whose limits bind a process, and the processors it is kept to.

A process holds the quota space of every cgroup at or above its own that sets a limit: what it
takes there, the others that hold it cannot have. A cgroup without a limit is no space. A limit
that could not be read is held for possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, SERVER, Edge, Edges, Kind
from osmosis.graph.names import Block
from osmosis.relations.parts import Parts
from osmosis.schema import QuotaKind, Status
from osmosis.snapshot import Snapshot

__all__ = ["KINDS", "add_quotas", "chain", "charged", "hierarchies"]

KINDS = QuotaKind.NAMES
_LOOKED = (Status.READ, Status.DENIED)  # whether the controller is there is known
Node = tuple[str, str]  # hierarchy, path


def hierarchies(text: str) -> dict[str, str]:
    r"""Return the path in each hierarchy of the text of one /proc/pid/cgroup; "" is v2's.

    >>> hierarchies("4:memory:/a\n0::/b\n")
    {'memory': '/a', '': '/b'}
    """
    found = {}
    for line in text.split("\n"):
        part = line.split(":", 2)
        if len(part) == 3:
            found[",".join(sorted(part[1].split(",")))] = part[2]
    return found


def chain(path: str) -> list[str]:
    """Return a cgroup and all above it, from the top; "" stands for what is above that.

    >>> chain("/a/b")
    ['', '/', '/a', '/a/b']
    >>> chain("/../c")
    ['', '/..', '/../c']
    """
    steps = [step for step in path.split("/") if step]
    lowest = steps.count("..")
    return ["", *("/" + "/".join(steps[:n]) for n in range(lowest, len(steps) + 1))]


@dataclass(frozen=True, slots=True, eq=False)
class _Quotas:
    """Table quota by cgroup, and the chains of the distinct texts of table process."""

    rows: dict[tuple[str, str, int], int]  # hierarchy, path, kind -> row
    status: list[int]
    limit: list[str | None]  # None: not known
    chains: dict[int, list[list[Node]]]  # text -> the chain of each hierarchy
    members: dict[int, NDArray[np.intp]]  # text -> processes

    @classmethod
    def of(cls, snap: Snapshot) -> _Quotas:
        names, paths = snap.texts("quota_hierarchy"), snap.texts("quota_path")
        keys = zip(names, paths, snap["quota_kind"].tolist(), strict=True)
        chains, members = {}, {}
        of = snap["process_cgroup"]
        distinct, counts = np.unique(of, return_counts=True)
        parts = np.split(np.argsort(of, kind="stable"), np.cumsum(counts)[:-1])
        for text, rows in zip(distinct.tolist(), parts, strict=True) if len(of) else ():
            if text >= 0:
                found = hierarchies(snap.text(text)).items()
                chains[text] = [[(name, p) for p in chain(path)] for name, path in found]
                members[text] = rows
        limits = zip(snap.texts("quota_limit"), snap["quota_limit"].tolist(), strict=True)
        return cls(
            {key: i for i, key in enumerate(keys)},
            snap["quota_status"].tolist(),
            [said if row >= 0 else None for said, row in limits],
            chains,
            members,
        )

    def along(self, text: int, kind: int) -> list[int]:
        """Rows of one kind on the way down to the cgroup of a process."""
        return [
            self.rows[name, path, kind]
            for nodes in self.chains[text]
            for name, path in nodes
            if (name, path, kind) in self.rows
        ]


def add_quotas(parts: Parts, snap: Snapshot) -> None:
    """Add quota spaces and processors, and who holds them.

    PD row of process p is p + 1. O(P times the limits above each).
    """
    quotas = _Quotas.of(snap)
    texts = snap["process_cgroup"]
    asked = "sources" in snap.host  # else it was made by hand: nothing is there but what it says
    member = parts.rule(
        "what a process takes counts in its cgroup and all above it", "/proc/pid/cgroup, cgroupfs"
    )
    within = parts.rule("a cgroup's limit stands within that of the one above", "cgroupfs")
    serves = parts.rule("the kernel enforces every limit", "the kernel itself")
    for kind, node_type in enumerate(KINDS):
        rows = [r for (_, _, k), r in quotas.rows.items() if k == kind and quotas.limit[r] != ""]
        node = _add_spaces(parts, snap, quotas, node_type, rows)
        spaces = np.array(sorted(node.values()), np.int64)
        parts.edges.append(
            Edges.of(np.zeros(len(spaces)), spaces, Edge.HOLD, flags=SERVER, rule=serves)
        )
        up, held, sizes = set(), [], []
        holders: list[NDArray[np.intp]] = [np.empty(0, np.intp)]
        for text in quotas.chains:
            on_the_way = [r for r in quotas.along(text, kind) if r in node]
            up |= set(zip(on_the_way[1:], on_the_way[:-1], strict=True))
            for r in on_the_way:
                held.append((node[r], ALL if quotas.limit[r] is not None else 0))
                holders.append(quotas.members[text])
                sizes.append(len(quotas.members[text]))
        spaces, sure = np.repeat(np.array(held, np.int64).reshape(-1, 2), sizes, axis=0).T
        src = np.concatenate(holders) + 1
        parts.edges.append(Edges.of(src, spaces, Edge.HOLD, perm=sure, maybe=ALL, rule=member))
        pairs = sorted((node[low], node[high]) for low, high in up)
        child, parent = zip(*pairs, strict=True) if pairs else ((), ())
        parts.edges.append(Edges.of(child, parent, Edge.SUBSET, rule=within))
        unread = np.full(len(texts), asked) if not quotas.rows else texts < 0
        parts.unseen_by(node_type, np.flatnonzero(unread) + 1, ALL)
    _add_processors(parts, snap, asked=asked)


def _add_spaces(
    parts: Parts, snap: Snapshot, quotas: _Quotas, node_type: str, rows: list[int]
) -> dict[int, int]:
    paths = snap.texts("quota_path")
    names = np.empty(len(rows), object)
    names[:] = [paths[r] or "above" for r in rows]

    def note(i: int) -> Mapping[str, Any]:
        limit = quotas.limit[rows[i]]
        status = Status.NAMES[quotas.status[rows[i]]]
        return {"path": paths[rows[i]], "limit": f"not known: {status}" if limit is None else limit}

    first = parts.nodes(Kind.SPACE, node_type, Block(node_type + "_SPACE_{}", (names,)), note=note)
    return {r: first + i for i, r in enumerate(rows)}


def _add_processors(parts: Parts, snap: Snapshot, *, asked: bool) -> None:
    """Processors, held by those alone that are kept off others: W or R would say nothing."""
    number, numa = snap["processor_number"], snap["processor_node"]
    first = parts.nodes(Kind.RESOURCE, "CPU", Block("CPU_{}", (number,)))
    held = np.flatnonzero((snap["affinity_processor"] >= 0) & (snap["affinity_process"] >= 0))
    kept = parts.rule(
        "a process whose threads are all kept off some processors runs on these",
        "/proc/pid/status: Cpus_allowed_list",
    )
    parts.edges.append(
        Edges.of(
            snap["affinity_process"][held] + 1,
            snap["affinity_processor"][held] + first,
            Edge.HOLD,
            perm=ANY,
            rule=kept,
        )
    )
    nodes, at = np.unique(numa[numa >= 0], return_inverse=True)
    space = parts.nodes(Kind.SPACE, "CPU", Block("CPU_SPACE_{}", (nodes,)))
    part_of = parts.rule("a processor is part of its NUMA node", "/sys/devices/system/node")
    parts.edges.append(
        Edges.of(np.flatnonzero(numa >= 0) + first, space + at, Edge.SUBSET, rule=part_of)
    )
    parts.edges.append(
        Edges.of(
            np.zeros(len(nodes)),
            space + np.arange(len(nodes)),
            Edge.HOLD,
            flags=SERVER,
            rule=part_of,
        )
    )
    unread = snap["affinity_process"][snap["affinity_processor"] < 0]
    unread = unread[unread >= 0]
    if not len(number) and asked:
        unread = np.arange(snap.n_processes)
    parts.unseen_by("CPU", unread + 1, ANY)


def charged(snap: Snapshot) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Where what each process takes is counted, and what to call the places.

    Returns
    -------
    (P, kinds) int64
        A number for the cgroup, for each of ``KINDS``: the nearest one at or above its own that
        has the controller. -1 where that is not known.
    dict
        Number to name.

    """
    quotas = _Quotas.of(snap)
    names = {kind: f"{name}: the root" for kind, name in enumerate(KINDS)}
    texts = snap["process_cgroup"]
    out = np.full((len(texts), len(KINDS)), -1, np.int64)
    paths = snap.texts("quota_path")
    for text in quotas.chains:
        at = quotas.members[text]
        for kind, name in enumerate(KINDS) if quotas.rows else ():
            rows = [r for r in quotas.along(text, kind) if quotas.status[r] != Status.HIDDEN]
            if any(quotas.status[r] not in _LOOKED for r in rows[-1:]):
                continue
            if rows:
                number = len(KINDS) + rows[-1]
                names[number] = f"{name}: {paths[rows[-1]]}"
            else:
                number = kind
            out[at, kind] = number
    return out, names
