"""A part of a model as a model of its own: what is written of it reads like a whole one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from osmosis.formats.near import neighbourhood
from osmosis.graph.graph import Edges, Graph, no_runs
from osmosis.graph.names import Block, Names
from osmosis.graph.pds import PD, PDTable
from osmosis.graph.relation import EdgeControl
from osmosis.model import Model

__all__ = ["part"]

_COLUMNS = ("comm", "exe", "kind", "id", "key", "container", "unit", "user", "role", "cgroup")


def part(model: Model, pd: PD) -> Model:
    """Return the exact graph around *pd*, a PD or a group of *model*, as a model.

    It has the control between its PDs, as edges, and knows nothing of what is outside it: ask
    the whole model, not this one, who is in a TCB.
    """
    graph = model.data
    below = model.pds.members
    rows = [pd.row] if below is None else np.flatnonzero(below[1] == pd.row)
    near = neighbourhood(graph, np.asarray(rows, np.int32))
    nodes = near.nodes
    kept = nodes[nodes < graph.n_pds]
    number = np.full(len(graph.kind), -1, np.int32)
    number[nodes] = np.arange(len(nodes), dtype=np.int32)
    edges = near.edges
    inside = np.flatnonzero((number[edges.src] >= 0) & (number[edges.dst] >= 0))
    edges = Edges(*(getattr(edges, column)[inside] for column in Edges.__slots__))
    names = np.empty(len(nodes), object)
    names[:] = [graph.names[node] for node in nodes.tolist()]
    return Model(
        Graph(
            pds=_table(graph.pds, kept),
            kind=graph.kind[nodes],
            type=graph.type[nodes],
            types=graph.types,
            names=Names([Block("{}", (names,))]),
            pages=graph.pages[nodes],
            edges=replace(edges, src=number[edges.src], dst=number[edges.dst]),
            runs=no_runs(),
            labels=graph.labels,
            rules=graph.rules,
            control=_control(graph, kept),
            kernel=0 if graph.kernel is not None and graph.kernel in kept else None,
            unseen={name: masks[kept] for name, masks in graph.unseen.items()},
            notes=_Notes(graph, nodes),
        )
    )


def _table(pds: PDTable, rows: Any) -> PDTable:
    columns = {name: getattr(pds, name)[rows] for name in _COLUMNS}
    return PDTable(pds.pid[rows], start_time=pds.start_time[rows], uid=pds.uid[rows], **columns)


def _control(graph: Graph, rows: Any) -> EdgeControl:
    """Control between *rows* as edges. O(verbs * rows**2)."""
    src: list[int] = []
    dst: list[int] = []
    verbs: list[str] = []
    certain: list[bool] = []
    for verb in graph.control.verbs:
        relation = graph.control.relation(verb, effective=True)
        for i, row in enumerate(rows.tolist()):
            sure, may = relation.row_masks(row)
            for j in np.flatnonzero(may[rows]).tolist():
                src.append(i)
                dst.append(j)
                verbs.append(verb)
                certain.append(bool(sure[rows[j]]))
    return EdgeControl(len(rows), src, dst, verbs, certain)


class _Notes:
    """Notes of the nodes of a part."""

    def __init__(self, graph: Graph, nodes: Any) -> None:
        self._graph, self._nodes = graph, nodes

    def get(self, node: int, default: Any, /) -> Mapping[str, Any]:
        """Return what is known of *node*, or *default*."""
        found: Mapping[str, Any] = self._graph.notes.get(int(self._nodes[node]), default)
        return found
