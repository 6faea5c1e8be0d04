"""All relations of a snapshot, put together into one Graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.graph import Edges, Graph, no_runs
from osmosis.graph.names import Block, Names
from osmosis.graph.pds import PDTable
from osmosis.relations import roles
from osmosis.relations.control.table import control
from osmosis.relations.files import add_files
from osmosis.relations.ipc import add_ipc
from osmosis.relations.layers import add_layers
from osmosis.relations.memory import add_memory
from osmosis.relations.mounts import add_mounts
from osmosis.relations.namespaces import add_namespaces
from osmosis.relations.parts import BlockNotes, Parts
from osmosis.relations.quotas import add_quotas
from osmosis.relations.services import add_services
from osmosis.relations.sockets import add_sockets
from osmosis.snapshot import Snapshot

__all__ = ["build"]

KERNEL = "Host Linux"  # the name that the paper's tool gives it


def build(snap: Snapshot, *, memory: str = "classes") -> Graph:
    """Turn a snapshot into the OSmosis graph: pure, and without /proc.

    PD row 0 is the kernel, row p + 1 is process p of the snapshot. O(VMAs + runs + P).

    Raises
    ------
    QueryError
        *memory* is none of "classes", "runs", "pages", or the snapshot did not keep frames.
    """
    if memory not in ("classes", "runs", "pages"):
        msg = f'memory must be "classes", "runs" or "pages", not {memory!r}'
        raise QueryError(msg)
    if memory != "classes" and not len(snap["frame_pfn"]) and len(snap["class_pages"]):
        msg = f'memory={memory!r} wants a snapshot that was taken with frames="all"'
        raise QueryError(msg)
    parts = Parts(n_pds=snap.n_processes + 1)
    add_memory(parts, snap, granularity=memory)
    add_namespaces(parts, snap)
    add_files(parts, snap)
    add_mounts(parts, snap)
    named = roles.name(snap)
    add_services(parts, snap, add_sockets(parts, snap), named)
    add_ipc(parts, snap)
    add_quotas(parts, snap)
    add_layers(parts, snap, named)
    return _graph(parts, snap, named)


def _graph(parts: Parts, snap: Snapshot, named: roles.Roles) -> Graph:
    pds = _pd_table(snap, named)
    types = tuple(dict.fromkeys(block.type for block in parts.blocks))
    n = parts.n_nodes
    kind = np.zeros(n, np.uint8)
    node_type = np.full(n, -1, np.int16)
    pages = np.ones(n)
    for block in parts.blocks:
        span = slice(block.first, block.first + len(block.names))
        kind[span] = block.kind
        node_type[span] = types.index(block.type)
        if block.pages is not None:
            pages[span] = block.pages
    return Graph(
        pds=pds,
        kind=kind,
        type=node_type,
        types=types,
        names=Names([Block("{}", (pds.id,)), *(block.names for block in parts.blocks)]),
        pages=pages,
        edges=Edges.concatenate(parts.edges),
        runs=parts.runs or no_runs(),
        labels=tuple(parts.labels),
        rules=tuple(parts.rules),
        control=control(snap),
        kernel=0,
        unseen=parts.unseen,
        notes=BlockNotes(tuple(parts.blocks)),
        layers=parts.layers,
        coverage=snap.coverage,
    )


def _pd_table(snap: Snapshot, named: roles.Roles) -> PDTable:
    pids = snap["process_pid"]
    boot = snap.host.get("boot_id") or "unknown"

    def texts(name: str, kernel: str) -> list[str | None]:
        known = snap[f"process_{name}"] >= 0
        values = snap.texts(f"process_{name}")
        return [kernel, *(v if k else None for v, k in zip(values, known.tolist(), strict=True))]

    def keys() -> list[str]:
        starts = snap["process_start_time"].tolist()
        return [
            f"{boot}/0/0",
            *(f"{boot}/{pid}/{t}" for pid, t in zip(pids.tolist(), starts, strict=True)),
        ]

    def with_kernel(values: Any, kernel: str | None = None) -> list[str | None]:
        return [kernel, *values]

    def first_row(values: NDArray[Any], kernel: int) -> NDArray[np.int64]:
        return np.concatenate([[kernel], values.astype(np.int64)])

    return PDTable(
        first_row(pids, 0),
        start_time=first_row(snap["process_start_time"], 0),
        uid=first_row(snap["process_euid"], 0),
        comm=lambda: [t or "" for t in texts("comm", KERNEL)],
        exe=lambda: texts("exe", "")[:],
        kind=lambda: ["kernel", *["process"] * len(pids)],
        key=keys,
        container=lambda: with_kernel(named.container),
        unit=lambda: with_kernel(named.unit),
        user=lambda: with_kernel(named.user),
        role=lambda: with_kernel(named.role, "kernel"),
        cgroup=lambda: with_kernel(named.cgroup),
        container_names=lambda: [(), *named.aliases],
        alias=dict.fromkeys(snap["kthread_pid"].tolist(), 0),
    )
